"""Which epoch each criterion keeps of a finished run."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.store import Result, column, records
from gwa_core import (
    BestMetric,
    GradientDisparity,
    LabelWave,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    Rule,
    select_epoch,
    warmup_steps,
)

__all__ = [
    "BEST",
    "BIMODALITY",
    "CHOSEN_ON",
    "CRITERIA",
    "DISPARITY",
    "FEW",
    "KNOWN",
    "LABELWAVE",
    "LAST",
    "PAPER",
    "SEPARATION",
    "VALIDATION",
    "best_epoch",
    "outcome",
    "regret",
    "share_of",
    "warm",
]

#: Rules by their names in tables; the first is the default.
SEPARATION, BIMODALITY = "largest separation", "largest bimodality"
PAPER, LABELWAVE = "GWA, the paper's rule", "LabelWave"
DISPARITY, LAST = "gradient disparity, fifth increase", "last epoch"
#: What they are.
CRITERIA: dict[str, Rule] = {
    SEPARATION: MaxSeparation(),
    BIMODALITY: MaxBimodality(),
    PAPER: MaxGWA(),
    LABELWAVE: LabelWave(),
    DISPARITY: GradientDisparity(),
    "gradient disparity, five in a row": GradientDisparity(criterion="five_consecutive"),
    "training loss": BestMetric(metric="sample_loss", mode="min"),
    LAST: BestMetric(metric="epoch", mode="max"),
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
#: What `best_epoch` knows besides: the epoch of the best test accuracy, and by the accuracy on held-out images.
BEST, VALIDATION, FEW = "best epoch", "validation 10 %", "validation 1 %"
HELD_OUT = BestMetric(metric="validation_accuracy", mode="max")


def best_epoch(result: Result, criterion: str) -> int | None:
    """Return the position of the epoch that a criterion keeps; None where it keeps none."""
    if criterion == BEST:
        return int(column(result, "test_accuracy").argmax())
    rule = HELD_OUT if criterion in (VALIDATION, FEW) else CRITERIA[criterion]
    return select_epoch(records(result, rule.signal), rule).step


def warm(count: int) -> int:
    """Return how many of a run's first epochs are the warm-up of the rules."""
    return warmup_steps(MaxSeparation().warmup, count)


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
