"""Scores of a head inside a fused loss, which hands out neither logits nor calls the head."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
from torch import nn

from gwa_core import alignment_from_logit_gradients
from gwa_torch._forward import Forward
from gwa_torch._sequences import closed_parts, gradient_parts
from gwa_torch._targets import flatten
from gwa_torch._transformers_passes import Passes
from gwa_torch._transformers_targets import bare
from gwa_torch.heads import head_weight
from gwa_torch.monitor import GWAMonitor
from gwa_torch.scoring import frobenius_norm, full_precision, head_scores

__all__ = ["body_of", "is_fused", "score_fused"]

# How many tokens are compared with what the model says of them.
LOOK = 64

# Bytes of the logits that are made at once.
BLOCK_BYTES = 64 * 1024 * 1024


def body_of(model: Any, head: nn.Module) -> nn.Module | None:
    """Return what a language model has before its head, elsewhere None."""
    inner = bare(model)
    body = getattr(inner, "base_model", None)
    answer = getattr(inner, "get_output_embeddings", lambda: None)()
    return body if answer is head and isinstance(body, nn.Module) and body is not inner else None


def is_fused(passes: Passes) -> bool:
    """Tell whether a body ran whose head was not called, as of Liger's kernel and of TRL's."""
    return passes.latents is not None


class Change(NamedTuple):
    """What a language model does to the logits of its head: a factor, then a soft cap."""

    factor: float
    cap: float | None

    @classmethod
    def of(cls, model: Any) -> Self:
        """Read it from the configuration, whose names differ between models."""
        config = getattr(bare(model), "config", None)
        text: Any = getattr(config, "get_text_config", lambda: config)()
        cap = getattr(text, "final_logit_softcapping", None)
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
            if (factor := getattr(text, name, None)) is not None:
                return cls(factor, cap)
        divisor = getattr(text, "logits_scaling", None)
        if divisor is None:
            return cls(1.0, cap)
        return cls(divisor if text.model_type == "hyperclovax" else 1 / divisor, cap)

    @property
    def nothing(self) -> bool:
        """Whether the logits stay as they are."""
        return self.factor == 1.0 and self.cap is None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what the loss is computed of."""
        logits = logits * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class _Head(NamedTuple):
    """Weight, bias, and what comes after them."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    change: Change

    def logits(self, latents: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(latents.to(self.weight.dtype), self.weight, self.bias).float()


def score_fused(
    monitor: GWAMonitor,
    model: Any,
    targets: torch.Tensor,
    ids: torch.Tensor | None,
    passes: Passes,
    *,
    look: bool,
    items: torch.Tensor | int | None = None,
) -> None:
    """Score the tokens of a batch from what went into the head.

    Parameters
    ----------
    monitor : GWAMonitor
        Gets the scores.
    model : Module
        The model.
    targets : tensor of shape (B, S)
        Labels of the next tokens.
    ids : tensor of shape (B, S) or None
        Their numbers.
    passes : Passes
        What was seen of the model.
    look : bool
        Whether to wait for the device and see that the model's probabilities are the head's.
    items : int or 0-D tensor, optional
        What the trainer divides the loss by.

    Raises
    ------
    ValueError
        If they are not, or there are signals to follow.
    """
    change = Change.of(model)
    if monitor.sketch is not None and not change.nothing:
        raise ValueError(
            "`sketch` must be left out here, got one; the fused head of this trainer changes its "
            "logits, which is measured in all dimensions"
        )
    if monitor.signals is not None:
        raise ValueError(
            f"`signals` must be left out here, got {', '.join(monitor.signals.names)}; they need "
            "logits, and the fused head of this trainer makes none"
        )
    latents, said = passes.latents, passes.field("log_probs")
    assert latents is not None  # noqa: S101  # asked before
    if said is not None:
        # There may be one column less: nothing follows the last token.
        latents, targets = latents[:, : said.shape[1]], targets[:, : said.shape[1]]
        ids = None if ids is None else ids[:, : said.shape[1]]
    targets = targets.to(latents.device)
    counted = targets != monitor.options.ignore_index
    parts: dict[str, Any] = {"weight": head_weight(monitor.head), "bias": monitor.head.bias}
    head = _Head(**{name: _whole(x) for name, x in parts.items()}, change=change)
    empty = not bool(counted.any())
    if look and not empty:
        seen = latents[counted], targets[counted], head
        if said is not None:
            _check_probabilities(*seen, said.detach()[counted.to(said.device)])
        elif (loss := passes.field("loss")) is not None:
            _check_loss(*seen, loss.detach(), items)
    if monitor._keeper.batches % monitor.every or empty:
        # A batch may have no label that counts.
        monitor._keeper.batches += 1
        monitor._keeper.count(0)
        return
    ids = None if ids is None else ids.to(latents.device)
    if monitor._keeper.reduce == "gradient":
        found = [
            _sums(monitor, z, t, None if ids is None else ids[row], head)
            for row, (z, t) in enumerate(zip(latents, targets, strict=True))
        ]
        monitor._add(torch.cat(found), flatten(targets, ids, None, monitor.options))
        return
    latents, targets = latents[counted], targets[counted]
    ids = None if ids is None else ids[counted]
    if head.change.nothing:
        scores = head_scores(
            latents=latents,
            targets=targets,
            weight=head.weight,
            bias=head.bias,
            sketch=monitor.sketch,
        )
    else:
        scores = _by_gradient(latents, targets, head)
    # Of tokens, which add up by id.
    monitor.add(scores[None], None if ids is None else ids[None])


def _sums(
    monitor: GWAMonitor,
    latents: torch.Tensor,
    targets: torch.Tensor,
    ids: torch.Tensor | None,
    head: _Head,
) -> torch.Tensor:
    """Return numerators and lengths of the tokens of a row, whose logits are there at once."""
    flat = flatten(targets[None], None if ids is None else ids[None], None, monitor.options)
    logits = head.logits(latents)
    bias = None if head.bias is None else head.bias.float()
    made = logits[None], latents.float()[None], frobenius_norm(head.weight), bias
    forward = Forward(*made, weight=None, version=None)
    if head.change.nothing:
        return closed_parts(forward, flat, monitor.options)
    counted = targets != monitor.options.ignore_index
    return gradient_parts(forward, _gradient(logits, targets, head, counted), flat)


def _gradient(
    logits: torch.Tensor, targets: torch.Tensor, head: _Head, counted: torch.Tensor | slice
) -> torch.Tensor:
    """Return the gradient of the loss at the head's own logits."""
    # Mixed precision would round what the core keeps exact.
    with torch.enable_grad(), full_precision(logits.device):
        logits = logits.requires_grad_()
        loss = nn.functional.cross_entropy(
            head.change(logits)[counted], targets[counted], reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, logits)
    logits.detach_()
    return gradient


