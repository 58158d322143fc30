"""Which rule keeps the better epoch over all runs: regret, leads, and beside a validation set."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from experiments.criteria import (
    CHOSEN_ON,
    CRITERIA,
    SEPARATION,
    VALIDATION,
    best_epoch,
    outcome,
    regret,
)
from experiments.store import Result, column, name_of
from experiments.tables.cells import MISSING, counted, markdown, parts_of
from experiments.tables.fluctuation import smoothed
from experiments.tables.runs import DATA, columns_of, compared, groups

__all__ = ["above_validation", "leads", "rules", "smooth_rules", "twins"]

#: Networks that take a GPU, and those that a CPU can train.
LARGE, SMALL = "Large networks", "Small networks"
TWINS = "runs with such a set"


def rules(results: list[Result]) -> str:
    """Regret by rule, on runs that separation was chosen on and on the others."""
    own = [r for r in compared(results) if name_of(r) in CHOSEN_ON]
    parts = _by_size(results)
    parts[LARGE][f"the {counted(len(own), 'run')} that separation was chosen on"] = own
    tables = {}
    for size, some in parts.items():
        rows = []
        for name in (*CRITERIA, VALIDATION):
            cells = []
            for runs in some.values():
                of_rule = _held(runs) if name == VALIDATION else runs
                cells.append(_mean_and_worst([_lost(r, name) for r in of_rule]))
            rows.append([name, *cells])
        rows.append([TWINS, *(str(len(_held(runs))) for runs in some.values())])
        if any(some.values()):
            tables[size] = markdown(["rule", *some], rows)
    return parts_of(tables)


def smooth_rules(results: list[Result]) -> str:
    """Return the same by means of five epochs of the test accuracy, on the large networks."""
    large = groups(results).get(DATA["cifar10n"], [])
    smooth = [smoothed(100 * column(r, "test_accuracy")) for r in large]
    rows = []
    for name in CRITERIA:
        both = zip(smooth, large, strict=True)
        lost = [float(x.max() - x[best_epoch(r, name)]) for x, r in both]
        whole = [_lost(r, name) for r in large]
        rows.append([name, _mean_and_worst(whole), _mean_and_worst(lost)])
    head = ["rule", f"{DATA['cifar10n']}, {counted(len(large), 'run')}", "five-epoch means"]
    return markdown(head, rows) if large else ""


def _by_size(results: list[Result]) -> dict[str, dict[str, list[Result]]]:
    """Return the groups by the heads of their columns, those of small networks apart."""
    parts: dict[str, dict[str, list[Result]]] = {LARGE: {}, SMALL: {}}
    for title, runs in columns_of(groups(results)).items():
        small = ", small network" in title
        parts[SMALL if small else LARGE][title.replace(", small network", "")] = runs
    return parts


def _held(runs: list[Result]) -> list[Result]:
    return [run for run in runs if run["settings"]["percent"] == 90]


def _mean_and_worst(lost: list[float]) -> str:
    return f"{np.mean(lost):.2f} ({max(lost):.2f})" if lost else MISSING


def leads(results: list[Result]) -> str:
    """By how many points separation is ahead of each other rule, run by run."""
    tables = {}
    for size, some in _by_size(results).items():
        rows = []
        for name in CRITERIA:
            if name != SEPARATION:
                cells = []
                for runs in some.values():
                    pairs = [_lost(r, name) - _lost(r, SEPARATION) for r in runs]
                    cells.append(_lead(np.asarray(pairs)))
                rows.append([name, *cells])
        if some:
            tables[size] = markdown(["rule", *some], rows)
    return parts_of(tables)


def _lost(run: Result, name: str) -> float:
    return regret(run, [best_epoch(run, name)])[0]


def _lead(ahead: np.ndarray[Any, Any]) -> str:
    """Return the mean with its bootstrap interval of 95 %, and how often it is which way."""
    rng = np.random.default_rng(0)
    means = rng.choice(ahead, (10_000, len(ahead))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    counts = (ahead > 0).sum(), (ahead < 0).sum(), (ahead == 0).sum()
    # The interval goes below, as the cell would be too wide.
    return f"{ahead.mean():+.2f}, {'/'.join(map(str, counts))}<br>{low:+.2f} to {high:+.2f}"


def above_validation(results: list[Result]) -> str:
    """By how many points a rule on all data beats a validation set that chooses on the rest."""
    pairs = {title: twins(runs) for title, runs in groups(results).items()}
    pairs = {title: some for title, some in pairs.items() if some}
    rows = []
    for name in CRITERIA:
        cells = []
        for some in pairs.values():
            gains = [
                outcome(whole, best_epoch(whole, name))[0]
                - outcome(part, best_epoch(part, VALIDATION))[0]
                for whole, part in some
            ]
            cells.append(f"{np.mean(gains):+.2f} ({min(gains):+.2f})")
        rows.append([name, *cells])
    head = (f"{title}, {counted(len(some), 'pair')}" for title, some in pairs.items())
    return markdown(["rule", *head], rows) if pairs else ""


def twins(runs: list[Result]) -> list[tuple[Result, Result]]:
    """Return each run on all data with its own on 90 %."""
    by: dict[Any, dict[int, Result]] = defaultdict(dict)
    for run in runs:
        s = run["settings"]
        key = s["study"], s["labels"], s["seed"], s["variant"]
        by[key][s["percent"]] = run
    return [(pair[100], pair[90]) for pair in by.values() if pair.keys() >= {100, 90}]
