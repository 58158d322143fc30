"""Figures of how rankings find wrong labels, by network and kind of errors, as sentences say them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import numpy as np

from experiments.folds import FOLDS, judged
from experiments.store import column
from experiments.tables.cells import LABELS
from experiments.tables.label_errors import further_errors
from experiments.tables.runs import runs_of
from gwa_core.signals import SIGNALS

from .averages import results
from .ranking import AUM, DEFAULT, MEAN, SARLE, ahead, by_kind, precision
from .words import listed, number, signed, spread

HUMAN, ONE_WAY = (f"CIFAR-10, large networks, {kind} errors" for kind in ("human", "asymmetric"))
SMALL = "CIFAR-10, small networks"
TEXTS = "20 newsgroups, small networks"
#: Epochs of a training of usual length, at least.
USUAL = 50


def _signs(values: Iterable[float]) -> str:
    """Return the smallest and the largest value with their signs."""
    found = list(values)
    return signed(f"{min(found):+.3f} to {max(found):+.3f}")


def beside_aum() -> dict[str, str]:
    """How far label quality is ahead of AUM in large networks, study by study."""
    large = by_kind()[HUMAN]
    assert min(ahead(large, AUM)) > 0
    found = {
        "runs": f"{len(large)}",
        "regularised": spread(ahead(runs_of(large, study="regularised"), AUM), 3),
    }
    for study in ("coarse", "convnext", "vit"):
        for labels in LABELS[1:]:
            some = runs_of(large, study=study, labels=labels)
            for share in (90, 100):
                if own := runs_of(some, percent=share):
                    found[f"{study}_{labels}_{share}"] = spread(ahead(own, AUM), 3)
    vit = runs_of(large, study="vit", labels="worse")
    found |= {"vit_worse": spread(ahead(vit, AUM), 3), "vit_runs": number(len(vit))}
    kept = [run for run in large if run["settings"]["averages"]]
    assert {run["settings"]["labels"] for run in kept} == {"worse"}
    networks = {run["settings"]["network"] for run in kept}
    return found | {
        "kept_runs": f"{len(kept)}",
        "networks": number(len(networks)),
        "kept": spread(ahead(kept, AUM), 3),
    }


def one_way() -> dict[str, str]:
    """How far label quality is behind AUM where one class is taken for another."""
    behind = [-x for x in ahead(by_kind()[ONE_WAY], AUM)]
    worse = [x for x in behind if x > 0]
    (ahead_by,) = (-x for x in behind if x <= 0)
    return {
        "lost": number(len(worse)),
        "runs": number(len(behind)),
        "behind": spread(worse, 3),
        "ahead": f"{ahead_by:.3f}",
    }


def others() -> dict[str, str]:
    """How label quality compares with the mean of each other signal, in large networks."""
    large = by_kind()[HUMAN]
    best, gains = [], []
    for run in large:
        means = {
            name: run["detection"][name]["mean"]
            for name in (MEAN, *SIGNALS)
            if name in run["detection"]
        }
        best.append(max(means, key=means.__getitem__))
        gains.append(run["detection"][DEFAULT]["mean"] - means[best[-1]])
    return {
        "first": f"{sum(x > 0 for x in gains)}",
        "runs": f"{len(gains)}",
        "most": f"{max(gains):.3f}",
        "least": f"{-min(gains):.3f}",
        "el2n": f"{best.count('el2n')}",
    }


def cleanlab() -> dict[str, str]:
    """Label quality, the plain mean and cleanlab's score in the trainings of a cross-validation."""
    found: dict[str, str] = {}
    for labels in LABELS[1:]:
        folds = runs_of(results(), study="folds", labels=labels, seed=0)
        assert len(folds) == FOLDS
        area, held = judged([run["held_out"] for run in folds])["self_confidence"]
        whole = runs_of(by_kind()[HUMAN], study="coarse", labels=labels, percent=100)
        found |= {
            f"own_{labels}": f"{precision(folds, DEFAULT):.2f}",
            f"plain_{labels}": f"{precision(folds, MEAN):.2f}",
            f"held_{labels}": f"{held:.2f}",
            f"whole_{labels}": f"{precision(whole, DEFAULT):.2f}",
            f"area_{labels}": f"{precision(folds, DEFAULT, 'auroc'):.3f}",
            f"held_area_{labels}": f"{area:.3f}",
            "epochs": f"{len(column(whole[0], 'epoch'))}",
            "short": f"{len(column(folds[0], 'epoch'))}",
        }
    return found


