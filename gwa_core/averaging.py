"""The average of the weights of a run: how much each epoch counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gwa_core._lib.array import Array, namespace, quiet, result_dtype
from gwa_core._lib.checks import check_positive_int
from gwa_core.history import EpochSummary, see
from gwa_core.rules import warmup_steps
from gwa_core.score import Summary

__all__ = ["EpochAverage", "average_shares", "update_share"]

STATE_VERSION = 1


class EpochAverage:
    r"""Say how far a running mean of the weights moves to the newest weights.

    .. math:: \bar\theta_t = \bar\theta_{t-1} + a_t (\theta_t - \bar\theta_{t-1}),
              \qquad a_t = s_t^p / \sum_{u \le t} s_u^p

    At the end, epoch t has the share :math:`s_t^p / \sum_u s_u^p` in the mean.

    Parameters
    ----------
    power : float
        The exponent p, at least 0, default 10.
    warmup : float or int
        A fraction of all steps in [0, 1), default 0.1, or a number of steps. Weights of the warm-up
        do not count.
    total_steps : int, optional
        Number of steps of the whole run, one for each record; needed for a fractional warm-up.
    signal : str
        The column of a record that is s, default "separation"; larger is better.

    Attributes
    ----------
    step : int
        Records so far.
    counted : int
        Those whose weights count in the mean.

    Raises
    ------
    ValueError
        If `power` is negative or not finite, `warmup` is neither a fraction nor a number of steps,
        or `total_steps` is missing under a fractional warm-up.

    See Also
    --------
    average_shares : The final shares of a finished run.

    Notes
    -----
    At power 0 the mean is plain, as in stochastic weight averaging. The larger the power, the nearer
    the mean is to the weights of the epoch of the largest signal.

    Until an epoch counts, the share is 1 and the mean is the newest weights. After that, an epoch
    that does not count has the share 0. Four kinds of epochs do not count: those of the warm-up;
    those that were cut short (see `EarlyStopper.observe`); those whose signal is not finite; and
    those whose signal is at most 0.

    Sums are kept as logarithms, so that signals of 1e-3 to the tenth power do not underflow.
    Cost: O(1) an epoch.

    References
    ----------
    Izmailov et al., UAI 2018, for the plain mean. The signal: Hölzl, Rueckert, Kaissis, NeurIPS
    2025, Definition 2 and App. A.4.

    Examples
    --------
    >>> from gwa_core import EpochAverage
    >>> average = EpochAverage(power=1, warmup=1)
    >>> mean = 0.0
    >>> for weights, separation in [(5.0, 0.9), (1.0, 0.2), (2.0, 0.6)]:
    ...     mean += average.share({"separation": separation}) * (weights - mean)
    >>> round(mean, 3)  # (0.2 * 1 + 0.6 * 2) / (0.2 + 0.6)
    1.75
    """

    def __init__(
        self,
        power: float = 10.0,
        warmup: float = 0.1,
        *,
        total_steps: int | None = None,
        signal: str = "separation",
    ) -> None:
        if total_steps is not None:
            total_steps = check_positive_int("total_steps", total_steps)
        self.power = _check_power(power)
        self.warmup = warmup
        self.total_steps = total_steps
        self.signal = signal
        self._first = warmup_steps(warmup, total_steps)
        self._log_total = -math.inf
        self._fullest = 0.0
        self.step = 0
        self.counted = 0

    def share(self, record: Summary | EpochSummary | Mapping[str, Any]) -> float:
        """Take in the next record and return the share of the weights at its end.

        Parameters
        ----------
        record : Summary, EpochSummary or mapping
            The summary of an epoch, or a mapping of its fields and further columns.

        Returns
        -------
        float
            In [0, 1]: ``mean += share * (weights - mean)``.

        Raises
        ------
        ValueError
            If the record lacks the column `signal`. The average is unchanged then.
        """
        seen = see("record", record, self.signal, self._fullest, watcher="EpochAverage")
        counts = self.step >= self._first and seen.known and not seen.short
        share, log_total = update_share(
            np.asarray(self._log_total), np.asarray(seen.value), power=self.power, counts=counts
        )
        self.step += 1
        self.counted += counts and seen.value > 0
        self._log_total, self._fullest = float(log_total), seen.fullest
        return float(share)

    def _options(self) -> dict[str, Any]:
        return {"power": self.power, "warmup": self.warmup, "signal": self.signal}

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain Python values, with a version."""
        return {
            "version": STATE_VERSION,
            "options": self._options(),
            "total_steps": self.total_steps,
            # JSON has no infinity.
            "log_total": self._log_total if self.counted else None,
            "fullest": self._fullest,
            "step": self.step,
            "counted": self.counted,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of an average with the same options.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        ValueError
            If it is of another version or other options; the average is unchanged then.
        """
        if state.get("version") != STATE_VERSION or state.get("options") != self._options():
            raise ValueError(
                f"`state` must be of version {STATE_VERSION} and options {self._options()}, got "
                f"version {state.get('version')!r} and options {state.get('options')}; "
                "make the average with the options that the run began with"
            )
        total = state["log_total"]
        self.total_steps = state["total_steps"]
        self._first = warmup_steps(self.warmup, self.total_steps)
        self._log_total = -math.inf if total is None else total
        self._fullest = state["fullest"]
        self.step, self.counted = state["step"], state["counted"]


def update_share(
    log_total: Array, value: Array, *, power: float = 10.0, counts: Array | bool = True
) -> tuple[Array, Array]:
    r"""Return the share of the newest weights and the new sum, without state: for traced code.

    .. math:: L_t = \log(e^{L_{t-1}} + s_t^p), \qquad a_t = s_t^p e^{-L_t}

    Parameters
    ----------
    log_total : 0-D array
        Logarithm of the sum so far; minus infinity before the first epoch.
    value : 0-D array
        The signal s of the epoch, such as ``summary.separation``.
    power : float
        The exponent p, at least 0, default 10.
    counts : bool or 0-D boolean array
        False in the warm-up and for an epoch that was cut short.

    Returns
    -------
    share : 0-D array
        In [0, 1]; 1 while no epoch counts. In the dtype of the arrays but at least float32.
    log_total : 0-D array
        For the next call.

    Raises
    ------
    ValueError
        If `power` is negative or not finite.

    See Also
    --------
    EpochAverage : The same, with its state and a warm-up.

    Notes
    -----
    A value that is not finite, or at most 0, does not count. Cost: O(1). Runs under jit, and under
    vmap for several runs at once.

    References
    ----------
    See `EpochAverage`.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import update_share
    >>> total = np.asarray(-np.inf)
    >>> for separation in (0.2, 0.6):
    ...     share, total = update_share(total, np.asarray(separation), power=1)
    >>> float(share).__round__(3), float(np.exp(total)).__round__(3)
    (0.75, 0.8)
    """
    power = _check_power(power)
    xp = namespace(log_total=log_total, value=value)
    dtype = result_dtype(xp, log_total, value)
    log_total, value = xp.astype(log_total, dtype), xp.astype(value, dtype)
    with quiet(xp):
        known = xp.isfinite(value) & (value > 0) & counts
        # Both branches of `where` must have a value, for derivatives and for warnings.
        own = xp.where(known, power * xp.log(xp.where(known, value, 1.0)), -math.inf)
        log_total = xp.logaddexp(log_total, own)
        nothing = xp.isinf(log_total)
        share = xp.exp(xp.where(nothing, 0.0, own) - xp.where(nothing, 0.0, log_total))
    return share, log_total


def average_shares(
    history: Iterable[Summary | EpochSummary | Mapping[str, Any]],
    power: float = 10.0,
    warmup: float = 0.1,
    *,
    total_steps: int | None = None,
    signal: str = "separation",
) -> np.ndarray:
    r"""Return the share of each epoch in the average of a finished run.

    .. math:: a_t = s_t^p / \sum_u s_u^p

    Parameters
    ----------
    history : iterable of EpochSummary, Summary or mapping, length T
        Epochs in order. A mapping may hold further columns, such as a validation metric.
    power : float
        The exponent p, at least 0, default 10.
    warmup : float or int
        A fraction of all steps in [0, 1), default 0.1, or a number of steps. Weights of the warm-up
        do not count.
    total_steps : int, optional
        Number of epochs of the whole run; default the length of the history.
    signal : str
        The column of a record that is s, default "separation"; larger is better.

    Returns
    -------
    numpy.ndarray of shape (T,), float64
        In [0, 1]; they sum to one. The mean of checkpoints with these shares is the running mean of
        `EpochAverage`.

    Raises
    ------
    ValueError
        If the history is empty or lacks the column, or options are out of range.

    Notes
    -----
    Cost: O(T).

    References
    ----------
    See `EpochAverage`.

    Examples
    --------
    >>> from gwa_core import average_shares
    >>> rows = [{"separation": value} for value in (0.9, 0.3, 0.6, 0.6)]
    >>> average_shares(rows, power=1, warmup=1).round(2)
    array([0. , 0.2, 0.4, 0.4])
    """
    records = list(history)
    if not records:
        raise ValueError("`history` must have at least one epoch, got none")
    total = len(records) if total_steps is None else total_steps
    average = EpochAverage(power, warmup, total_steps=total, signal=signal)
    moves = np.asarray([average.share(record) for record in records])
    # Each later move takes its share of all that was there before.
    later = np.append(np.cumprod(1.0 - moves[:0:-1])[::-1], 1.0)
    return np.asarray(moves * later)


def _check_power(power: float) -> float:
    power = float(power)
    if not 0 <= power < math.inf:
        raise ValueError(f"`power` must be a finite number of at least 0, got {power}")
    return power
