"""What the epoch that each rule keeps costs, and how well scores of the training pass rank labels.

    python -m benchmarks rules                       # scikit-learn's digits
    GWA_FASHION=FOLDER python -m benchmarks rules    # Fashion-MNIST too, as Debian installs it

Not a timing: the results are accuracy points and average precision, the same on a busy machine.
Regret is the best test accuracy of all epochs less that of the best epoch by the rule, in points; its
mean is over the runs that keep one. The test data judge only, but the best of noisy accuracies is partly
luck, so that no rule comes to 0.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from sklearn.neural_network import MLPClassifier

from benchmarks.bench_labels import idx
from benchmarks.pairs import report
from gwa_core import (
    GWATracker,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    alignment_scores,
    label_quality,
    select_epoch,
)
from gwa_core.signals import margin

KINDS = ("symmetric", "asymmetric")
SHARES = (0.1, 0.2, 0.4)
EPOCHS = {"digits": 60, "Fashion-MNIST": 40}
BATCH = 64
RULES = {f"{type(rule).__name__}()": rule for rule in (MaxSeparation(), MaxBimodality(), MaxGWA())}
LAST = "last epoch"
RANKINGS = ("label_quality", 'label_quality, "mean"', "AUM")


class Run(NamedTuple):
    """What a run depends on; nothing else is random."""

    data: str
    kind: str
    share: float
    rate: float
    seed: int


def runs(fashion: bool) -> list[Run]:
    """Return all runs."""
    of_digits = [(rate, seed) for rate in (0.001, 0.003) for seed in range(3)]
    noises = [(kind, share) for kind in KINDS for share in SHARES]
    found = [Run("digits", *noise, *how) for noise in noises for how in of_digits]
    found += [Run("digits", "right", 0.0, *how) for how in of_digits]
    if fashion:
        of_images = [(0.001, seed) for seed in range(2)]
        found += [Run("Fashion-MNIST", *noise, *how) for noise in noises for how in of_images]
    return found


def load(data: str, folder: Path) -> tuple[Any, Any, Any, Any]:
    """Return X, y, test X, test y: always the same rows."""
    if data == "digits":
        x, y = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(y))
        x, y = x[order] / 16, y[order]
        return x[:1297], y[:1297], x[1297:], y[1297:]
    parts: list[Any] = []
    for part, rows in (("train", 8000), ("t10k", 4000)):
        x = idx(folder / f"{part}-images-idx3-ubyte.gz")[:rows].reshape(rows, -1)
        y = idx(folder / f"{part}-labels-idx1-ubyte.gz")[:rows]
        parts += [x / 255.0, y.astype(np.int64)]
    return tuple(parts)


def train(run: Run, x: Any, given: Any, test: Any, rng: Any) -> tuple[GWATracker, Any, Any, Any]:
    """Return tracker, scores and margins (T, N), and test accuracies (T,) in percent.

    Batches are scored before their step; the very first, which finds no weights yet, is not.
    """
    net = MLPClassifier((256,), learning_rate_init=run.rate, alpha=0.0, random_state=run.seed)
    n, scores, accuracy = len(given), [], []
    tracker, margins = GWATracker(n), np.full((EPOCHS[run.data], n), np.nan)
    for epoch in range(EPOCHS[run.data]):
        order = rng.permutation(n)
        for begin in range(0, n, BATCH):
            rows = order[begin : begin + BATCH]
            if epoch or begin:
                latents = np.maximum(x[rows] @ net.coefs_[0] + net.intercepts_[0], 0.0)
                logits = latents @ net.coefs_[1] + net.intercepts_[1]
                output = {"logits": logits, "targets": given[rows]}
                head = {"weight": net.coefs_[1].T, "bias": net.intercepts_[1]}
                gamma = alignment_scores(latents=latents, **head, **output)
                tracker.update(gamma, ids=rows)
                margins[epoch, rows] = margin(**output)
            net.partial_fit(x[rows], given[rows], classes=np.arange(10))
        tracker.end_epoch()
        scores.append(tracker.scores.copy())
        accuracy.append(100 * net.score(*test))
    return tracker, np.stack(scores), margins, np.array(accuracy)


def measure(run: Run, folder: Path) -> dict[str, float | None]:
    """Return regret by rule, None where it keeps no epoch, and average precision by ranking."""
    x, y, *test = load(run.data, folder)
    rng, given = np.random.default_rng(run.seed + 1), y.copy()
    wrong = rng.permutation(len(y))[: round(run.share * len(y))]
    step = rng.integers(1, 10, len(wrong)) if run.kind == "symmetric" else 1
    given[wrong] = (y[wrong] + step) % 10
    tracker, scores, margins, accuracy = train(run, x, given, test, rng)
    found: dict[str, float | None] = {LAST: accuracy.max() - accuracy[-1]}
    for name, rule in RULES.items():
        best = select_epoch(tracker.history, rule).step
        found[name] = None if best is None else accuracy.max() - accuracy[best]
    if run.share:
        qualities = label_quality(scores), label_quality(scores, method="mean")
        for name, quality in zip(RANKINGS, (*qualities, np.nanmean(margins, axis=0)), strict=True):
            found[name] = average_precision_score(given != y, -quality)
    return found


def summary(results: list[dict[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Return the figures of some runs, by rule and ranking."""
    found: dict[str, dict[str, Any]] = {}
    for name in (*RULES, LAST, *(RANKINGS if RANKINGS[0] in results[0] else ())):
        values = [result[name] for result in results]
        known = [value for value in values if value is not None]
        figure, worst = ("average precision", min) if name in RANKINGS else ("regret", max)
        found[name] = {
            f"mean {figure}": round(float(np.mean(known)), 4) if known else None,
            f"worst {figure}": round(float(worst(known)), 4) if known else None,
            "runs": len(values),
        }
        if figure == "regret":
            found[name]["keep none"] = len(values) - len(known)
    return found


