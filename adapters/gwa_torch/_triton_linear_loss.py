"""Fused Triton kernels of a linear head with cross-entropy: what happens to a block of its logits.

A block is (C, n), a column a token, and its last classes may lie elsewhere. Many programs read it
once for the sums over the classes. One program a token makes the loss and γ of them. Many read it
again to put the gradient in its place.
"""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from gwa_torch._linear_memory import Block
from gwa_torch._triton import (
    BLOCK_D,
    FAR,
    LOG2E,
    cosine,
    exp2,
    fused_scores,
    latent_squares,
    on,
)
from gwa_torch._triton_linear_sums import at_class, part, sums_kernel

# Classes and tokens of a tile of the first and of the second pass: the fastest on an H200.
SUMS = {"BLOCK_C": 16, "BLOCK_N": 64, "num_warps": 2}
GRADIENT = {"BLOCK_C": 64, "BLOCK_N": 128, "num_warps": 8}

# Tiles of the second pass that a program works on.
TILES: tl.constexpr = tl.constexpr(8)

# Tokens whose logits are copied at a time.
ROWS = 128

# Programs that keep a GPU busy.
PROGRAMS = 1024

# Below it 1 + t loses digits of t in float32, and t - t^2 / 2 is log(1 + t).
SMALL: tl.constexpr = tl.constexpr(1e-3)


