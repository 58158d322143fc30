"""Whether the closed form fits the loss that was used: scores of both, beside each other."""

from __future__ import annotations

from typing import NamedTuple

from gwa_core._lib.array import Array, namespace, quiet, result_dtype, scalar
from gwa_core._lib.checks import Loss, check_vector
from gwa_core._lib.numerics import divide_or_zero, norm
from gwa_core.alignment import alignment_from_logits
from gwa_core.residual import residual

__all__ = ["Agreement", "score_agreement"]

# The closed form and the gradient may differ by this share of the largest score that a row allows.
TOLERANCE = 1e-3

# A row whose rounding allows more than this says nothing.
DOUBTFUL = 0.5

# One row in a hundred may differ.
SHARE = 0.01


class Agreement(NamedTuple):
    """How far scores from gradients and scores of the closed form agree.

    Parameters
    ----------
    rows : 0-D array
        Rows that can tell: rounding and saturation do not explain a difference there.
    differing : 0-D array
        Rows of these whose two scores differ.
    largest : 0-D array
        Largest difference of the two scores in these rows, 0 where there is none.
    """

    rows: Array
    differing: Array
    largest: Array

    @property
    def holds(self) -> Array:
        """Whether at most one row in a hundred differs, a 0-D boolean array."""
        return self.differing <= SHARE * self.rows


def score_agreement(
    scores: Array,
    *,
    logits: Array,
    latent_norms: Array,
    weight_norm: Array,
    targets: Array,
    bias: Array | None = None,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
    where: Array | None = None,
) -> Agreement:
    r"""Compare scores from gradients with the closed form of a loss.

    .. math:: |\gamma^g_i - \gamma_i| > \tau_i \frac{\|\ell_i - b\|}{\|z_i\|\,\|W\|},
       \qquad \tau_i = 10^{-3} + 2\epsilon\,(1 / \|r_i\| + \max_c |\ell_{ic}|)

    A temperature, a class prior, labels that are not shifted or another head make them differ.

    Parameters
    ----------
    scores : array of shape (N,)
        What `alignment_from_logit_gradients` returned.
    logits, latent_norms, weight_norm, targets, bias, loss, label_smoothing, where
        See `alignment_from_logits`. The precision :math:`\epsilon` is that of the logits' dtype.

    Returns
    -------
    Agreement
        Three 0-D arrays on the device of the logits.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit; on NumPy arrays also on target values.

    Notes
    -----
    Rows with :math:`\tau_i > 0.5` are not counted: there the gradient has lost its digits. A row
    without a gradient differs if the closed form gives it a residual above 0.1 and other rows have
    a gradient. Cost: O(NC) time and memory, so give a part of a large batch. Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 1 and Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import alignment_from_logit_gradients, residual, score_agreement
    >>> logits, targets = np.asarray([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]]), np.asarray([0, 1])
    >>> norms = {"latent_norms": np.ones(2), "weight_norm": 4.0}
    >>> for temperature in (1.0, 0.5):
    ...     g = -residual(logits=logits / temperature, targets=targets)
    ...     scores = alignment_from_logit_gradients(logit_gradients=g, logits=logits, **norms)
    ...     found = score_agreement(scores, logits=logits, targets=targets, **norms)
    ...     print(int(found.rows), int(found.differing), bool(found.holds))
    2 0 True
    2 2 False
    """
    closed = alignment_from_logits(
        logits=logits,
        latent_norms=latent_norms,
        weight_norm=weight_norm,
        targets=targets,
        bias=bias,
        loss=loss,
        label_smoothing=label_smoothing,
        where=where,
    )
    xp = namespace(scores=scores, logits=logits)
    check_vector(xp, "scores", scores, logits.shape[0])
    dtype = result_dtype(xp, scores, closed)
    eps = float(xp.finfo(logits.dtype).eps)
    r = residual(logits=logits, targets=targets, loss=loss, label_smoothing=label_smoothing)
    logits = xp.astype(logits, dtype)
    norms = xp.astype(latent_norms, dtype) * scalar(xp, "weight_norm", weight_norm, logits, dtype)
    with quiet(xp):
        size = norm(xp, xp.astype(r, dtype))
        slack = TOLERANCE + 2.0 * eps * (1.0 / size + xp.max(xp.abs(logits), axis=1))
        largest = divide_or_zero(xp, norm(xp, logits if bias is None else logits - bias), norms)
        telling = (slack < DOUBTFUL) & (largest > 0) & xp.isfinite(closed)
        present = telling & xp.isfinite(scores)
        # A gradient of 0 where others have one.
        absent = telling & xp.isnan(scores) & (size > 0.1) & xp.any(present)
        difference = xp.where(present, xp.abs(scores - closed), xp.zeros_like(size))
        differs = (present & (difference > slack * largest)) | absent
        return Agreement(
            rows=xp.sum(xp.astype(present | absent, dtype)),
            differing=xp.sum(xp.astype(differs, dtype)),
            largest=xp.max(difference),
        )
