"""Numbers of many scores at once: the core's functions over epochs, classes and pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gwa_core import (
    EpochAverage,
    EpochSummary,
    LabelQuality,
    Moments,
    average_shares,
    signal_standard_error,
    summarize,
)

__all__ = [
    "histograms_of",
    "moments_of",
    "per_class",
    "quality_of",
    "scaled",
    "shares_of",
    "standard_errors_of",
]

# Scores summarised at once; their moments take ten times their memory.
CHUNK = 1 << 18
BINS = 80


def moments_of(scores: NDArray[Any]) -> Moments:
    """Return the moments of many scores without ten times their memory."""
    total = Moments.empty(scores[:1])
    for start in range(0, len(scores), CHUNK):
        total = total.merge(Moments.from_batch(np.asarray(scores[start : start + CHUNK])))
    return total


def standard_errors_of(
    signal: str, history: Sequence[EpochSummary], scores: Sequence[NDArray[np.float32] | None]
) -> NDArray[np.float64]:
    """Return the (T,) standard errors of a signal; nan where they are unknown.

    That of GWA is in the summaries. Those of separation and bimodality take moments up to the eighth,
    and with them the scores.
    """
    if signal == "gwa":
        return np.array([summary.gwa_standard_error for summary in history], np.float64)
    found = np.full(len(history), np.nan)
    if signal in ("separation", "bimodality") and len(history) > 1:
        for row, values in enumerate(scores):
            if values is not None:
                moments = moments_of(values)
                found[row] = signal_standard_error(moments, signal=signal)  # type: ignore[arg-type]
    return found


def quality_of(
    scores: Sequence[NDArray[np.float32] | None], history: Sequence[EpochSummary], num_samples: int
) -> NDArray[np.float64]:
    """Return label quality over all epochs that have scores; nan where a sample was never seen."""
    quality = LabelQuality(num_samples)
    for values, summary in zip(scores, history, strict=True):
        if values is not None:
            quality.update(np.asarray(values, np.float64), summary)
    found: NDArray[np.float64] | None = quality.value
    return np.full(num_samples, np.nan) if found is None else found


def shares_of(
    rows: Sequence[Mapping[str, Any]],
    *,
    power: float = 10.0,
    warmup: float = 0.1,
    signal: str = "separation",
    total_steps: int | None = None,
) -> NDArray[np.float64]:
    """Return the (T,) shares of the epochs in the average of the weights; zeros where none counts."""
    total = len(rows) if total_steps is None else total_steps
    average = EpochAverage(power, warmup, total_steps=total, signal=signal)
    for row in rows:
        average.share(row)
    if not average.counted:  # the mean would be the weights of the last epoch
        return np.zeros(len(rows))
    return average_shares(rows, power, warmup, total_steps=total, signal=signal)


def histograms_of(
    scores: Sequence[NDArray[np.float32] | None],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the edges of B bins shared by all epochs and the (T, B) counts."""
    lows, highs = [], []
    # An epoch at a time: the scores may lie in files.
    for values in scores:
        finite = np.empty(0) if values is None else values[np.isfinite(values)]
        if len(finite):
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
    low, high = min(lows, default=-1.0), max(highs, default=1.0)
    margin = 0.5 * (high - low) / BINS or 1e-3
    edges = np.linspace(max(-1.0, low - margin), min(1.0, high + margin), BINS + 1)
    counts = np.zeros((len(scores), BINS), np.int64)
    for row, values in zip(counts, scores, strict=True):
        if values is not None:
            row[:] = np.histogram(values[np.isfinite(values)], edges)[0]
    return edges, counts


def per_class(
    scores: Sequence[NDArray[np.float32] | None],
    targets: NDArray[np.int64] | None,
    num_classes: int,
    beta: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (T, C) GWA, nan where unhealthy, and (T, C) mean alignment of each class."""
    gwa = np.full((len(scores), num_classes), np.nan)
    mean = gwa.copy()
    if targets is None:
        return gwa, mean
    for row, values in enumerate(scores):
        if values is not None:
            summary = summarize(_moments_by_class(values, targets, num_classes), beta=beta)
            mean[row] = summary.mean
            gwa[row] = np.where(summary.healthy, summary.gwa, np.nan)
    return gwa, mean


def _moments_by_class(
    scores: NDArray[np.float32], targets: NDArray[np.int64], num_classes: int
) -> Moments:
    """Return moments up to the fourth, (C,) each; the standard error, which needs more, is nan.

    All classes come from the same sums: one call of `Moments.from_batch` a class would take
    minutes for 50,000 classes.
    """
    known = np.isfinite(scores) & (targets >= 0)
    labels, values = targets[known], np.asarray(scores[known], np.float64)

    def average(terms: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.bincount(labels, terms, num_classes)
        return np.divide(sums, count, out=np.zeros(num_classes), where=count > 0)

    count = np.bincount(labels, minlength=num_classes).astype(np.float64)
    rough = average(values)
    # One correction removes what rounding left in the mean.
    centred = values - rough[labels]
    shift = average(centred)
    centred -= shift[labels]
    square = centred * centred
    unknown = np.full(num_classes, np.nan)
    return Moments(
        count=count,
        mean=rough + shift,
        m2=average(square),
        m3=average(square * centred),
        m4=average(square * square),
        **dict.fromkeys(("m5", "m6", "m7", "m8"), unknown),
        negative_fraction=average((values < 0).astype(np.float64)),
        low=np.zeros((10, num_classes)),
    )


def scaled(
    values: NDArray[np.float64], *, better: Literal["low", "high"], begin: int = 0
) -> NDArray[np.float64]:
    """Return a (T,) curve turned so that larger is better, its own range from `begin` on as [0, 1].

    What comes before `begin` may lie outside. A curve that does not change is at one half.
    """
    turned = values if better == "high" else -values
    counted = turned[begin:][np.isfinite(turned[begin:])]
    low, high = (counted.min(), counted.max()) if len(counted) else (0.0, 0.0)
    if high == low:
        return np.where(np.isfinite(turned), 0.5, np.nan)
    return (turned - low) / (high - low)
