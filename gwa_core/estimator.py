"""Estimators of App. A.1: a forgetting window, and the bias between online and offline."""

from __future__ import annotations

from gwa_core._lib.array import Array, constant, namespace
from gwa_core._lib.checks import check_scores
from gwa_core.moments import Moments

__all__ = ["exponential_window", "glass_delta"]


def exponential_window(window: Moments, scores: Array, *, decay: float = 0.99) -> Moments:
    r"""Add a batch to moments that forget: each call shrinks the weight of the past.

    .. math:: n \leftarrow \lambda n + b

    Parameters
    ----------
    window : Moments
        The window so far; begin with ``Moments.empty(scores)``.
    scores : array of shape (N,)
        Alignment scores of a batch.
    decay : float
        λ in (0, 1): the window spans about 1 / (1 - λ) batches, default 100.

    Returns
    -------
    Moments
        To be given to `summarize`. Runs under jit and scan.

    Raises
    ------
    ValueError
        If `decay` is out of range or the scores are not a floating vector.

    Notes
    -----
    The count, and with it the standard error, is that of the weights still held. Cost: O(N).

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. A.1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import Moments, exponential_window
    >>> batch = np.asarray([0.1, 0.3])
    >>> window = exponential_window(Moments.empty(batch), batch, decay=0.5)
    >>> float(exponential_window(window, batch, decay=0.5).count)
    3.0
    """
    if not 0.0 < decay < 1.0:
        raise ValueError(f"`decay` must be in (0, 1), got {decay!r}")
    check_scores(namespace(scores=scores), "scores", scores)
    return window.scale_count(decay).merge(Moments.from_batch(scores))


def glass_delta(online: Array | Moments, offline: Array | Moments) -> Array:
    r"""Return the effect size between online and offline scores of an epoch.

    .. math:: \Delta = \frac{\bar\gamma_{\mathrm{online}} - \bar\gamma_{\mathrm{offline}}}
       {s_{\mathrm{offline}}}

    Parameters
    ----------
    online, offline : array of shape (N,) or Moments
        Scores with the weights of each step, and with those at the end of the epoch.

    Returns
    -------
    0-D array
        Signed, in standard deviations of the offline scores; the paper finds 0.02 to 0.12.

    Raises
    ------
    TypeError, ValueError
        If scores are not floating vectors.

    Notes
    -----
    s is the sample standard deviation (N - 1) of the offline scores, Glass's control group. nan
    where they are constant. Cost: O(N). Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. A.1; Glass, McGaw and Smith, 1981.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import glass_delta
    >>> float(glass_delta(np.asarray([0.2, 0.4]), np.asarray([0.1, 0.3]))).__round__(3)
    0.707
    """
    a, b = _moments("online", online), _moments("offline", offline)
    xp = namespace(online=a.mean, offline=b.mean)
    one, nan = constant(xp, 1.0, b.mean), constant(xp, xp.nan, b.mean)
    known = (b.count > 1) & (b.m2 > 0)
    sample = xp.where(known, b.m2 * b.count / xp.where(known, b.count - 1.0, one), one)
    return xp.where(known, (a.mean - b.mean) / xp.sqrt(sample), nan)


def _moments(name: str, scores: Array | Moments) -> Moments:
    if isinstance(scores, Moments):
        return scores
    check_scores(namespace(**{name: scores}), name, scores)
    return Moments.from_batch(scores)
