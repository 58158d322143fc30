"""Which epoch each criterion keeps of a finished run."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

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

__all__ = ["CRITERIA", "column", "history", "kept", "read", "regret"]

Result = dict[str, Any]

#: By name: the column it watches and the rule; None is a rule of summaries.
CRITERIA: dict[str, tuple[str | None, Any]] = {
    "GWA, the paper's rule": (None, MaxGWA()),
    "largest bimodality": (None, MaxBimodality()),
    "largest bimodality × mean^¼": ("separation", MaxBimodality()),
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
DERIVED = {"separation": lambda of: of("bimodality") * np.maximum(of("mean"), 0.0) ** 0.25}
VALIDATION = ("validation_accuracy", Patience(metric="validation_accuracy", mode="max"))


def read(folder: Path) -> list[Result]:
    """Return all results of a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


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
    name, rule = VALIDATION if criterion == "validation" else CRITERIA[criterion]
    if name is None:
        return select_epoch(history(result), rule).step
    healthy = [summary.healthy for summary in history(result)] if name in DERIVED else None
    return select_step(column(result, name).tolist(), rule, healthy=healthy).step


def regret(result: Result, epochs: Iterable[int | None]) -> list[float]:
    """Return how many points of test accuracy each epoch lies below the run's best."""
    accuracy = 100 * column(result, "test_accuracy")
    return [float(accuracy.max() - accuracy[k]) if k is not None else float("nan") for k in epochs]
