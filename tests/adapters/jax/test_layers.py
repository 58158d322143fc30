"""Alignment of parts of a network, against a loop of autograd in float64; the frozen sketch."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from numpy.testing import assert_allclose, assert_array_equal

from gwa_core import JLSketch, alignment_scores, project
from gwa_jax import jl_layer, layer_alignment

N, C, D, INPUTS = 6, 5, 8, 7
KINDS = ["gaussian", "rademacher", "sparse", "hadamard"]


def batch(rows=N, shape=(INPUTS,), seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((rows, *shape)), jnp.float32)
    return x, jnp.arange(rows) % C


def network(seed=0):
    """Two layers and a head, with biases, as a nested dict with a list inside."""
    rng = np.random.default_rng(seed)

    def layer(i, o):
        kernel, bias = rng.standard_normal((i, o)) / i**0.5, 0.3 * rng.standard_normal(o)
        return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}

    return {"body": [layer(INPUTS, 9), layer(9, D)], "head": layer(D, C)}


def latents_of(params, x):
    for layer in params["body"]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x


def cross_entropy(logits, y):
    return -jax.nn.log_softmax(logits)[y]


def loss_fn(params, x, y):
    head = params["head"]
    return cross_entropy(latents_of(params, x) @ head["kernel"] + head["bias"], y)


@functools.cache
def compiled_gradient(loss_fn):
    """One compilation serves all tests of a loss with parameters of these shapes."""
    return jax.jit(jax.grad(loss_fn))


def by_loop(loss_fn, params, x, y, picks):
    """One backward pass a sample in float64; each of `picks` takes leaves out of the tree."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):

        def wide(leaf):
            floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            return jnp.asarray(np.asarray(leaf, np.float64)) if floating else leaf

        def flat(pick, tree):
            return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in pick(tree)])

        params, x = jax.tree.map(wide, (params, x))
        gradient_of = compiled_gradient(loss_fn)
        scores = {stage: [] for stage in picks}
        for one in zip(x, y, strict=True):
            gradient = gradient_of(params, *one)
            assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(gradient))
            for stage, pick in picks.items():
                g, w = flat(pick, gradient), flat(pick, params)
                scores[stage].append(-(g @ w) / np.linalg.norm(g) / np.linalg.norm(w))
    return {stage: np.array(some) for stage, some in scores.items()}


def jitted(loss_fn, params, x, y, stages=None, **options):
    return jax.jit(lambda *args: layer_alignment(loss_fn, *args, stages, **options))(params, x, y)


def close(found, wanted, atol=2e-6):
    assert_allclose(np.asarray(found, np.float64), wanted, rtol=1e-5, atol=atol)


STAGES = {
    "head": ["head.kernel"],
    "last": ["body.1", "head"],
    "first": "body.0",
    "full": "",
}
PICKS = {
    "head": lambda p: [p["head"]["kernel"]],
    "last": lambda p: jax.tree.leaves([p["body"][1], p["head"]]),
    "first": lambda p: jax.tree.leaves(p["body"][0]),
    "full": jax.tree.leaves,
}


@pytest.fixture(scope="module")
def expected():
    return by_loop(loss_fn, network(), *batch(), PICKS)


@pytest.fixture(scope="module")
def measured():
    """All stages by the number of samples at once, in one compilation."""

    @jax.jit
    def measure(*args):
        return {
            size: layer_alignment(loss_fn, *args, STAGES, chunk_size=size or None)
            for size in (0, 4, 100)
        }

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return measure(network(), *batch())


# Stages


@pytest.mark.parametrize("size", [0, 4, 100])
def test_every_stage_equals_the_loop(expected, measured, size):
    scores = measured[size]
    assert set(scores) == set(STAGES)
    for stage, score in scores.items():
        assert score.shape == (N,)
        assert score.dtype == jnp.float32
        close(score, expected[stage])
    assert not np.allclose(expected["head"], expected["full"], atol=1e-3)


def test_a_list_names_its_own_stages_and_numpy_will_do(expected):
    params, x, y = jax.tree.map(np.asarray, (network(), *batch()))
    scores = layer_alignment(
        loss_fn, params, x, y, ["head.kernel", "body.0"], chunk_size=np.int64(3)
    )
    assert list(scores) == ["head.kernel", "body.0"]
    close(scores["head.kernel"], expected["head"])
    close(scores["body.0"], expected["first"])


