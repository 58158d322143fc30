"""Algorithm 1: one epoch of scores becomes one summary; history and state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from gwa_core._lib.array import Array, is_host, namespace, owned, to_numpy
from gwa_core._lib.checks import check_choice, check_integer, check_positive_int, check_where
from gwa_core._lib.slots import Slots
from gwa_core.attribution import LabelQuality
from gwa_core.history import EpochSummary, expected_samples
from gwa_core.moments import Moments
from gwa_core.score import BETA, summarize

__all__ = ["GWATracker"]

NanPolicy: TypeAlias = Literal["omit", "raise"]

STATE_VERSION = 2

# Scores wait on their device until this many have come, so that a step costs no synchronisation.
PENDING_SCORES = 1 << 16


class GWATracker:
    """Collect the alignment scores of an epoch, summarise it, and keep the history.

    Parameters
    ----------
    num_samples : int, optional
        N, the size of the training set; needed to give scores by `ids`.
    beta : float
        The constant of Eq. 2, default 1.2.
    nan_policy : {"omit", "raise"}
        What to do with a score that is not finite: leave it out and count it in ``omitted``, or
        raise. Default "omit".
    keep_scores : bool
        Keep the scores of the epoch (default); False keeps moments only, for endless streams.

    Raises
    ------
    ValueError
        On options that do not fit.

    Notes
    -----
    Scores of any namespace wait on their device and are fetched about once in 65,536, so `update`
    does not wait. Memory: 24 to 32 bytes a sample with ids, O(N) with kept scores, else O(1).

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import GWATracker
    >>> tracker = GWATracker(num_samples=4)
    >>> tracker.update(np.asarray([0.5, 0.1]), ids=np.asarray([2, 0]))
    >>> tracker.update(np.asarray([-0.2, 0.3]), ids=np.asarray([3, 0]))  # 0 counts once
    >>> summary = tracker.end_epoch()
    >>> summary.count, round(summary.mean, 3), tracker.scores
    (3, 0.133, array([ 0.1,  nan,  0.5, -0.2]))
    """

    # Whether its scores say how far labels can be trusted.
    _of_labels = True

    def __init__(
        self,
        num_samples: int | None = None,
        *,
        beta: float = BETA,
        nan_policy: NanPolicy = "omit",
        keep_scores: bool = True,
    ) -> None:
        if num_samples is not None:
            num_samples = check_positive_int("num_samples", num_samples)
        check_choice("nan_policy", nan_policy, get_args(NanPolicy))
        if not math.isfinite(beta):
            raise ValueError(f"`beta` must be finite, got {beta!r}")
        self.num_samples = num_samples
        self.beta = float(beta)
        self.nan_policy = nan_policy
        self.keep_scores = keep_scores
        #: Ended epochs in order.
        self.history: list[EpochSummary] = []
        assesses = num_samples is not None and self._of_labels
        self._quality = LabelQuality(num_samples) if assesses else None  # type: ignore[arg-type]
        # Rows of the epoch that ended last.
        self._before = 0
        self._reset()

    def _reset(self) -> None:
        self._ended = False
        self._by_id: bool | None = None
        self._pending: list[tuple[Array, Array | None, Array | None]] = []
        self._pending_size = 0
        self._batches = 0
        self._rows = self._largest = 0
        self._omitted = 0
        self._moments = Moments.empty(np.zeros(()))
        self._stream: list[np.ndarray[Any, Any]] = []
        self._slots: Slots | None = None

    def update(
        self, scores: Array, *, ids: Array | None = None, where: Array | None = None
    ) -> None:
        """Add the scores of a batch.

        Parameters
        ----------
        scores : array of shape (N,)
            Alignment scores.
        ids : integer array of shape (N,), optional
            Sample numbers in 0..num_samples-1. A sample seen twice in an epoch counts once, with
            its first score. Either every batch of an epoch has ids or none.
        where : boolean array of shape (N,), optional
            True for scores that count.

        Raises
        ------
        ValueError
            On shapes or ids that do not fit, those on an accelerator when they are fetched; only
            the batch is lost.
        """
        xp = namespace(scores=scores)
        if scores.ndim != 1:
            raise ValueError(f"`scores` must be (N,), got shape {tuple(scores.shape)}")
        if where is not None:
            check_where(namespace(where=where), where, scores.shape[0])
        if ids is not None:
            self._check_ids(ids, scores.shape[0])
        if self._ended:
            self._reset()
        if self._by_id is not None and self._by_id != (ids is not None):
            raise ValueError(
                "`ids` must be given with every batch of an epoch or with none, got "
                f"{'none' if ids is None else 'some'} in an epoch that began "
                f"{'with' if self._by_id else 'without'} them"
            )
        if xp.isdtype(scores.dtype, ("bool", "complex floating")):
            raise TypeError(f"`scores` must be floating point, got {scores.dtype}")
        self._by_id = ids is not None
        self._pending.append((owned(scores), owned(ids), owned(where)))
        self._pending_size += scores.shape[0]
        if self._pending_size >= PENDING_SCORES:
            self._flush()

    def _check_ids(self, ids: Array, rows: int) -> None:
        if self.num_samples is None or not self.keep_scores:
            raise ValueError(
                "`ids` need `num_samples` and `keep_scores=True`, got "
                f"num_samples={self.num_samples}, keep_scores={self.keep_scores}; "
                "say GWATracker(num_samples=len(dataset))"
            )
        namespace(ids=ids)
        if tuple(ids.shape) != (rows,):
            raise ValueError(f"`ids` must be (N,) = ({rows},), got shape {tuple(ids.shape)}")
        if is_host(ids):
            Slots.check_ids(ids, self.num_samples)

    def _flush(self) -> None:
        """Fetch the waiting batches and fold them in."""
        while self._pending:
            scores, ids, where = self._pending.pop(0)
            values = to_numpy(scores)
            if values.dtype.kind != "f":
                values = values.astype(np.float64)
            keep = np.ones(values.shape, bool) if where is None else to_numpy(where)
            self._pending_size -= values.shape[0]
            if self.nan_policy == "raise" and not np.isfinite(values[keep]).all():
                raise ValueError(
                    "`scores` must be finite under nan_policy='raise', got nan or inf; "
                    "the latents or logits of the batch were not finite"
                )
            if ids is None:
                self._add_stream(values[keep])
            else:
                numbers, size = to_numpy(ids), self.num_samples or 0
                Slots.check_ids(numbers, size)
                self._slots = self._slots or Slots(size, values.dtype)
                self._slots.add(values[keep], numbers[keep], self._batches)
            self._batches += 1
            self._rows += values.shape[0]
            self._largest = max(self._largest, values.shape[0])

    def _add_stream(self, values: np.ndarray[Any, Any]) -> None:
        self._omitted += int((~np.isfinite(values)).sum())
        if values.size:
            self._moments = self._moments.merge(Moments.from_batch(values))
        if self.keep_scores:
            self._stream.append(values)

    @property
    def scores(self) -> np.ndarray[Any, Any] | None:
        """Scores of the epoch in progress, or of the one that ended last, as a NumPy array.

        With ids, (N,) by sample, nan where not seen; without, in the order they came. None before
        the first batch and under ``keep_scores=False``.
        """
        self._flush()
        if self._by_id:
            return None if self._slots is None else self._slots.scores
        return np.concatenate(self._stream) if self._stream else None

    @property
    def label_quality(self) -> np.ndarray[Any, Any] | None:
        """Label quality (N,) over the epochs that ended: low = suspicious, nan where never seen.

        See `LabelQuality`. None without ids, and before an epoch has ended.
        """
        return None if self._quality is None else self._quality.value

    def end_epoch(self, step: int | None = None, *, expected: float | None = None) -> EpochSummary:
        """Summarise the epoch, append it to the history, and begin a new one with the next batch.

        Parameters
        ----------
        step : int, optional
            The caller's clock, such as the optimiser's step; default the number of the epoch.
        expected : int, optional
            Samples that a whole epoch has, so that one cut short is known; no rule keeps it. Default
            with ids what `num_samples` says, and from the second epoch on the rows of the epoch
            before. Rows count, so that a sampler may draw with replacement, and a loader may drop
            what does not fill a batch. Without ids unknown.

        Returns
        -------
        EpochSummary
            In plain numbers; waits for the device once.

        Raises
        ------
        ValueError
            If no score came since the last call.
        """
        self._flush()
        moments, omitted = self._moments, self._omitted
        if self._slots is not None:
            moments = Moments.from_batch(self._slots.scores)
            came = int((self._slots.seen_in >= 0).sum())
            omitted = came - int(moments.count)
            if expected is None and came:
                expected = expected_samples(
                    came,
                    rows=self._rows,
                    total=self.num_samples,
                    batch=self._largest,
                    before=self._before,
                )
            self._before = self._rows
        if self._ended or (int(moments.count) == 0 and omitted == 0):
            raise ValueError(
                "an epoch must have scores, got none since the last `end_epoch`; "
                "call `update` for every batch"
            )
        summary = EpochSummary.from_summary(
            summarize(moments, beta=self.beta),
            epoch=len(self.history),
            step=None if step is None else check_integer("step", step, least=0),
            omitted=omitted,
            expected=expected,
        )
        if self._quality is not None and self._slots is not None:
            self._quality.update(self._slots.scores, summary)
        self.history.append(summary)
        self._ended = True
        return summary

    def merge(self, other: GWATracker) -> None:
        """Add the epoch in progress of another tracker (a rank, a shard) to this one.

        Parameters
        ----------
        other : GWATracker
            With the same `num_samples` and `beta`. A sample that both saw keeps the score of the
            earlier batch, which is the one a single process would have counted.

        Raises
        ------
        ValueError
            If the trackers do not belong together.
        """
        ours, theirs = (self.num_samples, self.beta), (other.num_samples, other.beta)
        if ours != theirs:
            raise ValueError(f"`other` must agree in num_samples, beta: {ours}, got {theirs}")
        other._flush()
        if other._by_id is None or other._ended:
            return
        if self._ended:
            self._reset()
        self._flush()
        if self._by_id is not None and self._by_id != other._by_id:
            raise ValueError(
                "`other` must have ids if this tracker has them, got one "
                f"{'with' if other._by_id else 'without'} them"
            )
        self._by_id = other._by_id
        self._batches = max(self._batches, other._batches)
        self._rows += other._rows
        # Each of them may have dropped what did not fill a batch.
        self._largest += other._largest
        self._omitted += other._omitted
        self._moments = self._moments.merge(other._moments)
        self._stream = [*self._stream, *other._stream]
        if other._slots is not None:
            self._slots = self._slots or Slots(len(other._slots.scores), other._slots.scores.dtype)
            self._slots.merge(other._slots)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain NumPy and Python values, with a version."""
        self._flush()
        return {
            "version": STATE_VERSION,
            "num_samples": self.num_samples,
            "beta": self.beta,
            "history": [summary._asdict() for summary in self.history],
            "ended": self._ended,
            "by_id": self._by_id,
            "batches": self._batches,
            "rows": self._rows,
            "largest": self._largest,
            "before": self._before,
            "omitted": self._omitted,
            "moments": [np.array(field) for field in self._moments],
            "stream": np.concatenate(self._stream) if self._stream else None,
            "by_sample": None if self._slots is None else self._slots.state_dict(),
            "quality": None if self._quality is None else self._quality.state_dict(),
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
            If it is of another version or of another training set; the tracker is unchanged then.
        """
        found = state.get("version"), state.get("num_samples")
        if found != (STATE_VERSION, self.num_samples):
            raise ValueError(
                f"`state` must be of version {STATE_VERSION} and {self.num_samples} samples, got "
                f"{found[0]!r} and {found[1]!r}; it is of another gwa-core or another training set"
            )
        self._reset()
        self.beta = state["beta"]
        self.history = [EpochSummary(**summary) for summary in state["history"]]
        self._ended = state["ended"]
        self._by_id = state["by_id"]
        self._batches = state["batches"]
        self._rows, self._largest = state["rows"], state["largest"]
        self._before = state["before"]
        self._omitted = state["omitted"]
        self._moments = Moments(*(np.array(field) for field in state["moments"]))
        self._stream = [] if state["stream"] is None else [np.array(state["stream"])]
        self._slots = Slots.from_state(state["by_sample"]) if state["by_sample"] else None
        if self._quality is not None:
            self._quality.load_state_dict(state["quality"])
