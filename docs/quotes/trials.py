"""Figures of rules beside a validation set, and of rules that failed, as sentences say them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.criteria import (
    BEST,
    CHOSEN_ON,
    SEPARATION,
    VALIDATION,
    best_epoch,
    outcome,
    regret,
    warm,
)
from experiments.store import Result, column, name_of
from experiments.tables.cells import NETWORKS
from experiments.tables.fluctuation import smoothed
from experiments.tables.rules import twins as pairs_of
from experiments.tables.runs import judged, runs_of

from .averages import results
from .epochs import of
from .rules import BIMODALITY, FASHION, LARGE, LAST, PAPER, SMALL, TEXTS, by_data, lost
from .words import listed, number, spread

Pair = tuple[Result, Result]
#: A value of each epoch.
Column = np.ndarray[Any, Any]
Values = Callable[[Result], Column]


def _kept(run: Result, name: str) -> float:
    return outcome(run, best_epoch(run, name))[0]


def _gains(pairs: list[Pair], name: str) -> list[float]:
    """Return how far a rule on all data is above a validation set that chooses on the rest."""
    return [_kept(whole, name) - _kept(part, VALIDATION) for whole, part in pairs]


def _worth(pairs: list[Pair]) -> float:
    """Return how much better the best epoch of a training on all data is."""
    return float(np.mean([_kept(whole, BEST) - _kept(part, BEST) for whole, part in pairs]))


def validation() -> dict[str, str]:
    """Rules on all data beside a validation set."""
    pairs = pairs_of(by_data()[LARGE])

    def some(network: str, labels: str) -> list[Pair]:
        return [p for p in pairs if runs_of([p[0]], network=network, labels=labels)]

    def gains(network: str, labels: str) -> list[float]:
        return _gains(some(network, labels), SEPARATION)

    (far,) = some("convnext", "worse")
    rest = [pair for pair in pairs if pair is not far]
    for equal in (
        gains("convnext", "aggre"),
        gains("vit", "random1"),
        [np.mean(_gains(pairs, LAST))],
    ):
        assert max(map(abs, equal)) < 0.1
    coarse = {p[0]["settings"]["labels"]: p for p in pairs_of(of(study="coarse"))}
    few = [coarse.pop(labels) for labels in ("aggre", "label", "random1")]
    return {
        "pairs": number(len(pairs)),
        "right": f"{gains('convnext', 'label')[0]:.2f}",
        "seventeen": listed(gains("convnext", "random1")),
        "forty": listed(gains("convnext", "worse")),
        "vit": f"{-gains('vit', 'worse')[0]:.1f}",
        "last_far": f"{-_gains([far], LAST)[0]:.1f}",
        "last_rest": f"{np.mean(_gains(rest, LAST)):.1f}",
        "rest": f"{np.mean(_gains(rest, SEPARATION)):.1f}",
        "others": number(len(rest)),
        "coarse": number(len(few) + len(coarse)),
        "few": ", ".join(f"{x:+.1f}" for x in _gains(few, SEPARATION)),
        "many": listed(-x for x in _gains([coarse["worse"]], SEPARATION)),
    }


def small_validation() -> dict[str, str]:
    """The same in small networks."""
    texts, images, fashion = (pairs_of(by_data()[data]) for data in (TEXTS, SMALL, FASHION))
    one_way = [p for p in texts if p[0]["settings"]["labels"].startswith("asymmetric")]
    other = [p for p in texts if p not in one_way]
    gains = _gains(other, SEPARATION)
    return {
        "texts": f"{np.mean(gains):.1f}",
        "all": spread(gains, 1),
        "pairs": number(len(other)),
        "last": f"{-np.mean(_gains(other, LAST)):.1f}",
        "one_way": f"{-np.mean(_gains(one_way, SEPARATION)):.1f}",
        "images": f"{-np.mean(_gains(images, SEPARATION)):.1f}",
        "fashion": f"{-np.mean(_gains(fashion, SEPARATION)):.1f}",
        "worth": listed([_worth(images), _worth(fashion)]),
    }


def one_size() -> dict[str, str]:
    """Rules on 90 % of the data, beside the validation set's choice in the same run."""
    runs = [run for study in NETWORKS for run in of(study=study, percent=90)]
    found = {"runs": number(len(runs))}
    for short, name in {"rule": SEPARATION, "paper": PAPER}.items():
        ahead = [round(_kept(run, name) - _kept(run, VALIDATION), 2) for run in runs]
        behind = [-x for x in ahead if x < 0]
        found |= {
            f"{short}_ahead": number(sum(x > 0 for x in ahead)),
            f"{short}_equal": number(sum(x == 0 for x in ahead)),
            f"{short}_behind": number(len(behind)),
            f"{short}_by": listed(sorted(x for x in ahead if x > 0)),
            f"{short}_worst": f"{max(behind):.1f}",
            f"{short}_spread": spread(behind, 1),
        }
    return found


