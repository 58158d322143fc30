"""Figures of how well label quality finds wrong labels, as sentences say them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from experiments.store import Result
from experiments.tables.runs import SMALL

from .averages import results
from .words import spread

DEFAULT, SARLE, MEAN, AUM = "label_quality", "by excess bimodality", "alignment", "margin"
KINDS = ("symmetric", "asymmetric")
DATA = {"cifar10n": "CIFAR-10", "fashion-mnist": "Fashion-MNIST", "newsgroups": "20 newsgroups"}
#: The network on texts that needs a GPU.
ENCODER = "bert"


def runs() -> list[Result]:
    """Return the runs in which the present weights were measured on the scores of epochs."""
    return [
        run
        for run in results()
        if DEFAULT in (run.get("detection") or {})
        and not run["settings"]["fold"]
        and not run["settings"]["windows"]
    ]


def by_kind() -> dict[str, list[Result]]:
    """Return these runs by data, size of the network and kind of errors."""
    found: dict[str, list[Result]] = defaultdict(list)
    for run in runs():
        found[_kind(run["settings"])].append(run)
    return dict(sorted(found.items()))


def _kind(settings: dict[str, Any]) -> str:
    kind = settings["labels"].partition("-")[0]
    errors = f"{kind} errors" if kind in KINDS else "human errors"
    if settings["network"] == ENCODER:
        return f"20 newsgroups, an encoder, {errors}"
    size = "small networks" if settings["network"] in SMALL else "large networks"
    data = DATA.get(settings["data"], settings["data"])
    return f"{data}, {size}, {errors}"


def precision(some: list[Result], name: str, what: str = "mean") -> float:
    """Return the mean average precision of a ranking."""
    return float(np.mean([run["detection"][name][what] for run in some]))


def ahead(some: list[Result], other: str, of: str = DEFAULT) -> list[float]:
    """Return how much better a ranking is than another, run by run."""
    return [run["detection"][of]["mean"] - run["detection"][other]["mean"] for run in some]


def quality() -> dict[str, str]:
    """Where the weights of epochs gain and where they lose."""
    found = by_kind()
    human = found["CIFAR-10, large networks, human errors"]
    small = found["CIFAR-10, small networks, human errors"]
    one_way = found["CIFAR-10, large networks, asymmetric errors"]
    encoder = found["20 newsgroups, an encoder, symmetric errors"]
    texts = [
        *found["20 newsgroups, small networks, symmetric errors"],
        *found["20 newsgroups, small networks, asymmetric errors"],
    ]
    won = ahead(human, AUM)
    nothing = [abs(x) for x in ahead([*texts, *small], MEAN)]
    return {
        "human": f"{len(human)}",
        "won": f"{sum(x > 0 for x in won)}",
        "human_small": f"{len(small)}",
        "won_small": f"{sum(x > 0 for x in ahead(small, AUM))}",
        "aum": spread(won, 3),
        "mean": spread(ahead(human, MEAN), 3),
        "last": f"{precision(human, MEAN, 'last'):.3f}",
        "whole": f"{precision(human, MEAN):.3f}",
        "encoder": f"{precision(encoder, DEFAULT):.3f}",
        "encoder_mean": f"{precision(encoder, MEAN):.3f}",
        "encoder_runs": f"{len(encoder)}",
        "one_way": f"{precision(one_way, DEFAULT):.3f}",
        "one_way_mean": f"{precision(one_way, MEAN):.3f}",
        "one_way_runs": f"{len(one_way)}",
        "nothing": f"{max(nothing):.3f}",
        "nothing_runs": f"{len(nothing)}",
        "sarle": f"{-min(ahead(texts, MEAN, SARLE)):.2f}",
    }
