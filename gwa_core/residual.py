"""The negative gradient of the loss with respect to the logits, exact where softmax saturates."""

from __future__ import annotations

from typing import Any

from gwa_core._lib.array import (
    Array,
    constant,
    is_host,
    map_rows,
    namespace,
    result_dtype,
)
from gwa_core._lib.checks import Loss, check_loss, check_matrix
from gwa_core._lib.numerics import (
    first_argmax,
    log_sigmoid,
    norm,
    one_hot_mask,
    pick,
    replace_at,
    row_sum,
)
from gwa_core.targets import _indexable, _soft_targets

__all__ = ["residual"]

# Squares of float32 numbers outside 1/LIMIT..LIMIT come near the ends of its range.
LIMIT = 1e17


def residual(
    *,
    logits: Array,
    targets: Array,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
) -> Array:
    r"""Return the negative gradient of the loss with respect to the logits.

    .. math:: r = t - \operatorname{softmax}(\ell)
       \quad\text{or}\quad r = t - \operatorname{sigmoid}(\ell)

    It is the factor of the head's gradient that depends on the class:
    :math:`-\nabla_W \mathcal L = r \otimes z` (Algorithm 1, line 6).

    Parameters
    ----------
    logits : array of shape (N, C)
        Outputs of the linear head, bias included. Half precision is raised to float32.
    targets : array of shape (N,) or (N, C)
        Class numbers in 0..C-1, or probabilities that sum to one in each row (with
        ``loss="binary_cross_entropy"``: one probability in [0, 1] for each output).
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1): the share of the target that is spread evenly, default 0.

    Returns
    -------
    array of shape (N, C)
        In [-1, 1], dtype of `logits` but at least float32. Rows sum to zero for softmax. A
        non-finite row of logits or a class number outside 0..C-1 makes the row nan.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit; on NumPy arrays also on target values.

    Notes
    -----
    The entry of the labelled class is :math:`1 - p_y = \sum_{j \neq y} p_j`, computed as that sum:
    the textbook difference rounds to zero once the logit gap passes 16 in float32, and the
    direction of the gradient is lost with it. Cost: O(NC) time and memory. Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, "Gradient-Weight Alignment as a Train-Time Proxy for Generalization
    in Classification Tasks", NeurIPS 2025, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import residual
    >>> residual(logits=np.asarray([[40.0, 0.0]], dtype="float32"), targets=np.asarray([0]))
    array([[ 4.248354e-18, -4.248354e-18]], dtype=float32)
    """
    xp = namespace(logits=logits, targets=targets)
    check_matrix(xp, "logits", logits, shape="(N, C)")
    rows, classes = logits.shape
    check_loss(xp, targets, rows, classes, loss, label_smoothing)
    dtype = result_dtype(xp, logits)
    targets, known = _indexable(xp, targets, classes)

    def part(logits: Array, targets: Array) -> Array:
        logits = xp.astype(logits, dtype)
        direction, size = _scaled_residual(xp, logits, targets, loss, label_smoothing)
        # A class of logit -inf has no part in the loss, and would leave the others finite.
        finite = xp.all(xp.isfinite(logits), axis=1, keepdims=True)
        return xp.where(finite, direction * size, xp.nan)

    result = map_rows(part, xp, logits, targets, row_bytes=4 * classes)
    return result if known is None else xp.where(known[:, None], result, xp.nan)


def _products(
    xp: Any,
    logits: Array,
    activations: Array,
    targets: Array,
    loss: Loss,
    label_smoothing: float,
    spare: list[Array],
) -> tuple[Array, Array, Array]:
    """Return c r·a, ‖c r‖ and the size of the terms in c r·a of each row, for some c > 0.

    `activations` a is (N, C), what the residual is multiplied with: logits less bias. The third
    result tells how many digits of the first were lost by cancellation. `spare` is a list, empty
    at first, in which a buffer goes from one block of rows to the next.
    """
    if loss == "cross_entropy" and targets.ndim == 1 and label_smoothing == 0.0:
        # Where rows can be computed again in float64, most need no shift against overflow.
        if is_host(logits) and logits.dtype == xp.float32:
            return _unshifted_products(xp, logits, activations, targets, spare)
        return _hard_products(xp, logits, activations, targets)
    hard = targets.ndim == 1 and xp.isdtype(targets.dtype, "integral") and label_smoothing == 0.0
    if hard and logits.shape[1] == 1:
        # One sigmoid: of r only its sign counts, which is that of the label.
        own = xp.squeeze(activations, axis=1)
        return xp.where(targets == 1, own, -own), xp.ones_like(own), xp.abs(own)
    direction, _ = _scaled_residual(xp, logits, targets, loss, label_smoothing)
    if loss == "cross_entropy":
        # The entries of r sum to zero, so any constant may leave a; the largest logit's own entry
        # then needs no product, and a common offset of the activations costs no digits.
        best = first_argmax(xp, logits)
        activations = activations - pick(xp, activations, best)
    # The residual is a difference itself, so two more bits are at stake than in a plain sum.
    terms = 4.0 * xp.vecdot(xp.abs(direction), xp.abs(activations))
    return xp.vecdot(direction, activations), norm(xp, direction), terms


