"""Figures of fine-tuning with several records an epoch, as sentences say them."""

from __future__ import annotations

from functools import cache

import numpy as np

from experiments.criteria import LABELWAVE, PAPER, SEPARATION, VALIDATION
from experiments.store import Result, column
from experiments.tables import fine_tuning as tuning
from experiments.tables.runs import runs_of

from .averages import results
from .words import number, spread

LITE, MINILM = tuning.WINDOWS
GWA_RULES = (tuning.RULE, PAPER)


@cache
def _runs(study: str) -> list[Result]:
    return runs_of(results(), study=study, percent=100)


def _lost(study: str, name: str) -> list[float]:
    """Return the points to the best window of what is kept, run by run where a rule keeps one."""
    found = []
    for run in _runs(study):
        kept = tuning.accuracy(run, name)
        if kept is not None:
            found.append(100 * float(column(run, "test_accuracy").max()) - kept)
    return found


def windows() -> dict[str, str]:
    """What windows of a tenth of an epoch show."""
    (average,) = tuning.AVERAGES.keys() - {"average, no warm-up"}
    both = [*_runs(LITE), *_runs(MINILM)]
    lost = {
        (study, name): _lost(study, name)
        for study in tuning.WINDOWS
        for name in (average, SEPARATION, tuning.LAST_WINDOW, LABELWAVE, *GWA_RULES)
    }
    of_gwa = [x for name in GWA_RULES for x in lost[MINILM, name]]
    separation = lost[LITE, SEPARATION] + lost[MINILM, SEPARATION]
    ends = [_behind_ends(run) for run in both]
    found = {
        "runs": str(len(both)),
        "dips": number(sum(tuning.dip(run) > tuning.CLEAR for run in both)),
        "worst_average": f"{max(lost[LITE, average] + lost[MINILM, average]):.1f}",
        "gwa": spread(of_gwa, 0),
        "end": f"{np.mean(ends):.1f}",
        "worst_end": f"{max(ends):.1f}",
        "rule": f"{np.mean(separation):.1f}",
        "worst_rule": f"{max(separation):.1f}",
        "labelwave": spread(lost[LITE, LABELWAVE], 1),
    }
    for study, short in {LITE: "lite", MINILM: "minilm"}.items():
        for name, what in {average: "average", tuning.LAST_WINDOW: "last"}.items():
            found[f"{short}_{what}"] = f"{np.mean(lost[study, name]):.1f}"
            found[f"{short}_{what}_worst"] = f"{max(lost[study, name]):.1f}"
    return found | _unhealthy() | _beside_validation(average) | _precisions()


def _behind_ends(run: Result) -> float:
    """Return how far the best end of a whole epoch lies below the best window."""
    accuracy, whole = 100 * column(run, "test_accuracy"), run["settings"]["windows"]
    return float(accuracy.max() - accuracy[whole - 1 :: whole].max())


def _unhealthy() -> dict[str, str]:
    runs = runs_of(_runs(MINILM), labels="symmetric-40")
    counts = [int((~(column(run, "denominator") > 0)).sum()) for run in runs]
    return {"unhealthy": spread(counts, 0), "of": str(len(column(runs[0], "epoch")))}


def _beside_validation(average: str) -> dict[str, str]:
    some = runs_of(results(), study=MINILM, labels="symmetric-20")
    held = [tuning.accuracy(run, VALIDATION) for run in runs_of(some, percent=90)]
    whole = [tuning.accuracy(run, average) for run in runs_of(some, percent=100)]
    return {"held": f"{np.mean(held):.1f}", "whole": f"{np.mean(whole):.1f}"}


def _precisions() -> dict[str, str]:
    found = {}
    for study, labels, short in (
        (MINILM, "symmetric-20", "minilm_20"), (MINILM, "symmetric-40", "minilm_40"),
        (LITE, "random1", "lite_17"), (LITE, "worse", "lite_40"),
    ):  # fmt: skip
        for name, end in {"label_quality": "", "margin": "_aum"}.items():
            some = [r["detection"][name]["mean"] for r in runs_of(_runs(study), labels=labels)]
            found[f"{short}{end}"] = f"{np.mean(some):.2f}"
    return found
