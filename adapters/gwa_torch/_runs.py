"""Write the epochs of a monitor to a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from gwa_core import EpochSummary
from gwa_offline.store import RunFolder

__all__ = ["write_run"]


def write_run(
    path: str | os.PathLike[str],
    history: Sequence[EpochSummary],
    scores: torch.Tensor | None,
    *,
    resumed: bool,
    num_samples: int | None,
    num_classes: int,
    beta: float,
    loss: str,
    metrics: Mapping[str, float] | None = None,
    targets: torch.Tensor | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write the last epoch with its scores, and those before it that the folder lacks without."""
    last = history[-1]
    if resumed and (Path(path) / "run.json").exists():
        run = RunFolder.open(path)
        if scores is None and last in [summary for summary, _ in run.epochs()]:
            # The scores are there, and a monitor that has gone on or was resumed has them no more.
            run.truncate(last.epoch + 1)
            return
        run.truncate(last.epoch)
    else:
        run = RunFolder.create(
            path,
            num_samples=num_samples or last.count + last.omitted,
            num_classes=num_classes,
            class_names=class_names,
            beta=beta,
            adapter="torch",
            loss=loss,
            targets=None if targets is None else targets.cpu().numpy(),
        )
    there = {summary.epoch for summary, _ in run.epochs()}
    for summary in history[:-1]:
        if summary.epoch not in there:
            run.write_epoch(summary)
    kept = None if scores is None else scores.numpy()
    run.write_epoch(last, scores=kept, metrics=metrics)
