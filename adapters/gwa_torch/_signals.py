"""The signals of a monitor: from the passes that it scores, and in a state of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from gwa_core.signals import TrackedSignals
from gwa_torch._capture import Forward
from gwa_torch._distributed import position
from gwa_torch._targets import Flat

__all__ = ["check_signals", "follow", "load_signals", "made_of_tensors", "tracked_signals"]


def tracked_signals(
    names: Iterable[str], num_samples: int | None, loss: str
) -> TrackedSignals | None:
    """Return what follows the signals of these names, or None where there are none."""
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names:
        return None
    if loss != "cross_entropy":
        raise ValueError(
            f"`signals` must come with loss='cross_entropy', got {loss!r}; a sigmoid has no one "
            "label whose margin or probability it could be"
        )
    return TrackedSignals(names, num_samples)


def check_signals(flat: Flat, process_group: Any) -> None:
    """Raise where a batch has no signals."""
    if flat.targets.ndim != 1:
        raise ValueError(
            "`targets` must be class numbers under `signals=`, got soft ones of shape "
            f"{tuple(flat.targets.shape)}; after mixup no class is the label"
        )
    if position(process_group)[1] > 1:
        raise ValueError(
            "`signals` must be followed in one process, got several ranks; each would see its own "
            "samples alone"
        )


def follow(signals: TrackedSignals, forward: Forward, flat: Flat) -> None:
    """Take in a pass, as the forward had it."""
    logits = forward.logits.reshape(-1, forward.logits.shape[-1])
    flat = flat.to(logits.device)
    signals.update(
        logits=logits,
        latents=forward.latents.reshape(-1, forward.latents.shape[-1]),
        targets=flat.targets,
        ids=flat.ids,
        where=flat.where,
    )


def made_of_tensors(state: Any) -> Any:
    """Return a state with tensors for arrays, which ``torch.load(weights_only=True)`` reads."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if isinstance(state, Mapping):
        return {name: made_of_tensors(value) for name, value in state.items()}
    return [made_of_tensors(value) for value in state] if isinstance(state, list) else state


def load_signals(signals: TrackedSignals | None, state: Any) -> None:
    """Take over a state that was made of tensors."""
    if (signals is None) != (state is None):
        own, other = ("none" if x is None else "some" for x in (signals, state))
        raise ValueError(
            f"`state` must have signals where the monitor has them, got {other} for a monitor with "
            f"{own}; make it with the same `signals=`"
        )
    if signals is not None:
        signals.load_state_dict(_made_of_arrays(state))


def _made_of_arrays(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.cpu().numpy()
    if isinstance(state, Mapping):
        return {name: _made_of_arrays(value) for name, value in state.items()}
    return [_made_of_arrays(value) for value in state] if isinstance(state, list) else state
