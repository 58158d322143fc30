"""GWAEarlyStoppingClassifier on all rows, beside early stopping that gives up a tenth of them.

    python -m benchmarks.bench_early_stopping [--fashion FOLDER, as Debian installs it] [--npz FILE]

The file has `X`, right labels `y`, and one array of given labels for each kind of noise; ten thousand
of its rows are trained on, ten thousand others are the test. The test data judge only. Regret is the
best test accuracy of all epochs of the run on all rows, less that of the best epoch by the rule, in
points; where rows were held out it can be negative.
"""

from __future__ import annotations

import argparse
import gzip
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from benchmarks.pairs import report
from gwa_core import EpochSummary, MaxBimodality, MaxGWA, MaxSeparation, select_epoch
from gwa_sklearn.early_stopping import GWAEarlyStoppingClassifier

FASHION = Path("/usr/share/datasets/fashion-mnist")
SEEDS = range(5)
NOISES = {"clean": 0.0, "symmetric 20 %": 0.2, "symmetric 40 %": 0.4, "asymmetric 20 %": 0.2}
EPOCHS = {"digits": 100, "Fashion-MNIST": 50}
BATCH = {"digits": 200, "Fashion-MNIST": 1000}
ROWS = 10_000
HELD_OUT = 0.1
PATIENCE = 10

RULES = {
    "MaxSeparation(patience=10)": MaxSeparation(patience=PATIENCE),
    "MaxSeparation()": MaxSeparation(),
    "MaxBimodality(patience=10)": MaxBimodality(patience=PATIENCE),
    "MaxBimodality()": MaxBimodality(),
    "MaxGWA()": MaxGWA(),
}


def models(data: str, seed: int) -> dict[str, Any]:
    """Return the classifiers: the library's defaults, but a network that can memorise."""
    hidden, batch = ((128,), 32) if data == "digits" else ((256,), 200)
    return {
        "SGDClassifier": SGDClassifier(loss="log_loss", random_state=seed),
        "SGDClassifier(average=True)": SGDClassifier(
            loss="log_loss", average=True, random_state=seed
        ),
        "MLPClassifier": MLPClassifier(
            hidden, batch_size=batch, max_iter=EPOCHS[data], random_state=seed
        ),
    }


@cache
def _read(file: Path) -> dict[str, Any]:
    with np.load(file) as arrays:
        return dict(arrays)


def load_noisy(file: Path, noise: str, seed: int) -> tuple[Any, Any, Any, Any]:
    """Return X, test X, given labels, right test labels, with the columns scaled."""
    arrays = _read(file)
    rows = np.random.default_rng(seed).permutation(len(arrays["y"]))[: 2 * ROWS]
    train, test = rows[:ROWS], rows[ROWS:]
    given = arrays["y" if noise == "clean" else noise]
    x = arrays["X"].astype(np.float32)
    mean, deviation = x[train].mean(axis=0), x[train].std(axis=0)
    x, test_x = ((x[part] - mean) / deviation for part in (train, test))
    return x, test_x, given[train].astype(np.int64), arrays["y"][test].astype(np.int64)


def load(data: str, seed: int, folder: Path) -> tuple[Any, Any, Any, Any]:
    """Return X, test X, y, test y."""
    if data == "digits":
        x, y = load_digits(return_X_y=True)
        x = (x / 16.0).astype(np.float32)
        return tuple(train_test_split(x, y, test_size=500, stratify=y, random_state=seed))
    images, labels = ([_idx(folder, part, kind) for part in ("train", "t10k")] for kind in (3, 1))
    rows = np.random.default_rng(seed).choice(len(labels[0]), ROWS, replace=False)
    x, test = (image.reshape(-1, 784).astype(np.float32) / 255 for image in images)
    return x[rows], test, labels[0][rows], labels[1]


def _idx(folder: Path, part: str, dimensions: int) -> Any:
    kind = "images" if dimensions == 3 else "labels"
    with gzip.open(folder / f"{part}-{kind}-idx{dimensions}-ubyte.gz") as stream:
        return np.frombuffer(stream.read(), np.uint8, offset=4 + 4 * dimensions).copy()


def make_wrong(y: Any, noise: str, seed: int) -> Any:
    """Give a part of the labels another class: any other, or always the next."""
    rng, y = np.random.default_rng(seed + 100), y.astype(np.int64)
    wrong = rng.choice(len(y), round(NOISES[noise] * len(y)), replace=False)
    step = rng.integers(1, 10, len(wrong)) if noise.startswith("symmetric") else 1
    y[wrong] = (y[wrong] + step) % 10
    return y


class Watched:
    """Test accuracy after each epoch of the model that GWAEarlyStoppingClassifier trains."""

    def __init__(self, rows: int, test: Any) -> None:
        self.rows, self.test = rows, test
        self.seen, self.accuracy = 0, list[float]()

    def step(self, model: Any, rows: int) -> None:
        """Count the rows of a step, and judge at the end of an epoch."""
        self.seen += rows
        if self.seen % self.rows == 0:
            self.accuracy.append(model.score(*self.test))


class WatchedSGD(SGDClassifier):
    """Reports its steps."""

    watched: Watched

    def partial_fit(self, x: Any, y: Any, **options: Any) -> Any:
        """Step."""
        super().partial_fit(x, y, **options)
        self.watched.step(self, len(x))
        return self


