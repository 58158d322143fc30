"""Accuracy under corruptions of the epochs that are kept: Table 2."""

from __future__ import annotations

import numpy as np

from experiments.criteria import BEST, CRITERIA, VALIDATION, best_epoch, share_of
from experiments.data import GROUPS
from experiments.store import Result, column
from experiments.tables.cells import MISSING, NETWORKS, markdown
from experiments.tables.runs import runs_of

__all__ = ["corruptions"]

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
                    k = best_epoch(run, name)
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
                        "*the paper:* validation 10 %; GWA adds",
                        *(f"{x:.2f}; {more:+.2f}" for x, more in theirs),
                    ]
                )
            head = ["criterion", *sorted(GROUPS)]
            counted = f"{n[0]} on all data, {n[1]} on 90 %"
            parts.append(f"**{title}**, runs: {counted}\n\n{markdown(head, rows)}")
    return "\n".join(parts)
