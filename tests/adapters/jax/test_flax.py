"""The head of real Flax models is seen as it is, and nothing that they train changes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

jax = pytest.importorskip("jax")
pytest.importorskip("flax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp
from flax import linen, nnx
from flax.training.train_state import TrainState

import gwa_jax
from gwa_jax.flax import GWAMetric, apply_with_head, call_with_head

ROOT = Path(__file__).resolve().parents[3]
FEATURES, CLASSES, ROWS = 4, 3, 12


@pytest.fixture
def _promotion():
    """Adam, and the metrics of Flax, mix integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def data(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(rows, FEATURES)), jnp.float32)
    return x, jnp.asarray(rng.integers(0, CLASSES, rows), jnp.int32)


def cross_entropy(logits, targets):
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def widen(tree):
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def oracle(gradients, kernel, x, targets):
    """γ of the whole model: the gradient of each sample's loss, taken in float64.

    `gradients(kernel, x, targets)` runs the model on each sample with another kernel in its head.
    """
    # Layers of Flax mix float32 into float64.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        kernel, x = widen((kernel, x))
        gradients = gradients(kernel, x, targets)
        assert gradients.dtype == jnp.float64
        gradients, kernel = np.asarray(gradients), np.asarray(kernel)
    axes = tuple(range(1, gradients.ndim))
    length = np.sqrt((gradients**2).sum(axes)) * np.sqrt((kernel**2).sum())
    return -(gradients * kernel).sum(axes) / length


# NNX ---------------------------------------------------------------------------------------------


