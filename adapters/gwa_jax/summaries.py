"""What is known at the end of an epoch, and the beginning of the next one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from gwa_core import EpochSummary, Moments, summarize
from gwa_jax._rows import NEVER
from gwa_jax._tracing import automatic, lenient, spec
from gwa_jax.scoring import Array
from gwa_jax.state import State, empty

__all__ = ["end_epoch", "fetch", "scores", "summary"]

# A summary lies whole on every device.
WHOLE = EpochSummary(*[PartitionSpec()] * 13)  # type: ignore[arg-type, no-untyped-call]


def scores(state: State) -> Array:
    """Return the scores (N,) of the epoch in flight by sample id, nan where not seen."""
    return state.values


@functools.partial(jax.jit, static_argnames="beta")
@lenient
def summary(state: State, *, beta: float = 1.2) -> EpochSummary:
    """Summarise the epoch in flight.

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
    ended: EpochSummary = automatic(functools.partial(_summarize, beta=beta), WHOLE, state)
    return ended


def _summarize(state: State, *, beta: float) -> EpochSummary:
    moments, omitted = state.moments, state.omitted
    if state.order.shape[0]:
        moments = Moments.from_batch(state.values)
        seen = state.order < NEVER
        omitted = omitted + jnp.sum(seen & ~jnp.isfinite(state.values), dtype=jnp.int32)
    count, *fields = summarize(moments, beta=beta)
    return EpochSummary(
        state.epoch,  # type: ignore[arg-type]  # arrays instead of numbers, until `fetch`
        state.epoch,  # type: ignore[arg-type]
        count,
        omitted,  # type: ignore[arg-type]
        *fields,
    )


@functools.partial(jax.jit, static_argnames="beta")
@lenient
def end_epoch(state: State, *, beta: float = 1.2) -> tuple[State, EpochSummary]:
    """Summarise the epoch and begin a new one.

    Parameters
    ----------
    state : State
        After the last update of the epoch. Its `scores` are gone afterwards.
    beta : float
        The constant of Eq. 2, default 1.2.

    Returns
    -------
    State, EpochSummary
        The state of the next epoch, and a summary of 0-D arrays; `fetch` makes numbers of them.

    Notes
    -----
    An epoch without scores has ``count`` 0 and nan everywhere else. Cost: O(N). Runs under jit,
    scan and vmap.

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

    def end(state: State) -> tuple[State, EpochSummary]:
        new = empty(state.epoch + 1, state.order.shape[0], state.values.dtype)
        return new, _summarize(state, beta=beta)

    both: tuple[State, EpochSummary] = automatic(end, (jax.tree.map(spec, state), WHOLE), state)
    return both


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
    whole = [round(float(field)) for field in host[:4]]
    if whole[2] + whole[3] == 0:
        raise ValueError(
            "an epoch must have scores, got none since the last `end_epoch`; call `update` for "
            "every batch"
        )
    return EpochSummary(*whole, *(float(field) for field in host[4:]))