def five_epochs() -> dict[str, str]:
    """What is lost by means of five epochs of test accuracy."""
    runs = by_data()[LARGE]
    means = [smoothed(100 * column(run, "test_accuracy")) for run in runs]
    best = [regret(run, [int(x.argmax())])[0] for run, x in zip(runs, means, strict=True)]
    kept = [best_epoch(run, SEPARATION) for run in runs]
    left = [float(x.max() - x[k]) for x, k in zip(means, kept, strict=True)]
    far = int(np.argmax(left))
    settings = runs[far]["settings"]
    assert (settings["network"], settings["labels"]) == ("convnext-coarse", "worse")
    return {
        "runs": str(len(runs)),
        "best": f"{np.mean(best):.2f}",
        "median": f"{np.median(best):.2f}",
        "worst": f"{max(best):.1f}",
        "left": f"{np.mean(left):.1f}",
        "left_worst": f"{left[far]:.1f}",
        "late": number(int((kept[far] or 0) - means[far].argmax())),
    }


def loss_after() -> dict[str, str]:
    """The rule that keeps the epoch of the smallest loss after it."""
    runs = [
        run
        for study in NETWORKS
        for run in judged(of(study=study))
        if "after_loss" in run["epochs"]
    ]
    cost = [regret(run, [_largest(-column(run, "after_loss"))])[0] for run in runs]
    worse = [x > y for x, y in zip(cost, lost(runs, SEPARATION), strict=True)]
    return {"worse": number(sum(worse)), "runs": number(len(runs))}


def apart() -> dict[str, str]:
    """How many epochs right and wrong labels are furthest apart before accuracy is best."""
    found = {}
    for short, network in {"convnext": "convnext", "coarse": "convnext-coarse"}.items():
        ahead = [
            int(smoothed(column(run, "test_accuracy")).argmax())
            - int(np.nanargmax(run["detection"]["alignment"]["auroc"]))
            for run in runs_of(by_data()[LARGE], network=network)
            if run["detection"]
        ]
        found[short] = f"{np.median(ahead):.0f}"
    return found


def _largest(values: Column) -> int:
    """Return the epoch of the largest value after the warm-up."""
    first = warm(len(values))
    return first + int(np.nanargmax(values[first:]))


def _costs(runs: list[Result], values: Values) -> list[float]:
    return [regret(run, [_largest(values(run))])[0] for run in runs]


def _mean(runs: list[Result], values: Values) -> float:
    return float(np.mean(_costs(runs, values)))


def _over(count: int) -> Values:
    """Return what makes means of separation over several epochs around each."""

    def values(run: Result) -> Column:
        x, ones = column(run, "separation"), np.ones(count)
        return np.convolve(x, ones, "same") / np.convolve(np.ones(len(x)), ones, "same")

    return values


