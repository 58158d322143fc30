"""The logits of a linear head block by block, and what is taken from each block while it is there."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from gwa_torch._linear_add import add_product
from gwa_torch._linear_memory import Block, Memory
from gwa_torch.scoring import frobenius_norm, full_precision, has_triton, head_scores

__all__ = ["Head", "Made", "in_blocks"]


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
    held = (of_latents, of_weight) if fused else (None, None)
    memory = Memory(latents, rows, classes, *held)
    start = 0
    with full_precision(latents.device):
        norm = frobenius_norm(weight)
        while start < rows:
            here, block = memory.next(start)
            z = latents[here]
            if not fused:
                # PyTorch's own operations want the classes of a token side by side.
                block = Block(block.first.view(len(z), classes).T, block.rest)
            for some, piece in block.pieces():
                if bias is None:
                    torch.mm(weight[some], z.T, out=piece)
                else:
                    torch.addmm(bias[some, None], weight[some], z.T, out=piece)
            take(
                *(block, z, targets[here], bias, norm, factors[here], losses[here], scores[here]),
                ignore_index=head.ignore_index,
                label_smoothing=head.label_smoothing,
                gradient=any(wanted),
            )
            for number, (some, piece) in enumerate(block.pieces()):
                if of_latents is not None:
                    # With beta=0 what is there is not read.
                    of_latents[here].addmm_(piece.T, weight[some], beta=int(number > 0))
                if of_bias is not None:
                    of_bias[some] += piece.sum(dim=1, dtype=of_bias.dtype)
            if of_weight is None:
                pass
            elif start == 0 and memory.early:
                _multiply_in_place(of_weight, block, z)
            elif start == 0:
                for some, piece in block.pieces():
                    torch.mm(piece, z, out=of_weight[some])
            else:
                for some, piece in block.pieces():
                    add_product(of_weight[some], piece, z)
            start = here.stop
    of_bias = None if of_bias is None else of_bias.to(latents.dtype)
    return Made(losses, scores, (of_latents, of_weight, of_bias))


def _multiply_in_place(out: torch.Tensor, block: Block, latents: torch.Tensor) -> None:
    """Put a block (C, n) times latents (n, D) into out (C, D).

    The first part of the block ends where `out` ends. The product goes from the first class to the
    last, as many at a time as the rest of the block has: it is written onto rows of the block that
    are multiplied already.
    """
    split, step = len(block.first), len(block.rest)
    for start in range(0, split, step):
        stop = min(start + step, split)
        torch.mm(block.first[start:stop], latents, out=out[start:stop])
    torch.mm(block.rest, latents, out=out[split:])


def _tokens(
    block: Block,
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
    logits = block.first
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
