"""The signals of a run over its epochs, normalised to one range (Fig. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gwa_core import BestMetric, MaxGWA, Rule, rule_for, select_epoch, warmup_steps
from gwa_core.signals import SIGNALS
from gwa_offline.analysis.comparison import check_metric, signal_rows
from gwa_offline.analysis.findings import Findings
from gwa_offline.analysis.statistics import scaled
from gwa_offline.analysis.view import (
    column,
    healthy_epochs,
    metric_names,
    metric_values,
    observed,
)

__all__ = ["SignalCurve", "SignalCurves", "default_metric", "signal_curves", "stored_signals"]

# Fields of the summaries that are drawn beside the signals of the run.
OWN = ("mean", "separation")

WARMUP = MaxGWA().warmup


@dataclass(frozen=True, kw_only=True)
class SignalCurve:
    """One signal over the epochs of a run, or the metric.

    Parameters
    ----------
    name : str
        Of the signal, or of the column.
    values : array of shape (T,)
        Larger is better; from the end of the warm-up on in [0, 1]. nan where it is missing.
    best_index : int or None
        Position of its best epoch; None where no epoch qualifies.
    pearson, spearman : float or None
        Correlation with the metric, positive if both improve together. None without a metric, and
        where `gwa_offline.analysis.compare` has none.
    """

    name: str
    values: NDArray[np.float64]
    best_index: int | None
    pearson: float | None = None
    spearman: float | None = None

    @property
    def correlations(self) -> str:
        """Both correlations in words; empty where they are unknown."""
        if self.pearson is None or self.spearman is None:
            return ""
        text = f"Pearson {self.pearson:+.2f}, Spearman {self.spearman:+.2f}"
        return text.replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True, kw_only=True)
class SignalCurves:
    """The signals of a run, normalised to one range.

    Parameters
    ----------
    gwa : SignalCurve
        GWA in its healthy epochs.
    metric : SignalCurve or None
        The column that the signals are compared with.
    signals : tuple of SignalCurve
        Mean and separation of the scores, and the signals of the run.
    warmup : int
        Number of epochs before the scaled range.
    """

    gwa: SignalCurve
    metric: SignalCurve | None
    signals: tuple[SignalCurve, ...]
    warmup: int


def stored_signals(report: Findings) -> list[str]:
    """Return the columns of a run that are signals and rank its epochs."""
    return [name for name in metric_names(report) if name in SIGNALS and SIGNALS[name].better]


def default_metric(report: Findings) -> str | None:
    """Return the first column of a run that is none of the signals, such as its test accuracy."""
    return next((name for name in metric_names(report) if name not in SIGNALS), None)


def signal_curves(
    report: Findings, *, metric: str | None = None, mode: Literal["max", "min"] = "max"
) -> SignalCurves:
    """Return the signals of a run normalised as in Fig. 2 of the paper.

    Each is turned so that larger is better, and its range after the warm-up becomes [0, 1]. The
    first epochs of a training lie so far from the rest that they would flatten the curve.

    Parameters
    ----------
    report : Report
        What `analyse` returned, T epochs.
    metric : str, optional
        A column of the run, such as ``test_accuracy``; default the first that is none of
        ``gwa_core.signals.SIGNALS``, if any.
    mode : {"max", "min"}
        Which end of `metric` is better.

    Returns
    -------
    SignalCurves
        Without the signals whose ``SIGNALS[name].better`` is None: they do not rank epochs.

    Raises
    ------
    ValueError
        If the run has no such column.

    Notes
    -----
    Each signal has the best epoch of its rule (`gwa_core.rule_for`): `MaxGWA`, `MaxSeparation`,
    `LabelWave`, `GradientDisparity`; for the others it is the best after the warm-up, a tenth of the
    epochs. For the metric it is the best of all. GWA skips unhealthy epochs, and no rule keeps an
    epoch that was cut short. Correlations are over the epochs after the
    warm-up. Cost: O(T).

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Fig. 2.
    """
    metric = default_metric(report) if metric is None else metric
    healthy = healthy_epochs(report)
    begin = warmup_steps(WARMUP, len(report.epochs))
    rows = observed(report.epochs)
    check_metric([report], metric)
    # The first epochs, in which everything improves, would make all signals look alike.
    beside = {row.signal: row for row in signal_rows(report, metric, first=begin)}

    def curve(
        name: str, values: NDArray[np.float64], high: bool, rule: Rule | None = None
    ) -> SignalCurve:
        rule = rule or rule_for(name, mode="max" if high else "min", warmup=WARMUP)
        row = beside.get(name)
        turn = 1.0 if high == (mode == "max") else -1.0
        return SignalCurve(
            name=name,
            values=scaled(values, better="high" if high else "low", begin=begin),
            best_index=select_epoch(rows, rule).step,
            pearson=None if row is None or row.pearson is None else turn * row.pearson,
            spearman=None if row is None or row.spearman is None else turn * row.spearman,
        )

    judge = None
    if metric is not None:
        rule = BestMetric(metric=metric, mode=mode)
        judge = curve(metric, metric_values(report, metric), mode == "max", rule)
    own = [curve(name, column(report, name), True) for name in OWN]
    stored = [
        curve(name, metric_values(report, name), SIGNALS[name].better == "high")
        for name in stored_signals(report)
        if name != metric
    ]
    gwa = np.where(healthy, column(report, "gwa"), np.nan)
    return SignalCurves(
        gwa=curve("gwa", gwa, True),
        metric=judge,
        signals=(*own, *stored),
        warmup=begin,
    )
