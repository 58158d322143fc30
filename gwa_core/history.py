"""Summaries of epochs and of a whole run, in plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gwa_core._lib.array import namespace
from gwa_core.score import Summary, separation

__all__ = ["EpochSummary", "HistorySummary", "summarize_history"]

# A trough of the skewness is clear below this with this share of negative scores, which clean
# data does not reach; both count as gone once at most half of them is left.
CLEAR_SKEWNESS = -0.4
CLEAR_NEGATIVE = 0.06
LEFT = 0.5


# An epoch is whole with nine of these tenths of the samples it should have had; where nobody knows
# how many those are, with five tenths of the fullest epoch so far. Whole numbers, because 0.9 is not
# exact in binary.
TENTHS, TENTHS_OF_FULLEST = 9, 5


def as_mapping(record: Any) -> Mapping[str, Any]:
    """Return the fields of a summary, or a mapping as it is."""
    if isinstance(record, Mapping):
        return record
    if not hasattr(record, "_asdict"):
        raise TypeError(
            f"`record` must be a summary or a mapping, got {type(record).__name__}; plain numbers go "
            "to `EarlyStopper.update` and `select_step`"
        )
    fields: Mapping[str, Any] = record._asdict()
    return fields


def number(fields: Mapping[str, Any], name: str, default: float = math.nan) -> float:
    """Return a field as a number, nan for None."""
    value = fields.get(name, default)
    return math.nan if value is None else float(value)


def is_cut_short(fields: Mapping[str, Any], fullest: float) -> tuple[bool, float]:
    """Tell whether too few samples of an epoch came; also return the fullest so far, with it."""
    came = number(fields, "count") + number(fields, "omitted", 0.0)
    expected = number(fields, "expected")
    whole = TENTHS_OF_FULLEST * fullest if math.isnan(expected) else TENTHS * expected
    return 10 * came < whole, max(fullest, came)  # nan comes second and changes nothing


class Seen(NamedTuple):
    """What a rule or an average sees of a record."""

    value: float
    known: bool  # finite, and not the GWA of an unhealthy epoch
    short: bool  # cut short
    fullest: float  # samples of the fullest epoch so far


def see(name: str, record: Any, signal: str, fullest: float, *, watcher: str) -> Seen:
    """Look at one column of a record, or raise and say which columns there are."""
    fields = as_mapping(record)
    if signal not in fields:
        raise ValueError(
            f"`{name}` must have the column {signal!r} that {watcher} watches, got "
            f"{', '.join(sorted(map(str, fields)))}; give it beside the summary: "
            f"{{**summary._asdict(), {signal!r}: ...}}"
        )
    value = number(fields, signal)
    healthy = signal != "gwa" or number(fields, "denominator", 1.0) > 0.0
    return Seen(value, healthy and math.isfinite(value), *is_cut_short(fields, fullest))


def epochs_cut_short(history: Iterable[Any]) -> list[int]:
    """Return the positions of the epochs that were cut short, which no rule keeps."""
    fullest, found = 0.0, []
    for position, record in enumerate(history):
        short, fullest = is_cut_short(as_mapping(record), fullest)
        if short:
            found.append(position)
    return found


def expected_samples(came: Any, *, rows: Any, total: Any, batch: Any = 0, before: Any = 0) -> Any:
    """Return how many samples an epoch should have had: `came`, times what is missing of its rows.

    Rows count, not samples: a sampler that draws with replacement sees a sample twice, and a mask
    leaves some out, in whole epochs too. Works on numbers and on traced arrays.

    Parameters
    ----------
    came : number or array
        Samples that came, counted and omitted.
    rows : number or array
        Rows that came, at least 1.
    total : number
        Rows of an epoch over the whole training set.
    batch : number or array
        Rows of the largest batch: in the first epoch, what is missing may be a batch that the loader
        drops because it is not full.
    before : number or array
        Rows of the epoch before, 0 in the first one. It shows how long the loop's epochs are: a
        loop may train on a part of the samples, or draw some several times.

    Returns
    -------
    number or array
        Samples that a whole epoch has, at least `came`.
    """
    dropped, first = total - rows < batch, before == 0
    of_first = dropped * rows + (1 - dropped) * total
    whole = first * of_first + (1 - first) * before
    ratio = whole / rows
    # max(ratio, 1), for numbers and traced arrays alike.
    return came * ((ratio + 1.0 + abs(ratio - 1.0)) / 2.0)


class EpochSummary(NamedTuple):
    """Summary of one epoch, in plain Python numbers; the fields are those of `Summary`.

    Parameters
    ----------
    epoch, step : int
        Position in the history, and the caller's own clock (the epoch where none was given).
    count, omitted : int
        Scores that counted, and scores left out because they were not finite.
    mean, variance, skewness, kurtosis, gwa, gwa_standard_error, denominator, bimodality, \
