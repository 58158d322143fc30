"""The paper's figures from the results, by Matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.criteria import best_epoch, warm
from experiments.store import WITH_CURVES, Result, column
from experiments.tables.cells import LABELS, NETWORKS, RANKINGS, TITLES
from experiments.tables.estimator import paired
from experiments.tables.fine_tuning import STUDIES, WINDOWS, after_dip, lowest
from experiments.tables.layers import PARTS
from experiments.tables.models import model_points
from experiments.tables.two_modes import unhealthy
from experiments.tables.widths import widths_of
from gwa_offline.analysis.statistics import scaled
from gwa_offline.figures.style import BAD, BEST, GWA, METRIC, MUTED, STYLE

__all__ = ["ACROSS", "OF_STUDY", "draw"]


def draw(name: str, results: list[Result], study: str, path: Path) -> bool:
    """Draw one figure of a study to a PNG; False where its runs are missing."""
    if name in ACROSS:
        needed, make = ACROSS[name]
        some = [r for r in results if r["settings"]["study"] in needed]
        return bool(some) and _drawn(lambda: make(some), path)
    runs = {
        r["settings"]["labels"]: r
        for r in reversed(results)
        if (r["settings"]["study"], r["settings"]["percent"]) == (study, 100)
    }
    runs = {labels: runs[labels] for labels in LABELS if labels in runs}
    return bool(runs) and _drawn(lambda: OF_STUDY[name](runs), path)


def _drawn(make: Callable[[], Any], path: Path) -> bool:
    with plt.rc_context(STYLE):
        figure = make()
        figure.savefig(path, dpi=100, metadata={"Software": None})
        plt.close(figure)
    return True


def _panels(runs: dict[str, Result], height: float = 3.0) -> tuple[Any, Any]:
    figure, axes = plt.subplots(
        1, len(runs), figsize=(max(2.9 * len(runs) + 0.3, 7.0), height), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for ax, labels in zip(axes[0], runs, strict=True):
        ax.set_title(TITLES[labels])
        ax.set_xlabel("epoch")
    return figure, axes[0]


def curves(runs: dict[str, Result]) -> Any:
    """Fig. 2: test accuracy, GWA, separation and LabelWave, normalised, and what each keeps."""
    figure, axes = _panels(runs)
    shown = {
        "test_accuracy": ("test accuracy", METRIC, "high", None),
        "gwa": ("GWA", GWA, "high", "GWA, the paper's rule"),
        "separation": ("separation", BEST, "high", "largest separation"),
        "prediction_changes": ("prediction changes", MUTED, "low", "LabelWave"),
    }
    for ax, run in zip(axes, runs.values(), strict=True):
        begin = warm(len(run["epochs"]["epoch"]))
        for name, (title, colour, better, criterion) in shown.items():
            values = scaled(column(run, name), better=better, begin=begin)
            ax.plot(values, color=colour, label=title, lw=2 if name == "test_accuracy" else 1.2)
            k = int(np.nanargmax(values)) if criterion is None else best_epoch(run, criterion)
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
        begin = warm(len(run["epochs"]["epoch"]))
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
        bands(ax, run)
        k = best_epoch(run, "largest separation")
        if k is not None:
            ax.axvline(k, color=BEST, ls="--", lw=1.2, label="largest separation")
        ax.axvline(
            int(column(run, "test_accuracy").argmax()), color=METRIC, ls=":", label="best epoch"
        )
    axes[0].set_ylabel("alignment γ")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def detection(runs: dict[str, Result]) -> Any:
    """Fig. 4 in numbers: average precision of the label errors over the epochs."""
    runs = {labels: run for labels, run in runs.items() if run["detection"]}
    if any("by_mean" not in run["detection"]["alignment"] for run in runs.values()):
        raise ValueError(
            f"`study` must be one with curves, {' or '.join(WITH_CURVES)}, got another; name it in "
            "store.WITH_CURVES before you run it"
        )
    figure, axes = _panels(runs)
    shown = {"alignment": GWA, "margin": BEST, "sample_loss": MUTED, "el2n": METRIC}
    for ax, run in zip(axes, runs.values(), strict=True):
        for name, colour in shown.items():
            found = run["detection"][name]
            ax.plot(found["by_mean"], color=colour, label=f"{name}, mean so far; dotted: alone")
            ax.plot(found["by_epoch"], color=colour, ls=":", lw=1.2)
        # Older runs lack the first of these, some both.
        for name in RANKINGS[:2]:
            if quality := run["detection"].get(name):
                ax.axhline(quality["mean"], color=BAD, ls="--", lw=1.2, label=name)
                break
    axes[0].set_ylabel("average precision")
    legend(figure, axes, columns=2)
    return figure


def estimator(runs: list[Result]) -> Any:
    """Fig. 6: online and offline GWA over the epochs, by learning rate."""
    runs = sorted(runs, key=lambda r: -r["settings"]["learning_rate"])
    figure, axes = plt.subplots(
        1, len(runs), figsize=(3.2 * len(runs) + 0.3, 3.0), layout="constrained", squeeze=False
    )
    for ax, run in zip(axes[0], runs, strict=True):
        ax.plot(column(run, "gwa"), color=GWA, label="online")
        ax.plot(column(run, "offline_gwa"), color=BEST, ls="--", label="offline")
        ax.set_title(f"rate {run['settings']['learning_rate']:g}, r = {paired(run)[0]:.3f}")
        ax.set_xlabel("epoch")
    axes[0, 0].set_ylabel("GWA")
    axes[0, 0].legend()
    return figure


def layers(runs: list[Result]) -> Any:
    """Fig. 7: GWA of the head and of more stages beside test accuracy; their means and kurtosis."""
    found = {r["settings"]["labels"]: r for r in reversed(runs)}
    runs = [found[labels] for labels in sorted(found)]
    figure, axes = plt.subplots(
        len(runs), 3, figsize=(8.0, 2.4 * len(runs)), layout="constrained", squeeze=False
    )
    for row, run in zip(axes, runs, strict=True):
        accuracy = scaled(column(run, "test_accuracy"), better="high")
        row[0].plot(accuracy, color=METRIC, ls=":", lw=2, label="test accuracy")
        colours = iter((GWA, "#5b9bd5", MUTED, BEST, BAD))
        for part, title in PARTS.items():
            colour = next(colours)
            if f"{part}_gwa" in run["epochs"]:
                gwa = scaled(column(run, f"{part}_gwa"), better="high")
                row[0].plot(gwa, color=colour, label=title)
                row[1].plot(column(run, f"{part}_mean"), color=colour)
                row[2].plot(column(run, f"{part}_kurtosis"), color=colour)
        labels = run["settings"]["labels"]
        for ax, title in zip(row, ("GWA, normalised", "mean", "kurtosis"), strict=True):
            ax.set_title(title)
            ax.set_xlabel("epoch")
        row[0].set_ylabel(TITLES.get(labels, labels))
        row[1].set_yscale("log")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def widths(runs: list[Result]) -> Any:
    """Fig. 8: best test accuracy against the largest mean and GWA; a larger dot is a wider latent."""
    found = widths_of(runs)
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.2), layout="constrained", sharey=True)
    shown = {
        "full": (GWA, "no sketch"),
        "measured": (BEST, "sketch measured only"),
        "frozen": (BAD, "frozen sketch layer"),
    }
    for kind, (colour, title) in shown.items():
        points = [(width, *x) for width, kinds in found.items() for x in kinds.get(kind, [])]
        if points:
            width, *alignment, best = np.asarray(points).T
            for ax, values in zip(axes, alignment, strict=True):
                ax.scatter(values, best, s=width / 4, color=colour, alpha=0.7, label=title)
    for ax, title in zip(axes, ("mean", "GWA"), strict=True):
        ax.set_xlabel(f"largest {title}")
        ax.locator_params(axis="x", nbins=5)
    axes[0].set_ylabel("best test accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def fine_tuning(runs: list[Result]) -> Any:
    """Fig. 5: GWA and test accuracy over the epochs; a dot at the dip, a star at what is kept.

    A window is where it ends, in epochs from the beginning; an epoch has its number.
    """
    whole = [r for r in reversed(runs) if r["settings"]["percent"] == 100]
    of: dict[str, dict[str, Result]] = {}
    for run in whole:
        of.setdefault(run["settings"]["study"], {})[run["settings"]["labels"]] = run
    columns = max(map(len, of.values()))
    figure, axes = plt.subplots(
        len(of), columns, figsize=(3.1 * columns + 0.3, 2.6 * len(of) + 0.4), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for ax in axes.flat:
        ax.set_visible(False)
    for row, study in zip(axes, sorted(of), strict=True):
        row[0].set_ylabel("normalised")
        for ax, (labels, run) in zip(row, sorted(of[study].items()), strict=False):
            ax.set_visible(True)
            count, of_epoch = len(run["epochs"]["epoch"]), run["settings"]["windows"]
            at = np.arange(1, count + 1) / of_epoch if of_epoch else np.arange(count)
            for name, colour in {"test_accuracy": METRIC, "gwa": GWA}.items():
                values = scaled(column(run, name), better="high")
                title = {"gwa": "GWA"}.get(name, name.replace("_", " "))
                ax.plot(at, values, color=colour, label=title)
            for k, mark in ((lowest(run), "o"), (after_dip(run), "*")):
                if k is not None:
                    ax.plot(at[k], values[k], mark, ms=10, color=GWA, mec="white", zorder=5)
            name = (STUDIES | WINDOWS)[study].split()[0].removeprefix("EfficientNet-")
            ax.set_title(f"{name}, {TITLES.get(labels, labels)}")
            ax.set_xlabel("epochs" if of_epoch else "epoch")
            ax.set_yticks([0, 1])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def models(runs: list[Result]) -> Any:
    """Fig. 3: the largest mean alignment of each run against test accuracy, also under corruptions."""
    points = model_points(runs)
    corrupted = sum(math.isfinite(x[2]) for of in points.values() for x in of) >= 4
    titles = ["best test accuracy, %"] + ["under corruptions, %"] * corrupted
    figure, axes = plt.subplots(
        1,
        len(titles),
        figsize=(max(4.2 * len(titles), 7.0), 3.6),
        layout="constrained",
        squeeze=False,
    )
    marks = dict(zip(NETWORKS, "osD", strict=True))
    colours = dict(zip(LABELS, (GWA, BEST, METRIC, BAD), strict=True))
    for k, (ax, title) in enumerate(zip(axes[0], titles, strict=True)):
        for study, of in points.items():
            for largest, *accuracy, labels in of:
                ax.plot(largest, accuracy[k], marks[study], color=colours[labels], mec="white")
        ax.set_xlabel("largest mean alignment")
        ax.set_ylabel(title)
    for study in points:
        axes[0, 0].plot([], [], marks[study], color=MUTED, label=NETWORKS[study])
    for labels, colour in colours.items():
        axes[0, 0].plot([], [], "o", color=colour, label=TITLES[labels])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def bands(ax: Any, run: Result) -> None:
    """Draw the middle eight tenths of the scores of right and of wrong labels over the epochs."""
    for side, colour in {"right": GWA, "wrong": BAD}.items():
        if f"{side}_middle" in run["epochs"]:
            low, middle, high = (column(run, f"{side}_{at}") for at in ("low", "middle", "high"))
            ax.fill_between(range(len(middle)), low, high, color=colour, alpha=0.25, lw=0)
            ax.plot(middle, color=colour, label=f"{side} labels: median, 10 to 90 %")
    ax.axhline(0, color=MUTED, lw=0.8)


def health(runs: list[Result]) -> Any:
    """Fig. 10: the scores of runs with unhealthy epochs, and the denominator of GWA below them."""
    chosen = [r for r in runs if r["settings"]["percent"] == 100 and unhealthy(r)][:4]
    chosen = chosen or runs[:1]
    figure, axes = plt.subplots(
        2, len(chosen), figsize=(max(3.1 * len(chosen) + 0.3, 7.0), 4.6), layout="constrained",
        squeeze=False, sharex="col",
    )  # fmt: skip
    for (above, below), run in zip(axes.T, chosen, strict=True):
        bands(above, run)
        denominator = column(run, "denominator")
        below.plot(denominator, color=MUTED)
        ill = np.flatnonzero(~(denominator > 0))
        below.plot(ill, denominator[ill], ".", color=BAD, label="unhealthy")
        below.axhline(0, color=MUTED, lw=0.8)
        below.set_xlabel("epoch")
        s = run["settings"]
        rate = ", constant rate" if s["schedule"] == "constant" else ""
        above.set_title(f"{s['study']}, {s['labels']}{rate}")
    axes[0, 0].set_ylabel("alignment γ")
    axes[1, 0].set_ylabel("kurtosis + 1.2")
    legend(figure, axes.flat)
    return figure


def random_labels(runs: list[Result]) -> Any:
    """Fig. 11: a network that memorises random labels."""
    run = runs[0]
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.0), layout="constrained")
    shown = {"gwa": ("GWA", GWA), "mean": ("mean", GWA), "test_accuracy": ("test accuracy", METRIC)}
    for ax, (name, (title, colour)) in zip(axes, shown.items(), strict=True):
        ax.plot(column(run, name), color=colour, label=title)
        ax.set_xlabel("epoch")
    axes[0].set_ylabel("GWA")
    axes[1].set_ylabel("mean")
    right = axes[1].twinx()
    right.plot(column(run, "kurtosis"), color=BAD, label="kurtosis, right axis")
    axes[2].plot(
        column(run, "label_probability"), color=BEST, label="probability of the given label"
    )
    legend(figure, [axes[1], right, axes[2]])
    return figure


def legend(figure: Any, axes: Iterable[Any], columns: int = 4) -> None:
    """Name each kind of line once, also one that only some of the axes have."""
    named = {
        label: line
        for ax in axes
        for line, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named, loc="outside upper left", ncols=columns)


#: By name: the studies whose runs are needed, and what makes the figure of them.
ACROSS: dict[str, tuple[Collection[str], Callable[[list[Result]], Any]]] = {
    "models": (NETWORKS, models),
    "estimator": (("estimator",), estimator),
    "layers": (("layers",), layers),
    "widths": (("widths",), widths),
    "fine-tuning": (STUDIES, fine_tuning),
    "fine-tuning-windows": (WINDOWS, fine_tuning),
    "health": (("small", *STUDIES), health),
    "random-labels": (("random",), random_labels),
}
#: By name: what makes the figure of the runs of one study, by labels.
OF_STUDY: dict[str, Callable[[dict[str, Result]], Any]] = {
    "curves": curves,
    "parts": parts,
    "distributions": distributions,
    "detection": detection,
}
