"""Which epoch each criterion keeps, by network and labels: Table 1 and 5 of the paper."""

from __future__ import annotations

from experiments.criteria import (
    BEST,
    CRITERIA,
    FEW,
    SEPARATION,
    VALIDATION,
    best_epoch,
    outcome,
    share_of,
)
from experiments.store import Result, column
from experiments.tables.cells import (
    LABELS,
    MISSING,
    NETWORKS,
    TITLES,
    accuracy_cell,
    markdown,
    parts_of,
    spread,
)
from experiments.tables.runs import runs_of

__all__ = ["fixed_size", "stopping"]

#: Table 1 of the paper, CIFAR-10(-N) with 0, 9 and 17 % noise: test accuracy in per cent.
PAPER = {
    ("vit", VALIDATION): (81.10, 78.31, 75.23),
    ("vit", FEW): (79.99, 78.70, 74.75),
    ("vit", "LabelWave"): (81.00, 78.37, 75.02),
    ("vit", "gradient disparity, fifth increase"): (79.22, 77.56, 74.66),
    ("vit", "GWA, the paper's rule"): (81.57, 78.93, 75.70),
    ("convnext", VALIDATION): (89.86, 85.33, 82.30),
    ("convnext", FEW): (90.62, 86.05, 83.01),
    ("convnext", "LabelWave"): (89.84, 85.14, 81.15),
    ("convnext", "gradient disparity, fifth increase"): (89.25, 84.95, 81.71),
    ("convnext", "GWA, the paper's rule"): (89.73, 86.08, 82.55),
}
#: Table 5: difference of GWA on 90 % to the validation set on 90 %, for 0, 9 and 17 % errors.
FIXED = {"vit": (-0.12, -0.01, -0.27), "convnext": (-0.22, -0.17, -0.35)}


def stopping(results: list[Result]) -> str:
    """Table 1: test accuracy, regret and epoch by criterion; mean over seeds (max - min)."""
    parts = {}
    for study, title in NETWORKS.items():
        rows = []
        for name in (BEST, *CRITERIA, VALIDATION, FEW):
            cells = []
            for labels in LABELS:
                runs = runs_of(results, study=study, labels=labels, percent=share_of(name))
                cells.append(accuracy_cell([outcome(r, best_epoch(r, name)) for r in runs]))
            rows.append([name, *cells])
        if any(cell != MISSING for row in rows for cell in row[1:]):
            rows += [_theirs(name, values) for (of, name), values in PAPER.items() if of == study]
            parts[title] = markdown(["criterion", *TITLES.values()], _known(rows))
    return parts_of(parts)


def fixed_size(results: list[Result]) -> str:
    """Table 5: on one training set of 90 %, the rules' test accuracy less the validation set's."""
    parts = {}
    for study, title in NETWORKS.items():
        rows = []
        for name in (SEPARATION, "largest bimodality", "GWA, the paper's rule", "LabelWave",
                     "last epoch"):  # fmt: skip
            cells = []
            for labels in LABELS:
                found = []
                for run in runs_of(results, study=study, labels=labels, percent=90):
                    accuracy = 100 * column(run, "test_accuracy")
                    k, held = best_epoch(run, name), best_epoch(run, VALIDATION)
                    if k is not None and held is not None:
                        found.append(float(accuracy[k] - accuracy[held]))
                cells.append(spread(found))
            rows.append([name, *cells])
        if any(cell != MISSING for row in rows for cell in row[1:]):
            if study in FIXED:
                rows.append(_theirs("GWA, the paper's rule", FIXED[study]))
            parts[title] = markdown(["rule", *TITLES.values()], rows)
    return parts_of(parts)


def _theirs(name: str, values: tuple[float, ...]) -> list[str]:
    """Return a row of the paper's numbers, which has no label set of 40 % errors."""
    cells = [f"{x:.2f}" for x in values]
    return [
        f"*the paper:* {name.partition(',')[0]}",
        *cells,
        *[MISSING] * (len(LABELS) - len(cells)),
    ]


def _known(rows: list[list[str]]) -> list[list[str]]:
    """Return the rows that have something."""
    return [row for row in rows if set(row[1:]) != {MISSING}]
