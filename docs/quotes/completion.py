"""Figures of a task with 1,000 classes, as sentences say them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from experiments.criteria import BIMODALITY, LABELWAVE, LAST, PAPER, SEPARATION, best_epoch
from experiments.store import Result, column
from experiments.tables import keep
from experiments.tables.runs import runs_of

from .averages import results
from .rules import lost
from .words import listed, number


def _runs(**having: object) -> list[Result]:
    return runs_of(results(), study="completion", **having)


def _both(name: str, some: list[Result]) -> str:
    """Return the points lost with each of two seeds."""
    return listed(lost(some, name))


def rules() -> dict[str, str]:
    """What rules lose: over all runs, and seed by seed where labels are wrong."""
    runs, some, many = _runs(), _runs(labels="symmetric-20"), _runs(labels="symmetric-40")
    assert _both(SEPARATION, many) == _both(LAST, many)
    assert _both(SEPARATION, some) == _both(BIMODALITY, some)
    assert _both(PAPER, many) == _both(BIMODALITY, many)
    assert _both(LABELWAVE, some) == _both(LAST, some)
    means = [column(run, "mean") for run in many]
    kept = [best_epoch(run, BIMODALITY) for run in many]
    before = np.mean([mean[k] for mean, k in zip(means, kept, strict=True)])
    found = {"runs": number(len(runs)), "before": f"{before:.4f}"}
    found["after"] = f"{np.mean([mean[-1] for mean in means]):.4f}"
    for short, name in {"rule": SEPARATION, "modes": BIMODALITY, "paper": PAPER}.items():
        of = lost(runs, name)
        found[short], found[f"{short}_worst"] = f"{np.mean(of):.1f}", f"{max(of):.1f}"
        found[f"{short}_20"], found[f"{short}_40"] = _both(name, some), _both(name, many)
    return found | {"last_20": _both(LAST, some)}


def averages() -> dict[str, str]:
    """What the average loses with the seed that reports."""
    runs, _ = keep.reported(results())
    of = {r["settings"]["labels"]: r for r in runs if keep.size_of(r) == keep.MANY}

    def points(kept: Callable[[Result], float | None], labels: str) -> float:
        gain = keep.above(of[labels], kept)
        assert gain is not None
        return -gain

    def modes(run: Result) -> float:
        return float(run["kept"]["test_accuracy"]["bimodality^10"])

    average, last = (keep.KEPT[name] for name in (keep.AVERAGE, LAST))
    return {
        "average_40": f"{points(average, 'symmetric-40'):.1f}",
        "average_20": f"{points(average, 'symmetric-20'):.1f}",
        "last_40": f"{points(last, 'symmetric-40'):.1f}",
        "modes_40": f"{points(modes, 'symmetric-40'):.1f}",
        "modes_20": f"{-points(modes, 'symmetric-20'):.1f}",
    }


def labels() -> dict[str, str]:
    """The average precision of rankings under 20 and 40 % errors."""
    found = {}
    for share in (20, 40):
        runs = _runs(labels=f"symmetric-{share}")
        for short, name in {
            "quality": "label_quality", "aum": "margin", "loss": "sample_loss",
            "mean": "alignment", "excess": "by excess bimodality",
        }.items():  # fmt: skip
            some = [run["detection"][name]["mean"] for run in runs]
            found[f"{short}_{share}"] = f"{np.mean(some):.2f}"
    return found
