"""Which run is better, by its largest mean alignment: Fig. 3."""

from __future__ import annotations

import numpy as np
from scipy.stats import pearsonr, spearmanr

from experiments.data import GROUPS
from experiments.store import Result, column
from experiments.tables.cells import MISSING, NETWORKS, markdown
from experiments.tables.runs import judged, runs_of

__all__ = ["model_points", "models"]


def model_points(results: list[Result]) -> dict[str, list[tuple[float, float, float, str]]]:
    """Return largest mean, best test and last corrupted accuracy and labels of the runs, by study."""
    found: dict[str, list[tuple[float, float, float, str]]] = {}
    for study in NETWORKS:
        for run in judged(runs_of(results, study=study)):
            accuracy = 100 * column(run, "test_accuracy")
            groups = [
                100 * column(run, name)[-1]
                for name in (f"corrupted_{group}_accuracy" for group in GROUPS)
                if name in run["epochs"]
            ]
            largest = float(np.nanmax(column(run, "mean")))
            corrupted = float(np.mean(groups)) if groups else float("nan")
            point = largest, float(accuracy.max()), corrupted, run["settings"]["labels"]
            found.setdefault(study, []).append(point)
    return found


def models(results: list[Result]) -> str:
    """Fig. 3: over the runs, the largest mean alignment against test accuracy."""
    rows = []
    for study, points in model_points(results).items():
        largest, test, corrupted, _ = (np.asarray(x) for x in zip(*points, strict=True))
        cells = []
        for accuracy in (test, corrupted):
            usable = np.isfinite(accuracy.astype(float))
            if usable.sum() < 4:
                cells.append(MISSING)
                continue
            x, y = largest[usable].astype(float), accuracy[usable].astype(float)
            cells.append(f"{spearmanr(x, y).statistic:.2f} / {pearsonr(x, y).statistic:.2f}")
        rows.append([NETWORKS[study], str(len(points)), *cells])
    head = ["network", "runs", "test accuracy: Spearman / Pearson", "under corruptions"]
    return markdown(head, rows) if rows else ""
