"""Small numerical functions that the array API standard lacks or leaves fragile."""

from __future__ import annotations

import math
from typing import Any

from gwa_core._lib.array import Array, constant, device_of, index_dtype, is_host

__all__ = [
    "blocked_sum",
    "bounded_score",
    "divide_or_zero",
    "first_argmax",
    "log_sigmoid",
    "norm",
    "one_hot_mask",
    "pick",
    "replace_at",
    "row_sum",
]


# The squares of float32 numbers within these bounds keep all their digits.
SAFE_NORM = 1e15


def norm(xp: Any, x: Array) -> Array:
    """Return the Euclidean norm over the last axis, without overflow or underflow.

    Squares of float32 leave its range for entries beyond 1e19 or below 1e-19; dividing by the
    largest entry first keeps them inside.
    """
    if is_host(x):
        # One pass instead of four, where NumPy can see that the squares stayed in range.
        length = xp.sqrt(xp.vecdot(x, x))
        if xp.all((length > 1.0 / SAFE_NORM) & (length < SAFE_NORM)):
            return length
    peak = xp.max(xp.abs(x), axis=-1, keepdims=True)
    one = constant(xp, 1.0, x)
    scale = xp.where((peak > 0) & xp.isfinite(peak), peak, one)
    scaled = x / scale
    square = xp.vecdot(scaled, scaled)
    # The root has no slope at 0, and a gradient through it would be nan.
    root = xp.sqrt(xp.where(square == 0, one, square))
    return xp.squeeze(scale, axis=-1) * xp.where(square == 0, square, root)


def divide_or_zero(xp: Any, numerator: Array, denominator: Array) -> Array:
    """Return numerator / denominator, and 0 where the denominator is 0 (gradients stay finite)."""
    zero = denominator == 0
    safe = xp.where(zero, constant(xp, 1.0, denominator), denominator)
    return xp.where(zero, constant(xp, 0.0, numerator), numerator / safe)


def first_argmax(xp: Any, x: Array) -> Array:
    """Return the first class of the largest entry in each row, in the dtype to index with.

    The standard's argmax is int64 everywhere, also on devices that have no 64-bit types.
    """
    classes = xp.arange(x.shape[1], dtype=index_dtype(xp, x), device=device_of(x))
    largest = x == xp.max(x, axis=1, keepdims=True)
    return xp.min(xp.where(largest, classes[None, :], x.shape[1] - 1), axis=1)


def log_sigmoid(xp: Any, x: Array) -> Array:
    """Return log(1 / (1 + exp(-x))) with full relative accuracy in both tails."""
    return -xp.maximum(-x, constant(xp, 0.0, x)) - xp.log1p(xp.exp(-xp.abs(x)))


def one_hot_mask(xp: Any, labels: Array, num_classes: int) -> Array:
    """Return the (N, C) boolean mask of the labelled class; an unknown label has no True."""
    classes = xp.arange(num_classes, dtype=labels.dtype, device=device_of(labels))
    return labels[:, None] == classes[None, :]


def replace_at(xp: Any, x: Array, labels: Array, value: float) -> Array:
    """Return x with x[i, labels[i]] replaced; the labels must be in range."""
    if is_host(x):
        # NumPy's where is the slowest pass of all; its own copy may be written to.
        out = x.copy()
        out[xp.arange(x.shape[0]), labels] = value  # on the host
        return out
    return xp.where(one_hot_mask(xp, labels, x.shape[1]), constant(xp, value, x), x)


def row_sum(xp: Any, x: Array) -> Array:
    """Return the sum of each row of an (N, C) array."""
    if is_host(x):
        # BLAS adds twice as fast, row by row; a matrix-vector product would wake its threads,
        # which wait for each other where other threads have work.
        return xp.vecdot(x, xp.ones(x.shape[1], dtype=x.dtype))  # on the host
    return xp.sum(x, axis=1)


def pick(xp: Any, x: Array, labels: Array) -> Array:
    """Return x[i, labels[i]] as an (N, 1) array."""
    return xp.take_along_axis(x, labels[:, None], axis=1)


def blocked_sum(xp: Any, x: Array) -> Array:
    """Sum an (N, ...) array over its first axis in two levels, so that float32 errors stay small.

    Libraries differ in how they add: some run one accumulator along the axis, and its float32
    error then grows with N. Two levels of about sqrt(N) terms bound it by sqrt(N) roundings.
    """
    rows = x.shape[0]
    width = max(1, math.isqrt(rows))
    depth = rows // width
    head = xp.reshape(x[: depth * width, ...], (depth, width, *x.shape[1:]))
    total = xp.sum(xp.sum(head, axis=1), axis=0)
    if depth * width == rows:
        return total
    return total + xp.sum(x[depth * width :, ...], axis=0)


def bounded_score(xp: Any, score: Array, ingredients: Array) -> Array:
    """Clip rounding beyond ±1, and answer nan where an ingredient is not finite."""
    score = xp.clip(score, -1.0, 1.0)
    return xp.where(xp.isfinite(ingredients), score, xp.nan)
