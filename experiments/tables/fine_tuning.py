"""Which epoch each rule keeps in fine-tuning, and whether GWA dips at first: Table 3 and Fig. 5."""

from __future__ import annotations

import numpy as np

from experiments.criteria import BEST, VALIDATION, best_epoch, outcome, share_of
from experiments.store import Result, column, history
from experiments.tables.cells import MISSING, TITLES, accuracy_cell, markdown, parts_of
from experiments.tables.runs import runs_of
from gwa_core import DipThenMax, select_epoch

__all__ = ["STUDIES", "after_dip", "fine_tuning", "lowest"]

#: Studies of pretrained networks, by what they are called.
STUDIES = {"lite0": "EfficientNet-Lite0 on CIFAR-10-N", "minilm": "MiniLM on Reuters R8"}
RULE = "GWA, the fine-tuning rule"
ROWS = (
    BEST, RULE, "largest separation", "largest bimodality", "GWA, the paper's rule", "LabelWave",
    VALIDATION, "last epoch",
)  # fmt: skip
#: Table 3 of the paper, test accuracy in per cent: of what network, on which data, by what it keeps.
THEIR_NETWORK = "The paper's ViT-B/16"
THEIR_DATA = ("ImageNet", "iNat18", "Places365")
PAPER = {VALIDATION: (84.04, 72.87, 58.66), RULE: (84.15, 73.73, 58.78)}


def fine_tuning(results: list[Result]) -> str:
    """Table 3: test accuracy, regret and epoch by rule; mean over seeds (max - min); who dips."""
    parts = {}
    for study, title in STUDIES.items():
        of_study = runs_of(results, study=study)
        found = {r["settings"]["labels"] for r in of_study}
        sets = [x for x in TITLES if x in found] + sorted(found - TITLES.keys())
        rows = []
        for name in ROWS:
            cells = [
                accuracy_cell([outcome(r, _epoch(r, name)) for r in runs], epoch=True)
                for runs in (runs_of(of_study, labels=x, percent=share_of(name)) for x in sets)
            ]
            if set(cells) != {MISSING}:
                rows.append([name, *cells])
        dips = [_dips(runs_of(of_study, labels=x, percent=100)) for x in sets]
        rows.append(["runs whose GWA dips", *dips])
        if sets:
            parts[title] = markdown(["rule", *(TITLES.get(x, x) for x in sets)], rows)
    if parts:
        theirs = [[name, *(f"{x:.2f}" for x in values)] for name, values in PAPER.items()]
        theirs.append(["runs whose GWA dips", *["all"] * len(THEIR_DATA)])
        parts[THEIR_NETWORK] = markdown(["rule", *THEIR_DATA], theirs)
    return parts_of(parts)


def after_dip(run: Result) -> int | None:
    """Return the position of the epoch that the fine-tuning rule keeps; None where GWA only falls."""
    return select_epoch(history(run), DipThenMax()).step


def lowest(run: Result) -> int | None:
    """Return the position of the lowest GWA of a healthy epoch before that: 0 if it only rises."""
    k = after_dip(run)
    if k is None:
        return None
    healthy = [summary.healthy for summary in history(run)]
    return int(np.nanargmin(np.where(healthy, column(run, "gwa"), np.nan)[: k + 1]))


def _epoch(run: Result, name: str) -> int | None:
    return after_dip(run) if name == RULE else best_epoch(run, name)


def _dips(runs: list[Result]) -> str:
    at = [lowest(r) for r in runs]
    dips = [k for k in at if k]
    if not dips:
        return f"0 of {len(runs)}" if runs else MISSING
    return f"{len(dips)} of {len(runs)}, to epoch {np.mean(dips):.1f}"
