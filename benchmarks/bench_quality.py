"""Label quality of a training, N = 1,000,000, T = 100, epoch by epoch beside the stacked history."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np

from benchmarks.pairs import report
from gwa_core import EpochSummary, LabelQuality, epoch_weights, label_quality, summarize

N, T = 1_000_000, 100


def epoch_scores(epoch: int) -> Any:
    """Return the scores of an epoch, the same at each call."""
    rng = np.random.default_rng(epoch)
    scores = 0.1 * rng.standard_normal(N, dtype=np.float32) + 0.2
    scores[:: 7 + epoch % 5] -= 0.4
    return scores


def streamed(measure: Any) -> Any:
    """Feed each epoch and forget it."""
    quality = LabelQuality(N)
    for epoch in range(T):
        scores = epoch_scores(epoch)
        summary = summarize(scores)
        with measure:
            quality.update(scores, summary)
    with measure:
        return quality.value


def stacked(measure: Any) -> Any:
    """Keep each epoch, stack them, and ask once; the weights are known from the summaries."""
    kept, history = [], []
    for epoch in range(T):
        kept.append(epoch_scores(epoch))
        history.append(EpochSummary.from_summary(summarize(kept[-1]), epoch=epoch))
    with measure:
        return label_quality(np.stack(kept), weights=epoch_weights(history))


class Clock:
    """Seconds spent inside."""

    value = 0.0

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.value += time.perf_counter() - self.begin


class Peak:
    """Largest memory in use inside, in MB, the scores that are held included."""

    value = 0.0

    def __enter__(self) -> None:
        tracemalloc.reset_peak()

    def __exit__(self, *error: object) -> None:
        self.value = max(self.value, tracemalloc.get_traced_memory()[1] / 1e6)


def main() -> None:
    """Measure and report."""
    times, values, memory = {}, {}, {}
    for name, way in {"streamed": streamed, "stacked": stacked}.items():
        clock, peak = Clock(), Peak()
        values[name] = way(clock)
        times[name] = clock.value
        tracemalloc.start()
        way(peak)
        tracemalloc.stop()
        memory[name] = peak.value
    report(
        "quality",
        {
            "seconds, epoch by epoch": times["streamed"],
            "seconds, stacked": times["stacked"],
            "times faster": times["stacked"] / times["streamed"],
            "peak MB, epoch by epoch (must be 40 or less)": memory["streamed"],
            "peak MB, stacked": memory["stacked"],
            "largest difference": float(np.abs(values["streamed"] - values["stacked"]).max()),
        },
    )


if __name__ == "__main__":
    main()