class Net(nnx.Module):
    def __init__(self, head=None, seed=0):
        rngs = nnx.Rngs(seed)
        self.blocks = nnx.List([nnx.Linear(FEATURES, FEATURES, rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(FEATURES, rngs=rngs)
        head = nnx.Linear if head is None else head
        self.head = head(FEATURES, CLASSES, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = x + nnx.relu(block(x))
        return self.head(self.norm(x))


class Deep(nnx.Module):
    """The head is in a list of a list."""

    def __init__(self):
        self.parts = nnx.List([nnx.Dict(net=Net())])

    def classify(self, x, *, scale):
        return {"logits": self.parts[0]["net"](scale * x)}


def biased(*args, **kwargs):
    return nnx.Linear(*args, bias_init=nnx.initializers.normal(1.0), **kwargs)


def bare(*args, **kwargs):
    return nnx.Linear(*args, use_bias=False, **kwargs)


@functools.cache
def nnx_gradients(graph):
    """One compilation serves all tests of a model with arrays of these shapes."""

    def loss(weights, state, row, target):
        model = nnx.merge(graph, state, copy=True)
        model.head.kernel[...] = weights
        return cross_entropy(model(row[None]), target[None]).sum()

    return jax.jit(jax.vmap(jax.grad(loss), (None, None, 0, 0)))


def nnx_oracle(model, x, targets):
    """γ by the gradient of an NNX model."""
    graph, state = nnx.split(model)

    def gradients(kernel, x, targets):
        return nnx_gradients(graph)(kernel, widen(state), x, targets)

    return oracle(gradients, model.head.kernel[...], x, targets)


def scored(head, targets):
    return gwa_jax.head_scores(**head._asdict(), targets=targets)


@pytest.mark.parametrize("kind", [nnx.Linear, biased, bare, nnx.LinearGeneral])
def test_scores_are_those_of_the_models_own_gradient(kind):
    x, targets = data()
    model = Net(kind)
    output, head = call_with_head(model, "head", x)
    assert_array_equal(output, model(x))
    assert_allclose(scored(head, targets), nnx_oracle(model, x, targets), atol=1e-5)


def test_pixels_under_a_convolution_of_size_one_are_samples():
    def conv(*args, rngs):
        return nnx.Conv(*args, kernel_size=(1, 1), rngs=rngs)

    x, targets = data(2 * 3 * 5)
    model = Net(conv)
    output, head = call_with_head(model, "head", x.reshape(2, 3, 5, FEATURES))
    assert head.kernel.shape == (FEATURES, CLASSES)
    got = scored(head, targets.reshape(2, 3, 5))
    assert got.shape == output.shape[:-1]
    expected = nnx_oracle(model, x.reshape(-1, 1, 1, FEATURES), targets.reshape(-1, 1, 1))
    assert_allclose(got.reshape(-1), expected, atol=1e-5)


def test_a_method_of_a_model_whose_head_is_deep_in_lists():
    x, _ = data()
    model = Deep()
    output, head = call_with_head(model.classify, "parts.0.net.head", x, scale=2.0)
    assert_array_equal(output["logits"], head.logits)
    _, plain = call_with_head(model.parts[0].net, "head", 2.0 * x)
    assert_array_equal(head.latents, plain.latents)


@pytest.mark.parametrize("jit", [lambda f: f, nnx.jit], ids=["eager", "jit"])
def test_the_head_is_given_as_a_module_or_by_its_name(jit):
    x, _ = data()
    model, deep = Net(), Deep()

    @jit
    def calls(model, deep, x):
        scaled = call_with_head(deep.classify, deep.parts[0].net.head, x, scale=2.0)
        alone = call_with_head(model.head, model.head, x)
        return call_with_head(model, model.head, x), scaled, alone

    (output, head), (_, scaled), (logits, alone) = calls(model, deep, x)
    named = call_with_head(model, "head", x)
    assert_allclose(output, named[0], rtol=1e-6, atol=1e-6)
    assert_allclose(head.latents, named[1].latents, rtol=1e-6, atol=1e-6)
    assert_array_equal(head.kernel, model.head.kernel[...])
    wanted = call_with_head(deep.classify, "parts.0.net.head", x, scale=2.0)[1]
    assert_allclose(scaled.logits, wanted.logits, rtol=1e-5, atol=1e-6)
    assert_allclose(logits, model.head(x), rtol=1e-6, atol=1e-6)
    assert_array_equal(alone.latents, x)


def test_a_module_that_is_no_part_of_the_model_is_refused():
    x, _ = data()
    with pytest.raises(
        ValueError, match=r"`name` .* got a Linear that is no part of it; .* 'head'"
    ):
        call_with_head(Net(), Net().head, x)
    model = Net()
    with pytest.raises(TypeError, match=r"'norm' must be a linear layer .*got LayerNorm"):
        call_with_head(model, model.norm, x)
    with pytest.raises(TypeError, match=r"`name` must be a str or an nnx.Module, got int"):
        call_with_head(model, 3, x)


def test_half_precision_heads():
    def half(*args, **kwargs):
        return nnx.Linear(*args, dtype=jnp.bfloat16, **kwargs)

    x, targets = data()
    _, head = call_with_head(Net(half), "head", x)
    assert head.logits.dtype == jnp.bfloat16
    assert_allclose(scored(head, targets), nnx_oracle(Net(), x, targets), atol=0.03)


def as_outside(step, *args):
    """Compile a step as it is compiled outside the tests, whose flags change how XLA fuses code."""
    flags = os.environ.get("XLA_FLAGS", "")
    fused = {"xla_cpu_use_fusion_emitters": True} if "fusion_emitters=false" in flags else {}
    return step.lower(*args).compile(fused)


def steps(watch, count=4):
    """Train, with the capture, a probe in it, or neither; return all numbers of the training."""
    model = Net(seed=3)
    optimizer = nnx.Optimizer(model, optax.adam(0.05), wrt=nnx.Param)
    metric = GWAMetric(ROWS * count)
    traced = []

    @nnx.jit
    def step(model, optimizer, metric, x, targets, ids):
        traced.append(1)

        def loss_fn(model):
            output, head = call_with_head(model, "head", x) if watch else (model(x), None)
            return cross_entropy(output, targets).mean(), head

        def probed(model, probe):
            output, head = call_with_head(model, "head", x, logit_probe=probe)
            return cross_entropy(output, targets).mean(), head

        scored = {"labels": targets}
        if watch == "probe":
            backward = nnx.value_and_grad(probed, argnums=(0, 1), has_aux=True)
            (loss, head), (grads, g) = backward(model, jnp.zeros((ROWS, CLASSES)))
            scored = {"logit_gradients": g}
        else:
            (loss, head), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
        optimizer.update(model, grads)
        if watch:
            metric.update(**head._asdict(), **scored, ids=ids)
        return loss, grads

    told, compiled = [], None
    for i in range(count):
        ids = jnp.arange(i * ROWS, (i + 1) * ROWS)
        given = model, optimizer, metric, *data(seed=i), ids
        # Refuses arguments of other shapes or types, which would be compiled again.
        compiled = compiled or as_outside(step, *given)
        told.append(compiled(*given))
    return jax.tree.leaves((told, nnx.state(model), nnx.state(optimizer))), metric, traced


@pytest.mark.usefixtures("_promotion")
def test_training_is_the_same_to_the_last_bit():
    plain, _, _ = steps(watch=False)
    kept = []
    for watch in (True, "probe"):
        watched, metric, traced = steps(watch)
        assert len(plain) == len(watched) > 20
        for a, b in zip(plain, watched, strict=True):
            assert_array_equal(np.asarray(a), np.asarray(b))
        assert len(traced) == 1
        kept.append(metric.scores())
    assert_allclose(*kept, rtol=1e-5, atol=1e-6)


def capped(head, targets):
    """Return the gradient of the mean loss of soft-capped logits, written out."""
    logits = np.asarray(head.logits, np.float64)
    cap = np.tanh(logits / 0.5)
    p = np.exp(0.5 * cap) / np.exp(0.5 * cap).sum(1, keepdims=True)
    return (p - np.eye(CLASSES)[np.asarray(targets)]) * (1.0 - cap**2) / len(targets)


@pytest.mark.parametrize("library", ["nnx", "linen"])
def test_a_probe_stands_at_the_head_and_not_at_the_end_of_the_model(library):
    x, targets = data()
    probe = jnp.zeros((ROWS, CLASSES))
    if library == "nnx":

        class Capped(Net):
            def __call__(self, x):
                return 0.5 * jnp.tanh(super().__call__(x) / 0.5)

        def loss_fn(model, probe):
            output, head = call_with_head(model, "head", x, logit_probe=probe)
            return cross_entropy(output, targets).mean(), head

        g, head = nnx.grad(loss_fn, argnums=1, has_aux=True)(Capped(), probe)
    else:

        class Capped(linen.Module):
            @linen.compact
            def __call__(self, x):
                return 0.5 * jnp.tanh(linen.Dense(CLASSES, name="head")(x) / 0.5)

        variables = Capped().init(jax.random.key(0), x)

        def loss_fn(probe):
            output, head = apply_with_head(Capped(), variables, "head", x, logit_probe=probe)
            return cross_entropy(output, targets).mean(), head

        g, head = jax.grad(loss_fn, has_aux=True)(probe)
    assert_allclose(g, capped(head, targets), rtol=1e-4, atol=1e-6)


def test_the_models_own_computation_gets_nothing_added():
    x, _ = data()
    graph, state = nnx.split(Net())

    def plain(state, x):
        return nnx.merge(graph, state)(x)

    def watched(state, x):
        return call_with_head(nnx.merge(graph, state), "head", x)[0]

    assert str(jax.make_jaxpr(watched)(state, x)) == str(jax.make_jaxpr(plain)(state, x))


def test_the_kernel_is_the_one_before_the_optimizers_step():
    x, targets = data()
    model = Net()
    optimizer = nnx.Optimizer(model, optax.sgd(1.0), wrt=nnx.Param)
    expected = nnx_oracle(model, x, targets)

    @nnx.jit
    def step(model, optimizer):
        def loss_fn(model):
            output, head = call_with_head(model, "head", x)
            return cross_entropy(output, targets).mean(), head

        (_, head), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
        optimizer.update(model, grads)
        return head

    assert_allclose(scored(step(model, optimizer), targets), expected, atol=1e-5)
    assert np.abs(expected - nnx_oracle(model, x, targets)).max() > 1e-3


def test_plain_jit_over_split_and_merge_and_scan_over_batches():
    graph, params = nnx.split(Net())
    batches = [data(seed=i) for i in range(3)]
    x, targets = (jnp.stack(parts) for parts in zip(*batches, strict=True))

    @jax.jit
    def epoch(params, state):
        def body(carry, batch):
            params, state = carry
            x, targets, ids = batch

            def loss_fn(params):
                output, head = call_with_head(nnx.merge(graph, params), "head", x)
                return cross_entropy(output, targets).mean(), head

            grads, head = jax.grad(loss_fn, has_aux=True)(params)
            state = gwa_jax.update(state, **head._asdict(), targets=targets, ids=ids)
            return (jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state), None

        ids = jnp.arange(3 * ROWS).reshape(3, ROWS)
        return jax.lax.scan(body, (params, state), (x, targets, ids))[0]

    _, state = epoch(params, gwa_jax.init(3 * ROWS))
    first = nnx_oracle(nnx.merge(graph, params), *batches[0])
    assert_allclose(gwa_jax.scores(state)[:ROWS], first, atol=1e-5)
    assert bool(jnp.isfinite(gwa_jax.scores(state)).all())


@pytest.mark.parametrize(
    "jit", [jax.jit, nnx.jit, functools.partial(nnx.jit, graph=False)], ids=["jax", "nnx", "tree"]
)
def test_models_as_arguments_of_jitted_functions(jit):
    x, targets = data()
    model = Net()

    @jit
    def scores(model, x):
        return scored(call_with_head(model, "head", x)[1], targets)

    expected = scored(call_with_head(model, "head", x)[1], targets)
    assert_allclose(scores(model, x), expected, atol=1e-6)


def test_several_models_under_nnx_vmap_and_batches_under_nnx_scan():
    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def make(rngs):
        return nnx.Linear(FEATURES, CLASSES, rngs=rngs)

    class Wrap(nnx.Module):
        def __init__(self, head):
            self.head = head

        def __call__(self, x):
            return self.head(x)

    models = Wrap(make(nnx.Rngs(0)))
    x, targets = data()

    @nnx.vmap(in_axes=(0, None))
    def many(model, x):
        return scored(call_with_head(model, "head", x)[1], targets)

    @nnx.scan(in_axes=(None, 0), out_axes=0)
    def long(model, x):
        return scored(call_with_head(model, "head", x[None])[1], targets[:1])

    each = many(models, x)
    for i in range(2):
        one = Wrap(nnx.Linear(FEATURES, CLASSES, rngs=nnx.Rngs(0)))
        one.head.kernel[...] = models.head.kernel[i]
        assert_allclose(each[i], nnx_oracle(one, x, targets), atol=1e-5)
    expected = scored(call_with_head(one, "head", x)[1], jnp.full(ROWS, targets[0]))
    assert_allclose(long(one, x)[:, 0], expected, atol=1e-6)


def test_the_model_is_the_same_before_and_after():
    x, _ = data()
    model = Net()
    before, attributes = nnx.graphdef(model), dict(vars(model.head))

    class Outer(nnx.Module):
        def __init__(self):
            self.net = model

        def __call__(self, x):
            return call_with_head(self.net, "head", x)

    (_, inner), outer = call_with_head(Outer(), "net.head", x)
    assert inner.latents is outer.latents
    with pytest.raises(TypeError, match="same shape"):
        call_with_head(model, "head", x[:, :2])
    with pytest.raises(TypeError, match="same shape"):
        call_with_head(Outer(), "net.head", x[:, :2])
    assert type(model.head) is nnx.Linear
    assert nnx.graphdef(model) == before
    assert vars(model.head) == attributes
    _, again = call_with_head(model, "head", x)
    assert_array_equal(again.latents, outer.latents)


class Twice(Net):
    def __call__(self, x):
        return super().__call__(x) + super().__call__(2.0 * x)


class Never(Net):
    def __call__(self, x):
        return x @ self.head.kernel[...]


class Inside(Net):
    """The first call is watched from inside as well."""

    def __call__(self, x):
        again = Net()
        again.head = self.head
        return call_with_head(again, "head", x)[0] + self.head(x)


class Remat(Net):
    def __call__(self, x):
        return nnx.remat(Net.__call__)(self, x)


class Checkpoint(Net):
    def __call__(self, x):
        return jax.checkpoint(lambda x: Net.__call__(self, x))(x)


class Jitted(Net):
    __call__ = nnx.jit(Net.__call__)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Twice, "once, got 2 calls; give each call's latents"),
        (Inside, "once, got 2 calls"),
        (Never, "once, got 0 calls; .*used without a call"),
        (Remat, "once, got 0 calls; .*nnx.remat.*use this function inside"),
        (Jitted, "once, got 0 calls; .*jitted method"),
        (Checkpoint, "must be seen, but is not; .*jax.checkpoint"),
    ],
)
def test_a_head_without_one_visible_call_is_refused(model, message):
    x, _ = data()
    model = model()
    # What is compiled already does not run its Python code again.
    model(x)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            call_with_head(model, "head", x)
    model(x)


def test_rematerialisation_of_the_whole_model_with_the_capture_inside():
    x, targets = data()
    model = Net()
    forward = nnx.remat(lambda model, x: call_with_head(model, "head", x))

    def loss_fn(model):
        output, head = forward(model, x)
        return cross_entropy(output, targets).mean(), head

    _, head = nnx.grad(loss_fn, has_aux=True)(model)
    assert_allclose(scored(head, targets), nnx_oracle(model, x, targets), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("haed", "got 'haed'; the nearest are 'head'"),
        ("block.1", "'blocks.1'"),
        ("blocks.7", "'blocks.1'"),
        ("head.kernel", "'head'"),
        ("", "the nearest are 'blocks.0', 'blocks.1'"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        call_with_head(Net(), name, data()[0])


HEADS = {
    "LoRALinear": lambda i, o, rngs: nnx.LoRALinear(i, o, lora_rank=2, rngs=rngs),
    "LayerNorm": lambda i, _, rngs: nnx.LayerNorm(i, rngs=rngs),
    "Conv, wide": lambda i, o, rngs: nnx.Conv(i, o, (3,), rngs=rngs),
    "Conv, strided": lambda i, o, rngs: nnx.Conv(i, o, (1,), strides=2, rngs=rngs),
    "Conv, masked": lambda i, o, rngs: nnx.Conv(i, o, (1,), mask=jnp.ones((1, i, o)), rngs=rngs),
    "LinearGeneral, two": lambda i, o, rngs: nnx.LinearGeneral(i, (o, 2), rngs=rngs),
    "LinearGeneral, axis": lambda i, o, rngs: nnx.LinearGeneral(i, o, axis=-2, rngs=rngs),
}


@pytest.mark.parametrize("kind", HEADS)
def test_heads_that_are_not_linear_are_refused(kind):
    x = data(3 * FEATURES)[0].reshape(3, FEATURES, FEATURES)
    name = kind.split(",")[0]
    with pytest.raises(TypeError, match=f"'head' must be a linear layer .*got {name}"):
        call_with_head(Net(HEADS[kind]), "head", x)


def test_models_of_another_kind_are_refused():
    with pytest.raises(TypeError, match="`apply_with_head`"):
        call_with_head(linen.Dense(2), "head", data()[0])


# The metric ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_promotion")
def test_the_metric_is_the_state_and_goes_with_others():
    x, targets = data()
    mask = jnp.arange(ROWS) % 4 != 0
    metrics = nnx.MultiMetric(
        accuracy=nnx.metrics.Accuracy(),
        loss=nnx.metrics.Average(),
        gwa=GWAMetric(2 * ROWS, beta=1.5, label_smoothing=0.1),
    )
    model = Net()

    @nnx.jit
    def evaluate(model, metrics, ids):
        logits, head = call_with_head(model, "head", x)
        values = cross_entropy(logits, targets)
        metrics.update(values=values, labels=targets, ids=ids, mask=mask, **head._asdict())

    evaluate(model, metrics, jnp.arange(ROWS))
    _, head = call_with_head(model, "head", x)
    state = gwa_jax.update(
        gwa_jax.init(2 * ROWS),
        **head._asdict(),
        targets=targets,
        ids=jnp.arange(ROWS),
        where=mask,
        label_smoothing=0.1,
    )
    expected = gwa_jax.summary(state, beta=1.5)
    assert_allclose(metrics.gwa.scores(), gwa_jax.scores(state), atol=1e-6)
    assert_allclose(metrics.compute()["gwa"], expected.gwa, rtol=1e-4)
    assert set(metrics.compute()) == {"accuracy", "loss", "gwa"}
    assert gwa_jax.fetch(metrics.gwa.summary()).count == int(mask.sum())

    metrics.reset()
    assert bool(jnp.isnan(metrics.compute()["gwa"]))
    evaluate(model, metrics, jnp.arange(ROWS, 2 * ROWS))
    ended = gwa_jax.fetch(metrics.gwa.summary())
    assert (ended.epoch, ended.count) == (1, int(mask.sum()))
    assert bool(jnp.isnan(metrics.gwa.scores()[:ROWS]).all())
    assert_array_equal(jnp.isfinite(metrics.gwa.label_quality()[:ROWS]), mask)
    assert GWAMetric().scores() is GWAMetric().label_quality() is None


@pytest.mark.usefixtures("_promotion")
def test_the_metric_takes_class_weights():
    x, targets = data()
    _, head = call_with_head(Net(), "head", x)
    metric, weights = GWAMetric(label_smoothing=0.1), jnp.asarray([0.5, 1.0, 3.0])
    metric.update(**head._asdict(), labels=targets, class_weights=weights, loss=0.3)
    scores = gwa_jax.head_scores(
        **head._asdict(), targets=targets, class_weights=weights, label_smoothing=0.1
    )
    assert_allclose(metric.compute(), gwa_jax.summary(gwa_jax.add(gwa_jax.init(), scores)).gwa)


def test_a_batch_that_does_not_fit_leaves_the_metric_as_it_was():
    x, targets = data()
    _, head = call_with_head(Net(), "head", x)
    metric = GWAMetric()
    metric.update(**head._asdict(), labels=targets)
    before = metric.compute()
    with pytest.raises(ValueError, match="`targets` must be"):
        metric.update(**head._asdict(), labels=targets[:3])
    with pytest.raises(ValueError, match="`ids` and `num_samples`"):
        metric.update(**head._asdict(), labels=targets, ids=jnp.arange(ROWS))
    assert_array_equal(metric.compute(), before)


# Linen -------------------------------------------------------------------------------------------


class Body(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(FEATURES)(x))
        return linen.Dropout(0.25, deterministic=not train)(linen.relu(x))


class Model(linen.Module):
    head: linen.Module

    def setup(self):
        self.body = Body()
        self.layers = [self.head]

    def __call__(self, x, train=False):
        return self.layers[0](self.body(x, train))


def dense(**options):
    return linen.Dense(CLASSES, bias_init=linen.initializers.normal(1.0), **options)


@functools.cache
def made(head=None):
    model = Model(dense() if head is None else head)
    return model, jax.jit(model.init)(jax.random.key(0), data()[0])


def linen_oracle(model, variables, x, targets):
    def one(kernel, row, target):
        wide = widen(variables)
        params = wide["params"] | {"head": wide["params"]["head"] | {"kernel": kernel}}
        return cross_entropy(model.apply(wide | {"params": params}, row[None]), target[None]).sum()

    gradients = jax.jit(jax.vmap(jax.grad(one), (None, 0, 0)))
    return oracle(gradients, variables["params"]["head"]["kernel"], x, targets)


LINEN_HEADS = {
    "Dense": lambda: dense(),
    "no bias": lambda: linen.Dense(CLASSES, use_bias=False),
    "DenseGeneral": lambda: linen.DenseGeneral(CLASSES),
    "Partitioned": lambda: dense(
        kernel_init=linen.with_partitioning(linen.initializers.lecun_normal(), (None, None))
    ),
}


@pytest.mark.parametrize("kind", LINEN_HEADS)
def test_linen_scores_are_those_of_the_models_own_gradient(kind):
    x, targets = data()
    model, variables = made(LINEN_HEADS[kind]())
    output, head = apply_with_head(model, variables, "head", x)
    assert_array_equal(output, model.apply(variables, x))
    expected = linen_oracle(model, linen.meta.unbox(variables), x, targets)
    assert_allclose(scored(head, targets), expected, atol=1e-5)


def linen_steps(watch, count=4):
    """A loop with a TrainState, batch statistics and dropout."""
    model, variables = made()
    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=optax.adam(0.05))
    traced = []

    @jax.jit
    def step(state, stats, gwa, x, targets, key):
        traced.append(1)

        def loss_fn(params, probe):
            given = {"params": params, "batch_stats": stats}
            options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": key}}
            if watch:
                options["logit_probe"] = probe
                out, head = apply_with_head(state.apply_fn, given, "head", x, **options)
            else:
                out, head = state.apply_fn(given, x, **options), None
            logits, changed = out
            return cross_entropy(logits, targets).mean(), (changed["batch_stats"], head)

        probe = jnp.zeros((ROWS, CLASSES)) if watch else None
        backward = jax.value_and_grad(loss_fn, (0, 1) if watch else 0, has_aux=True)
        (loss, (stats, head)), grads = backward(state.params, probe)
        if watch:
            grads, g = grads
            gwa = gwa_jax.update(gwa, **head._asdict(), logit_gradients=g)
        return state.apply_gradients(grads=grads), stats, gwa, (loss, grads)

    stats, gwa, told = variables["batch_stats"], gwa_jax.init(), []
    compiled = None
    for i in range(count):
        given = state, stats, gwa, *data(seed=i), jax.random.key(i)
        compiled = compiled or as_outside(step, *given)
        state, stats, gwa, numbers = compiled(*given)
        told.append(numbers)
    return jax.tree.leaves((told, state, stats)), gwa, traced


@pytest.mark.usefixtures("_promotion")
def test_linen_training_is_the_same_to_the_last_bit():
    plain, _, _ = linen_steps(watch=False)
    watched, gwa, traced = linen_steps(watch=True)
    assert len(plain) == len(watched) > 20
    for a, b in zip(plain, watched, strict=True):
        assert_array_equal(np.asarray(a), np.asarray(b))
    assert len(traced) == 1
    assert gwa_jax.fetch(gwa_jax.summary(gwa)).count == 4 * ROWS


def test_linen_several_models_under_vmap():
    x, targets = data()
    model, variables = made()
    params = jax.tree.map(lambda p: jnp.stack([p, 2.0 * p]), variables)

    def scores(variables):
        return scored(apply_with_head(model, variables, "head", x)[1], targets)

    each = jax.jit(jax.vmap(scores))(params)
    assert_allclose(each[0], linen_oracle(model, variables, x, targets), atol=1e-5)
    assert np.abs(each[0] - each[1]).max() > 1e-3


class Wrapped(linen.Module):
    """The head is called in ways that are not one call."""

    how: str

    @linen.compact
    def __call__(self, x):
        head = (linen.remat(linen.Dense) if self.how == "remat" else linen.Dense)(CLASSES, name="h")
        if self.how == "vmap":
            return jax.vmap(head)(x)
        return head(x) + (head(2.0 * x) if self.how == "twice" else 0.0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("twice", "'h' once, got 2 calls"),
        ("remat", "'h' must be seen, but is not; .*nnx.remat"),
        ("vmap", "'h' must be seen, but is not; .*jax.vmap"),
    ],
)
def test_linen_heads_without_one_visible_call_are_refused(how, message):
    x, _ = data()
    model = Wrapped(how)
    variables = model.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=message):
        apply_with_head(model, variables, "h", x)
    # No interceptor is left behind.
    assert apply_with_head(Wrapped("once"), variables, "h", x)[1].latents is x


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("haed", "got 'haed'; the nearest are 'head'"),
        ("Dense_0", "'body.Dense_0'"),
        ("head.kernel", "'head'"),
    ],
)
def test_linen_unknown_names(name, message):
    model, variables = made()
    with pytest.raises(ValueError, match=message):
        apply_with_head(model, variables, name, data()[0])


