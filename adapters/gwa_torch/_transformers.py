"""The way from a batch of the Trainer to the monitor, past what models do after their head."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gwa_torch._capture import Forward, same_memory
from gwa_torch.monitor import GWAMonitor

__all__ = ["Tap", "bare", "loss_of"]

# Language models of old that take their labels as they are.
UNSHIFTED = {"XLMWithLMHeadModel", "XLNetLMHeadModel"}


class Tap:
    """Takes labels, ids and logits of each training batch; the loss is left as it is.

    It wraps two methods of the trainer: ``compute_loss``, which sees the labels whoever
    computes the loss then, and ``prediction_step``, where ids must not reach the model either.

    Parameters
    ----------
    trainer : Trainer
        The trainer.
    ids : str or None
        Name of the column of ids, or None where there is none.
    infer : bool
        Whether the loss is the one that the configuration of the model says.
    """

    def __init__(self, trainer: Any, ids: str | None, *, infer: bool) -> None:
        self.trainer = trainer
        self.ids = ids
        self.infer = infer
        # The monitor that listens; whether a batch came, and whether the logits were looked at.
        self.monitor: GWAMonitor | None = None
        self.fresh = self.looked = False
        for name in ("compute_loss", "prediction_step"):
            around = functools.partial(getattr(self, name), getattr(trainer, name))
            setattr(trainer, name, around)
        if ids is not None:
            # It drops columns that the model does not know.
            trainer._set_signature_columns_if_needed()
            trainer._signature_columns.append(ids)

    def open(self, monitor: GWAMonitor) -> None:
        """Begin a run, also after one that was broken off."""
        self.close()
        self.monitor, self.fresh, self.looked = monitor, False, False

    def close(self) -> None:
        """Let batches pass from now on."""
        if self.monitor is not None:
            self.monitor.close()
        self.monitor = None

    def prediction_step(
        self, step: Callable[..., Any], model: nn.Module, inputs: Any, *args: Any, **more: Any
    ) -> Any:
        """Leave the ids out."""
        if self.ids is not None:
            inputs = {key: value for key, value in inputs.items() if key != self.ids}
        return step(model, inputs, *args, **more)

    def compute_loss(
        self,
        compute: Callable[..., Any],
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        **more: Any,
    ) -> Any:
        """Have the loss computed, and score the batch."""
        ids = None if self.ids is None else inputs.pop(self.ids, None)
        if self.monitor is None or not model.training:
            return compute(model, inputs, return_outputs=return_outputs, **more)
        # On the way to the loss the labels may be taken out.
        labels, keys = inputs.get("labels"), ", ".join(sorted(inputs))
        result = compute(model, inputs, return_outputs=True, **more)
        # A subclass that only trains may know of the loss alone.
        loss, outputs = result if isinstance(result, tuple) else (result, None)
        if not isinstance(labels, torch.Tensor):
            raise ValueError(  # noqa: TRY004
                f"`labels` must be in every training batch as a tensor, got {keys}; models with "
                "other targets have no head for class numbers"
            )
        if ids is None and self.ids is not None:
            raise ValueError(
                f"`ids` must be in every training batch as {self.ids!r}, got {keys}; let the data "
                "set return the number of the sample, and mind a collator that makes batches of "
                "some columns only"
            )
        self._measure(self.monitor, inputs, labels, ids, outputs)
        return (loss, outputs) if return_outputs else loss

    def _measure(
        self,
        monitor: GWAMonitor,
        inputs: Mapping[str, Any],
        labels: torch.Tensor,
        ids: torch.Tensor | None,
        outputs: Any,
    ) -> None:
        model, waiting = self.trainer.model, monitor._capture.waiting
        if self.infer:
            # The model may have found out in this very pass.
            monitor.options = monitor.options._replace(loss=loss_of(model, monitor.options.classes))
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
        if isinstance(logits, torch.Tensor) and waiting:
            # One look a run is enough.
            _match_rows(waiting, logits.detach(), inputs, model, look=not self.looked)
            monitor._capture.replace(waiting)
            self.looked = True
        ignored = monitor.options.ignore_index
        monitor.update(_targets_of(model, inputs, labels, ignored), ids)
        self.fresh = True


def bare(model: Any) -> Any:
    """Return the model without the wrapper of PEFT."""
    return getattr(model, "get_base_model", lambda: model)()


def loss_of(model: Any, classes: int) -> str:
    """Return the loss that a classifier computes, which may be known after its first pass only."""
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if problem == "regression" or (problem is None and classes == 1):
        raise ValueError(
            f"`problem_type` must be a classification, got {problem!r} and {classes} outputs, "
            "which is trained as a regression; for a loss of your own say loss=... (`GWAMonitor`)"
        )
    return "binary_cross_entropy" if problem == "multi_label_classification" else "cross_entropy"


def _targets_of(
    model: Any, inputs: Mapping[str, Any], labels: torch.Tensor, ignore_index: int
) -> torch.Tensor:
    """Return what each output of the head is to predict: in a causal model, the next label."""
    if "shift_labels" in inputs:
        shifted: torch.Tensor = inputs["shift_labels"]
        return shifted
    if _shifts(bare(model)):
        return nn.functional.pad(labels[..., 1:], (0, 1), value=ignore_index)
    return labels


def _shifts(model: Any) -> bool:
    # Subclasses of a known model, too.
    names = {kind.__name__ for kind in type(model).__mro__}
    if names & UNSHIFTED or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    own = LOSS_MAPPING.get(getattr(model, "loss_type", None) or "") is ForCausalLMLoss
    return own or bool(names & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))


def _match_rows(
    waiting: list[Forward],
    logits: torch.Tensor,
    inputs: Mapping[str, Any],
    model: Any,
    *,
    look: bool,
) -> None:
    """Keep of a pass of the head the rows that the loss is made of.

    Classifiers on decoders apply the head to all tokens and choose the last one that is no
    padding. Which one it was is seen in its logits, since the rule differs between versions.

    Parameters
    ----------
    waiting : list of Forward
        Passes of the head; where rows are chosen, the pass is replaced by those.
    logits : tensor
        The logits that the model hands out.
    inputs : mapping
        What the model was called with.
    model : Module
        The model.
    look : bool
        Whether to wait for the device and see that the logits are the head's.

    Raises
    ------
    ValueError
        If they are not.
    """
    # Of the replicas of DataParallel the first one.
    forward = min(waiting, key=lambda forward: forward.logits.device.index or 0)
    made = forward.logits
    if same_memory(made, logits) and made.numel() == logits.numel():
        return
    if made.ndim == 3 and logits.ndim == 2 and len(made) == len(logits):
        equal = (made.to(logits.dtype) == logits[:, None]).all(-1)
        fits = equal.any(-1) | logits.isnan().any(-1)
        rows = torch.arange(len(made), device=made.device)
        chosen = forward.latents[rows, _last(equal, inputs, model)]
        waiting[:] = [forward._replace(logits=logits.to(made.dtype), latents=chosen, version=None)]
    elif look:
        first, other = made.flatten(0, -2)[0], logits.flatten(0, -2)[0]
        fits = torch.zeros(1, dtype=torch.bool)
        if first.shape == other.shape:
            # Compiled code may round elsewhere.
            near = 4 * torch.finfo(made.dtype).eps
            first = first.to(other.dtype)
            fits = torch.isclose(first, other, rtol=near, atol=near, equal_nan=True)
    if look and not bool(fits.all()):
        raise ValueError(
            "`head` must make the logits of the model, got others; the model changes them "
            "afterwards (soft capping, scaling, pooling), or they are of another layer"
        )


def _last(equal: torch.Tensor, inputs: Mapping[str, Any], model: Any) -> torch.Tensor:
    """Return the last token of each row that is marked and no padding."""
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    tokens, pad = inputs.get("input_ids"), getattr(text, "pad_token_id", None)
    if tokens is not None and pad is not None and tokens.shape == equal.shape:
        equal = equal & (tokens != pad)
    return (equal * torch.arange(equal.shape[1], device=equal.device)).argmax(-1)
