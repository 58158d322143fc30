"""Run on eight devices what one device does, and print how far apart the results are.

A process of its own: the number of host devices is fixed when JAX starts.
"""

from __future__ import annotations

import functools
import json
import os
import warnings

flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gwa_jax

P = PartitionSpec
BATCHES, ROWS, C, D = 3, 32, 8, 6
SAMPLES = BATCHES * ROWS - 6
SEQUENCES = "sequences"


def data():
    """Latents, kernel, bias and labels; the last six rows are padding with ids of the first."""
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.standard_normal((BATCHES, ROWS, D)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((D, C)), jnp.float32)
    bias = jnp.asarray(rng.standard_normal(C), jnp.float32)
    labels = jnp.asarray(rng.integers(0, C, (BATCHES, ROWS)))
    place = jnp.arange(BATCHES * ROWS).reshape(BATCHES, ROWS)
    return latents, kernel, bias, labels, place % SAMPLES, place < SAMPLES


def soft_cap(logits, labels):
    """Return a loss that the closed form does not know."""
    log_p = jax.nn.log_softmax(3.0 * jnp.tanh(logits / 3.0))
    return -jnp.sum(jnp.where(labels[:, None] == jnp.arange(C)[None], log_p, 0.0))


def step(state, latents, kernel, bias, labels, ids, where, *, by_id, axis_name=None):
    """Update as a user's step does, with ids by targets, without by the gradient of a loss."""
    if by_id == SEQUENCES:
        # Three tokens a row, of which the last one is padding now and then.
        factors = jnp.asarray([1.0, -0.5, 2.0])
        latents = latents[:, None, :] * factors[None, :, None]
        labels = (labels[:, None] + jnp.arange(3)[None]) % C
        where = where[:, None] & ((ids[:, None] + jnp.arange(3)[None]) % 5 > 0)
    logits = jnp.dot(latents, kernel) + bias
    gradients = None if by_id else jax.grad(functools.partial(soft_cap, labels=labels))(logits)
    return gwa_jax.update(
        state,
        latents=latents,
        kernel=kernel,
        logits=logits,
        bias=bias,
        targets=labels if by_id else None,
        logit_gradients=gradients,
        ids=ids if by_id else None,
        where=where,
        axis_name=axis_name,
    )


def run(update, place=None, *, by_id):
    """Run an epoch; `place` says where an array lies."""
    place = place or (lambda _, x: x)
    latents, kernel, bias, labels, ids, where = data()
    kernel, bias = place("kernel", kernel), place("bias", bias)
    reduce = "gradient" if by_id == SEQUENCES else None
    begun = gwa_jax.init(SAMPLES if by_id else None, reduce=reduce)
    state = jax.tree.map(lambda x: place("state", x), begun)
    # Twice: the state of a second epoch must lie where the first one's did.
    for _ in range(2):
        for k in range(BATCHES):
            z, y, i, w = (place("batch", x[k]) for x in (latents, labels, ids, where))
            state = update(state, z, kernel, bias, y, i, w)
        scores = gwa_jax.scores(state)
        state, summary = gwa_jax.end_epoch(state)
    quality = gwa_jax.label_quality(state)
    return scores, gwa_jax.fetch(summary), state, quality


def apart(found, wanted):
    """Return the largest distance of scores and of summaries, relative to the larger of 1."""
    pairs = [(found[k], wanted[k]) for k in (0, 1, 3) if wanted[k] is not None]
    distance = 0.0
    for pair in pairs:
        a, b = (np.asarray(x, np.float64) for x in pair)
        assert (np.isnan(a) == np.isnan(b)).all(), (a, b)
        difference = np.abs(a - b) / np.maximum(1.0, np.abs(b))
        distance = max(distance, float(np.nan_to_num(difference).max(initial=0.0)))
    return distance


