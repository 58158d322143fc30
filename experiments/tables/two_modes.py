"""Runs with epochs whose scores have two modes, and with unhealthy ones: Fig. 10."""

from __future__ import annotations

import numpy as np

from experiments.criteria import best_epoch, regret
from experiments.store import Result, column, name_of
from experiments.tables.cells import markdown

__all__ = ["two_modes", "unhealthy"]

#: Sarle's coefficient of a uniform distribution; above it there are two modes.
TWO_MODES = 5 / 9


def two_modes(results: list[Result]) -> str:
    """Fig. 10 in numbers: the runs with epochs of two modes, and with unhealthy ones."""
    rows = []
    for run in results:
        bimodality = column(run, "bimodality")
        count, ill = int((bimodality > TWO_MODES).sum()), unhealthy(run)
        if not (count or ill) or run["settings"]["labels"] == "random":
            continue
        cells = []
        for name in ("largest separation", "GWA, the paper's rule", "last epoch"):
            k = best_epoch(run, name)
            cells.append("none" if k is None else f"{k}, −{regret(run, [k])[0]:.1f}")
        rows.append(
            [
                f"`{name_of(run)}`",
                str(len(bimodality)),
                str(count),
                str(ill),
                f"{np.nanmin(column(run, 'denominator')):.2f}",
                f"{np.nanmax(abs(column(run, 'gwa'))):.3f}",
                *cells,
            ]
        )
    head = ["run", "epochs", "two modes", "unhealthy", "smallest denominator", "largest \\|GWA\\|"]
    head += ["separation keeps", "GWA keeps", "last epoch"]
    return markdown(head, rows) if rows else ""


def unhealthy(run: Result) -> int:
    """Return how many epochs of a run are unhealthy."""
    # As `EpochSummary.healthy`; nan is not.
    return sum(not value > 0 for value in column(run, "denominator"))
