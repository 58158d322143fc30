"""GWAEarlyStoppingClassifier beside the bare `partial_fit` loop, N = 1 M, D = 200.

python -m benchmarks.bench_partial_fit [rows]
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier

from benchmarks.pairs import best_of, report
from gwa_core import MaxBimodality
from gwa_sklearn.early_stopping import GWAEarlyStoppingClassifier

N, D = 1_000_000, 200
DENSITY = 0.1
BATCH = 1000
EPOCHS = 2
CASES = {
    "dense float64, 2 classes": ("dense", "float64", 2),
    "dense float32, 2 classes": ("dense", "float32", 2),
    "dense float32, 10 classes": ("dense", "float32", 10),
    "sparse float64, 2 classes": ("sparse", "float64", 2),
    "sparse float32, 10 classes": ("sparse", "float32", 10),
}
BATCHES = (100, 200, 1000, 10_000)


def make(kind: str, dtype: str, classes: int, rows: int) -> tuple[Any, Any]:
    """Return X and y of a linear problem with noise, made in blocks that leave no peak behind."""
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((D, classes))
    y = np.empty(rows, dtype=np.int64)
    step, nonzero = 10_000, round(DENSITY * D)
    if kind == "dense":
        x = np.empty((rows, D), dtype=dtype)
    else:
        data, columns = np.empty(rows * nonzero, dtype), np.empty(rows * nonzero, np.int32)
        starts = np.arange(0, rows * nonzero + 1, nonzero, dtype=np.int32)
        x = sp.csr_array((data, columns, starts), shape=(rows, D))
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        if kind == "dense":
            x[part] = rng.standard_normal((step, D), dtype=np.float32)
        else:
            entries = slice(begin * nonzero, (begin + step) * nonzero)
            x.data[entries] = rng.standard_normal(step * nonzero, dtype=np.float32)
            # One in each stretch of a row, so that they are in order.
            stretch = D // nonzero
            places = np.arange(nonzero) * stretch + rng.integers(0, stretch, (step, nonzero))
            x.indices[entries] = places.ravel()
        y[part] = (x[part] @ teacher + rng.gumbel(size=(step, classes))).argmax(axis=1)
    return x, y


def bare(model: Any, x: Any, y: Any, batch: int, epochs: int) -> Any:
    """Train with the batches that ours has."""
    model, classes = clone(model), np.unique(y)
    rng = np.random.RandomState(0)
    for _ in range(epochs):
        order = rng.permutation(x.shape[0])
        for begin in range(0, x.shape[0], batch):
            rows = order[begin : begin + batch]
            model.partial_fit(x[rows], y[rows], classes=classes)
    return model


def ours(model: Any, x: Any, y: Any, batch: int, epochs: int) -> Any:
    """Train and judge."""
    estimator = GWAEarlyStoppingClassifier(
        model, rule=MaxBimodality(), max_epochs=epochs, batch_size=batch, random_state=0
    )
    return estimator.fit(x, y)


def pair(model: Any, x: Any, y: Any, batch: int, epochs: int, repeats: int) -> dict[str, float]:
    """Return the best time of an epoch of both."""
    ways: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(model, x, y, batch, epochs),
        "ours": lambda: ours(model, x, y, batch, epochs),
    }
    return {name: best / epochs for name, best in best_of(ways, repeats).items()}


def peak(case: str, way: str, rows: int) -> float:
    """Return the peak memory of one way in a process of its own, in units of the data's size."""
    code = (
        "from benchmarks.bench_partial_fit import *\n"
        "from benchmarks.pairs import peak_rss\n"
        f"make(*CASES[{case!r}], 10_000)\n"
        "before = peak_rss()\n"
        f"x, y = make(*CASES[{case!r}], {rows})\n"
        f"{way}(SGDClassifier(loss='log_loss', random_state=0), x, y, BATCH, 1)\n"
        "print((peak_rss() - before) / size(x))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return float(out)


def size(x: Any) -> int:
    """Return the bytes of X."""
    return sum(a.nbytes for a in (x.data, x.indices, x.indptr)) if sp.issparse(x) else x.nbytes


def main() -> None:
    """Measure and report."""
    rows = int(sys.argv[-1]) if sys.argv[-1].isdigit() else N
    found: dict[str, Any] = {"rows": rows, "features": D, "density": DENSITY, "batch": BATCH}
    sgd = SGDClassifier(loss="log_loss", random_state=0)
    for case, (kind, dtype, classes) in CASES.items():
        x, y = make(kind, dtype, classes, rows)
        times = pair(sgd, x, y, BATCH, EPOCHS, 3)
        found[f"{case}: seconds an epoch, bare loop"] = times["bare"]
        found[f"{case}: seconds an epoch, ours"] = times["ours"]
        found[f"{case}: times the bare loop (must be 1.3 or less)"] = times["ours"] / times["bare"]
        x = y = None
        gc.collect()
        for way in ("bare", "ours"):
            words = " (must be 2 or less)" if way == "ours" else ""
            found[f"{case}: peak memory in sizes of the data, {way}{words}"] = peak(case, way, rows)
    for kind in ("dense", "sparse"):
        x, y = make(kind, "float32", 2, rows // 5)
        for batch in BATCHES:
            times = pair(sgd, x, y, batch, EPOCHS, 3)
            name = f"{kind} float32, 2 classes, {rows // 5} rows, batches of {batch}"
            found[f"{name}: seconds an epoch, bare loop"] = times["bare"]
            found[f"{name}: times the bare loop"] = times["ours"] / times["bare"]
    x, y = make("dense", "float32", 10, rows // 10)
    for name, model in {
        "averaged SGDClassifier": SGDClassifier(loss="log_loss", average=True, random_state=0),
        "MLPClassifier((100,))": MLPClassifier((100,), random_state=0),
    }.items():
        times = pair(model, x, y, BATCH, EPOCHS, 3)
        found[f"{name}, 10 classes: times the bare loop"] = times["ours"] / times["bare"]
    report("partial_fit", found)


if __name__ == "__main__":
    main()
