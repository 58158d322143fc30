"""Figures of the protocol of the experiments, as sentences of the results chapter say them."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from experiments.criteria import best_epoch
from experiments.store import Result, column
from experiments.tables import stopping as published
from experiments.tables.runs import judged

from .epochs import of
from .rules import PAPER
from .words import listed, number, signed

#: Studies of the paper's networks, and the label sets that it has too.
STUDIES = {"convnext": ("label", "aggre", "random1"), "vit": ("label", "random1")}
ERRORS = ("label", "aggre", "random1")


def beside_paper() -> dict[str, str]:
    """Accuracy at the epoch of the paper's rule, here and in the paper."""
    found = {}
    for study, labels in STUDIES.items():
        ours = [_accuracy(of(study=study, labels=x, percent=100)) for x in labels]
        theirs = dict(zip(ERRORS, published.PAPER[study, PAPER], strict=True))
        found[study] = listed(ours)
        # As one rounds what is printed with two places.
        places = [
            float(Decimal(str(theirs[x])).quantize(Decimal("0.1"), ROUND_HALF_UP)) for x in labels
        ]
        found[f"{study}_paper"] = listed(places)
    return found


def _accuracy(runs: list[Result]) -> float:
    kept = ((run, best_epoch(run, PAPER)) for run in runs)
    return float(np.mean([100 * column(run, "test_accuracy")[k] for run, k in kept]))


def memorised() -> dict[str, str]:
    """The median score of wrong labels, which says how much of them is memorised."""
    found = {}
    for study in ("convnext", "vit", "coarse"):
        (run,) = of(study=study, labels="random1", percent=100, seed=0)
        median = column(run, "wrong_middle")
        found[study], found[f"{study}_lowest"] = (
            signed(f"{x:.2f}") for x in (median[-1], median.min())
        )
    assert found["vit"] == found["vit_lowest"]
    for short, data in {"images": "cifar10n", "fashion": "fashion-mnist"}.items():
        ends = [
            float(column(run, "wrong_middle")[-1])
            for run in judged(of(network="mlp", data=data))
            if "wrong_middle" in run["epochs"]
        ]
        found[f"{short}_runs"] = str(len(ends))
        above = sum(x > 0 for x in ends)
        found[f"{short}_above"] = str(above) if above else number(above)
    return found
