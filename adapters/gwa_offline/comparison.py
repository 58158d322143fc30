"""Runs beside each other, and alignment beside a metric (Fig. 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gwa_core import summarize_history
from gwa_offline.results import Report

__all__ = ["Comparison", "ComparisonRow", "compare"]


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
    chosen : int or None
        The epoch its rule keeps.
    metric : float or None
        The metric column there; of the last epoch where none was chosen.
    memorising : bool
        Whether the run came to memorise wrong labels.
    """

    name: str
    max_mean: float
    max_gwa: float
    chosen: int | None
    metric: float | None
    memorising: bool


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
    """

    rows: tuple[ComparisonRow, ...]
    metric: str | None
    pearson: float | None
    spearman: float | None


def compare(reports: Sequence[Report], *, metric: str | None = None) -> Comparison:
    """Put reports beside each other.

    Parameters
    ----------
    reports : sequence of Report
        What `analyse` returned for each run.
    metric : str, optional
        A column the runs stored, such as ``test_accuracy``.

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
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.2, Fig. 3.
    """
    rows = tuple(_row(report, metric) for report in reports)
    if metric is not None and all(row.metric is None for row in rows):
        columns = sorted({name for r in reports for epoch in r.epochs for name in epoch.metrics})
        raise ValueError(
            f"`metric` must be a column of the runs, got {metric!r}; "
            f"there {'is ' + ', '.join(columns) if columns else 'are none'}"
        )
    pairs = np.asarray(
        [(row.max_mean, row.metric) for row in rows if row.metric is not None], dtype=np.float64
    ).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    return Comparison(
        rows=rows,
        metric=metric,
        pearson=_correlation(pairs[:, 0], pairs[:, 1]),
        spearman=_correlation(_ranks(pairs[:, 0]), _ranks(pairs[:, 1])),
    )


def _row(report: Report, metric: str | None) -> ComparisonRow:
    history = summarize_history([record.summary for record in report.epochs])
    found = None if metric is None else report.epochs[report.shown].metrics.get(metric)
    return ComparisonRow(
        name=report.name,
        max_mean=history.max_mean,
        max_gwa=history.max_gwa,
        chosen=report.selection.step,
        metric=found,
        memorising=history.memorising,
    )


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks, equal values sharing their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return None
    value = float(np.corrcoef(a, b)[0, 1])
    return value if math.isfinite(value) else None
