"""The paper's tables from the results, as Markdown, beside the paper's own numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from experiments.criteria import BEST, CRITERIA, FEW, VALIDATION, kept, outcome, share_of
from experiments.folds import FOLDS, SCORES, judged
from experiments.store import Result, column
from gwa_core.signals import SIGNALS

__all__ = [
    "LABELS",
    "MISSING",
    "NETWORKS",
    "RANKINGS",
    "TABLES",
    "TITLES",
    "accuracy_cell",
    "correlation",
    "markdown",
    "newest",
    "runs_of",
    "spread",
]

LABELS = ("label", "aggre", "random1", "worse")
TITLES = {
    "label": "clean",
    "aggre": "aggre, 9 %",
    "random1": "random1, 17 %",
    "worse": "worse, 40 %",
}
#: Studies of all label sets, by what they are called.
NETWORKS = {
    "convnext": "ConvNeXt-V2 pico",
    "vit": "ViT, six layers",
    "coarse": "ConvNeXt-V2 pico, coarse",
}
MISSING = "–"
#: Table 1 of the paper, CIFAR-10(-N) with 0, 9 and 17 % noise: test accuracy in per cent.
PAPER = {
    ("vit", VALIDATION): (81.10, 78.31, 75.23),
    ("vit", FEW): (79.99, 78.70, 74.75),
    ("vit", "LabelWave"): (81.00, 78.37, 75.02),
    ("vit", "gradient disparity, fifth increase"): (79.22, 77.56, 74.66),
    ("vit", "GWA, the paper's rule"): (81.57, 78.93, 75.70),
    ("convnext", VALIDATION): (89.86, 85.33, 82.30),
    ("convnext", FEW): (90.62, 86.05, 83.01),
    ("convnext", "LabelWave"): (89.84, 85.14, 81.15),
    ("convnext", "gradient disparity, fifth increase"): (89.25, 84.95, 81.71),
    ("convnext", "GWA, the paper's rule"): (89.73, 86.08, 82.55),
}
#: Epoch signals that Fig. 2 and 12-15 set beside test accuracy, with the sign of "better".
BESIDE = {
    "gwa": 1,
    "mean": 1,
    "bimodality": 1,
    "separation": 1,
    "prediction_changes": -1,
    "gradient_disparity": -1,
    "gradient_norm": -1,
    "pairwise_alignment": 1,
    "optimum_alignment": 1,
    "mir": 1,
    "hdr": -1,
    "sample_loss": -1,
}
#: Ways to find label errors that choose their epochs themselves.
RANKINGS = (
    "label_quality",
    "by excess bimodality",
    "mean to twice the peak",
    "margin to twice the peak",
)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def runs_of(results: list[Result], **having: Any) -> list[Result]:
    """Return the results whose settings have these values."""
    return [r for r in results if all(r["settings"][k] == v for k, v in having.items())]


def spread(values: list[float], digits: int = 2) -> str:
    """Return the mean, and in brackets the largest less the smallest."""
    known = [x for x in values if np.isfinite(x)]
    if not known:
        return MISSING
    mean = f"{np.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ({max(known) - min(known):.{digits}f})"


def stopping(results: list[Result]) -> str:
    """Table 1: test accuracy, regret and epoch by criterion; mean over seeds (max - min)."""
    parts = []
    for study, title in NETWORKS.items():
        rows = []
        for name in (BEST, *CRITERIA, VALIDATION, FEW):
            cells = []
            for labels in LABELS:
                runs = runs_of(results, study=study, labels=labels, percent=share_of(name))
                cells.append(accuracy_cell([outcome(r, kept(r, name)) for r in runs]))
            theirs = PAPER.get((study, name))
            shown = " / ".join(f"{x:.2f}" for x in theirs) if theirs else MISSING
            rows.append([name, *cells, shown])
        if any(cell != MISSING for row in rows for cell in row[1:-1]):
            head = ["criterion", *TITLES.values(), "paper: 0 / 9 / 17 %"]
            parts.append(f"**{title}**\n\n{markdown(head, rows)}")
    return "\n".join(parts)


def accuracy_cell(found: list[tuple[float, float, float]]) -> str:
    """Return accuracy, regret and epoch of one criterion over runs."""
    if not found:
        return MISSING
    accuracy, lost, epochs = (list(x) for x in zip(*found, strict=True))
    if not np.isfinite(accuracy).any():
        return "keeps none"
    below = f", −{np.nanmean(lost):.1f}" if np.nanmax(lost) > 0 else ""
    return f"{spread(accuracy)}{below}, epoch {np.nanmean(epochs):.0f}"


def correlations(results: list[Result]) -> str:
    """Fig. 2 and 12-15 in numbers: Spearman and Pearson with test accuracy over the epochs."""
    parts = []
    for study, title in NETWORKS.items():
        runs = {x: runs_of(results, study=study, labels=x, percent=100) for x in LABELS}
        if not any(runs.values()):
            continue
        rows = []
        for name, sign in BESIDE.items():
            cells = []
            for labels in LABELS:
                found = [correlation(r, name, sign) for r in runs[labels]]
                spearman, pearson = zip(*found, strict=True) if found else ((), ())
                cells.append(
                    f"{spread(list(spearman))} / {spread(list(pearson))}" if found else MISSING
                )
            rows.append([f"`{name}`" + ("" if sign > 0 else ", turned"), *cells])
        table = markdown(["signal", *TITLES.values()], rows)
        parts.append(f"**{title}**, Spearman / Pearson\n\n{table}")
    return "\n".join(parts)


def correlation(run: Result, name: str, sign: int) -> tuple[float, float]:
    """Return Spearman's and Pearson's of a column, times a sign, with test accuracy over the epochs."""
    accuracy, values = column(run, "test_accuracy"), column(run, name)
    usable = np.isfinite(values)
    usable[: len(values) // 10] = False  # the warm-up of the paper's rule
    x, y = sign * values[usable], accuracy[usable]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    return float(spearmanr(x, y).statistic), float(pearsonr(x, y).statistic)


def label_errors(results: list[Result]) -> str:
    """Fig. 4 and 16 in numbers: average precision of the human label errors, by signal."""
    parts = []
    for study, title in NETWORKS.items():
        cells: dict[str, dict[str, list[tuple[float, float, float]]]] = defaultdict(dict)
        own = [
            r
            for x in LABELS[1:]
            for r in newest(runs_of(results, study=study, labels=x, percent=100))
        ]
        for run in own:
            for name, found in run["detection"].items():
                cells[name].setdefault(run["settings"]["labels"], []).append(_precisions(found))
        if not cells:
            continue
        rows = []
        for name in (*RANKINGS, "alignment", *SIGNALS):
            if name in cells:
                row = []
                for labels in LABELS[1:]:
                    columns = zip(*cells[name].get(labels, []), strict=True)
                    row.append(" / ".join(spread(list(x), 3) for x in columns) or MISSING)
                rows.append([f"`{name}`", *row])
        rows += _cleanlab(results, own)
        table = markdown(["signal", *list(TITLES.values())[1:]], rows)
        parts.append(
            f"**{title}**, average precision: by the last epoch / by the mean over all epochs / "
            f"by the mean up to the best number of epochs; cleanlab by the last epoch\n\n{table}"
        )
    return "\n".join(parts)


def newest(runs: list[Result]) -> list[Result]:
    """Return those in which the present weights of epochs were measured, or all where none has."""
    return [run for run in runs if "label_quality" in run["detection"]] or runs


def _cleanlab(results: list[Result], own: list[Result]) -> list[list[str]]:
    """Return rows of cleanlab's scores: of a study's own runs, and of folds of its network."""
    networks = {r["settings"]["network"] for r in own}
    folds: dict[tuple[Any, ...], dict[int, Any]] = defaultdict(dict)
    for run in results:
        s = run["settings"]
        if "held_out" in run and s["network"] in networks:
            folds[s["labels"], s["study"], s["seed"]][s["fold"]] = run["held_out"]
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for run in own:
        # What cleanlab calls self-confidence.
        if single := run["detection"].get("label_probability"):
            last = single["last_auroc"], single["last"]
            found["in-sample, `self_confidence`"][run["settings"]["labels"]].append(last)
    for (labels, *_), parts in folds.items():
        if len(parts) == FOLDS:
            for name, both in judged(list(parts.values())).items():
                found[f"cross-validated, `{name}`"][labels].append(both)
    rows = []
    for name in ("in-sample, `self_confidence`", *(f"cross-validated, `{x}`" for x in SCORES)):
        cells = []
        for labels in LABELS[1:]:
            area, precision = ([x[k] for x in found[name][labels]] for k in (0, 1))
            cell = f"{spread(precision, 3)}, AUROC {spread(area, 3)}"
            cells.append(cell if area else MISSING)
        if any(cell != MISSING for cell in cells):
            rows.append([f"cleanlab, {name}", *cells])
    return rows


def _precisions(found: dict[str, float]) -> tuple[float, float, float]:
    nan = float("nan")
    return found.get("last", nan), found["mean"], found.get("best_mean", nan)


#: By name: what makes the table.
TABLES: dict[str, Callable[[list[Result]], str]] = {
    "stopping": stopping,
    "correlations": correlations,
    "label-errors": label_errors,
}
