"""Draw the pictures of the documentation: `python docs/figures.py`.

They show the demonstration of seed 0, one sweep that needs no data, and the results of the experiments.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "adapters")]

from experiments.figures import ACROSS, OF_STUDY, draw  # noqa: E402
from experiments.store import RESULTS, read  # noqa: E402
from experiments.tables.cells import NETWORKS  # noqa: E402
from gwa_core import MaxGWA, MaxSeparation, alignment_scores, select_epoch  # noqa: E402
from gwa_offline.app.demo import NOISE, DemoResult, run_demo  # noqa: E402
from gwa_offline.figures.displays import DistributionDisplay, SignalsDisplay  # noqa: E402
from gwa_offline.figures.style import BAD, BEST, GWA, METRIC, MUTED, STYLE  # noqa: E402

IMAGES = ROOT / "docs" / "images"
TITLE: dict[str, Any] = {"x": 0.01, "ha": "left", "fontsize": 12, "weight": "bold"}


def wrong_labels(result: DemoResult) -> np.ndarray:
    """Return the ids that the demonstration gave a wrong label, drawn again from its seed."""
    count = result.report.num_samples
    return np.random.default_rng(0).choice(count, round(NOISE * count), replace=False)


def draw_labels(result: DemoResult) -> None:
    """The first picture of the README: the most suspicious digits."""
    report, images, wrong = result.report, np.load(result.images), set(wrong_labels(result))
    figure, grid = plt.subplots(2, 5, figsize=(5.4, 3.4), layout="constrained")
    figure.suptitle("The labels to check first", **TITLE)
    panels = grid.ravel()
    for panel, sample in zip(panels, report.rank(len(panels)), strict=True):
        panel.imshow(images[sample], cmap="gray_r", interpolation="bicubic")
        label, says = report.targets[sample], report.predictions[sample]
        color = BAD if sample in wrong else MUTED
        panel.set_title(f"label {label}", fontsize=12, color=color, loc="center", pad=3)
        panel.set_xlabel(f"model: {says}", fontsize=10.5, color=MUTED, labelpad=2)
        panel.set(xticks=[], yticks=[])
        panel.grid(visible=False)
        panel.spines[:].set_visible(False)
    save(figure, "first-labels")


def draw_weights(result: DemoResult) -> None:
    """The second picture of the README: the average of the weights beside all epochs."""
    report, average = result.report, 100 * result.average_accuracy
    figure, ax = plt.subplots(figsize=(5.4, 3.4), layout="constrained")
    figure.suptitle("The weights to keep: test accuracy in %", **TITLE)
    accuracy = [100 * record.metrics["test_accuracy"] for record in report.epochs]
    ax.plot([record.summary.epoch for record in report.epochs], accuracy, color=METRIC)
    ax.axhline(average, color=GWA, linewidth=2.5)
    ax.text(0, average + 0.1, "average of the weights", color=GWA)
    best = (report.best_epoch, 100 * result.best_accuracy)
    ax.plot(*best, "*", color=BEST, markersize=15)
    ax.annotate(
        f"epoch {report.best_epoch}, kept by the rule",
        best,
        (report.best_epoch - 2, 94.5),
        color=BEST,
        arrowprops={"arrowstyle": "-", "color": BEST, "shrinkB": 7},
    )
    ax.set_ylim(93.6, 97.5)
    ax.set_xlabel("epoch")
    save(figure, "first-weights")


def draw_demo(result: DemoResult) -> None:
    """The distribution over epochs, and at the best one."""
    report = result.report
    best = report.best_epoch
    display = DistributionDisplay.from_report(report)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.4, 3.7), layout="constrained", width_ratios=(1.15, 1)
    )
    display.plot(left)
    left.set_title("Alignment of 1,297 digits over 50 epochs")
    left.text(best + 0.6, left.get_ylim()[1], "best", color=BEST, va="top")

    display.plot(right, epoch=best)
    for bar in right.patches:
        bar.set_color(GWA)
    right.hist(
        report.scores[wrong_labels(result)],
        report.histogram_edges,
        color=BAD,
        label="wrong labels",
    )
    right.set_ylim(0, 1.2 * right.get_ylim()[1])
    right.legend(
        loc="upper left",
        fontsize="small",
        framealpha=1.0,
        facecolor="white",
        frameon=True,
        edgecolor="white",
    )
    right.set_title(f"Epoch {best}, the best one")
    save(figure, "demo")


def draw_stopping(result: DemoResult) -> None:
    """What the rules watch, and what nobody could have watched."""
    report = result.report
    history = [record.summary for record in report.epochs]
    epochs = [summary.epoch for summary in history]
    accuracy = [100 * record.metrics["test_accuracy"] for record in report.epochs]
    figure, panels = plt.subplots(3, 1, figsize=(7.2, 5.6), layout="constrained", sharex=True)
    rows: list[tuple[Any, str, str, Any]] = [
        (panels[0], "separation", GWA, MaxSeparation()),
        (panels[1], "gwa", GWA, MaxGWA()),
    ]
    for panel, name, colour, rule in rows:
        values = [getattr(summary, name) for summary in history]
        best = select_epoch(history, rule).step
        panel.plot(epochs, values, color=colour, linewidth=2)
        panel.plot(best, values[best], "*", color=BEST, markersize=15, markeredgecolor="white")
        panel.set_title(f"{type(rule).__name__} keeps epoch {best}", fontsize=10.5)
        panel.set_ylabel("GWA" if name == "gwa" else name)
        panels[2].axvline(best, color=BEST, linewidth=1.2, linestyle=(0, (4, 3)))
    panels[1].set_ylim(0.012, 0.022)
    panels[2].plot(epochs, accuracy, color=METRIC, linewidth=2)
    panels[2].set_ylim(92, 98)
    panels[2].set_ylabel("test acc. (%)")
    panels[2].set_title("What neither rule has seen", fontsize=10.5)
    panels[2].set_xlabel("epoch")
    figure.align_ylabels(panels)
    save(figure, "stopping")


def draw_signals(result: DemoResult) -> None:
    """The picture of the page of signals, in few colours so that it is small."""
    figure = SignalsDisplay.from_report(result.report).plot().figure_
    save(figure, "signals")
    path = IMAGES / "signals.png"
    Image.open(path).convert("RGB").quantize(96, Image.Quantize.FASTOCTREE).save(
        path, optimize=True
    )


def draw_saturation() -> None:
    """Relative error of the textbook formula, and of this package, as logits grow."""
    rng = np.random.default_rng(0)
    latents, weight = rng.normal(size=(2000, 64)), rng.normal(size=(10, 64)) / 8
    latents = latents + 0.5 * weight[rng.integers(0, 10, 2000)] * 8
    targets = (latents @ weight.T).argmax(axis=1)
    scales = np.geomspace(1, 100, 25)
    errors: dict[str, list[float]] = {"textbook softmax − onehot": [], "gwa_core": []}
    for scale in scales:
        truth = alignment_scores(latents=scale * latents, weight=weight, targets=targets)
        z, w = (scale * latents).astype(np.float32), weight.astype(np.float32)
        ours = alignment_scores(latents=z, weight=w, targets=targets)
        for name, value in zip(errors, (textbook(z, w, targets), ours), strict=True):
            errors[name].append(float(np.median(np.abs(value / truth - 1.0))))
    figure, ax = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    for (name, values), colour in zip(errors.items(), (BAD, GWA), strict=True):
        ax.loglog(scales, np.maximum(values, 1e-9), color=colour, linewidth=2, label=name)
    ax.axhline(1.0, color=MUTED, linewidth=1, linestyle=":")
    ax.set(xlabel="scale of the latents", ylabel="relative error of γ")
    ax.set_title("Median error in float32, samples the network is sure of", fontsize=10.5)
    ax.legend(loc="center left", fontsize="small")
    save(figure, "saturation")


def textbook(latents: np.ndarray, weight: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Definition 1 as it is usually written, in the precision of the inputs."""
    logits = latents @ weight.T
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    r = np.eye(weight.shape[0], dtype=p.dtype)[targets] - p / p.sum(axis=1, keepdims=True)
    size = np.linalg.norm(r, axis=1) * np.linalg.norm(latents, axis=1) * np.linalg.norm(weight)
    return (r * logits).sum(axis=1) / (size + np.float32(1e-12))


def save(figure: Any, name: str) -> None:
    """Write a picture without its date or version, so that the same data give the same file."""
    figure.savefig(IMAGES / f"{name}.png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Draw all pictures."""
    mpl.use("Agg")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, plt.rc_context(STYLE):
        result = run_demo(folder)
        draw_labels(result)
        draw_weights(result)
        draw_demo(result)
        draw_stopping(result)
        draw_signals(result)
        draw_saturation()
    results = read(RESULTS)
    pages = (IMAGES.parent / "results").glob("*.md")
    shown = "".join(page.read_text(encoding="utf-8") for page in pages)
    known = {f"results-{name}.png": (name, "") for name in ACROSS}
    for study, name in itertools.product(NETWORKS, OF_STUDY):
        known[f"results-{study}-{name}.png"] = name, study
    for file, (name, study) in known.items():
        if file in shown:
            draw(name, results, study, IMAGES / file)


if __name__ == "__main__":
    main()