@triton.jit
def _token_kernel(
    logits,
    rest,
    latents,
    targets,
    weight_norm,
    sums,
    losses,
    scores,
    pieces,
    C,
    split,
    D,
    n,
    latent_stride,
    ignore_index,
    smoothing,
    shares,
    SMOOTH: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    share = tl.arange(0, SHARES)
    found = sums + share * 4 * n + token
    inside = share < shares
    peak = tl.load(found, mask=inside, other=FAR)
    total = tl.load(found + n, mask=inside, other=0.0)
    dot = tl.load(found + 2 * n, mask=inside, other=0.0)
    square = tl.load(found + 3 * n, mask=inside, other=0.0)
    label = tl.load(targets + token)
    ignored = label == ignore_index
    known = (label >= 0) & (label < C)
    label = tl.where(known, label, 0)
    own = tl.load(at_class(logits, rest, label, split, n) + token).to(tl.float32)
    top = tl.max(peak, axis=0)
    fade = tl.exp(peak - top)
    s = tl.sum(total * fade, axis=0)
    # The others and the label, relative to one of the largest logits.
    high = tl.maximum(top, own)
    others = s * tl.exp(top - high)
    mass = others + tl.exp(own - high)
    loss = high - own + tl.where(others < SMALL, others * (1.0 - 0.5 * others), tl.log(mass))
    if SMOOTH:
        loss += smoothing / C * tl.sum(dot, axis=0)
    else:
        ratio = tl.sum(dot * fade, axis=0) / s
        length = tl.sqrt(1.0 + tl.sum(square * fade * fade, axis=0) / (s * s))
        squares = latent_squares(latents, token, latent_stride, D, BLOCK_D)
        latent_norm = tl.sqrt(tl.sum(squares, axis=0))
        score = cosine(ratio, length, latent_norm, tl.load(weight_norm))
        tl.store(scores + token, tl.where(known & (ignored == 0), score, float("nan")))
    loss = tl.where(known, loss, float("nan"))
    tl.store(losses + token, tl.where(ignored, 0.0, loss))
    # What the gradient is made of. The label's own entry is 1 - p as the sum of the others, which
    # does not cancel.
    tl.store(pieces + token, high)
    tl.store(pieces + n + token, 1.0 / mass)
    tl.store(pieces + 2 * n + token, -others / mass)


@triton.jit
def _gradient_kernel(
    logits,
    rest,
    targets,
    factors,
    pieces,
    C,
    split,
    n,
    smoothing,
    SMOOTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    token = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = token < n
    label = tl.load(targets + token, mask=there, other=0)
    label = tl.where((label >= 0) & (label < C), label, 0).to(tl.int32)
    factor = tl.load(factors + token, mask=there, other=0.0)
    high = tl.load(pieces + token, mask=there, other=0.0)
    inverse = tl.load(pieces + n + token, mask=there, other=0.0)
    own = tl.load(pieces + 2 * n + token, mask=there, other=0.0)
    first, last = part(tl.program_id(0), BLOCK_C * TILES, split, C)
    start_of_tile = at_class(logits, rest, first.to(tl.int64), split, n) + token
    for start in range(0, BLOCK_C * TILES, BLOCK_C):
        place = start + tl.arange(0, BLOCK_C)
        column = first + place
        inside = (column < last)[:, None] & there[None, :]
        at = start_of_tile[None, :] + place[:, None] * n
        x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        mine = column[:, None] == label[None, :]
        gradient = exp2((x - high[None, :]) * LOG2E) * inverse[None, :]
        gradient = tl.where(mine, own[None, :], gradient)
        if SMOOTH:
            gradient += tl.where(mine, smoothing, 0.0) - smoothing / C
        gradient = tl.where((factor == 0)[None, :], 0.0, gradient * factor[None, :])
        tl.store(at, gradient.to(logits.dtype.element_ty), mask=inside)


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


def fused_tokens(
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
    """Fill losses and scores of (C, n) logits on a GPU; with `gradient` the logits become theirs."""
    logits, rest = block
    split, tokens = logits.shape
    classes = split + len(rest)
    smooth = label_smoothing != 0.0
    if smooth:
        # Rare, and exact only in three more passes, which that kernel has, of rows.
        for start in range(0, tokens, ROWS):
            some = slice(start, start + ROWS)
            rows = torch.cat([logits[:, some].T, rest[:, some].T], dim=1)
            z, t = latents[some], targets[some]
            found = fused_scores(rows, z, t, weight_norm, bias, label_smoothing)
            scores[some] = torch.where(t == ignore_index, torch.nan, found)
    offset = logits if bias is None else bias
    columns = triton.cdiv(tokens, SUMS["BLOCK_N"])
    tiles = triton.cdiv(classes, SUMS["BLOCK_C"])
    share = triton.cdiv(tiles, max(1, min(PROGRAMS // columns, tiles // 8))) * SUMS["BLOCK_C"]
    shares = triton.cdiv(split, share) + triton.cdiv(len(rest), share)
    sums = torch.empty(shares, 4, tokens, dtype=torch.float32, device=logits.device)
    pieces = torch.empty(3, tokens, dtype=torch.float32, device=logits.device)
    features = latents.shape[1]
    one: Any = {"SMOOTH": smooth, "HAS_BIAS": bias is not None, **SUMS}
    two: Any = {"SMOOTH": smooth, **GRADIENT}
    with on(logits.device):
        sums_kernel[(columns, shares)](
            logits, rest, targets, offset, sums, classes, split, tokens, share, **one
        )
        _token_kernel[(tokens,)](
            *(logits, rest, latents, targets, weight_norm, sums, losses, scores, pieces),
            *(classes, split, features, tokens, latents.stride(0)),
            *(ignore_index, label_smoothing, shares),
            SMOOTH=smooth,
            SHARES=triton.next_power_of_2(shares),
            BLOCK_D=min(BLOCK_D, triton.next_power_of_2(features)),
            num_warps=4,
        )
        if gradient:
            strip = GRADIENT["BLOCK_C"] * TILES.value
            strips = triton.cdiv(split, strip) + triton.cdiv(len(rest), strip)
            grid = (strips, triton.cdiv(tokens, GRADIENT["BLOCK_N"]))
            _gradient_kernel[grid](
                *(logits, rest, targets, factors, pieces),
                *(classes, split, tokens, label_smoothing),
                **two,
            )


def fused_scale(x: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply a contiguous tensor by a 0-D float32 tensor in place; a factor of 1 reads nothing."""
    block, blocks = 2048, 16
    with on(x.device):
        grid = (triton.cdiv(x.numel(), block * blocks),)
        _scale_kernel[grid](x, factor, x.numel(), BLOCK=block, BLOCKS=blocks)