negative_fraction, separation : float
        See `Summary`.
    expected : int, optional
        Scores that a whole epoch has, counted and omitted; None where nobody knows. An epoch with
        less than nine tenths of it was cut short, and no rule keeps it.
    window : int, optional
        How many steps of the optimiser this is of, where it is a window of a training and no epoch.
    """

    epoch: int
    step: int
    count: int  # type: ignore[assignment]  # a field, in place of tuple.count
    omitted: int
    mean: float
    variance: float
    skewness: float
    kurtosis: float
    gwa: float
    gwa_standard_error: float
    denominator: float
    bimodality: float
    negative_fraction: float
    separation: float
    expected: int | None = None
    window: int | None = None

    @property
    def healthy(self) -> bool:
        """Whether the denominator of Eq. 2 is positive; False also where it is nan."""
        return self.denominator > 0.0

    @classmethod
    def from_summary(
        cls,
        summary: Summary,
        *,
        epoch: int,
        step: int | None = None,
        omitted: int = 0,
        expected: float | None = None,
        window: int | None = None,
    ) -> EpochSummary:
        """Return a summary of arrays as plain numbers (waits for their device)."""
        values = {name: float(value) for name, value in summary._asdict().items()}
        return cls(
            epoch=epoch,
            step=epoch if step is None else step,
            omitted=omitted,
            expected=None if expected is None else round(expected),
            window=window,
            **{**values, "count": round(values["count"])},  # type: ignore[arg-type]  # of both kinds
        )

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any]) -> EpochSummary:
        """Return a summary from its fields, also from the fields that gwa-core 0.1.0 wrote.

        They lack `separation`, which follows from two others, and `expected` and `window`.
        """
        known = {name: fields[name] for name in cls._fields if name in fields}
        if "separation" not in known:
            mean, bimodality = (np.asarray(number(known, x)) for x in ("mean", "bimodality"))
            known["separation"] = float(separation(namespace(mean=mean), mean, bimodality))
        return cls(**known)


class HistorySummary(NamedTuple):
    """A whole training run in a few numbers.

    Parameters
    ----------
    epochs, unhealthy : int
        Epochs in the history, and those whose GWA means nothing.
    max_mean, max_gwa : float
        Largest mean alignment (the paper's measure between runs, Fig. 3) and largest GWA of a
        healthy epoch; nan where there is none.
    memorising : bool
        The skewness went from clearly negative back towards zero while the negative scores
        vanished: the network has learned its wrong labels by heart (App. A.4).
    """

    epochs: int
    unhealthy: int
    max_mean: float
    max_gwa: float
    memorising: bool


def summarize_history(history: Sequence[EpochSummary]) -> HistorySummary:
    """Return a run in a few numbers, and whether it came to memorise wrong labels.

    Parameters
    ----------
    history : sequence of EpochSummary
        All epochs in order.

    Returns
    -------
    HistorySummary
        Largest mean and GWA, unhealthy epochs, and the `memorising` flag.

    Raises
    ------
    ValueError
        If the history is empty.

    Notes
    -----
    Memorising: the smallest skewness was below -0.4 with more than 6 % of the scores negative,
    and less than half of both is left at the end. Cost: O(T).

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Fig. 3 and App. A.4.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import GWATracker, summarize_history
    >>> tracker = GWATracker()
    >>> for mean in (0.1, 0.2):
    ...     tracker.update(np.asarray([-0.1, 0.0, 0.05, 0.3]) + mean)
    ...     _ = tracker.end_epoch()
    >>> round(summarize_history(tracker.history).max_mean, 4)
    0.2625
    """
    if not history:
        raise ValueError("`history` must have at least one epoch, got none")
    finite = [s for s in history if math.isfinite(s.skewness)]
    memorising = False
    if finite:
        trough, last = min(finite, key=lambda s: s.skewness), finite[-1]
        memorising = (
            trough.skewness < CLEAR_SKEWNESS
            and trough.negative_fraction > CLEAR_NEGATIVE
            and last.skewness > LEFT * trough.skewness
            and last.negative_fraction < LEFT * trough.negative_fraction
        )
    return HistorySummary(
        epochs=len(history),
        unhealthy=sum(not s.healthy for s in history),
        max_mean=max((s.mean for s in history if math.isfinite(s.mean)), default=math.nan),
        max_gwa=max((s.gwa for s in history if s.healthy), default=math.nan),
        memorising=memorising,
    )
