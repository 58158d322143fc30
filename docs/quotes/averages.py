"""Figures of what to keep, an average or an epoch, as sentences say them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from experiments.criteria import LAST, PAPER, SEPARATION
from experiments.store import RESULTS, Result, read
from experiments.tables import fine_tuning as tuning
from experiments.tables import keep
from experiments.tables.runs import runs_of

from .words import number, spread

AVERAGE = "average"
HEAD = "what is kept"


@cache
def results() -> list[Result]:
    """Return all runs."""
    return read(RESULTS)


@cache
def claims() -> dict[str, list[str]]:
    """Return the cells of the table of claims by what is kept."""
    head, _, *lines = keep.claims(results()).splitlines()
    plain = (line.replace("**", "").strip("|") for line in (head, *lines))
    rows = ([cell.strip() for cell in line.split("|")] for line in plain)
    return {name: cells for name, *cells in rows}


def _claim(kept: str, size: int = 0) -> tuple[float, float]:
    """Return the mean and the worst run of what is kept, by size of the network."""
    mean, worst = re.findall(r"[+-][0-9.]+", claims()[kept][size])
    return float(mean), float(worst)


def _counts() -> list[int]:
    """Return how many runs there are by size of the network."""
    return [int(re.findall(r"\d+", title)[-1]) for title in claims()[HEAD]]


def row(kept: str) -> Callable[[], dict[str, str]]:
    """Return what gives the cells of a row of the claims, and how many runs have a validation set."""

    def cells() -> dict[str, str]:
        *first, last = (count for count in claims()[keep.TWINS] if count != "0")
        twins = f"{', '.join(first)} and {last}"
        return {"twins": twins, **dict(zip("abcd", claims()[kept], strict=True))}

    return cells


def average() -> dict[str, str]:
    """The average beside single epochs."""
    (mean, worst), (rule, worst_rule) = _claim(AVERAGE), _claim(SEPARATION)
    paper, worst_paper = _claim(PAPER)
    counts = _counts()
    return {
        "mean": f"{mean:.1f}",
        "worst": f"{-worst:.1f}",
        "rule": f"{-rule:.1f}",
        "worst_rule": f"{-worst_rule:.1f}",
        "above": f"{mean - rule:.1f}",
        "paper": f"{-paper:.1f}",
        "worst_paper": f"{-worst_paper:.1f}",
        **{
            name: f"{n}"
            for name, n in zip(("images", "texts", "small", "many"), counts, strict=True)
        },
        "all": f"{sum(counts)}",
    }


def schedules() -> dict[str, str]:
    """What the average gains in large networks on images, by the schedule of the rate."""
    runs, _ = keep.reported(results())
    found: dict[str, list[float]] = {"constant": [], "cosine": []}
    for run in runs:
        gain = keep.above(run, keep.KEPT[keep.AVERAGE])
        if keep.size_of(run) == keep.SIZES[0] and gain is not None:
            found[run["settings"]["schedule"]].append(gain)
    return {
        "constant": f"{sum(found['constant']) / len(found['constant']):.1f}",
        "least": f"{min(found['constant']):.1f}",
        "cosine": f"{sum(found['cosine']) / len(found['cosine']):.1f}",
    }


def worst_cases() -> dict[str, str]:
    """Where the average does not pay, and where rules fail."""
    runs, _ = keep.reported(results())

    def lost(name: str, some: Callable[[Result], bool]) -> list[float]:
        found = (keep.above(run, keep.KEPT[name]) for run in runs if some(run))
        return [-gain for gain in found if gain is not None]

    def falls(run: Result) -> bool:
        right = keep.size_of(run) == keep.SIZES[0] and keep.kind_of(run) == "right"
        return right and run["settings"]["schedule"] == "cosine"

    validation = _claim(keep.HELD_OUT, 1)[1]
    twins = int(claims()[keep.TWINS][1])
    asymmetric = lost(keep.AVERAGE, lambda run: keep.kind_of(run) == "asymmetric")
    one_way = lost(SEPARATION, lambda run: keep.kind_of(run) == "asymmetric")
    convolutions = lost(keep.AVERAGE, lambda run: run["settings"]["network"] == "conv")
    return {
        "falls_average": f"{max(lost(keep.AVERAGE, falls)):.1f}",
        "falls_last": f"{max(lost(LAST, falls)):.1f}",
        "convolutions": spread(convolutions, 1),
        "asymmetric": f"{max(asymmetric):.1f}",
        "asymmetric_rule": f"{max(one_way):.1f}",
        "encoder": f"{-_claim(AVERAGE, 1)[1]:.1f}",
        "encoder_rule": f"{-_claim(SEPARATION, 1)[1]:.1f}",
        "encoder_validation": f"{-validation:.1f}",
        "encoder_twins": number(twins),
    }


def fine_tuning() -> dict[str, str]:
    """What largest separation loses in fine-tuning."""
    lost = [
        tuning.outcome(run, tuning.best_epoch(run, SEPARATION))[1]
        for study in tuning.STUDIES
        for run in runs_of(results(), study=study)
    ]
    return {"runs": number(len(lost)), "lost": spread(lost, 1)}


def examples() -> dict[str, str]:
    """The average precision of swapped answers after one epoch, by signal."""
    runs: list[Any] = [
        run["examples"]
        for run in results()
        if run["settings"]["study"] == "language-once"
        and run["settings"]["labels"] == "swapped-10"
        and run["settings"]["loss"] == "answer"
    ]
    return {
        name: f"{sum(run[name]['by_mean'][0] for run in runs) / len(runs):.2f}"
        for name in ("mean", "min", "gradient", "loss")
    }
