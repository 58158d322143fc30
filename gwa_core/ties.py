"""Which epochs a rule cannot tell from the one that it keeps: standard errors of its signal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from gwa_core._lib.array import Array, constant, namespace, quiet, result_dtype
from gwa_core._lib.checks import check_choice, check_scores
from gwa_core.history import EpochSummary, see
from gwa_core.moments import Moments
from gwa_core.rules import Rule, warmup_steps
from gwa_core.score import BETA, Summary, summarize
from gwa_core.stopping import DEFAULT_RULE, EarlyStopper

__all__ = ["near_ties", "signal_standard_error"]

Signal: TypeAlias = Literal["separation", "bimodality", "gwa"]
# A difference of more standard errors than this is more than chance.
LARGEST = 2.0


def signal_standard_error(
    scores_or_moments: Array | Moments, *, signal: Signal = "separation", beta: float = BETA
) -> Array:
    r"""Return the standard error of a signal of one epoch, from its N scores alone.

    .. math:: \mathrm{SE}^2 = \frac 1 N \operatorname{Var} \psi(u), \qquad
              \psi = a_1 u + a_2 u^2 + a_3 u^3 + a_4 u^4, \qquad u = (\gamma - \bar\gamma) / \sigma

    with the influence ψ of a score on the signal (delta method). For separation it is
    :math:`\bar\gamma^{1/4} \left(\psi_b + \tfrac 1 4 b \sigma u / \bar\gamma\right)`, with
    bimodality b.

    Parameters
    ----------
    scores_or_moments : array of shape (N,) or Moments
        Alignment scores of one epoch (nan counts nowhere), or their moments.
    signal : {"separation", "bimodality", "gwa"}
        A field of `Summary`, default "separation".
    beta : float
        The constant of Eq. 2, default 1.2.

    Returns
    -------
    0-D array
        At least 0, in the unit of the signal. nan for constant scores, and for separation where the
        mean is not positive. In the dtype of the scores but at least float32; for moments in theirs.

    Raises
    ------
    TypeError, ValueError
        If the scores are not a floating vector, `signal` is unknown, or `beta` is not finite.

    See Also
    --------
    near_ties : Which epochs this error cannot tell from the one that a rule keeps.

    Notes
    -----
    It takes moments up to the eighth, so a `Summary` is not enough. It is the sampling error of N
    scores, given the run: how another seed or the next batches would differ is not in it. Cost: O(N)
    for scores, O(1) for moments. Runs under jit.

    References
    ----------
    Hampel, JASA 1974, for the influence of a sample. The signals: Hölzl, Rueckert, Kaissis, NeurIPS
    2025, Definition 2.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import signal_standard_error
    >>> scores = np.random.default_rng(0).uniform(size=10_000)
    >>> float(signal_standard_error(scores)).__round__(4)
    0.0031
    """
    check_choice("signal", signal, get_args(Signal))
    if signal == "gwa":
        return summarize(scores_or_moments, beta=beta).gwa_standard_error
    if isinstance(scores_or_moments, Moments):
        moments = scores_or_moments
        dtype = moments.mean.dtype
    else:
        check_scores(
            namespace(scores_or_moments=scores_or_moments), "scores_or_moments", scores_or_moments
        )
        moments = Moments.from_batch(scores_or_moments)
        dtype = result_dtype(namespace(x=scores_or_moments), scores_or_moments)
    xp = namespace(moments=moments.mean)
    with quiet(xp):
        return xp.astype(_error(xp, moments, of_separation=signal == "separation"), dtype)


def _error(xp: Any, moments: Moments, *, of_separation: bool) -> Array:
    u = [None, None, None, *(moments._standardized(k) for k in range(3, 9))]
    zero, one, nan = (constant(xp, x, moments.mean) for x in (0.0, 1.0, xp.nan))
    third, fourth = u[3], u[4]
    # The influence of a score on the skewness is u^3 - 3 u - 3/2 u3 u^2, and on the kurtosis
    # u^4 - 4 u3 u - 2 u4 u^2, without constants.
    bimodality = (third * third + 1.0) / fourth
    by_skewness = 2.0 * third / fourth
    by_kurtosis = -bimodality / fourth
    a = [
        -3.0 * by_skewness - 4.0 * third * by_kurtosis,
        -1.5 * third * by_skewness - 2.0 * fourth * by_kurtosis,
        by_skewness,
        by_kurtosis,
    ]
    if of_separation:
        positive = moments.mean > 0
        mean = xp.where(positive, moments.mean, one)
        root = xp.where(positive, xp.sqrt(xp.sqrt(mean)), nan)
        a = [root * x for x in a]
        a[0] = a[0] + 0.25 * root * bimodality * xp.sqrt(moments.m2) / mean
    # The mean of u is 0, and that of its square 1.
    first = [zero, one, third, fourth]
    second = {2: one, **{k: u[k] for k in range(3, 9)}}
    square, mean_of_terms = zero, zero
    for i in range(4):
        mean_of_terms = mean_of_terms + a[i] * first[i]
        for j in range(4):
            square = square + a[i] * a[j] * second[i + j + 2]
    square = square - mean_of_terms * mean_of_terms
    known = (square == square) & (moments.count > 0)
    safe = xp.where(square > 0, square, zero) / xp.where(moments.count > 0, moments.count, one)
    return xp.where(known, xp.sqrt(safe), nan)


def near_ties(
    history: Iterable[Summary | EpochSummary | Mapping[str, Any]],
    standard_errors: Iterable[float],
    rule: Rule | None = None,
    *,
    total_steps: int | None = None,
) -> np.ndarray:
    r"""Return the epochs that are about as good as the one that a rule keeps.

    .. math:: |s_t - s_*| \le 2 \sqrt{\mathrm{SE}_t^2 + \mathrm{SE}_*^2}

    Parameters
    ----------
    history : iterable of EpochSummary, Summary or mapping, length T
        Epochs in order. A mapping may hold further columns, such as a validation metric.
    standard_errors : iterable of float, length T
        Of the signal that the rule watches, at least 0; nan where unknown.
    rule : Rule, optional
        Such as ``MaxGWA()``; default ``MaxSeparation()``. ``rule.signal`` is the column.
    total_steps : int, optional
        Number of epochs of the whole run; default the length of the history.

    Returns
    -------
    boolean numpy.ndarray of shape (T,)
        True for the epoch that the rule keeps, and for those that it could have kept and whose signal
        is within two standard errors of the difference. All False where it keeps none.

    Raises
    ------
    ValueError
        If the history is empty or lacks the column, or `standard_errors` are not T numbers of at
        least 0.

    See Also
    --------
    signal_standard_error : The standard errors, from the scores of an epoch.

    Notes
    -----
    A rule could keep an epoch after its warm-up that was not cut short, has a finite signal, and, for
    GWA, is healthy; nothing counts after the rule has stopped. An epoch without a standard error is
    tied with none. Where a rule smooths, its values are not those of one epoch, and only the kept
    epoch is True.

    Epochs count as independent. They are not: the same samples are in both, and the error of the
    difference is smaller for that. The noise of the training, from one epoch to the next, makes it
    larger, and no scores of one epoch show it. Cost: O(T).

    References
    ----------
    The rules: Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.1.

    Examples
    --------
    >>> from gwa_core import near_ties
    >>> rows = [{"separation": value} for value in (0.9, 0.30, 0.42, 0.43, 0.36)]
    >>> near_ties(rows, [0.01] * 5, total_steps=10)
    array([False, False,  True,  True, False])
    """
    rule = DEFAULT_RULE if rule is None else rule
    records = list(history)
    if not records:
        raise ValueError("`history` must have at least one epoch, got none")
    errors = np.asarray(list(standard_errors), dtype=np.float64)
    if errors.shape != (len(records),) or np.any(errors < 0):
        raise ValueError(
            f"`standard_errors` must be {len(records)} numbers of at least 0, one for each epoch, got "
            f"{errors.tolist()}"
        )
    step, values, could = _judge(records, rule, total_steps)
    tied = np.zeros(len(records), bool)
    if step is not None:
        if getattr(rule, "smoothing", 1) == 1:
            # A comparison with nan is False.
            with np.errstate(invalid="ignore"):
                within = np.abs(values - values[step]) <= LARGEST * np.hypot(errors, errors[step])
            tied = could & within
        tied[step] = True
    return tied


def _judge(
    records: Sequence[Any], rule: Rule, total_steps: int | None
) -> tuple[int | None, np.ndarray, np.ndarray]:
    """Return the epoch that the rule keeps, its signal at each, and which of them it could keep."""
    total = len(records) if total_steps is None else total_steps
    stopper = EarlyStopper(rule, total_steps=total)
    first = warmup_steps(getattr(rule, "warmup", 0), total)
    values, could, fullest = [], [], 0.0
    for position, record in enumerate(records):
        name = f"history[{position}]"
        seen = see(name, record, rule.signal, fullest, watcher=type(rule).__name__)
        fullest, waits = seen.fullest, not stopper.should_stop
        stopper._observe(name, record)
        # A rule that waits for a dip keeps nothing before it.
        waits = waits and stopper._state.get("dip_over", True)
        values.append(seen.value)
        could.append(waits and position >= first and seen.known and not seen.short)
    return stopper.best_step, np.asarray(values), np.asarray(could, dtype=bool)
