"""A display of the signals of a run beside GWA and a metric, normalised as in Fig. 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from gwa_offline._drawing import (
    CHOSEN,
    GWA,
    METRIC,
    MUTED,
    Display,
    mark_epochs,
    plain,
    split_axes,
)
from gwa_offline._view import epoch_numbers
from gwa_offline.curves import SignalCurve, signal_curves
from gwa_offline.results import Report

__all__ = ["SignalsDisplay"]

_COLUMNS = 3
_SIGNAL = "#1b2127"


@dataclass(kw_only=True, eq=False, repr=False)
class SignalsDisplay(Display):
    """Signals over epochs, a panel each, normalised as in Fig. 2, with the epochs that they keep.

    Parameters
    ----------
    epochs : array of shape (T,)
        Numbers of the epochs.
    curves : sequence of SignalCurve
        What the panels show, as `gwa_offline.curves.signal_curves` gives it.
    gwa, metric : SignalCurve or None
        Drawn in every panel.
    warmup : int
        Epochs before the range that is scaled; they lie on grey.
    chosen : int or None
        Position of the chosen epoch.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    axes_ : array of Axes
        The panels in the order of `curves`, in the place of `ax_`.

    Examples
    --------
    >>> from gwa_offline.curves import SignalCurve
    >>> margin = SignalCurve(name="margin", values=np.array([0.0, 0.7, 1.0]), pick=2)
    >>> gwa = SignalCurve(name="gwa", values=np.array([0.0, 1.0, 0.5]), pick=1)
    >>> display = SignalsDisplay(epochs=[0, 1, 2], curves=[margin], gwa=gwa).plot()
    >>> display.axes_[0].get_title("left")
    'margin'
    """

    _arrays: ClassVar[tuple[str, ...]] = ("epochs",)

    epochs: NDArray[Any]
    curves: Sequence[SignalCurve]
    gwa: SignalCurve | None = None
    metric: SignalCurve | None = None
    warmup: int = 0
    chosen: int | None = None

    def _figsize(self) -> tuple[float, float]:
        return 10.0, 0.8 + 2.1 * -(-len(self.curves) // _COLUMNS)

    @classmethod
    def from_report(
        cls, report: Report, *, metric: str | None = None, mode: Literal["max", "min"] = "max"
    ) -> Self:
        """Take the signals of a report that have a direction.

        Parameters
        ----------
        report : Report
            Of a run of several epochs.
        metric : str or None
            A column that the run stored; default the first that is no signal, where there is one.
        mode : {"max", "min"}
            Which end of the metric is better.

        Raises
        ------
        ValueError
            The report has no such metric.
        """
        found = signal_curves(report, metric=metric, mode=mode)
        return cls(
            epochs=np.array(epoch_numbers(report)),
            curves=found.signals,
            gwa=found.gwa,
            metric=found.metric,
            warmup=found.warmup,
            chosen=report.selected,
        )

    def plot(self, ax: Any = None) -> Self:
        """Draw, into `ax` or a new figure, and return the display itself."""
        return self._plot(ax)

    def _draw(self, ax: Any, **_: Any) -> None:
        rows = -(-len(self.curves) // _COLUMNS)
        # The first row holds the legend.
        grid = split_axes(ax, rows + 1, _COLUMNS, sharex=True, height_ratios=[0.12] + [1.0] * rows)
        self.axes_ = grid[1:].ravel()[: len(self.curves)]
        for panel in [*grid[0], *grid[1:].ravel()[len(self.curves) :]]:
            panel.set_axis_off()
        for i, (panel, curve) in enumerate(zip(self.axes_, self.curves, strict=True)):
            self._panel(panel, curve)
            panel.tick_params(labelbottom=i + _COLUMNS >= len(self.curves))
            panel.set_xlabel("" if i + _COLUMNS < len(self.curves) else "epoch")
            panel.set_ylabel("" if i % _COLUMNS else "better \N{RIGHTWARDS ARROW}")
        handles = [line for line in self.axes_[0].get_lines() if line.get_label()[0] != "_"]
        legend = grid[0, 0].legend(
            handles=handles[::-1], loc="center left", bbox_to_anchor=(0, 0.5), ncols=5,
            fontsize="small", borderaxespad=0, columnspacing=1.4, handlelength=1.8,
        )  # fmt: skip
        legend.set_in_layout(False)  # it is wider than its column

    def _panel(self, panel: Any, curve: SignalCurve) -> None:
        mark_epochs(panel, self.epochs, self.chosen)
        panel.plot([], [], "*", color=MUTED, markersize=11, label="epoch that each would keep")
        if self.chosen is not None:
            panel.plot([], [], color=CHOSEN, linewidth=1.2, linestyle="--", label="chosen epoch")
        if self.warmup:
            end = (self.epochs[self.warmup - 1] + self.epochs[self.warmup]) / 2
            panel.axvspan(self.epochs[0], end, color=MUTED, alpha=0.1, linewidth=0)
        if self.metric is not None:
            label = plain(self.metric.name)
            self._line(panel, self.metric, label, color=METRIC, linestyle=":", linewidth=1.8)
        if self.gwa is not None:
            label = ", ".join(filter(None, ["GWA", self.gwa.correlations]))
            self._line(panel, self.gwa, label, color=GWA, linewidth=1.2, alpha=0.75)
        self._line(panel, curve, "the signal", color=_SIGNAL, linewidth=2)
        panel.set(ylim=(-0.12, 1.12), yticks=[0, 1])
        panel.set_title(curve.name, loc="left", fontsize=10.5, pad=18)
        text = curve.correlations
        if curve.pick is not None:
            text = f"keeps {self.epochs[curve.pick]}" + (f", {text}" if text else "")
        panel.text(0, 1.05, text, transform=panel.transAxes, fontsize=8.5, color=MUTED, va="bottom")

    def _line(self, panel: Any, curve: SignalCurve, label: str, **style: Any) -> None:
        panel.plot(self.epochs, curve.values, label=label, **style)
        if curve.pick is not None:
            height = np.clip(curve.values[curve.pick], 0.0, 1.0)
            panel.plot(
                self.epochs[curve.pick], height, "*", color=style["color"],
                markeredgecolor="white", markersize=8 + 3 * style["linewidth"], zorder=5,
            )  # fmt: skip
