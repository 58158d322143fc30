"""Length of the error vector (EL2N)."""

from __future__ import annotations

from gwa_core._lib.array import Array, map_rows, namespace, result_dtype
from gwa_core._lib.checks import Loss, check_loss, check_matrix
from gwa_core._lib.numerics import norm
from gwa_core.residual import _scaled_residual
from gwa_core.signals._softmax import softmax_rows
from gwa_core.targets import _indexable

__all__ = ["el2n"]


def el2n(
    *, logits: Array, targets: Array, loss: Loss = "cross_entropy", label_smoothing: float = 0.0
) -> Array:
    r"""Return the length of each sample's error vector.

    .. math:: \mathrm{EL2N}_i = \|t_i - \operatorname{softmax}(\ell_i)\|_2

    High is suspicious, or hard.

    Parameters
    ----------
    logits : array of shape (N, C)
        Outputs of the head. Half precision is raised to float32.
    targets : array of shape (N,) or (N, C)
        Class numbers in 0..C-1, or probabilities.
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1), as in the loss, default 0.

    Returns
    -------
    array of shape (N,)
        In [0, sqrt(2)] for softmax and class numbers; nan where the logits are not finite or the
        label is none of the classes.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit; on NumPy arrays also on target values.

    Notes
    -----
    Keeps its digits where softmax saturates, see `residual`. Cost: O(NC). Runs under jit.

    References
    ----------
    Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import el2n
    >>> el2n(logits=np.asarray([[0.0, 0.0]]), targets=np.asarray([1])).round(4)
    array([0.7071])
    """
    xp = namespace(logits=logits, targets=targets)
    several = logits.ndim != 2 or logits.shape[1] > 1
    if loss == "cross_entropy" and targets.ndim == 1 and label_smoothing == 0.0 and several:
        rows = softmax_rows(logits, targets)
        return rows.masked(rows.residual_norm)
    check_matrix(xp, "logits", logits, shape="(N, C)")
    count, classes = logits.shape
    check_loss(xp, targets, count, classes, loss, label_smoothing)
    dtype = result_dtype(xp, logits)
    targets, known = _indexable(xp, targets, classes)

    def part(logits: Array, targets: Array) -> Array:
        logits = xp.astype(logits, dtype, copy=False)
        direction, size = _scaled_residual(xp, logits, targets, loss, label_smoothing)
        length = norm(xp, direction) * xp.squeeze(size, axis=1)
        return xp.where(xp.all(xp.isfinite(logits), axis=1), length, xp.nan)

    length = map_rows(part, xp, logits, targets, row_bytes=4 * classes)
    return length if known is None else xp.where(known, length, xp.nan)