def test_linen_layers_that_are_not_linear_are_refused():
    x, _ = data()
    model, variables = made()
    for name, kind in {"body.BatchNorm_0": "BatchNorm", "body": "Body"}.items():
        with pytest.raises(TypeError, match=f"'{name}' must be a linear layer .*got {kind}"):
            apply_with_head(model, variables, name, x)
    model, variables = made(linen.DenseGeneral((CLASSES, 2)))
    with pytest.raises(TypeError, match="DenseGeneral with kernel"):
        apply_with_head(model, variables, "head", x)


def test_a_linen_model_that_sows_its_latents_needs_no_capture():
    class Sows(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.tanh(linen.Dense(FEATURES)(x))
            self.sow("intermediates", "latents", x)
            return linen.Dense(CLASSES, name="head")(x)

    x, targets = data()
    model = Sows()
    params = {"params": model.init(jax.random.key(0), x)["params"]}
    logits, sown = model.apply(params, x, mutable=["intermediates"])
    got = gwa_jax.head_scores(
        latents=sown["intermediates"]["latents"][0],
        logits=logits,
        **params["params"]["head"],
        targets=targets,
    )
    assert_allclose(got, linen_oracle(model, params, x, targets), atol=1e-5)


# Checkpoints ---------------------------------------------------------------------------------


@nnx.jit
def resumable_step(parts, state, x, targets, ids):
    def loss_fn(model):
        output, head = call_with_head(model, "head", x)
        return cross_entropy(output, targets).mean(), head

    grads, head = nnx.grad(loss_fn, has_aux=True)(parts.model)
    parts.optimizer.update(parts.model, grads)
    parts.metric.update(**head._asdict(), labels=targets, ids=ids)
    return gwa_jax.update(state, **head._asdict(), targets=targets, ids=ids)


def interrupted(tmp_path, stop):
    """Two epochs of three batches, saved, thrown away and restored before batch `stop`."""
    ocp = pytest.importorskip("orbax.checkpoint")

    def make():
        model = Net()
        optimizer = nnx.Optimizer(model, optax.adam(0.05), wrt=nnx.Param)
        parts = nnx.Dict(model=model, optimizer=optimizer, metric=GWAMetric(3 * ROWS))
        return parts, gwa_jax.init(3 * ROWS)

    parts, state = make()
    told = []
    for moment in range(6):
        if moment == stop:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(tmp_path / "last", {"nnx": nnx.state(parts), "gwa": state})
                checkpointer.wait_until_finished()
                parts, state = make()
                saved = checkpointer.restore(
                    tmp_path / "last", {"nnx": nnx.state(parts), "gwa": state}
                )
            nnx.update(parts, saved["nnx"])
            state = saved["gwa"]
            assert isinstance(state, gwa_jax.State)
        batch = moment % 3
        ids = jnp.arange(batch * ROWS, (batch + 1) * ROWS)
        state = resumable_step(parts, state, *data(seed=batch), ids)
        if batch == 2:
            told.append(parts.metric.summary())
            state, summary = gwa_jax.end_epoch(state)
            parts.metric.reset()
            told.append(summary)
    return [*told, parts.metric.label_quality(), gwa_jax.label_quality(state)]


@pytest.mark.usefixtures("_promotion")
def test_restored_in_the_middle_of_an_epoch_equals_uninterrupted(tmp_path):
    expected = interrupted(tmp_path / "a", None)
    got = interrupted(tmp_path / "b", 4)
    for a, b in zip(expected, got, strict=True):
        assert_array_equal(jax.tree.leaves(a), jax.tree.leaves(b))
    # The metric and the plain state tell the same.
    assert_allclose(jax.tree.leaves(got[0]), jax.tree.leaves(got[1]), rtol=1e-5)
    assert got[3].epoch == 1
    assert_allclose(got[4], got[5], rtol=1e-5)
    assert bool(jnp.isfinite(got[5]).all())


# Imports -------------------------------------------------------------------------------------


def test_flax_is_needed_by_this_module_alone():
    code = (
        "import sys; sys.modules['flax'] = None; import gwa_jax\n"
        "try:\n    import gwa_jax.flax\nexcept ImportError as error:\n    print(error)"
    )
    paths = [str(Path(gwa_jax.__file__).parent.parent), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pip install 'gwa-core[flax]'" in done.stdout
