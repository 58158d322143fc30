"""The way from a batch of the Trainer to the monitor, past what models do after their head."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from gwa_torch._distributed import minimum
from gwa_torch._labels import SeenLabels
from gwa_torch._methods import Methods
from gwa_torch._transformers_fused import body_of, is_fused, score_fused
from gwa_torch._transformers_ids import Columns, carry_ids, label_column
from gwa_torch._transformers_passes import Passes
from gwa_torch._transformers_targets import (
    bare,
    check_logits,
    chosen_rows,
    label_of,
    targets_of,
)
from gwa_torch.heads import head_size, resolve_head
from gwa_torch.monitor import GWAMonitor

__all__ = [
    "Tap",
    "check_run",
    "check_trainer",
    "head_of",
    "length_of",
    "loss_of",
    "options_of",
    "planned",
]


class Tap:
    """Takes labels, ids and logits of each training batch; the loss is left as it is.

    While a run trains it goes around ``compute_loss``, which sees the labels whoever computes the
    loss then. What the model returns is seen by a hook, and the call is passed on as it came.

    Parameters
    ----------
    trainer : Trainer
        The trainer.
    ids : str or None
        Name of the column of ids, or None where there is none.
    infer : bool
        Whether the loss is the one that the configuration of the model says.
    residual : str
        Where the scores come from, as the monitor is told.
    """

    def __init__(self, trainer: Any, ids: str | None, *, infer: bool, residual: str) -> None:
        self.trainer = trainer
        self.ids = ids
        self.infer = infer
        self.residual = residual
        # The monitor that listens; whether a batch came, and whether the logits were looked at.
        self.monitor: GWAMonitor | None = None
        self.fresh = self.looked = False
        # Where they are wanted.
        self.labels: SeenLabels | None = None
        self._passes = Passes()
        self._methods = Methods(trainer)
        self._columns: list[str] | None = None

    def attach(self) -> None:
        """Go around the loss, and have the trainer keep the column of ids."""
        self._methods.wrap("compute_loss", self._compute_loss)
        if self.ids is not None:
            # It drops columns that the model does not know.
            self._columns = self.trainer._signature_columns
            self.trainer._set_signature_columns_if_needed()
            self.trainer._signature_columns = [*self.trainer._signature_columns, self.ids]

    def detach(self) -> None:
        """Leave the trainer as it was."""
        self.close()
        self._methods.restore()
        if self.ids is not None:
            self.trainer._signature_columns = self._columns

    def open(self, monitor: GWAMonitor, loader: Any, *, keep_labels: bool) -> None:
        """Begin a run, also after one that was broken off.

        Parameters
        ----------
        monitor : GWAMonitor
            Gets the batches.
        loader : DataLoader
            Where they come from.
        keep_labels : bool
            Whether to keep the label of each sample.
        """
        self.close()
        self.monitor, self.fresh, self.looked = monitor, False, False
        self._passes = Passes(body_of(self.trainer.model, monitor.head))
        size = monitor.num_samples
        self.labels = SeenLabels(size) if keep_labels and size is not None else None
        if self.ids is not None and size is not None:
            config = getattr(self.trainer.model, "config", None)
            columns = Columns(
                self.ids,
                tuple(self.trainer.label_names) or ("labels",),
                size,
                by_row=monitor.options.loss == "binary_cross_entropy",
                counted=bool(getattr(config, "is_encoder_decoder", False)),
                ignore_index=monitor.options.ignore_index,
            )
            carry_ids(loader, columns)

    def close(self) -> None:
        """Let batches pass from now on."""
        if self.monitor is not None:
            self.monitor.close()
        self.monitor = None

    def load_labels(self, labels: torch.Tensor | None) -> None:
        """Take over the labels that a run had before it was broken off."""
        if self.labels is not None and labels is not None:
            self.labels.see(labels, torch.arange(self.labels.num_samples))

    def given_labels(self) -> torch.Tensor | None:
        """Return the label of each sample, once and where all are known; all ranks take part."""
        seen, self.labels = self.labels, None
        if seen is None or self.monitor is None:
            return None
        labels = seen.value
        column = label_column(self.trainer.train_dataset, self.trainer.label_names, self.ids)
        if column is not None:
            # Some rows may not be in the first epoch.
            whole = SeenLabels(seen.num_samples)
            whole.see(*map(torch.tensor, column))
            labels = torch.where(labels < 0, whole.value.to(labels.device), labels)
        # The largest of all ranks.
        labels = -minimum(-labels, self.monitor.process_group)
        return seen.complete(labels, self.monitor.options.classes)

    def prediction_step(
        self, step: Callable[..., Any], model: nn.Module, inputs: Any, *args: Any, **more: Any
    ) -> Any:
        """Leave the ids out of what a model is evaluated on."""
        if self.ids is not None and isinstance(inputs, Mapping):
            inputs = {key: value for key, value in inputs.items() if key != self.ids}
        return step(model, inputs, *args, **more)

    def _compute_loss(
        self, compute: Callable[..., Any], model: nn.Module, inputs: Any, *args: Any, **more: Any
    ) -> Any:
        """Have the loss computed, and score the batch."""
        ids = None if self.ids is None else inputs.pop(self.ids, None)
        if self.monitor is None or not model.training:
            return compute(model, inputs, *args, **more)
        # On the way to the loss the labels may be taken out, and other things put in.
        given, keys = dict(inputs), ", ".join(sorted(inputs))
        name, found = label_of(self.trainer.label_names, given)
        labels = found if isinstance(found, torch.Tensor) else None
        with self._passes.of(model):
            result = compute(model, inputs, *args, **more)
        if labels is None and self.residual != "backward":
            raise ValueError(
                f"`labels` must be in every training batch as a tensor {name!r}, got {keys}; "
                "models with other targets have no head for class numbers, and another name is "
                "said by TrainingArguments(label_names=...). A loss without labels is measured "
                "under residual='backward'"
            )
        if ids is None and self.ids is not None:
            raise ValueError(
                f"`ids` must be in every training batch as {self.ids!r}, got {keys}; let the data "
                "set return the number of the sample, and the collator pass it on. Rows of a data "
                "set with a length are numbered without that, a stream has no numbers"
            )
        self._measure(self.monitor, given, labels, ids, more.get("num_items_in_batch"))
        self._passes.forget()
        return result

    def _measure(
        self,
        monitor: GWAMonitor,
        inputs: Mapping[str, Any],
        labels: torch.Tensor | None,
        ids: torch.Tensor | None,
        items: torch.Tensor | int | None,
    ) -> None:
        model, waiting, passes = self.trainer.model, monitor._capture.waiting, self._passes
        if self.infer and not self.looked:
            # The model has found out in this very pass, where it did not know before.
            monitor.options = monitor.options._replace(loss=loss_of(model, monitor.options.classes))
        ignored = monitor.options.ignore_index
        targets, numbers = None, ids
        if labels is not None:
            targets, numbers = targets_of(model, inputs, labels, ids, ignored)
        # Those of tokens are no labels of samples.
        if self.labels is not None and labels is not None and ids is not None and ids.ndim == 1:
            self.labels.see(labels, ids)
        if not waiting and targets is not None and is_fused(passes):
            look = not self.looked
            score_fused(monitor, model, targets, numbers, passes, look=look, items=items)
        else:
            if waiting and passes.logits is not None:
                closely = self.residual == "formula" and not self.looked
                check_logits(waiting, passes.logits, closely=closely)
                if len(waiting) == 1:
                    rows = chosen_rows(waiting[0], passes.logits, inputs, model)
                    monitor._capture.replace([rows])
            monitor.update(targets, numbers)
        self.fresh = self.looked = True


def check_trainer(trainer: Any) -> None:
    """Refuse what is no trainer."""
    if not hasattr(trainer, "compute_loss"):
        raise TypeError(
            f"`trainer` must be a Trainer of Transformers, got {type(trainer).__name__}; say "
            "trainer.add_callback(GWACallback(trainer))"
        )


def options_of(trainer: Any, model: Any, head: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the monitor: those given, and what model and trainer say of the loss."""
    options = dict(given)
    if "loss" not in options:
        options["loss"] = loss_of(model, head_size(head)[0])
    if trainer.label_smoother is not None and trainer.compute_loss_func is None:
        options.setdefault("label_smoothing", trainer.args.label_smoothing_factor)
    return options


