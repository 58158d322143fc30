"""Which epoch each criterion keeps of a finished run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from experiments.store import Result, column, history
from gwa_core import (
    GradientDisparity,
    LabelWave,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    Patience,
    select_epoch,
    select_step,
)

__all__ = [
    "BEST",
    "CHOSEN_ON",
    "CRITERIA",
    "FEW",
    "KNOWN",
    "SEPARATION",
    "VALIDATION",
    "best_epoch",
    "outcome",
    "regret",
    "share_of",
]

#: The default rule, by its name in tables.
SEPARATION = "largest separation"
#: By name: the column it watches and the rule; None is a rule of summaries.
CRITERIA: dict[str, tuple[str | None, Any]] = {
    SEPARATION: (None, MaxSeparation()),
    "largest bimodality": (None, MaxBimodality()),
    "GWA, the paper's rule": (None, MaxGWA()),
    "LabelWave": ("prediction_changes", LabelWave()),
    "gradient disparity, fifth increase": ("gradient_disparity", GradientDisparity()),
    "gradient disparity, five in a row": (
        "gradient_disparity",
        GradientDisparity(criterion="five_consecutive"),
    ),
    "training loss": ("sample_loss", Patience(metric="sample_loss", mode="min")),
    "last epoch": ("epoch", Patience(metric="epoch", mode="max")),
}
#: The runs that were there when separation was thought of; on these it is no surprise that it does well.
CHOSEN_ON = {f"coarse-{labels}-100-s0" for labels in ("label", "aggre", "random1", "worse")}
#: Those and the others on CIFAR-10-N that were there when it became the default: no test of that.
KNOWN = CHOSEN_ON | {
    *(f"convnext-{labels}-100-s0" for labels in ("label", "aggre", "random1", "worse")),
    *(f"vit-{labels}-100-s0" for labels in ("label", "random1", "worse")),
    *(f"coarse-{labels}-100-s1" for labels in ("aggre", "random1", "worse")),
    *(f"{study}-random1-90-s0" for study in ("convnext", "vit", "coarse")),
    *(f"{study}-label-90-s0" for study in ("convnext", "coarse")),
}
#: What `best_epoch` knows besides: the epoch of the best test accuracy, and those of held-out images.
BEST, VALIDATION, FEW = "best epoch", "validation 10 %", "validation 1 %"
HELD_OUT = "validation_accuracy", Patience(metric="validation_accuracy", mode="max")


def best_epoch(result: Result, criterion: str) -> int | None:
    """Return the position of the epoch that a criterion keeps; None where it keeps none."""
    if criterion == BEST:
        return int(column(result, "test_accuracy").argmax())
    name, rule = HELD_OUT if criterion in (VALIDATION, FEW) else CRITERIA[criterion]
    if name is None:
        return select_epoch(history(result), rule).step
    return select_step(column(result, name).tolist(), rule).step


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
    return {VALIDATION: 90, FEW: 99}.get(criterion, 100)
