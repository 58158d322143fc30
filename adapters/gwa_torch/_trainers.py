"""What the adapters to trainers share: targets and ids of a batch, log keys, the rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from gwa_core import EarlyStopper, EpochSummary

__all__ = ["Pick", "log_values", "pick_ids", "pick_targets", "watch"]

Pick: TypeAlias = "str | int | Callable[[Any], torch.Tensor] | None"
"""A key or position in a batch, a function of the batch, or None for the usual one."""

TARGETS = ("labels", "label", "targets", "target", "y")
IDS = ("ids", "id", "idx", "index", "indices", "sample_id")


def pick_targets(batch: Any, pick: Pick = None) -> torch.Tensor:
    """Return the targets of a batch: by default the second of a tuple, or the labels of a dict."""
    return _pick("targets", batch, pick, 1, TARGETS)


def pick_ids(batch: Any, pick: Pick = None) -> torch.Tensor:
    """Return the ids of a batch: by default the third of a tuple, or the ids of a dict."""
    return _pick("ids", batch, pick, 2, IDS)


def _pick(name: str, batch: Any, pick: Pick, place: int, keys: tuple[str, ...]) -> torch.Tensor:
    if callable(pick):
        return pick(batch)
    try:
        if pick is not None:
            found = batch[pick]
        elif isinstance(batch, Mapping):
            found = next(batch[key] for key in keys if key in batch)
        elif isinstance(batch, Sequence):
            found = batch[place]
        else:
            found = None
    except (StopIteration, IndexError, KeyError, TypeError):
        found = None
    if not isinstance(found, torch.Tensor):
        has = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        size = f" of {len(batch)}" if isinstance(batch, Sequence) else ""
        usual = f"item {place} of a tuple or one of the keys {', '.join(keys)}"
        raise ValueError(  # noqa: TRY004
            f"`{name}` must be found in the batch as {usual if pick is None else repr(pick)}, got "
            f"{has}{size}; pass `{name}=` with a key, a position or a function of the batch"
        )
    return found


def log_values(summary: EpochSummary, prefix: str = "train/") -> dict[str, float]:
    """Return the numbers to log for an epoch."""
    return {
        f"{prefix}gwa": summary.gwa,
        f"{prefix}gwa_mean": summary.mean,
        f"{prefix}gwa_kurtosis": summary.kurtosis,
        f"{prefix}gwa_se": summary.gwa_standard_error,
        f"{prefix}gwa_bimodality": summary.bimodality,
    }


def watch(stopper: EarlyStopper, summary: EpochSummary) -> tuple[bool, bool]:
    """Show an epoch to a rule; return whether to stop, and whether this is the best epoch."""
    value = getattr(summary, stopper.rule.signal, math.nan)
    stop = stopper.update(value, step=summary.epoch, healthy=summary.healthy)
    return stop, stopper.best_step == summary.epoch