def check_run(trainer: Any, args: Any, state: Any, num_samples: int | None) -> None:
    """Refuse a run of another trainer, and numbers of rows that have none."""
    if state is not trainer.state:
        raise RuntimeError(
            "`trainer` must be the one that trains, got another one; make a callback for each: "
            "trainer.add_callback(GWACallback(trainer))"
        )
    if num_samples is not None and getattr(args, "packing", False):
        raise ValueError(
            f"`num_samples` must be None with packing=True, got {num_samples}; a packed row has "
            "parts of several samples, and TRL drops their numbers. Pack rows with a column of "
            "numbers by `trl.pack_dataset` yourself, and say packing=False"
        )


def planned(state: Any, window: int | None) -> int | None:
    """Return how many epochs or windows there will be, or None where the trainer does not know."""
    if window is not None:
        # The last one may have fewer steps.
        return -(-state.max_steps // window) if state.max_steps > 0 else None
    # What the trainer says where the data have no length.
    return None if state.num_train_epochs == sys.maxsize else state.num_train_epochs


def length_of(loader: Any) -> int | None:
    """Return the number of batches of a loader, or None where it has no length."""
    try:
        return len(loader)
    except TypeError:
        return None


def head_of(model: Any, head: nn.Module | str | None) -> Any:
    """Return the head, or say what PEFT has made of it."""
    try:
        return resolve_head(head, bare(model))
    except ValueError as error:
        configs = getattr(model, "peft_config", {})
        several = configs.values() if isinstance(configs, dict) else ()
        if not any(getattr(config, "trainable_token_indices", None) for config in several):
            raise
        raise ValueError(
            f"{error}. Here `trainable_token_indices` also trains rows of the head, which is tied "
            "to the embedding; untie them, or train the embedding by `modules_to_save`"
        ) from error


def loss_of(model: Any, classes: int) -> str:
    """Return the loss that a classifier computes, which may be known after its first pass only."""
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if problem == "regression" or (problem is None and classes == 1):
        raise ValueError(
            f"`problem_type` must be a classification, got {problem!r} and {classes} outputs, "
            "which is trained as a regression; for a loss of your own say loss=... (`GWAMonitor`)"
        )
    return "binary_cross_entropy" if problem == "multi_label_classification" else "cross_entropy"
