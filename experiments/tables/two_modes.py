"""Runs with epochs whose scores have two modes, and with unhealthy ones: Fig. 10."""

from __future__ import annotations

import numpy as np

from experiments.criteria import best_epoch, regret
from experiments.store import Result, column
from experiments.tables.cells import counted, markdown

__all__ = ["two_modes", "unhealthy"]

#: Sarle's coefficient of a uniform distribution; above it there are two modes.
TWO_MODES = 5 / 9
KEPT = {"separation": "largest separation", "GWA": "GWA, the paper's rule", "last": "last epoch"}


def two_modes(results: list[Result]) -> str:
    """Fig. 10 in numbers: the runs with epochs of two modes, and with unhealthy ones.

    A row is of the runs of one network on one kind of labels. A language model has no test accuracy
    that tells of its answers.
    """
    found: dict[str, list[Result]] = {}
    for run in results:
        s = run["settings"]
        if s["neighbours"] or s["windows"]:
            # Without the columns, or of parts of an epoch.
            continue
        if (_bimodal(run) or unhealthy(run)) and s["labels"] != "random" and not s["loss"]:
            many = " on 1,000 classes" if s["data"] == "completion" else ""
            found.setdefault(f"{s['network']}{many}, {s['labels']}", []).append(run)
    rows = []
    for title, runs in sorted(found.items()):
        counts = [sum(map(count, runs)) for count in (_bimodal, unhealthy, _epochs)]
        rows.append(
            [
                # No code, whose lines do not break.
                f"{title}, {len(runs)}",
                " / ".join(map(str, counts)),
                f"{min(np.nanmin(column(run, 'denominator')) for run in runs):.2f}",
                f"{max(np.nanmax(abs(column(run, 'gwa'))) for run in runs):.2f}",
                *(_lost(runs, name) for name in KEPT.values()),
            ]
        )
    head = [
        "network, labels, runs",
        "two modes / unhealthy / epochs",
        "smallest denominator",
        "largest \\|GWA\\|",
    ]
    return markdown([*head, *KEPT], rows) if rows else ""


def unhealthy(run: Result) -> int:
    """Return how many epochs of a run are unhealthy."""
    # As `EpochSummary.healthy`; nan is not.
    return sum(not value > 0 for value in column(run, "denominator"))


def _bimodal(run: Result) -> int:
    return int((column(run, "bimodality") > TWO_MODES).sum())


def _epochs(run: Result) -> int:
    return len(column(run, "bimodality"))


def _lost(runs: list[Result], name: str) -> str:
    """Return the points lost by a rule, mean and worst, in the runs in which it keeps an epoch."""
    lost = np.asarray([regret(run, [best_epoch(run, name)])[0] for run in runs])
    known = lost[np.isfinite(lost)]
    if not len(known):
        return "keeps none"
    worst = f" ({known.max():.1f})" if len(known) > 1 else ""
    some = f"<br>{counted(len(known), 'run')}" if len(known) < len(lost) else ""
    return f"{known.mean():.1f}{worst}{some}"
