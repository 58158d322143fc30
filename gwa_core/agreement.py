"""Whether the closed form fits the loss that was used: scores of both, beside each other."""

from __future__ import annotations

from typing import Any, NamedTuple

from gwa_core._lib.array import Array, constant, namespace, quiet, result_dtype, scalar
from gwa_core._lib.checks import Loss, check_vector
from gwa_core._lib.numerics import divide_or_zero, log_sigmoid, norm
from gwa_core.alignment import alignment_from_logits
from gwa_core.residual import _scaled_residual
from gwa_core.targets import _indexable, _soft_targets

__all__ = ["Agreement", "score_agreement"]

# The closed form and the gradient may differ by this share of the terms that make a score.
TOLERANCE = 1e-3

# A row whose rounding is a larger share of its terms says nothing.
DOUBTFUL = 0.5

# The gradient of a mean over so many rows, without a loss scale, is allowed for in float16.
MANY_ROWS = 4096

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

    .. math:: |\gamma^g_i - \gamma_i| > \frac{\sum_c (10^{-3}\,|r_{ic}| + e_{ic})\,|a_{ic}|}
       {\|r_i\|\,\|z_i\|\,\|W\|} + \frac{\|e_i\|}{\|r_i\|}\,|\gamma_i|, \qquad a_i = \ell_i - b

    A temperature, a class prior, labels that are not shifted or another head make them differ.

    Parameters
    ----------
    scores : array of shape (N,)
        What `alignment_from_logit_gradients` returned.
    logits : array of shape (N, C)
        Outputs of the linear head, bias included. Half precision is raised to float32.
    latent_norms : array of shape (N,)
        Euclidean norm of the input of the head, one a sample.
    weight_norm : 0-D array or float
        Frobenius norm of the head's weight at the forward pass.
    targets : array of shape (N,) or (N, C)
        Class numbers in 0..C-1, or probabilities, as `alignment_from_logits` takes them.
    bias : array of shape (C,) or (N, C), optional
        Bias of the head, to be taken off the logits.
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1): the share of the target that is spread evenly, default 0.
    where : boolean array of shape (N,), optional
        True for samples that count; the others say nothing.

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
    The rounding :math:`e_{ic} \approx 2\epsilon\,(t_{ic} + p_{ic}(1 - \log p_{ic}))` is that of targets
    and probabilities in the dtype of the logits, which a gradient shares. Rows where it is more than
    half of the terms are not counted: there the gradient has lost its digits. A row without a
    gradient differs if the closed form gives it a residual above 0.1 and other rows have a gradient.
    In float16 one of these must be larger, as a loss scale takes the largest out of range. Cost:
    O(NC) time and memory, so give a part of a large batch. Runs under jit.

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
    given = logits.dtype
    # A loss may be computed in float32 of logits in float64.
    eps = max(float(xp.finfo(given).eps), float(xp.finfo(xp.float32).eps))
    # A mean over many rows takes this much of a probability below the range of float16.
    lost = MANY_ROWS * float(xp.finfo(given).smallest_normal) * eps
    targets, _ = _indexable(xp, targets, logits.shape[1])
    logits = xp.astype(logits, dtype)
    product = logits if bias is None else logits - xp.astype(bias, dtype)
    norms = xp.astype(latent_norms, dtype) * scalar(xp, "weight_norm", weight_norm, logits, dtype)
    with quiet(xp):
        r, scale = _scaled_residual(xp, logits, targets, loss, label_smoothing)
        length = norm(xp, r)
        share = 1.0 / logits.shape[1] if loss == "cross_entropy" else 0.5
        soft = _soft_targets(xp, targets, logits, label_smoothing, share)
        error = 2.0 * (eps * soft + _rounding(xp, logits, loss, eps, lost)) / scale
        product = xp.abs(product)
        terms = xp.vecdot(xp.abs(r), product) / length
        # The error of the product, and that of the length.
        rounding = xp.vecdot(error, product) / length
        allowed = divide_or_zero(xp, TOLERANCE * terms + rounding, norms)
        allowed = allowed + xp.abs(closed) * norm(xp, error) / length
        telling = (rounding < DOUBTFUL * terms) & (norms > 0) & xp.isfinite(closed)
        present = telling & xp.isfinite(scores)
        # A gradient of 0 where others have one.
        size = length * xp.squeeze(scale, axis=1)
        absent = telling & xp.isnan(scores) & (size > 0.1) & xp.any(present)
        if float(xp.finfo(given).max) < 1e5:
            # A loss scale takes the largest gradients beyond float16, where others arrive.
            peak = xp.max(xp.abs(r), axis=1) * xp.squeeze(scale, axis=1)
            absent = absent & (peak < 0.99 * xp.max(xp.where(present, peak, xp.zeros_like(peak))))
        difference = xp.where(present, xp.abs(scores - closed), xp.zeros_like(size))
        differs = (present & (difference > allowed)) | absent
        return Agreement(
            rows=xp.sum(xp.astype(present | absent, dtype)),
            differing=xp.sum(xp.astype(differs, dtype)),
            largest=xp.max(difference),
        )


def _rounding(xp: Any, logits: Array, loss: Loss, eps: float, lost: float) -> Array:
    """Return how much the probabilities in a gradient may be wrong."""
    top = xp.max(logits, axis=1, keepdims=True)
    single = float(xp.finfo(xp.float32).eps)
    if loss == "cross_entropy":
        depth = logits - top
        log_p = depth - xp.log(xp.sum(xp.exp(depth), axis=1, keepdims=True))
    else:
        log_p = log_sigmoid(xp, logits)
    p = xp.exp(log_p)
    # A logarithm is rounded by its own size, and in float32 by that of the logits before.
    return p * (eps * (1.0 - log_p) + single * xp.abs(top)) + xp.minimum(p, constant(xp, lost, p))
