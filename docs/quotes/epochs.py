"""Figures of which epoch rules keep, as sentences of the results chapter say them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.criteria import CHOSEN_ON, KNOWN, SEPARATION, best_epoch
from experiments.store import Result, column, name_of
from experiments.tables import keep
from experiments.tables import stopping as published
from experiments.tables.cells import LABELS
from experiments.tables.runs import compared, judged, runs_of

from .averages import results
from .rules import (
    BIMODALITY,
    DISPARITY,
    FASHION,
    LABELWAVE,
    LARGE,
    LAST,
    MADE,
    PAPER,
    SHORT,
    SMALL,
    TEXTS,
    by_data,
    lost,
)
from .words import listed, number, spread

#: Rules that watch the scores.
OF_SCORES = (SEPARATION, BIMODALITY, PAPER)
#: Label sets with few errors.
FEW = ("label", "aggre", "random1")
PUBLISHED = ("convnext", "vit")


def of(**having: Any) -> list[Result]:
    """Return the runs with these settings."""
    return runs_of(results(), **having)


def mean_lost(runs: Sequence[Result], name: str) -> float:
    """Return the points that a rule loses on average."""
    return float(np.mean(lost(runs, name)))


def _means(runs: list[Result], prefix: str = "") -> dict[str, str]:
    return {f"{prefix}{short}": f"{mean_lost(runs, name):.1f}" for short, name in SHORT.items()}


def _worst(runs: list[Result], prefix: str = "") -> dict[str, str]:
    return {
        f"{prefix}{short}_worst": f"{max(lost(runs, name)):.1f}" for short, name in SHORT.items()
    }


def _each(runs: list[Result], prefix: str = "") -> dict[str, str]:
    return {f"{prefix}{short}": listed(lost(runs, name)) for short, name in SHORT.items()}


def _same(*cells: str) -> str:
    """Return what several rules lose, which a sentence says once."""
    (cell,) = set(cells)
    return cell


def large() -> dict[str, str]:
    """Large networks on CIFAR-10-N."""
    runs = by_data()[LARGE]
    return _means(runs) | _worst(runs)


def with_averages() -> dict[str, str]:
    """Runs that keep averages of the weights, all of them made after the default was chosen."""
    runs, _ = keep.reported(results())
    images, small = (
        [run for run in runs if keep.size_of(run) == size]
        for size in (keep.SIZES[0], keep.SIZES[2])
    )

    def below(some: list[Result], name: str) -> float:
        gains = (keep.above(run, keep.KEPT[name]) for run in some)
        return -float(np.mean([gain for gain in gains if gain is not None]))

    far = max(images, key=lambda run: below([run], SEPARATION))
    assert keep.kind_of(far) == "asymmetric"
    rest = [run for run in images if run is not far]
    return {
        "last": f"{below(images, LAST):.1f}",
        "far": f"{below([far], SEPARATION):.0f}",
        "rest": listed(below(rest, name) for name in (SEPARATION, PAPER)),
        "small_runs": str(len(small)),
        "small": listed(below(small, name) for name in (SEPARATION, PAPER, LAST)),
    }


def paper_networks() -> dict[str, str]:
    """What rules lose in the networks and on the labels of the paper, and in the coarse network."""

    def runs(study: str, *labels: str) -> list[Result]:
        return [run for x in labels for run in of(study=study, labels=x, percent=100)]

    seventeen, forty = runs("coarse", "random1"), runs("coarse", "worse")
    nine = runs("convnext", "aggre")
    cells = [some for s in PUBLISHED for x in LABELS if (some := runs(s, x))]
    theirs = [
        round(ours - other, 2)
        for s in PUBLISHED
        for ours, other in zip(
            published.PAPER[s, PAPER], published.PAPER[s, DISPARITY], strict=True
        )
    ]
    assert lost(nine, BIMODALITY) == lost(nine, SEPARATION)
    return {
        "convnext": f"{max(lost(runs('convnext', *FEW), LAST)):.1f}",
        "vit": f"{max(lost(runs('vit', *FEW), LAST)):.1f}",
        "end": _same(*(spread(lost(seventeen, x), 1) for x in (PAPER, LABELWAVE))),
        "seeds": number(len(seventeen)),
        "separation": f"{mean_lost(seventeen, SEPARATION):.1f}",
        "worst": f"{max(lost(seventeen, SEPARATION)):.1f}",
        "near": spread([mean_lost(forty, x) for x in (*OF_SCORES, LABELWAVE)], 1),
        "far": f"{mean_lost(forty, LAST):.0f}",
        "right": listed(lost(runs("convnext", "label"), BIMODALITY)),
        "coarse": listed(lost(runs("coarse", "aggre"), BIMODALITY)),
        "both": listed(lost(nine, SEPARATION)),
        "disparity": spread([mean_lost(some, DISPARITY) for some in cells], 0),
        "theirs": spread(theirs, 1),
    }


def medians() -> dict[str, str]:
    """Large networks on CIFAR-10-N, run by run."""
    runs = by_data()[LARGE]
    later = [run for run in runs if name_of(run) not in KNOWN]
    few = [run for run in runs if run["settings"]["labels"] in FEW]
    many = runs_of(runs, labels="worse")
    ahead = np.asarray(lost(runs, BIMODALITY)) - lost(runs, SEPARATION)
    median = {name: f"{np.median(lost(runs, name)):.1f}" for name in SHORT.values()}
    of_few = _means(few)
    return {
        "runs": str(len(runs)),
        "later": str(len(later)),
        "chosen": number(len(CHOSEN_ON)),
        "none": number(len(judged(results())) - len(compared(results()))),
        **{short: median[name] for short, name in SHORT.items()},
        "waits": _same(median[LABELWAVE], median[LAST]),
        "same": number(int((ahead == 0).sum())),
        "better": number(int((ahead > 0).sum())),
        "worse": number(int((ahead < 0).sum())),
        "most": f"{-ahead.min():.1f}",
        "few": str(len(few)),
        "few_separation": of_few["separation"],
        "few_bimodality": of_few["bimodality"],
        "few_rest": _same(of_few["paper"], of_few["last"]),
        "many": number(len(many)),
        "lost": listed(mean_lost(many, x) for x in (*OF_SCORES, LAST)),
        "medians": ", ".join(
            f"{np.median(lost(later, x)):.1f}" for x in (*OF_SCORES, LABELWAVE)
        ),
    }  # fmt: skip


def variants() -> dict[str, str]:
    """The coarse network with more regularisation, and on made errors."""
    runs = of(study="regularised")
    far = max(runs, key=lambda run: lost([run], LABELWAVE))
    assert (far["settings"]["mixup"], far["settings"]["labels"]) == (0.4, "worse")
    made = {run["settings"]["labels"]: run for run in by_data()[MADE]}
    one_way = _each([made["asymmetric-20"]])
    return {
        "runs": number(len(runs)),
        "three": spread([x for name in (SEPARATION, PAPER, LAST) for x in lost(runs, name)], 1),
        "epoch": _epoch(far, LABELWAVE),
        "wave": f"{lost([far], LABELWAVE)[0]:.0f}",
        "made": number(len(made)),
        **_each([made["symmetric-20"], made["symmetric-40"]], "any_"),
        "end": _same(one_way["separation"], one_way["paper"]),
        "one_bimodality": one_way["bimodality"],
        "one_wave": one_way["wave"],
    }


def _epoch(run: Result, name: str) -> str:
    kept = best_epoch(run, name)
    assert kept is not None
    return f"{column(run, 'epoch')[kept]:.0f}"


def small() -> dict[str, str]:
    """Small networks on CIFAR-10-N and texts."""
    images, texts = by_data()[SMALL], by_data()[TEXTS]
    both = _means([*images, *texts])
    other = [run for run in texts if not run["settings"]["labels"].startswith("asymmetric")]
    little, far = (runs_of(texts, labels=f"asymmetric-{rate}") for rate in (20, 40))
    mixup, half = (runs_of(images, study=f"perceptron-{x}") for x in ("mixup", "length"))
    best = [int(column(run, "epoch")[column(run, "test_accuracy").argmax()]) for run in images]
    pairs = {
        f"one_{short}": listed(mean_lost(some, name) for some in (little, far))
        for short, name in SHORT.items()
    }
    two = (SEPARATION, BIMODALITY)
    return {
        "runs": str(len(images) + len(texts)),
        "four": _same(*(both[x] for x in ("separation", "paper", "wave", "disparity"))),
        "bimodality": both["bimodality"],
        "last": both["last"],
        "other": str(len(other)),
        **_means(other, "other_"),
        **_worst(other, "other_"),
        "other_separation": f"{mean_lost(other, SEPARATION):.2f}",
        "other_bimodality": f"{mean_lost(other, BIMODALITY):.2f}",
        "two_worst": _same(*(f"{max(lost(other, x)):.1f}" for x in two)),
        "little": _same(*(f"{mean_lost(little, x):.1f}" for x in two)),
        "much": listed(mean_lost(far, x) for x in two),
        **pairs,
        "best": spread(best, 0),
        "mixup_runs": number(len(mixup)),
        "mixup": f"{mean_lost(mixup, SEPARATION):.1f}",
        "half_runs": number(len(half)),
        "half": f"{mean_lost(half, SEPARATION):.1f}",
        "half_last": f"{mean_lost(half, LAST):.1f}",
    }


def fashion() -> dict[str, str]:
    """The small network on Fashion-MNIST, by kind of errors."""
    own = [run for run in judged(results()) if run["settings"]["data"] == "fashion-mnist"]
    calm = [
        run
        for run in runs_of(own, schedule="cosine")
        if run["settings"]["labels"] in ("symmetric-20", "asymmetric-20")
    ]
    any_way, one_way = (runs_of(own, labels=f"{kind}-40") for kind in ("symmetric", "asymmetric"))
    worst = max(one_way, key=lambda run: lost([run], LAST))
    (apart,) = (run for run in one_way if lost([run], SEPARATION) != lost([run], BIMODALITY))
    accuracy = 100 * column(apart, "test_accuracy")
    early, late = (best_epoch(apart, x) for x in (SEPARATION, BIMODALITY))
    assert early is not None
    assert late == early + 1
    return {
        "negative": spread([100 * column(run, "negative_fraction")[-1] for run in calm], 0),
        "calm_last": f"{max(lost(calm, LAST)):.1f}",
        "epochs": spread([int(_epoch(run, x)) for run in calm for x in OF_SCORES], 0),
        "calm": spread([x for name in OF_SCORES for x in lost(calm, name)], 1),
        "falls": spread(lost(runs_of(one_way, schedule="cosine"), LAST), 0),
        "falls_constant": listed(lost(runs_of(one_way, schedule="constant"), LAST), 0),
        "worst_last": f"{lost([worst], LAST)[0]:.0f}",
        "worst": spread([x for name in OF_SCORES for x in lost([worst], name)], 1),
        "worst_wave": f"{lost([worst], LABELWAVE)[0]:.1f}",
        "jumps": listed(accuracy[early : early + 3], 0),
        "first": _epoch(apart, SEPARATION),
        "second": _epoch(apart, BIMODALITY),
        "third": f"{column(apart, 'epoch')[early + 2]:.0f}",
        "none": number(sum(best_epoch(run, PAPER) is None for run in any_way)),
        "many": number(len(any_way)),
        "separation": spread(lost(any_way, SEPARATION), 1),
        "bimodality": spread(lost(any_way, BIMODALITY), 1),
        "last": listed(lost(runs_of(any_way, schedule="cosine"), LAST)),
        "last_constant": listed(lost(runs_of(any_way, schedule="constant"), LAST)),
    }


def constant() -> dict[str, str]:
    """Small networks at a constant rate."""
    groups = [runs_of(by_data()[data], schedule="constant") for data in (FASHION, TEXTS, SMALL)]
    conv = runs_of(groups[-1], network="conv")
    return {
        "runs": str(sum(map(len, groups))),
        **{
            short: listed(mean_lost(some, name) for some in groups)
            for short, name in SHORT.items()
        },
        "falls": listed(lost(conv, LAST), 0),
        **_each(conv, "conv_"),
    }  # fmt: skip


def default() -> dict[str, str]:
    """Why separation is the default."""
    whole, part = (of(study="convnext", labels="label", percent=percent) for percent in (100, 90))
    sgd = [of(study="estimator", learning_rate=rate)[0] for rate in (0.01, 0.001)]
    right = [*of(study="vit", labels="label"), *of(study="coarse", labels="label")]
    assert all(best_epoch(run, SEPARATION) == best_epoch(run, BIMODALITY) for run in right)
    return {
        "whole": ", ".join(f"{x:.1f}" for x in lost(whole, BIMODALITY)),
        "part": listed(lost(part, BIMODALITY)),
        "epoch": _same(*(_epoch(run, BIMODALITY) for run in sgd)),
        "sgd": listed(lost(sgd, BIMODALITY), 0),
        "separation": spread(lost([*whole, *part, *sgd], SEPARATION), 1),
    }
