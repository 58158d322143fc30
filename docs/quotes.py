"""Numbers that pages quote in a sentence: each sentence is made from what was measured.

A test looks for each sentence in its page, line breaks and markup aside. After a new measurement it
shows the sentences that are stale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from experiments import store
from experiments.tables import keep

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "benchmarks" / "results"

LOSS = "8192 tokens, D=4096, C=128000, bfloat16"
STEP = "ViT-S/16, batch 512, bf16, compiled"


@cache
def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))
    return found


@cache
def _claims() -> dict[str, list[str]]:
    """Return the cells of the table of claims by what is kept."""
    lines = keep.claims(store.read(store.RESULTS)).splitlines()[2:]
    rows = ([cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines)
    return {name: cells for name, *cells in rows}


def _claim(kept: str, column: int = 0) -> tuple[float, float]:
    """Return the mean and the worst run of what is kept."""
    mean, worst = re.findall(r"[+-][0-9.]+", _claims()[kept][column])
    return float(mean), float(worst)


def _step() -> dict[str, str]:
    training = _read("training")
    more, alone = (
        training[f"{STEP}: peak MB in a step, {way}"] for way in ("with the monitor", "alone")
    )
    return {
        "added": f"{training[f'{STEP}: ms on the device added by hook and update']:.2f}",
        "step": f"{training[f'{STEP}: ms a step']:.0f}",
        "more": f"{more - alone:.1f}",
        "all": f"{alone / 1e3:.0f}",
    }


def _average() -> dict[str, str]:
    (mean, worst), (rule, worst_rule) = _claim("average"), _claim("largest separation")
    paper, worst_paper = _claim("GWA, the paper's rule")
    return {
        "mean": f"{mean:.1f}",
        "worst": f"{-worst:.1f}",
        "rule": f"{-rule:.1f}",
        "worst_rule": f"{-worst_rule:.1f}",
        "above": f"{mean - rule:.1f}",
        "paper": f"{-paper:.1f}",
        "worst_paper": f"{-worst_paper:.1f}",
    }


def _labels() -> dict[str, str]:
    settings = {
        name: methods
        for name, methods in _read("labels").items()
        if isinstance(methods, dict) and "average precision" in methods.get("LabelIssues", {})
    }

    def precisions(method: str) -> Any:
        return np.array([x[method]["average precision"][0] for x in settings.values()])

    ours, cleanlab = precisions("LabelIssues"), precisions("cleanlab, default")
    return {
        "settings": f"{len(settings)}",
        "ours": f"{ours.mean():.3f}",
        "cleanlab": f"{cleanlab.mean():.3f}",
        "margin": f"{precisions('margin, mean over epochs').mean():.3f}",
        "behind": f"{(cleanlab - ours).max():.3f}",
        "ahead": f"{(ours > cleanlab).sum()}",
    }


def _loss() -> dict[str, str]:
    found = _read("linear_loss")
    ways = {"ours": "linear_cross_entropy", "plain": "plain logits", "liger": "Liger"}
    times = {name: f"{found[f'{LOSS}: ms, {way}']:.1f}" for name, way in ways.items()}
    memory = {
        f"{x}_gb": f"{found[f'{LOSS}: extra MB, {way}'] / 1e3:.3g}" for x, way in ways.items()
    }
    wide = {
        "wide": f"{found[f'{LOSS}: ms, blocks of 256 MiB']:.1f}",
        "wide_mb": f"{found[f'{LOSS}: extra MB, blocks of 256 MiB']:,.0f}",
    }
    return times | memory | wide


def _examples() -> dict[str, str]:
    """Return the average precision of swapped answers after one epoch, by signal."""
    runs = [
        run["examples"]
        for run in store.read(store.RESULTS)
        if run["settings"]["study"] == "language-once"
        and run["settings"]["labels"] == "swapped-10"
        and run["settings"]["loss"] == "answer"
    ]
    return {
        name: f"{np.mean([run[name]['by_mean'][0] for run in runs]):.2f}"
        for name in ("mean", "min", "gradient", "loss")
    }


#: Of each page: what gives the numbers, and a sentence with places for them.
QUOTES: tuple[tuple[str, Callable[[], dict[str, str]], str], ...] = (
    ("README.md", _step, "{added} ms of a {step} ms training step"),
    ("README.md", _labels, "over {settings} settings (eight with an earlier version): LabelIssues {ours}"),
    ("README.md", _labels, "(AUM) {margin}, cleanlab {cleanlab}"),
    ("README.md", _labels, "In its worst setting LabelIssues is {behind} behind cleanlab"),
    ("docs/index.md", _step, "The monitor adds {added} ms to a training step of {step} ms"),
    ("docs/index.md", _average, "the average is {mean} points above the best epoch"),
    ("docs/index.md", _average, "{worst} below it in the worst run"),
    ("docs/faq.md", _step, "{added} ms of a {step} ms step"),
    ("docs/faq.md", _step, "{more} MB of {all} GB"),
    ("docs/which-rule.md", _average, "{mean} points above the best epoch; worst of 24 runs −{worst}"),
    ("docs/which-rule.md", _average, "{rule} points below the best epoch; worst −{worst_rule}"),
    ("docs/which-rule.md", _average, "{paper} points below the best epoch; worst −{worst_paper}"),
    ("docs/from-early-stopping.md", _average, "it is {mean} points above the best single epoch"),
    ("docs/from-early-stopping.md", _average, "with a worst run of −{worst}"),
    ("docs/from-cleanlab.md", _labels, "{settings} settings: digits"),
    ("docs/from-cleanlab.md", _labels, "one training | {ours} |"),
    ("docs/from-cleanlab.md", _labels, "the order of the labels, in {ahead} of {settings} settings"),
    ("docs/results/index.md", _average, "{above} points above the rule"),
    ("docs/torch/loop.md", _loss, "take {ours} ms and {ours_gb} GB"),
    ("docs/torch/loop.md", _loss, "Plain logits take {plain} ms and {plain_gb} GB"),
    ("docs/torch/loop.md", _loss, "Liger's fused loss takes {liger} ms and {liger_gb} GB"),
    ("docs/torch/speed.md", _loss, "with 256 MiB, {wide} ms and {wide_mb} MB"),
    ("docs/torch/language.md", _examples, "average precision {min} by the scores, {loss} by the loss"),
    ("docs/torch/language.md", _examples, "the loss {loss} and \"mean\" {mean}"),
    ("docs/results/language.md", _examples, "reach {min}. The best other signal is the loss of the answer, with {loss}"),
)  # fmt: skip


def plain(text: str) -> str:
    """Return text without line breaks and markup."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(re.sub("[`*]", "", text).split())


def sentences() -> list[tuple[str, str]]:
    """Return each page, and a sentence that it must have."""
    return [(page, plain(words.format(**numbers()))) for page, numbers, words in QUOTES]
