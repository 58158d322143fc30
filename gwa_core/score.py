"""GWA (Def. 2), its standard error and its health."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gwa_core._lib.array import Array, constant, namespace, quiet, result_dtype
from gwa_core._lib.checks import check_scores
from gwa_core.moments import Moments

__all__ = ["Summary", "gwa_score", "summarize"]

# Eq. 2: minus the excess kurtosis of the uniform distribution.
BETA = 1.2


class Summary(NamedTuple):
    """The distribution of one set of alignment scores in a few numbers.

    Parameters
    ----------
    count : 0-D array
        Scores that counted, N.
    mean, variance, skewness, kurtosis : 0-D array
        Of the population; kurtosis is excess kurtosis, at least -2.
    gwa : 0-D array
        mean / (kurtosis + beta), Eq. 2. Higher is better, where healthy.
    gwa_standard_error : 0-D array
        Standard error of `gwa` from the N scores alone (delta method).
    denominator : 0-D array
        kurtosis + beta. At or below 0 Eq. 2 has passed its pole and means nothing.
    bimodality : 0-D array
        Sarle's coefficient (skewness^2 + 1) / (kurtosis + 3), in (0, 1]: 1/3 for a normal, 5/9
        for a uniform distribution, 1 for two points.
    negative_fraction : 0-D array
        Share of scores below zero.
    separation : 0-D array
        bimodality * max(mean, 0)^(1/4), in [0, 1]: high where the scores are high and fall into
        two groups. `MaxSeparation` watches it.
    """

    count: Array
    mean: Array
    variance: Array
    skewness: Array
    kurtosis: Array
    gwa: Array
    gwa_standard_error: Array
    denominator: Array
    bimodality: Array
    negative_fraction: Array
    separation: Array

    @property
    def healthy(self) -> Array:
        """0-D boolean: the denominator of Eq. 2 is positive. False also where it is nan."""
        return self.denominator > 0


def gwa_score(scores_or_moments: Array | Moments, *, beta: float = BETA) -> Array:
    r"""Return gradient-weight alignment, the kurtosis-corrected mean of alignment scores.

    .. math:: \mathrm{GWA} = \frac{M^{(1)}}{M^{(4)} / (M^{(2)})^2 - 3 + \beta}

    Parameters
    ----------
    scores_or_moments : array of shape (N,) or Moments
        Alignment scores of one epoch (nan counts nowhere), or their moments.
    beta : float
        The constant of Eq. 2, default 1.2.

    Returns
    -------
    0-D array
        Any real number; higher is better. nan for constant scores. In the dtype of the scores
        but at least float32; for moments in theirs.

    Raises
    ------
    TypeError, ValueError
        If the scores are not a floating vector, or `beta` is not finite.

    Notes
    -----
    β = 1.2 does not keep the denominator positive: excess kurtosis reaches -2 for two far modes.
    Look at `summarize` for ``denominator`` and ``healthy``. The kurtosis of a small batch is noisy;
    `exponential_window` steadies it. Cost: O(N). Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 2, Eq. 2.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import gwa_score
    >>> float(gwa_score(np.asarray([0.1, 0.2, 0.3, 0.9]))).__round__(3)
    0.933
    """
    xp, moments, dtype = _prepare(scores_or_moments, beta)
    with quiet(xp):
        return xp.astype(_gwa(xp, moments, beta), dtype)


def summarize(scores_or_moments: Array | Moments, *, beta: float = BETA) -> Summary:
    r"""Return moments, GWA, its standard error and its health.

    The standard error is that of the delta method: with the influence function of GWA, a
    polynomial :math:`a_0 + a_1 c + a_2 c^2 + a_4 c^4` in the centred score c,

    .. math:: \mathrm{SE}^2 = \frac 1 N \, \mathbb E\left[(a_0 + a_1 c + a_2 c^2 + a_4 c^4)^2\right]

    Parameters
    ----------
    scores_or_moments : array of shape (N,) or Moments
        Alignment scores of one epoch (nan counts nowhere), or their moments.
    beta : float
        The constant of Eq. 2, default 1.2.

    Returns
    -------
    Summary
        0-D arrays in the dtype of the scores but at least float32; for moments in theirs.

    Raises
    ------
    TypeError, ValueError
        If the scores are not a floating vector, or `beta` is not finite.

    Notes
    -----
    The standard error is the sampling error of N scores, given the run: it tells whether a change
    from one epoch to the next could be chance, not how another seed would differ. It takes
    moments up to the eighth. Cost: O(N) for scores, O(1) for moments. Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 2, Eq. 2 and 3.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import summarize
    >>> two_points = summarize(np.asarray([-0.3, 0.3] * 50))
    >>> bool(two_points.healthy), float(two_points.denominator).__round__(1)
    (False, -0.8)
    """
    xp, moments, dtype = _prepare(scores_or_moments, beta)
    with quiet(xp):
        summary = _summary(xp, moments, beta)
        return Summary(*(xp.astype(field, dtype) for field in summary))


def _prepare(scores_or_moments: Array | Moments, beta: float) -> tuple[Any, Moments, Any]:
    """Return the namespace, the moments and the dtype of the result."""
    if not math.isfinite(beta):
        raise ValueError(f"`beta` must be finite, got {beta!r}")
    if isinstance(scores_or_moments, Moments):
        mean = scores_or_moments.mean
        return namespace(moments=mean), scores_or_moments, mean.dtype
    xp = namespace(scores_or_moments=scores_or_moments)
    check_scores(xp, "scores_or_moments", scores_or_moments)
    return xp, Moments.from_batch(scores_or_moments), result_dtype(xp, scores_or_moments)


def _summary(xp: Any, moments: Moments, beta: float) -> Summary:
    count = moments.count
    nan = constant(xp, xp.nan, count)
    mean = xp.where(count > 0, moments.mean, nan)
    skewness, kurtosis = moments.skewness, moments.kurtosis
    denominator = kurtosis + beta
    bimodality = (skewness * skewness + 1.0) / (kurtosis + 3.0)
    return Summary(
        count=count,
        mean=mean,
        variance=xp.where(count > 0, moments.variance, nan),
        skewness=skewness,
        kurtosis=kurtosis,
        gwa=_gwa(xp, moments, beta),
        gwa_standard_error=_standard_error(xp, moments, denominator),
        denominator=denominator,
        bimodality=bimodality,
        negative_fraction=xp.where(count > 0, moments.negative_fraction, nan),
        separation=separation(xp, mean, bimodality),
    )


def separation(xp: Any, mean: Array, bimodality: Array) -> Array:
    """Return the bimodality times the fourth root of the mean; 0 for a negative mean."""
    # Not `mean > 0`, which would make 0 of nan.
    positive = xp.where(mean < 0, constant(xp, 0.0, mean), mean)
    return bimodality * xp.sqrt(xp.sqrt(positive))


def _gwa(xp: Any, moments: Moments, beta: float) -> Array:
    """Eq. 2; nan for nothing, for constant scores and at the pole."""
    return _divide_or_nan(xp, moments.mean, moments.kurtosis + beta)


def _divide_or_nan(xp: Any, numerator: Array, denominator: Array) -> Array:
    zero = denominator == 0
    safe = xp.where(zero, constant(xp, 1.0, denominator), denominator)
    return xp.where(zero, constant(xp, xp.nan, numerator), numerator / safe)


def _standard_error(xp: Any, moments: Moments, denominator: Array) -> Array:
    """Delta method in standardised units: with c = σ u, all powers are of order one."""
    sigma = xp.sqrt(moments.m2)
    u3, u4, u5, u6, u8 = (moments._standardized(k) for k in (3, 4, 5, 6, 8))
    pull = _divide_or_nan(xp, moments.mean, denominator * denominator)
    # Influence of a score on the mean is σ u; on the kurtosis u^4 - u4 - 4 u3 u - 2 u4 (u^2 - 1).
    a1 = _divide_or_nan(xp, sigma, denominator) + 4.0 * pull * u3
    a2 = 2.0 * pull * u4
    a4 = -pull
    mean_of_terms = a2 + a4 * u4
    square = (
        a1 * a1
        + a2 * a2 * u4
        + a4 * a4 * u8
        + 2.0 * (a1 * a2 * u3 + a1 * a4 * u5 + a2 * a4 * u6)
        - mean_of_terms * mean_of_terms
    )
    safe = xp.where(square > 0, square, constant(xp, 0.0, square))
    count = xp.where(moments.count > 0, moments.count, constant(xp, xp.nan, square))
    return xp.where(square == square, xp.sqrt(safe / count), constant(xp, xp.nan, square))