def table(groups: dict[str, dict[str, dict[str, Any]]], names: tuple[str, ...]) -> None:
    """Print mean and worst, and how many runs keep none, if any."""
    print(f"\n{'mean (worst)':40s}", *(f"{name:>22s}" for name in names))
    for group, rows in groups.items():
        if names[0] in rows:
            cells = []
            for mean, worst, _, *none in (rows[name].values() for name in names):
                cells.append(f"{mean} ({worst})" + (f", {none[0]} none" if any(none) else ""))
            head = f"{group}, {rows[names[0]]['runs']} runs"
            print(f"{head:40s}", *(f"{cell:>22s}" for cell in cells))


def main() -> None:
    """Measure and report."""
    folder = Path(os.environ.get("GWA_FASHION", ""))
    if not (fashion := (folder / "train-images-idx3-ubyte.gz").is_file()):
        print("Fashion-MNIST is left out: GWA_FASHION names no folder with its files.")
    jobs = runs(fashion)
    results = Parallel(n_jobs=-1)(delayed(measure)(run, folder) for run in jobs)
    groups: dict[str, list[Any]] = {}
    for run, result in zip(jobs, results, strict=True):
        labels = "wrong labels" if run.share else "right labels"
        groups.setdefault(f"{run.data}, {labels}", []).append(result)
        if run.share:
            noise = f"{run.kind} {100 * run.share:.0f} %"
            groups.setdefault(f"{run.data}, {noise}", []).append(result)
    rows = {group: summary(some) for group, some in groups.items()}
    # What was measured of both is not lost where Fashion-MNIST is missing.
    report("rules" if fashion else "rules_digits", {"epochs": EPOCHS, "batch": BATCH, **rows})
    table(rows, (*RULES, LAST))
    table(rows, RANKINGS)


if __name__ == "__main__":
    main()
