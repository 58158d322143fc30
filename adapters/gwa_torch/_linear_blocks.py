"""The logits of a linear head block by block, and what is taken from each block while it is there."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from gwa_torch.scoring import frobenius_norm, full_precision, has_triton, head_scores

__all__ = ["Head", "Made", "in_blocks"]

# The logits that exist at one time. Each block reads and writes the gradient of the weight once:
# fewer rows than about 500 keep a GPU's memory busier than its tensor cores.
BLOCK_BYTES = 128 * 1024 * 1024

# Tokens of a whole tile of a matrix product.
TILE = 64


class Head(NamedTuple):
    """Options of the loss."""

    ignore_index: int
    label_smoothing: float
    reduction: str


class Made(NamedTuple):
    """What a pass over the blocks leaves behind: one entry a row, and gradients where wanted."""

    losses: torch.Tensor
    scores: torch.Tensor
    gradients: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


@torch.no_grad()
def in_blocks(
    latents: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    factors: torch.Tensor,
    head: Head,
    wanted: tuple[bool, bool, bool],
) -> Made:
    """Make the logits block by block, a column a token, and all that is taken from them."""
    rows, classes = latents.shape[0], weight.shape[0]
    losses, scores = torch.empty_like(factors), torch.empty_like(factors)
    new: Any = torch.empty_like if rows else torch.zeros_like
    of_latents = new(latents, memory_format=torch.contiguous_format) if wanted[0] else None
    of_weight = new(weight, memory_format=torch.contiguous_format) if wanted[1] else None
    of_bias = factors.new_zeros(classes) if wanted[2] else None
    latents = latents if latents.stride(-1) == 1 else latents.contiguous()
    bias = None if bias is None else bias.contiguous()
    take: Any = _tokens
    if fused := has_triton(latents.device) and latents.dtype != torch.float64:
        from gwa_torch._triton_linear_loss import fused_tokens as take
    row_bytes = classes * latents.dtype.itemsize
    step = size = _step(rows, row_bytes)
    # The gradient of the weight is not there yet: its memory holds the logits of the first tokens.
    early = min(rows, latents.shape[1]) // TILE * TILE if fused and of_weight is not None else 0
    early = early if early > step else 0
    if early:
        step = _step(rows - early, row_bytes)
    buffer = latents.new_empty(max(classes * max(size, step), latents.shape[1]))
    stops = [early] if early else []
    stops += [*range(early + step, rows, step), rows] if rows > early else []
    start = 0
    with full_precision(latents.device):
        norm = frobenius_norm(weight)
        for stop in stops:
            here = slice(start, stop)
            z = latents[here]
            room = of_weight.view(-1) if of_weight is not None and stop == early else buffer
            block = room[: classes * len(z)]
            # PyTorch's own operations want the classes of a token side by side.
            block = block.view(classes, len(z)) if fused else block.view(len(z), classes).T
            if bias is None:
                torch.mm(weight, z.T, out=block)
            else:
                torch.addmm(bias[:, None], weight, z.T, out=block)
            take(
                *(block, z, targets[here], bias, norm, factors[here], losses[here], scores[here]),
                ignore_index=head.ignore_index,
                label_smoothing=head.label_smoothing,
                gradient=any(wanted),
            )
            if of_latents is not None:
                torch.mm(block.T, weight, out=of_latents[here])
            if of_bias is not None:
                of_bias += block.sum(dim=1, dtype=of_bias.dtype)
            if of_weight is None:
                pass
            elif stop == early:
                _multiply_in_place(of_weight, block, z, buffer)
            else:
                # With beta=0 what is there is not read.
                of_weight.addmm_(block, z, beta=int(start > 0))
            start = stop
    of_bias = None if of_bias is None else of_bias.to(latents.dtype)
    return Made(losses, scores, (of_latents, of_weight, of_bias))


def _multiply_in_place(
    out: torch.Tensor, block: torch.Tensor, latents: torch.Tensor, buffer: torch.Tensor
) -> None:
    """Put block (C, n) times latents (n, D) into out (C, D), whose memory the block begins in.

    From the last class to the first: a row of `out` is at least as long as one of the block, so
    that it lies on rows which are multiplied already.
    """
    classes, features = out.shape
    step = buffer.numel() // features
    for stop in range(classes, 0, -step):
        part = slice(max(0, stop - step), stop)
        made = buffer[: (stop - part.start) * features].view(-1, features)
        torch.mm(block[part], latents, out=made)
        out[part] = made


def _step(rows: int, row_bytes: int) -> int:
    """Return the tokens of a block: blocks of about equal size, of whole tiles where they fit."""
    most = max(1, BLOCK_BYTES // row_bytes)
    most = most // TILE * TILE or most
    blocks = max(1, -(-rows // most))
    even = -(-rows // blocks)
    return max(1, min(rows, most, -(-even // TILE) * TILE))


def _tokens(
    logits: torch.Tensor,
    latents: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    weight_norm: torch.Tensor,
    factors: torch.Tensor,
    losses: torch.Tensor,
    scores: torch.Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    gradient: bool,
) -> None:
    """Fill losses and scores of (C, n) logits; with `gradient` the logits become theirs."""
    classes = logits.shape[0]
    counted = targets != ignore_index
    known = (targets >= 0) & (targets < classes)
    scores.copy_(
        head_scores(
            latents=latents,
            targets=targets,
            logits=logits.T,
            weight_norm=weight_norm,
            bias=bias,
            label_smoothing=label_smoothing,
            where=counted,
        )
    )
    label = torch.where(known, targets, 0).unsqueeze(0)
    wide = logits.to(losses.dtype)
    level = torch.logsumexp(wide, dim=0, keepdim=True)
    loss = level - wide.gather(0, label)
    if label_smoothing:
        even = level - wide.mean(dim=0, keepdim=True)
        loss = (1.0 - label_smoothing) * loss + label_smoothing * even
    loss = torch.where(known, loss.squeeze(0), torch.nan)
    losses.copy_(torch.where(counted, loss, 0.0))
    if gradient:
        shares = wide.sub_(level).exp_()
        # The label's own entry is 1 - p as the sum of the others, which does not cancel.
        shares.scatter_(0, label, 0.0)
        shares.scatter_(0, label, label_smoothing - shares.sum(dim=0, keepdim=True))
        if label_smoothing:
            shares -= label_smoothing / classes
        shares.mul_(factors).masked_fill_(factors == 0, 0.0)
        if shares is not logits:
            logits.copy_(shares)
