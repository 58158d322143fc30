"""Apply a stopping rule: while the training runs, or to a finished history."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gwa_core._lib.checks import check_positive_int
from gwa_core.history import separation
from gwa_core.rules import Rule

__all__ = ["EarlyStopper", "Selection", "select_epoch", "select_step"]

STATE_VERSION = 1


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
    rule : Rule
        Such as ``MaxGWA(patience=5)``.
    total_steps : int, optional
        Number of steps of the whole run, in the unit of `step`; needed for a fractional warm-up.

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
        If `total_steps` is not a positive integer.

    Examples
    --------
    >>> from gwa_core import EarlyStopper, MaxGWA
    >>> stopper = EarlyStopper(MaxGWA(warmup=0, patience=2))
    >>> [stopper.update(value) for value in (0.1, 0.3, 0.2, 0.1)]
    [False, False, False, True]
    >>> stopper.best_step, stopper.reason
    (1, 'largest gwa; stopped at step 3: no improvement in 2 steps')
    """

    def __init__(self, rule: Rule, *, total_steps: int | None = None) -> None:
        if total_steps is not None:
            check_positive_int("total_steps", total_steps)
        self.rule = rule
        self.total_steps = total_steps
        self._state = rule.begin()
        self._last_step: int | None = None
        self._skipped = 0

    def update(self, value: float, *, step: int | None = None, healthy: bool = True) -> bool:
        """Take in the value of the next step and return `should_stop`.

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
            If steps do not increase or a fractional warm-up lacks `total_steps`.
        """
        if step is None:
            step = 0 if self._last_step is None else self._last_step + 1
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(
                f"`step` must be larger than the last one, {self._last_step}, got {step}; "
                "a resumed run must load the state that belongs to its checkpoint"
            )
        if not self.should_stop:
            value = float(value)
            usable = bool(healthy) and math.isfinite(value)
            self.rule.advance(self._state, value, step, usable, self.total_steps)
            self._last_step = step
            self._skipped += not usable
        return self.should_stop

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
        parts = [self._state["note"] or "no healthy step after the warm-up"]
        if self._skipped:
            parts.append(f"{self._skipped} unhealthy or non-finite left out")
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
    history: Iterable[Any], rule: Rule, *, total_steps: int | None = None
) -> Selection:
    """Apply a rule to a history of summaries, watching the field that the rule names.

    Parameters
    ----------
    history : iterable of EpochSummary, Summary or mapping, length T
        Epochs in order. A mapping may hold further columns, such as a validation metric.
    rule : Rule
        Such as ``MaxGWA()``; ``rule.signal`` is the field. `MaxSeparation` needs mean and bimodality.
    total_steps : int, optional
        Number of epochs of the whole run; default those of the history.

    Returns
    -------
    Selection
        `step` is the position in the history. Unhealthy epochs are never kept.

    Raises
    ------
    ValueError
        If the history is empty or lacks the field.

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
    rows = [_as_mapping(summary, rule.signal) for summary in history]
    if not rows:
        raise ValueError("`history` must have at least one epoch, got none")
    missing = [i for i, row in enumerate(rows) if rule.signal not in row]
    if missing:
        it = "mean and bimodality" if rule.signal == "separation" else "it beside the summary"
        raise ValueError(
            f"`history` must have the field {rule.signal!r} that {type(rule).__name__} watches, "
            f"got {', '.join(sorted(rows[missing[0]]))} at epoch {missing[0]}; "
            f"store {it} of each epoch"
        )
    return select_step(
        [row[rule.signal] for row in rows],
        rule,
        total_steps=total_steps,
        healthy=[float(row.get("denominator", 1.0)) > 0.0 for row in rows],
    )


def _as_mapping(summary: Any, signal: str) -> Mapping[str, Any]:
    fields = summary if isinstance(summary, Mapping) else summary._asdict()
    # No field of a summary: it follows from two of them.
    if signal == "separation" and fields.keys() >= {"mean", "bimodality"} and signal not in fields:
        value = separation(float(fields["mean"]), float(fields["bimodality"]))
        fields = {**fields, signal: value}
    return fields
