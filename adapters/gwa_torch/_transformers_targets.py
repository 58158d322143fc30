"""What each output of the head is to predict: labels laid out as the head's outputs are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gwa_torch._capture import same_memory
from gwa_torch._forward import Forward

__all__ = ["bare", "check_logits", "chosen_rows", "label_of", "targets_of"]

# Language models of old that take their labels as they are.
UNSHIFTED = {"XLMWithLMHeadModel", "XLNetLMHeadModel"}


def bare(model: Any) -> Any:
    """Return the model without the wrapper of PEFT."""
    return getattr(model, "get_base_model", lambda: model)()


def label_of(names: list[str], inputs: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the name of the labels in a batch and what is there, None where nothing is."""
    # A model that takes any keyword has no names to show.
    names = list(names) or ["labels"]
    there = [name for name in names if name in inputs]
    name = "labels" if "labels" in there else (there or names)[0]
    # Two of one kind, as the start and the end of an answer, have no head for class numbers.
    alone = name == "labels" or len(there) == 1
    return name, inputs.get(name) if alone else None


def targets_of(
    model: Any,
    inputs: Mapping[str, Any],
    labels: torch.Tensor,
    ids: torch.Tensor | None,
    ignore_index: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return targets and ids for each output: in a causal model the next label.

    Parameters
    ----------
    model : Module
        The model.
    inputs : mapping
        What it was called with.
    labels : tensor
        Labels of the batch.
    ids : tensor or None
        Their numbers.
    ignore_index : int
        The label that does not count.
    """
    if "shift_labels" in inputs:
        shifted: torch.Tensor = inputs["shift_labels"]
        return shifted, ids
    virtual = _virtual_tokens(model) if labels.ndim == 2 and not labels.is_floating_point() else 0
    labels = nn.functional.pad(labels, (virtual, 0), value=ignore_index) if virtual else labels
    if _shifts(bare(model)):
        labels = nn.functional.pad(labels[..., 1:], (0, 1), value=ignore_index)
    if virtual and ids is not None and ids.ndim == 2:
        # The last virtual token predicts the first one of the row, and has no number.
        ids = nn.functional.pad(ids, (virtual, 0))
        labels = labels.clone()
        labels[:, :virtual] = ignore_index
    return labels, ids


def _virtual_tokens(model: Any) -> int:
    """Return how many tokens prompt tuning adds before the batch."""
    config = getattr(model, "active_peft_config", None)
    # Prefix tuning puts them into the cache of each layer, and not before the input.
    if config is None or not config.is_prompt_learning or "PREFIX" in str(config.peft_type):
        return 0
    return int(config.num_virtual_tokens or 0)


def _shifts(model: Any) -> bool:
    # Subclasses of a known model, too.
    names = {kind.__name__ for kind in type(model).__mro__}
    if names & UNSHIFTED or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    own = LOSS_MAPPING.get(getattr(model, "loss_type", None) or "") is ForCausalLMLoss
    return own or bool(names & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))


def chosen_rows(
    forward: Forward, logits: torch.Tensor, inputs: Mapping[str, Any], model: Any
) -> Forward:
    """Return of a pass of the head the rows that the loss is made of.

    Classifiers on decoders apply the head to all tokens and choose the last one that is no
    padding. Which one it was is seen in its logits, since the rule differs between versions.

    Parameters
    ----------
    forward : Forward
        A pass of the head.
    logits : tensor
        The logits that the model hands out.
    inputs : mapping
        What the model was called with.
    model : Module
        The model.
    """
    made = forward.logits
    if made.ndim != 3 or logits.shape != made[:, 0].shape:
        return forward
    equal = (made.to(logits.dtype) == logits[:, None]).all(-1)
    # Where the model changes logits afterwards, the rule has to do.
    equal = equal | ~equal.any(-1, keepdim=True)
    places = _last(equal, inputs, model)
    rows = torch.arange(len(made), device=made.device)
    return forward.pick(rows * made.shape[1] + places, made[rows, places])


def _last(equal: torch.Tensor, inputs: Mapping[str, Any], model: Any) -> torch.Tensor:
    """Return the last token of each row that is marked and no padding."""
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    tokens, pad = inputs.get("input_ids"), getattr(text, "pad_token_id", None)
    if tokens is not None and pad is not None and tokens.shape == equal.shape:
        equal = equal & (tokens != pad)
    return (equal * torch.arange(equal.shape[1], device=equal.device)).argmax(-1)


def check_logits(waiting: list[Forward], logits: torch.Tensor, *, closely: bool) -> None:
    """Raise where the logits of the model are not those of the head.

    Parameters
    ----------
    waiting : list of Forward
        Passes of the head.
    logits : tensor
        The logits that the model hands out.
    closely : bool
        Whether to wait for the device and compare values, too.
    """
    # Of the replicas of DataParallel the first one.
    made = min(waiting, key=lambda forward: forward.logits.device.index or 0).logits
    if same_memory(made, logits) and made.numel() == logits.numel():
        return
    fits = made.shape[-1] == logits.shape[-1]
    if fits and closely:
        near = 4 * torch.finfo(made.dtype).eps
        if made.ndim == 3 and logits.ndim == 2 and len(made) == len(logits):
            made, other = made.to(logits.dtype), logits[:, None]
            # Compiled code may round elsewhere.
            equal = torch.isclose(made, other, rtol=near, atol=near, equal_nan=True)
            fits = bool((equal.all(-1).any(-1) | logits.isnan().any(-1)).all())
        else:
            first, other = made.flatten(0, -2)[0], logits.flatten(0, -2)[0]
            first = first.to(other.dtype)
            fits = bool(torch.isclose(first, other, rtol=near, atol=near, equal_nan=True).all())
    if not fits:
        raise ValueError(
            "`head` must make the logits of the model, got others; the model changes them "
            "afterwards (soft capping, scaling, pooling), or they are of another layer; under the "
            "first, leave residual='formula' out"
        )