def global_arrays(shape, names, specs, kind=AxisType.Auto):
    """Run under jit with a mesh; XLA splits the work, or the types say how."""
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(names))

    def place(name, x):
        spec = P(*specs[name][: x.ndim])
        return jax.device_put(x, NamedSharding(mesh, spec))

    def way(by_id):
        traced = []

        @functools.partial(jax.jit, donate_argnums=0)
        def update(*args):
            traced.append(1)
            return step(*args, by_id=by_id)

        result = run(update, place, by_id=by_id)
        assert len(traced) == 1, "traced again"
        if kind == AxisType.Auto and not specs["state"]:
            assert update._cache_size() == 1, "compiled again"
        return result

    return way


def shard_map(by_id):
    """Run each device on its piece of the batch."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = P("data")
    update = jax.jit(
        jax.shard_map(
            functools.partial(step, by_id=by_id, axis_name="data"),
            mesh=mesh,
            in_specs=(P(), rows, P(), P(), rows, rows, rows),
            out_specs=P(),
        )
    )
    return run(update, by_id=by_id)


def two_axes(by_id):
    """Split the batch over two axes of a mesh."""
    axes = ("replica", "data")
    mesh = jax.make_mesh((2, 4), axes, axis_types=(AxisType.Auto,) * 2)
    rows = P(axes)
    update = jax.jit(
        jax.shard_map(
            functools.partial(step, by_id=by_id, axis_name=axes),
            mesh=mesh,
            in_specs=(P(), rows, P(), P(), rows, rows, rows),
            out_specs=P(),
        )
    )
    return run(update, by_id=by_id)


def pmap(by_id):
    """Run as older code does, with one state a device."""
    update = jax.pmap(
        functools.partial(step, by_id=by_id, axis_name="batch"),
        axis_name="batch",
        in_axes=(None, 0, None, None, 0, 0, 0),
    )

    def whole(state, latents, kernel, bias, *rows):
        split = (x.reshape(8, -1, *x.shape[1:]) for x in (latents, *rows))
        latents, *rows = split
        states = update(state, latents, kernel, bias, *rows)
        first = jax.tree.map(lambda x: x[0], states)
        for a, b in zip(*map(jax.tree.leaves, (states, first)), strict=True):
            np.testing.assert_array_equal(a, np.broadcast_to(b, a.shape))
        return first

    return run(whole, by_id=by_id)


DATA = {"batch": ("data",), "kernel": (), "bias": (), "state": ()}
CLASSES = {"batch": (), "kernel": (None, "model"), "bias": ("model",), "state": ()}
BOTH = CLASSES | {"batch": ("data",)}

WAYS = {
    "data parallel": global_arrays((8,), ("data",), DATA),
    "class-sharded head": global_arrays((8,), ("model",), CLASSES),
    "both": global_arrays((4, 2), ("data", "model"), BOTH),
    "state sharded by samples": global_arrays((2,), ("data",), DATA | {"state": ("data",)}),
    "data parallel, explicit": global_arrays((8,), ("data",), DATA, AxisType.Explicit),
    "class-sharded head, explicit": global_arrays(
        (4, 2), ("data", "model"), BOTH, AxisType.Explicit
    ),
    "state sharded by samples, explicit": global_arrays(
        (2,), ("data",), DATA | {"state": ("data",)}, AxisType.Explicit
    ),
    "shard_map": shard_map,
    "shard_map over two axes": two_axes,
    "pmap": pmap,
}


def main():
    """Print the distances as JSON."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*pmap.*")
    found = {}
    for by_id in (True, False, SEQUENCES):
        one = run(jax.jit(functools.partial(step, by_id=by_id)), by_id=by_id)
        assert one[1].count == SAMPLES
        for name, way in WAYS.items():
            result = way(by_id)
            kind = {True: "with ids", False: "without ids"}.get(by_id, by_id)
            found[f"{name}, {kind}"] = apart(result, one)
            assert int(result[2].epoch) == 2
    print(json.dumps(found))


if __name__ == "__main__":
    main()