class WatchedMLP(MLPClassifier):
    """Reports its steps."""

    watched: Watched

    def partial_fit(self, x: Any, y: Any, **options: Any) -> Any:
        """Step."""
        super().partial_fit(x, y, **options)
        self.watched.step(self, len(x))
        return self


def train_on_all(
    model: Any, data: str, x: Any, y: Any, test: Any
) -> tuple[list[EpochSummary], Any]:
    """Return the history of a run to the end, and the test accuracy of each epoch."""
    kind = WatchedMLP if isinstance(model, MLPClassifier) else WatchedSGD
    # Of the class, so that clones and copies report to the same place.
    kind.watched = Watched(len(x), test)
    estimator = GWAEarlyStoppingClassifier(
        kind(**model.get_params()),
        rule=MaxBimodality(),
        max_epochs=EPOCHS[data],
        batch_size=BATCH[data],
        random_state=model.random_state,
    )
    return estimator.fit(x, y).history_, np.array(kind.watched.accuracy)


def hold_out(model: Any, data: str, x: Any, y: Any, test: Any) -> tuple[float, int]:
    """Return accuracy and epochs of the same loop that keeps the best of a tenth held out."""
    x, held, y, held_y = train_test_split(
        x, y, test_size=HELD_OUT, stratify=y, random_state=model.random_state
    )
    rng, best, tested, waited = np.random.default_rng(model.random_state), -1.0, 0.0, 0
    for epoch in range(EPOCHS[data]):
        order = rng.permutation(len(x))
        for begin in range(0, len(x), BATCH[data]):
            rows = order[begin : begin + BATCH[data]]
            model.partial_fit(x[rows], y[rows], classes=np.arange(10))
        ran, accuracy, waited = epoch + 1, model.score(held, held_y), waited + 1
        if accuracy > best:
            best, tested, waited = accuracy, model.score(*test), 0
        if waited == PATIENCE:
            break
    return tested, ran


def compare(data: str, noise: str, name: str, seed: int, place: Path) -> dict[str, Any]:
    """Return accuracy, regret and epochs of each way, of one run."""
    if data in ("digits", "Fashion-MNIST"):
        x, test_x, y, test_y = load(data, seed, place)
        y = make_wrong(y, noise, seed)
    else:
        x, test_x, y, test_y = load_noisy(place, noise, seed)
    test = test_x, test_y
    history, accuracy = train_on_all(models(data, seed)[name], data, x, y, test)
    ways: dict[str, tuple[float, int]] = {}
    for rule_name, rule in RULES.items():
        best = select_epoch(history, rule, total_steps=EPOCHS[data]).step
        best = len(history) - 1 if best is None else best
        # With patience the run would have ended so many epochs after the best one.
        ran = len(history) if rule.patience is None else min(best + rule.patience + 1, len(history))
        ways[rule_name] = accuracy[best], ran
    ways["last epoch"] = accuracy[-1], len(history)
    library = models(data, seed)[name].set_params(early_stopping=True).fit(x, y)
    ways[f"early_stopping=True, {HELD_OUT:.0%} held out"] = (
        library.score(*test),
        library.n_iter_,
    )
    ways[f"same loop, {HELD_OUT:.0%} held out"] = hold_out(
        models(data, seed)[name], data, x, y, test
    )
    return {
        "history": history,
        "accuracy": accuracy,
        "ways": {
            way: (100 * found, 100 * (accuracy.max() - found), ran)
            for way, (found, ran) in ways.items()
        },
    }


def measure(data: str, name: str, noises: list[str], place: Path) -> dict[str, Any]:
    """Return the means over the seeds of one model, by way and noise."""
    found: dict[str, dict[str, Any]] = {}
    for noise in noises:
        runs = [compare(data, noise, name, seed, place)["ways"] for seed in SEEDS]
        for way in runs[0]:
            of_seeds = np.array([run[way] for run in runs])
            found.setdefault(way, {})[noise] = {
                "accuracy": round(float(of_seeds[:, 0].mean()), 2),
                "regret": round(float(of_seeds[:, 1].mean()), 2),
                "worst regret": round(float(of_seeds[:, 1].max()), 2),
                "epochs": round(float(of_seeds[:, 2].mean()), 1),
            }
    for way, by_noise in found.items():
        for figure in ("accuracy", "regret", "epochs"):
            values = [by_noise[noise][figure] for noise in noises]
            by_noise[f"mean {figure}"] = round(float(np.mean(values)), 2)
        print(f"{data}, {name}, {way}: {by_noise}", flush=True)
    return found


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fashion", type=Path, default=FASHION, help="folder of Fashion-MNIST")
    parser.add_argument("--npz", type=Path, help="one more data set, with its labels")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    sets = {data: (list(NOISES), options.fashion) for data in EPOCHS}
    if options.npz is not None:
        noises = [name for name in _read(options.npz) if name not in ("X", "y")]
        data = options.npz.stem
        EPOCHS[data], BATCH[data] = EPOCHS["Fashion-MNIST"], BATCH["Fashion-MNIST"]
        sets[data] = (["clean", *noises], options.npz)
    rows = {
        f"{data}, {name}": measure(data, name, noises, place)
        for data, (noises, place) in sets.items()
        for name in models(data, 0)
    }
    report("early_stopping", {"seeds": len(SEEDS), "epochs": EPOCHS, "batch": BATCH, **rows})


if __name__ == "__main__":
    main()
