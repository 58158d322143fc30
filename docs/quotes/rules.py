"""Figures of what the rules lose, as sentences say them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from experiments.criteria import (
    BIMODALITY,
    CHOSEN_ON,
    DISPARITY,
    KNOWN,
    LABELWAVE,
    LAST,
    PAPER,
    SEPARATION,
    best_epoch,
    regret,
    warm,
)
from experiments.store import Result, column, name_of
from experiments.tables import fluctuation, keep
from experiments.tables.runs import groups, judged, runs_of

from .averages import results
from .words import number, spread

#: How sentences call the rules.
SHORT = {
    "separation": SEPARATION,
    "bimodality": BIMODALITY,
    "paper": PAPER,
    "wave": LABELWAVE,
    "disparity": DISPARITY,
    "last": LAST,
}
LARGE, SMALL, FASHION, TEXTS, MADE = (
    "CIFAR-10-N",
    "CIFAR-10-N, small network",
    "Fashion-MNIST, small network",
    "20 newsgroups, small network",
    "CIFAR-10, made errors",
)


@cache
def by_data() -> dict[str, list[Result]]:
    """Return the runs that separation was not chosen on, by data and size of network."""
    return groups(results())


def lost(runs: Iterable[Result], criterion: str) -> list[float]:
    """Return the points of test accuracy that a rule loses in each run."""
    return [regret(run, [best_epoch(run, criterion)])[0] for run in runs]


def _cells(runs: list[Result], digits: int) -> dict[str, str]:
    """Return mean and worst of each rule."""
    found = {}
    for short, criterion in SHORT.items():
        of = lost(runs, criterion)
        found[short] = f"{np.mean(of):.{digits}f}"
        found[f"{short}_worst"] = f"{max(of):.1f}"
    return found | {"runs": f"{len(runs)}"}


def _errors(run: Result, kind: str) -> bool:
    return bool(run["settings"]["labels"].startswith(kind))


def large() -> dict[str, str]:
    """The large networks on CIFAR-10-N, all and those made since the default was chosen."""
    runs = by_data()[LARGE]
    later = [run for run in runs if name_of(run) not in KNOWN]
    means = {short: np.mean(lost(runs, name)) for short, name in SHORT.items()}
    ahead = min(value for short, value in means.items() if short != "separation")
    return {
        "runs": f"{len(runs)}",
        "known": number(len(runs) - len(later)),
        "later": f"{len(later)}",
        "ahead": f"{ahead - means['separation']:.1f}",
        **{f"later_{short}": f"{np.mean(lost(later, name)):.2f}" for short, name in SHORT.items()},
        "chosen": number(len(CHOSEN_ON)),
    }


def fashion() -> dict[str, str]:
    """A small network on all of Fashion-MNIST."""
    return _cells(by_data()[FASHION], 2)


def small() -> dict[str, str]:
    """Small networks on CIFAR-10-N."""
    return _cells(by_data()[SMALL], 1)


def texts() -> dict[str, str]:
    """A small network on texts, by kind of error."""
    runs = by_data()[TEXTS]
    other = [run for run in runs if not _errors(run, "asymmetric")]
    far = [run for run in runs if _errors(run, "asymmetric-40")]
    asymmetric = _cells([run for run in runs if _errors(run, "asymmetric")], 1)
    assert np.mean(lost(far, SEPARATION)) > np.mean(lost(far, LAST))
    return {
        **_cells(other, 2),
        **{f"asymmetric_{name}": cell for name, cell in asymmetric.items()},
        "far": f"{np.mean(lost(far, SEPARATION)):.1f}",
        "all": f"{len(runs)}",
    }


def made() -> dict[str, str]:
    """Made errors on CIFAR-10, one run each."""
    runs = {run["settings"]["labels"]: run for run in by_data()[MADE]}
    return {"runs": number(len(runs))} | {
        f"{short}_{labels.replace('metric-', '')}": f"{lost([run], name)[0]:.1f}"
        for labels, run in runs.items()
        for short, name in SHORT.items()
    }


def no_memory() -> dict[str, str]:
    """Fashion-MNIST with errors of which next to nothing is memorised."""
    own = [run for run in judged(results()) if run["settings"]["data"] == "fashion-mnist"]

    def of(rate: str, kinds: tuple[str, ...], schedules: tuple[str, ...]) -> list[Result]:
        names = [f"{kind}-{rate}" for kind in kinds]
        return [
            run
            for run in own
            if run["settings"]["labels"] in names and run["settings"]["schedule"] in schedules
        ]

    falling = of("20", ("symmetric", "asymmetric"), ("cosine",))
    many = of("40", ("symmetric",), ("cosine", "constant"))
    by_rules = [x for name in (SEPARATION, BIMODALITY, PAPER) for x in lost(falling, name)]
    return {
        "rules": spread(by_rules, 1),
        "last": f"{max(lost(falling, LAST)):.1f}",
        "none": number(sum(best_epoch(run, PAPER) is None for run in many)),
        "many": number(len(many)),
        "separation": spread(lost(many, SEPARATION), 1),
        "bimodality": spread(lost(many, BIMODALITY), 1),
    }


def no_peak() -> dict[str, str]:
    """Runs in which the default keeps the first epoch after the warm-up, those with averages too."""

    def first(run: Result) -> bool:
        return best_epoch(run, SEPARATION) == warm(len(column(run, "epoch")))

    compared = [run for some in by_data().values() for run in some]
    found = [run for run in (*compared, *keep.reported(results())[0]) if first(run)]
    assert not [run for run in found if keep.size_of(run) == keep.SIZES[0]]
    of = lost(found, SEPARATION)
    return {"runs": f"{len(found)}", "lost": f"{np.mean(of):.1f}", "worst": f"{max(of):.1f}"}


def restless() -> dict[str, str]:
    """How far test accuracy lies from its mean of five epochs."""
    table = fluctuation.fluctuation(results()).splitlines()
    (cells,) = (line for line in table if line.startswith("| deviation from these means"))
    return {"points": spread([float(cell.split()[0]) for cell in cells.split("|")[2:-1]], 1)}


def few_wrong() -> list[list[str]]:
    """Return what bimodality alone and separation lose, run by run, where few labels are wrong."""
    runs: dict[str, dict[str, Any]] = {
        "ConvNeXt, right labels": {"study": "convnext", "labels": "label", "percent": 100},
        "ConvNeXt, 9 % errors": {"study": "convnext", "labels": "aggre", "percent": 100},
        "coarse ConvNeXt, 9 % errors": {"study": "coarse", "labels": "aggre", "percent": 100},
        "coarse ConvNeXt, SGD at rates of 0.001, 0.01 and 0.1, 20 epochs, right labels": {
            "study": "estimator"
        },
    }
    return [
        [title, *(
            ", ".join(f"{x:.1f}" for x in lost(runs_of(results(), **having), name))
            for name in (BIMODALITY, SEPARATION)
        )]
        for title, having in runs.items()
    ]  # fmt: skip
