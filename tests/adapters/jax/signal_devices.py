"""Follow signals on eight devices as on one, and print how far apart the results are.

A process of its own: the number of host devices is fixed when JAX starts.
"""

from __future__ import annotations

import functools
import json
import os

flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gwa_jax import signals

P = PartitionSpec
# One that needs latents, and those that compare epochs.
NAMES = ("gradient_norm", "variability", "forgetting_events", "prediction_changes")
BATCHES, ROWS, C, D, SAMPLES = 2, 32, 5, 6, 56


def data(epoch):
    """Logits, latents, labels, ids and mask; the last rows are padding with ids of the first."""
    rng = np.random.default_rng(epoch)
    logits = jnp.asarray(rng.standard_normal((BATCHES, ROWS, C)), jnp.float32)
    latents = jnp.asarray(rng.standard_normal((BATCHES, ROWS, D)), jnp.float32)
    labels = jnp.asarray(np.random.default_rng(9).integers(0, C, (BATCHES, ROWS)))
    row = jnp.arange(BATCHES * ROWS).reshape(BATCHES, ROWS)
    return logits, latents, labels, row % SAMPLES, row < SAMPLES


def step(state, logits, latents, targets, ids, where, *, by_id, axis_name=None):
    """Update as a user's step does."""
    return signals.update(
        state,
        logits=logits,
        latents=latents,
        targets=targets,
        ids=ids if by_id else None,
        where=where,
        axis_name=axis_name,
    )


def run(update, place=lambda _, x: x, *, by_id):
    """Run two epochs; `place` says where an array lies."""
    names = NAMES if by_id else NAMES[:1]
    state = signals.init(names, SAMPLES if by_id else None)
    state, history = jax.tree.map(lambda x: place("state", x), state), []
    for epoch in range(2):
        given = data(epoch)
        for k in range(BATCHES):
            state = update(state, *(place("batch", x[k]) for x in given))
        state, means = signals.end_epoch(state)
        history.append(means)
    by_sample = [signals.values(state), signals.over_epochs(state)] if by_id else []
    return jax.device_get((history, by_sample))


def apart(found, wanted):
    """Return the largest distance, relative to the larger of 1."""
    distance = 0.0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (np.isnan(a) == np.isnan(b)).all(), (a, b)
        difference = np.abs(a - b) / np.maximum(1.0, np.abs(b))
        distance = max(distance, float(np.nan_to_num(difference).max(initial=0.0)))
    return distance


def global_arrays(devices, specs, kind=AxisType.Auto):
    """Run under jit with a mesh; XLA splits the work, or the types say how."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(kind,))

    def place(name, x):
        axes = specs[name] if x.ndim and x.shape[0] % devices == 0 else ()
        return jax.device_put(x, NamedSharding(mesh, P(*axes[: x.ndim])))

    def way(by_id):
        update = jax.jit(functools.partial(step, by_id=by_id), donate_argnums=0)
        return run(update, place, by_id=by_id)

    return way


def shard_map(by_id):
    """Run each device on its piece of the batch."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = (P("data"),) * 5
    update = jax.shard_map(
        functools.partial(step, by_id=by_id, axis_name="data"),
        mesh=mesh,
        in_specs=(P(), *rows),
        out_specs=P(),
    )
    return run(jax.jit(update), by_id=by_id)


BY_SAMPLES = {"batch": ("data",), "state": ("data",)}

WAYS = {
    "data parallel": global_arrays(8, {"batch": ("data",), "state": ()}),
    "state by samples": global_arrays(8, BY_SAMPLES, AxisType.Explicit),
    "shard_map": shard_map,
}


def main():
    """Print the distances as JSON."""
    one = run(jax.jit(functools.partial(step, by_id=True)), by_id=True)
    found = {name: apart(way(True), one) for name, way in WAYS.items()}
    one = run(jax.jit(functools.partial(step, by_id=False)), by_id=False)
    found["shard_map, without ids"] = apart(shard_map(False), one)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