def by_chance() -> dict[str, str]:
    """How far label quality is from AUM under made errors, in the coarse network."""
    found = {}
    for labels in ("symmetric-20", "symmetric-40", "asymmetric-20"):
        (gain,) = ahead(runs_of(results(), study="made", labels=labels), AUM)
        found[labels.replace("-", "_")] = f"{abs(gain):.3f}"
    kept = [
        run
        for run in results()
        if run["settings"]["study"].startswith("keep-coarse") and DEFAULT in run["detection"]
    ]
    either = [run for run in kept if run["settings"]["labels"].startswith("symmetric")]
    one = [run for run in kept if run["settings"]["labels"].startswith("asymmetric")]
    return found | {
        "kept_symmetric": spread(ahead(either, AUM), 3),
        "kept_asymmetric": spread([-x for x in ahead(one, AUM)], 3),
    }


@cache
def _further() -> dict[str, dict[str, list[str]]]:
    """Return the cells of the tables of other networks, by title and row."""
    found: dict[str, dict[str, list[str]]] = {}
    title = ""
    for line in further_errors(results()).splitlines():
        if line.startswith("**"):
            title = re.sub("[*`]", "", line)
        elif line.startswith("|"):
            name, *cells = (cell.strip("` ") for cell in line.strip("|").split("|"))
            found.setdefault(title, {})[name] = cells
    return found


def further() -> dict[str, str]:
    """What the tables of other networks say of some signals."""

    def cells(title: str, name: str, kind: str) -> list[float]:
        table = _further()[title]
        own = [k for k, head in enumerate(table["signal"]) if head.startswith(kind)]
        return [float(table[name][k].split()[0]) for k in own]

    def asymmetric(title: str, name: str) -> str:
        return listed(cells(title, name, "asymmetric"), 3)

    minilm, fashion = "minilm on r8", "mlp on fashion-mnist"
    texts = "words on newsgroups"
    growing = [
        cells(fashion, name, "asymmetric")[0] for name in ("gradient_norm", "self_influence")
    ]
    return {
        "minilm": listed(cells(minilm, SARLE, "symmetric"), 3),
        "minilm_aum": spread(cells(minilm, AUM, "symmetric"), 2),
        "texts": asymmetric(texts, SARLE),
        "texts_mean": asymmetric(texts, MEAN),
        "fashion": asymmetric(fashion, SARLE),
        "fashion_mean": asymmetric(fashion, MEAN),
        "growing": spread(growing, 3),
        "aum": f"{cells(fashion, AUM, 'asymmetric')[0]:.3f}",
    }


def small() -> dict[str, str]:
    """Runs whose label quality is the plain mean: its cost, and its lead over AUM."""
    found = by_kind()
    human, asymmetric = (found[f"{SMALL}, {kind} errors"] for kind in ("human", "asymmetric"))
    both, one = (found[f"{TEXTS}, {kind} errors"] for kind in ("symmetric", "asymmetric"))
    same = [abs(x) for x in ahead([*asymmetric, *one], MEAN)]
    assert max(same) < 1e-4
    near = [abs(x) for x in ahead([*both, *human], MEAN)]
    usual = [
        run for run in human if len(column(run, "epoch")) > USUAL and not run["settings"]["mixup"]
    ]
    others = [run for run in human if run not in usual]
    excess = ahead(both, SARLE)
    gains = ahead(human, AUM)
    return {
        "same": f"{len(same)}",
        "near": f"{max(near):.3f}",
        "near_runs": f"{len(near)}",
        "excess": f"{-np.mean(excess):.3f}",
        "excess_range": _signs(excess),
        "both_runs": f"{len(both)}",
        "both": signed(f"{np.mean(ahead(both, AUM)):+.3f}"),
        "both_range": _signs(ahead(both, AUM)),
        "one_runs": f"{len(one)}",
        "one": signed(f"{np.mean(ahead(one, AUM)):+.3f}"),
        "one_range": _signs(ahead(one, AUM)),
        "human_runs": f"{len(human)}",
        "won": f"{sum(x > 0 for x in gains)}",
        "human": signed(f"{np.mean(gains):+.3f}"),
        "human_range": _signs(gains),
        "usual_runs": f"{len(usual)}",
        "usual": _signs(ahead(usual, AUM)),
        "others": _signs(ahead(others, AUM)),
        "others_runs": f"{len(others)}",
    }
