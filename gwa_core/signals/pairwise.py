"""How the gradients of a batch's samples align with each other, at the head (App. B.3)."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from gwa_core._lib.array import (
    Array,
    device_of,
    index_dtype,
    is_host,
    map_rows,
    namespace,
    quiet,
    result_dtype,
)
from gwa_core._lib.checks import Loss, check_labels, check_loss, check_matrix, check_positive_int
from gwa_core._lib.numerics import divide_or_zero, norm, one_hot_mask, replace_at, row_sum
from gwa_core.residual import _others, _scaled_residual
from gwa_core.targets import _indexable

__all__ = ["class_alignment", "mean_pairwise_alignment", "pairwise_alignment"]


# Rows of the matrix that NumPy computes at once: few enough to save nearly half of it.
BLOCK_ROWS = 128


class _Factors(NamedTuple):
    """Rows r and z with r ⊗ z the gradient of each sample at unit length, or 0; and which count."""

    residual: Array
    latents: Array
    known: Array


def pairwise_alignment(
    *,
    latents: Array,
    logits: Array,
    targets: Array,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
) -> Array:
    r"""Return the cosine between the head's gradients of every two samples (stiffness).

    .. math:: \cos(\nabla \mathcal L_i, \nabla \mathcal L_j)
       = \frac{r_i \cdot r_j}{\|r_i\|\,\|r_j\|} \; \frac{z_i \cdot z_j}{\|z_i\|\,\|z_j\|},
       \qquad r = t - \operatorname{softmax}(\ell)

    High: a step on one sample also lowers the loss of the other. Negative: it raises it.

    Parameters
    ----------
    latents : array of shape (N, D)
        Input z of the linear head. Half precision is raised to float32.
    logits : array of shape (N, C)
        Its output.
    targets : array of shape (N,) or (N, C)
        Class numbers in 0..C-1, or probabilities.
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1), as in the loss, default 0.

    Returns
    -------
    array of shape (N, N)
        In [-1, 1], symmetric up to rounding, 1 on the diagonal. 0 in the row and the column of a
        sample whose gradient vanishes; nan where a sample is not finite or its label is none of
        the classes.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit; on NumPy arrays also on target values.

    Notes
    -----
    No gradient is formed. The residuals keep their direction where softmax saturates, see
    `residual`. Cost: O(N² (C + D)), two matrix products and one elementwise. Runs under jit.

    References
    ----------
    Fort et al., "Stiffness: A New Perspective on Generalization in Neural Networks", 2020;
    Chatterjee, "Coherent Gradients", ICLR 2020; Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. B.3.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import pairwise_alignment
    >>> latents, logits = np.asarray([[1.0, 0.0], [1.0, 1.0]]), np.zeros((2, 2))
    >>> pairwise_alignment(latents=latents, logits=logits, targets=np.asarray([0, 1])).round(3)
    array([[ 1.   , -0.707],
           [-0.707,  1.   ]])
    """
    xp = namespace(latents=latents, logits=logits, targets=targets)
    r, z, known = _factors(xp, latents, logits, targets, loss, label_smoothing)
    with quiet(xp):
        z = xp.where(known[:, None], z, xp.nan)
        return _products(xp, r, z)


def mean_pairwise_alignment(
    *,
    latents: Array,
    logits: Array,
    targets: Array,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
) -> Array:
    r"""Return the mean of `pairwise_alignment` over all pairs of two samples.

    .. math:: \frac{\|\sum_i \hat g_i\|^2 - \sum_i \|\hat g_i\|^2}{N (N - 1)},
       \qquad \hat g_i = \frac{\nabla \mathcal L_i}{\|\nabla \mathcal L_i\|}

    High: the samples teach the head the same. The share that is due to their common class and
    that of the others are in `class_alignment`.

    Parameters
    ----------
    latents, logits, targets, loss, label_smoothing
        As those of `pairwise_alignment`.

    Returns
    -------
    0-D array
        In [-1/(N-1), 1]. Samples that are not finite are left out, those whose gradient vanishes
        count as 0; nan where fewer than two are left.

    Raises
    ------
    TypeError, ValueError
        As `pairwise_alignment`.

    Notes
    -----
    Cost: O(N min(CD, N (C + D))); the sum of the gradients is one (C, D) matrix, and where the
    (N, N) matrix is cheaper it is taken. Both are smaller than the inputs. Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. B.3 and Fig. 14.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import mean_pairwise_alignment
    >>> latents, logits = np.asarray([[1.0, 0.0], [1.0, 1.0]]), np.zeros((2, 2))
    >>> given = {"latents": latents, "logits": logits, "targets": np.asarray([0, 1])}
    >>> mean_pairwise_alignment(**given).round(3)
    np.float64(-0.707)
    """
    xp = namespace(latents=latents, logits=logits, targets=targets)
    r, z, known = _factors(xp, latents, logits, targets, loss, label_smoothing)
    rows, classes, features = r.shape[0], r.shape[1], z.shape[1]
    with quiet(xp):
        r, z = xp.where(known[:, None], r, 0.0), xp.where(known[:, None], z, 0.0)
        if classes * features < rows * (classes + features):
            total = r.T @ z
            square = xp.vecdot(total, total)
        else:
            square = xp.sum((r @ r.T) * (z @ z.T), axis=1)
        own = xp.vecdot(r, r) * xp.vecdot(z, z)
        count = xp.sum(xp.astype(known, r.dtype))
        mean = (xp.sum(square) - xp.sum(own)) / (count * (count - 1.0))
        return xp.where(count > 1.0, xp.clip(mean, -1.0, 1.0), xp.nan)


def class_alignment(pairs: Array, targets: Array, num_classes: int) -> Array:
    """Return the mean alignment of the samples of each class with those of each other.

    On the diagonal: between different samples of one class.

    Parameters
    ----------
    pairs : array of shape (N, N)
        What `pairwise_alignment` returned, or any other matrix of pairs.
    targets : integer array of shape (N,)
        Class numbers in 0..C-1.
    num_classes : int
        C.

    Returns
    -------
    array of shape (C, C)
        Means over the pairs of two samples that are finite; nan where there is none.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit; on NumPy arrays also on labels out of range.

    Notes
    -----
    Elsewhere a label out of range is left out. Cost: O(N² C + N C²). Runs under jit.

    References
    ----------
    Fort et al., "Stiffness: A New Perspective on Generalization in Neural Networks", 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import class_alignment
    >>> pairs = np.asarray([[1.0, 0.5, -0.2], [0.5, 1.0, -0.4], [-0.2, -0.4, 1.0]])
    >>> class_alignment(pairs, np.asarray([0, 0, 1]), 2).round(3)
    array([[ 0.5, -0.3],
           [-0.3,  nan]])
    """
    xp = namespace(pairs=pairs, targets=targets)
    check_matrix(xp, "pairs", pairs, shape="(N, N)")
    num_classes = check_positive_int("num_classes", num_classes)
    rows = pairs.shape[0]
    if pairs.shape[1] != rows:
        raise ValueError(
            f"`pairs` must be (N, N), got shape {tuple(pairs.shape)}; it has one row and one "
            "column a sample"
        )
    check_labels(xp, targets, rows, max(num_classes, 2))
    dtype, labels = result_dtype(xp, pairs), xp.astype(targets, index_dtype(xp, targets))
    numbers = xp.arange(rows, dtype=labels.dtype, device=device_of(pairs))
    counted = xp.isfinite(pairs) & ~one_hot_mask(xp, numbers, rows)
    member = xp.astype(one_hot_mask(xp, labels, num_classes), dtype)
    total = member.T @ xp.where(counted, xp.astype(pairs, dtype), 0.0) @ member
    count = member.T @ xp.astype(counted, dtype) @ member
    return xp.where(count > 0, total / xp.where(count > 0, count, 1.0), xp.nan)


def _products(xp: Any, r: Array, z: Array) -> Array:
    """Return the clipped products of both Gram matrices."""
    if not is_host(r):
        return xp.clip((r @ r.T) * (z @ z.T), -1.0, 1.0)
    # NumPy computes one triangle of a product with its own transpose, but copies it slowly.
    rows = r.shape[0]
    out = xp.empty((rows, rows), dtype=r.dtype)  # on the host
    for start in range(0, rows, BLOCK_ROWS):
        stop = start + BLOCK_ROWS
        block = (r[start:stop, :] @ r[start:, :].T) * (z[start:stop, :] @ z[start:, :].T)
        block = xp.clip(block, -1.0, 1.0)
        out[start:stop, start:] = block
        out[start:, start:stop] = block.T
    return out


def _factors(
    xp: Any, latents: Array, logits: Array, targets: Array, loss: Loss, smoothing: float
) -> _Factors:
    check_matrix(xp, "logits", logits, shape="(N, C)")
    rows, classes = logits.shape
    check_matrix(xp, "latents", latents, shape="(N, D)", rows=rows)
    check_loss(xp, targets, rows, classes, loss, smoothing)
    dtype = result_dtype(xp, latents, logits)
    hard = loss == "cross_entropy" and targets.ndim == 1 and smoothing == 0.0
    targets, known = _indexable(xp, targets, classes)

    def part(logit: Array, target: Array) -> tuple[Array, Array, Array]:
        logit = xp.astype(logit, dtype, copy=False)
        if hard:
            # r / (1 - p_y), in which nothing cancels.
            _, weights, _ = _others(xp, logit, target)
            share = weights / -row_sum(xp, weights)[:, None]
            direction = replace_at(xp, share, target, 1.0)
        else:
            direction, _ = _scaled_residual(xp, logit, target, loss, smoothing)
        return direction, norm(xp, direction), xp.all(xp.isfinite(logit), axis=1)

    r, length, finite = map_rows(part, xp, logits, targets, row_bytes=4 * classes)
    z = xp.astype(latents, dtype, copy=False)
    size = map_rows(partial(norm, xp), xp, z, row_bytes=4 * z.shape[1])
    finite = finite & xp.isfinite(length) & xp.isfinite(size)
    with quiet(xp):
        # Both lengths go into the narrower factor.
        z = divide_or_zero(xp, divide_or_zero(xp, z, size[:, None]), length[:, None])
    return _Factors(r, z, finite if known is None else finite & known)
