"""Fused Triton kernels: one launch, one read of logits and latents, O(N) extra memory.

They do what `gwa_core` does and are tested against it; the formulas are explained there. One
program works on one row. `_triton_gradients.py` and `_triton_record.py` have the other two kernels.
"""

# ruff: noqa: ANN001, ANN202, SIM108
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl

BLOCK_D = 1024

# What stands for no logit: its exponential is 0, and so is the product of both.
FAR: tl.constexpr = tl.constexpr(-1e30)

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)

# Sums of squares of exponentials up to here, and a million times that, are float32 numbers.
LIMIT: tl.constexpr = tl.constexpr(1e31)


@triton.jit
def latent_squares(latents, row, stride, D, BLOCK_D: tl.constexpr):
    # In float64, where no square of a float32 overflows or vanishes. Added up at the end of the
    # row, where the lanes meet anyway.
    total = tl.zeros([BLOCK_D], dtype=tl.float64)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        z = tl.load(latents + row * stride + column, mask=column < D, other=0.0).to(tl.float64)
        total += z * z
    return total


@triton.jit
def cosine(dot, length, latent_norm, weight_norm):
    ratio = tl.where(length == 0, 0.0, dot / length)
    score = ratio.to(tl.float64) / latent_norm / weight_norm.to(tl.float64)
    score = tl.where((latent_norm == 0) | (weight_norm == 0), 0.0, score)
    finite = (tl.abs(ratio) < float("inf")) & (latent_norm < float("inf"))
    finite = finite & (weight_norm < float("inf"))
    return tl.where(finite, tl.minimum(tl.maximum(score, -1.0), 1.0), float("nan")).to(tl.float32)


@triton.jit
def exp2(x):
    # One instruction; tl.exp2 keeps subnormal results, for which it needs four.
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _sums(a1, b1, c1, a2, b2, c2):
    return a1 + a2, b1 + b2, c1 + c2


@triton.jit
def _add(x, column, total, dot, square, level, reference, bias, C, HAS_BIAS: tl.constexpr):
    # In powers of two: the level is scaled already, and its rounding is the same for all. The
    # compiler makes one operation of both, here and for the label's logit.
    above = x * LOG2E - level
    weight = exp2(above)
    if HAS_BIAS:
        above = x - tl.load(bias + column, mask=column < C, other=0.0).to(tl.float32) - reference
    return total + weight, dot + weight * above, square + weight * weight


@triton.jit
def _scaled_sums(start_of_row, bias, label, own, C, HAS_BIAS: tl.constexpr, BLOCK_C: tl.constexpr):
    # Sums over the other classes for any logits: a running peak in every lane, so that no lane
    # waits for another before the row ends.
    lane = tl.arange(0, BLOCK_C)
    # Finite, because -inf less -inf has no value; any logit is above it.
    peak = tl.full([BLOCK_C], -3e38, dtype=tl.float32)
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    dot = tl.zeros([BLOCK_C], dtype=tl.float32)
    square = tl.zeros([BLOCK_C], dtype=tl.float32)
    for start in range(0, C, BLOCK_C):
        column = start + lane
        other = (column < C) & (column != label)
        x = tl.load(start_of_row + column, mask=other, other=-float("inf")).to(tl.float32)
        away = own - x
        if HAS_BIAS:
            away += tl.load(bias + column, mask=other, other=0.0).to(tl.float32)
        # Only the smaller of the old and the new peak fades, so that one exponential serves both.
        gap = tl.exp(-tl.abs(x - peak))
        higher = x > peak
        fade = tl.where(higher, gap, 1.0)
        weight = tl.where(higher, 1.0, gap)
        total = total * fade + weight
        dot = dot * fade + tl.where(other, weight * away, 0.0)
        square = square * fade * fade + weight * weight
        peak = tl.where(higher, x, peak)
    fade = tl.exp(peak - tl.max(peak, axis=0))
    s = tl.sum(total * fade, axis=0)
    return tl.sum(dot * fade, axis=0) / s, tl.sum(square * fade * fade, axis=0) / (s * s)


