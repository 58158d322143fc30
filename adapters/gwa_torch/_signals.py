"""The signals of a monitor: from the passes that it scores, of all ranks, in a state of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from gwa_core.signals import TrackedSignals
from gwa_torch._distributed import each
from gwa_torch._forward import Forward
from gwa_torch._targets import Flat, LossOptions
from gwa_torch.scoring import full_precision

__all__ = ["Followed", "made_of_arrays", "made_of_tensors"]


class Followed:
    """Signals that a monitor follows, merged over the ranks as its scores are.

    Parameters
    ----------
    names : str or iterable of str
        Keys of ``SIGNALS``, or none; then nothing is followed.
    num_samples : int or None
        N of the monitor.
    """

    def __init__(self, names: str | Iterable[str], num_samples: int | None) -> None:
        names = (names,) if isinstance(names, str) else tuple(names)
        self.tracked = TrackedSignals(names, num_samples) if names else None
        # The epoch in progress: what this rank saw since the ranks last shared it, and all before.
        self._own: TrackedSignals | None = None
        self._shared: TrackedSignals | None = None

    def check_loss(self, options: LossOptions) -> None:
        """Raise where samples have no one label."""
        several = options.loss == "binary_cross_entropy" and options.classes > 1
        if self.tracked is not None and several:
            raise ValueError(
                "`signals` must come with one label a sample, got loss='binary_cross_entropy' and "
                f"C = {options.classes} outputs; a sample with several labels has no one margin or "
                "probability (one output, or loss='cross_entropy', has)"
            )

    def check(self, flat: Flat, options: LossOptions) -> None:
        """Raise where a batch has no signals."""
        if self.tracked is None:
            return
        # The Trainer finds out with the first batch.
        self.check_loss(options)
        targets = flat.targets
        soft = targets.ndim != 1
        if targets.is_floating_point() and targets.device.type == "cpu":
            soft = soft or not bool((targets == targets.round()).all())
        if soft:
            raise ValueError(
                "`targets` must be class numbers under `signals=`, got soft ones of shape "
                f"{tuple(targets.shape)}; after mixup no class is the label"
            )

    @property
    def means(self) -> dict[str, float]:
        """Those of the epoch that ended last."""
        return dict(self.tracked.history[-1]) if self.tracked is not None else {}

    def _fresh(self) -> TrackedSignals:
        assert self.tracked is not None  # noqa: S101  # asked before
        return TrackedSignals(self.tracked.names, self.tracked.num_samples)

    def follow(self, forward: Forward, flat: Flat) -> None:
        """Take in a pass, as the forward had it."""
        if self.tracked is None:
            return
        logits = forward.logits.reshape(-1, forward.logits.shape[-1])
        flat = flat.to(logits.device)
        ids, where = flat.ids, flat.where
        if ids is not None and ids.device.type != "cpu":
            # The scores count those out of range, and `end_epoch` refuses them on all ranks.
            known = (ids >= 0) & (ids < (self.tracked.num_samples or 0))
            ids, where = ids.where(known, 0), known if where is None else known & where
        self._own = self._own or self._fresh()
        with full_precision(logits.device):
            self._own.update(
                logits=logits,
                latents=forward.latents.reshape(-1, forward.latents.shape[-1]),
                targets=_numbers(flat.targets),
                ids=ids,
                where=where,
            )

    def synchronize(self, group: Any) -> None:
        """Take over what the other ranks saw."""
        if self.tracked is not None:
            shared = self._fresh()
            self._merge_into(shared, group)
            self._own, self._shared = None, shared

    def end_epoch(self, group: Any) -> None:
        """End the epoch on all ranks alike, after the scores were merged."""
        if self.tracked is not None:
            self._merge_into(self.tracked, group)
            self._own = self._shared = None
            self.tracked.end_epoch()

    def _merge_into(self, into: TrackedSignals, group: Any) -> None:
        """Add the epoch in progress of all ranks, one after the other: each is large."""
        if self._shared is not None:
            into.merge(self._shared)
        own = None if self._own is None else self._own.state_dict()
        for state in each(own, group):
            if (part := self._loaded(state)) is not None:
                into.merge(part)

    def _loaded(self, state: Mapping[str, Any] | None) -> TrackedSignals | None:
        if state is None:
            return None
        loaded = self._fresh()
        loaded.load_state_dict(state)
        return loaded

    def state_dict(self) -> dict[str, Any] | None:
        """Return everything as tensors, which ``torch.load(weights_only=True)`` reads."""
        if self.tracked is None:
            return None
        parts = {"ended": self.tracked, "own": self._own, "shared": self._shared}
        states = {name: None if x is None else x.state_dict() for name, x in parts.items()}
        tensors: dict[str, Any] = made_of_tensors(states)
        return tensors

    def load_state_dict(self, state: Mapping[str, Any] | None, *, in_progress: bool) -> None:
        """Take over a state; without its epoch in progress where the scores of that are left out."""
        if (self.tracked is None) != (state is None):
            own, other = ("none" if x is None else "some" for x in (self.tracked, state))
            raise ValueError(
                f"`state` must have signals where the monitor has them, got {other} for a monitor "
                f"with {own}; make it with the same `signals=`"
            )
        if self.tracked is None:
            return
        arrays = made_of_arrays(state)
        self.tracked.load_state_dict(arrays["ended"])
        self._own = self._loaded(arrays["own"]) if in_progress else None
        self._shared = self._loaded(arrays["shared"]) if in_progress else None


def _numbers(targets: torch.Tensor) -> torch.Tensor:
    """Return class numbers; a soft label of one sigmoid, which the host has refused, is none."""
    if not targets.is_floating_point():
        return targets
    return torch.where(targets == targets.round(), targets, -1).long()


def made_of_tensors(state: Any) -> Any:
    """Return a state of the core with tensors in place of NumPy's arrays."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if isinstance(state, Mapping):
        return {name: made_of_tensors(value) for name, value in state.items()}
    return [made_of_tensors(value) for value in state] if isinstance(state, list) else state


def made_of_arrays(state: Any) -> Any:
    """Return what `made_of_tensors` was given."""
    if isinstance(state, torch.Tensor):
        return state.cpu().numpy()
    if isinstance(state, Mapping):
        return {name: made_of_arrays(value) for name, value in state.items()}
    return [made_of_arrays(value) for value in state] if isinstance(state, list) else state
