"""What a Trainer of Lightning is about to do, and where it puts what is logged."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from gwa_torch._labels import SeenLabels
from gwa_torch._loggers import to_lightning

__all__ = [
    "check_given",
    "is_trial",
    "keeps_checkpoints",
    "labels_of_all",
    "leaves_out",
    "log",
    "planned",
    "say_limits",
    "say_stop",
    "write_histogram",
]


def is_trial(trainer: Trainer) -> bool:
    """Tell whether the run is one of a few batches that leaves nothing behind."""
    return bool(getattr(trainer, "fast_dev_run", False))


def planned(trainer: Trainer, window: int | None) -> int | None:
    """Return how many epochs or windows there will be, or None where nobody knows.

    To count windows the loader must be there.
    """
    epochs = trainer.max_epochs if (trainer.max_epochs or 0) > 0 else None
    if window is None:
        return epochs
    # Lightning's own estimate sets the loader up, before a checkpoint may say where it goes on.
    each = trainer.num_training_batches / trainer.accumulate_grad_batches
    steps = math.inf if epochs is None or math.isinf(each) else epochs * math.ceil(each)
    steps = min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps
    return max(1, math.ceil(steps / window)) if math.isfinite(steps) else None


def log(
    trainer: Trainer, module: LightningModule, window: int | None, values: dict[str, float]
) -> None:
    """Log numbers of an epoch, or of a window, which do not wait for ``log_every_n_steps``."""
    if trainer.barebones:
        return
    if window is not None and trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
    at_once = None if window is None else False
    # All ranks log the same. Told so by the last two, Lightning neither reduces nor warns.
    every: dict[str, Any] = {"batch_size": 1, "sync_dist": True, "rank_zero_only": True}
    module.log_dict(values, logger=at_once, **every)


def keeps_checkpoints(trainer: Trainer) -> bool:
    """Tell whether the trainer writes checkpoints."""
    # Without `enable_checkpointing` there is no callback that does.
    return bool(trainer.checkpoint_callbacks) and not is_trial(trainer)


def say_limits(trainer: Trainer, *, rule: bool, window: int | None) -> None:
    """Warn at the start of what this training will not give.

    Parameters
    ----------
    trainer : Trainer
        The trainer, whose loader is there.
    rule : bool
        Whether there is a stopping rule.
    window : int or None
        Steps of a window, which ends where no epoch does.
    """
    if rule and not keeps_checkpoints(trainer) and not is_trial(trainer):
        rank_zero_warn(
            "GWACallback keeps no weights of the best epoch, because the Trainer has "
            "enable_checkpointing=False; leave it out to have them, and say "
            "ModelCheckpoint(save_top_k=0) for no checkpoints but that one"
        )
    # Only a number of epochs says that they end.
    endless = (trainer.max_epochs or -1) < 0 or trainer.max_steps > 0
    if window is None and math.isinf(trainer.num_training_batches) and endless:
        rank_zero_warn(
            "the training loader has no length; if it never ends, no epoch ends, and "
            "GWACallback neither logs nor stops; say Trainer(limit_train_batches=1000) to make "
            "each window of 1000 batches an epoch"
        )


def labels_of_all(trainer: Trainer, seen: SeenLabels | None, classes: int) -> torch.Tensor | None:
    """Return the labels that the processes have seen together, if that is all of them."""
    if seen is None:
        return None
    own = seen.value.to(trainer.strategy.root_device)
    return seen.complete(trainer.strategy.reduce(own, reduce_op="max"), classes)


def write_histogram(
    trainer: Trainer, name: str, scores: torch.Tensor | None, *, epoch: int
) -> None:
    """Write the scores of an epoch to the loggers, beside the numbers that are logged for it."""
    if trainer.is_global_zero:
        # Lightning counts one back to log the end of an epoch.
        step = max(0, trainer.fit_loop.epoch_loop._batches_that_stepped - 1)
        to_lightning(trainer.loggers, name, scores, step=step, epoch=epoch)


def leaves_out(trainer: Trainer, epoch: int, *, skipped: bool, scored: bool) -> bool:
    """Tell on all ranks alike whether batches were skipped and none was scored, and say so."""
    # Both are asked in any case, since the ranks may differ in them.
    any_skipped, any_scored = (
        trainer.strategy.reduce_boolean_decision(flag, all=False) for flag in (skipped, scored)
    )
    left_out = any_skipped and not any_scored
    if left_out:
        rank_zero_warn(f"GWACallback leaves out epoch {epoch}, in which no batch trained the head")
    return left_out


def say_stop(best: int | None, reason: str | None) -> None:
    """Say why the training stops."""
    rank_zero_info(f"GWACallback: the best epoch is {best}, {reason}.")


def check_given(ids: Any, num_samples: Any, dirpath: Any, *, wanted: bool) -> None:
    """Refuse options that go with others alone."""
    if ids is not None and num_samples is None:
        raise ValueError(f"`ids` must come with `num_samples`, got ids={ids!r} alone")
    if dirpath is not None and not wanted:
        raise ValueError(
            f"`dirpath` must come with `rule` or `keep`, got dirpath={dirpath!r} alone"
        )
