"""The tables of the paper's Appendix A.1 and A.2: estimator, layers, widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import pearsonr

from experiments.store import Result, column
from experiments.tables import MISSING, TITLES, correlation, markdown, runs_of, spread

__all__ = ["PARTS", "TABLES", "paired", "widths_of"]

#: Glass's delta in App. A.1, by learning rate: mean and largest over the epochs.
PAPER = {0.1: (0.04, 0.12), 0.01: (0.027, 0.08), 0.001: (0.020, 0.05)}
#: Parts of a network, from the head alone to all of it.
PARTS = {
    "head": "head",
    "stage4": "stage 4 and head",
    "stage3": "stages 3, 4 and head",
    "stage2": "stages 2 to 4 and head",
    "full": "all",
}


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


def layers(results: list[Result]) -> str:
    """Fig. 7 in numbers: alignment of the head and of ever more stages before it."""
    tables = []
    runs = runs_of(results, study="layers")
    for labels in dict.fromkeys(r["settings"]["labels"] for r in runs):
        of_labels = runs_of(runs, labels=labels)
        rows = []
        for part, title in PARTS.items():
            if f"{part}_mean" not in of_labels[0]["epochs"]:
                continue
            best = [int(column(r, "test_accuracy").argmax()) for r in of_labels]
            cells = [
                spread(
                    [
                        float(column(r, f"{part}_{name}")[k])
                        for r, k in zip(of_labels, best, strict=True)
                    ],
                    digits,
                )
                for name, digits in {
                    "mean": 4,
                    "deviation": 4,
                    "kurtosis": 1,
                    "with_head": 2,
                }.items()
            ]
            cells += [
                spread([correlation(r, f"{part}_{name}", 1)[0] for r in of_labels])
                for name in ("mean", "gwa")
            ]
            rows.append([title, *cells])
        head = ["part", "mean", "deviation", "kurtosis", "Pearson with the head's"]
        table = markdown([*head, "mean, Spearman", "GWA, Spearman"], rows)
        tables.append(
            f"**{TITLES.get(labels, labels)}**, scores at the best epoch; Spearman with test "
            f"accuracy over the epochs\n\n{table}"
        )
    return "\n".join(tables)


def widths_of(results: list[Result]) -> dict[int, dict[str, list[tuple[float, float, float]]]]:
    """Return by width: largest mean, largest GWA and best test accuracy (%) of each run.

    Under "full", "measured" (behind a sketch in measuring alone) and "frozen" (in training too).
    """
    found: dict[int, dict[str, list[tuple[float, float, float]]]] = {}
    for run in runs_of(results, study="widths"):
        _, width, *frozen = run["settings"]["network"].split("-")
        kinds = {"frozen" if frozen else "full": ""}
        if "sketched_gwa" in run["epochs"]:
            kinds["measured"] = "sketched_"
        for kind, prefix in kinds.items():
            names = f"{prefix}mean", f"{prefix}gwa"
            mean, gwa = (float(np.nanmax(column(run, name))) for name in names)
            best = 100 * float(column(run, "test_accuracy").max())
            found.setdefault(int(width), {}).setdefault(kind, []).append((mean, gwa, best))
    return dict(sorted(found.items()))


def widths(results: list[Result]) -> str:
    """Fig. 8 in numbers: largest mean alignment and GWA by the width of the latents."""
    rows = []
    for width, kinds in widths_of(results).items():
        columns = {
            kind: [list(x) for x in zip(*kinds[kind], strict=True)] if kind in kinds else [[]] * 3
            for kind in ("full", "measured", "frozen")
        }
        cells = [spread(columns[kind][k], 3) for k in (0, 1) for kind in columns]
        accuracy = [spread(columns[kind][2]) for kind in ("full", "frozen")]
        rows.append([str(width), *cells, *accuracy])
    how = ["", ", sketch measured only", ", frozen sketch"]
    head = [f"{name}{x}" for name in ("mean", "GWA") for x in how]
    accuracy = ["best test accuracy, %", "with frozen sketch, %"]
    return markdown(["width", *head, *accuracy], rows) if rows else ""


#: By name: what makes the table.
TABLES: dict[str, Callable[[list[Result]], Any]] = {
    "estimator": estimator,
    "layers": layers,
    "widths": widths,
}
