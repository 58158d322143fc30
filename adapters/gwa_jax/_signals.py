"""What the functions of `gwa_jax.signals` do where they are traced."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from gwa_core import Moments, summarize
from gwa_core.signals import sample_signals
from gwa_jax._rows import NEVER, place, seen
from gwa_jax._tracing import everywhere
from gwa_jax.scoring import Array

if TYPE_CHECKING:
    from gwa_jax.signals import State

__all__ = ["end", "known_values", "no_moments", "stacked", "take_in"]


def take_in(
    state: State,
    logits: Array,
    targets: Array,
    latents: Array | None,
    ids: Array | None,
    where: Array | None,
    *,
    axis_name: Any,
) -> State:
    """Return the state after a batch."""
    found = sample_signals(
        state.latest,
        logits=logits.reshape(-1, logits.shape[-1]),
        targets=targets.reshape(-1),
        latents=None if latents is None else latents.reshape(-1, latents.shape[-1]),
    )
    where = seen(where, targets.size, axis_name)
    if axis_name is not None:
        found = {name: everywhere(x, axis_name) for name, x in found.items()}
    if ids is None:
        # One call for all signals: each would be compiled on its own.
        merge: Any = jax.vmap(Moments.merge)
        moments = jax.vmap(functools.partial(Moments.from_batch, where=where))(stacked(found))
        return state._replace(moments=merge(state.moments, moments))
    rows = place(state.order, state.rows, ids, where, axis_name)
    return state._replace(
        rows=state.rows + len(where),
        omitted=state.omitted + rows.unknown,
        order=rows.order,
        latest={
            name: state.latest[name].at[rows.slots].set(x.astype(jnp.float32), mode="drop")
            for name, x in found.items()
        },
    )


def end(state: State) -> tuple[State, dict[str, Array]]:
    """Return the state of the next epoch, and the means of the one that ends."""
    size, latest, run = state.order.shape[0], state.latest, state.run
    of: Array | Moments | None = state.moments
    names = sorted(latest)
    if size:
        # By the order alone: an epoch without a row has none of the values before it.
        latest = _where(state.order < NEVER, latest)
        run, of = run.add(latest), stacked(latest)
    means = dict(zip(names, jax.vmap(summarize)(of).mean, strict=True)) | run.means()
    means = {name: means[name] for name in run.kept}
    new = state._replace(
        rows=jnp.zeros((), jnp.int32),
        order=jnp.full((size,), NEVER, jnp.int32),
        latest=latest,
        moments=None if size else no_moments(len(names)),
        run=run,
    )
    return new, means


def known_values(state: State) -> dict[str, Array]:
    """Return the values by sample, nan where it was not seen."""
    # Also of stacked states. Nothing is erased between epochs.
    known = (state.rows[..., None] == 0) | (state.order < NEVER)
    return _where(known, state.latest)


def _where(known: Array, values: dict[str, Array]) -> dict[str, Array]:
    return {name: jnp.where(known, x, jnp.nan) for name, x in values.items()}


def no_moments(signals: int) -> Moments:
    """Return moments of nothing for each signal."""
    moments: Moments = jax.vmap(Moments.empty)(jnp.zeros((signals,), jnp.float32))
    return moments


def stacked(values: dict[str, Array]) -> Array:
    """Stack values in the order of their names."""
    return jnp.stack([values[name] for name in sorted(values)])
