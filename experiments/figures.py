"""The paper's figures from the results, by Matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.criteria import Result, column, kept
from experiments.tables import LABELS, TITLES
from gwa_offline._drawing import BAD, CHOSEN, GWA, METRIC, MUTED, STYLE
from gwa_offline.statistics import scaled

__all__ = ["FIGURES", "draw"]


def draw(name: str, results: list[Result], study: str, path: Path) -> bool:
    """Draw one figure of a study to a PNG; False where its runs are missing."""
    runs = {
        r["settings"]["labels"]: r
        for r in reversed(results)
        if (r["settings"]["study"], r["settings"]["percent"]) == (study, 100)
    }
    runs = {labels: runs[labels] for labels in LABELS if labels in runs}
    if not runs:
        return False
    with plt.rc_context(STYLE):
        figure = FIGURES[name](runs)
        figure.savefig(path, dpi=100, metadata={"Software": None})
        plt.close(figure)
    return True


def _panels(runs: dict[str, Result], height: float = 3.0) -> tuple[Any, Any]:
    figure, axes = plt.subplots(
        1, len(runs), figsize=(2.9 * len(runs) + 0.3, height), layout="constrained", squeeze=False
    )
    for ax, labels in zip(axes[0], runs, strict=True):
        ax.set_title(TITLES[labels])
        ax.set_xlabel("epoch")
    return figure, axes[0]


def curves(runs: dict[str, Result]) -> Any:
    """Fig. 2: test accuracy, GWA, bimodality and LabelWave, normalised, and what each keeps."""
    figure, axes = _panels(runs)
    shown = {
        "test_accuracy": ("test accuracy", METRIC, "high", None),
        "gwa": ("GWA", GWA, "high", "GWA, the paper's rule"),
        "bimodality": ("bimodality", CHOSEN, "high", "largest bimodality"),
        "prediction_changes": ("prediction changes", MUTED, "low", "LabelWave"),
    }
    for ax, run in zip(axes, runs.values(), strict=True):
        begin = len(run["epochs"]["epoch"]) // 10
        for name, (title, colour, better, criterion) in shown.items():
            values = scaled(column(run, name), better=better, begin=begin)
            ax.plot(values, color=colour, label=title, lw=2 if name == "test_accuracy" else 1.2)
            k = int(np.nanargmax(values)) if criterion is None else kept(run, criterion)
            if k is not None:
                ax.plot(k, values[k], "*", ms=12, color=colour, mec="white", zorder=5)
        ax.set_ylim(-0.1, 1.1)
        ax.set_yticks([0, 1])
    axes[0].set_ylabel("normalised; up is better")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


def parts(runs: dict[str, Result]) -> Any:
    """Fig. 9: mean and kurtosis apart, with bimodality and test accuracy."""
    figure, axes = _panels(runs)
    for ax, run in zip(axes, runs.values(), strict=True):
        begin = len(run["epochs"]["epoch"]) // 10
        for name, colour in {"test_accuracy": METRIC, "mean": GWA, "kurtosis": BAD}.items():
            values = scaled(column(run, name), better="high", begin=begin)
            ax.plot(values, color=colour, label=name.replace("_", " "))
        ax.set_ylim(-0.1, 1.1)
        ax.set_yticks([0, 1])
    axes[0].set_ylabel("normalised")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def distributions(runs: dict[str, Result]) -> Any:
    """Fig. 16: the scores of right and of wrong labels over the epochs."""
    runs = {labels: run for labels, run in runs.items() if run["wrong"]} or runs
    figure, axes = _panels(runs)
    for ax, run in zip(axes, runs.values(), strict=True):
        for part, colour in {"right": GWA, "wrong": BAD}.items():
            rows = [row for row in run["epochs"][f"{part}_quantiles"] if row]
            if not rows:
                continue
            q = np.asarray(rows).T
            last = len(q) - 1
            low, middle, high = q[round(0.1 * last)], q[last // 2], q[round(0.9 * last)]
            ax.fill_between(range(len(middle)), low, high, color=colour, alpha=0.25, lw=0)
            ax.plot(middle, color=colour, label=f"{part} labels: median, 10 to 90 %")
        ax.axhline(0, color=MUTED, lw=0.8)
        k = kept(run, "largest bimodality")
        if k is not None:
            ax.axvline(k, color=CHOSEN, ls="--", lw=1.2, label="largest bimodality")
        ax.axvline(
            int(column(run, "test_accuracy").argmax()), color=METRIC, ls=":", label="best epoch"
        )
    axes[0].set_ylabel("alignment γ")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def detection(runs: dict[str, Result]) -> Any:
    """Fig. 4 in numbers: average precision of the label errors over the epochs."""
    runs = {labels: run for labels, run in runs.items() if run["detection"]}
    figure, axes = _panels(runs)
    shown = {"alignment": GWA, "margin": CHOSEN, "sample_loss": MUTED, "el2n": METRIC}
    for ax, run in zip(axes, runs.values(), strict=True):
        for name, colour in shown.items():
            found = run["detection"][name]
            ax.plot(
                found["mean_average_precision"],
                color=colour,
                label=f"{name}, mean so far; dotted: alone",
            )
            ax.plot(found["average_precision"], color=colour, ls=":", lw=1.2)
        quality = run["detection"]["label_quality"]
        ax.plot(
            quality["until"] - 1, quality["average_precision"], "*", color=BAD, ms=12,
            mec="white", zorder=5, ls="", label="label_quality",
        )  # fmt: skip
    axes[0].set_ylabel("average precision")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


#: By name: what makes the figure of the runs of one study.
FIGURES: dict[str, Callable[[dict[str, Result]], Any]] = {
    "curves": curves,
    "parts": parts,
    "distributions": distributions,
    "detection": detection,
}
