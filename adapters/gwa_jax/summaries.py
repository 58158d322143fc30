"""What is known at the end of an epoch, and the beginning of the next one."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from gwa_core import EpochSummary, Moments, summarize
from gwa_core.attribution import QualitySums, epoch_weight
from gwa_core.history import expected_samples
from gwa_jax._rows import NEVER
from gwa_jax._sequences import finished, kind
from gwa_jax._tracing import automatic, lenient, spec
from gwa_jax.scoring import Array
from gwa_jax.state import State, empty

__all__ = ["end_epoch", "fetch", "label_quality", "scores", "summary"]


def scores(state: State) -> Array | None:
    """Return the scores of the epoch in progress.

    Parameters
    ----------
    state : State
        Before `end_epoch`.

    Returns
    -------
    array of shape (N,) or None
        By sample id, nan where not seen; None without `num_samples`.
    """
    if not state.values.shape[-1]:
        return None
    return state.values if state.sequences is None else _of_sequences(state)


@jax.jit
@lenient
def _of_sequences(state: State) -> Array:
    found: Array = automatic(finished, spec(state.values), state.values, state.sequences)
    return found


def label_quality(state: State) -> Array | None:
    r"""Return how far each label can be trusted, over the epochs that ended.

    .. math:: q_i = \frac 1 2 \left(1 + \frac {\sum_{t \in S_i} w_t \gamma_{t,i}}
              {\sum_{t \in S_i} w_t}\right)

    Parameters
    ----------
    state : State
        After `end_epoch`.

    Returns
    -------
    array of shape (N,) or None
        By sample id, in [0, 1], low = suspicious; nan where never seen. None without
        `num_samples`.

    Notes
    -----
    The same as `gwa_core.label_quality` of the scores of all epochs, of which the state keeps two
    numbers a sample. Cost: O(N). Runs under jit and vmap.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.3 and Fig. 16; the weights are ours.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import gwa_jax
    >>> state = gwa_jax.init(4)
    >>> for epoch in ([0.5, -0.3, 0.4], [0.6, -0.1, 0.5]):
    ...     state = gwa_jax.add(state, jnp.asarray(epoch), ids=jnp.arange(3))
    ...     state, summary = gwa_jax.end_epoch(state)
    >>> quality = gwa_jax.label_quality(state)
    >>> [round(float(q), 2) for q in quality]
    [0.77, 0.4, 0.72, nan]
    >>> gwa_jax.rank_samples(quality, k=1)
    Array([1], dtype=int32)
    """
    return _quality(state) if state.values.shape[-1] else None


@jax.jit
@lenient
def _quality(state: State) -> Array:
    found: Array = automatic(_value, spec(state.values), state.quality)
    return found


def _value(sums: QualitySums) -> Array:
    value: Array = sums.value
    return value


@functools.partial(jax.jit, static_argnames="beta")
@lenient
def summary(state: State, *, beta: float = 1.2) -> EpochSummary:
    """Summarise the epoch in progress.

    Parameters
    ----------
    state : State
        After at least one update.
    beta : float
        The constant of Eq. 2, default 1.2.

    Returns
    -------
    EpochSummary
        Of 0-D arrays on the device; `fetch` makes numbers of them.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 2.
    """
    ended: EpochSummary = automatic(functools.partial(_summarize, beta=beta), _whole(state), state)
    return ended


def _whole(state: State, expected: Any = None) -> EpochSummary:
    """Return the shardings of a summary, which each device has whole."""
    whole = EpochSummary._make([PartitionSpec()] * len(EpochSummary._fields))  # type: ignore[no-untyped-call]
    known = state.values.shape[-1] > 0 or expected is not None
    return whole if known else whole._replace(expected=None)


def _summarize(state: State, *, beta: float, expected: Any = None) -> EpochSummary:
    moments, omitted, size = state.moments, state.omitted, state.values.shape[0]
    if size:
        values, kept = finished(state.values, state.sequences), state.sequences
        moments = Moments.from_batch(values)
        seen = state.order < NEVER if kept is None else kept.lengths != 0
        omitted = omitted + jnp.sum(seen & ~jnp.isfinite(values), dtype=jnp.int32)
    found = summarize(moments, beta=beta)
    if size and expected is None:
        expected = expected_samples(
            found.count + omitted,
            rows=state.rows,
            # Of sequences the rows are pieces, and nobody knows how many a whole epoch has.
            total=size if state.sequences is None else state.rows,
            batch=state.batch,
            before=state.before,
        )
    # Arrays instead of numbers, until `fetch`.
    fields: dict[str, Any] = found._asdict()
    fields |= {"epoch": state.epoch, "step": state.epoch, "omitted": omitted, "expected": expected}
    return EpochSummary(**fields)


@functools.partial(jax.jit, static_argnames="beta")
@lenient
def end_epoch(
    state: State, *, beta: float = 1.2, expected: Array | float | None = None
) -> tuple[State, EpochSummary]:
    """Summarise the epoch and begin a new one.

    Parameters
    ----------
    state : State
        After the last update of the epoch.
    beta : float
        The constant of Eq. 2, default 1.2.
    expected : int, optional
        Samples that a whole epoch has, so that one cut short is known; no rule keeps it. Default
        with ids what `num_samples` says, and from the second epoch on the rows of the epoch before;
        without ids unknown.

    Returns
    -------
    State, EpochSummary
        The state of the next epoch, and a summary of 0-D arrays; `fetch` makes numbers of them.

    Notes
    -----
    The scores of the epoch go into `label_quality` and are not kept otherwise: call `scores` before
    this function if you need them. An epoch without scores has ``count`` 0 and nan everywhere
    else. Cost: O(N). Runs under jit, scan and vmap.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Algorithm 1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import gwa_jax
    >>> state = gwa_jax.add(gwa_jax.init(), jnp.asarray([0.1, 0.2, 0.6]))
    >>> state, summary = gwa_jax.end_epoch(state)
    >>> round(gwa_jax.fetch(summary).mean, 3), int(state.epoch)
    (0.3, 1)
    """
    expected = None if expected is None else jnp.asarray(expected, state.values.dtype)
    end = functools.partial(_end, beta=beta, expected=expected)
    specs = jax.tree.map(spec, state), _whole(state, expected)
    both: tuple[State, EpochSummary] = automatic(end, specs, state)
    return both


def _end(state: State, *, beta: float, expected: Any) -> tuple[State, EpochSummary]:
    ended, quality = _summarize(state, beta=beta, expected=expected), state.quality
    size, dtype = state.values.shape[0], state.values.dtype
    if size:
        values = finished(state.values, state.sequences)
        quality = quality.add(values, epoch_weight(ended, values))
    predicts = state.predictions is not None
    new = empty(state.epoch + 1, size, dtype, kind(state.sequences), predicts)
    return new._replace(before=state.rows, quality=quality), ended


def fetch(summary: EpochSummary) -> EpochSummary:
    """Return a summary in plain numbers, for a history, a rule or a log; waits for the device.

    Parameters
    ----------
    summary : EpochSummary
        Of one run; of vmapped ones take ``jax.tree.map(lambda x: x[i], summary)``.

    Returns
    -------
    EpochSummary
        In Python numbers.

    Raises
    ------
    ValueError
        If it has no scores, or is of several runs.
    """
    host: EpochSummary = jax.device_get(summary)
    if np.ndim(host.mean):
        raise ValueError(
            f"`summary` must be that of one run, got fields of shape {np.shape(host.mean)}; take "
            "one with `jax.tree.map(lambda x: x[i], summary)`"
        )
    counts = {
        name: round(float(getattr(host, name))) for name in ("epoch", "step", "count", "omitted")
    }
    if counts["count"] + counts["omitted"] == 0:
        raise ValueError(
            "an epoch must have scores, got none since the last `end_epoch`; call `update` for "
            "every batch"
        )
    fields: dict[str, Any] = {name: float(x) for name, x in host._asdict().items() if x is not None}
    if host.expected is not None:
        counts["expected"] = round(float(host.expected))
    return EpochSummary(**(fields | counts))
