"""Pictures of a report for Matplotlib, in scikit-learn's Display style."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from gwa_offline.analysis.curves import SignalCurve, default_metric, signal_curves, stored_signals
from gwa_offline.analysis.findings import Findings
from gwa_offline.analysis.view import (
    chosen_metric,
    column,
    curve_limits,
    epoch_numbers,
    healthy_epochs,
    metric_names,
    unit,
)
from gwa_offline.figures.decision_display import DecisionDisplay
from gwa_offline.figures.sample_displays import DistributionDisplay, SamplesDisplay
from gwa_offline.figures.style import (
    BAD,
    BEST,
    GWA,
    METRIC,
    MUTED,
    STYLE,
    Display,
    dot_size,
    draw_metric,
    import_pyplot,
    mark_epochs,
    plain,
    split_axes,
    star_best,
)

if TYPE_CHECKING:
    from gwa_offline.figures.images import ImageSource

__all__ = [
    "DecisionDisplay",
    "DistributionDisplay",
    "GWACurveDisplay",
    "MomentsDisplay",
    "SamplesDisplay",
    "SignalsDisplay",
    "save_figures",
]

_COLUMNS = 3
_SIGNAL = "#1b2127"


@dataclass(kw_only=True, eq=False, repr=False)
class GWACurveDisplay(Display):
    """GWA over epochs with its band of two standard errors, and the best epoch.

    Parameters
    ----------
    epochs : array of shape (T,)
        Numbers of the epochs.
    gwa, standard_error : array of shape (T,)
        GWA and its standard error.
    healthy : array of bool, shape (T,)
        Epochs whose GWA counts; the others are drawn as crosses, at the edge if far away.
    best_index : int or None
        Position of the best epoch.
    metric : array of shape (T,) or None
        Drawn on an axis of its own at the right.
    metric_name : str
        Its label.
    shares : array of shape (T,) or None
        Shares of the epochs in the average of the weights: bars at the bottom, the largest at full
        height.
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
    >>> display = GWACurveDisplay(
    ...     epochs=[0, 1, 2], gwa=[0.0, 0.3, 0.2], standard_error=[0.01, 0.02, 0.02],
    ...     healthy=[True, True, True], best_index=1)
    >>> display.plot().ax_.get_ylabel()
    'GWA'
    """

    _arrays: ClassVar[tuple[str, ...]] = (
        "epochs", "gwa", "standard_error", "healthy", "metric", "shares",
    )  # fmt: skip

    epochs: NDArray[Any]
    gwa: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    healthy: NDArray[np.bool_]
    best_index: int | None = None
    metric: NDArray[np.float64] | None = None
    metric_name: str = "metric"
    shares: NDArray[np.float64] | None = None
    unit: str = "epoch"

    @classmethod
    def from_report(cls, report: Findings, *, metric: str | None = None) -> Self:
        """Take the curve of a report, and one of its metrics by name.

        Raises
        ------
        ValueError
            The report has no such metric.
        """
        return cls(
            epochs=np.array(epoch_numbers(report)),
            unit=unit(report.epochs),
            gwa=column(report, "gwa"),
            standard_error=column(report, "gwa_standard_error"),
            healthy=healthy_epochs(report),
            best_index=report.best_index,
            metric=chosen_metric(report, metric),
            metric_name=metric or "metric",
            shares=report.average_shares if report.average_shares.any() else None,
        )

    def plot(self, ax: Any = None) -> Self:
        """Draw, into `ax` or a new figure, and return the display itself."""
        return self._plot(ax)

    def _draw(self, ax: Any, **_: Any) -> None:
        healthy = self.healthy & np.isfinite(self.gwa)
        line = np.where(healthy, self.gwa, np.nan)
        half = 2.0 * np.nan_to_num(self.standard_error)
        low, high = curve_limits(line[healthy], half[healthy])
        mark_epochs(ax, self.epochs, self.best_index, self.unit)
        ax.fill_between(
            self.epochs, line - half, line + half, color=GWA, alpha=0.18, linewidth=0,
            label="±2 standard errors",
        )  # fmt: skip
        ax.plot(
            self.epochs,
            line,
            "o-",
            color=GWA,
            linewidth=2,
            markersize=dot_size(self.epochs),
            label="GWA",
        )
        if not healthy.all():
            edge = 0.04 * (high - low)
            height = np.clip(np.nan_to_num(self.gwa, nan=low), low + edge, high - edge)
            ax.plot(
                self.epochs[~healthy], height[~healthy], "X", color=BAD, markersize=8,
                label=f"unhealthy {self.unit}",
            )  # fmt: skip
        self.metric_ax_ = draw_metric(ax, self.epochs, self.metric, self.metric_name)
        star_best(ax, self.epochs, self.gwa, self.best_index, self.unit)
        if self.shares is not None:
            width = 0.8 * (np.diff(self.epochs).min() if len(self.epochs) > 1 else 1)
            low -= 0.18 * (high - low)
            ax.bar(
                self.epochs, 0.12 * self.shares / self.shares.max(), width=width, color=BEST,
                alpha=0.55, transform=ax.get_xaxis_transform(), label="share in average",
            )  # fmt: skip
        ax.set_ylim(low, high)
        ax.set_ylabel("GWA")
        ax.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=5, fontsize="small", borderaxespad=0.2,
            columnspacing=1.1, handlelength=1.6, handletextpad=0.5,
        )  # fmt: skip


@dataclass(kw_only=True, eq=False, repr=False)
class MomentsDisplay(Display):
    """Mean and excess kurtosis of the alignment over epochs, one above the other.

    Parameters
    ----------
    epochs : array of shape (T,)
        Numbers of the epochs.
    mean, kurtosis : array of shape (T,)
        The moments.
    beta : float
        At -beta and below GWA is unhealthy; drawn as a dotted line.
    best_index : int or None
        Position of the best epoch.
    unit : {"epoch", "step"}
        What `epochs` counts: steps where each record is of a window of them.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    axes_ : array of Axes, shape (2,)
        The two panels, in the place of `ax_`.

    Examples
    --------
    >>> display = MomentsDisplay(epochs=[0, 1, 2], mean=[0, 0.1, 0.2], kurtosis=[3, 1, 0])
    >>> [ax.get_ylabel() for ax in display.plot().axes_]
    ['mean', 'excess kurtosis']
    """

    _arrays: ClassVar[tuple[str, ...]] = ("epochs", "mean", "kurtosis")
    _size: ClassVar[tuple[float, float]] = (7.2, 4.6)

    epochs: NDArray[Any]
    mean: NDArray[np.float64]
    kurtosis: NDArray[np.float64]
    beta: float = 1.2
    best_index: int | None = None
    unit: str = "epoch"

    @classmethod
    def from_report(cls, report: Findings) -> Self:
        """Take the moments of a report."""
        return cls(
            epochs=np.array(epoch_numbers(report)),
            unit=unit(report.epochs),
            mean=column(report, "mean"),
            kurtosis=column(report, "kurtosis"),
            beta=report.beta,
            best_index=report.best_index,
        )

    def plot(self, ax: Any = None) -> Self:
        """Draw, into `ax` or a new figure, and return the display itself."""
        return self._plot(ax)

    def _draw(self, ax: Any, **_: Any) -> None:
        self.axes_ = split_axes(ax, 2, 1, sharex=True)[:, 0]
        values = [("mean", self.mean), ("excess kurtosis", self.kurtosis)]
        for panel, (name, moment) in zip(self.axes_, values, strict=True):
            mark_epochs(panel, self.epochs, self.best_index, self.unit)
            panel.plot(
                self.epochs, moment, "o-", color=GWA, linewidth=2, markersize=dot_size(self.epochs)
            )
            panel.axhline(0.0, color="#b4bcc3", linewidth=1, zorder=1)
            panel.set_ylabel(name)
        self.axes_[0].set_xlabel("")
        self.axes_[0].set_title("Mean and kurtosis apart")
        self.axes_[1].axhline(-self.beta, color=BAD, linewidth=1.2, linestyle=":")
        self.figure_.align_ylabels(self.axes_)


@dataclass(kw_only=True, eq=False, repr=False)
class SignalsDisplay(Display):
    """Signals over epochs, a panel each, normalised as in Fig. 2, with the best epoch of each.

    Parameters
    ----------
    epochs : array of shape (T,)
        Numbers of the epochs.
    curves : sequence of SignalCurve
        One for each panel, from `gwa_offline.analysis.signal_curves`.
    gwa, metric : SignalCurve or None
        Drawn in every panel.
    warmup : int
        Number of epochs before the scaled range; they are on grey.
    best_index : int or None
        Position of the best epoch.
    unit : {"epoch", "step"}
        What `epochs` counts: steps where each record is of a window of them.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    axes_ : array of Axes
        The panels in the order of `curves`, in the place of `ax_`.

    Examples
    --------
    >>> from gwa_offline.analysis.curves import SignalCurve
    >>> margin = SignalCurve(name="margin", values=np.array([0.0, 0.7, 1.0]), best_index=2)
    >>> gwa = SignalCurve(name="gwa", values=np.array([0.0, 1.0, 0.5]), best_index=1)
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
    best_index: int | None = None
    unit: str = "epoch"

    def _figsize(self) -> tuple[float, float]:
        return 10.0, 0.8 + 2.1 * -(-len(self.curves) // _COLUMNS)

    @classmethod
    def from_report(
        cls, report: Findings, *, metric: str | None = None, mode: Literal["max", "min"] = "max"
    ) -> Self:
        """Take the signals of a report that have a direction.

        Parameters
        ----------
        report : Report
            Of a run of several epochs.
        metric : str or None
            A column of the run; default the first that is no signal, if any.
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
            unit=unit(report.epochs),
            curves=found.signals,
            gwa=found.gwa,
            metric=found.metric,
            warmup=found.warmup,
            best_index=report.best_index,
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
            panel.set_xlabel("" if i + _COLUMNS < len(self.curves) else self.unit)
            panel.set_ylabel("" if i % _COLUMNS else "better \N{RIGHTWARDS ARROW}")
        handles = [line for line in self.axes_[0].get_lines() if line.get_label()[0] != "_"]
        legend = grid[0, 0].legend(
            handles=handles[::-1], loc="center left", bbox_to_anchor=(0, 0.5), ncols=5,
            fontsize="small", borderaxespad=0, columnspacing=1.4, handlelength=1.8,
        )  # fmt: skip
        legend.set_in_layout(False)  # it is wider than its column

    def _panel(self, panel: Any, curve: SignalCurve) -> None:
        mark_epochs(panel, self.epochs, self.best_index, self.unit)
        panel.plot([], [], "*", color=MUTED, markersize=11, label=f"best {self.unit} of each")
        if self.best_index is not None:
            panel.plot([], [], color=BEST, linewidth=1.2, linestyle="--", label=f"best {self.unit}")
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
        if curve.best_index is not None:
            text = f"best {self.unit} {self.epochs[curve.best_index]}" + (
                f", {text}" if text else ""
            )
        panel.text(0, 1.05, text, transform=panel.transAxes, fontsize=8.5, color=MUTED, va="bottom")

    def _line(self, panel: Any, curve: SignalCurve, label: str, **style: Any) -> None:
        panel.plot(self.epochs, curve.values, label=label, **style)
        if curve.best_index is not None:
            height = np.clip(curve.values[curve.best_index], 0.0, 1.0)
            panel.plot(
                self.epochs[curve.best_index], height, "*", color=style["color"],
                markeredgecolor="white", markersize=8 + 3 * style["linewidth"], zorder=5,
            )  # fmt: skip


def save_figures(
    report: Findings,
    folder: str | os.PathLike[str],
    *,
    images: ImageSource | None = None,
    metric: str | None = None,
    mode: Literal["max", "min"] = "max",
    format: Literal["png", "svg"] = "png",  # noqa: A002
) -> list[Path]:
    """Save the pictures of a report.

    Parameters
    ----------
    report : Report
        With T = 1 epoch the pictures over epochs are left out.
    folder : str or path
        Created if missing.
    images : str, path, array, Images or None
        Images of the samples, as in `gwa_offline.figures.images.open_images`.
    metric : str or None
        A column of the run, drawn beside the curves and the signals. Default: the first column that is no
        signal, and beside the curves the first one where all are signals.
    mode : {"max", "min"}
        Which end of `metric` is better.
    format : {"png", "svg"}
        Pixels or vectors.

    Returns
    -------
    list of pathlib.Path
        ``decision``, ``gwa``, ``moments``, ``signals``, ``distribution``, ``histogram`` and
        ``samples``, as far as the report has them.

    Raises
    ------
    FeaturesError
        The images cannot be read or are not N.
    ValueError
        `format` is unknown, or the report has no such metric.
    """
    if format not in ("png", "svg"):
        raise ValueError(f"`format` must be 'png' or 'svg', got {format!r}")
    plt = import_pyplot()
    displays: dict[str, Any] = {}
    distribution = DistributionDisplay.from_report(report)
    shown = epoch_numbers(report)[report.shown]
    if len(report.epochs) > 1:
        first = default_metric(report) or next(iter(metric_names(report)), None)
        beside = first if metric is None else metric
        beside_rule = None if beside == report.decision.signal else beside
        displays["decision"] = DecisionDisplay.from_report(report, metric=beside_rule).plot
        displays["gwa"] = GWACurveDisplay.from_report(report, metric=beside).plot
        displays["moments"] = MomentsDisplay.from_report(report).plot
        if stored_signals(report):
            displays["signals"] = SignalsDisplay.from_report(report, metric=metric, mode=mode).plot
        displays["distribution"] = distribution.plot
    displays["histogram"] = lambda: distribution.plot(epoch=shown)
    if images is not None:
        samples = SamplesDisplay.from_report(report, images)
        if samples.ids:
            displays["samples"] = samples.plot
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    for name, plot in displays.items():
        path = Path(folder) / f"{name}.{format}"
        figure = plot().figure_
        with plt.rc_context(STYLE):
            # Without its date or version, the same report gives the same bytes.
            unsigned = {"Software": None} if format == "png" else {"Date": None, "Creator": None}
            figure.savefig(path, metadata=unsigned)
        plt.close(figure)
        written.append(path)
    return written
