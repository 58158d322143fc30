"""From scores to samples: rankings, and label quality from trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from gwa_core._lib.array import (
    Array,
    constant,
    device_of,
    is_floating,
    is_host,
    map_rows,
    namespace,
    quiet,
    result_dtype,
    scalar,
    to_numpy,
)
from gwa_core._lib.checks import check_choice, check_positive_int
from gwa_core._lib.numerics import divide_or_zero
from gwa_core.history import EpochSummary
from gwa_core.score import Summary, summarize

__all__ = ["LabelQuality", "epoch_weights", "label_quality", "rank_samples"]

STATE_VERSION = 1

# Samples at once: few enough for the temporaries to stay in the cache.
BLOCK_ROWS = 1 << 16

Order: TypeAlias = Literal["lowest", "highest"]
Method: TypeAlias = Literal["separation", "mean"]
# What an epoch counts in any case: an excess over one group that is smaller may be chance.
FLOOR = 0.02


def rank_samples(
    scores: Array,
    *,
    k: int,
    order: Order = "lowest",
    targets: Array | None = None,
    per_class: bool = False,
) -> Array:
    """Return the indices of the k samples of lowest or highest score.

    Parameters
    ----------
    scores : array of shape (N,)
        Alignment scores or label quality; nan is never ranked.
    k : int
        How many, at most N.
    order : {"lowest", "highest"}
        Which end, default the suspicious one.
    targets : integer array of shape (N,), optional
        Class numbers; needed for `per_class`.
    per_class : bool
        Rank within each class.

    Returns
    -------
    integer array of shape (k,), or (C, k) with `per_class`
        In order, ties by index; -1 where a class has fewer than k ranked samples.

    Raises
    ------
    TypeError, ValueError
        On shapes and options that do not fit.

    Notes
    -----
    Cost: one sort, O(N log N); with `per_class` one sort a class. Runs under jit, except that
    `per_class` reads the number of classes from the values of `targets`.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.3, Fig. 4.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import rank_samples
    >>> scores = np.asarray([0.3, -0.2, np.nan, 0.1])
    >>> rank_samples(scores, k=2)
    array([1, 3])
    >>> rank_samples(scores, k=2, targets=np.asarray([0, 1, 1, 0]), per_class=True)
    array([[ 3,  0],
           [ 1, -1]])
    """
    check_choice("order", order, get_args(Order))
    k = check_positive_int("k", k)
    xp = namespace(scores=scores, targets=targets)
    if scores.ndim != 1 or not is_floating(xp, scores) or k > scores.shape[0]:
        raise ValueError(
            f"`scores` must be floating point (N,) with N >= k = {k}, got {scores.dtype} of "
            f"shape {tuple(scores.shape)}"
        )
    last = xp.where(xp.isnan(scores), xp.inf, scores if order == "lowest" else -scores)
    ranked = ~xp.isnan(scores)
    if not per_class:
        return _first(xp, last, ranked, k)
    whole = targets is not None and xp.isdtype(targets.dtype, "integral")
    if targets is None or not whole or tuple(targets.shape) != tuple(scores.shape):
        got = "None" if targets is None else f"{targets.dtype} of shape {tuple(targets.shape)}"
        raise ValueError(
            f"`targets` must be (N,) = ({scores.shape[0]},) integers with `per_class`, got {got}"
        )
    classes = int(xp.max(targets)) + 1
    if classes < 1:
        raise ValueError(f"`targets` must hold class numbers from 0, got {classes - 1} at most")
    rows = []
    for label in range(classes):
        member = ranked & (targets == label)
        rows.append(_first(xp, xp.where(member, last, xp.inf), member, k))
    return xp.stack(rows)


def _first(xp: Any, keys: Array, ranked: Array, k: int) -> Array:
    order = xp.argsort(keys, stable=True)
    # A sample that is left out has the largest key, but so may one whose score is infinite.
    order = xp.take(order, xp.argsort(xp.astype(~xp.take(ranked, order), xp.int32), stable=True))
    top = order[:k]
    return xp.where(xp.take(ranked, top), top, -1)


def label_quality(
    history: Array,
    *,
    until: int | None = None,
    weights: Sequence[float] | None = None,
    method: Method = "separation",
) -> Array:
    r"""Return one number a sample from its trajectory: how far its label can be trusted.

    .. math:: q_i = \frac 1 2 \left(1 + \frac {\sum_{t \in S_i} w_t \gamma_{t,i}}
              {\sum_{t \in S_i} w_t}\right), \quad
              w_t = \max\left(\frac 1 {k_t + 3 - s_t^2} - \frac 1 3, 0\right)^2 + 0.02^2

    over the epochs :math:`S_i` in which sample i was seen, with skewness :math:`s_t` and excess
    kurtosis :math:`k_t` of epoch t. Below one half the sample pulled against the head's weights on
    average.

    Parameters
    ----------
    history : array of shape (T, N)
        Alignment scores by epoch and sample; nan where not seen.
    until : int, optional
        Use this many first epochs, each alike; default as `method` says.
    weights : sequence of T floats, optional
        At least 0; in place of those of `method`. All 0 counts all epochs alike. `epoch_weights`
        gives them from summaries.
    method : {"separation", "mean"}
        Epochs count by how far right and wrong labels stand apart in them (default), or alike.

    Returns
    -------
    array of shape (N,)
        In [0, 1], low = suspicious; nan where never seen. Dtype of `history`, at least float32.

    Raises
    ------
    TypeError, ValueError
        On shapes and options that do not fit.

    Notes
    -----
    The fraction is at most 1, for two values alone (Pearson's inequality), and one third for a
    normal distribution: the more an epoch's scores fall into two groups, the more it counts. They
    do while wrong labels are not learned by heart; afterwards there is one group, and in an
    untrained network one with a long tail. Where no epoch has two groups, all count nearly alike.
    A sample that was seen in epochs of weight 0 alone, those without a kurtosis, gets their mean.
    The concept page on label quality gives the evidence for this default. Cost: O(TN). Runs under
    jit, which unrolls the epochs. `LabelQuality` gives the same epoch by epoch, in O(N) memory.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.3 and Fig. 16; the weights are ours.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import label_quality
    >>> label_quality(np.asarray([[0.2, -0.4], [0.4, -0.2]]), method="mean").round(3)
    array([0.65, 0.35])
    """
    check_choice("method", method, get_args(Method))
    xp = namespace(history=history)
    if history.ndim != 2 or not is_floating(xp, history) or 0 in history.shape:
        raise ValueError(
            f"`history` must be floating point (T, N) and not empty, got {history.dtype} of shape "
            f"{tuple(history.shape)}; stack the scores of each epoch"
        )
    if until is not None:
        until = check_positive_int("until", until)
        history = history[:until, ...]
    epochs = [history[t, ...] for t in range(history.shape[0])]
    quality = LabelQuality(history.shape[1])
    if weights is not None:
        given: list[Any] = _checked(weights, until, len(epochs))
    elif until is None and method == "separation":
        given = [epoch_weight(summarize(scores), scores) for scores in epochs]
    else:
        given = [1.0] * len(epochs)
    for scores, weight in zip(epochs, given, strict=True):
        quality._add(scores, scalar(xp, "weight", weight, scores, result_dtype(xp, scores)))
    return quality.value


def _checked(weights: Sequence[float], until: int | None, epochs: int) -> list[float]:
    """Return the weights over the largest, so that they stay in the range of float32."""
    if until is not None:
        raise ValueError(f"`weights` must not be given with `until`, got both (until={until})")
    values = [float(x) for x in weights]
    bad = [x for x in values if not 0.0 <= x < math.inf]
    if len(values) != epochs or bad:
        got = f"{bad[0]} among {len(values)}" if bad else f"{len(values)}"
        raise ValueError(
            f"`weights` must be T = {epochs} finite numbers of at least 0, one for each row of "
            f"`history`, got {got}"
        )
    largest = max(values)
    return [x / largest for x in values] if largest > 0 else values


def epoch_weights(history: Sequence[EpochSummary]) -> list[float]:
    r"""Return how much each epoch counts in `label_quality` by default, from summaries alone.

    .. math:: w_t = \max\left(\frac 1 {k_t + 3 - s_t^2} - \frac 1 3, 0\right)^2 + 0.02^2

    with skewness :math:`s_t` and excess kurtosis :math:`k_t` of epoch t.

    Parameters
    ----------
    history : sequence of EpochSummary
        All epochs in order.

    Returns
    -------
    list of T floats
        In [0, 0.45], to be given to `label_quality` as `weights` where the scores come in pieces; 0
        where the kurtosis is not a number.

    Raises
    ------
    ValueError
        If the history is empty.

    Notes
    -----
    The weight of an epoch depends on it alone. Cost: O(T).

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Fig. 16; Pearson, Phil. Trans. R. Soc. A 216, 1916, for
    the inequality; the weights are ours.

    Examples
    --------
    >>> from gwa_core import EpochSummary, epoch_weights
    >>> row = dict.fromkeys(EpochSummary._fields, 0)
    >>> history = [EpochSummary(**{**row, "kurtosis": value}) for value in (-2.0, -1.0, 0.0)]
    >>> [round(weight, 4) for weight in epoch_weights(history)]
    [0.4448, 0.0282, 0.0004]
    """
    if not history:
        raise ValueError("`history` must have at least one epoch, got none")
    skewness, kurtosis = (
        np.asarray([getattr(summary, name) for summary in history], dtype=np.float64)
        for name in ("skewness", "kurtosis")
    )
    weights: list[float] = _weights(namespace(kurtosis=kurtosis), skewness, kurtosis).tolist()
    return weights


def _weights(xp: Any, skewness: Array, kurtosis: Array) -> Array:
    """Return the weights (T,) of epochs; 0 where there is no kurtosis."""
    with quiet(xp):
        apart = kurtosis + 3.0 - skewness * skewness
        known = xp.isfinite(apart)
        # Less than 1 by rounding alone; 3 is one group, a normal distribution.
        groups = 1.0 / xp.where(known & (apart > 1.0), apart, 1.0) - 1.0 / 3.0
        groups = xp.where(groups > 0.0, groups, 0.0)
    return xp.where(known, groups * groups + FLOOR * FLOOR, 0.0)


class QualitySums(NamedTuple):
    """The sums that label quality is made of, as a pytree: what `LabelQuality` holds.

    Parameters
    ----------
    total : array of shape (N,)
        Weighted sum of each sample's scores.
    share : array of shape (N,)
        Sum of the weights. While all epochs of a sample have weight 0, which are those without a
        kurtosis, they count alike, and this is minus their number.
    """

    total: Array
    share: Array

    @classmethod
    def empty(cls, size: int, like: Array) -> QualitySums:
        """Return the sums of no epoch, in the dtype and on the device of a floating array."""
        xp = namespace(like=like)
        dtype = result_dtype(xp, like)
        # Two arrays: a jitted step may donate both.
        return cls(*(xp.zeros(size, dtype=dtype, device=device_of(like)) for _ in range(2)))

    def add(self, scores: Array, weight: Array) -> QualitySums:
        """Return the sums with an epoch: scores (N,), nan where not seen, and its 0-D weight."""
        xp = namespace(scores=scores)
        scores = xp.astype(scores, self.total.dtype, copy=False)
        seen = xp.isfinite(scores)
        scores = xp.where(seen, scores, 0.0)
        counts = weight > 0
        known = xp.astype(seen, self.total.dtype)
        plain = QualitySums(scores, -known)
        weighted = QualitySums(weight * scores, weight * known)
        return self.merge(
            QualitySums(*(xp.where(counts, a, b) for a, b in zip(weighted, plain, strict=True)))
        )

    def merge(self, other: QualitySums) -> QualitySums:
        """Return the sums of both, as of two shards of the samples or of the epochs."""
        xp = namespace(total=self.total)
        # An epoch that counts displaces epochs that do not.
        ours, theirs = self.share > 0, other.share > 0
        mine = xp.where(theirs & ~ours, 0.0, self.total), xp.where(theirs & ~ours, 0.0, self.share)
        more = (
            xp.where(ours & ~theirs, 0.0, other.total),
            xp.where(ours & ~theirs, 0.0, other.share),
        )
        return QualitySums(mine[0] + more[0], mine[1] + more[1])

    @property
    def value(self) -> Array:
        """Label quality (N,), nan where never seen."""
        xp = namespace(total=self.total)
        average = divide_or_zero(xp, self.total, xp.abs(self.share))
        # Clipped, because a sum of rounded scores may leave [-1, 1] by a bit.
        quality = xp.clip(0.5 * (1.0 + average), 0.0, 1.0)
        return xp.where(self.share == 0, xp.nan, quality)


def epoch_weight(summary: Summary | EpochSummary, like: Array) -> Array:
    """Return how much one epoch counts in `label_quality`, a 0-D array in the dtype of `like`."""
    xp = namespace(like=like)
    dtype = result_dtype(xp, like)
    shape = (scalar(xp, x, getattr(summary, x), like, dtype) for x in ("skewness", "kurtosis"))
    return _weights(xp, *shape)


class LabelQuality:
    """Label quality of each sample, epoch by epoch: `label_quality` without the whole history.

    Parameters
    ----------
    num_samples : int
        N, the size of the training set.

    Raises
    ------
    ValueError
        If `num_samples` is not an integer of at least 1.

    Notes
    -----
    The weight of an epoch depends on its own summary alone, so that two sums a sample suffice,
    which are kept where the scores are. Memory: 8 N bytes for float32 scores, 16 N for float64.
    Cost: O(N) an epoch. Under jit make, update and read it in one function.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.3 and Fig. 16; the weights are ours.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import LabelQuality, rank_samples, summarize
    >>> quality = LabelQuality(3)
    >>> for scores in ([0.2, -0.4, 0.3], [0.4, -0.2, 0.4]):
    ...     scores = np.asarray(scores)
    ...     quality.update(scores, summarize(scores))
    >>> quality.value.round(2)
    array([0.66, 0.36, 0.68])
    >>> rank_samples(quality.value, k=1)
    array([1])
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = check_positive_int("num_samples", num_samples)
        self._sums: QualitySums | None = None

    def update(self, scores: Array, summary: Summary | EpochSummary) -> None:
        """Add the scores of an epoch, or of one rank of it.

        Parameters
        ----------
        scores : array of shape (N,)
            By sample id, nan where not seen.
        summary : Summary or EpochSummary
            Of the whole epoch, over all ranks. Its skewness and kurtosis say how much the epoch counts.

        Raises
        ------
        ValueError
            If the scores are not floating point (N,).
        """
        xp = namespace(scores=scores)
        if tuple(scores.shape) != (self.num_samples,) or not is_floating(xp, scores):
            raise ValueError(
                f"`scores` must be floating point (N,) = ({self.num_samples},), got "
                f"{scores.dtype} of shape {tuple(scores.shape)}; give one score a sample, by id"
            )
        self._add(scores, epoch_weight(summary, scores))

    def _add(self, scores: Array, weight: Array) -> None:
        sums = self._of(scores) or QualitySums.empty(self.num_samples, scores)

        def part(scores: Array, total: Array, share: Array) -> QualitySums:
            return QualitySums(total, share).add(scores, weight)

        self._sums = self._map(part, sums, scores)

    def _of(self, like: Array) -> QualitySums | None:
        """Return the sums in the namespace and on the device of an array, as after loading."""
        if self._sums is None or not isinstance(self._sums.total, np.ndarray):
            return self._sums
        xp = namespace(like=like)
        return QualitySums(*(constant(xp, x, like, result_dtype(xp, like)) for x in self._sums))

    def merge(self, other: LabelQuality) -> None:
        """Add what another one saw: other epochs, or other samples of the same ones.

        Parameters
        ----------
        other : LabelQuality
            Of the same training set. A sample in an epoch must be in one of the two alone.

        Raises
        ------
        ValueError
            If `other` is of another training set.
        """
        if self.num_samples != other.num_samples:
            raise ValueError(
                f"`other` must have num_samples={self.num_samples}, got {other.num_samples}"
            )
        if other._sums is not None:
            sums = self._of(other._sums.total)
            # One of them may come from a state, whose sums are NumPy arrays.
            theirs = other._sums if sums is None else other._of(sums.total)
            assert theirs is not None  # noqa: S101  # there are sums
            sums = sums or QualitySums.empty(self.num_samples, theirs.total)

            def part(a: Array, b: Array, total: Array, share: Array) -> QualitySums:
                return QualitySums(total, share).merge(QualitySums(a, b))

            self._sums = self._map(part, sums, *theirs)

    @staticmethod
    def _map(part: Callable[..., QualitySums], sums: QualitySums, *arrays: Array) -> QualitySums:
        """Apply a row-wise function; in NumPy block by block, into the sums themselves."""
        if not is_host(*sums, *arrays):
            return part(*arrays, *sums)
        for begin in range(0, len(sums.total), BLOCK_ROWS):
            rows = slice(begin, begin + BLOCK_ROWS)
            for old, new in zip(sums, part(*(x[rows] for x in (*arrays, *sums))), strict=True):
                old[rows] = new
        return sums

    @property
    def value(self) -> Array | None:
        """Label quality (N,) in [0, 1], low = suspicious; nan where never seen, None before scores.

        Where the scores are; a NumPy array after `load_state_dict`, until the next `update`.
        """
        if self._sums is None:
            return None
        xp = namespace(total=self._sums.total)
        return map_rows(lambda *sums: QualitySums(*sums).value, xp, *self._sums, row_bytes=32)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain NumPy and Python values, with a version (waits for the device)."""
        sums = None if self._sums is None else [to_numpy(x).copy() for x in self._sums]
        return {"version": STATE_VERSION, "num_samples": self.num_samples, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; the sums go to where the next scores are.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        ValueError
            If it is of another version or another training set; nothing is changed then.
        """
        found = state.get("version"), state.get("num_samples")
        if found != (STATE_VERSION, self.num_samples):
            raise ValueError(
                f"`state` must be of version {STATE_VERSION} and {self.num_samples} samples, got "
                f"{found[0]!r} and {found[1]!r}; it is of another gwa-core or another training set"
            )
        sums = state["sums"]
        self._sums = None if sums is None else QualitySums(*(np.array(x) for x in sums))
