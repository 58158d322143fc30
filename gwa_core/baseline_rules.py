"""Stopping rules to compare with: a validation metric, LabelWave, gradient disparity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from gwa_core._lib.checks import check_choice, check_positive_int
from gwa_core.rules import Extremum, new_state, smooth, wait

__all__ = ["BestMetric", "GradientDisparity", "LabelWave"]

Criterion: TypeAlias = Literal["fifth_increase", "five_consecutive"]

# Both criteria of gradient disparity wait for this many increases (Forouzesh and Thiran, 2021).
INCREASES = 5


@dataclass(frozen=True, kw_only=True, repr=False)
class BestMetric(Extremum):
    """Keep the step of the best validation metric, and stop when it no longer improves.

    Parameters
    ----------
    mode : {"max", "min"}
        Whether larger or smaller is better, default "max".
    metric : str
        Name of the column to watch in a history, default "validation_accuracy".
    warmup : float or int
        A fraction of all steps in [0, 1), or a number of steps; default none.
    patience : int, optional
        Stop after this many steps without improvement; default never.
    min_delta : float
        What counts as improvement, at least 0; with `relative`, as a share of the best value.
    relative : bool
        Read `min_delta` relative to the best value so far.
    smoothing : int
        Number of last values that are averaged, default 1.

    Raises
    ------
    ValueError
        On options out of range.

    Notes
    -----
    Cost: O(1) a step.

    References
    ----------
    Prechelt, "Early stopping, but when?", 1998.

    Examples
    --------
    >>> from gwa_core import BestMetric, select_step
    >>> select_step([0.9, 0.5, 0.6, 0.7, 0.1], BestMetric(mode="min", patience=2)).step
    1
    """

    warmup: float = 0
    mode: Literal["max", "min"] = "max"
    metric: str = "validation_accuracy"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("mode", self.mode, ("max", "min"))

    @property
    def signal(self) -> str:  # type: ignore[override]
        """Name of the column that the rule watches."""
        return self.metric

    @property
    def sign(self) -> int:  # type: ignore[override]
        """1 where larger is better, else -1."""
        return 1 if self.mode == "max" else -1


@dataclass(frozen=True, kw_only=True)
class LabelWave:
    """Stop at the first local minimum of the smoothed prediction changes.

    Parameters
    ----------
    window : int
        Number of last epochs averaged, default 3.
    patience : int
        Number of epochs without a new minimum that make it one, default 1.

    Raises
    ------
    ValueError
        On options out of range.

    Notes
    -----
    Watches ``prediction_changes``, the fraction of training samples whose predicted class differs
    from the epoch before. Its paper trains with a constant learning rate, leaves the patience
    open, and excludes data with hardly any noise. Cost: O(1) a step.

    References
    ----------
    Yuan, Feng and Liu, "Early Stopping Against Label Noise Without Validation Data", ICLR 2024.

    Examples
    --------
    >>> from gwa_core import LabelWave, select_step
    >>> select_step([0.9, 0.6, 0.3, 0.2, 0.1, 0.7, 0.1], LabelWave(window=2)).step
    4
    """

    window: int = 3
    patience: int = 1

    signal: ClassVar[str] = "prediction_changes"

    def __post_init__(self) -> None:
        for name in ("window", "patience"):
            object.__setattr__(self, name, check_positive_int(name, getattr(self, name)))

    def begin(self) -> dict[str, Any]:
        """Return the state before the first value."""
        return new_state()

    def advance(
        self, state: dict[str, Any], value: float, step: int, usable: bool, total: int | None
    ) -> None:
        """Take in the next value."""
        if not usable:
            return
        value = smooth(state, value, self.window)
        if len(state["recent"]) < self.window:
            state["note"] = f"fewer than the {self.window} values of a mean"
            return
        if not value >= state["best_value"]:
            state.update(best_step=step, best_value=value, wait_count=0)
            state["note"] = f"first minimum of the mean over {self.window} epochs"
        else:
            wait(state, self.patience)


@dataclass(frozen=True, kw_only=True)
class GradientDisparity:
    """Stop when the disparity of mini-batch gradients has increased often enough.

    Parameters
    ----------
    criterion : {"fifth_increase", "five_consecutive"}
        Stop at the fifth increase from one epoch to the next, or at the fifth in a row.

    Raises
    ------
    ValueError
        On an unknown criterion.

    Notes
    -----
    Keeps the step at which it stops, or the last one. Watches ``gradient_disparity``. Cost: O(1) a
    step.

    References
    ----------
    Forouzesh and Thiran, "Disparity between batches as a signal for early stopping", 2021.

    Examples
    --------
    >>> from gwa_core import GradientDisparity, select_step
    >>> select_step([1, 2, 3, 2, 3, 4, 5, 6], GradientDisparity()).step
    6
    """

    criterion: Criterion = "fifth_increase"

    signal: ClassVar[str] = "gradient_disparity"

    def __post_init__(self) -> None:
        check_choice("criterion", self.criterion, get_args(Criterion))

    def begin(self) -> dict[str, Any]:
        """Return the state before the first value."""
        return {**new_state(), "increases": 0}

    def advance(
        self, state: dict[str, Any], value: float, step: int, usable: bool, total: int | None
    ) -> None:
        """Take in the next value."""
        if not usable:
            return
        if value > state["best_value"]:
            state["increases"] += 1
        elif self.criterion == "five_consecutive":
            state["increases"] = 0
        state.update(best_step=step, best_value=value)
        state["note"] = f"{state['increases']} of {INCREASES} increases"
        if state["increases"] >= INCREASES:
            row = " in a row" if self.criterion == "five_consecutive" else ""
            state["stopped"] = f"{INCREASES} increases{row}"