def _near(share: float) -> Values:
    """Return what is largest at the first epoch whose separation is within a share of the largest."""

    def values(run: Result) -> Column:
        x = column(run, "separation")
        return np.where(x >= (1 - share) * x[warm(len(x)) :].max(), 1.0, 0.0)

    return values


def _mean_of(run: Result) -> Column:
    return np.maximum(column(run, "mean"), 0)


def _power(power: float) -> Values:
    return lambda run: column(run, "bimodality") * _mean_of(run) ** power


def _squared(run: Result) -> Column:
    return smoothed(column(run, "bimodality") ** 2 * _mean_of(run))


def _bounded(run: Result) -> Column:
    """Return separation by the largest value that Sarle's coefficient could have."""
    spread_of = column(run, "kurtosis") + 3 - column(run, "skewness") ** 2
    return _mean_of(run) ** 0.25 / spread_of


def _positive(run: Result) -> Column:
    return column(run, "bimodality") * np.sqrt(1 - column(run, "negative_fraction"))


def _units(run: Result) -> Column:
    return column(run, "mean") / np.sqrt(column(run, "variance"))


def _fewest(run: Result) -> Column:
    return -smoothed(column(run, "negative_fraction"))


def tried() -> dict[str, str]:
    """What was tried in place of separation."""
    runs, texts = by_data()[LARGE], by_data()[TEXTS]
    first = [run for run in runs if run["settings"]["seed"] == 0]
    powers = {"8": 1 / 8, "3": 1 / 3, "2": 1 / 2, "1": 1.0}
    usual = [float(np.mean(lost(some, SEPARATION))) for some in (runs, first)]
    for power in powers.values():
        both = (_mean(some, _power(power)) for some in (runs, first))
        assert any(x >= y for x, y in zip(both, usual, strict=True))
    chosen = [run for run in results() if name_of(run) in CHOSEN_ON]
    one_way = [run for run in texts if run["settings"]["labels"].startswith("asymmetric")]
    other = [run for run in texts if run not in one_way]
    conv = of(network="conv", study="conv", labels="random1")
    far = of(study="convnext", labels="worse", percent=100)
    falls = [
        run for data in (FASHION, TEXTS) for run in runs_of(by_data()[data], labels="asymmetric-40")
    ]
    return {
        "runs": str(len(runs)),
        "separation": f"{usual[0]:.2f}",
        "means": listed((_mean(runs, _over(count)) for count in (3, 5, 7)), 2),
        "near": listed((_mean(runs, _near(share)) for share in (0.005, 0.01, 0.02)), 2),
        "powers": listed((_mean(runs, _power(x)) for x in powers.values()), 2),
        "squared_chosen": f"{_mean(chosen, _squared):.2f}",
        "chosen": number(len(chosen)),
        "squared": f"{_mean(runs, _squared):.2f}",
        "squared_worst": f"{max(_costs(runs, _squared)):.1f}",
        "units": f"{_mean(runs, _units):.2f}",
        "skewness": f"{_mean(runs, lambda run: -column(run, 'skewness')):.2f}",
        "fewest": spread(_costs(far, _fewest), 1),
        "fewest_asymmetric": f"{max(_costs(falls, _fewest)):.0f}",
        "bounded": f"{_mean(one_way, _bounded):.1f}",
        "bounded_usual": f"{np.mean(lost(one_way, SEPARATION)):.1f}",
        "bounded_other": f"{_mean(other, _bounded):.1f}",
        "bounded_other_usual": f"{np.mean(lost(other, SEPARATION)):.1f}",
        "positive": f"{_mean(by_data()[FASHION], _positive):.2f}",
        "positive_bimodality": f"{np.mean(lost(by_data()[FASHION], BIMODALITY)):.2f}",
        "positive_usual": f"{np.mean(lost(by_data()[FASHION], SEPARATION)):.2f}",
        "positive_conv": f"{_mean(conv, _positive):.1f}",
    }
