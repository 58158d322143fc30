"""Histograms of the scores of an epoch, in the loggers that trainers have.

A logger is known by the name of its class, so that none of them is imported for those who have
another.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["to_lightning", "to_transformers"]

BINS = 64

Writer = Callable[[str, NDArray[Any]], None]


def to_lightning(
    loggers: Iterable[Any], name: str, scores: torch.Tensor | None, *, step: int, epoch: int
) -> None:
    """Write a histogram to those loggers of a Lightning Trainer that take one.

    Parameters
    ----------
    loggers : iterable of Logger
        ``trainer.loggers``, on the first rank.
    name : str
        Name of the histogram.
    scores : tensor of shape (N,) or None
        Scores of an epoch. Scores that are not finite are skipped; None writes nothing.
    step : int
        The step that the numbers of the epoch are logged with.
    epoch : int
        Number of the epoch.
    """
    writers: list[Writer] = []
    for logger in loggers:
        kinds = {kind.__name__ for kind in type(logger).__mro__}
        if "TensorBoardLogger" in kinds:
            writers.append(functools.partial(_tensorboard, logger.experiment, step))
        elif "WandbLogger" in kinds:
            writers.append(
                functools.partial(_wandb, logger.experiment, "trainer/global_step", step)
            )
        elif "MLFlowLogger" in kinds:
            log = functools.partial(logger.experiment.log_figure, logger.run_id)
            writers.append(functools.partial(_mlflow, log, epoch))
    _write(writers, name, scores)


def to_transformers(
    callbacks: Iterable[Any], name: str, scores: torch.Tensor | None, *, step: int, epoch: int
) -> None:
    """Write a histogram to those trackers of a Transformers Trainer that take one.

    Parameters
    ----------
    callbacks : iterable of TrainerCallback
        ``trainer.callback_handler.callbacks``, on the first rank.
    name : str
        Name of the histogram.
    scores : tensor of shape (N,) or None
        Scores of an epoch. Scores that are not finite are skipped; None writes nothing.
    step : int
        ``state.global_step``.
    epoch : int
        Number of the epoch.
    """
    writers: list[Writer] = []
    for callback in callbacks:
        kinds = {kind.__name__ for kind in type(callback).__mro__}
        begun = getattr(callback, "_initialized", False)
        if "TensorBoardCallback" in kinds and callback.tb_writer is not None:
            writers.append(functools.partial(_tensorboard, callback.tb_writer, step))
        elif "WandbCallback" in kinds and begun:
            writers.append(functools.partial(_wandb, callback._wandb, "train/global_step", step))
        elif "MLflowCallback" in kinds and begun:
            writers.append(functools.partial(_mlflow, callback._ml_flow.log_figure, epoch))
    _write(writers, name, scores)


def _write(writers: list[Writer], name: str, scores: torch.Tensor | None) -> None:
    if not writers or scores is None:
        return
    values = scores.detach().cpu().double().numpy()
    values = values[np.isfinite(values)]
    if len(values):
        for write in writers:
            write(name, values)


def _tensorboard(writer: Any, step: int, name: str, values: NDArray[Any]) -> None:
    writer.add_histogram(name, values, step, bins=BINS)


def _wandb(run: Any, clock: str, step: int, name: str, values: NDArray[Any]) -> None:
    histogram = importlib.import_module("wandb").Histogram(values, num_bins=BINS)
    # Trainers show all they log to W&B over a clock of their own.
    run.log({name: histogram, clock: step})


def _mlflow(
    log_figure: Callable[[Any, str], None], epoch: int, name: str, values: NDArray[Any]
) -> None:
    """Write a picture: MLflow has no histograms."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    # Without pyplot, which would choose a backend for the whole program.
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="alignment score", ylabel="samples", title=f"epoch {epoch}")
    axes.hist(values, bins=BINS)
    log_figure(figure, f"{name}/epoch-{epoch:06d}.png")
