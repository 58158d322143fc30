"""Which rule keeps the better epoch, over all runs: regret, leads, and what no rule can know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from experiments.criteria import (
    CHOSEN_ON,
    CRITERIA,
    KNOWN,
    VALIDATION,
    Result,
    column,
    kept,
    name_of,
    outcome,
    regret,
)
from experiments.tables import LABELS, MISSING, NETWORKS, TITLES, markdown, runs_of, spread

__all__ = ["TABLES", "judged"]

#: Table 5: difference of GWA on 90 % to the validation set on 90 %, for 0, 9 and 17 % errors.
FIXED = {"vit": (-0.12, -0.01, -0.27), "convnext": (-0.22, -0.17, -0.35)}
#: Epochs that a mean of test accuracy is over, and the criterion that is looked at.
WINDOW, SEPARATION = 5, "largest separation"
#: Data that rules are compared on, by what they are called.
DATA = {"cifar10n": "CIFAR-10-N", "fashion-mnist": "Fashion-MNIST"}


def judged(results: list[Result]) -> list[Result]:
    """Return the runs that rules are compared on: long ones, with something to learn."""
    return [
        r
        for r in results
        if not r["settings"].get("fold")
        and r["settings"]["labels"] != "random"
        and len(column(r, "epoch")) >= 50
    ]


def compared(results: list[Result]) -> list[Result]:
    """Return the runs that are judged, and in which each rule keeps an epoch."""
    return [r for r in judged(results) if None not in (kept(r, name) for name in CRITERIA)]


def rules(results: list[Result]) -> str:
    """Regret by rule, on runs that separation was not chosen on, and what it adds to validation."""
    runs = compared(results)
    own = [r for r in runs if name_of(r) in CHOSEN_ON]
    later = {
        title: [r for r in runs_of(runs, data=data) if name_of(r) not in CHOSEN_ON]
        for data, title in DATA.items()
    }
    later = {title: some for title, some in later.items() if some}
    pairs = {title: _twins(some) for title, some in later.items()}
    unseen = [r for r in runs_of(runs, data="cifar10n") if name_of(r) not in KNOWN]
    rows = []
    for name in (*CRITERIA, VALIDATION):
        cells = []
        for some in (*later.values(), own, unseen):
            of_rule = [r for r in some if name != VALIDATION or r["settings"]["percent"] == 90]
            cells.append(_mean_and_worst(of_rule, name))
        cells += [_above_validation(some, name) for some in pairs.values()]
        rows.append([name, *cells])
    head = [
        "rule",
        *(f"{title}, {len(some)} runs" for title, some in later.items()),
        f"the {len(own)} runs that separation was chosen on",
        f"{len(unseen)} CIFAR-10-N runs made after it became the default",
        *(f"above validation, {title}, {len(some)} pairs" for title, some in pairs.items()),
    ]
    return markdown(head, rows) if runs else ""


def _mean_and_worst(runs: list[Result], name: str) -> str:
    values = [regret(r, [kept(r, name)])[0] for r in runs]
    if not values:
        return MISSING
    some = f", {len(values)} runs" if name == VALIDATION else ""
    return f"{np.mean(values):.2f} ({max(values):.2f}){some}"


def _twins(runs: list[Result]) -> list[tuple[Result, Result]]:
    """Return each run on all data with its own on 90 %."""
    by: dict[Any, dict[int, Result]] = defaultdict(dict)
    for run in runs:
        s = run["settings"]
        key = s["study"], s["labels"], s["seed"], s.get("variant", "")
        by[key][s["percent"]] = run
    return [(pair[100], pair[90]) for pair in by.values() if pair.keys() >= {100, 90}]


def _above_validation(pairs: list[tuple[Result, Result]], name: str) -> str:
    """Return by how many points a rule on all data beats the validation set."""
    if name == VALIDATION:
        return MISSING
    gains = [
        outcome(whole, kept(whole, name))[0] - outcome(part, kept(part, VALIDATION))[0]
        for whole, part in pairs
    ]
    return f"{np.mean(gains):+.2f} ({min(gains):+.2f})" if gains else MISSING


def smoothed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the mean of five epochs around each, of fewer at the ends."""
    sizes = np.convolve(np.ones(len(values)), np.ones(WINDOW), mode="same")
    return np.convolve(values, np.ones(WINDOW), mode="same") / sizes


