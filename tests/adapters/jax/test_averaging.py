"""The running mean of parameters: any pytree, any dtype, traced or not."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

jax = pytest.importorskip("jax")

import jax.numpy as jnp

import gwa_core
import gwa_jax
from gwa_jax import EpochAverage, average, average_shares, update_share

SEPARATIONS = [0.3, 0.21, 0.55, 0.6, 0.58, 0.4]
HISTORY = [{"separation": value} for value in SEPARATIONS]


def tree(epoch, dtype=jnp.float32):
    """Parameters at the end of an epoch, with a step counter and a key."""
    rng = np.random.default_rng(epoch)
    layers = [{"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4)} for _ in range(2)]
    return {
        "layers": jax.tree.map(lambda x: jnp.asarray(x, dtype), layers),
        "step": jnp.asarray(epoch, jnp.int32),
        "key": jax.random.key(epoch),
    }


def same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = (np.atleast_1d(np.asarray(x)).view(np.uint8) for x in (a, b))
        assert_array_equal(a, b)


def mean_of(epochs, shares):
    """The mean of stored checkpoints, in float64."""
    stacked = [np.stack([np.asarray(x, np.float64) for x in leaves]) for leaves in zip(
        *(jax.tree.leaves(epoch["layers"]) for epoch in epochs), strict=True
    )]  # fmt: skip
    return [np.tensordot(shares, leaf, 1) for leaf in stacked]


def close(mean, wanted, rtol=1e-6):
    for a, b in zip(jax.tree.leaves(mean["layers"]), wanted, strict=True):
        assert_allclose(a, b, rtol=rtol, atol=rtol)


def streamed(epochs, shares, call=average, mean=None):
    for epoch, record in zip(epochs, HISTORY[len(HISTORY) - len(epochs) :], strict=True):
        mean = call(mean, epoch, shares.share(record))
    return mean


@pytest.fixture(scope="module")
def epochs():
    return [tree(epoch) for epoch in range(len(SEPARATIONS))]


@pytest.mark.parametrize("options", [(10.0, 1), (3, 2), (0, 0)], ids=str)
def test_the_streamed_mean_is_that_of_stored_checkpoints(epochs, options):
    mean = streamed(epochs, EpochAverage(*options))
    close(mean, mean_of(epochs, average_shares(HISTORY, *options)))
    # What is no weight is that of the last epoch.
    assert mean["step"] == len(SEPARATIONS) - 1
    same_bits(mean["key"], epochs[-1]["key"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn], ids=str)
def test_half_precision_is_averaged_in_float32(dtype):
    epochs = [tree(epoch, dtype) for epoch in range(len(SEPARATIONS))]
    mean = streamed(epochs, EpochAverage(1, 0))
    assert {x.dtype for x in jax.tree.leaves(mean["layers"])} == {jnp.dtype(jnp.float32)}
    close(mean, mean_of(epochs, average_shares(HISTORY, 1, 0)))
    # The line of the docstring; a share of 1 is exact there and back.
    params = epochs[0]["layers"]
    first = average(None, params, 1.0)
    same_bits(jax.tree.map(lambda m, p: m.astype(p.dtype), first, params), params)


def test_double_precision_and_complex_numbers_stay():
    with jax.enable_x64(True):
        params = {"a": jnp.asarray([1.0 + 2.0j]), "b": jnp.asarray([1.0])}
        wide = average(None, params, 1.0)
        mean = average(wide, jax.tree.map(lambda x: 3.0 * x, params), 1 / 3)
        assert (mean["a"].dtype, mean["b"].dtype) == (jnp.complex128, jnp.float64)
        assert_allclose(mean["a"], [(1 + 2j) * 5 / 3], rtol=1e-15)
        assert_allclose(mean["b"], [5 / 3], rtol=1e-15)


@pytest.mark.parametrize("kind", ["python", "numpy", "device", "traced"])
def test_shares_of_one_and_zero_are_exact(kind):
    make = {"python": float, "numpy": np.float64, "device": jnp.asarray, "traced": jnp.asarray}
    call = jax.jit(average) if kind == "traced" else average
    odd = {"w": jnp.asarray([-0.0, 3e38, 1e-45, 0.1])}
    broken = {"w": jnp.asarray([jnp.nan, -3e38, jnp.inf, 0.2])}
    for mean, params in ((odd, broken), (broken, odd)):
        same_bits(call(mean, params, make[kind](1.0)), params)
        same_bits(call(mean, params, make[kind](0.0)), mean)


def test_under_scan_with_shares_on_the_device(epochs):
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[epoch["layers"] for epoch in epochs])

    @jax.jit
    def run(stacked, separations):
        def epoch(carry, new):
            (mean, total), (params, separation, counts) = carry, new
            share, total = update_share(total, separation, counts=counts)
            return (average(mean, params, share), total), None

        begin = (jax.tree.map(lambda x: jnp.zeros_like(x[0]), stacked), jnp.asarray(-jnp.inf))
        counts = jnp.arange(len(SEPARATIONS)) >= 1
        (mean, _), _ = jax.lax.scan(epoch, begin, (stacked, separations, counts))
        return mean

    mean = run(stacked, jnp.asarray(SEPARATIONS))
    close({"layers": mean}, mean_of(epochs, average_shares(HISTORY, warmup=1)), rtol=2e-6)


def test_under_vmap_each_run_has_its_share():
    means, news = (jnp.arange(6.0).reshape(3, 2) + k for k in (0.0, 10.0))
    got = jax.vmap(average)({"w": means}, {"w": news}, jnp.asarray([0.0, 0.25, 1.0]))
    assert_allclose(got["w"], means + jnp.asarray([[0.0], [2.5], [10.0]]), rtol=1e-6)


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_a_resumed_mean_is_bitwise_that_of_a_run_without_a_break(epochs, jitted):
    call = jax.jit(average) if jitted else average
    whole = streamed(epochs, EpochAverage(warmup=1), call)
    for stop in range(len(epochs) + 1):
        first = EpochAverage(warmup=1)
        mean = None
        for epoch, record in zip(epochs[:stop], HISTORY, strict=False):
            mean = call(mean, epoch, first.share(record))
        saved = json.dumps(first.state_dict())
        stored = jax.tree.map(jnp.copy, mean)
        second = EpochAverage(warmup=1)
        second.load_state_dict(json.loads(saved))
        same_bits(streamed(epochs[stop:], second, call, stored), whole)


def test_the_mean_shares_no_memory_with_the_parameters():
    params = tree(0)
    mean = average(None, params, 1.0)
    for leaf in jax.tree.leaves(params):
        leaf.delete()
    for share in (0.0, 0.5, 1.0):
        params = tree(1)
        mean = average(mean, params, share)
        for leaf in jax.tree.leaves(params):
            leaf.delete()
    same_bits(mean, tree(1))


def test_a_step_may_donate_the_mean(epochs):
    update = jax.jit(average, donate_argnums=0)
    mean, shares, kept = update(None, epochs[0], 1.0), EpochAverage(warmup=0), []
    for epoch, record in zip(epochs, HISTORY, strict=True):
        kept.append(mean)
        mean = update(mean, epoch, shares.share(record))
    assert all(old["layers"][0]["w"].is_deleted() for old in kept)
    close(mean, mean_of(epochs, average_shares(HISTORY, warmup=0)))


def test_nothing_goes_over_to_the_device_or_back_where_the_share_is_there(epochs):
    mean, share = average(None, epochs[0], 1.0), jnp.asarray(0.5)
    with jax.transfer_guard("disallow"):
        moved = average(mean, epochs[1], share)
    close(moved, mean_of(epochs[:2], [0.5, 0.5]))


def test_new_shares_do_not_compile_again(epochs):
    traced = []

    @jax.jit
    def update(mean, params, share):
        traced.append(1)
        return average(mean, params, share)

    mean = average(None, epochs[0], 1.0)
    for share in (1.0, 0.5, 0.25):
        mean = update(mean, epochs[1], share)
    assert len(traced) == 1


def test_it_takes_the_parameters_of_optax_in_a_training(epochs):
    optax = pytest.importorskip("optax")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    optimizer = optax.adam(0.1)
    params = {"w": jnp.ones((3, 1))}
    state, kept, mean, shares = optimizer.init(params), [], None, EpochAverage(warmup=1)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda p: jnp.mean((jnp.dot(x, p["w"]) - 1.0) ** 2))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for record in HISTORY:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            params, state = step(params, state)
        mean = average(mean, params, shares.share(record))
        kept.append(np.asarray(params["w"], np.float64))
    wanted = np.tensordot(average_shares(HISTORY, warmup=1), np.stack(kept), 1)
    assert_allclose(mean["w"], wanted, rtol=1e-6)
    # Optax's own does the same where nothing is exact, narrow or broken.
    with jax.numpy_dtype_promotion("standard"):
        moved = optax.incremental_update(epochs[0]["layers"], epochs[1]["layers"], 0.3)
    ours = average(epochs[1]["layers"], epochs[0]["layers"], 0.3)
    jax.tree.map(functools.partial(assert_allclose, rtol=1e-5, atol=1e-7), ours, moved)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_nnx_models(dtype):
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(3, 4, rngs=rngs, param_dtype=dtype)
            self.norm = nnx.BatchNorm(4, rngs=rngs, param_dtype=dtype)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs, param_dtype=dtype)

        def __call__(self, x):
            return self.head(self.drop(self.norm(self.hidden(x))))

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model, mean, shares, kept = Network(nnx.Rngs(0)), None, EpochAverage(warmup=1), []
        for record in HISTORY:
            grown = jax.tree.map(lambda x: 1.3 * x + 0.1, nnx.state(model, nnx.Param))
            nnx.update(model, jax.tree.map(lambda x: x.astype(dtype), grown))
            mean = average(mean, nnx.state(model, nnx.Param), shares.share(record))
            kept.append(np.asarray(model.head.kernel[...], np.float64))
        # Keys and statistics are leaves like others.
        same_bits(average(None, nnx.state(model), 1.0)["drop"], nnx.state(model)["drop"])
        wanted = np.tensordot(average_shares(HISTORY, warmup=1), np.stack(kept), 1)
        assert mean["head"]["kernel"][...].dtype == jnp.float32
        assert_allclose(mean["head"]["kernel"][...], wanted, rtol=1e-6)
        own = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda m, p: m.astype(p.dtype), mean, own))
    assert model.head.kernel[...].dtype == dtype
    assert_array_equal(model.head.kernel[...], jnp.asarray(mean["head"]["kernel"][...], dtype))


def test_equinox_models_go_in_as_they_are():
    eqx = pytest.importorskip("equinox")
    key = jax.random.key(0)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = eqx.nn.MLP(3, 2, 4, 1, key=key)
        mean, shares, kept = None, EpochAverage(warmup=1), []
        for record in HISTORY:
            model = jax.tree.map(lambda x: 1.3 * x + 0.1 if eqx.is_array(x) else x, model)
            share = shares.share(record)
            mean = average(mean, model, share)
            kept.append(np.asarray(model.layers[-1].weight, np.float64))
        wanted = np.tensordot(average_shares(HISTORY, warmup=1), np.stack(kept), 1)
        assert_allclose(mean.layers[-1].weight, wanted, rtol=1e-6)
        assert mean.activation is model.activation
        assert mean(jnp.ones(3)).shape == (2,)
        # So does a part of it, and under its own jit.
        arrays, _ = eqx.partition(model, eqx.is_inexact_array)
        part = average(eqx.filter(mean, eqx.is_inexact_array), arrays, 0.5)
        same_bits(
            eqx.filter(eqx.filter_jit(average)(mean, model, jnp.asarray(0.5)), eqx.is_array), part
        )


def test_linen_parameters():
    linen = pytest.importorskip("flax.linen")
    variables = linen.Dense(2).init(jax.random.key(0), jnp.ones((1, 3)))
    other = jax.tree.map(lambda x: x + 1.0, variables)
    mean = average(average(None, variables["params"], 1.0), other["params"], 0.25)
    assert_allclose(mean["kernel"], variables["params"]["kernel"] + 0.25, rtol=1e-6)


SHARDED = """
import os
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import gwa_jax

