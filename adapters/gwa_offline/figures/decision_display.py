"""The curve that decided, for Matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from gwa_offline.analysis.findings import Findings
from gwa_offline.analysis.view import (
    chosen_metric,
    curve_limits,
    epoch_numbers,
    healthy_epochs,
    unit,
)
from gwa_offline.figures.style import (
    BEST,
    GWA,
    MUTED,
    Display,
    dot_size,
    draw_metric,
    mark_epochs,
    plain,
    star_best,
)

__all__ = ["DecisionDisplay"]


@dataclass(kw_only=True, eq=False, repr=False)
class DecisionDisplay(Display):
    """The column that a rule watched, over epochs, with the best epoch and those about as good.

    Parameters
    ----------
    epochs : array of shape (T,)
        Numbers of the epochs.
    values : array of shape (T,)
        The column; nan where it does not count.
    signal : str
        Its name.
    standard_errors : array of shape (T,) or None
        Of the values; a band of two on each side, where they are known.
    tied : array of bool, shape (T,), or None
        Epochs that are about as good as the best one.
    warmup : int
        Number of first epochs that the rule skips; they are on grey.
    best_index : int or None
        Position of the best epoch.
    metric : array of shape (T,) or None
        Drawn on an axis of its own at the right.
    metric_name : str
        Its label.
    unit : {"epoch", "step"}
        What `epochs` counts: steps where each record is of a window of them.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    metric_ax_ : matplotlib Axes or None
        The axis at the right.

    Examples
    --------
    >>> display = DecisionDisplay(
    ...     epochs=[0, 1, 2], values=[0.1, 0.3, 0.29], signal="separation", best_index=1,
    ...     tied=[False, True, True])
    >>> display.plot().ax_.get_legend_handles_labels()[1]
    ['separation', 'about as good', 'best epoch 1']
    """

    _arrays: ClassVar[tuple[str, ...]] = ("epochs", "values", "standard_errors", "tied", "metric")

    epochs: NDArray[Any]
    values: NDArray[np.float64]
    signal: str
    standard_errors: NDArray[np.float64] | None = None
    tied: NDArray[np.bool_] | None = None
    warmup: int = 0
    best_index: int | None = None
    metric: NDArray[np.float64] | None = None
    metric_name: str = "metric"
    unit: str = "epoch"

    @classmethod
    def from_report(cls, report: Findings, *, metric: str | None = None) -> Self:
        """Take the curve that decided in a report, and one of its metrics by name.

        Raises
        ------
        ValueError
            The report has no such metric.
        """
        seen = report.decision
        known = healthy_epochs(report) if seen.signal == "gwa" else True
        return cls(
            epochs=np.array(epoch_numbers(report)),
            unit=unit(report.epochs),
            values=np.where(known, seen.values, np.nan),
            signal=seen.signal,
            standard_errors=seen.standard_errors,
            tied=seen.tied,
            warmup=seen.warmup,
            best_index=report.best_index,
            metric=chosen_metric(report, metric),
            metric_name=metric or "metric",
        )

    def plot(self, ax: Any = None) -> Self:
        """Draw, into `ax` or a new figure, and return the display itself."""
        return self._plot(ax)

    def _draw(self, ax: Any, **_: Any) -> None:
        mark_epochs(ax, self.epochs, self.best_index, self.unit)
        half = np.zeros(len(self.epochs))
        if self.standard_errors is not None:
            half = 2.0 * np.nan_to_num(self.standard_errors)
        if half.any():
            ax.fill_between(
                self.epochs, self.values - half, self.values + half, color=GWA, alpha=0.18,
                linewidth=0, label="±2 standard errors",
            )  # fmt: skip
        ax.plot(
            self.epochs, self.values, "o-", color=GWA, linewidth=2,
            markersize=0.6 * dot_size(self.epochs), label=plain(self.signal),
        )  # fmt: skip
        if 0 < self.warmup < len(self.epochs):
            end = (self.epochs[self.warmup - 1] + self.epochs[self.warmup]) / 2
            ax.axvspan(self.epochs[0], end, color=MUTED, alpha=0.1, linewidth=0, label="warm-up")
        self.metric_ax_ = draw_metric(ax, self.epochs, self.metric, self.metric_name)
        self._mark(ax)
        # What the rule does not keep must not flatten the rest.
        judged = np.isfinite(self.values) & (np.arange(len(self.epochs)) >= self.warmup)
        judged = judged if judged.any() else np.isfinite(self.values)
        ax.set_ylim(*curve_limits(self.values[judged], half[judged]))
        ax.set_ylabel(plain(self.signal))
        ax.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize="small", borderaxespad=0.2,
            columnspacing=1.1, handlelength=1.6, handletextpad=0.5,
        )  # fmt: skip

    def _mark(self, ax: Any) -> None:
        best = self.best_index
        near = np.setdiff1d(
            np.flatnonzero([] if self.tied is None else self.tied), [] if best is None else [best]
        )
        if len(near):
            ax.plot(
                self.epochs[near], self.values[near], "o", color=BEST, markersize=6.5,
                markeredgecolor="white", label="about as good", zorder=4,
            )  # fmt: skip
        star_best(ax, self.epochs, self.values, best, self.unit)
