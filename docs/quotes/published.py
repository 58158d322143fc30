"""Figures of a ResNet-18 beside published numbers, as sentences say them."""

from __future__ import annotations

import numpy as np

from experiments.criteria import LABELWAVE, SEPARATION, best_epoch, regret, warm
from experiments.store import Result, column
from experiments.tables import published as table
from experiments.tables.runs import runs_of

from .averages import results
from .words import spread

THEIR_BEST, THEIR_WAVE, CO_TEACHING = (
    "cross-entropy, best epoch (LabelWave's paper)",
    "LabelWave, its paper",
    "Co-teaching, its authors",
)


def _runs() -> dict[str, Result]:
    """Return the runs by their labels."""
    return {run["settings"]["labels"]: run for run in runs_of(results(), study=table.STUDY)}


def _best(run: Result) -> float:
    return 100 * float(column(run, "test_accuracy").max())


def _average(run: Result) -> float:
    return 100 * float(run["kept"]["test_accuracy"][table.AVERAGE])


def beside() -> dict[str, str]:
    """What the average and rules have, and what others publish."""
    runs = _runs()
    symmetric = [run for labels, run in runs.items() if labels.startswith("symmetric")]
    one_way, usual, few = (runs[x] for x in ("asymmetric-40", "symmetric-40", "symmetric-20"))
    steps = [100 * float(column(run, table.EMA).max()) - _average(run) for run in symmetric]
    kept = best_epoch(one_way, SEPARATION)
    # Sentences say that it is one of the first epochs, and that LabelWave keeps the best.
    assert kept is not None
    assert kept < 2 * warm(len(column(one_way, "epoch")))
    assert regret(one_way, [best_epoch(one_way, LABELWAVE)])[0] == 0
    theirs = {name: {k: float(x) for k, x in of.items()} for name, of in table.PUBLISHED.items()}
    jumps = 100 * np.abs(np.diff(column(one_way, "test_accuracy")))
    return {
        "behind": f"{theirs[THEIR_WAVE]['symmetric-40'] - _average(usual):.1f}",
        "average": spread([_average(run) - _best(run) for run in symmetric], 1),
        "steps": f"{max(map(abs, steps)):.1f}",
        "separation_asymmetric": f"{regret(one_way, [kept])[0]:.0f}",
        "average_asymmetric": f"{_average(one_way) - _best(one_way):.1f}",
        "jump": f"{jumps.max():.1f}",
        "wave": f"{regret(usual, [best_epoch(usual, LABELWAVE)])[0]:.1f}",
        "their_wave": f"{theirs[THEIR_BEST]['symmetric-40'] - theirs[THEIR_WAVE]['symmetric-40']:.1f}",
        "co_teaching": f"{_average(few) - theirs[CO_TEACHING]['symmetric-20']:.1f}",
    }


def settings() -> dict[str, str]:
    """How these runs were trained."""
    (of,) = {
        tuple(run["settings"][x] for x in ("learning_rate", "batch_size", "weight_decay"))
        for run in _runs().values()
    }
    (epochs,) = {len(column(run, "epoch")) for run in _runs().values()}
    rate, batch, decay = of
    return {"rate": f"{rate}", "batch": f"{batch}", "decay": f"{decay}", "epochs": f"{epochs}"}
