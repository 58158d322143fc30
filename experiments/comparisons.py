"""Tables over all runs: the rules, corrupted test sets, whole models, sets of one size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from experiments.criteria import (
    BEST,
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
    share_of,
)
from experiments.data import GROUPS
from experiments.tables import CHOSEN, LABELS, MISSING, NETWORKS, TITLES, markdown, runs_of, spread
from gwa_core.signals import SIGNALS

__all__ = ["TABLES", "judged", "model_points"]

#: Table 2: the ViT's accuracy under CIFAR-C by the 10 % validation set, and what GWA adds.
CORRUPTED = {
    "blur": (81.19, 0.52),
    "digital": (79.42, 0.53),
    "noise": (77.08, 0.60),
    "weather": (79.25, 0.56),
}
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


def rules(results: list[Result]) -> str:
    """Regret by rule, on runs that separation was not chosen on, and what it adds to validation."""
    # All on the same runs: those in which each of them keeps an epoch.
    runs = [r for r in judged(results) if None not in (kept(r, name) for name in CRITERIA)]
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


def fluctuation(results: list[Result]) -> str:
    """How much of a regret is what test accuracy does from epoch to epoch, and what follows that."""
    beside = {
        "its Spearman with `separation`": ("separation", 1),
        "with `gwa`": ("gwa", 1),
        "with the loss of training images after the epoch, turned": ("after_loss", -1),
        "with validation accuracy": ("validation_accuracy", 1),
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
            rows.append([title, str(len(runs)), *cells, *map(spread, follows.values())])
    head = ["network", "runs", "lost by largest separation", "lost by the best five-epoch mean"]
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


def corruptions(results: list[Result]) -> str:
    """Table 2: accuracy of the kept epochs under corruptions, in per cent, mean over the runs."""
    parts = []
    for study, title in NETWORKS.items():
        of = [r for r in runs_of(results, study=study) if "corrupted_noise_accuracy" in r["epochs"]]
        rows = []
        for name in (BEST, *CRITERIA, VALIDATION):
            cells = []
            for group in sorted(GROUPS):
                found = []
                for run in runs_of(of, percent=share_of(name)):
                    k = kept(run, name)
                    if k is not None:
                        found.append(100 * float(column(run, f"corrupted_{group}_accuracy")[k]))
                cells.append(f"{np.mean(found):.2f}" if found else MISSING)
            rows.append([name, *cells])
        if of:
            n = [len(runs_of(of, percent=share)) for share in (100, 90)]
            if study == "vit":
                theirs = (CORRUPTED[group] for group in sorted(GROUPS))
                rows.append(
                    [
                        "paper: validation 10 %; GWA adds",
                        *(f"{x:.2f}; {more:+.2f}" for x, more in theirs),
                    ]
                )
            head = ["criterion", *sorted(GROUPS)]
            counted = f"{n[0]} on all data, {n[1]} on 90 %"
            parts.append(f"**{title}**, runs: {counted}\n\n{markdown(head, rows)}")
    return "\n".join(parts)


def model_points(results: list[Result]) -> dict[str, list[tuple[float, float, float, str]]]:
    """Return largest mean, best test and last corrupted accuracy and labels of the runs, by study."""
    found: dict[str, list[tuple[float, float, float, str]]] = {}
    for study in NETWORKS:
        for run in judged(runs_of(results, study=study)):
            accuracy = 100 * column(run, "test_accuracy")
            groups = [
                100 * column(run, name)[-1]
                for name in (f"corrupted_{group}_accuracy" for group in GROUPS)
                if name in run["epochs"]
            ]
            largest = float(np.nanmax(column(run, "mean")))
            corrupted = float(np.mean(groups)) if groups else float("nan")
            point = largest, float(accuracy.max()), corrupted, run["settings"]["labels"]
            found.setdefault(study, []).append(point)
    return found


def models(results: list[Result]) -> str:
    """Fig. 3: over the runs, the largest mean alignment against test accuracy."""
    rows = []
    for study, points in model_points(results).items():
        largest, test, corrupted, _ = (np.asarray(x) for x in zip(*points, strict=True))
        cells = []
        for accuracy in (test, corrupted):
            usable = np.isfinite(accuracy.astype(float))
            if usable.sum() < 4:
                cells.append(MISSING)
                continue
            x, y = largest[usable].astype(float), accuracy[usable].astype(float)
            cells.append(f"{spearmanr(x, y).statistic:.2f} / {pearsonr(x, y).statistic:.2f}")
        rows.append([NETWORKS[study], str(len(points)), *cells])
    head = ["network", "runs", "test accuracy: Spearman / Pearson", "under corruptions"]
    return markdown(head, rows) if rows else ""


def made_errors(results: list[Result]) -> str:
    """Label errors made by chance: average precision by the mean over all epochs."""
    runs = [r for r in results if "metric-" in r["settings"]["labels"] and r["detection"]]
    by: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for run in runs:
        s = run["settings"]
        if s["percent"] == 100:
            by[s["study"], s["labels"]].append(run)
    rows = []
    for name in (*CHOSEN, "alignment", *SIGNALS):
        row = []
        for some in by.values():
            found = [r["detection"][name] for r in some if name in r["detection"]]
            values = [x.get("mean_average_precision", [x["average_precision"]])[-1] for x in found]
            row.append(spread(values, 3))
        if any(cell != MISSING for cell in row):
            rows.append([f"`{name}`", *row])
    head = ["signal", *(f"{study}, {labels}" for study, labels in by)]
    return markdown(head, rows) if by else ""


#: By name: what makes the table.
TABLES: dict[str, Callable[[list[Result]], str]] = {
    "rules": rules,
    "fluctuation": fluctuation,
    "fixed-size": fixed_size,
    "corruptions": corruptions,
    "models": models,
    "made-errors": made_errors,
}
