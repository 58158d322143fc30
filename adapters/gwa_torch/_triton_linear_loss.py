"""Fused Triton kernels of a linear head with cross-entropy: what happens to a block of its logits.

One program works on one row. It reads the logits once for the loss and γ, and once more to put the
gradient in their place.
"""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from gwa_torch._triton import BLOCK_D, cosine, fused_scores, latent_squares, on

BLOCK_C = 2048

# Below it 1 + t loses digits of t in float32, and t - t^2 / 2 is log(1 + t).
SMALL: tl.constexpr = tl.constexpr(1e-3)


@triton.jit
def _rows_kernel(
    logits,
    latents,
    targets,
    bias,
    weight_norm,
    factors,
    losses,
    scores,
    C,
    D,
    logit_stride,
    latent_stride,
    ignore_index,
    smoothing,
    SMOOTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start_of_row = logits + row * logit_stride
    lane = tl.arange(0, BLOCK_C)
    label = tl.load(targets + row)
    factor = tl.load(factors + row)
    ignored = label == ignore_index
    known = (label >= 0) & (label < C)
    label = tl.where(known, label, 0)
    own = tl.load(start_of_row + label).to(tl.float32)
    activation = own
    if HAS_BIAS:
        activation -= tl.load(bias + label).to(tl.float32)
    # Sums over the other classes, with a running peak in every lane; see _scaled_sums in _triton.py.
    peak = tl.full([BLOCK_C], -3e38, dtype=tl.float32)
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    dot = tl.zeros([BLOCK_C], dtype=tl.float32)
    square = tl.zeros([BLOCK_C], dtype=tl.float32)
    for start in range(0, C, BLOCK_C):
        column = start + lane
        other = (column < C) & (column != label)
        x = tl.load(start_of_row + column, mask=other, other=-float("inf")).to(tl.float32)
        gap = tl.exp(-tl.abs(x - peak))
        higher = x > peak
        fade = tl.where(higher, gap, 1.0)
        share = tl.where(higher, 1.0, gap)
        total = total * fade + share
        if SMOOTH:
            dot += tl.where(other, own - x, 0.0)
        else:
            away = activation - x
            if HAS_BIAS:
                away += tl.load(bias + column, mask=other, other=0.0).to(tl.float32)
            dot = dot * fade + tl.where(other, share * away, 0.0)
            square = square * fade * fade + share * share
        peak = tl.where(higher, x, peak)
    top = tl.max(peak, axis=0)
    fade = tl.exp(peak - top)
    s = tl.sum(total * fade, axis=0)
    # The others and the label, relative to the largest logit of all.
    high = tl.maximum(top, own)
    others = s * tl.exp(top - high)
    mass = others + tl.exp(own - high)
    loss = high - own + tl.where(others < SMALL, others * (1.0 - 0.5 * others), tl.log(mass))
    if SMOOTH:
        loss += smoothing / C * tl.sum(dot, axis=0)
    else:
        ratio = tl.sum(dot * fade, axis=0) / s
        length = tl.sqrt(1.0 + tl.sum(square * fade * fade, axis=0) / (s * s))
        squares = latent_squares(latents, row, latent_stride, D, BLOCK_D)
        latent_norm = tl.sqrt(tl.sum(squares, axis=0))
        score = cosine(ratio, length, latent_norm, tl.load(weight_norm))
        tl.store(scores + row, tl.where(known & (ignored == 0), score, float("nan")))
    loss = tl.where(known, loss, float("nan"))
    tl.store(losses + row, tl.where(ignored, 0.0, loss))
    if GRADIENT:
        inverse = 1.0 / mass
        # From the end: what was read last is still in the cache.
        for start in range(0, C, BLOCK_C):
            column = (C - 1) // BLOCK_C * BLOCK_C - start + lane
            inside = column < C
            x = tl.load(start_of_row + column, mask=inside, other=0.0).to(tl.float32)
            # The label's own entry is 1 - p as the sum of the others, which does not cancel.
            mine = column == label
            gradient = tl.where(mine, -others, tl.exp(x - high)) * inverse
            if SMOOTH:
                gradient += tl.where(mine, smoothing, 0.0) - smoothing / C
            gradient = tl.where(factor == 0, 0.0, gradient * factor)
            tl.store(start_of_row + column, gradient.to(logits.dtype.element_ty), mask=inside)


@triton.jit
def _scale_kernel(x, factor, size, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    scale = tl.load(factor)
    # The usual factor of a backward pass, which is not worth reading a (C, D) gradient.
    if scale != 1.0:
        first = tl.program_id(0).to(tl.int64) * (BLOCK * BLOCKS)
        for block in range(BLOCKS):
            at = first + block * BLOCK + tl.arange(0, BLOCK)
            value = tl.load(x + at, mask=at < size, other=0.0).to(tl.float32) * scale
            tl.store(x + at, value.to(x.dtype.element_ty), mask=at < size)


def fused_rows(
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
    """Fill losses and scores of (n, C) logits on a GPU; with `gradient` the logits become theirs."""
    rows, classes = logits.shape
    smooth = label_smoothing != 0.0
    if smooth:
        # Rare, and exact only in three more passes, which that kernel has.
        found = fused_scores(logits, latents, targets, weight_norm, bias, label_smoothing)
        scores.copy_(torch.where(targets == ignore_index, torch.nan, found))
    offset = logits if bias is None else bias
    shared: Any = (logits, latents, targets, offset, weight_norm, factors, losses, scores)
    sizes: Any = (classes, latents.shape[1], logits.stride(0), latents.stride(0))
    block = min(BLOCK_C, triton.next_power_of_2(classes))
    with on(logits.device):
        _rows_kernel[(rows,)](
            *shared,
            *sizes,
            ignore_index,
            label_smoothing,
            SMOOTH=smooth,
            HAS_BIAS=bias is not None,
            GRADIENT=gradient,
            BLOCK_C=block,
            BLOCK_D=min(BLOCK_D, triton.next_power_of_2(latents.shape[1])),
            num_warps=max(1, block // 256),
        )


def fused_scale(x: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply a contiguous tensor by a 0-D float32 tensor in place; a factor of 1 reads nothing."""
    block, blocks = 2048, 16
    with on(x.device):
        grid = (triton.cdiv(x.numel(), block * blocks),)
        _scale_kernel[grid](x, factor, x.numel(), BLOCK=block, BLOCKS=blocks)
