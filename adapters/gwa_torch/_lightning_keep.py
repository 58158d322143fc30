"""The weights that a training with Lightning keeps, and their files."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torchmetrics import Metric

from gwa_torch._keep import Average, Keep, check_keep, refuse_shards
from gwa_torch._lightning import is_trial, keeps_checkpoints
from gwa_torch._loaders import from_the_start
from gwa_torch._methods import Methods

__all__ = ["Kept", "muted", "say_torn", "say_unseen"]

AVERAGE_NAME = "gwa-average"
# By their names, since there are two packages of Lightning.
SHARDING = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")
AVERAGING = ("StochasticWeightAveraging", "WeightAveraging")


class Kept:
    """The checkpoint of the best epoch, the average of the weights, and what the model has at the end.

    Parameters
    ----------
    keep : "average", "best" or None
        What the model has at the end; None leaves it as it is.
    dirpath : path or None
        Folder of the checkpoints, default that of ``ModelCheckpoint``.
    """

    def __init__(self, keep: Keep, dirpath: str | Path | None) -> None:
        check_keep(keep, ("average", "best", None))
        self.keep, self.dirpath = keep, dirpath
        self.saver = ModelCheckpoint(dirpath)
        self.average: Average | None = None
        self.averaged_model_path = ""
        # Whether the training that began last has had its end.
        self.ended = True
        # Whether files are written.
        self._writes = False

    def begin(
        self, trainer: Trainer, pl_module: LightningModule, epochs: int | None
    ) -> Average | None:
        """Begin a training, or refuse it; return the average where it is kept."""
        self._check(trainer)
        self._writes = keeps_checkpoints(trainer)
        self.ended = False
        beside = self.dirpath or getattr(trainer.checkpoint_callback, "dirpath", None)
        # None of the trainer's: it saves when told to. In stage "fit" it would warn of files there.
        self.saver = ModelCheckpoint(beside, save_on_train_epoch_end=True)
        self.saver.setup(trainer, pl_module, stage="validate")
        self.average = Average(pl_module, epochs) if self.keep == "average" else None
        self.averaged_model_path = ""
        return self.average

    def _check(self, trainer: Trainer) -> None:
        if self.keep == "average":
            if found := _named(trainer.strategy, SHARDING):
                refuse_shards(found)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if found := _named(callback, AVERAGING):
                    raise ValueError(
                        f'`keep="average"` must be alone, got the callback {found} beside it, which '
                        "gives the model another average at the end; leave one of them out"
                    )
        if self.keep == "best" and not (keeps_checkpoints(trainer) or is_trial(trainer)):
            raise ValueError(
                '`keep="best"` must have a checkpoint to go back to, got a Trainer with '
                "enable_checkpointing=False; leave it out, and say ModelCheckpoint(save_top_k=0) "
                "for no checkpoints but that one"
            )

    def save_best(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        """Write the checkpoint of the epoch that is the best so far."""
        writes = self._writes and self.average is None
        # That of an earlier epoch is the best no more.
        self.saver.best_model_path = self.saver.best_model_path if writes else ""
        if writes:
            self.saver.filename = f"gwa-best-epoch={epoch}"
            self.saver.on_train_epoch_end(trainer, pl_module)

    def end(
        self, trainer: Trainer, pl_module: LightningModule, best: int | None, *, late: bool = False
    ) -> None:
        """See that the best checkpoint is there, and give the model what it is to have."""
        self.ended = True
        path = self.saver.best_model_path
        if path and not self.saver.file_exists(path, trainer):
            rank_zero_warn(
                f"{path}, the checkpoint of epoch {best}, is gone; usual cause: the run "
                "had found a better epoch after the checkpoint that it was resumed from"
            )
            path = self.saver.best_model_path = ""
        if self.keep is not None and not late:
            _save_last(trainer, pl_module)
        if self.average is not None:
            said = self.average.end(_passes(trainer, pl_module))
            self._save_average(trainer)
            where = self.averaged_model_path and f"; it is in {self.averaged_model_path}"
            rank_zero_info(f"GWACallback: {said}{where}.")
        elif self.keep == "best" and path:
            # As Lightning itself restores a model. It may have hyperparameters of any class.
            load = trainer.strategy.load_checkpoint
            newer = "weights_only" in inspect.signature(load).parameters
            checkpoint = load(path, weights_only=False) if newer else load(path)
            pl_module.on_load_checkpoint(checkpoint)
            trainer.strategy.load_model_state_dict(checkpoint, strict=pl_module.strict_loading)
            rank_zero_info(f"GWACallback: the model has the weights of epoch {best}.")
        elif self.keep == "best" and best is None and self._writes:
            rank_zero_warn(
                "no epoch is the best by the rule, and the model has the weights of the end"
            )

    @contextlib.contextmanager
    def late(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
        """End a training that had nothing left to do, after Lightning has put everything away."""
        pl_module.to(trainer.strategy.root_device)
        try:
            with muted(pl_module):
                yield
        finally:
            pl_module.cpu()
            if (loader := trainer.fit_loop._combined_loader) is not None:
                loader.reset()

    def interrupt(self, trainer: Trainer) -> None:
        """Write the average of what there is; the model keeps its weights, which may be saved next."""
        average = self.average
        # Other processes may not have been interrupted. A pass for batch norm would take long.
        if average is None or trainer.world_size > 1 or average.weights.has_batch_norm:
            return
        if self._writes and average.weights.average.counted:
            with average.weights.applied():
                self._save_average(trainer)
            rank_zero_info(f"GWACallback: the average is in {self.averaged_model_path}.")

    def _save_average(self, trainer: Trainer) -> None:
        if self._writes:
            paths = (
                # It may be a URL.
                f"{str(self.saver.dirpath).rstrip('/')}/{AVERAGE_NAME}{version}.ckpt"
                for version in itertools.chain([""], (f"-v{i}" for i in itertools.count(1)))
            )
            path = next(path for path in paths if not self.saver.file_exists(path, trainer))
            trainer.save_checkpoint(path, weights_only=True)
            self.averaged_model_path = path


def say_unseen(signal: str) -> None:
    """Warn that the metric of the rule never came."""
    rank_zero_warn(
        f"the rule watches {signal!r}, which no validation has logged; usual cause: "
        "`check_val_every_n_epoch` is larger than the number of epochs"
    )


def say_torn() -> None:
    """Warn that a checkpoint lacks a part of an epoch."""
    rank_zero_warn(
        "A checkpoint of an interrupted run on several processes is without the scores of the epoch "
        "in progress; resumed, that epoch has its remaining batches alone and counts as cut short"
    )


def _named(x: Any, names: tuple[str, ...]) -> str | None:
    """Return the name of the class if it is one of them, or made of one."""
    of_these = any(kind.__name__ in names for kind in type(x).__mro__)
    return type(x).__name__ if of_these else None


def _save_last(trainer: Trainer, pl_module: LightningModule) -> None:
    """Have checkpoints that are to come at the end written now, with the weights of the training."""
    for saver in trainer.checkpoint_callbacks:
        if type(saver).on_train_end is ModelCheckpoint.on_train_end:
            saver.on_train_end(trainer, pl_module)


def _passes(trainer: Trainer, pl_module: LightningModule) -> Iterator[Any]:
    """Run the training step, or by hand the model, for each batch of an epoch."""
    loop, batches = trainer.fit_loop, trainer.num_training_batches
    precision, strategy, loader = trainer.precision_plugin, trainer.strategy, loop._combined_loader
    # Without a length it may never end: there are no more than were in the training.
    seen: Any = loop.epoch_loop.batch_progress.total
    most = seen.processed if math.isinf(batches) else int(batches)
    with _unchanged(pl_module), from_the_start(cast("Any", loader).flattened):
        for given, index, _ in itertools.islice(cast("Any", loader), most):
            # As Lightning prepares a batch.
            batch = pl_module._on_before_batch_transfer(precision.convert_input(given))
            batch = strategy.batch_to_device(batch)
            if batch is None:
                continue
            with precision.train_step_context():
                if pl_module.automatic_optimization:
                    step = loop.epoch_loop._build_kwargs(OrderedDict(), batch, index)
                    found = pl_module.training_step(*step.values())
                else:
                    # Its step would move the weights.
                    found = pl_module(batch[0] if isinstance(batch, (list, tuple)) else batch)
            yield found


@contextlib.contextmanager
def _unchanged(model: LightningModule) -> Iterator[None]:
    """Undo what training steps change without a gradient: all but the statistics of batch norm."""
    modules = list(model.modules())
    metrics = [x for x in modules if isinstance(x, Metric) and not x.update_called]
    kept: list[tuple[dict[str, Any], str, torch.Tensor, torch.Tensor]] = [
        (tensors, name, x, x.clone())
        for module in modules
        if not isinstance(module, nn.modules.batchnorm._BatchNorm)
        for tensors in (module._parameters, module._buffers)
        for name, x in tensors.items()
        if x is not None and not x.requires_grad
    ]
    try:
        with muted(model):
            yield
    finally:
        with torch.no_grad():
            for tensors, name, x, before in kept:
                tensors[name] = x.copy_(before)
        for metric in metrics:
            metric.reset()


@contextlib.contextmanager
def muted(model: LightningModule) -> Iterator[None]:
    """Log nothing."""
    methods = Methods(model)
    for name in ("log", "log_dict"):
        methods.wrap(name, lambda *_, **__: None)
    try:
        yield
    finally:
        methods.restore()
