"""The lines that the pages give for Equinox and Haiku: nothing but the right kernel is needed."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp

import gwa_jax

FEATURES, WIDTH, CLASSES, ROWS = 4, 6, 3, 12


def data(seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(ROWS, FEATURES)), jnp.float32)
    return x, jnp.asarray(rng.integers(0, CLASSES, ROWS), jnp.int32)


def cross_entropy(logits, targets):
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def oracle(loss, weight, x, targets):
    """γ by the gradient of `loss(weight, x, target)` of each sample, in float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        weight, x = weight.astype(jnp.float64), x.astype(jnp.float64)
        gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(weight, x, targets)
        gradients, weight = np.asarray(gradients), np.asarray(weight)
    length = np.sqrt((gradients**2).sum((1, 2)) * (weight**2).sum())
    return -(gradients * weight).sum((1, 2)) / length


def trained(step, carry, ids):
    """Two epochs of two batches; return the states after the first epoch and its scores."""
    for epoch in range(2):
        for batch in range(2):
            carry = step(*carry, *data(seed=batch), ids[batch])
        if epoch == 0:
            first = gwa_jax.scores(carry[2])
            carry = *carry[:2], gwa_jax.end_epoch(carry[2])[0]
    return carry, first


IDS = jnp.arange(2 * ROWS).reshape(2, ROWS)


def same_bits(a, b):
    a, b = (jax.tree.leaves(jax.tree.map(np.asarray, tree)) for tree in (a, b))
    assert len(a) == len(b) > 4
    for x, y in zip(a, b, strict=True):
        assert_array_equal(x, y)


# Equinox ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eqx():
    return pytest.importorskip("equinox")


def equinox_model(eqx):
    class Model(eqx.Module):
        body: eqx.nn.Linear
        head: eqx.nn.Linear

        def __call__(self, x):
            latents = jax.nn.tanh(self.body(x))
            return self.head(latents), latents

    keys = jax.random.split(jax.random.key(0))
    return Model(
        eqx.nn.Linear(FEATURES, WIDTH, key=keys[0]), eqx.nn.Linear(WIDTH, CLASSES, key=keys[1])
    )


def equinox_oracle(eqx, model, where, x, targets, logits=lambda model, x: model(x)):
    """γ by the gradient of an Equinox model with respect to the weight that `where` gives."""

    def one(weight, row, target):
        changed = eqx.tree_at(where, model, weight)
        wide = jax.tree.map(lambda p: p.astype(jnp.float64) if eqx.is_array(p) else p, changed)
        return cross_entropy(logits(wide, row)[None], target[None]).sum()

    return oracle(one, where(model), x, targets)


def equinox_step(eqx, optimizer, watch, traced):
    @eqx.filter_jit
    def step(model, opt_state, state, x, targets, ids):
        traced.append(1)

        def loss_fn(parts):
            model, probe = parts
            logits, latents = jax.vmap(model)(x)
            logits = gwa_jax.add_probe(logits, probe)
            return cross_entropy(logits, targets).mean(), (logits, latents)

        probe = jnp.zeros((ROWS, CLASSES)) if watch == "probe" else None
        backward = eqx.filter_value_and_grad(loss_fn, has_aux=True)
        (_, (logits, latents)), (grads, g) = backward((model, probe))
        if watch:
            state = gwa_jax.update(
                state,
                latents=latents,
                kernel=model.head.weight.T,
                bias=model.head.bias,
                logits=logits,
                logit_gradients=g,
                targets=targets if g is None else None,
                ids=ids,
            )
        updates, opt_state = optimizer.update(grads, opt_state, model)
        return eqx.apply_updates(model, updates), opt_state, state

    return step


def test_equinox(eqx):
    model, traced = equinox_model(eqx), []
    optimizer = optax.sgd(0.5, momentum=0.9)
    carry = model, optimizer.init(eqx.filter(model, eqx.is_array)), gwa_jax.init(2 * ROWS)
    watched, scores = trained(equinox_step(eqx, optimizer, True, traced), carry, IDS)
    assert len(traced) == 1
    plain, _ = trained(equinox_step(eqx, optimizer, False, []), carry, IDS)
    same_bits(watched[:2], plain[:2])
    probed, same_scores = trained(equinox_step(eqx, optimizer, "probe", []), carry, IDS)
    same_bits(probed[:2], plain[:2])
    assert_allclose(same_scores, scores, rtol=1e-5, atol=1e-6)
    expected = equinox_oracle(
        eqx, model, lambda m: m.head.weight, *data(), logits=lambda m, x: m(x)[0]
    )
    assert_allclose(scores[:ROWS], expected, atol=1e-5)