@triton.jit
def _hard_kernel(
    logits,
    latents,
    targets,
    bias,
    weight_norm,
    out,
    C,
    D,
    logit_stride,
    latent_stride,
    HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start_of_row = logits + row * logit_stride
    lane = tl.arange(0, BLOCK_C)
    # All that does not depend on another load is asked for at once; it is used after the loop.
    label = tl.load(targets + row)
    coming = tl.load(start_of_row + lane, mask=lane < C, other=FAR)
    feature = tl.arange(0, BLOCK_D)
    start_of_latent = latents + row * latent_stride
    z = tl.load(start_of_latent + feature, mask=feature < D, other=0.0)
    norm = tl.load(weight_norm)
    known = (label >= 0) & (label < C)
    label = tl.where(known, label, 0)
    own = tl.load(start_of_row + label).to(tl.float32)
    # All of the row is taken relative to a logit of it, and not to its largest: exponentials up to
    # exp(36) do no harm, and no lane waits for another.
    level = tl.max(tl.where((lane == label) | (lane >= C), FAR, coming.to(tl.float32)), axis=0)
    # What is subtracted from activations, so that a common offset costs no digits.
    reference = level
    if HAS_BIAS:
        own -= tl.load(bias + label).to(tl.float32)
        reference = tl.load(start_of_row).to(tl.float32) - tl.load(bias).to(tl.float32)
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    dot = tl.zeros([BLOCK_C], dtype=tl.float32)
    square = tl.zeros([BLOCK_C], dtype=tl.float32)
    scaled = level * LOG2E
    whole = C // BLOCK_C * BLOCK_C
    for start in range(0, whole, BLOCK_C):
        x = coming.to(tl.float32)
        column = start + lane
        # Asked for one block ahead, so that the arithmetic of a block hides the load of the next.
        # The last block ends where the row does and needs no mask.
        coming = tl.load(start_of_row + tl.minimum(start + BLOCK_C, C - BLOCK_C) + lane)
        x = tl.where(column == label, FAR, x)
        total, dot, square = _add(
            x, column, total, dot, square, scaled, reference, bias, C, HAS_BIAS
        )
    rest = tl.minimum(whole, tl.maximum(C - BLOCK_C, 0)) + lane
    x = tl.where((rest < whole) | (rest >= C) | (rest == label), FAR, coming.to(tl.float32))
    total, dot, square = _add(x, rest, total, dot, square, scaled, reference, bias, C, HAS_BIAS)
    total, dot, square = tl.reduce((total, dot, square), 0, _sums)
    # A logit near -3e38 overflows when it is scaled; nothing times infinity is no number.
    far = (square > LIMIT) | (dot != dot)
    if HAS_BIAS:
        dot = own - reference - dot / total
    else:
        dot = (own * LOG2E - scaled - dot / total) * LN2
    square = square / (total * total)
    if far:
        dot, square = _scaled_sums(start_of_row, bias, label, own, C, HAS_BIAS, BLOCK_C)
    z = z.to(tl.float64)
    squares = z * z
    for start in range(BLOCK_D, D, BLOCK_D):
        column = start + feature
        z = tl.load(start_of_latent + column, mask=column < D, other=0.0).to(tl.float64)
        squares += z * z
    length = tl.sqrt(1.0 + square)
    latent_norm = tl.sqrt(tl.sum(squares, axis=0))
    score = cosine(dot, length, latent_norm, norm)
    tl.store(out + row, tl.where(known, score, float("nan")))


@triton.jit
def _target(targets, row, stride, label, column, inside, C, smoothing, SOFT: tl.constexpr):
    if SOFT:
        t = tl.load(targets + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    else:
        t = (column == label).to(tl.float32)
    return tl.where(inside, (1.0 - smoothing) * t + smoothing / C, 0.0)


@triton.jit
def _soft_kernel(
    logits,
    latents,
    targets,
    bias,
    weight_norm,
    out,
    C,
    D,
    logit_stride,
    latent_stride,
    target_stride,
    smoothing,
    SOFT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start_of_row = logits + row * logit_stride
    label = tl.zeros([], dtype=tl.int64)
    known = True
    if not SOFT:
        label = tl.load(targets + row).to(tl.int64)
        known = (label >= 0) & (label < C)
    # The class of the largest logit, whose residual is the sum of the others'.
    top = -float("inf")
    best = 0
    bad = 0
    for start in range(0, C, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        x = tl.load(start_of_row + column, mask=column < C, other=-float("inf")).to(tl.float32)
        bad += tl.sum(((x != x) & (column < C)).to(tl.int32), axis=0)
        here = tl.max(x, axis=0)
        first = tl.min(tl.where((x == here) & (column < C), column, C), axis=0)
        best = tl.where(here > top, first, best)
        top = tl.maximum(top, here)
    best = tl.minimum(best, C - 1)
    # Sums over the others, from here on read from the cache.
    peak = -float("inf")
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    rest = tl.zeros([BLOCK_C], dtype=tl.float32)
    for start in range(0, C, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        other = (column < C) & (column != best)
        x = tl.load(start_of_row + column, mask=other, other=-float("inf")).to(tl.float32)
        above = tl.maximum(peak, tl.max(x, axis=0))
        shift = tl.where(above == -float("inf"), 0.0, above)
        total = total * tl.exp(peak - shift) + tl.exp(x - shift)
        peak = above
        rest += _target(targets, row, target_stride, label, column, other, C, smoothing, SOFT)
    s = tl.sum(total, axis=0)
    tau = tl.sum(rest, axis=0)
    gap = peak + tl.log(s) - top
    missing = tl.where(gap > 0, 1.0 / (1.0 + tl.exp(-gap)), tl.exp(gap) / (1.0 + tl.exp(gap)))
    size = tl.where(missing + tau == 0, 1.0, missing + tau)
    share = tl.where(tau == 0, 1.0, missing / size)
    own = share - tl.where(tau == 0, 0.0, tau / size)
    reference = top
    if HAS_BIAS:
        reference -= tl.load(bias + best).to(tl.float32)
    dot = tl.zeros([BLOCK_C], dtype=tl.float32)
    square = tl.zeros([BLOCK_C], dtype=tl.float32)
    for start in range(0, C, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        other = (column < C) & (column != best)
        x = tl.load(start_of_row + column, mask=other, other=0.0).to(tl.float32)
        t = _target(targets, row, target_stride, label, column, other, C, smoothing, SOFT)
        r = tl.where(other, t / size - share * tl.exp(x - peak) / s, 0.0)
        a = x - reference
        if HAS_BIAS:
            a -= tl.load(bias + column, mask=other, other=0.0).to(tl.float32)
        dot += tl.where(other, r * a, 0.0)
        square += r * r
    length = tl.sqrt(own * own + tl.sum(square, axis=0))
    squares = latent_squares(latents, row, latent_stride, D, BLOCK_D)
    latent_norm = tl.sqrt(tl.sum(squares, axis=0))
    score = cosine(tl.sum(dot, axis=0), length, latent_norm, tl.load(weight_norm))
    tl.store(out + row, tl.where(known & (bad == 0), score, float("nan")))


def shape_of(classes: int, features: int, *, streams: int = 1) -> dict[str, int]:
    """Return blocks and warps: the fastest on an H200 of 256 to 2048 and 1 to 16."""
    block, warps = (512, 2) if classes <= 2048 else (1024, 4 * streams)
    return {
        "BLOCK_C": min(block, triton.next_power_of_2(classes)),
        "BLOCK_D": min(BLOCK_D, triton.next_power_of_2(features)),
        "num_warps": warps if classes > 256 else 1,
    }


def on(device: torch.device) -> Any:
    """Launch on a device; asking where we are is faster than going there."""
    here = torch.cuda.current_device() == device.index
    return contextlib.nullcontext() if here else torch.cuda.device(device)


def fused_scores(
    logits: torch.Tensor,
    latents: torch.Tensor,
    targets: torch.Tensor,
    weight_norm: torch.Tensor,
    bias: torch.Tensor | None,
    label_smoothing: float,
) -> torch.Tensor:
    """Return γ of (N, C) logits and (N, D) latents on a GPU; targets (N,) or (N, C)."""
    rows, classes = logits.shape
    features = latents.shape[1]
    out = torch.empty(rows, dtype=torch.float32, device=logits.device)
    # Rows must be contiguous; a slice of columns or of rows needs no copy.
    logits, latents, targets = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (logits, latents, targets)
    )
    offset = logits if bias is None else bias.contiguous()
    shared: Any = (logits, latents, targets, offset, weight_norm, out)
    sizes = (classes, features, logits.stride(0), latents.stride(0))
    options: Any = {"HAS_BIAS": bias is not None, **shape_of(classes, features)}
    with on(logits.device):
        if targets.ndim == 1 and label_smoothing == 0.0:
            _hard_kernel[(rows,)](*shared, *sizes, **options)
        else:
            soft = targets.ndim == 2
            smoothing = (targets.stride(0), label_smoothing)
            _soft_kernel[(rows,)](*shared, *sizes, *smoothing, SOFT=soft, **options)
    return out
