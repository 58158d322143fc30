"""Fused Triton kernel of a linear head with cross-entropy: the sums of a block over its classes."""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from gwa_torch._triton import FAR, LIMIT, LOG2E, exp2


@triton.jit
def at_class(logits, rest, number, split, n):
    # The logits of a class: those from `split` on lie elsewhere.
    return tl.where(number < split, logits + number * n, rest + (number - split) * n)


@triton.jit
def part(index, share, split, C):
    # The first class of a part, and the one behind its last: no part crosses the split.
    before = tl.cdiv(split, share)
    first = tl.where(index < before, index * share, split + (index - before) * share)
    return first, tl.minimum(first + share, tl.where(index < before, split, C))


@triton.jit
def _tile(
    start_of_tile,
    bias,
    activation,
    label,
    there,
    first,
    last,
    start,
    n,
    HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # Logits of other classes, and how far the label's activation is above theirs.
    place = start + tl.arange(0, BLOCK_C)
    column = first + place
    inside = (column < last)[:, None] & there[None, :]
    x = tl.load(start_of_tile[None, :] + place[:, None] * n, mask=inside, other=0.0)
    # Not in the mask of the load, which would read element by element.
    hidden = (column >= last)[:, None] | (column[:, None] == label[None, :])
    x = tl.where(hidden, FAR, x.to(tl.float32))
    away = activation[None, :] - x
    if HAS_BIAS:
        offset = tl.load(bias + column, mask=column < last, other=0.0).to(tl.float32)
        away += offset[:, None]
    return x, tl.where(hidden, 0.0, away)


@triton.jit
def _any_sums(
    start_of_tile,
    bias,
    activation,
    label,
    there,
    first,
    last,
    n,
    SMOOTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # Of any logits, with a running peak in every lane; see _scaled_sums in _triton.py.
    peak = tl.full([BLOCK_C, BLOCK_N], FAR, dtype=tl.float32)
    total = tl.zeros([BLOCK_C, BLOCK_N], dtype=tl.float32)
    dot = tl.zeros([BLOCK_C, BLOCK_N], dtype=tl.float32)
    square = tl.zeros([BLOCK_C, BLOCK_N], dtype=tl.float32)
    for start in range(0, last - first, BLOCK_C):
        x, away = _tile(
            start_of_tile, bias, activation, label, there, first, last, start, n, HAS_BIAS, BLOCK_C
        )
        gap = tl.exp(-tl.abs(x - peak))
        higher = x > peak
        fade = tl.where(higher, gap, 1.0)
        # Nothing is at FAR.
        weight = tl.where(higher, 1.0, tl.where(x == FAR, 0.0, gap))
        total = total * fade + weight
        square = square * fade * fade + weight * weight
        if SMOOTH:
            dot += away
        else:
            dot = dot * fade + weight * away
        peak = tl.where(higher, x, peak)
    top = tl.max(peak, axis=0)
    fade = tl.exp(peak - top[None, :])
    if not SMOOTH:
        dot *= fade
    square *= fade * fade
    return top, tl.sum(total * fade, axis=0), tl.sum(dot, axis=0), tl.sum(square, axis=0)


@triton.jit
def sums_kernel(
    logits,
    rest,
    targets,
    bias,
    sums,
    C,
    split,
    n,
    share,
    SMOOTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # Of `share` classes: a logit that is near the largest, and the sums relative to it.
    token = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = token < n
    label = tl.load(targets + token, mask=there, other=0)
    label = tl.where((label >= 0) & (label < C), label, 0)
    own = at_class(logits, rest, label, split, n) + token
    activation = tl.load(own, mask=there, other=0.0).to(tl.float32)
    # The label is an index of 64 bits there, and of 32 where it is compared with each class.
    if HAS_BIAS and not SMOOTH:
        activation -= tl.load(bias + label).to(tl.float32)
    label = label.to(tl.int32)
    first, last = part(tl.program_id(1), share, split, C)
    start_of_tile = at_class(logits, rest, first.to(tl.int64), split, n) + token
    NEED_BIAS: tl.constexpr = HAS_BIAS and not SMOOTH
    x, away = _tile(
        start_of_tile, bias, activation, label, there, first, last, 0, n, NEED_BIAS, BLOCK_C
    )
    # No lane waits for another after the first tile; exponentials up to exp(36) do no harm.
    level = tl.max(x, axis=0)
    total = tl.zeros([BLOCK_C, BLOCK_N], dtype=tl.float32)
    dot = tl.zeros([BLOCK_C, BLOCK_N], dtype=tl.float32)
    square = tl.zeros([BLOCK_C, BLOCK_N], dtype=tl.float32)
    for start in tl.range(0, last - first, BLOCK_C, num_stages=1):
        x, away = _tile(
            start_of_tile, bias, activation, label, there, first, last, start, n, NEED_BIAS, BLOCK_C
        )
        weight = exp2((x - level[None, :]) * LOG2E)
        total += weight
        square += weight * weight
        if SMOOTH:
            dot += away
        else:
            dot += weight * away
    all_of = tl.sum(total, axis=0)
    products = tl.sum(dot, axis=0)
    squares = tl.sum(square, axis=0)
    # A level at FAR is none: all logits of the tile are hidden or below it.
    usual = (squares <= LIMIT) & (level > FAR)
    if tl.min((usual | (there == 0)).to(tl.int32), axis=0) == 0:
        level, all_of, products, squares = _any_sums(
            start_of_tile,
            bias,
            activation,
            label,
            there,
            first,
            last,
            n,
            SMOOTH,
            NEED_BIAS,
            BLOCK_C,
            BLOCK_N,
        )
    found = sums + tl.program_id(1) * 4 * n + token
    tl.store(found, level, mask=there)
    tl.store(found + n, all_of, mask=there)
    tl.store(found + 2 * n, products, mask=there)
    tl.store(found + 3 * n, squares, mask=there)
