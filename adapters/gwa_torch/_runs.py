"""Write the epochs of a monitor to a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gwa_core import EpochSummary
from gwa_offline.store import RunFolder, begin_run, end_run
from gwa_torch._distributed import position

__all__ = ["begin_folder", "end_folder", "write_run"]


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
    predictions: torch.Tensor | None = None,
    metrics: Mapping[str, float] | None = None,
    targets: torch.Tensor | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write the last epoch with its scores, and those before it that the folder lacks without."""
    last = history[-1]
    begun = RunFolder.open(path) if (Path(path) / "run.json").exists() else None
    known = [] if begun is None else [summary for summary, _ in begun.epochs()]
    there: set[int] = set()
    if resumed and begun is not None and known:
        run = begun
        if scores is None and last in known:
            # The scores are there, and a monitor that has gone on or was resumed has them no more.
            run.truncate(last.epoch + 1)
            return
        run.truncate(last.epoch)
        there = {summary.epoch for summary in known if summary.epoch < last.epoch}
    else:
        about: dict[str, Any] = {
            "num_samples": num_samples or last.count + last.omitted,
            "num_classes": num_classes,
            "class_names": class_names,
            "beta": beta,
            "adapter": "torch",
            "loss": loss,
            "targets": None if targets is None else targets.cpu().numpy(),
        }
        if begun is not None and begun.status == "running":
            # More is known of it by now.
            run = begin_run(path, planned=begun.planned, **about)
        else:
            run = RunFolder.create(path, **about)
    for summary in history[:-1]:
        if summary.epoch not in there:
            run.write_epoch(summary)
    kept = None if scores is None else scores.numpy()
    classes = None if predictions is None else predictions.numpy()
    run.write_epoch(last, scores=kept, predictions=classes, metrics=metrics)


def _check_new(run_folder: str | os.PathLike[str]) -> None:
    """Refuse the folder of another run before training starts."""
    epochs = Path(run_folder) / "epochs.jsonl"
    if epochs.exists() and epochs.stat().st_size:
        raise ValueError(
            f"`run_folder` must be new, got {str(run_folder)!r} with epochs of another run; choose "
            "another name, or resume that run from its checkpoint"
        )


def begin_folder(
    monitor: Any, path: str | os.PathLike[str], planned: int | None, *, resumed: bool
) -> None:
    """Say that a training runs, for ``gwa follow``; only the first rank writes.

    Parameters
    ----------
    monitor : GWAMonitor
        Of the training.
    path : path
        The folder.
    planned : int or None
        How many epochs there will be, where that is known.
    resumed : bool
        Whether the folder may have epochs of this run.
    """
    if not resumed:
        _check_new(path)
    monitor._keeper.predicts = monitor.num_samples is not None
    if position(monitor.process_group)[0] == 0:
        begin_run(
            path,
            planned=planned,
            resumed=resumed,
            # Of a stream nobody knows how many it has until an epoch has ended.
            num_samples=monitor.num_samples or 1,
            num_classes=monitor.options.classes,
            beta=monitor.beta,
            adapter="torch",
            loss=monitor.options.loss,
        )


def end_folder(monitor: Any, path: str | os.PathLike[str]) -> None:
    """Say that it has ended; only the first rank writes."""
    if position(monitor.process_group)[0] == 0 and (Path(path) / "run.json").exists():
        end_run(path)