def leads(results: list[Result]) -> str:
    """By how many points separation is ahead of each other rule, run by run."""
    runs = [r for r in runs_of(compared(results), data="cifar10n") if name_of(r) not in CHOSEN_ON]
    some = {
        "": runs,
        ", made after it became the default": [r for r in runs if name_of(r) not in KNOWN],
    }
    smooth = [smoothed(100 * column(r, "test_accuracy")) for r in runs]
    rows = []
    for name in CRITERIA:
        cells = []
        for of in some.values():
            pairs = [regret(r, [kept(r, name), kept(r, SEPARATION)]) for r in of]
            ahead = np.asarray([theirs - ours for theirs, ours in pairs])
            cells += _lead(ahead) if len(ahead) and name != SEPARATION else [MISSING] * 2
        lost = [float(x.max() - x[kept(r, name)]) for x, r in zip(smooth, runs, strict=True)]
        rows.append([name, *cells, f"{np.mean(lost):.2f} ({max(lost):.2f})" if lost else MISSING])
    head = ["rule"]
    for title, of in some.items():
        head += [f"lead of separation, {len(of)} runs{title}", "better / worse / same"]
    return markdown([*head, "lost in five-epoch means"], rows) if runs else ""


def _lead(ahead: np.ndarray[Any, Any]) -> list[str]:
    """Return the mean with its bootstrap interval of 95 %, and how often it is which way."""
    rng = np.random.default_rng(0)
    means = rng.choice(ahead, (10_000, len(ahead))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    counts = (ahead > 0).sum(), (ahead < 0).sum(), (ahead == 0).sum()
    return [f"{ahead.mean():+.2f} ({low:+.2f} to {high:+.2f})", " / ".join(map(str, counts))]


def fluctuation(results: list[Result]) -> str:
    """How much of a regret is what test accuracy does from epoch to epoch, and what follows that."""
    beside = {
        "separation": ("separation", 1),
        "GWA": ("gwa", 1),
        "loss after, turned": ("after_loss", -1),
        "validation": ("validation_accuracy", 1),
    }
    rows = []
    for study, title in NETWORKS.items():
        runs = [r for r in judged(runs_of(results, study=study)) if kept(r, SEPARATION) is not None]
        size, lost, least, smooth = [], [], [], []
        follows: dict[str, list[float]] = {name: [] for name in beside}
        for run in runs:
            accuracy = 100 * column(run, "test_accuracy")
            means = smoothed(accuracy)
            ours, late = kept(run, SEPARATION), slice(len(accuracy) // 10, None)
            rest = (accuracy - means)[late]
            size.append(float(rest.std()))
            lost += regret(run, [ours])
            least += regret(run, [int(means.argmax())])
            smooth.append(float(means.max() - means[ours]))
            for name, (source, sign) in beside.items():
                if source in run["epochs"] or source == "separation":
                    x = sign * column(run, source)
                    follows[name].append(float(spearmanr((x - smoothed(x))[late], rest).statistic))
        if runs:
            cells = [f"{np.mean(x):.2f} ({max(x):.2f})" for x in (lost, least, smooth, size)]
            rows.append([f"{title}, {len(runs)} runs", *cells, *map(spread, follows.values())])
    head = ["network", "lost by largest separation", "lost by the best five-epoch mean"]
    head += ["separation, in five-epoch means", "deviation from these means", *beside]
    return markdown(head, rows) if rows else ""


def fixed_size(results: list[Result]) -> str:
    """Table 5: on one training set of 90 %, the rules' test accuracy less the validation set's."""
    parts = []
    for study, title in NETWORKS.items():
        rows = []
        for name in (SEPARATION, "largest bimodality", "GWA, the paper's rule", "LabelWave",
                     "last epoch"):  # fmt: skip
            cells = []
            for labels in LABELS:
                found = []
                for run in runs_of(results, study=study, labels=labels, percent=90):
                    accuracy = 100 * column(run, "test_accuracy")
                    k, held = kept(run, name), kept(run, VALIDATION)
                    if k is not None and held is not None:
                        found.append(float(accuracy[k] - accuracy[held]))
                cells.append(spread(found))
            theirs = FIXED.get(study) if name.startswith("GWA") else None
            rows.append([name, *cells, " / ".join(map(str, theirs)) if theirs else MISSING])
        if any(cell != MISSING for row in rows for cell in row[1:-1]):
            head = ["rule", *TITLES.values(), "paper: 0 / 9 / 17 %"]
            parts.append(f"**{title}**\n\n{markdown(head, rows)}")
    return "\n".join(parts)


#: By name: what makes the table.
TABLES: dict[str, Callable[[list[Result]], str]] = {
    "rules": rules,
    "leads": leads,
    "fluctuation": fluctuation,
    "fixed-size": fixed_size,
}
