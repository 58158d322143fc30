"""Figures of the benchmarks and of the demonstration, as sentences say them."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .words import number, spread

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"

LOSS = "8192 tokens, D=4096, C=128000, bfloat16"
STEP = "ViT-S/16, batch 512, bf16, compiled"
OURS, CLEANLAB, AUM = "LabelIssues", "cleanlab, default", "margin, mean over epochs"
DEFAULT, HELD_OUT = "MaxBimodality(patience=10)", "early_stopping=True, 10% held out"
AVERAGED, NETWORK = "SGDClassifier(average=True)", "MLPClassifier"
DATA = ("digits", "Fashion-MNIST", "CIFAR-10-N")


@cache
def read(name: str) -> dict[str, Any]:
    """Return a file of results."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def demo() -> dict[str, str]:
    """What `gwa demo` prints, on the page of the command line."""
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    shown = re.search(r"^gwa demo\n```\n\n```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert shown is not None
    patterns = {
        "wrong": r"digits, (\d+) of them",
        "epoch": r"Best epoch: (\d+)",
        "kept": r"accuracy there +([\d.]+) %",
        "average": r"average of the weights +([\d.]+) %",
        "highest": r"highest, at epoch \d+ +([\d.]+) %",
        "highest_epoch": r"highest, at epoch (\d+)",
        "last": r"last, at epoch \d+ +([\d.]+) %",
        "found": r"suspicious labels (\d+) \(",
        "share": r"suspicious labels \d+ \(([\d.]+) %",
    }
    found = {name: re.search(pattern, shown[1]) for name, pattern in patterns.items()}
    return {name: match[1] for name, match in found.items() if match is not None}


def losses() -> dict[str, str]:
    """How many losses have scores that are compared with autograd."""
    page = (ROOT / "docs" / "torch" / "losses.md").read_text(encoding="utf-8")
    table = page.partition("<!-- measured: losses -->")[2].partition("<!-- end -->")[0]
    return {"losses": f"{sum(line.startswith('|') for line in table.splitlines()) - 2}"}


def step() -> dict[str, str]:
    """A training step on a GPU, with the monitor."""
    training = read("training")
    more, alone = (
        training[f"{STEP}: peak MB in a step, {way}"] for way in ("with the monitor", "alone")
    )
    return {
        "added": f"{training[f'{STEP}: ms on the device added by hook and update']:.2f}",
        "step": f"{training[f'{STEP}: ms a step']:.0f}",
        "more": f"{more - alone:.1f}",
        "all": f"{alone / 1e3:.0f}",
    }


def loss() -> dict[str, str]:
    """Loss and scores of a language model's head."""
    found = read("linear_loss")
    ways = {"ours": "linear_cross_entropy", "plain": "plain logits", "liger": "Liger"}
    times = {name: f"{found[f'{LOSS}: ms, {way}']:.1f}" for name, way in ways.items()}
    memory = {
        f"{x}_gb": f"{found[f'{LOSS}: extra MB, {way}'] / 1e3:.3g}" for x, way in ways.items()
    }
    wide = {
        "wide": f"{found[f'{LOSS}: ms, blocks of 256 MiB']:.1f}",
        "wide_mb": f"{found[f'{LOSS}: extra MB, blocks of 256 MiB']:,.0f}",
    }
    gradients = {"gradients": f"{2 * 4096 * (8192 + 128_000) / 1e6:,.0f}"}
    return times | memory | wide | gradients


def labels() -> dict[str, str]:
    """Finding wrong labels beside cleanlab and AUM, over all settings."""
    file = read("labels")
    settings = {
        name: methods
        for name, methods in file.items()
        if isinstance(methods, dict) and "average precision" in methods.get(OURS, {})
    }

    def values(method: str, figure: str, data: str = "") -> Any:
        of = [x for name, x in settings.items() if name.startswith(data)]
        return np.array([x[method][figure][0] for x in of])

    earlier = file["LabelIssues before epochs had weights"]
    before = sum(name.startswith(tuple(earlier)) for name in settings)
    ours, cleanlab = (values(method, "average precision") for method in (OURS, CLEANLAB))
    worst = min(settings, key=lambda name: _lead(settings[name]))
    assert worst == "digits, feature-dependent 40 %"
    right = file["Fashion-MNIST, no wrong labels"]
    return {
        "settings": f"{len(settings)}",
        "earlier": number(before),
        "behind": f"{(cleanlab - ours).max():.3f}",
        "ahead": f"{(ours > cleanlab).sum()}",
        "time": f"{values(OURS, 'seconds').mean() / values(CLEANLAB, 'seconds').mean():.2f}",
        "time_wide": f"{values(OURS, 'seconds', DATA[1]).mean() / values(CLEANLAB, 'seconds', DATA[1]).mean():.2f}",
        "right": f"{100 * right[OURS]['issues'][0]:.1f}",
        "right_cleanlab": f"{100 * right[CLEANLAB]['issues'][0]:.1f}",
        **{
            f"{name}_{short}": f"{values(method, figure).mean():.{digits}f}"
            for name, method in (("ours", OURS), ("cleanlab", CLEANLAB), ("aum", AUM))
            for short, (figure, digits) in {
                "precision": ("average precision", 3),
                "auroc": ("AUROC", 3),
                "f1": ("F1", 3),
                "seconds": ("seconds", 2),
            }.items()
            if all(figure in methods[method] for methods in settings.values())
        },
    }


def _lead(methods: dict[str, Any]) -> float:
    ours, cleanlab = (methods[method]["average precision"][0] for method in (OURS, CLEANLAB))
    return float(ours - cleanlab)


def rules() -> dict[str, str]:
    """Rules on digits and Fashion-MNIST with made errors."""
    file = read("rules")
    worst = max(
        file[f"{data}, wrong labels"]["MaxSeparation()"]["worst regret"] for data in DATA[:2]
    )
    assert worst == file["Fashion-MNIST, asymmetric 40 %"]["MaxSeparation()"]["worst regret"]
    ours, plain = "label_quality", 'label_quality, "mean"'
    found = {
        name: {way: file[name][way]["mean average precision"] for way in (ours, plain)}
        for name in file
        if "symmetric" in name
    }
    gain = {name: both[ours] - both[plain] for name, both in found.items()}
    least, most = min(gain, key=gain.__getitem__), max(gain, key=gain.__getitem__)
    assert (least, most) == ("digits, asymmetric 20 %", "Fashion-MNIST, symmetric 20 %")
    return {
        "worst": f"{worst:.1f}",
        "whole_worst": f"{worst:.0f}",
        "most": f"{gain[most]:.3f}",
        "least": f"{-gain[least]:.3f}",
    }


def stopping() -> dict[str, str]:
    """The estimator that stops early on all rows, beside one that holds a tenth out."""
    file = read("early_stopping")

    def lost(model: str, way: str, noise: str = "symmetric 40 %") -> list[str]:
        return [f"{file[f'{data}, {model}'][way][noise]['regret']:.1f}" for data in DATA[:2]]

    linear = [file[f"{data}, {AVERAGED}"][DEFAULT] for data in DATA]
    means = [found["mean regret"] for found in linear]
    worst = max(
        x["worst regret"] for found in linear for x in found.values() if isinstance(x, dict)
    )
    both = [
        [file[f"{data}, {model}"][way]["mean accuracy"] for way in (DEFAULT, HELD_OUT)]
        for model in (AVERAGED, NETWORK)
        for data in DATA
    ]
    ahead = [ours - theirs for ours, theirs in both]
    return {
        "runs": f"{file['seeds'] * sum(isinstance(x, dict) for x in linear[0].values())}",
        "low": f"{min(means):.1f}",
        "high": f"{max(means):.1f}",
        "worst": f"{worst:.1f}",
        "ours": f"{np.mean([x for x, _ in both]):.1f}",
        "held_out": f"{np.mean([x for _, x in both]):.1f}",
        "ahead": f"{max(ahead):.1f}",
        "behind": f"{-min(ahead):.1f}",
        **{
            f"{name}_{data.partition('-')[0].lower()}": x
            for name, (model, way) in {
                "separation": (AVERAGED, "MaxSeparation(patience=10)"),
                "bimodality": (AVERAGED, DEFAULT),
                "network": (NETWORK, DEFAULT),
                "network_held": (NETWORK, HELD_OUT),
            }.items()
            for data, x in zip(DATA[:2], lost(model, way), strict=True)
        },
    }


def kept() -> dict[str, dict[str, list[float]]]:
    """Return how far each way is above the best epoch, by model, in all runs and on right labels alone."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, gains in read("keep_average").items():
        if isinstance(gains, dict) and ": " in name:
            model, _, way = name.partition(": ")
            found.setdefault(model, {})[way] = [x for some in gains.values() for x in some]
            found[model][f"{way}, right labels"] = gains["right labels"]
    return found


def average() -> dict[str, str]:
    """The average of an estimator beside the epoch that its rule keeps."""
    found, ways = kept(), ('keep="average"', 'keep="best"')
    for of in found.values():
        assert np.mean(of[ways[0]]) > np.mean(of[ways[1]])
    ahead = {
        model: np.mean(of[f"{ways[0]}, right labels"]) - np.mean(of[f"{ways[1]}, right labels"])
        for model, of in found.items()
    }
    behind = -ahead.pop("averaged SGD")
    return {
        "runs": f"{len(found['SGD'][ways[0]])}",
        "behind": f"{behind:.1f}",
        "ahead": spread(list(ahead.values()), 1),
    }


def costs() -> dict[str, str]:
    """What the scores cost an epoch of the estimator."""
    file = read("partial_fit")
    kinds = {
        "dense": "dense float64, 2 classes",
        "float32": "dense float32, 2 classes",
        "sparse": "sparse float64, 2 classes",
        "dense10": "dense float32, 10 classes",
        "sparse10": "sparse float32, 10 classes",
    }
    big = "2 classes, 200000 rows, batches of"
    memory = {
        name: file[f"{kind}: peak memory in sizes of the data, ours (must be 2 or less)"] - 1
        for name, kind in kinds.items()
    }
    dense = [100 * memory[name] for name in ("dense", "float32", "dense10")]
    sparse = [100 * memory[name] for name in ("sparse", "sparse10")]
    slow, fast = (
        file[f"sparse float32, {big} {rows}: seconds an epoch, bare loop"] for rows in (100, 1000)
    )
    return {
        **{
            name: f"{file[f'{kind}: times the bare loop (must be 1.3 or less)']:.2f}"
            for name, kind in kinds.items()
        },
        "network": f"{file['MLPClassifier((100,)), 10 classes: times the bare loop']:.2f}",
        "memory_dense": spread(dense, 0),
        "memory_sparse": spread(sparse, 0),
        "slow": f"{slow / fast:.1f}",
        **{
            f"wide_{kind}": f"{file[f'{kind} float32, {big} 10000: times the bare loop']:.2f}"
            for kind in ("dense", "sparse")
        },
    }


def cluster() -> dict[str, str]:
    """Two workers of a cluster beside one, and the memory of the process that asks."""
    file = read("dask")
    return {
        "pairs": spread(file["ratios of the pairs"], 2),
        "runs": number(len(file["ratios of the pairs"])),
        "alone": f"{file['seconds, gwa_offline.analyse on all cores']:.1f}",
        "before": f"{file['MB before the analysis']:.0f}",
        "bytes": f"{file['bytes a sample']:.0f}",
    }


def negative() -> dict[str, str]:
    """Shares of right labels with a negative score, by the kind of head."""
    file = read("sgd_steps")
    heads = {
        "rest": "one-vs-rest, fit_intercept=True",
        "bare": "one-vs-rest, fit_intercept=False",
        "softmax": "softmax, fit_intercept=True",
    }
    return {
        name: f"{100 * file[f'negative scores of right labels, {head}']:.0f}"
        for name, head in heads.items()
    }
