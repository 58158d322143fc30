"""Which rule keeps the better epoch, over all runs: regret, leads, and what no rule can know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from experiments.criteria import CHOSEN_ON, CRITERIA, KNOWN, VALIDATION, kept, outcome, regret
from experiments.store import Result, column, name_of
from experiments.tables import LABELS, MISSING, NETWORKS, TITLES, markdown, runs_of, spread

__all__ = ["TABLES", "judged"]

#: Table 5: difference of GWA on 90 % to the validation set on 90 %, for 0, 9 and 17 % errors.
FIXED = {"vit": (-0.12, -0.01, -0.27), "convnext": (-0.22, -0.17, -0.35)}
#: Epochs that a mean of test accuracy is over, and the criterion that is looked at.
WINDOW, SEPARATION = 5, "largest separation"
#: Data that rules are compared on, by what they are called, and networks that a CPU can train.
DATA = {"cifar10n": "CIFAR-10-N", "fashion-mnist": "Fashion-MNIST", "newsgroups": "20 newsgroups"}
SMALL = {"mlp", "conv", "words"}
MADE = "CIFAR-10, made errors"


def judged(results: list[Result]) -> list[Result]:
    """Return the runs that rules are compared on: long ones, with something to learn."""
    return [
        r
        for r in results
        if not r["settings"]["fold"]
        and r["settings"]["labels"] != "random"
        and len(column(r, "epoch")) >= 30
    ]


def compared(results: list[Result]) -> list[Result]:
    """Return the runs that are judged, and in which each rule keeps an epoch."""
    return [r for r in judged(results) if None not in (kept(r, name) for name in CRITERIA)]


def groups(results: list[Result]) -> dict[str, list[Result]]:
    """Return the runs that separation was not chosen on, by data and size of network."""
    titles = [title + of for title in DATA.values() for of in ("", ", small network")]
    titles.append(MADE)
    found: dict[str, list[Result]] = {title: [] for title in titles}
    for run in compared(results):
        if name_of(run) not in CHOSEN_ON:
            found[_group(run["settings"])].append(run)
    return {title: runs for title, runs in found.items() if runs}


def _group(settings: dict[str, Any]) -> str:
    if settings["data"] == "cifar10n" and settings["labels"] not in LABELS:
        return MADE
    return DATA[settings["data"]] + ", small network" * (settings["network"] in SMALL)


def _columns(grouped: dict[str, list[Result]]) -> dict[str, list[Result]]:
    """Return groups by the heads of their columns, each with its runs made since the default was chosen."""
    found = {}
    for title, runs in grouped.items():
        found[f"{title}, {len(runs)} runs"] = runs
        later = [r for r in runs if name_of(r) not in KNOWN]
        if 0 < len(later) < len(runs):
            found[f"{len(later)} of these, made after it became the default"] = later
    return found


def rules(results: list[Result]) -> str:
    """Regret by rule, on runs that separation was not chosen on and on those that it was."""
    grouped = groups(results)
    some, large = _columns(grouped), grouped.get(DATA["cifar10n"], [])
    own = [r for r in compared(results) if name_of(r) in CHOSEN_ON]
    smooth = [smoothed(100 * column(r, "test_accuracy")) for r in large]
    rows = []
    for name in (*CRITERIA, VALIDATION):
        cells = []
        for runs in (*some.values(), own):
            of_rule = [r for r in runs if name != VALIDATION or r["settings"]["percent"] == 90]
            found = [regret(r, [kept(r, name)])[0] for r in of_rule]
            cells.append(_mean_and_worst(found, name))
        lost = [
            float(x.max() - x[kept(r, name)])
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


def above_validation(results: list[Result]) -> str:
    """By how many points a rule on all data beats a validation set that chooses on the rest."""
    pairs = {title: _twins(runs) for title, runs in groups(results).items()}
    pairs = {title: some for title, some in pairs.items() if some}
    rows = []
    for name in CRITERIA:
        cells = []
        for some in pairs.values():
            gains = [
                outcome(whole, kept(whole, name))[0] - outcome(part, kept(part, VALIDATION))[0]
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


def smoothed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the mean of five epochs around each, of fewer at the ends."""
    sizes = np.convolve(np.ones(len(values)), np.ones(WINDOW), mode="same")
    return np.convolve(values, np.ones(WINDOW), mode="same") / sizes


def leads(results: list[Result]) -> str:
    """By how many points separation is ahead of each other rule, run by run."""
    some = _columns(groups(results))
    rows = []
    for name in CRITERIA:
        if name != SEPARATION:
            cells = []
            for runs in some.values():
                pairs = [regret(r, [kept(r, name), kept(r, SEPARATION)]) for r in runs]
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


def knowing(results: list[Result]) -> str:
    """Points lost by rules, by who knows the wrong labels, and by who knows the test accuracy."""
    rows = []
    for title, some in groups(results).items():
        runs = [r for r in some if r["detection"]]
        for name in dict.fromkeys(r["settings"]["network"] for r in runs):
            of = runs_of(runs, network=name)
            lost = np.asarray([regret(r, _known(r)) for r in of])
            cells = (f"{x.mean():.2f} ({x.max():.2f})" for x in lost.T)
            rows.append([f"{title.split(',')[0]}, `{name}`, {len(of)} runs", *cells])
    head = ["runs with wrong labels", SEPARATION, "largest bimodality"]
    head += ["right and wrong labels furthest apart", "best five-epoch mean of the accuracy"]
    return markdown(head, rows) if rows else ""


def _known(run: Result) -> list[int | None]:
    """Return what two rules keep, and who knows the wrong labels, and who knows the accuracy."""
    two = [kept(run, name) for name in (SEPARATION, "largest bimodality")]
    apart = int(np.nanargmax(run["detection"]["alignment"]["auroc"]))
    return [*two, apart, int(smoothed(column(run, "test_accuracy")).argmax())]


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
    "above-validation": above_validation,
    "leads": leads,
    "fluctuation": fluctuation,
    "knowing": knowing,
    "fixed-size": fixed_size,
}
