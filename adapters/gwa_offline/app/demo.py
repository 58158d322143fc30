"""The demonstration: handwritten digits with wrong labels, from training to report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwa_core import EpochAverage, GWATracker, alignment_scores
from gwa_core.signals import SIGNALS, TrackedSignals
from gwa_offline.analysis import analyse
from gwa_offline.analysis.results import Report
from gwa_offline.store import FeaturesError, RunFolder, begin_run, end_run

__all__ = ["DemoResult", "run_demo"]

EPOCHS = 50
BATCH = 32
HIDDEN = (128, 64)
LEARNING_RATE = 1e-3
TEST_SAMPLES = 500
NOISE = 0.1


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The results of the demonstration.

    Parameters
    ----------
    report : Report
        What `analyse` returns for the run folder.
    best_accuracy, highest_accuracy, last_accuracy : float
        Test accuracy at the best epoch of the report, the highest one, and that of the last epoch.
    average_accuracy : float
        That of the average of the weights, each epoch with its share.
    highest_epoch : int
        The epoch of highest test accuracy, which nobody can know during training.
    flipped : int
        Number of labels that the demonstration replaced by wrong ones.
    found : int
        How many of that many most suspicious samples have a wrong label.
    seconds : float
        Time of the training and the analysis.
    run, images : Path
        The run folder, and the pictures by sample id.
    """

    report: Report
    best_accuracy: float
    highest_accuracy: float
    last_accuracy: float
    average_accuracy: float
    highest_epoch: int
    flipped: int
    found: int
    seconds: float
    run: Path
    images: Path


def run_demo(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DemoResult:
    """Train a small network on digits, a tenth of them with a wrong label, and analyse the run.

    Parameters
    ----------
    folder : path
        Folder for the run and the pictures. An earlier demonstration in it is replaced.
    seed : int
        Of the split, the wrong labels and the training.
    progress : callable, optional
        Called as ``progress(epochs_done, epochs)``.

    Returns
    -------
    DemoResult
        The wrong labels and the test data only judge the result; no choice reads them.

    Raises
    ------
    FeaturesError
        If scikit-learn is missing, or the folder holds another run.

    Notes
    -----
    Cost: about five seconds. Every run on one machine gives the same numbers.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
        from sklearn.neural_network import MLPClassifier
    except ImportError as error:
        raise FeaturesError(
            "the demonstration needs scikit-learn: pip install 'gwa-core[demo]'"
        ) from error
    begin = time.perf_counter()
    digits = load_digits()
    split = train_test_split(
        digits.data / 16.0,
        digits.images,
        digits.target,
        test_size=TEST_SAMPLES,
        random_state=seed,
        stratify=digits.target,
    )
    inputs, test_inputs, images, _, right, test_labels = split
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(right), round(NOISE * len(right)), replace=False)
    labels = right.copy()
    labels[wrong] = (right[wrong] + rng.integers(1, 10, len(wrong))) % 10

    place = Path(folder)
    run = _new_run(place / "run", labels)
    np.save(place / "images.npy", (images * 255.0 / 16.0).round().astype(np.uint8))

    network = MLPClassifier(HIDDEN, learning_rate_init=LEARNING_RATE, alpha=0.0, random_state=seed)
    # scikit-learn makes the weights with the first step.
    network.partial_fit(inputs[:BATCH], labels[:BATCH], classes=np.arange(10))
    tracker, tracked = GWATracker(len(labels)), TrackedSignals(SIGNALS, len(labels))
    average, mean = EpochAverage(total_steps=EPOCHS), [np.zeros_like(w) for w in _weights(network)]
    for epoch in range(EPOCHS):
        order = rng.permutation(len(labels))
        for start in range(0, len(order), BATCH):
            ids = order[start : start + BATCH]
            head = _head(network, inputs[ids], labels[ids])
            logits = head["latents"] @ head["weight"].T + head["bias"]
            tracker.update(alignment_scores(logits=logits, **head), ids=ids)
            tracked.update(logits=logits, latents=head["latents"], targets=head["targets"], ids=ids)
            network.partial_fit(inputs[ids], labels[ids])
        summary = tracker.end_epoch(step=(epoch + 1) * -(-len(order) // BATCH))
        share = average.share(summary)
        for value, newest in zip(mean, _weights(network), strict=True):
            value += share * (newest - value)
        run.write_epoch(
            summary,
            scores=tracker.scores,
            features=_head(network, inputs, labels, np.float32),
            metrics={
                "test_accuracy": network.score(test_inputs, test_labels),
                **tracked.end_epoch(),
            },
        )
        if progress is not None:
            progress(epoch + 1, EPOCHS)

    end_run(run.path)
    report = replace(analyse(run.path), name="digits, the demonstration")
    accuracy = [record.metrics["test_accuracy"] for record in report.epochs]
    for weights, value in zip(_weights(network), mean, strict=True):
        weights[...] = value
    suspicious = report.rank(len(wrong))
    return DemoResult(
        report=report,
        best_accuracy=accuracy[report.shown],
        highest_accuracy=max(accuracy),
        last_accuracy=accuracy[-1],
        average_accuracy=network.score(test_inputs, test_labels),
        highest_epoch=int(np.argmax(accuracy)),
        flipped=len(wrong),
        found=len(np.intersect1d(suspicious, wrong)),
        seconds=time.perf_counter() - begin,
        run=run.path,
        images=place / "images.npy",
    )


def _weights(network: Any) -> list[NDArray[Any]]:
    """Return the arrays of a network's weights themselves."""
    return [*network.coefs_, *network.intercepts_]


def _head(
    network: Any, inputs: NDArray[Any], labels: NDArray[Any], dtype: Any = np.float64
) -> dict[str, Any]:
    """Return latents, weight, bias and targets of the network's last layer."""
    latents = inputs
    for weight, bias in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
        latents = np.maximum(latents @ weight + bias, 0.0)
    return {
        "latents": latents.astype(dtype),
        "weight": network.coefs_[-1].T.astype(dtype),
        "bias": network.intercepts_[-1].astype(dtype),
        "targets": labels,
    }


def _new_run(path: Path, labels: NDArray[Any]) -> RunFolder:
    if (path / "run.json").exists():
        old = RunFolder.open(path)
        if old.adapter != "demo":
            raise FeaturesError(
                f"{path} holds a run of {old.adapter!r}, which the demonstration won't replace; "
                "choose another folder"
            )
        old.truncate(0)
    return begin_run(
        path,
        planned=EPOCHS,
        num_samples=len(labels),
        num_classes=10,
        class_names=[str(digit) for digit in range(10)],
        adapter="demo",
        targets=labels,
    )
