"""Comparison of runs, and of alignment and other signals with a metric (Fig. 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gwa_core import summarize_history
from gwa_offline.analysis.findings import Findings
from gwa_offline.analysis.view import column, healthy_epochs, metric_names, metric_values

__all__ = ["Comparison", "ComparisonRow", "SignalRow", "compare"]

# Fields of the summaries that are compared with the metric, beside the columns of the run.
OWN_SIGNALS = ("gwa", "mean", "bimodality", "separation")


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One run.

    Parameters
    ----------
    name : str
        Of the run.
    max_mean : float
        Largest mean alignment over its epochs, the paper's measure between runs.
    max_gwa : float
        Largest GWA of a healthy epoch.
    best_epoch : int or None
        Number of the epoch that its rule keeps.
    metric : float or None
        The metric column there; of the last epoch where no epoch qualifies.
    memorising : bool
        Whether the run memorises wrong labels.
    """

    name: str
    max_mean: float
    max_gwa: float
    best_epoch: int | None
    metric: float | None
    memorising: bool


@dataclass(frozen=True, kw_only=True)
class SignalRow:
    """One signal of one run compared with the metric, over its epochs.

    Parameters
    ----------
    run : str
        Name of the run.
    signal : str
        A field of the summaries (gwa, mean, bimodality, separation) or a column of the run.
    pearson, spearman : float or None
        Correlation with the metric over the epochs that have both; None for fewer than three such
        epochs, or if one of the two is constant. GWA counts in healthy epochs only.
    """

    run: str
    signal: str
    pearson: float | None
    spearman: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs, and how well alignment ranks them.

    Parameters
    ----------
    rows : tuple of ComparisonRow
        In the order given.
    metric : str or None
        Name of the metric column.
    pearson, spearman : float or None
        Correlation of `max_mean` with the metric over runs; None below three runs that have both.
    signals : tuple of SignalRow
        Each signal of each run that has the metric.
    """

    rows: tuple[ComparisonRow, ...]
    metric: str | None
    pearson: float | None
    spearman: float | None
    signals: tuple[SignalRow, ...]


def compare(reports: Sequence[Findings], *, metric: str | None = None) -> Comparison:
    """Compare reports.

    Parameters
    ----------
    reports : sequence of Report
        What `analyse` returned for each run.
    metric : str, optional
        A column of the runs, such as ``test_accuracy``.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If no run has the column.

    Notes
    -----
    Cost: O(runs).

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.2, Fig. 2 and 3.
    """
    rows = tuple(_row(report, metric) for report in reports)
    check_metric(reports, metric)
    pairs = np.asarray(
        [(row.max_mean, row.metric) for row in rows if row.metric is not None], dtype=np.float64
    ).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    return Comparison(
        rows=rows,
        metric=metric,
        pearson=_correlation(pairs[:, 0], pairs[:, 1]),
        spearman=_correlation(_ranks(pairs[:, 0]), _ranks(pairs[:, 1])),
        signals=tuple(row for report in reports for row in signal_rows(report, metric)),
    )


def check_metric(reports: Sequence[Findings], metric: str | None) -> None:
    """Refuse a column that no run has at the epoch that it shows."""
    if metric is None or any(metric in r.epochs[r.shown].metrics for r in reports):
        return
    columns = sorted({name for r in reports for epoch in r.epochs for name in epoch.metrics})
    raise ValueError(
        f"`metric` must be a column of the runs, got {metric!r}; "
        f"there {'is ' + ', '.join(columns) if columns else 'are none'}"
    )


def signal_rows(report: Findings, metric: str | None, *, first: int = 0) -> Iterator[SignalRow]:
    """Yield the correlation of each signal with the metric over the epochs of a run from one on."""
    names = metric_names(report)
    if metric is None or metric not in names:
        return
    beside = metric_values(report, metric)
    own = {name: column(report, name) for name in OWN_SIGNALS}
    own["gwa"] = np.where(healthy_epochs(report), own["gwa"], np.nan)
    others = {name: metric_values(report, name) for name in names if name != metric}
    for name, values in (own | others).items():
        both = np.isfinite(values) & np.isfinite(beside)
        both[:first] = False
        a, b = values[both], beside[both]
        yield SignalRow(
            run=report.name,
            signal=name,
            pearson=_correlation(a, b),
            spearman=_correlation(_ranks(a), _ranks(b)),
        )


def _row(report: Findings, metric: str | None) -> ComparisonRow:
    history = summarize_history([record.summary for record in report.epochs])
    found = None if metric is None else report.epochs[report.shown].metrics.get(metric)
    return ComparisonRow(
        name=report.name,
        max_mean=history.max_mean,
        max_gwa=history.max_gwa,
        best_epoch=report.best_epoch,
        metric=found,
        memorising=history.memorising,
    )


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks, equal values sharing their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    with np.errstate(all="ignore"):  # a loss of 1e308 has no variance
        if len(a) < 3 or a.std() == 0 or b.std() == 0:
            return None
        value = float(np.corrcoef(a, b)[0, 1])
    return value if math.isfinite(value) else None
