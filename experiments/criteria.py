"""Which epoch each criterion keeps of a finished run."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.plan import Settings
from gwa_core import (
    EpochSummary,
    GradientDisparity,
    LabelWave,
    MaxBimodality,
    MaxGWA,
    Patience,
    select_epoch,
    select_step,
)

__all__ = [
    "BEST",
    "CHOSEN_ON",
    "CRITERIA",
    "VALIDATION",
    "column",
    "history",
    "kept",
    "name_of",
    "outcome",
    "read",
    "regret",
    "share_of",
]

Result = dict[str, Any]

#: By name: the column it watches and the rule; None is a rule of summaries.
CRITERIA: dict[str, tuple[str | None, Any]] = {
    "GWA, the paper's rule": (None, MaxGWA()),
    "largest bimodality": (None, MaxBimodality()),
    "largest bimodality × mean^¼": ("separation", MaxBimodality()),
    "largest bimodality² × mean, of three epochs": ("smooth_separation", MaxBimodality()),
    "the same, guarded": ("smooth_separation", MaxBimodality()),
    "LabelWave": ("prediction_changes", LabelWave()),
    "gradient disparity, fifth increase": ("gradient_disparity", GradientDisparity()),
    "gradient disparity, five in a row": (
        "gradient_disparity",
        GradientDisparity(criterion="five_consecutive"),
    ),
    "training loss": ("sample_loss", Patience(metric="sample_loss", mode="min")),
    "last epoch": ("epoch", Patience(metric="epoch", mode="max")),
}
#: Columns made of others: what looks better than the rules that there are.
DERIVED = {
    "separation": lambda of: of("bimodality") * np.maximum(of("mean"), 0.0) ** 0.25,
    "smooth_separation": lambda of: _smoothed(of("bimodality") ** 2 * np.maximum(of("mean"), 0.0)),
}
#: Runs that were there when a rule was thought of. On these it is no surprise that it does well.
COARSE = {f"coarse-{labels}-100-s0" for labels in ("label", "aggre", "random1", "worse")}
EIGHT = COARSE | {
    "coarse-label-90-s0",
    "coarse-random1-90-s0",
    "convnext-random1-100-s0",
    "vit-random1-100-s0",
}
SMALL = {f"small-{kind}-20-100-s0-schedule-cosine" for kind in ("symmetric", "asymmetric")}
CHOSEN_ON = {
    "largest bimodality × mean^¼": COARSE,
    "largest bimodality² × mean, of three epochs": EIGHT,
    "the same, guarded": EIGHT | SMALL,
}
#: Nothing was memorised where the share of negative scores stays above this part of its value.
GUARD = 0.8
#: What `kept` knows besides: the epoch of the best test accuracy, and that of held-out images.
BEST, VALIDATION = "best epoch", "validation 10 %"
HELD_OUT = "validation_accuracy", Patience(metric="validation_accuracy", mode="max")


def _smoothed(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the mean of each epoch and its neighbours."""
    padded = np.pad(x, 1, mode="edge")
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def read(folder: Path) -> list[Result]:
    """Return all results of a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def name_of(result: Result) -> str:
    """Return the name of a run, as its file has it."""
    return Settings(**result["settings"]).name


def column(result: Result, name: str) -> np.ndarray[Any, Any]:
    """Return a column of a run by epoch, also one of `DERIVED`."""
    if name in DERIVED:
        return DERIVED[name](functools.partial(column, result))
    return np.asarray(result["epochs"][name], float)


def history(result: Result) -> list[EpochSummary]:
    """Return the summaries of a run."""
    columns = [result["epochs"][name] for name in EpochSummary._fields]
    return [EpochSummary(*row) for row in zip(*columns, strict=True)]


def kept(result: Result, criterion: str) -> int | None:
    """Return the position of the epoch that a criterion keeps; None where it keeps none."""
    if criterion == BEST:
        return int(column(result, "test_accuracy").argmax())
    name, rule = CRITERIA[criterion] if criterion != VALIDATION else HELD_OUT
    if name is None:
        return select_epoch(history(result), rule).step
    healthy = [summary.healthy for summary in history(result)] if name in DERIVED else None
    k = select_step(column(result, name).tolist(), rule, healthy=healthy).step
    if criterion == "the same, guarded" and k is not None:
        negative = column(result, "negative_fraction")
        if negative[k:].min() > GUARD * negative[k]:
            return len(negative) - 1
    return k


def regret(result: Result, epochs: Iterable[int | None]) -> list[float]:
    """Return how many points of test accuracy each epoch lies below the run's best."""
    accuracy = 100 * column(result, "test_accuracy")
    return [float(accuracy.max() - accuracy[k]) if k is not None else float("nan") for k in epochs]


def outcome(result: Result, k: int | None) -> tuple[float, float, float]:
    """Return test accuracy in per cent, regret and the epoch itself; nan where none is kept."""
    if k is None:
        return float("nan"), float("nan"), float("nan")
    return 100 * column(result, "test_accuracy")[k], regret(result, [k])[0], float(k)


def share_of(criterion: str) -> int:
    """Return what per cent of the data a run trains on that the criterion can judge."""
    return 90 if criterion == VALIDATION else 100
