"""Norms of gradients and disparity of mini-batches for parts of a network, against float64 loops."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose

from gwa_core import signals
from gwa_jax import layer_gradient_disparity, layer_gradient_norms

C, D, INPUTS, B, S = 4, 6, 5, 7, 3
STAGES = {"head": "head.kernel", "body": ["body"], "full": ""}


def network():
    rng = np.random.default_rng(0)
    shapes = {"body": {"kernel": (INPUTS, D)}, "head": {"bias": (C,), "kernel": (D, C)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape) / 2, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def batches(size=B, count=S):
    rng = np.random.default_rng(1)
    return [
        (
            jnp.asarray(rng.standard_normal((size, INPUTS)), jnp.float32),
            jnp.asarray(rng.integers(0, C, size)),
        )
        for _ in range(count)
    ]


def latents_of(params, x):
    return jnp.tanh(x @ params["body"]["kernel"])


def logits_of(params, x):
    return latents_of(params, x) @ params["head"]["kernel"] + params["head"]["bias"]


def loss_fn(params, x, y):
    return -jax.nn.log_softmax(logits_of(params, x))[y]


def picked(tree):
    """The flat arrays of each stage."""
    leaves = {
        "head": [tree["head"]["kernel"]],
        "body": [tree["body"]["kernel"]],
        "full": jax.tree.leaves(tree),
    }
    return {
        stage: np.concatenate([np.asarray(x, np.float64).ravel() for x in some])
        for stage, some in leaves.items()
    }


@pytest.fixture(scope="module")
def expected():
    """Of each mini-batch the losses and gradients of its samples, one by one in float64."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), network())
        both = jax.jit(jax.value_and_grad(loss_fn))
        found = []
        for x, y in batches():
            rows = zip(jnp.asarray(np.asarray(x, np.float64)), y, strict=True)
            made = [both(params, *row) for row in rows]
            losses = np.array([float(loss) for loss, _ in made])
            gradients = [picked(gradient) for _, gradient in made]
            found.append((losses, {k: np.stack([g[k] for g in gradients]) for k in STAGES}))
    return found


@pytest.fixture(scope="module")
def measured():
    """Norms of the first mini-batch and disparity of all, in one compilation; names in order."""
    names = []

    @jax.jit
    def measure(params, batches):
        norms = {
            size: layer_gradient_norms(
                loss_fn, params, *batches[0], STAGES, chunk_size=size or None
            )
            for size in (0, 3)
        }
        found = layer_gradient_disparity(loss_fn, params, batches, STAGES)
        # JAX sorts the keys of what a jitted function returns.
        names.extend([list(norms[0]), list(found)])
        return norms, found

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return *measure(network(), batches()), names


def rescaled(losses, gradients):
    """The gradient of mean over deviation, by the rule of the quotient."""
    mean, deviation = losses.mean(), losses.std(ddof=1)
    of_mean = gradients.mean(axis=0)
    of_deviation = (losses - mean) @ gradients / (len(losses) - 1) / deviation
    return of_mean / deviation - mean * of_deviation / deviation**2


def disparity(expected, stage):
    made = [rescaled(losses, gradients[stage]) for losses, gradients in expected]
    return np.mean([np.linalg.norm(a - b) for a, b in combinations(made, 2)])


@pytest.mark.parametrize("size", [0, 3])
def test_norms_equal_the_loop(expected, measured, size):
    norms = measured[0][size]
    for stage in STAGES:
        assert norms[stage].dtype == jnp.float32
        wanted = np.linalg.norm(expected[0][1][stage], axis=1)
        assert_allclose(norms[stage], wanted, rtol=1e-5)


def test_the_kernel_of_the_head_has_the_closed_forms(measured):
    params, given = network(), batches()
    norms, found = measured[0][0]["head"], measured[1]["head"]
    x = jnp.stack([x for x, _ in given])
    with jax.numpy_rank_promotion("allow"):
        z, logits = (np.asarray(jax.jit(f)(params, x)) for f in (latents_of, logits_of))
    labels = np.stack([np.asarray(y) for _, y in given])
    core = signals.gradient_norm(latents=z[0], logits=logits[0], targets=labels[0])
    assert_allclose(norms, core, rtol=1e-5)
    core = signals.head_gradient_disparity(latents=z, logits=logits, targets=labels)
    assert_allclose(found, core, rtol=1e-5)


