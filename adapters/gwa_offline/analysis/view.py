"""Columns of a report, the samples and classes to show, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gwa_core import EpochSummary
from gwa_offline.analysis.findings import EpochRecord, Findings

__all__ = [
    "ClassEnds",
    "ClassRow",
    "History",
    "average_sentence",
    "average_words",
    "chosen_metric",
    "class_ends",
    "class_of",
    "class_rows",
    "column",
    "curve_limits",
    "epoch_numbers",
    "format_number",
    "healthy_epochs",
    "is_window",
    "kept_of",
    "lowest_classes",
    "metric_names",
    "metric_values",
    "observed",
    "occupied_bins",
    "percent",
    "position",
    "pulling",
    "pulling_words",
    "significant",
    "ties_words",
    "unit",
]


# A metric beyond is that of a diverged run.
LARGEST = 1e100


class History(Protocol):
    """Records and their shares in the average of the weights: a report, or a run in progress."""

    @property
    def epochs(self) -> Sequence[EpochRecord]:
        """T records in order."""

    @property
    def average_shares(self) -> NDArray[np.float64]:
        """Shares, (T,)."""


class ClassRow(NamedTuple):
    """A class at the shown epoch; `pulling` is how many of its labels pull against the model."""

    name: str
    size: int
    pulling: int
    mean: float
    gwa: float


class ClassEnds(NamedTuple):
    """Ids of the least and most aligned samples of a class, each from its end inwards."""

    name: str
    size: int
    least: NDArray[np.intp]
    most: NDArray[np.intp]


def is_window(summary: EpochSummary) -> bool:
    """Return whether a record is of some steps of the training and not of an epoch."""
    return summary.window is not None


def unit(epochs: Sequence[EpochRecord]) -> str:
    """Return what the records of a run are counted in, "epoch" or "step"."""
    return "step" if any(is_window(record.summary) for record in epochs) else "epoch"


def position(summary: EpochSummary) -> int:
    """Return where a record stands in its run: its epoch, or the step at which its window ends."""
    return summary.step if is_window(summary) else summary.epoch


def epoch_numbers(report: History) -> list[int]:
    """Return the positions of the T epochs."""
    return [position(record.summary) for record in report.epochs]


def observed(epochs: Sequence[EpochRecord]) -> list[dict[str, Any]]:
    """Return what a stopping rule observes of each epoch: the summary, and the metrics of the run.

    A metric that an epoch lacks is nan there.
    """
    names = dict.fromkeys((name for record in epochs for name in record.metrics), math.nan)
    return [{**names, **record.metrics, **record.summary._asdict()} for record in epochs]


def column(report: Findings, field: str) -> NDArray[np.float64]:
    """Return one field of the T summaries."""
    return np.array([getattr(record.summary, field) for record in report.epochs], dtype=np.float64)


def healthy_epochs(report: Findings) -> NDArray[np.bool_]:
    """Return which of the T epochs have a meaningful GWA."""
    healthy = [record.summary.healthy for record in report.epochs]
    return np.array(healthy, dtype=bool) & np.isfinite(column(report, "gwa"))


def average_sentence(report: History) -> str | None:
    """Say that the weights can be averaged, and over which epochs; None where `average_words` is."""
    words = average_words(report)
    return None if words is None else f"Or average the weights: {words}."


def average_words(report: History, least: float = 0.9) -> str | None:
    """Say which epochs make most of the average of the weights: the shortest stretch of them.

    None for one epoch, or where none counts.
    """
    numbers, name = epoch_numbers(report), unit(report.epochs)
    ends = np.append(0.0, np.cumsum(report.average_shares))
    if len(numbers) == 1 or not ends[-1]:
        return None
    stretches = []
    for first, before in enumerate(ends[:-1]):
        last = int(np.searchsorted(ends, before + least)) - 1
        if last < len(numbers):
            stretches.append((last - first, before - ends[last + 1], first, last))
    _, share, first, last = min(stretches)
    words = f"{name} {numbers[first]} is"
    if first != last:
        words = f"{name}s {numbers[first]} to {numbers[last]} are"
    return f"{words} {percent(-share, 0)} of the average"


def ties_words(report: Findings, most: int = 4) -> str | None:
    """Say which epochs are about as good as the best one: "9 to 12 and 14 are about as good".

    None where nobody knows: for one epoch, without a best one, or without its standard error.
    """
    best, numbers, tied = report.best_index, epoch_numbers(report), report.decision.tied
    if best is None or len(numbers) == 1 or np.isnan(report.decision.standard_errors[best]):
        return None
    ends = np.flatnonzero(np.diff(np.concatenate([[0], tied.astype(np.int8), [0]])))
    parts: list[str] = []
    for first, end in ends.reshape(-1, 2).tolist():
        # The best one may be inside of a stretch, and is not named alone.
        stretch = [numbers[i] for i in range(first + (first == best), end - (end - 1 == best))]
        long = len(stretch) > 2
        parts += [f"{stretch[0]} to {stretch[-1]}"] if long else [f"{x}" for x in stretch]
    if not parts:
        return f"no other {unit(report.epochs)} is within its error"
    if len(parts) > most:
        others = np.flatnonzero(tied)
        within = f"{numbers[others[0]]} to {numbers[others[-1]]}"
        return f"{len(others) - 1} others from {within} are about as good"
    words = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    if words.isdecimal():
        return f"{unit(report.epochs)} {words} is about as good"
    return f"{words} are about as good"


def pulling(report: Findings) -> NDArray[np.bool_]:
    """Return which of the N samples pull against the model: label quality below one half."""
    with np.errstate(invalid="ignore"):
        return report.label_quality < 0.5


def pulling_words(report: Findings) -> str | None:
    """Say how many labels pull against the model; None where no sample has a score."""
    known = int(np.isfinite(report.label_quality).sum())
    if not known:
        return None
    noun = "samples" if report.targets is None else "labels"
    count = int(pulling(report).sum())
    verb = "pulls" if count == 1 else "pull"
    return f"{format_number(count)} of {format_number(known)} {noun} {verb} against the model"


def metric_names(report: Findings) -> list[str]:
    """Return the names of all metrics, in the order of their first appearance."""
    return list(dict.fromkeys(name for record in report.epochs for name in record.metrics))


def metric_values(report: Findings, name: str) -> NDArray[np.float64]:
    """Return one metric at the T epochs, nan where it is missing, or so large that sums overflow."""
    found = [record.metrics.get(name) for record in report.epochs]
    values = np.array([math.nan if value is None else value for value in found], dtype=np.float64)
    return np.where(np.abs(values) < LARGEST, values, np.nan)


def chosen_metric(report: Findings, name: str | None) -> NDArray[np.float64] | None:
    """Return the metric of a name as `metric_values` does, None without one; refuse other names."""
    if name is None:
        return None
    names = metric_names(report)
    if name not in names:
        raise ValueError(f"`metric` must be one of {names}, got {name!r}")
    return metric_values(report, name)


def lowest_classes(report: Findings, limit: int) -> NDArray[np.intp]:
    """Return the classes of lowest mean at the shown epoch, lowest first, without unknown ones.

    Not of lowest GWA: that of a class with two modes has a pole, and changes its sign there.
    """
    mean = report.class_mean[report.shown]
    return np.argsort(mean, kind="stable")[: min(limit, int(np.isfinite(mean).sum()))]


def class_ends(report: Findings, *, limit: int, k: int) -> list[ClassEnds]:
    """Return the k ids at both ends of the lowest classes; of all samples where labels are unknown."""
    groups: list[tuple[str, Any]] = [("all classes", True)]
    if report.targets is not None:
        lowest = lowest_classes(report, limit)
        groups = [(report.class_names[c], report.targets == c) for c in lowest]
    found = []
    for name, mask in groups:
        ids = np.flatnonzero(mask & np.isfinite(report.scores))
        ids = ids[np.argsort(report.scores[ids], kind="stable")]
        n = min(k, len(ids) // 2)  # no sample is at both ends
        if n:
            found.append(ClassEnds(name, len(ids), ids[:n], ids[::-1][:n]))
    return found


def class_rows(report: Findings, limit: int) -> list[ClassRow]:
    """Return the classes of lowest mean alignment at the shown epoch, lowest first."""
    if report.targets is None:
        return []
    labelled = report.targets >= 0
    size, pulls = (
        np.bincount(report.targets[mask], minlength=report.num_classes)
        for mask in (labelled, labelled & pulling(report))
    )
    mean, gwa = report.class_mean[report.shown], report.class_gwa[report.shown]
    return [
        ClassRow(report.class_names[c], int(size[c]), int(pulls[c]), float(mean[c]), float(gwa[c]))
        for c in lowest_classes(report, limit)
    ]


def class_of(report: Findings, classes: NDArray[np.int64] | None, sample: int) -> str | None:
    """Return the name of the class that `targets` or `predictions` give a sample; None where unknown."""
    if classes is None or classes[sample] < 0:
        return None
    return report.class_names[int(classes[sample])]


def kept_of(report: Findings, sample: int) -> dict[str, Any]:
    """Return what is carried along of a sample: plain values, None where unknown."""
    found = {name: values[sample] for name, values in report.kept.items()}
    return {name: x.item() if isinstance(x, np.generic) else x for name, x in found.items()}


def occupied_bins(histograms: NDArray[np.int64]) -> slice:
    """Return the columns of (T, B) histograms between the first and the last that hold a score."""
    bins = np.flatnonzero(histograms.sum(axis=0))
    return slice(int(bins[0]), int(bins[-1]) + 1) if len(bins) else slice(None)


def curve_limits(values: NDArray[np.float64], half: NDArray[np.float64]) -> tuple[float, float]:
    """Return a range that shows the values, and their bands of +- half unless far wider."""
    if not len(values):
        return -1.0, 1.0
    low, high = float(values.min()), float(values.max())
    span = (high - low) or max(float(half.max()), 1e-3)
    bottom = max(float((values - half).min()), low - span)
    top = min(float((values + half).max()), high + span)
    return bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom)


def significant(
    value: float | None, digits: int = 3, *, sign: str = "", around: float = 0.0
) -> str:
    """Write a number with that many decimals, or with more where they would hide it.

    Parameters
    ----------
    value : float or None
        Missing and non-finite numbers are a dash.
    digits : int
        Decimals of a number far from `around`; of a nearer one, digits that are not leading zeros.
    sign : str
        "+" also writes the sign of a positive number.
    around : float
        The value that differences count from: 1/2 for label quality.

    Returns
    -------
    str
        In ASCII.

    Notes
    -----
    The scores of a softmax are at most about sqrt(2 / C) in size: with 50,000 classes 0.006.

    Examples
    --------
    >>> significant(0.37184), significant(0.0037184), significant(3.7184e-7)
    ('0.372', '0.00372', '3.72e-07')
    >>> significant(0.498765, around=0.5), significant(0.0), significant(None)
    ('0.49877', '0.000', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    distance = abs(value - around)
    if around == 0.0 and 0.0 < distance < 1e-4:
        # The format keeps the point of a whole number, as in 4.e-07.
        return f"{value:{sign}#.{digits}g}".replace(".e", "e")
    if 0.0 < distance < 0.1:
        digits += min(-1 - math.floor(math.log10(distance)), 9)
    return f"{value:{sign}.{digits}f}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """Write a fraction in percent, like `significant`."""
    text = significant(None if fraction is None else 100.0 * fraction, digits)
    return text if text == "-" else f"{text} %"


def format_number(value: float | None, digits: int = 3, *, around: float = 0.0) -> str:
    """Write a number as `significant` does, with the signs of print; whole numbers in full."""
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    text = significant(value, digits, around=around)
    return "–" if text == "-" else text.replace("-", "\N{MINUS SIGN}")
