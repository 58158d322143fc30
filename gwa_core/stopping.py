"""Apply a stopping rule: while the training runs, or to a finished history."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from gwa_core._lib.checks import check_integer, check_positive_int
from gwa_core.baseline_rules import BestMetric, GradientDisparity, LabelWave
from gwa_core.history import EpochSummary, see
from gwa_core.rules import Extremum, MaxBimodality, MaxGWA, MaxSeparation, Rule, warmup_steps
from gwa_core.score import Summary

__all__ = ["EarlyStopper", "Selection", "rule_for", "select_epoch", "select_step"]

STATE_VERSION = 2

#: The rule wherever one is optional.
DEFAULT_RULE = MaxSeparation()


class Selection(NamedTuple):
    """The step a rule keeps.

    Parameters
    ----------
    step : int or None
        The step, or None where no step qualifies.
    value : float
        The watched value there (smoothed where the rule smooths); nan without a step.
    reason : str
        Why this step, and why the rule stopped if it did: one sentence.
    """

    step: int | None
    value: float
    reason: str


class EarlyStopper:
    """Apply a rule while the training runs.

    Parameters
    ----------
    rule : Rule, optional
        Such as ``MaxGWA(patience=5)``; default ``MaxSeparation()``.
    total_steps : int, optional
        Number of steps of the whole run, in the unit of `step`; needed for a fractional warm-up,
        which the default rule has.

    Attributes
    ----------
    should_stop : bool
        Whether the rule has stopped.
    best_step : int or None
        The step to keep so far.
    best_value : float
        Its value; nan without one.
    wait_count : int
        Steps since then.
    reason : str
        Why this step, and why it stopped if it did.

    Raises
    ------
    ValueError
        If `total_steps` is not a positive integer, or missing under a fractional warm-up.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import EarlyStopper, GWATracker, MaxGWA
    >>> stopper, tracker = EarlyStopper(MaxGWA(warmup=0, patience=2)), GWATracker()
    >>> for shift in (0.1, 0.3, 0.2, 0.1):
    ...     tracker.update(np.asarray([-0.1, 0.0, 0.05, 0.3]) + shift)
    ...     if stopper.observe(tracker.end_epoch()):
    ...         break
    >>> stopper.best_step, stopper.reason
    (1, 'largest gwa; stopped at step 3: no improvement in 2 steps')
    """

    def __init__(self, rule: Rule | None = None, *, total_steps: int | None = None) -> None:
        if total_steps is not None:
            total_steps = check_positive_int("total_steps", total_steps)
        self.rule = DEFAULT_RULE if rule is None else rule
        self.total_steps = total_steps
        # Raises now what would raise at the first step.
        warmup_steps(getattr(self.rule, "warmup", 0), total_steps)
        self._state = self.rule.begin()
        self._last_step: int | None = None
        self._skipped = 0
        self._short = 0
        self._fullest = 0.0

    def observe(
        self, record: Summary | EpochSummary | Mapping[str, Any], *, step: int | None = None
    ) -> bool:
        """Take in the next epoch and return `should_stop`.

        Parameters
        ----------
        record : Summary, EpochSummary or mapping
            The summary of an epoch, or a mapping of its fields and further columns, such as means of
            signals and metrics: ``{**summary._asdict(), "validation_accuracy": 0.9}``. The rule
            reads the column ``rule.signal``. None and nan are values that are not there.
        step : int, optional
            Default one after the last; steps must increase.

        Returns
        -------
        bool
            Whether to stop. Records after the stop change nothing.

        Raises
        ------
        ValueError
            If the record lacks the column of the rule, or steps do not increase. The stopper is
            unchanged then.

        Notes
        -----
        Three kinds of epochs are never kept: epochs without a finite value; under a rule on ``gwa``,
        epochs whose GWA means nothing (``denominator`` at most 0); and epochs that were cut short,
        with less than nine tenths of the samples ``expected``, or, where that is not known, with
        less than half of the fullest epoch so far.
        """
        return self._observe("record", record, step)

    def _observe(self, name: str, record: Any, step: int | None = None) -> bool:
        rule = self.rule
        seen = see(name, record, rule.signal, self._fullest, watcher=type(rule).__name__)
        step = self._next(step)
        if not self.should_stop:
            self._advance(seen.value, step, known=seen.known, short=seen.short)
            self._fullest = seen.fullest
        return self.should_stop

    def update(self, value: float, *, step: int | None = None, healthy: bool = True) -> bool:
        """Take in the plain value of the next step and return `should_stop`.

        Parameters
        ----------
        value : float
            The watched signal; a value that is not finite is never kept.
        step : int, optional
            Default one after the last; steps must increase.
        healthy : bool
            False for a summary whose GWA means nothing: such a step is never kept.

        Returns
        -------
        bool
            Whether to stop. Values after the stop change nothing.

        Raises
        ------
        ValueError
            If steps do not increase.
        """
        step = self._next(step)
        if not self.should_stop:
            value = float(value)
            self._advance(value, step, known=bool(healthy) and math.isfinite(value), short=False)
        return self.should_stop

    def _next(self, step: int | None) -> int:
        """Return the step of the next value."""
        if step is None:
            return 0 if self._last_step is None else self._last_step + 1
        step = check_integer("step", step)
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(
                f"`step` must be larger than the last one, {self._last_step}, got {step}; "
                "a resumed run must load the state that belongs to its checkpoint"
            )
        return step

    def _advance(self, value: float, step: int, *, known: bool, short: bool) -> None:
        self.rule.advance(self._state, value, step, known and not short, self.total_steps)
        self._last_step = step
        self._short += short
        self._skipped += not (known or short)

    @property
    def should_stop(self) -> bool:
        """Whether the rule has stopped."""
        return bool(self._state["stopped"])

    @property
    def best_step(self) -> int | None:
        """The step to keep so far, or None."""
        step: int | None = self._state["best_step"]
        return step

    @property
    def best_value(self) -> float:
        """Value at the step to keep; nan without one."""
        return float(self._state["best_value"])

    @property
    def wait_count(self) -> int:
        """Steps since the one to keep."""
        return int(self._state["wait_count"])

    @property
    def reason(self) -> str:
        """Why this step, and why the rule stopped if it did."""
        parts = [self._state["note"] or "no step qualifies after the warm-up"]
        if self._skipped:
            parts.append(f"{self._skipped} unhealthy or non-finite left out")
        if self._short:
            parts.append(f"{self._short} cut short left out")
        if self.should_stop:
            parts.append(f"stopped at step {self._last_step}: {self._state['stopped']}")
        return "; ".join(parts)

    def _options(self) -> dict[str, Any]:
        """Return the rule as plain values, its defaults included: they may change one day."""
        return {"name": type(self.rule).__name__, **vars(self.rule)}

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain Python values, with a version."""
        return {
            "version": STATE_VERSION,
            "rule": self._options(),
            "total_steps": self.total_steps,
            "last_step": self._last_step,
            "skipped": self._skipped,
            "short": self._short,
            "fullest": self._fullest,
            "state": {**self._state, "recent": list(self._state["recent"])},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of the same rule.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        ValueError
            If it is of another version or another rule; the stopper is unchanged then.
        """
        if state.get("version") != STATE_VERSION or state.get("rule") != self._options():
            raise ValueError(
                f"`state` must be of version {STATE_VERSION} and rule {self.rule!r}, got version "
                f"{state.get('version')!r} and rule {state.get('rule')}; "
                "make the stopper with the rule that the run began with"
            )
        self.total_steps = state["total_steps"]
        self._last_step = state["last_step"]
        self._skipped = state["skipped"]
        self._short, self._fullest = state["short"], state["fullest"]
        self._state = {**state["state"], "recent": list(state["state"]["recent"])}


def select_step(
    values: Iterable[float],
    rule: Rule,
    *,
    steps: Sequence[int] | None = None,
    total_steps: int | None = None,
    healthy: Iterable[bool] | None = None,
) -> Selection:
    """Apply a rule to a finished series of values.

    Parameters
    ----------
    values : iterable of float, length T
        The watched signal in order.
    rule : Rule
        Such as ``MaxGWA()``.
    steps : sequence of int, length T, optional
        Increasing; default 0, 1, ..., T - 1.
    total_steps : int, optional
        Number of steps of the whole run; default the last step plus one.
    healthy : iterable of bool, length T, optional
        False for steps that must not be kept.

    Returns
    -------
    Selection
        The step to keep, its value and why: what a live `EarlyStopper` would have said.

    Raises
    ------
    ValueError
        If lengths differ, steps do not increase, or there are no values.

    Notes
    -----
    Cost: O(T). Runs on Python numbers.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.1 and 4.4.

    Examples
    --------
    >>> from gwa_core import MaxGWA, select_step
    >>> select_step([0.1, 0.3, 9.0, 0.2], MaxGWA(), healthy=[True, True, False, True])
    Selection(step=1, value=0.3, reason='largest gwa after the warm-up; 1 unhealthy or \
non-finite left out')
    """
    series = [float(value) for value in values]
    clock = list(range(len(series))) if steps is None else [int(step) for step in steps]
    health = [True] * len(series) if healthy is None else [bool(flag) for flag in healthy]
    if not series or not len(series) == len(clock) == len(health):
        raise ValueError(
            "`values`, `steps` and `healthy` must be of one length of at least 1, got "
            f"{len(series)}, {len(clock)} and {len(health)}"
        )
    stopper = EarlyStopper(rule, total_steps=clock[-1] + 1 if total_steps is None else total_steps)
    for value, step, flag in zip(series, clock, health, strict=True):
        if stopper.update(value, step=step, healthy=flag):
            break
    return Selection(stopper.best_step, stopper.best_value, stopper.reason)


def select_epoch(
    history: Iterable[Summary | EpochSummary | Mapping[str, Any]],
    rule: Rule | None = None,
    *,
    total_steps: int | None = None,
) -> Selection:
    """Apply a rule to a history of summaries, watching the column that the rule names.

    Parameters
    ----------
    history : iterable of EpochSummary, Summary or mapping, length T
        Epochs in order. A mapping may hold further columns, such as a validation metric.
    rule : Rule, optional
        Such as ``MaxGWA()``; default ``MaxSeparation()``. ``rule.signal`` is the column.
    total_steps : int, optional
        Number of epochs of the whole run; default the length of the history.

    Returns
    -------
    Selection
        `step` is the position in the history: what `EarlyStopper.observe` keeps, whose notes say
        which epochs are never kept.

    Raises
    ------
    ValueError
        If the history is empty or lacks the column.

    Notes
    -----
    Cost: O(T).

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.1 and 4.4.

    Examples
    --------
    >>> from gwa_core import MaxGWA, select_epoch
    >>> rows = [{"gwa": 0.1, "denominator": 1.0}, {"gwa": 0.9, "denominator": -0.1}]
    >>> select_epoch(rows, MaxGWA()).step
    0
    """
    records = list(history)
    if not records:
        raise ValueError("`history` must have at least one epoch, got none")
    stopper = EarlyStopper(rule, total_steps=len(records) if total_steps is None else total_steps)
    for position, record in enumerate(records):
        if stopper._observe(f"history[{position}]", record):
            break
    return Selection(stopper.best_step, stopper.best_value, stopper.reason)


def rule_for(signal: str, *, mode: Literal["max", "min"] = "max", warmup: float = 0.1) -> Rule:
    """Return the rule that reads a signal.

    Parameters
    ----------
    signal : str
        "separation", "bimodality", "gwa", "prediction_changes" or "gradient_disparity", which have
        a rule of their own; or any other column.
    mode : {"max", "min"}
        Whether larger or smaller is better, default "max"; for other columns.
    warmup : float or int
        A fraction of all steps in [0, 1), default 0.1, or a number of steps; for the rules that have
        a warm-up.

    Returns
    -------
    Rule
        With this warm-up and else its default options; `BestMetric` for other columns.

    Raises
    ------
    ValueError
        On options out of range.

    Notes
    -----
    Cost: O(1).

    References
    ----------
    Of each rule: its own.

    Examples
    --------
    >>> from gwa_core import rule_for
    >>> rule_for("prediction_changes"), rule_for("sample_loss", mode="min")
    (LabelWave(window=3, patience=1), BestMetric(warmup=0.1, mode='min', metric='sample_loss'))
    """
    own = {rule.signal: rule for rule in OWN_RULES}.get(signal)
    if own is None:
        return BestMetric(metric=signal, mode=mode, warmup=warmup)
    return replace(own, warmup=warmup) if isinstance(own, Extremum) else own


# A rule for each of these signals; any other is a metric.
OWN_RULES: tuple[Rule, ...] = (
    DEFAULT_RULE,
    MaxBimodality(),
    MaxGWA(),
    LabelWave(),
    GradientDisparity(),
)
