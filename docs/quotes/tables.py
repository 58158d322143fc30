"""Tables of the concepts and the guides: the part of the results that a page needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.criteria import BIMODALITY, LAST, PAPER, SEPARATION
from experiments.tables import rules

from . import averages, benchmarks, ranking
from . import rules as losses

__all__ = ["TABLES"]

NOT = "–"
#: How the pages call what a table of the chapter has in words.
RULES = {
    SEPARATION: ("`MaxSeparation`", "MaxSeparation()"),
    BIMODALITY: ("`MaxBimodality`", "MaxBimodality()"),
    PAPER: ("`MaxGWA`", "MaxGWA()"),
    LAST: ("last epoch", "last epoch"),
}
WAYS = {
    "MaxBimodality(patience=10)": "`MaxBimodality(patience=10)`, the default",
    "MaxBimodality()": "`MaxBimodality()`",
    "MaxSeparation(patience=10)": "`MaxSeparation(patience=10)`",
    "MaxSeparation()": "`MaxSeparation()`",
    "MaxGWA()": "`MaxGWA()`",
    "last epoch": "last epoch",
    "early_stopping=True, 10% held out": "`early_stopping=True`, a tenth held out",
    "same loop, 10% held out": "the same loop, a tenth held out",
}
KEPT = {'keep="average"': '`keep="average"`', 'keep="best"': '`keep="best"`, the default rule'}
STEPS = {
    "default": "default steps",
    "default, 100 epochs": "default steps, 100 epochs",
    "default, averaged": "default steps, `average=True`",
    "constant": '`learning_rate="constant", eta0=0.01`',
    "constant, averaged": "the same, `average=True`",
}
#: Settings by how many labels are wrong in them.
RATES = {"none": ("no wrong labels",), "9 and 10 %": (" 9 %", " 10 %"),
         "17 to 20 %": (" 17 %", " 18 %", " 20 %"), "40 %": (" 40 %",)}  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def kept() -> dict[str, str]:
    """Return what the average and single epochs have above the best epoch."""
    claims = averages.claims()
    names = (averages.AVERAGE, SEPARATION, LAST)
    rows = (
        [title, *(claims[name][k] for name in names)]
        for k, title in enumerate(claims[averages.HEAD])
    )
    return {"average in short": table(["networks", *names], rows)}


def stopping() -> dict[str, str]:
    """Return what rules lose, and what bimodality alone loses where few labels are wrong."""
    file = benchmarks.read("rules")
    some = losses.by_data()[losses.LARGE]
    made = [file[f"{data}, wrong labels"] for data in benchmarks.DATA[:2]]
    head = ["rule", f"{losses.LARGE}, {len(some)} runs"]
    head += [
        f"{data}, {found['last epoch']['runs']} runs"
        for data, found in zip(benchmarks.DATA[:2], made, strict=True)
    ]
    rows = []
    for name, (title, of) in RULES.items():
        lost = losses.lost(some, name)
        cells = [(float(np.mean(lost)), max(lost))]
        cells += [(found[of]["mean regret"], found[of]["worst regret"]) for found in made]
        rows.append([title, *(f"{mean:.2f} ({worst:.2f})" for mean, worst in cells)])
    return {
        "rules in short": table(head, rows),
        "few wrong labels": table(
            ["runs", "`MaxBimodality`", "`MaxSeparation`"], losses.few_wrong()
        ),
    }


def label_quality() -> dict[str, str]:
    """Return the average precision of rankings, by data and kind of errors."""
    file = benchmarks.read("rules")
    ways = (ranking.DEFAULT, ranking.MEAN, ranking.AUM)
    in_file = ("label_quality", 'label_quality, "mean"', "AUM")
    rows = []
    for data in benchmarks.DATA[:2]:
        for kind in ranking.KINDS:
            found = [x for name, x in file.items() if name.startswith(f"{data}, {kind}")]
            count = sum(x["label_quality"]["runs"] for x in found)
            means = [np.mean([x[way]["mean average precision"] for x in found]) for way in in_file]
            title = f"{data}, small network, {kind} errors"
            rows.append([title, str(count), *(f"{x:.3f}" for x in means), NOT])
    for title, some in ranking.by_kind().items():
        means = [ranking.precision(some, way) for way in ways]
        means.append(ranking.precision(some, ranking.MEAN, "last"))
        rows.append([title, str(len(some)), *(f"{x:.3f}" for x in means)])
    head = ["networks and errors", "runs", "`label_quality`", "mean score of all epochs"]
    head += ["mean margin of all epochs (AUM)", "score at the last epoch"]
    return {"label quality": table(head, rows)}


def validation() -> dict[str, str]:
    """Return how far a rule on all data is above a validation set on the rest."""
    head, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in rules.above_validation(averages.results()).splitlines()
    )
    cells = {name: of for name, *of in lines}
    rows = zip(head[1:], cells[SEPARATION], cells[LAST], strict=True)
    return {"beside validation": table(["runs", "`MaxSeparation`", "last epoch"], rows)}


def signals() -> dict[str, str]:
    """Return what signals cost."""
    file = benchmarks.read("signals")
    single = [
        value
        for name, value in file.items()
        if name.startswith("ms, ")
        and not name.startswith(("ms, alignment", "ms, all", "ms, two", "ms, pairwise"))
    ]
    rows = [
        ["alignment", f"{file['ms, alignment']:.2f}"],
        ["any one signal of a sample", f"{min(single):.2f} to {max(single):.2f}"],
        ["all of them in one pass", f"{file['ms, all signals of a sample together']:.2f}"],
    ]
    sizes = ", ".join(f"{name} = {file[name]}" for name in "NCD")
    return {"cost of signals": table([f"{sizes}, float32, NumPy, one core", "ms"], rows)}


def early_stopping() -> dict[str, str]:
    """Return what the estimator that stops early loses, by model."""
    file = benchmarks.read("early_stopping")
    found = {}
    for title, model in {
        "averaged SGD": benchmarks.AVERAGED,
        "network": benchmarks.NETWORK,
        "SGD": "SGDClassifier",
    }.items():
        rows = []
        for way, shown in WAYS.items():
            cells = [_regret(file[f"{data}, {model}"].get(way)) for data in benchmarks.DATA]
            if set(cells) != {NOT}:
                rows.append([shown, *cells])
        found[title] = table([title, *benchmarks.DATA], rows)
    kept = benchmarks.kept()
    ways = [way for way in kept["SGD"] if not way.endswith(", right labels")]
    means = ([KEPT.get(way, way), *(_gain(of[way]) for of in kept.values())] for way in ways)
    return found | {"what is kept": table(["", *kept], means)}


def _gain(gains: list[float]) -> str:
    return f"{np.mean(gains):+.1f} ({min(gains):+.1f})"


def _regret(found: dict[str, Any] | None) -> str:
    if found is None:
        return NOT
    worst = max(x["worst regret"] for x in found.values() if isinstance(x, dict))
    return f"{found['mean regret']:.1f} ({worst:.1f})"


def issues() -> dict[str, str]:
    """Return the F1 of label issues by the share of wrong labels, and the steps of SGDClassifier."""
    labels, steps = benchmarks.read("labels"), benchmarks.read("sgd_steps")
    rows = []
    for rate, ends in RATES.items():
        some = [x for name, x in labels.items() if name.endswith(ends)]
        cells = []
        for method in (benchmarks.OURS, benchmarks.CLEANLAB):
            called = np.mean([x[method]["issues"][0] for x in some])
            f1 = [x[method]["F1"][0] for x in some if "F1" in x[method]]
            cells.append(f"{f'{np.mean(f1):.2f}' if f1 else NOT} ({100 * called:.0f} %)")
        rows.append([rate, str(len(some)), *cells])
    data = dict.fromkeys(name.partition(": ")[0] for name in steps if ": " in name)
    found = (
        [title, *(_steps(steps[f"{name}: {way}"]) for name in data)] for way, title in STEPS.items()
    )
    return {
        "issues": table(["wrong labels", "settings", "`LabelIssues`", "cleanlab"], rows),
        "steps": table(['`SGDClassifier(loss="log_loss", ...)`', *data], found),
    }


def _steps(found: dict[str, Any]) -> str:
    (right,), (_, precision, f1) = found["0%"], found["10%"]
    return f"{100 * right:.0f} %, {precision:.2f}, {f1:.2f}"


def cluster() -> dict[str, str]:
    """Return the time of one worker and of two, and the memory of the process that asks."""
    file = benchmarks.read("dask")
    one = next(value for name, value in file.items() if name.startswith("seconds, one worker"))
    ratio = f"{file['ratio (must be 1.6 or more)']:.2f} times as fast"
    workers = [["one", f"{one:.1f}", ""], ["two", f"{file['seconds, two workers']:.1f}", ratio]]
    peak, samples = "peak MB of the asking process, N={}, D={}, T={}", (250_000, 500_000, 1_000_000)
    kinds = {
        "64 features, one epoch": (64, 1),
        "256 features, one epoch": (256, 1),
        "64 features, four epochs": (64, 4),
    }
    memory = (
        [title, *(f"{file[peak.format(n, *of)]:.0f} MB" for n in samples)]
        for title, of in kinds.items()
    )
    return {
        "workers": table(["workers", "seconds", ""], workers),
        "memory": table(["samples", *(f"{n:,}" for n in samples)], memory),
    }


def jax() -> dict[str, str]:
    """Return what a step of JAX costs with the scores, and the head of a language model."""
    file = benchmarks.read("jax")
    step = "ViT-S/16, batch 512, bf16, jitted"

    def beside(way: str) -> str:
        ratio, error = (
            file[f"{step}: steps/s, {way} / alone"],
            file[f"{step}: standard error of that, {way}"],
        )
        return f"{ratio:.4f} ± {error:.4f}"

    alone, ours = (
        f"{file[f'{step}: MB of temporaries in a step, {way}'] / 1e3:.2f} GB"
        for way in ("alone", "with the monitor")
    )
    steps = [
        ["without a monitor", f"1 ({file[f'{step}: ms a step']:.0f} ms a step)", alone],
        ["with `update`", beside("with the monitor"), ours],
        ["with the paper's formula, scores by step", beside("with the paper's formula"), ""],
    ]
    head = "head of a language model, 8192 tokens, D=4096, C=128000, bfloat16"
    ways = {
        "the product of latents and kernel alone": "the product alone",
        "`head_scores` without logits": "ours",
        "`head_scores` of logits in memory": "logits in memory",
    }
    heads = (
        [
            title,
            f"{file[f'{head}: ms, {way}']:.1f}",
            f"{file[f'{head}: extra MB, {way}'] / 1e3:.2g} GB",
        ]
        for title, way in ways.items()
    )
    return {
        "step": table(["", "steps/s, ratio", "temporaries of a step"], steps),
        "head": table(["", "ms", "memory beside the arguments"], heads),
    }


#: By page: what returns its tables by name.
TABLES = {
    "clusters.md": cluster,
    "concepts/averaging.md": kept,
    "concepts/label-quality.md": label_quality,
    "concepts/stopping.md": stopping,
    "from-early-stopping.md": validation,
    "jax/index.md": jax,
    "signals/index.md": signals,
    "sklearn/cleanlab.md": issues,
    "sklearn/digits.md": early_stopping,
}
