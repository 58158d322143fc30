"""The signals of a monitor: from the passes that it scores, of all ranks, in a state of tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from gwa_core import Moments
from gwa_core.signals import TrackedSignals
from gwa_torch._capture import Forward
from gwa_torch._distributed import gather, position, total
from gwa_torch._epoch import BySample, ByStream, pack, unpack
from gwa_torch._targets import Flat

__all__ = ["Followed"]


class Followed:
    """Signals that a monitor follows, merged over the ranks as its scores are.

    Parameters
    ----------
    names : str or iterable of str
        Keys of ``SIGNALS``, or none; then nothing is followed.
    num_samples : int or None
        N of the monitor.
    loss : str
        Of the monitor.
    """

    def __init__(self, names: str | Iterable[str], num_samples: int | None, loss: str) -> None:
        names = (names,) if isinstance(names, str) else tuple(names)
        if names and loss != "cross_entropy":
            raise ValueError(
                f"`signals` must come with loss='cross_entropy', got {loss!r}; a sigmoid has no "
                "one label whose margin or probability it could be"
            )
        self.tracked = TrackedSignals(names, num_samples) if names else None
        # Of a stream: what all ranks agreed on, by signal, without what this one saw since.
        self._common: dict[str, tuple[Moments, int]] = {}

    def check(self, flat: Flat) -> None:
        """Raise where a batch has no signals."""
        if self.tracked is not None and flat.targets.ndim != 1:
            raise ValueError(
                "`targets` must be class numbers under `signals=`, got soft ones of shape "
                f"{tuple(flat.targets.shape)}; after mixup no class is the label"
            )

    @property
    def means(self) -> dict[str, float]:
        """Those of the epoch that ended last."""
        return dict(self.tracked.history[-1]) if self.tracked is not None else {}

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
        self.tracked.update(
            logits=logits,
            latents=forward.latents.reshape(-1, forward.latents.shape[-1]),
            targets=flat.targets,
            ids=ids,
            where=where,
        )

    def synchronize(self, epoch: BySample | ByStream, group: Any) -> None:
        """Take over what the other ranks saw, after the scores of the epoch did."""
        if self.tracked is None:
            return
        state = self._merged(epoch, group)
        if isinstance(epoch, ByStream):
            self._common = {name: _moments(x) for name, x in state["trackers"].items()}
            for tracker in state["trackers"].values():
                _put_moments(tracker, Moments.empty(np.zeros(())), 0)
        self.tracked.load_state_dict(state)

    def end_epoch(self, epoch: BySample | ByStream, group: Any) -> None:
        """End the epoch on all ranks alike, after the scores were merged."""
        if self.tracked is None:
            return
        if position(group)[1] > 1 or self._common:
            self.tracked.load_state_dict(self._merged(epoch, group))
        self._common = {}
        self.tracked.end_epoch()

    def _merged(self, epoch: BySample | ByStream, group: Any) -> dict[str, Any]:
        """Return the state with the epoch in flight of all ranks."""
        assert self.tracked is not None  # noqa: S101  # asked before
        state = self.tracked.state_dict()
        if isinstance(epoch, BySample):
            self._merge_samples(state["trackers"], epoch, group)
        else:
            self._merge_moments(state["trackers"], group)
        return state

    def _merge_samples(self, trackers: dict[str, Any], epoch: BySample, group: Any) -> None:
        """Take each sample's values from the rank whose score of it is kept."""
        seen, mine = (x.numpy() for x in epoch.seen(group))
        # In float64, as a rank without samples does not know the dtype of the others.
        values = np.zeros((len(trackers), len(seen)))
        for row, tracker in zip(values, trackers.values(), strict=True):
            if tracker["by_sample"] is not None:
                row[mine] = tracker["by_sample"]["scores"][mine]
        # Only one rank has something else than 0.
        merged = total(torch.from_numpy(values), group).numpy()
        for row, tracker in zip(merged, trackers.values(), strict=True):
            slots = {"scores": np.where(seen, row, np.nan), "seen_in": seen.astype(np.int64) - 1}
            tracker.update(ended=False, by_id=True, by_sample=slots)

    def _merge_moments(self, trackers: dict[str, Any], group: Any) -> None:
        own = [_moments(tracker) for tracker in trackers.values()]
        packed = torch.stack([pack(_each(torch.from_numpy, moments)) for moments, _ in own])
        omitted = total(torch.tensor([count for _, count in own]), group)
        parts = gather(packed, group)
        for k, (name, tracker) in enumerate(trackers.items()):
            common, before = self._common.get(name, (Moments.empty(np.zeros(())), 0))
            ranks = [_each(torch.Tensor.numpy, unpack(part[k])) for part in parts]
            _put_moments(
                tracker, functools.reduce(Moments.merge, ranks, common), before + int(omitted[k])
            )

    def state_dict(self) -> dict[str, Any] | None:
        """Return everything as tensors, which ``torch.load(weights_only=True)`` reads."""
        if self.tracked is None:
            return None
        common = {name: [list(moments), n] for name, (moments, n) in self._common.items()}
        tensors: dict[str, Any] = _made_of_tensors(self.tracked.state_dict() | {"common": common})
        return tensors

    def load_state_dict(self, state: Mapping[str, Any] | None, *, in_flight: bool) -> None:
        """Take over a state; without its epoch in flight where the scores of that are left out."""
        if (self.tracked is None) != (state is None):
            own, other = ("none" if x is None else "some" for x in (self.tracked, state))
            raise ValueError(
                f"`state` must have signals where the monitor has them, got {other} for a monitor "
                f"with {own}; make it with the same `signals=`"
            )
        if self.tracked is None:
            return
        state = _made_of_arrays(state)
        common = state["common"] if in_flight else {}
        if not in_flight:
            fresh = TrackedSignals(self.tracked.names, self.tracked.num_samples).state_dict()
            trackers = {
                name: x if x["ended"] else fresh["trackers"].get(name)
                for name, x in state["trackers"].items()
            }
            state = {**state, "trackers": trackers}
        self.tracked.load_state_dict(state)
        self._common = {name: (Moments(*fields), n) for name, (fields, n) in common.items()}


def _moments(tracker: Mapping[str, Any]) -> tuple[Moments, int]:
    """Return moments and number of omitted values of the epoch in flight."""
    ended = tracker["ended"]
    moments = Moments.empty(np.zeros(())) if ended else tracker["moments"]
    return _each(lambda x: np.array(x, np.float64), moments), 0 if ended else tracker["omitted"]


def _put_moments(tracker: dict[str, Any], moments: Moments, omitted: int) -> None:
    fields = [np.array(field) for field in moments]
    tracker.update(ended=False, by_id=False, moments=fields, omitted=omitted)


def _each(function: Any, moments: Iterable[Any]) -> Moments:
    return Moments(*(function(field) for field in moments))


def _made_of_tensors(state: Any) -> Any:
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if isinstance(state, Mapping):
        return {name: _made_of_tensors(value) for name, value in state.items()}
    return [_made_of_tensors(value) for value in state] if isinstance(state, list) else state


def _made_of_arrays(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.cpu().numpy()
    if isinstance(state, Mapping):
        return {name: _made_of_arrays(value) for name, value in state.items()}
    return [_made_of_arrays(value) for value in state] if isinstance(state, list) else state