def test_float64_is_exact(expected):
    params, (x, y) = network(), batch()
    with jax.enable_x64(True):
        wide, rows = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), (params, x))
        scores = jitted(loss_fn, wide, rows, y)["full"]
        assert scores.dtype == jnp.float64
        assert_allclose(scores, expected["full"], rtol=0, atol=1e-13)


def test_the_kernel_of_the_head_is_what_the_core_measures():
    params, (x, y) = network(), batch()
    scores = jitted(loss_fn, params, x, y, ["head.kernel", "head"])
    head = params["head"]
    z = np.asarray(jax.jit(jax.vmap(latents_of, (None, 0)))(params, x))
    weight, bias = np.asarray(head["kernel"]).T, np.asarray(head["bias"])
    core = alignment_scores(latents=z, weight=weight, bias=bias, targets=np.asarray(y))
    close(scores["head.kernel"], core)
    assert not np.allclose(scores["head.kernel"], scores["head"], atol=1e-4), "bias has no part"


def test_the_same_as_pytorch(measured):
    torch = pytest.importorskip("torch")
    from torch import nn

    import gwa_torch

    params, (x, y) = network(), batch()
    layers = [*params["body"], params["head"]]
    linears = [nn.Linear(*layer["kernel"].shape) for layer in layers]
    with torch.no_grad():
        for linear, layer in zip(linears, layers, strict=True):
            linear.weight.copy_(torch.tensor(np.asarray(layer["kernel"]).T))
            linear.bias.copy_(torch.tensor(np.asarray(layer["bias"])))
    first, second, head = linears
    model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), head)
    there = gwa_torch.layer_alignment(
        model, nn.CrossEntropyLoss(), torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y)).long(),
        {"head": ["4.weight"], "last": ["2", "4"], "first": "0", "full": ""},
    )  # fmt: skip
    for stage, score in measured[0].items():
        close(score, there[stage].numpy())


def test_a_prefix_is_a_whole_name():
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.standard_normal((C, C)), jnp.float32) for _ in range(11)]

    def loss_fn(params, x, y):
        for kernel in params:
            x = jnp.tanh(x @ kernel)
        return cross_entropy(x, y)

    x, y = batch(shape=(C,))
    scores = jitted(loss_fn, params, x, y, ["1", "10"])
    wanted = by_loop(loss_fn, params, x, y, {"1": lambda p: [p[1]], "10": lambda p: [p[10]]})
    for stage, score in scores.items():
        close(score, wanted[stage])


def test_no_gradient_is_taken_of_what_no_stage_names():
    def measure(params, x, y, stages):
        return layer_alignment(loss_fn, params, x, y, stages)

    params, (x, y) = network(), batch()
    large = f"{N},{INPUTS},9]"
    assert large in str(jax.make_jaxpr(measure, static_argnums=3)(params, x, y, ("", "head")))
    assert large not in str(jax.make_jaxpr(measure, static_argnums=3)(params, x, y, ("head",)))


def test_chunks_need_less_memory():
    rows, width = 64, 256
    shapes = jax.ShapeDtypeStruct((width, width), jnp.float32)
    x, y = (jax.ShapeDtypeStruct((rows, width), jnp.float32), jnp.zeros(rows, jnp.int32))

    def needed(size):
        def measure(kernel, x, y):
            return layer_alignment(
                lambda w, x, y: cross_entropy(jnp.tanh(x @ w) @ w, y), kernel, x, y, chunk_size=size
            )

        compiled = jax.jit(measure).lower(shapes, x, y).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(4) < needed(None) / 4


# Inside the user's step


