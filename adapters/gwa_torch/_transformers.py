"""What the models of Transformers do between their head and their loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gwa_torch._capture import Forward, same_memory

__all__ = ["bare", "loss_of", "match_rows", "targets_of"]

# Language models of old that take their labels as they are.
UNSHIFTED = {"XLMWithLMHeadModel", "XLNetLMHeadModel"}


def bare(model: Any) -> Any:
    """Return the model without the wrapper of PEFT."""
    return getattr(model, "get_base_model", lambda: model)()


def loss_of(model: Any, classes: int) -> str:
    """Return the loss that a classifier computes, which it may find out in its first pass only."""
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if problem == "regression" or (problem is None and classes == 1):
        raise ValueError(
            f"`problem_type` must be a classification, got {problem!r} and {classes} outputs, "
            "which is trained as a regression; for a loss of your own say loss=... (`GWAMonitor`)"
        )
    return "binary_cross_entropy" if problem == "multi_label_classification" else "cross_entropy"


def targets_of(
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


def match_rows(
    waiting: list[Forward], logits: torch.Tensor, inputs: Mapping[str, Any], model: Any
) -> torch.Tensor | None:
    """Keep of a pass of the head the rows that the loss is made of.

    Classifiers on decoders apply the head to all tokens and choose the last one that is no
    padding. Which one it was is seen in its logits, since the rule has changed with versions.

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

    Returns
    -------
    tensor or None
        Booleans that are all True if the logits are the head's; None if that needs no look.
    """
    # Of the replicas of DataParallel the first one.
    forward = min(waiting, key=lambda forward: forward.logits.device.index or 0)
    made = forward.logits
    if same_memory(made, logits) and made.numel() == logits.numel():
        return None
    if made.ndim != 3 or logits.ndim != 2 or len(made) != len(logits):
        first, other = made.flatten(0, -2)[0], logits.flatten(0, -2)[0]
        if first.shape != other.shape:
            return torch.zeros(1, dtype=torch.bool)
        near = 4 * torch.finfo(made.dtype).eps
        return torch.isclose(first.to(other.dtype), other, rtol=near, atol=near, equal_nan=True)
    equal = (made.to(logits.dtype) == logits[:, None]).all(-1)
    fits = equal.any(-1) | logits.isnan().any(-1)
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    tokens, pad = inputs.get("input_ids"), getattr(text, "pad_token_id", None)
    if tokens is not None and pad is not None and tokens.shape == equal.shape:
        equal = equal & (tokens != pad)
    chosen = (equal * torch.arange(equal.shape[1], device=equal.device)).argmax(-1)
    rows = torch.arange(len(made), device=made.device)
    waiting[:] = [
        forward._replace(
            logits=logits.to(made.dtype), latents=forward.latents[rows, chosen], version=None
        )
    ]
    return fits
