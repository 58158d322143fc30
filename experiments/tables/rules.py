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
from experiments.tables.cells import MISSING, markdown
from experiments.tables.fluctuation import smoothed
from experiments.tables.runs import DATA, columns_of, compared, groups

__all__ = ["above_validation", "leads", "rules"]


def rules(results: list[Result]) -> str:
    """Regret by rule, on runs that separation was chosen on and on the others."""
    grouped = groups(results)
    some, large = columns_of(grouped), grouped.get(DATA["cifar10n"], [])
    own = [r for r in compared(results) if name_of(r) in CHOSEN_ON]
    smooth = [smoothed(100 * column(r, "test_accuracy")) for r in large]
    rows = []
    for name in (*CRITERIA, VALIDATION):
        cells = []
        for runs in (*some.values(), own):
            of_rule = [r for r in runs if name != VALIDATION or r["settings"]["percent"] == 90]
            found = [regret(r, [best_epoch(r, name)])[0] for r in of_rule]
            cells.append(_mean_and_worst(found, name))
        lost = [
            float(x.max() - x[best_epoch(r, name)])
            for x, r in zip(smooth, large, strict=True)
            if name != VALIDATION
        ]
        rows.append([name, *cells, _mean_and_worst(lost, name)])
    head = ["rule", *some, f"the {len(own)} runs that separation was chosen on"]
    head.append(f"{DATA['cifar10n']}, {len(large)} runs, five-epoch means")
    return markdown(head, rows) if some or own else ""


def _mean_and_worst(lost: list[float], name: str) -> str:
    if not lost:
        return MISSING
    some = f", {len(lost)} runs" if name == VALIDATION else ""
    return f"{np.mean(lost):.2f} ({max(lost):.2f}){some}"


def leads(results: list[Result]) -> str:
    """By how many points separation is ahead of each other rule, run by run."""
    some = columns_of(groups(results))
    rows = []
    for name in CRITERIA:
        if name != SEPARATION:
            cells = []
            for runs in some.values():
                pairs = [regret(r, [best_epoch(r, name), best_epoch(r, SEPARATION)]) for r in runs]
                cells.append(_lead(np.asarray([theirs - ours for theirs, ours in pairs])))
            rows.append([name, *cells])
    return markdown(["rule", *some], rows) if some else ""


def _lead(ahead: np.ndarray[Any, Any]) -> str:
    """Return the mean with its bootstrap interval of 95 %, and how often it is which way."""
    rng = np.random.default_rng(0)
    means = rng.choice(ahead, (10_000, len(ahead))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    counts = (ahead > 0).sum(), (ahead < 0).sum(), (ahead == 0).sum()
    return f"{ahead.mean():+.2f} ({low:+.2f} to {high:+.2f}), {' / '.join(map(str, counts))}"


def above_validation(results: list[Result]) -> str:
    """By how many points a rule on all data beats a validation set that chooses on the rest."""
    pairs = {title: _twins(runs) for title, runs in groups(results).items()}
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
    head = (f"{title}, {len(some)} pairs" for title, some in pairs.items())
    return markdown(["rule", *head], rows) if pairs else ""


def _twins(runs: list[Result]) -> list[tuple[Result, Result]]:
    """Return each run on all data with its own on 90 %."""
    by: dict[Any, dict[int, Result]] = defaultdict(dict)
    for run in runs:
        s = run["settings"]
        key = s["study"], s["labels"], s["seed"], s["variant"]
        by[key][s["percent"]] = run
    return [(pair[100], pair[90]) for pair in by.values() if pair.keys() >= {100, 90}]