def test_it_is_a_part_of_a_step_and_no_gradient_flows_through_it(expected):
    def loss(params, x, y):
        scores = layer_alignment(loss_fn, params, x, y, ["head.kernel"])["head.kernel"]
        return jnp.mean(jax.vmap(loss_fn, (None, 0, 0))(params, x, y)) + jnp.sum(scores), scores

    def plain(params, x, y):
        return jnp.mean(jax.vmap(loss_fn, (None, 0, 0))(params, x, y))

    traced = []

    @jax.jit
    def step(*args):
        traced.append(1)
        return jax.grad(loss, has_aux=True)(*args)

    params, (x, y) = network(), batch()
    with jax.transfer_guard("disallow"):
        gradient, scores = step(params, x, y)
        step(params, x, y)
    assert len(traced) == 1
    jax.tree.map(
        lambda a, b: assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        gradient, jax.jit(jax.grad(plain))(params, x, y),
    )  # fmt: skip
    assert_allclose(scores, expected["head"], atol=1e-6)


def test_several_seeds_at_once():
    x, y = batch()
    nets = [network(0), network(1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)
    both = jax.jit(jax.vmap(lambda p: layer_alignment(loss_fn, p, x, y)["full"]))(stacked)
    for score, net in zip(both, nets, strict=True):
        close(score, by_loop(loss_fn, net, x, y, PICKS)["full"])


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from gwa_jax.layers import layer_alignment

def loss_fn(w, x, y):
    return -jnp.sum(y * jax.nn.log_softmax(jnp.tanh(x @ w["body"]) @ w["head"]))

def measure(w, x, y):
    return layer_alignment(loss_fn, w, x, y, ["head", ""])

def chunks(w, x, y):
    return layer_alignment(loss_fn, w, x, y, ["head", ""], chunk_size=1)

def head(w, x, y):
    return layer_alignment(loss_fn, w, x, y, ["head"])

keys = jax.random.split(jax.random.key(0), 3)
w = {"body": jax.random.normal(keys[0], (6, 8)), "head": jax.random.normal(keys[1], (8, 4))}
x, y = jax.random.normal(keys[2], (8, 6)), jax.nn.one_hot(jnp.arange(8) % 4, 4)
one = jax.jit(measure)(w, x, y)

def check(function, w_spec, kind=AxisType.Auto):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        put = jax.device_put(w, NamedSharding(mesh, w_spec))
        rows = jax.device_put((x, y), NamedSharding(mesh, P("data")))
        scores = jax.jit(function)(put, *rows)
    for stage in scores:
        np.testing.assert_allclose(scores[stage], one[stage], rtol=1e-5, atol=1e-6)

rows = {"in_specs": (P(), P("data"), P("data")), "out_specs": P("data")}
check(jax.shard_map(measure, **rows), P())
check(jax.shard_map(chunks, **rows), P())
check(jax.shard_map(measure, check_vma=False, **rows), P())
check(jax.shard_map(measure, **rows), P(), AxisType.Explicit)
check(measure, P(None, "model"))
check(chunks, P(None, "model"))
check(measure, P(None, "model"), AxisType.Explicit)
check(chunks, P(None, "model"), AxisType.Explicit)
check(head, P(None, "model"), AxisType.Explicit)
print("equal")
"""


@pytest.mark.slow
def test_samples_on_several_devices():
    # A process of its own: the number of host devices is fixed when JAX starts. Inside shard_map
    # JAX would add up the gradients of all devices, were the parameters not told apart.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHARDED],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr[-3000:]


# Trees


def test_inputs_of_several_arrays_and_keys_of_dropout():
    def loss_fn(params, inputs, target):
        x, key = inputs["x"], inputs["key"]
        kept = jax.random.bernoulli(key, 0.5, x.shape)
        return jnp.sum((jnp.where(kept, x, 0.0) @ params - target["value"]) ** 2)

    x, _ = batch(8)
    params = network()["head"]["kernel"][:INPUTS]
    inputs = {"x": jnp.broadcast_to(x[:1], x.shape), "key": jax.random.split(jax.random.key(0), 8)}
    target = {"value": jnp.ones(8)}
    gradient_of = compiled_gradient(loss_fn)
    for size in (None, 4):
        scores = jitted(loss_fn, params, inputs, target, chunk_size=size)["full"]
        for i in (0, 7):
            one = jax.tree.map(lambda a, i=i: a[i], (inputs, target))
            gradient = np.asarray(gradient_of(params, *one), np.float64).ravel()
            w = np.asarray(params, np.float64).ravel()
            wanted = -(gradient @ w) / np.linalg.norm(gradient) / np.linalg.norm(w)
            close(scores[i], wanted)
        assert len(np.unique(scores)) > 4, "every sample must have its own dropout"


def test_half_precision_is_raised():
    params, (x, y) = network(), batch()
    half = params | {"head": jax.tree.map(lambda a: a.astype(jnp.bfloat16), params["head"])}

    def loss_in_half(params, x, y):
        head = params["head"]
        z = latents_of(params, x).astype(jnp.bfloat16)
        return cross_entropy((z @ head["kernel"] + head["bias"]).astype(jnp.float32), y)

    scores = jitted(loss_in_half, half, x, y, {"head": "head.kernel", "full": ""})
    wanted = by_loop(loss_fn, half, x, y, PICKS)
    for stage, score in scores.items():
        assert score.dtype == jnp.float32
        close(score, wanted[stage], atol=2e-2)


def test_flax_linen():
    linen = pytest.importorskip("flax.linen")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.BatchNorm(use_running_average=True)(linen.Conv(4, (3, 3))(x)))
            return linen.Dense(C)(x.mean((0, 1)))

    x, y = batch(shape=(6, 6, 2))
    with jax.numpy_rank_promotion("allow"):
        variables = jax.jit(Net().init)(jax.random.key(0), x[0])
        variables["batch_stats"] = jax.tree.map(lambda a: a + 0.3, variables["batch_stats"])

        def loss_fn(variables, x, y):
            return cross_entropy(Net().apply(variables, x), y)

        params = variables["params"]
        stats = {"batch_stats": variables["batch_stats"]}
        stages = {"head": "Dense_0.kernel", "conv": ["Conv_0", "BatchNorm_0"], "full": ""}
        scores = jitted(
            lambda params, x, y: loss_fn({"params": params, **stats}, x, y), params, x, y, stages
        )
        picks = {
            "head": lambda v: [v["params"]["Dense_0"]["kernel"]],
            "conv": lambda v: jax.tree.leaves([v["params"]["BatchNorm_0"], v["params"]["Conv_0"]]),
            "full": lambda v: jax.tree.leaves(v["params"]),
        }
        wanted = by_loop(loss_fn, variables, x, y, picks)
        for stage, score in scores.items():
            close(score, wanted[stage])
        # The statistics are no parameters, also where they are given.
        whole = jitted(loss_fn, variables, x, y)["full"]
    assert_allclose(whole, scores["full"], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="'batch_stats' in stage 'batch_stats'; there are params"):
        layer_alignment(loss_fn, variables, x, y, ["batch_stats"])


def nnx_network(nnx):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.body = nnx.List([nnx.Linear(INPUTS, D, rngs=rngs), nnx.Linear(D, D, rngs=rngs)])
            self.again = self.body[1]
            self.norm = nnx.BatchNorm(D, use_running_average=True, rngs=rngs)
            self.calls = nnx.Variable(jnp.zeros(()))
            self.head = nnx.Linear(D, C, rngs=rngs)

        def __call__(self, x):
            x = self.norm(jnp.tanh(self.again(jnp.tanh(self.body[1](self.body[0](x))))))
            self.calls[...] = self.calls[...] + 1.0
            return self.head(x + self.calls[...])

    model = Net(nnx.Rngs(0))
    model.norm.mean[...] = jnp.linspace(0.1, 0.5, D)
    return model


@pytest.fixture(scope="module")
def nnx_parts():
    """A model, its parts, and what the loop says of its parameters."""
    nnx = pytest.importorskip("flax.nnx")
    model = nnx_network(nnx)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(params, x, y):
        return cross_entropy(nnx.merge(graph, params, rest, copy=True)(x), y)

    picks = {
        "head": lambda p: [p["head"]["kernel"][...]],
        "shared": lambda p: jax.tree.leaves(p["again"]),
        "full": jax.tree.leaves,
    }
    return model, graph, params, loss_fn, by_loop(loss_fn, params, *batch(), picks)


@pytest.mark.parametrize("given", ["state", "params alone", "module"])
def test_flax_nnx(nnx_parts, given):
    nnx = pytest.importorskip("flax.nnx")
    model, graph, params, loss_fn, wanted = nnx_parts
    x, y = batch()
    stages = {"head": "head.kernel", "shared": "again", "full": ""}

    def loss_of_all(state, x, y):
        return cross_entropy(nnx.merge(graph, state)(x), y)

    def loss_of_module(model, x, y):
        return cross_entropy(model(x), y)

    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    loss, tree = {
        "state": (loss_of_all, nnx.state(model)),
        "params alone": (loss_fn, params),
        "module": (loss_of_module, model),
    }[given]
    with jax.numpy_rank_promotion("allow"):
        # nnx.jit keeps what is shared; jax.jit would give the loss two variables instead of one.
        jit = nnx.jit if given == "module" else jax.jit
        scores = jit(lambda *args: layer_alignment(loss, *args, stages, chunk_size=3))(tree, x, y)
        for stage, score in scores.items():
            close(score, wanted[stage])
        if given == "module":
            eager = layer_alignment(loss, tree, x, y, ["head.kernel"], chunk_size=3)
            close(eager["head.kernel"], wanted["head"])
    jax.tree.map(assert_array_equal, nnx.to_pure_dict(nnx.state(model)), before)


def test_equinox():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        body: eqx.nn.MLP
        head: eqx.nn.Linear
        table: jax.Array
        key: jax.Array
        name: str = "net"
        scale: float = 2.0

        def __call__(self, x):
            return self.head(self.scale * self.body(x)[self.table])

    one, two = jax.random.split(jax.random.key(0))
    body = eqx.nn.MLP(INPUTS, D, 9, 1, activation=jax.nn.gelu, key=one)
    model = Net(body, eqx.nn.Linear(D, C, key=two), jnp.arange(D)[::-1], two)
    x, y = batch()

    def loss_fn(model, x, y):
        return cross_entropy(model(x), y)

    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_of_arrays(params, x, y):
        return loss_fn(eqx.combine(params, static), x, y)

    stages = {"head": "head.weight", "body": ["body.layers.1", "body.layers.0"], "full": ""}
    picks = {
        "head": lambda p: [p.head.weight],
        "body": lambda p: jax.tree.leaves(p.body),
        "full": jax.tree.leaves,
    }
    found = [
        eqx.filter_jit(layer_alignment)(loss_fn, model, x, y, stages, chunk_size=3),
        jitted(loss_of_arrays, params, x, y, stages),
    ]
    wanted = by_loop(loss_of_arrays, params, x, y, picks)
    for scores in found:
        for stage, score in scores.items():
            close(score, wanted[stage])
    with pytest.raises(ValueError, match="'table' in stage 'table'; there are"):
        layer_alignment(loss_fn, model, x, y, ["table"])


def test_haiku():
    hk = pytest.importorskip("haiku")
    net = hk.without_apply_rng(
        hk.transform(lambda x: hk.Linear(C)(hk.nets.MLP([9, D], activation=jnp.tanh)(x)))
    )
    x, y = batch()
    with jax.numpy_rank_promotion("allow"):
        params = jax.jit(net.init)(jax.random.key(0), x)

        def loss_fn(params, x, y):
            return cross_entropy(net.apply(params, x), y)

        stages = {"head": "linear.w", "body": "mlp", "last": ["mlp/~/linear_1", "linear"]}
        scores = jitted(loss_fn, params, x, y, stages)
        picks = {
            "head": lambda p: [p["linear"]["w"]],
            "body": lambda p: jax.tree.leaves([p["mlp/~/linear_0"], p["mlp/~/linear_1"]]),
            "last": lambda p: jax.tree.leaves([p["linear"], p["mlp/~/linear_1"]]),
        }
        wanted = by_loop(loss_fn, params, x, y, picks)
        for stage, score in scores.items():
            close(score, wanted[stage])


# What does not fit


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (["haed"], r"`stages` must name .* got 'haed'.* are head"),
        ({"all": ["head", "zzz"]}, r"got 'zzz' in stage 'all'; there are body, head"),
        (["head.kernal"], r"got 'head.kernal'.* are head.kernel"),
        (["head."], r"got 'head\.'.* are head"),
        ({"none": []}, r"`stages` must have parameters, got stage 'none'"),
        ([], r"`stages` must name at least one part"),
        ({}, r"`stages` must name at least one part"),
        ("hea", r"`stages` must name .* got 'hea' .* are head"),
    ],
)
def test_a_wrong_stage_is_named(stages, words):
    with pytest.raises(ValueError, match=words):
        layer_alignment(loss_fn, network(), *batch(), stages)


def test_a_tree_without_parameters_is_refused():
    with pytest.raises(ValueError, match=r"`stages` must have parameters, got stage 'full'"):
        layer_alignment(loss_fn, {"table": jnp.arange(3), "f": jax.nn.relu}, *batch())


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda p, x, y: loss_fn(p, x, y)[None], r"must return one .* got float32\[1\]"),
        (lambda p, x, y: (loss_fn(p, x, y), x), r"must return one .* got tuple.* loss alone"),
        (lambda *_: 1.0, r"must return one .* got float"),
        (lambda *args: args[2], r"must return one .* got int32\[\]"),
    ],
    ids=["vector", "auxiliary", "number", "integer"],
)
@pytest.mark.parametrize("size", [None, 2])
def test_a_loss_that_is_not_one_number_is_refused(loss, words, size):
    with pytest.raises(ValueError, match=f"`loss_fn` {words}"):
        layer_alignment(loss, network(), *batch(), chunk_size=size)


def test_what_does_not_fit_is_refused():
    params, (x, y) = network(), batch()

    def call(x=x, y=y, **options):
        return layer_alignment(loss_fn, params, x, y, **options)

    with pytest.raises(ValueError, match="same number of samples, at least one, got 6, 5"):
        call(y=y[:5])
    with pytest.raises(ValueError, match="same number of samples, at least one, got 6, 4, 6"):
        call(x=(x, x[:4]))
    with pytest.raises(ValueError, match="same number of samples, at least one, got 0, 0"):
        call(x=x[:0], y=y[:0])
    with pytest.raises(TypeError, match=r"must be arrays with the samples first.*, int, int"):
        call(y=y.tolist())
    with pytest.raises(TypeError, match=r"must be arrays .* got float32\[6,\s?7\], int32\[\]"):
        call(y=y[0])
    for size in (0, 1.5, True, np.bool_(True), np.float32(2.0)):
        with pytest.raises(ValueError, match="`chunk_size` must be an integer of at least 1"):
            call(chunk_size=size)
    with pytest.raises(TypeError, match="must be floating point, got complex64"):
        layer_alignment(
            lambda w, x, _: jnp.abs(jnp.sum(w)) * jnp.sum(x), jnp.ones(3, jnp.complex64), x, y
        )


# The frozen sketch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [16, 21])
def test_the_layer_is_the_sketch_of_the_core(kind, width):
    z = np.random.default_rng(0).standard_normal((6, width)).astype(np.float32)
    layer = jl_layer(width, 12, kind=kind, seed=5)
    wanted = project(z.astype(np.float64), JLSketch(width, 12, kind=kind, seed=5))
    z = jnp.asarray(z)
    other = jl_layer(width, 12, kind=kind, seed=6)
    calls = jax.jit(lambda z: (layer(z), layer(z.reshape(2, 3, -1)), jax.vmap(layer)(z), other(z)))
    whole, tokens, rows, seeded = calls(z)
    assert whole.dtype == jnp.float32
    for made in (whole, tokens.reshape(6, 12), rows):
        assert_allclose(made, wanted, rtol=1e-5, atol=1e-5)
    assert not np.allclose(seeded, wanted, atol=0.1)
    if kind == "gaussian":
        assert_allclose(layer(z), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sketch_is_that_of_pytorch(kind):
    pytest.importorskip("torch")
    from gwa_torch import JLHead

    ours = jax.jit(jl_layer(21, 12, kind=kind, seed=3))(jnp.eye(21))
    there = JLHead(21, 3, 12, kind=kind, seed=3).sketch.numpy().T
    assert_allclose(ours, there, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays(dtype):
    z = jnp.asarray(np.random.default_rng(0).standard_normal((6, 16)), dtype)
    made = jl_layer(16, 12)(z)
    assert made.dtype == dtype
    wanted = project(np.asarray(z, np.float64), JLSketch(16, 12))
    # Nothing but the result is rounded.
    assert_allclose(
        np.asarray(made, np.float64), wanted, rtol=float(jnp.finfo(dtype).eps), atol=1e-6
    )


def test_gradients_flow_through_it_to_the_latents():
    layer = jl_layer(16, 12)
    z = jnp.linspace(-1.0, 1.0, 16)
    matrix = project(np.eye(16), JLSketch(16, 12))
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(layer(z) ** 2)))(z)
    assert_allclose(gradient, 2 * matrix @ (matrix.T @ np.asarray(z)), rtol=1e-5, atol=1e-5)
    half = jax.grad(lambda z: jnp.sum(layer(z).astype(jnp.float32)))(z.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    assert_allclose(half.astype(jnp.float32), matrix.sum(1), rtol=1e-2, atol=1e-2)


def test_a_step_brings_nothing_to_the_device():
    layer = jl_layer(16, 12)
    z = jnp.ones((2, 16))
    step = jax.jit(lambda z: layer(z).sum())
    with jax.transfer_guard("disallow"):
        step(z)
        found = step(z)
    assert_allclose(found, layer(z).sum(), rtol=1e-5)


def in_linen():
    linen = pytest.importorskip("flax.linen")
    model = linen.Sequential([linen.Dense(16), jl_layer(16, 12), linen.Dense(C)])
    variables = model.init(jax.random.key(0), jnp.ones((1, INPUTS)))["params"]
    body, head = variables["layers_0"], variables["layers_2"]
    assert len(variables) == 2
    apply = lambda x: model.apply({"params": variables}, x)  # noqa: E731
    return apply, (body["kernel"], body["bias"]), (head["kernel"], head["bias"])


def in_nnx():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(INPUTS, 16, rngs=rngs), jl_layer(16, 12), nnx.Linear(12, C, rngs=rngs)
    model = nnx.Sequential(*layers)
    assert len(jax.tree.leaves(nnx.state(model))) == 4
    return nnx.jit(model), *((x.kernel[...], x.bias[...]) for x in (layers[0], layers[2]))


def in_equinox():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0))
    body, head = eqx.nn.Linear(INPUTS, 16, key=keys[0]), eqx.nn.Linear(12, C, key=keys[1])
    model = eqx.nn.Sequential([body, eqx.nn.Lambda(jl_layer(16, 12)), head])
    assert len(jax.tree.leaves(eqx.filter(model, eqx.is_array))) == 4
    return eqx.filter_jit(lambda x: jax.vmap(model)(x)), *(
        (x.weight.T, x.bias) for x in (body, head)
    )


def in_haiku():
    hk = pytest.importorskip("haiku")
    layers = lambda: hk.Sequential([hk.Linear(16), jl_layer(16, 12), hk.Linear(C)])  # noqa: E731
    net = hk.without_apply_rng(hk.transform(lambda x: layers()(x)))
    params = net.init(jax.random.key(0), jnp.ones((1, INPUTS)))
    assert len(params) == 2
    both = ((params[name]["w"], params[name]["b"]) for name in ("linear", "linear_1"))
    return jax.jit(lambda x: net.apply(params, x)), *both


@pytest.mark.parametrize("make", [in_linen, in_nnx, in_equinox, in_haiku])
def test_it_is_a_layer_of(make):
    x, _ = batch()
    with jax.numpy_rank_promotion("allow"):
        apply, (w, b), (v, c) = make()
        w, b, v, c, rows = (np.asarray(a, np.float64) for a in (w, b, v, c, x))
        wanted = project(rows @ w + b, JLSketch(16, 12)) @ v + c
        assert_allclose(apply(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((0,), {}, "`in_features` must be an integer of at least 1, got 0"),
        ((16, 0), {}, "`out_features` must be an integer of at least 1, got 0"),
        ((16, 17), {"kind": "hadamard"}, "`out_features` must be at most 16"),
        ((16,), {"kind": "normal"}, "`kind` must be one of"),
        ((16,), {"seed": -1}, "`seed` must be an integer of at least 0"),
    ],
)
def test_a_wrong_sketch_is_refused(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        jl_layer(*arguments, **options)


def test_latents_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="`x` must be"):
        jl_layer(16)(jnp.ones((2, 15)))
    with pytest.raises(TypeError, match="floating point, got int32"):
        jl_layer(16)(jnp.ones((2, 16), jnp.int32))
