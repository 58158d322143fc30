"""Figures of fine-tuning over whole epochs, and of GWA over windows, as sentences say them."""

from __future__ import annotations

import numpy as np

from experiments.criteria import (
    BIMODALITY,
    LABELWAVE,
    LAST,
    PAPER,
    SEPARATION,
    best_epoch,
    outcome,
)
from experiments.store import Result, column
from experiments.tables import fine_tuning as tuning
from experiments.tables.runs import runs_of

from .averages import results
from .windows import LITE, MINILM
from .words import listed, signed, spread


def _lost(runs: list[Result], name: str) -> list[float]:
    """Return the points that a rule loses, run by run."""
    kept = (tuning.after_dip(r) if name == tuning.RULE else best_epoch(r, name) for r in runs)
    return [outcome(run, k)[1] for run, k in zip(runs, kept, strict=True)]


def whole() -> dict[str, str]:
    """What rules lose in trainings of several epochs, and what becomes of the scores."""
    lite, minilm = (runs_of(results(), study=study) for study in tuning.STUDIES)
    some, many = (runs_of(minilm, labels=f"symmetric-{share}") for share in (20, 40))
    rules = {
        "dip": tuning.RULE,
        "rule": SEPARATION,
        "wave": LABELWAVE,
        "modes": BIMODALITY,
        "paper": PAPER,
        "last": LAST,
    }
    assert _lost(lite, tuning.RULE) == _lost(lite, PAPER)
    found = {
        "worst": f"{max(x for name in rules.values() for x in _lost(minilm, name)):.1f}",
        "memorised": f"{100 * column(many[0], 'test_accuracy')[-1]:.0f}",
        "denominator": f"{min(column(run, 'denominator')[-1] for run in minilm):.0f}",
        "begins": signed(spread([column(run, "denominator")[0] for run in minilm], 1)),
        "epochs": f"{len(column(minilm[0], 'epoch'))}",
    }
    for short, name in rules.items():
        found[f"lite_{short}"] = f"{max(_lost(lite, name)):.1f}"
        found[short] = listed(_lost([*some, *many], name))
    return found


def windows() -> dict[str, str]:
    """Where GWA is highest in windows of a tenth of an epoch, and the kurtosis of the scores."""

    def highest(run: Result) -> int:
        return int(np.nanargmax(column(run, "gwa")))

    def after(k: int, run: Result) -> float:
        return float((k + 1) / run["settings"]["windows"])

    lite, minilm = (runs_of(results(), study=study, percent=100) for study in (LITE, MINILM))
    falls = []
    for run in lite:
        gwa = column(run, "gwa")
        falls.append(100 * (1 - gwa[-1] / gwa[highest(run)]))
    right = [column(run, "kurtosis") for run in runs_of(minilm, labels="label")]
    waves = [after(k, run) for run in lite if (k := best_epoch(run, LABELWAVE)) is not None]
    assert len(waves) == len(lite)
    return {
        "highest": spread([after(highest(run), run) for run in lite], 1),
        "lower": spread(falls, 0),
        "minilm_highest": spread([after(highest(run), run) for run in minilm], 1),
        "kurtosis": signed(spread([x[0] for x in right], 1)),
        "kurtosis_end": spread([x[-1] for x in right], 0),
        "wave": spread(waves, 1),
    }
