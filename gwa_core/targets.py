"""Targets of a loss: safe class numbers, soft targets, and class weights as targets."""

from __future__ import annotations

import math
from typing import Any

from gwa_core._lib.array import Array, index_dtype, is_host, namespace, quiet, result_dtype
from gwa_core._lib.checks import check_loss, check_vector
from gwa_core._lib.numerics import one_hot_mask

__all__ = ["loss_weights", "weighted_targets"]


def weighted_targets(
    *, targets: Array, class_weights: Array, label_smoothing: float = 0.0
) -> Array:
    r"""Return the probabilities that stand for targets under a class-weighted cross-entropy.

    .. math:: t'_{ic} = \frac{w_c t_{ic}}{\sum_k w_k t_{ik}}

    The gradient of :math:`-\sum_c w_c t_c \log p_c` points where that of plain cross-entropy with
    t' does, and its length does not matter for the alignment. For hard labels without smoothing
    class weights change nothing.

    Parameters
    ----------
    targets : array of shape (N,) or (N, C)
        Class numbers in 0..C-1, or probabilities that sum to one in each row.
    class_weights : array of shape (C,)
        Weights of the classes, at least 0.
    label_smoothing : float
        In [0, 1): the share of the target that is spread evenly, default 0; applied first.

    Returns
    -------
    array of shape (N, C)
        Rows sum to one; nan for a class number outside 0..C-1, and where the weights of all
        labelled classes are zero, as such a sample has no part in the loss. Dtype of
        `class_weights`, at least float32.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit; on NumPy arrays also on weights below 0.

    Notes
    -----
    Cost: O(NC). Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import weighted_targets
    >>> weighted_targets(targets=np.asarray([[0.5, 0.5]]), class_weights=np.asarray([3.0, 1.0]))
    array([[0.75, 0.25]])
    """
    xp, weights, labels, known = _checked(targets, class_weights, label_smoothing)
    (classes,) = weights.shape
    like = xp.broadcast_to(weights[None, :], (targets.shape[0], classes))
    soft = like * _soft_targets(xp, labels, like, label_smoothing, 1.0 / classes)
    with quiet(xp):
        soft = soft / xp.sum(soft, axis=1, keepdims=True)
    return soft if known is None else xp.where(known[:, None], soft, xp.nan)


def loss_weights(*, targets: Array, class_weights: Array, label_smoothing: float = 0.0) -> Array:
    r"""Return the weight that each sample has in a loss with class weights.

    .. math:: s_i = \sum_c w_c t_{ic}, \qquad
       -\frac{\partial \mathcal L_i}{\partial \ell_i} = s_i \, (t'_i - \operatorname{softmax}(\ell_i))

    with t' of `weighted_targets`. It changes no direction of one sample, and that of a sum of
    several: the gradient of a sequence is one of its tokens' gradients, each with its weight.

    Parameters
    ----------
    targets : array of shape (N,) or (N, C)
        Class numbers in 0..C-1, or probabilities that sum to one in each row.
    class_weights : array of shape (C,)
        Weights of the classes, at least 0.
    label_smoothing : float
        In [0, 1): the share of the target that is spread evenly, default 0.

    Returns
    -------
    array of shape (N,)
        At least 0; nan for a class number outside 0..C-1. Dtype of `class_weights`, at least float32.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit; on NumPy arrays also on weights below 0.

    Notes
    -----
    Cost: O(N) for class numbers, O(NC) for probabilities. Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import loss_weights
    >>> loss_weights(targets=np.asarray([0, 1]), class_weights=np.asarray([3.0, 1.0]))
    array([3., 1.])
    """
    xp, weights, labels, known = _checked(targets, class_weights, label_smoothing)
    if targets.ndim == 1:
        own = xp.take(weights, labels)
    else:
        own = xp.astype(targets, weights.dtype) @ weights
    found = (1.0 - label_smoothing) * own + label_smoothing * xp.mean(weights)
    return found if known is None else xp.where(known, found, xp.nan)


def _checked(
    targets: Array, class_weights: Array, label_smoothing: float
) -> tuple[Any, Array, Array, Array | None]:
    """Return the namespace, the weights, targets to index with, and which of them are known."""
    xp = namespace(targets=targets, class_weights=class_weights)
    rows = targets.shape[0] if targets.ndim else 1
    classes = math.prod(class_weights.shape)
    check_vector(xp, "class_weights", class_weights, classes, letter="C")
    check_loss(xp, targets, rows, classes, "cross_entropy", label_smoothing)
    if is_host(class_weights) and not (
        xp.all(xp.isfinite(class_weights) & (class_weights >= 0)) and xp.any(class_weights > 0)
    ):
        raise ValueError(
            "`class_weights` must be finite, at least 0 and not all 0, got "
            f"{class_weights.tolist()}; a negative weight turns gradients around"
        )
    weights = xp.astype(class_weights, result_dtype(xp, class_weights))
    labels, known = _indexable(xp, targets, classes)
    return xp, weights, labels, known


def _indexable(xp: Any, targets: Array, classes: int) -> tuple[Array, Array | None]:
    """Return class numbers that are safe to index with, and which of them were meant; or soft."""
    if targets.ndim == 2 or not xp.isdtype(targets.dtype, "integral"):
        return targets, None
    targets = xp.astype(targets, index_dtype(xp, targets))
    # A single sigmoid output knows two classes.
    known = (targets >= 0) & (targets < max(classes, 2))
    return xp.where(known, targets, 0), known


def _soft_targets(xp: Any, targets: Array, like: Array, smoothing: float, share: float) -> Array:
    """Return (N, C) target probabilities; `share` of the smoothed part goes to each output."""
    classes = like.shape[1]
    if targets.ndim == 1 and classes == 1:
        targets = targets[:, None]
    if targets.ndim == 1:
        soft = xp.astype(one_hot_mask(xp, targets, classes), like.dtype)
    else:
        soft = xp.astype(targets, like.dtype)
    return soft if smoothing == 0.0 else (1.0 - smoothing) * soft + smoothing * share
