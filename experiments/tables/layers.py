"""Alignment of the head and of ever more stages before it: Fig. 7."""

from __future__ import annotations

from experiments.store import Result, column
from experiments.tables.cells import TITLES, markdown, parts_of, spread
from experiments.tables.correlations import correlation
from experiments.tables.runs import runs_of

__all__ = ["PARTS", "layers"]

#: Parts of a network, from the head alone to all of it.
PARTS = {
    "head": "head",
    "stage4": "stage 4 and head",
    "stage3": "stages 3, 4 and head",
    "stage2": "stages 2 to 4 and head",
    "full": "all",
}


def layers(results: list[Result]) -> str:
    """Fig. 7 in numbers: alignment of the head and of ever more stages before it."""
    tables = {}
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
        tables[TITLES.get(labels, labels)] = table
    return parts_of(tables)