def _others(xp: Any, logits: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Return u = logits - peak, exp(u) and the peak, over the classes other than the labels.

    At the label itself u is hugely negative but finite, and exp(u) is 0.
    """
    rest = replace_at(xp, logits, labels, xp.finfo(logits.dtype).min)
    peak = xp.max(rest, axis=1, keepdims=True)
    shifted = rest - peak
    return shifted, xp.exp(shifted), peak


def _hard_products(
    xp: Any, logits: Array, activations: Array, labels: Array
) -> tuple[Array, Array, Array]:
    """`_products` of r / (1 - p_y) = onehot(y) - q, q the softmax over the other classes.

    r·a = Σ q_j (a_y - a_j). Without a bias it is split at the peak of the others, into the gap
    a_y - peak and their mean distance to the peak, which saves one pass over the logits.
    """
    shifted, weights, peak = _others(xp, logits, labels)
    total = row_sum(xp, weights)
    length = xp.sqrt(1.0 + xp.vecdot(weights, weights) / (total * total))
    own = pick(xp, activations, labels)
    if activations is not logits:
        away = own - activations
        dot = xp.vecdot(weights, away) / total
        return dot, length, xp.vecdot(weights, xp.abs(away)) / total
    gap = xp.squeeze(own - peak, axis=1)
    depth = -xp.vecdot(weights, shifted) / total
    return gap + depth, length, xp.abs(gap) + depth


def _unshifted_products(
    xp: Any, logits: Array, activations: Array, labels: Array, spare: list[Array]
) -> tuple[Array, Array, Array]:
    """`_hard_products` in half the passes, for NumPy; nan where the exponentials leave the range."""
    rows = logits.shape[0]
    if not spare or spare[0].shape[0] < rows:
        # A new array for each block would go back to the system and be cleared by it each time.
        spare[:] = [xp.empty_like(logits)]
    weights = xp.exp(logits, out=spare[0][:rows])
    weights[xp.arange(labels.shape[0]), labels] = 0.0  # on the host
    total = row_sum(xp, weights)
    total = xp.where((total > 1.0 / LIMIT) & (total < LIMIT), total, xp.nan)
    own = xp.squeeze(pick(xp, activations, labels), axis=1)
    dot = own - xp.vecdot(weights, activations) / total
    square = xp.vecdot(weights, weights)
    length = xp.sqrt(1.0 + square / (total * total))
    # Cauchy-Schwarz bounds the sum of the terms' sizes without an array of them.
    terms = xp.sqrt(square) * xp.sqrt(xp.vecdot(activations, activations)) / total
    return dot, length, xp.abs(own) + terms


def _scaled_residual(
    xp: Any, logits: Array, targets: Array, loss: Loss, smoothing: float
) -> tuple[Array, Array]:
    """Return (N, C) r / s and (N, 1) s, with s > 0 such that r / s never vanishes by underflow."""
    if loss == "binary_cross_entropy":
        return _sigmoid_residual(xp, logits, _soft_targets(xp, targets, logits, smoothing, 0.5))
    if targets.ndim == 1 and smoothing == 0.0:
        return _hard_residual(xp, logits, targets)
    soft = _soft_targets(xp, targets, logits, smoothing, 1.0 / logits.shape[1])
    return _softmax_residual(xp, logits, soft)


def _hard_residual(xp: Any, logits: Array, labels: Array) -> tuple[Array, Array]:
    """R = s (onehot(y) - q), with q the softmax over the other classes and s = 1 - p_y."""
    _, weights, peak = _others(xp, logits, labels)
    total = row_sum(xp, weights)[:, None]
    gap = peak + xp.log(total) - pick(xp, logits, labels)  # log odds of the others against y
    return replace_at(xp, -weights / total, labels, 1.0), xp.exp(log_sigmoid(xp, gap))


def _softmax_residual(xp: Any, logits: Array, soft: Array) -> tuple[Array, Array]:
    """Split off the class k of the largest logit, the only one whose 1 - p can cancel.

    With q the softmax over the other classes, s = 1 - p_k and τ = 1 - t_k, both as sums over the
    others: r_j = t_j - s q_j for j ≠ k, and r_k = s - τ. Divided by s + τ nothing underflows.
    """
    best = first_argmax(xp, logits)
    mask = one_hot_mask(xp, best, logits.shape[1])
    zero = constant(xp, 0.0, logits)
    _, weights, peak = _others(xp, logits, best)
    total = xp.sum(weights, axis=1, keepdims=True)
    q = weights / total
    top = xp.max(logits, axis=1, keepdims=True)
    gap = peak + xp.log(total) - top  # log odds of the others against k
    missing = xp.exp(log_sigmoid(xp, gap))  # s
    rest = xp.where(mask, zero, soft)
    # The target of k itself is not needed, but it must not hide that it is not finite.
    tau = xp.sum(rest, axis=1, keepdims=True) + 0.0 * pick(xp, soft, best)
    size = missing + tau
    # τ = 0 is a hard label that the model agrees with: s cancels, and may underflow.
    sure = tau == 0
    safe = xp.where(size == 0, constant(xp, 1.0, logits), size)
    share = xp.where(sure, constant(xp, 1.0, logits), missing / safe)
    away = rest / safe - share * q
    own = share - xp.where(sure, zero, tau / safe)
    return xp.where(mask, own, away), size


def _sigmoid_residual(xp: Any, logits: Array, soft: Array) -> tuple[Array, Array]:
    """R = t σ(-l) - (1 - t) σ(l), scaled by the largest of its terms in each row."""
    low = constant(xp, -xp.inf, logits)
    miss = log_sigmoid(xp, -logits)  # log(1 - σ)
    hit = log_sigmoid(xp, logits)
    largest = xp.maximum(xp.where(soft > 0, miss, low), xp.where(soft < 1, hit, low))
    peak = xp.max(largest, axis=1, keepdims=True)
    direction = soft * xp.exp(xp.where(soft > 0, miss - peak, low)) - (1.0 - soft) * xp.exp(
        xp.where(soft < 1, hit - peak, low)
    )
    return direction, xp.exp(peak)
