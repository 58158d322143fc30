"""What is kept of signals over the epochs, a few numbers a sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gwa_core._lib.array import Array, constant, index_dtype, namespace, quiet, result_dtype
from gwa_core.moments import Moments
from gwa_core.score import summarize
from gwa_core.signals.catalogue import SIGNALS
from gwa_core.signals.prediction_changes import prediction_changes
from gwa_core.signals.together import unknown

__all__ = ["OverEpochs", "check_names"]

# What a batch must give for the signals that compare epochs.
SOURCE = {
    "variability": "label_probability",
    "forgetting_events": "correct",
    "prediction_changes": "prediction",
}
# What is kept for them; of the others what a mean needs. `square` is about the mean (Welford).
KEPT = {
    "variability": ("count", "total", "square"),
    "forgetting_events": ("count", "total", "falls", "last"),
    "prediction_changes": ("last", "share"),
}
KEPT_OF_OTHERS = ("count", "total")


class OverEpochs(NamedTuple):
    r"""Signals of each sample over the epochs that ended: their mean, spread and changes.

    .. math::

       \mu_i = \frac 1 {T_i} \sum_t s_{t,i}, \qquad
       \sigma_i = \sqrt{\frac 1 {T_i} \sum_t (s_{t,i} - \mu_i)^2}

    with T_i the number of epochs in which the sample was seen. `TrackedSignals` keeps one for you.
    Make one with `begin`, never by hand.

    Parameters
    ----------
    kept : dict of dict of arrays
        By signal, arrays of shape (N,) and a 0-D one: "count" and "total" over the epochs,
        "square" about the mean, the value "last" seen, how often it "falls", the "share" of
        changes.

    Raises
    ------
    ValueError
        On unknown names.

    Notes
    -----
    Two to four numbers a sample and signal. A pytree of arrays; everything runs under jit.

    References
    ----------
    Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products",
    Technometrics 1962; of each signal see ``SIGNALS``.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import OverEpochs
    >>> run = OverEpochs.begin(["margin", "variability"], np.zeros(2))
    >>> run.sources
    ('margin', 'label_probability')
    >>> for p in ([0.9, 0.1], [0.9, np.nan], [0.6, 0.7]):
    ...     p = np.asarray(p)
    ...     run = run.add({"margin": 2 * p - 1, "label_probability": p})
    >>> {name: values.round(3) for name, values in run.by_sample().items()}
    {'margin': array([ 0.6, -0.2]), 'variability': array([0.141, 0.3  ])}
    """

    kept: dict[str, dict[str, Array]]

    @classmethod
    def begin(cls, names: Iterable[str], like: Array) -> OverEpochs:
        """Return what is kept before the first epoch.

        Parameters
        ----------
        names : iterable of str
            Keys of ``SIGNALS``.
        like : array of shape (N,)
            What is kept has its dtype, at least float32, and is on its device.

        Returns
        -------
        OverEpochs
            Of no epoch.
        """
        xp = namespace(like=like)
        dtype = result_dtype(xp, like)
        zero = xp.zeros_like(like, dtype=dtype)
        start = {"last": zero + xp.nan, "share": constant(xp, xp.nan, like, dtype)}
        return cls(
            {
                name: {key: start.get(key, zero) for key in KEPT.get(name, KEPT_OF_OTHERS)}
                for name in check_names(names, like.shape[0])
            }
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """What `add` needs of an epoch, as `sample_signals` gives it."""
        return tuple(dict.fromkeys(SOURCE.get(name, name) for name in self.kept))

    def add(self, values: Mapping[str, Array]) -> OverEpochs:
        """Add an epoch.

        Parameters
        ----------
        values : mapping of str to array of shape (N,)
            Of all `sources`, by sample; nan where a sample was not seen.

        Returns
        -------
        OverEpochs
            With that epoch. Cost: O(N) a signal.
        """
        return OverEpochs(
            {name: _added(kept, values[SOURCE.get(name, name)]) for name, kept in self.kept.items()}
        )

    def by_sample(self) -> dict[str, Array]:
        """Return each sample's value over the epochs, (N,), nan where it was never seen.

        The mean over the epochs in which it was seen; of "variability" the population standard
        deviation of its probabilities, of "forgetting_events" their number, which is that of the
        epochs where it was never right. "prediction_changes" has none.
        """
        return {name: _over(kept) for name, kept in self.kept.items() if "share" not in kept}

    def means(self) -> dict[str, Array]:
        """Return the 0-D values of the signals that compare epochs, after the last one.

        "prediction_changes" is the share of changed predictions, nan after the first epoch;
        "forgetting_events" and "variability" are means over the samples of what they are up to
        here.
        """
        return {
            name: kept["share"]
            if "share" in kept
            else summarize(Moments.from_batch(_over(kept))).mean
            for name, kept in self.kept.items()
            if name in SOURCE
        }


def check_names(names: Iterable[str], num_samples: int | None) -> tuple[str, ...]:
    """Return the names of signals to follow, or say what does not fit."""
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in SIGNALS:
            raise unknown(name, SIGNALS)
        if num_samples is None and "ids" in SIGNALS[name].needs:
            raise ValueError(
                f"`num_samples` must be given for {name!r}, got None: it compares each sample "
                "between epochs; say num_samples=len(dataset)"
            )
    if not names:
        raise ValueError(f"`names` must have at least one of {', '.join(SIGNALS)}, got none")
    return names


def _added(kept: dict[str, Array], values: Array) -> dict[str, Array]:
    """Return what is kept after an epoch; which fields there are says what to do."""
    xp, new = namespace(values=values), dict(kept)
    dtype = next(iter(kept.values())).dtype
    seen = xp.isfinite(values)
    values = xp.where(seen, xp.astype(values, dtype), constant(xp, 0.0, values, dtype))
    if "count" in kept:
        new["count"] = kept["count"] + xp.astype(seen, dtype)
        new["total"] = kept["total"] + values
    if "square" in kept:
        step = (values - _mean(kept)) * (values - _mean(new))
        again = seen & (kept["count"] > 0)
        new["square"] = kept["square"] + xp.where(again, step, xp.zeros_like(step))
    if "falls" in kept:
        new["falls"] = kept["falls"] + xp.astype(seen & (values < kept["last"]), dtype)
    if "share" in kept:
        before = _classes(xp, kept["last"], xp.isfinite(kept["last"]))
        with quiet(xp):
            share = prediction_changes(before, _classes(xp, values, seen))
        new["share"] = xp.astype(share, dtype)
    if "last" in kept:
        new["last"] = xp.where(seen, values, kept["last"])
    return new


def _classes(xp: Any, values: Array, known: Array) -> Array:
    """Return class numbers, -1 where there is none."""
    return xp.astype(xp.where(known, values, -xp.ones_like(values)), index_dtype(xp, values))


def _over(kept: dict[str, Array]) -> Array:
    xp = namespace(count=kept["count"])
    if "square" in kept:
        return xp.sqrt(_per_epoch(kept, kept["square"]))
    if "falls" in kept:
        events = xp.where(kept["total"] > 0, kept["falls"], kept["count"])
        return xp.where(kept["count"] > 0, events, xp.full_like(events, xp.nan))
    return _mean(kept)


def _mean(kept: dict[str, Array]) -> Array:
    return _per_epoch(kept, kept["total"])


def _per_epoch(kept: dict[str, Array], total: Array) -> Array:
    xp, count = namespace(total=total), kept["count"]
    seen = count > 0
    mean = total / xp.where(seen, count, xp.ones_like(count))
    return xp.where(seen, mean, xp.full_like(mean, xp.nan))