def test_equinox_mlp_without_its_last_layer(eqx):
    x, targets = data()
    model = eqx.nn.MLP(FEATURES, CLASSES, WIDTH, depth=2, key=jax.random.key(1))
    head = model.layers[-1]
    body = eqx.tree_at(lambda m: m.layers[-1], model, eqx.nn.Identity())

    latents = jax.vmap(body)(x)
    got = gwa_jax.head_scores(
        latents=latents, kernel=head.weight.T, bias=head.bias, targets=targets
    )
    assert_allclose(jax.vmap(head)(latents), jax.vmap(model)(x), rtol=1e-6)
    expected = equinox_oracle(eqx, model, lambda m: m.layers[-1].weight, x, targets)
    assert_allclose(got, expected, atol=1e-5)


def test_an_equinox_weight_that_is_not_transposed_is_refused(eqx):
    x, targets = data()
    model = equinox_model(eqx)
    _, latents = jax.vmap(model)(x)
    with pytest.raises(ValueError, match=r"Equinox .*must be transposed"):
        gwa_jax.head_scores(latents=latents, kernel=model.head.weight, targets=targets)


def test_several_equinox_models_at_once(eqx):
    x, targets = data()
    model = equinox_model(eqx)
    models = jax.tree.map(lambda p: jnp.stack([p, -0.5 * p]), model)

    @eqx.filter_vmap(in_axes=(eqx.if_array(0), None))
    def scores(model, x):
        logits, latents = jax.vmap(model)(x)
        head = {"kernel": model.head.weight.T, "bias": model.head.bias}
        return gwa_jax.head_scores(latents=latents, logits=logits, **head, targets=targets)

    each = scores(models, x)
    for i in range(2):
        one = jax.tree.map(lambda p: p[i], models)
        expected = equinox_oracle(
            eqx, one, lambda m: m.head.weight, x, targets, logits=lambda m, x: m(x)[0]
        )
        assert_allclose(each[i], expected, atol=1e-5)


# Haiku -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hk():
    return pytest.importorskip("haiku")


def haiku_step(forward, optimizer, watch, traced):
    @jax.jit
    def step(params, opt_state, state, x, targets, ids):
        traced.append(1)

        def loss_fn(params):
            logits, latents = forward.apply(params, x)
            return cross_entropy(logits, targets).mean(), (logits, latents)

        (_, (logits, latents)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        if watch:
            head = params["head"]
            state = gwa_jax.update(
                state,
                latents=latents,
                kernel=head["w"],
                bias=head["b"],
                logits=logits,
                targets=targets,
                ids=ids,
            )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, state

    return step


def test_haiku(hk):
    def model(x):
        latents = hk.nets.MLP([WIDTH], activation=jax.nn.tanh, activate_final=True)(x)
        return hk.Linear(CLASSES, name="head")(latents), latents

    forward = hk.without_apply_rng(hk.transform(model))
    params, traced = forward.init(jax.random.key(0), data()[0]), []
    optimizer = optax.sgd(0.5, momentum=0.9)
    carry = params, optimizer.init(params), gwa_jax.init(2 * ROWS)
    watched, scores = trained(haiku_step(forward, optimizer, True, traced), carry, IDS)
    assert len(traced) == 1
    plain, _ = trained(haiku_step(forward, optimizer, False, []), carry, IDS)
    same_bits(watched[:2], plain[:2])

    def one(kernel, row, target):
        wide = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        logits, _ = forward.apply(wide | {"head": wide["head"] | {"w": kernel}}, row[None])
        return cross_entropy(logits, target[None]).sum()

    assert_allclose(scores[:ROWS], oracle(one, params["head"]["w"], *data()), atol=1e-5)


def test_the_last_layer_of_a_haiku_mlp(hk):
    """A model of others, which returns its logits alone."""
    x, targets = data()
    name, latents = "mlp/~/linear_1", []

    def see(call, args, kwargs, context):
        if context.method_name == "__call__" and context.module.module_name == name:
            latents.append(args[0])
        return call(*args, **kwargs)

    def model(x):
        with hk.intercept_methods(see):
            return hk.nets.MLP([WIDTH, CLASSES], activation=jax.nn.tanh)(x)

    forward = hk.without_apply_rng(hk.transform(model))
    params = forward.init(jax.random.key(0), x)
    del latents[:]
    forward.apply(params, x)
    head = params[name]
    score = functools.partial(gwa_jax.head_scores, kernel=head["w"], bias=head["b"])
    got = score(latents=latents[0], targets=targets)

    def one(kernel, row, target):
        wide = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        changed = {name: wide[name] | {"w": kernel}}
        return cross_entropy(forward.apply(wide | changed, row[None]), target[None]).sum()

    assert_allclose(got, oracle(one, head["w"], x, targets), atol=1e-5)
