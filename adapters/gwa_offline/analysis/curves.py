"""The signals of a run over its epochs, normalised to lie beside each other (Fig. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gwa_core import LabelWave, MaxGWA, MaxSeparation, Patience, Rule, select_step
from gwa_core.signals import SIGNALS
from gwa_offline.analysis.comparison import compare
from gwa_offline.analysis.findings import Findings
from gwa_offline.analysis.statistics import scaled
from gwa_offline.analysis.view import column, healthy_epochs, metric_names, metric_values

__all__ = ["SignalCurve", "SignalCurves", "signal_curves", "stored_signals"]

# What the summaries have stands beside the signals that a run stored.
OWN = ("mean", "separation")

# Signals with a rule of their own; any other is picked where it is best after the warm-up.
RULES: dict[str, Rule] = {
    "gwa": MaxGWA(),
    "separation": MaxSeparation(),
    "prediction_changes": LabelWave(),
}
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
    pick : int or None
        Position of the epoch that it would keep.
    pearson, spearman : float or None
        Correlation with the metric, both as they are turned: positive where they improve together.
        None without a metric, and where `gwa_offline.analysis.comparison.compare` has none.
    """

    name: str
    values: NDArray[np.float64]
    pick: int | None
    pearson: float | None = None
    spearman: float | None = None

    @property
    def correlations(self) -> str:
        """How it goes with the metric, in words; empty where that is unknown."""
        if self.pearson is None or self.spearman is None:
            return ""
        text = f"Pearson {self.pearson:+.2f}, Spearman {self.spearman:+.2f}"
        return text.replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True, kw_only=True)
class SignalCurves:
    """The signals of a run beside each other.

    Parameters
    ----------
    gwa : SignalCurve
        GWA in its healthy epochs.
    metric : SignalCurve or None
        The column that judges them.
    signals : tuple of SignalCurve
        Mean and separation of the scores, and the signals that the run stored.
    warmup : int
        Number of epochs before the range that is scaled.
    """

    gwa: SignalCurve
    metric: SignalCurve | None
    signals: tuple[SignalCurve, ...]
    warmup: int


def stored_signals(report: Findings) -> list[str]:
    """Return the columns of a run that are signals which say which epoch is better."""
    return [name for name in metric_names(report) if name in SIGNALS and SIGNALS[name].better]


def signal_curves(
    report: Findings, *, metric: str | None = None, mode: Literal["max", "min"] = "max"
) -> SignalCurves:
    """Return the signals of a run normalised as in Fig. 2 of the paper.

    Each is turned so that larger is better, and its range after the warm-up becomes [0, 1]: the
    first epochs of a training are so far from the rest that they would flatten it.

    Parameters
    ----------
    report : Report
        What `analyse` returned, T epochs.
    metric : str, optional
        A column that the run stored, such as ``test_accuracy``; default the first that is none of
        ``gwa_core.signals.SIGNALS``, where there is one.
    mode : {"max", "min"}
        Which end of `metric` is better.

    Returns
    -------
    SignalCurves
        A signal whose ``SIGNALS[name].better`` is None says nothing of epochs and is left out.

    Raises
    ------
    ValueError
        If the run has no such column.

    Notes
    -----
    GWA, separation and prediction changes keep the epoch of their rules, `MaxGWA`, `MaxSeparation`
    and `LabelWave`; the others the best after the warm-up, a tenth of the epochs; the metric the
    best of all. An unhealthy epoch is never kept. Correlations are over all epochs. Cost: O(T).

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Fig. 2.
    """
    if metric is None:
        metric = next((name for name in metric_names(report) if name not in SIGNALS), None)
    healthy = healthy_epochs(report)
    begin = int(WARMUP * len(report.epochs) + 1e-9)
    beside = {row.signal: row for row in compare([report], metric=metric).signals}

    def curve(name: str, values: NDArray[np.float64], high: bool, rule: Rule | None) -> SignalCurve:
        best = Patience(metric=name, mode="max" if high else "min", warmup=WARMUP)
        row = beside.get(name)
        turn = 1.0 if high == (mode == "max") else -1.0
        return SignalCurve(
            name=name,
            values=scaled(values, better="high" if high else "low", begin=begin),
            pick=select_step(values.tolist(), rule or best, healthy=healthy.tolist()).step,
            pearson=None if row is None or row.pearson is None else turn * row.pearson,
            spearman=None if row is None or row.spearman is None else turn * row.spearman,
        )

    judge = None
    if metric is not None:
        rule = Patience(metric=metric, mode=mode)
        judge = curve(metric, metric_values(report, metric), mode == "max", rule)
    own = [curve(name, column(report, name), True, RULES.get(name)) for name in OWN]
    stored = [
        curve(name, metric_values(report, name), SIGNALS[name].better == "high", RULES.get(name))
        for name in stored_signals(report)
        if name != metric
    ]
    gwa = np.where(healthy, column(report, "gwa"), np.nan)
    return SignalCurves(
        gwa=curve("gwa", gwa, True, RULES["gwa"]),
        metric=judge,
        signals=(*own, *stored),
        warmup=begin,
    )