specs = {"w": P("data"), "b": P()}
host = [{"w": np.random.default_rng(k).normal(size=(8, 2)).astype("f"), "b": np.ones(2, "f") * k}
        for k in range(3)]
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    place = lambda x: {k: jax.device_put(x[k], NamedSharding(mesh, specs[k])) for k in x}
    for call in (gwa_jax.average, jax.jit(gwa_jax.average)):
        mean = one = None
        for params, share in zip(host, (1.0, 0.5, 0.25)):
            one = gwa_jax.average(one, params, share)
            mean = call(mean, place(params), share)
            for k in params:
                assert mean[k].sharding.is_equivalent_to(NamedSharding(mesh, specs[k]), mean[k].ndim)
        for k in mean:
            np.testing.assert_array_equal(mean[k], one[k])
print("same")
"""


def test_the_mean_lies_where_the_parameters_lie():
    places = {str(Path(package.__file__).parent.parent) for package in (gwa_core, gwa_jax)}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", SHARDED]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout == "same\n", done.stderr


@pytest.mark.parametrize(
    ("mean", "share", "message"),
    [
        (
            lambda params: params,
            1.5,
            r"`share` must be in \[0, 1\], got 1.5; usual cause: a signal",
        ),
        (lambda params: params, np.float32("nan"), r"`share` must be in \[0, 1\], got nan"),
        (
            lambda params: params,
            np.ones(2),
            r"`share` must be a number, got an array of shape \(2,\)",
        ),
        (lambda params: params["layers"], 0.5, "`mean` must have the structure of `params`"),
        (
            lambda params: params | {"layers": [{"w": np.ones((3, 5)), "b": np.ones(4)}] * 2},
            0.5,
            r"`mean` must have the shapes of `params`, \(3, 4\) at \['layers'\]\[0\]\['w'\], got \(3,",
        ),
    ],
)
def test_bad_input_is_refused_with_the_reason(mean, share, message):
    with pytest.raises(ValueError, match=message):
        average(mean(tree(0)), tree(1), share)
