"""How much of a regret is what test accuracy does from epoch to epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import spearmanr

from experiments.criteria import SEPARATION, best_epoch, regret, warm
from experiments.store import Result, column
from experiments.tables.cells import NETWORKS, counted, spread, transposed
from experiments.tables.runs import judged, runs_of

__all__ = ["fluctuation", "smoothed"]

#: Epochs that a mean of test accuracy is over.
WINDOW = 5


def fluctuation(results: list[Result]) -> str:
    """How much of a regret is what test accuracy does from epoch to epoch, and what follows that."""
    beside = {
        "separation": ("separation", 1),
        "GWA": ("gwa", 1),
        "loss after, turned": ("after_loss", -1),
        "validation": ("validation_accuracy", 1),
    }
    rows = []
    for study, title in NETWORKS.items():
        runs = [
            r
            for r in judged(runs_of(results, study=study))
            if best_epoch(r, SEPARATION) is not None
        ]
        size, lost, least, smooth = [], [], [], []
        follows: dict[str, list[float]] = {name: [] for name in beside}
        for run in runs:
            accuracy = 100 * column(run, "test_accuracy")
            means = smoothed(accuracy)
            ours, late = best_epoch(run, SEPARATION), slice(warm(len(accuracy)), None)
            rest = (accuracy - means)[late]
            size.append(float(rest.std()))
            lost += regret(run, [ours])
            least += regret(run, [int(means.argmax())])
            smooth.append(float(means.max() - means[ours]))
            for name, (source, sign) in beside.items():
                if source in run["epochs"]:
                    x = sign * column(run, source)
                    follows[name].append(float(spearmanr((x - smoothed(x))[late], rest).statistic))
        if runs:
            cells = [f"{np.mean(x):.2f} ({max(x):.2f})" for x in (lost, least, smooth, size)]
            rows.append(
                [f"{title}, {counted(len(runs), 'run')}", *cells, *map(spread, follows.values())]
            )
    head = ["network", "lost by largest separation", "lost by the best five-epoch mean"]
    head += ["separation, in five-epoch means", "deviation from these means"]
    head += [f"{name}, Spearman" for name in beside]
    return transposed(head, rows) if rows else ""


def smoothed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the mean of five epochs around each, of fewer at the ends."""
    sizes = np.convolve(np.ones(len(values)), np.ones(WINDOW), mode="same")
    return np.convolve(values, np.ones(WINDOW), mode="same") / sizes
