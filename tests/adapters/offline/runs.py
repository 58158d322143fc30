"""A run of a few epochs, written by the tests and by the processes that they start."""

from __future__ import annotations

import numpy as np

from gwa_core import GWATracker

N, EPOCHS = 40, 6
ABOUT = {"num_samples": N, "num_classes": 2, "adapter": "test"}
# Ten of forty labels pull against the model, most clearly at epoch 3.
PULLS = [0.01, 0.02, 0.2, 0.5, 0.2, 0.1]


def scores_of(epoch):
    signs = np.where(np.arange(N) < 10, -0.5, 1.0)
    return PULLS[epoch] * signs + 0.01 * np.sin(np.arange(N))


def write(run, epochs, **metrics):
    tracker = GWATracker(N)
    for epoch in epochs:
        tracker.update(scores_of(epoch), ids=np.arange(N))
        summary = tracker.end_epoch()._replace(epoch=epoch, step=10 * epoch, expected=N)
        run.write_epoch(summary, scores=tracker.scores, metrics=metrics)
