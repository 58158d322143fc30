"""Which runs a table is of."""

from __future__ import annotations

from typing import Any

from experiments.criteria import CHOSEN_ON, CRITERIA, KNOWN, best_epoch
from experiments.store import Result, column, name_of
from experiments.tables.cells import LABELS, counted

__all__ = ["DATA", "SMALL", "columns_of", "compared", "groups", "judged", "newest", "runs_of"]

#: Data that rules are compared on, by what they are called, and networks that a CPU can train.
DATA = {
    "cifar10n": "CIFAR-10-N",
    "fashion-mnist": "Fashion-MNIST",
    "newsgroups": "20 newsgroups",
    "completion": "Word completion",
}
SMALL = {"mlp", "conv", "words"}
MADE = "CIFAR-10, made errors"


def runs_of(results: list[Result], **having: Any) -> list[Result]:
    """Return the results whose settings have these values."""
    return [r for r in results if all(r["settings"][k] == v for k, v in having.items())]


def newest(runs: list[Result]) -> list[Result]:
    """Return those in which the present weights of epochs were measured, or all where none has."""
    return [run for run in runs if "label_quality" in run["detection"]] or runs


def judged(results: list[Result]) -> list[Result]:
    """Return the runs that rules are compared on: long ones, with something to learn."""
    return [
        r
        for r in results
        if not r["settings"]["fold"]
        # Without the columns that the other rules watch.
        and not r["settings"]["averages"]
        and not r["settings"]["neighbours"]
        and r["settings"]["labels"] != "random"
        and len(column(r, "epoch")) >= 30
    ]


def compared(results: list[Result]) -> list[Result]:
    """Return the runs that are judged, and in which each rule keeps an epoch."""
    return [r for r in judged(results) if None not in (best_epoch(r, name) for name in CRITERIA)]


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


def columns_of(grouped: dict[str, list[Result]]) -> dict[str, list[Result]]:
    """Return groups by the heads of their columns, each with its runs made since the default was chosen."""
    found = {}
    for title, runs in grouped.items():
        found[f"{title}, {counted(len(runs), 'run')}"] = runs
        later = [r for r in runs if name_of(r) not in KNOWN]
        if 0 < len(later) < len(runs):
            found[f"{len(later)} of these, made after it became the default"] = later
    return found
