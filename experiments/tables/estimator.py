"""How far the scores of an epoch lie from those at its end: Fig. 6."""

from __future__ import annotations

import numpy as np
from scipy.stats import pearsonr

from experiments.store import Result, column
from experiments.tables.cells import MISSING, markdown, spread
from experiments.tables.runs import runs_of

__all__ = ["estimator", "paired"]

#: Glass's delta in App. A.1, by learning rate: mean and largest over the epochs.
PAPER = {0.1: (0.04, 0.12), 0.01: (0.027, 0.08), 0.001: (0.020, 0.05)}


def paired(run: Result) -> tuple[float, float]:
    """Return the correlation over the epochs of online and offline GWA, and of their means."""
    gwa, mean = (
        pearsonr(column(run, name), column(run, f"offline_{name}")).statistic
        for name in ("gwa", "mean")
    )
    return float(gwa), float(mean)


def estimator(results: list[Result]) -> str:
    """Fig. 6 in numbers: how far the scores of an epoch lie from those at its end."""
    rows = []
    runs = runs_of(results, study="estimator")
    for rate in sorted({r["settings"]["learning_rate"] for r in runs}, reverse=True):
        of_rate = [r for r in runs if r["settings"]["learning_rate"] == rate]
        gwa, mean = (list(x) for x in zip(*map(paired, of_rate), strict=True))
        deltas = [abs(column(r, "glass_delta")) for r in of_rate]
        theirs = PAPER.get(rate)
        rows.append(
            [
                f"{rate:g}",
                spread(gwa, 4),
                spread(mean, 4),
                spread([float(np.nanmean(x)) for x in deltas], 3),
                spread([float(np.nanmax(x)) for x in deltas], 3),
                f"{theirs[0]} / {theirs[1]}" if theirs else MISSING,
                spread([100 * column(r, "test_accuracy").max() for r in of_rate]),
            ]
        )
    head = ["learning rate", "GWA, Pearson", "mean, Pearson", "Glass's delta, mean", "largest"]
    return markdown([*head, "paper: mean / largest", "best test accuracy, %"], rows) if rows else ""
