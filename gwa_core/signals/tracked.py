"""Several signals followed through a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gwa_core._lib.array import Array
from gwa_core._lib.checks import check_positive_int
from gwa_core.signals.over_epochs import OverEpochs, check_names
from gwa_core.signals.together import sample_signals
from gwa_core.tracker import GWATracker

__all__ = ["TrackedSignals"]

STATE_VERSION = 3


class _Values(GWATracker):
    """The values of one signal, whose average says nothing about labels."""

    _of_labels = False


class TrackedSignals:
    """Follow chosen signals through a training: by sample, by epoch, and over all epochs.

    Parameters
    ----------
    names : iterable of str
        Keys of ``SIGNALS``.
    num_samples : int, optional
        N, the size of the training set; needed to give `ids`, without which nothing can be said of
        a sample, nor compared between epochs.

    Attributes
    ----------
    names : tuple of str
        The signals.
    history : list of dict
        One entry an epoch: the mean of each signal over the samples.

    Raises
    ------
    TypeError, ValueError
        On unknown names, and on names that need ids without `num_samples`.

    Notes
    -----
    Values wait on their device and are fetched about once in 65,536. Cost: see `sample_signals`.
    Memory: about 20 to 50 N bytes a signal.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import TrackedSignals
    >>> tracked = TrackedSignals(["margin", "forgetting_events"], num_samples=2)
    >>> for logits in ([[2.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]):
    ...     logits, targets = np.asarray(logits), np.asarray([0, 0])
    ...     tracked.update(logits=logits, targets=targets, ids=np.asarray([0, 1]))
    ...     tracked.end_epoch()
    {'margin': 1.5, 'forgetting_events': 0.0}
    {'margin': 0.5, 'forgetting_events': 0.5}
    >>> tracked.over_epochs["margin"]
    array([0.5, 1.5])
    """

    def __init__(self, names: Iterable[str], num_samples: int | None = None) -> None:
        if num_samples is not None:
            num_samples = check_positive_int("num_samples", num_samples)
        self.names = check_names(names, num_samples)
        self.num_samples = num_samples
        self.history: list[dict[str, float]] = []
        self._run = OverEpochs.begin(self.names, np.zeros(num_samples or 0))
        self._trackers = {
            name: _Values(num_samples, keep_scores=num_samples is not None)
            for name in self._run.sources
        }

    def update(
        self,
        *,
        logits: Array,
        targets: Array,
        latents: Array | None = None,
        ids: Array | None = None,
        where: Array | None = None,
    ) -> None:
        """Take in a batch.

        Parameters
        ----------
        logits, targets, latents
            See `sample_signals`.
        ids : integer array of shape (N,), optional
            Sample numbers in 0..num_samples-1. A sample counts once an epoch.
        where : boolean array of shape (N,), optional
            True for samples that count.

        Raises
        ------
        TypeError, ValueError
            On what does not fit; the batch is then lost for all signals.
        """
        if (ids is None) != (self.num_samples is None):
            raise ValueError(
                "`ids` and `num_samples` must be given together, got "
                f"{'no ' if ids is None else ''}ids and num_samples={self.num_samples}"
            )
        found = sample_signals(self._trackers, logits=logits, targets=targets, latents=latents)
        for name, values in found.items():
            self._trackers[name].update(values, ids=ids, where=where)

    def end_epoch(self) -> dict[str, float]:
        """Return the mean of each signal over the samples of the epoch, and begin a new one.

        Returns
        -------
        dict of str to float
            The entry of `history`: "prediction_changes" is the share of changed predictions, nan
            in the first epoch; "forgetting_events" and "variability" are means of what they are
            up to here.

        Raises
        ------
        ValueError
            If no batch came since the last call.
        """
        means = {name: tracker.end_epoch().mean for name, tracker in self._trackers.items()}
        if self.num_samples is not None:
            self._run = self._run.add(self._scores())
            means |= {name: float(mean) for name, mean in self._run.means().items()}
        summary = {name: means[name] for name in self.names}
        self.history.append(summary)
        return summary

    @property
    def values(self) -> dict[str, np.ndarray[Any, Any]]:
        """Each sample's value of the last epoch: (N,) by id, nan where it was not seen."""
        return {name: x for name, x in self._scores().items() if name in self.names}

    def _scores(self) -> dict[str, np.ndarray[Any, Any]]:
        return {name: np.asarray(x.scores) for name, x in self._trackers.items()}

    @property
    def over_epochs(self) -> dict[str, np.ndarray[Any, Any]]:
        """Each sample's value over the epochs that ended, (N,) by id.

        The mean over the epochs in which it was seen; of "variability" the standard deviation of
        its probabilities, of "forgetting_events" their number. `suspicious` in ``SIGNALS`` says
        which end to look at.
        """
        if self.num_samples is None:
            raise ValueError(
                "`num_samples` must be given to compare epochs, got None; say "
                "TrackedSignals(names, num_samples=len(dataset))"
            )
        return self._run.by_sample()

    def merge(self, other: TrackedSignals) -> None:
        """Add the epoch in progress of another one (a rank, a shard) to this one.

        Parameters
        ----------
        other : TrackedSignals
            Of the same names and `num_samples`. A sample that both saw keeps the values of the
            earlier batch.

        Raises
        ------
        ValueError
            If they do not belong together; nothing is changed then.
        """
        ours, theirs = (self.names, self.num_samples), (other.names, other.num_samples)
        if ours != theirs:
            raise ValueError(f"`other` must agree in names, num_samples: {ours}, got {theirs}")
        for name, tracker in self._trackers.items():
            tracker.merge(other._trackers[name])

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain NumPy and Python values, with a version."""
        return {
            "version": STATE_VERSION,
            "names": list(self.names),
            "num_samples": self.num_samples,
            "history": [dict(summary) for summary in self.history],
            "trackers": {name: x.state_dict() for name, x in self._trackers.items()},
            "run": _copied(self._run.kept),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, also in the middle of an epoch.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        ValueError
            If it is of another version, of other signals or of another training set; nothing is
            changed then.
        """
        own = STATE_VERSION, list(self.names), self.num_samples
        found = tuple(state.get(key) for key in ("version", "names", "num_samples"))
        if found != own:
            raise ValueError(
                f"`state` must be of version, names and num_samples {own}, got {found}"
            )
        self.history = [dict(summary) for summary in state["history"]]
        for name, tracker in self._trackers.items():
            tracker.load_state_dict(state["trackers"][name])
        self._run = OverEpochs(_copied(state["run"]))


def _copied(kept: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {key: np.array(x) for key, x in some.items()} for name, some in kept.items()}