def _whole(x: Any) -> Any:
    # Every rank takes part.
    x = x.full_tensor() if hasattr(x, "full_tensor") else x
    return None if x is None else x.detach()


def _by_gradient(latents: torch.Tensor, targets: torch.Tensor, head: _Head) -> torch.Tensor:
    """Score by the gradient at the head's own logits, in blocks of rows."""
    norm = frobenius_norm(head.weight)
    bias = None if head.bias is None else head.bias.float()
    step = max(1, BLOCK_BYTES // (4 * head.weight.shape[0]))
    scores = []
    with torch.no_grad(), full_precision(latents.device):
        for start in range(0, len(targets), step):
            z, t = latents[start : start + step], targets[start : start + step]
            logits = head.logits(z)
            scores.append(
                alignment_from_logit_gradients(
                    logit_gradients=_gradient(logits, t, head, slice(None)),
                    logits=logits,
                    latent_norms=torch.linalg.vector_norm(z.float(), dim=1),
                    weight_norm=norm,
                    bias=bias,
                )
            )
    return torch.cat(scores)


@torch.no_grad()
def _check_probabilities(
    latents: torch.Tensor, targets: torch.Tensor, head: _Head, said: torch.Tensor
) -> None:
    targets, said = targets[:LOOK], said[:LOOK].float()
    logits = head.change(head.logits(latents[:LOOK]))
    own = -nn.functional.cross_entropy(logits, targets, reduction="none")
    kind = latents.device.type
    mixed = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if mixed else latents.dtype
    # A GPU may round the factors of float32 products to ten bits.
    near = 4 * max(torch.finfo(dtype).eps, 2.0**-11)
    off = (own - said).abs()
    # Another factor moves all of them, and bad rounding a few.
    if int((off > near * (1 + logits.abs().amax(-1))).sum()) > len(off) // 10:
        raise ValueError(
            "`head` must make what the loss is computed of, got log-probabilities that differ by "
            f"up to {float(off.max()):.3g}; the fused head of this trainer changes its logits in a "
            "way that is not known here (temperature), or has another weight"
        )


@torch.no_grad()
def _check_loss(
    latents: torch.Tensor,
    targets: torch.Tensor,
    head: _Head,
    said: torch.Tensor,
    items: torch.Tensor | int | None,
) -> None:
    total, step = 0.0, max(1, BLOCK_BYTES // (4 * head.weight.shape[0]))
    for start in range(0, len(targets), step):
        logits = head.change(head.logits(latents[start : start + step]))
        part = nn.functional.cross_entropy(logits, targets[start : start + step], reduction="sum")
        total += float(part)
    # The mean, or the sum over what the trainer counted.
    usual = [total / len(targets), *([] if items is None else [total / float(items)])]
    near = 4 * max(torch.finfo(latents.dtype).eps, 2.0**-11)
    if min(abs(float(said) - own) / (1 + abs(own)) for own in usual) > near:
        raise ValueError(
            f"`head` must make what the loss is computed of, got a loss of {float(said):.4g} where "
            f"its cross-entropy is {usual[0]:.4g}; the fused loss of this model has label smoothing, "
            "class weights or a change of the logits that is not known here, or another weight"
        )
