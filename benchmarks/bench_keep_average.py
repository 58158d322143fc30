"""What GWAEarlyStoppingClassifier keeps, an average of the weights or an epoch, on digits.

    python -m benchmarks keep_average

Points of test accuracy above the best epoch of the run, which only the test rows know. They judge
only; an average can be better than each of the epochs.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier

from benchmarks import bench_early_stopping as beside
from benchmarks.pairs import report
from gwa_core import MaxBimodality, average_shares, select_epoch
from gwa_sklearn.early_stopping import GWAEarlyStoppingClassifier

DATA, EPOCHS, SEEDS = "digits", 50, range(3)
#: How many labels get which other class.
NOISES = {
    "right labels": ("symmetric", 0.0),
    **{f"{kind} {rate:.0%}": (kind, rate) for kind in ("symmetric", "asymmetric") for rate in (0.2, 0.4)},
}  # fmt: skip
CONSTANT = {"learning_rate": "constant", "eta0": 0.01}


def models(seed: int) -> dict[str, Any]:
    """Return the classifiers."""
    options: dict[str, Any] = {"loss": "log_loss", "random_state": seed}
    return {
        "averaged SGD": SGDClassifier(**options, average=True),
        "averaged SGD, constant steps": SGDClassifier(**options, average=True, **CONSTANT),
        "SGD": SGDClassifier(**options),
        "SGD, constant steps": SGDClassifier(**options, **CONSTANT),
        "network": MLPClassifier((128,), batch_size=32, max_iter=EPOCHS, random_state=seed),
    }


class Kept(beside.Watched):
    """Keeps the model of each epoch, too."""

    def __init__(self, rows: int, test: Any) -> None:
        super().__init__(rows, test)
        self.models: list[Any] = []

    def step(self, model: Any, rows: int) -> None:
        """Count the rows of a step, and keep the model at the end of an epoch."""
        before = len(self.accuracy)
        super().step(model, rows)
        if len(self.accuracy) > before:
            self.models.append(copy.deepcopy(model))


def wrong_labels(y: NDArray[Any], noise: str, seed: int) -> NDArray[np.int64]:
    """Give a part of the labels another class: any other, or always the next."""
    kind, rate = NOISES[noise]
    rng, y = np.random.default_rng(seed + 100), y.astype(np.int64)
    wrong = rng.choice(len(y), round(rate * len(y)), replace=False)
    y[wrong] = (y[wrong] + (rng.integers(1, 10, len(wrong)) if kind == "symmetric" else 1)) % 10
    return y


def mean_of(found: list[Any], shares: NDArray[np.float64]) -> Any:
    """Return a model with the mean of the weights of all epochs."""
    model = copy.deepcopy(found[-1])
    names = (
        ("coefs_", "intercepts_") if isinstance(model, MLPClassifier) else ("coef_", "intercept_")
    )
    for name in names:
        parts = [getattr(one, name) for one in found]
        if isinstance(parts[0], list):
            layers = zip(*parts, strict=True)
            mean = [sum(s * w for s, w in zip(shares, layer, strict=True)) for layer in layers]
        else:
            mean = sum(s * w for s, w in zip(shares, parts, strict=True))
        setattr(model, name, mean)
    return model


def run(model: Any, noise: str, seed: int) -> dict[str, float]:
    """Return how far each way is above the best epoch, in points."""
    x, test_x, y, test_y = beside.load(DATA, seed, beside.FASHION)
    kind: Any = beside.WatchedMLP if isinstance(model, MLPClassifier) else beside.WatchedSGD
    # Of the class, so that clones and copies report to the same place.
    watched = kind.watched = Kept(len(x), (test_x, test_y))
    estimator = GWAEarlyStoppingClassifier(
        kind(**model.get_params()),
        keep="average",
        max_epochs=EPOCHS,
        batch_size=beside.BATCH[DATA],
        random_state=seed,
    )
    estimator.fit(x, wrong_labels(y, noise, seed))
    history, accuracy = estimator.history_, watched.accuracy
    best = select_epoch(history, MaxBimodality(patience=beside.PATIENCE), total_steps=EPOCHS).step
    plain = np.arange(EPOCHS) >= EPOCHS // 10
    found = {
        'keep="average"': estimator.score(test_x, test_y),
        'keep="best"': accuracy[EPOCHS - 1 if best is None else best],
        "last epoch": accuracy[-1],
        "plain mean after a tenth of the epochs": _score(watched, plain / plain.sum()),
        "mean by separation^10": _score(watched, average_shares(history)),
    }
    return {name: 100 * (value - max(accuracy)) for name, value in found.items()}


def _score(watched: Kept, shares: NDArray[np.float64]) -> float:
    return float(mean_of(watched.models, shares).score(*watched.test))


def main() -> None:
    """Measure and report."""
    rows: dict[str, Any] = {}
    for name in models(0):
        runs = {noise: [run(models(seed)[name], noise, seed) for seed in SEEDS] for noise in NOISES}
        for way in runs["right labels"][0]:
            gains = {noise: [round(x[way], 2) for x in some] for noise, some in runs.items()}
            rows[f"{name}: {way}"] = gains
            print(f"{name}, {way}: {gains}", flush=True)
    report("keep_average", {"seeds": len(SEEDS), "epochs": EPOCHS, **rows})


if __name__ == "__main__":
    main()