def test_norms_neither_overflow_nor_vanish():
    x = jnp.asarray([[3e30, 4e30], [3e-30, 4e-30]])

    def loss_fn(kernel, x, y):
        return jnp.dot(x, kernel) * y

    norms = jax.jit(lambda *args: layer_gradient_norms(loss_fn, *args))(jnp.ones(2), x, jnp.ones(2))
    assert_allclose(norms["full"], [5e30, 5e-30], rtol=1e-6)


def test_disparity_equals_the_loop(expected):
    traced = []

    @jax.jit
    def measure(params, batches):
        traced.append(1)
        return layer_gradient_disparity(loss_fn, params, batches, STAGES)

    for _ in range(2):
        found = measure(network(), batches())
    assert len(traced) == 1
    for stage in STAGES:
        assert found[stage].dtype == jnp.float32
        assert_allclose(found[stage], disparity(expected, stage), rtol=1e-5)
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x, np.float64)) if x.dtype == jnp.float32 else x,
            (network(), batches()),
        )
        found = measure(*wide)
        for stage in STAGES:
            assert_allclose(found[stage], disparity(expected, stage), rtol=1e-12)


def test_the_same_as_pytorch(measured):
    torch = pytest.importorskip("torch")
    from torch import nn

    import gwa_torch

    params, given = network(), batches()
    model = nn.Sequential(nn.Linear(INPUTS, D, bias=False), nn.Tanh(), nn.Linear(D, C))
    with torch.no_grad():
        for layer, own in ((model[0], params["body"]), (model[2], params["head"])):
            layer.weight.copy_(torch.tensor(np.asarray(own["kernel"]).T))
        model[2].bias.copy_(torch.tensor(np.asarray(params["head"]["bias"])))
    there = [(torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y)).long()) for x, y in given]
    stages, loss = {"head": "2.weight", "body": "0", "full": ""}, nn.CrossEntropyLoss()
    pairs = [
        (
            measured[0][0],
            gwa_torch.layers.layer_gradient_norms(model, loss, *there[0], stages),
        ),
        (
            measured[1],
            gwa_torch.layers.layer_gradient_disparity(model, loss, there, stages),
        ),
    ]
    for (ours, theirs), names in zip(pairs, measured[2], strict=True):
        assert names == list(theirs)
        for stage, value in ours.items():
            assert_allclose(value, theirs[stage].numpy(), rtol=2e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(expected, kind):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(kind,))
    whole, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    params, given = jax.device_put(network(), whole), jax.device_put(batches(), rows)
    norms = jax.jit(lambda *args: layer_gradient_norms(loss_fn, *args))(params, *given[0])["full"]
    assert_allclose(norms, np.linalg.norm(expected[0][1]["full"], axis=1), rtol=1e-5)
    found = jax.jit(lambda *args: layer_gradient_disparity(loss_fn, *args))(params, given)["full"]
    assert_allclose(found, disparity(expected, "full"), rtol=1e-5)


def test_no_gradient_flows_through():
    params, given = network(), batches()

    def measure(params):
        norms = layer_gradient_norms(loss_fn, params, *given[0])["full"]
        return jnp.sum(norms) + layer_gradient_disparity(loss_fn, params, given)["full"]

    for leaf in jax.tree.leaves(jax.jit(jax.grad(measure))(params)):
        np.testing.assert_array_equal(leaf, 0.0)


def test_equal_losses_have_no_disparity():
    params = network()
    params["head"] = jax.tree.map(jnp.zeros_like, params["head"])
    assert np.isnan(layer_gradient_disparity(loss_fn, params, batches())["full"])


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([], ValueError, "`batches` must be .* got sizes of none"),
        (batches(count=1), ValueError, "`batches` must be .* got sizes 7; leave the rest"),
        (batches() + batches(3), ValueError, "of one size, .* got sizes 7, 7, 7, 3, 3, 3"),
        (batches(size=1), ValueError, "at least two samples, got sizes 1, 1, 1"),
        ([(x, y[:-1]) for x, y in batches()], ValueError, "`batches`: .* same number of samples"),
        ([(x, 0) for x, _ in batches()], TypeError, "`batches`: .* must be arrays"),
    ],
    ids=["none", "one", "of other sizes", "of one sample", "fewer targets", "a number"],
)
def test_what_does_not_fit_is_refused(given, error, words):
    with pytest.raises(error, match=words):
        layer_gradient_disparity(loss_fn, network(), given)
