"""Tables over all runs: corrupted test sets, whole models, label errors in further networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import pearsonr, spearmanr

from experiments.criteria import BEST, CRITERIA, VALIDATION, kept, share_of
from experiments.data import GROUPS
from experiments.regrets import judged
from experiments.store import Result, column
from experiments.tables import MISSING, NETWORKS, RANKINGS, markdown, newest, runs_of, spread
from gwa_core.signals import SIGNALS

__all__ = ["TABLES", "model_points"]

#: Table 2: the ViT's accuracy under CIFAR-C by the 10 % validation set, and what GWA adds.
CORRUPTED = {
    "blur": (81.19, 0.52),
    "digital": (79.42, 0.53),
    "noise": (77.08, 0.60),
    "weather": (79.25, 0.56),
}


def corruptions(results: list[Result]) -> str:
    """Table 2: accuracy of the kept epochs under corruptions, in per cent, mean over the runs."""
    parts = []
    for study, title in NETWORKS.items():
        of = [r for r in runs_of(results, study=study) if "corrupted_noise_accuracy" in r["epochs"]]
        rows = []
        for name in (BEST, *CRITERIA, VALIDATION):
            cells = []
            for group in sorted(GROUPS):
                found = []
                for run in runs_of(of, percent=share_of(name)):
                    k = kept(run, name)
                    if k is not None:
                        found.append(100 * float(column(run, f"corrupted_{group}_accuracy")[k]))
                cells.append(f"{np.mean(found):.2f}" if found else MISSING)
            rows.append([name, *cells])
        if of:
            n = [len(runs_of(of, percent=share)) for share in (100, 90)]
            if study == "vit":
                theirs = (CORRUPTED[group] for group in sorted(GROUPS))
                rows.append(
                    [
                        "paper: validation 10 %; GWA adds",
                        *(f"{x:.2f}; {more:+.2f}" for x, more in theirs),
                    ]
                )
            head = ["criterion", *sorted(GROUPS)]
            counted = f"{n[0]} on all data, {n[1]} on 90 %"
            parts.append(f"**{title}**, runs: {counted}\n\n{markdown(head, rows)}")
    return "\n".join(parts)


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


def further_errors(results: list[Result]) -> str:
    """Label errors in other networks: average precision by the mean over all epochs."""
    runs = [
        r
        for r in runs_of(results, percent=100)
        if r["detection"]
        and not r["settings"]["fold"]
        and r["settings"]["study"] not in NETWORKS
        and r["settings"]["labels"] != "random"
    ]
    parts = []
    for network in dict.fromkeys((r["settings"]["network"], r["settings"]["data"]) for r in runs):
        of = [r for r in runs if (r["settings"]["network"], r["settings"]["data"]) == network]
        labels = sorted({r["settings"]["labels"] for r in of})
        by = {x: newest(runs_of(of, labels=x)) for x in labels}
        rows = []
        for name in (*RANKINGS, "alignment", *SIGNALS):
            row = []
            for some in by.values():
                found = [r["detection"][name]["mean"] for r in some if name in r["detection"]]
                row.append(spread(found, 3))
            if any(cell != MISSING for cell in row):
                rows.append([f"`{name}`", *row])
        head = ["signal", *(f"{x}, {len(some)} runs" for x, some in by.items())]
        parts.append(f"**`{network[0]}` on {network[1]}**\n\n{markdown(head, rows)}")
    return "\n".join(parts)


#: By name: what makes the table.
TABLES: dict[str, Callable[[list[Result]], str]] = {
    "corruptions": corruptions,
    "models": models,
    "further-errors": further_errors,
}
