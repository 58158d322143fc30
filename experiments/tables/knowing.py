"""What is lost by those who know the wrong labels, or the test accuracy."""

from __future__ import annotations

import numpy as np

from experiments.criteria import SEPARATION, best_epoch, regret
from experiments.store import Result, column
from experiments.tables.cells import counted, markdown
from experiments.tables.fluctuation import smoothed
from experiments.tables.runs import groups, runs_of

__all__ = ["knowing"]


def knowing(results: list[Result]) -> str:
    """Points lost by rules, by who knows the wrong labels, and by who knows the test accuracy."""
    rows = []
    for title, some in groups(results).items():
        runs = [r for r in some if r["detection"]]
        for name in dict.fromkeys(r["settings"]["network"] for r in runs):
            of = runs_of(runs, network=name)
            lost = np.asarray([regret(r, _known(r)) for r in of])
            cells = (f"{x.mean():.2f} ({x.max():.2f})" for x in lost.T)
            rows.append([f"{title.split(',')[0]}, `{name}`, {counted(len(of), 'run')}", *cells])
    head = ["runs with wrong labels", SEPARATION, "largest bimodality"]
    head += ["right and wrong labels furthest apart", "best five-epoch mean of the accuracy"]
    return markdown(head, rows) if rows else ""


def _known(run: Result) -> list[int | None]:
    """Return what two rules keep, and who knows the wrong labels, and who knows the accuracy."""
    two = [best_epoch(run, name) for name in (SEPARATION, "largest bimodality")]
    apart = int(np.nanargmax(run["detection"]["alignment"]["auroc"]))
    return [*two, apart, int(smoothed(column(run, "test_accuracy")).argmax())]
