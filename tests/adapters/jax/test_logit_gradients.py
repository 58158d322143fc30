"""Scores from the gradient of any loss: against float64 autograd, and what the probe leaves alone."""

from __future__ import annotations

import functools

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

import gwa_jax

N, C, D, F = 24, 5, 7, 4
rng = np.random.default_rng(0)
X = rng.standard_normal((N, F))
LABELS, OTHERS = rng.integers(0, C, N), rng.integers(0, C, N)
TEACHER = 2.0 * rng.standard_normal((N, C))
SHARE = rng.beta(1.0, 1.0, N)
PRIOR = np.log(np.asarray([0.5, 0.2, 0.15, 0.1, 0.05]))
PARAMS = {
    "body": rng.standard_normal((F, D)),
    # Small, so that a temperature leaves the loss its digits.
    "kernel": 0.1 * rng.standard_normal((D, C)),
    "bias": 0.1 * rng.standard_normal(C),
}


def at(x, labels):
    return jnp.take_along_axis(x, labels[:, None], axis=1)[:, 0]


def nll(logits, labels):
    return -at(jax.nn.log_softmax(logits), labels)


def like(x, logits):
    """Let numbers have the dtype of the logits: these tests promote nothing."""
    return jnp.asarray(x, logits.dtype)


def temperature(logits, rows):
    return nll(logits / 0.07, LABELS[rows])


def soft_cap(logits, rows):
    return nll(0.2 * jnp.tanh(logits / 0.2), LABELS[rows])


def logit_adjustment(logits, rows):
    return nll(logits + like(PRIOR, logits)[None], LABELS[rows])


def positive_weight(logits, rows):
    hot, weight = jax.nn.one_hot(LABELS[rows], C, dtype=logits.dtype), 7.0
    each = weight * hot * jax.nn.softplus(-logits) + (1 - hot) * jax.nn.softplus(logits)
    return jnp.mean(each, axis=1)


def focal(logits, rows):
    loss = nll(logits, LABELS[rows])
    return (1.0 - jnp.exp(-loss)) ** 2 * loss


def distillation(logits, rows):
    teacher = jax.nn.softmax(like(TEACHER[rows] / 2.0, logits))
    soft = -4.0 * jnp.sum(teacher * jax.nn.log_softmax(logits / 2.0), axis=1)
    return 0.3 * nll(logits, LABELS[rows]) + 0.7 * soft


def mixup(logits, rows):
    share = like(SHARE[rows], logits)
    return share * nll(logits, LABELS[rows]) + (1 - share) * nll(logits, OTHERS[rows])


def z_loss(logits, rows):
    return nll(logits, LABELS[rows]) + jax.nn.logsumexp(logits, axis=1) ** 2


def cross_entropy(logits, rows):
    return nll(logits, LABELS[rows])


LOSSES = [
    temperature,
    soft_cap,
    logit_adjustment,
    positive_weight,
    focal,
    distillation,
    mixup,
    z_loss,
]
ALL = np.arange(N)


def forward(params, x):
    latents = jnp.tanh(jnp.dot(x, params["body"]))
    return jnp.dot(latents, params["kernel"]) + params["bias"][None], latents


def arrays(dtype=jnp.float32):
    params = jax.tree.map(lambda w: jnp.asarray(w, dtype), PARAMS)
    return params, jnp.asarray(X, dtype)


@functools.cache
def autograd():
    """γ of each sample and loss, from float64 gradients of the head; one program for all."""

    @jax.jit
    def gradients(params, x):
        _, latents = forward(params, x)

        def losses(kernel, loss):
            return loss(jnp.dot(latents, kernel) + params["bias"][None], ALL)

        return [jax.jacrev(losses)(params["kernel"], loss) for loss in (*LOSSES, cross_entropy)]

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        found = [np.asarray(g).reshape(N, -1) for g in gradients(*arrays(jnp.float64))]
    assert found[0].dtype == np.float64
    w = PARAMS["kernel"].ravel()
    return {
        loss: -(g @ w) / np.linalg.norm(g, axis=1) / np.linalg.norm(w)
        for loss, g in zip((*LOSSES, cross_entropy), found, strict=True)
    }


def loss_fn(params, probe, x, rows, loss):
    logits, latents = forward(params, x)
    logits = gwa_jax.add_probe(logits, probe)
    return loss(logits, rows).mean(), (logits, latents)


def head(params, aux):
    logits, latents = aux
    return {
        "logits": logits,
        "latents": latents,
        "kernel": params["kernel"],
        "bias": params["bias"],
    }


@functools.cache
def batches():
    """Return the head, and by loss its gradient, its scores, those of the closed form and kept ones."""

    @jax.jit
    def run(params, x):
        probe, everyone = jnp.zeros((N, C)), (*LOSSES, cross_entropy)
        backward = jax.grad(loss_fn, argnums=(0, 1), has_aux=True)
        found = [backward(params, probe, x, ALL, loss) for loss in everyone]
        gradients = jnp.stack([g for (_, g), _ in found])
        batch = head(params, found[0][1])

        def score(g):
            state = gwa_jax.update(gwa_jax.init(N), **batch, logit_gradients=g, ids=jnp.arange(N))
            return gwa_jax.head_scores(**batch, logit_gradients=g), gwa_jax.scores(state)

        closed = gwa_jax.head_scores(**batch, targets=jnp.asarray(LABELS))
        plain = jax.grad(lambda logits: distillation(logits, ALL).mean())(batch["logits"])
        return batch, gradients, *jax.vmap(score)(gradients), closed, plain

    with jax.numpy_dtype_promotion("standard"):
        batch, gradients, scores, kept, closed, plain = run(*arrays())
    found = {
        loss: (dict(batch), gradients[k], scores[k], closed, kept[k])
        for k, loss in enumerate((*LOSSES, cross_entropy))
    }
    return found | {None: plain}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_scores_of_any_loss_equal_float64_autograd(loss):
    _, _, scores, closed, kept = batches()[loss]
    wanted = autograd()[loss]
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kept, scores, rtol=1e-6, atol=1e-6)
    if loss is focal:  # the gradient of a hard label is shorter, and points the same way
        np.testing.assert_allclose(closed, wanted, rtol=1e-5, atol=1e-5)
    else:
        assert np.abs(closed - wanted).max() > 0.02, "the closed form must be another number"


def test_of_cross_entropy_both_are_the_same():
    _, _, scores, closed, _ = batches()[cross_entropy]
    np.testing.assert_allclose(scores, closed, rtol=1e-5, atol=1e-5)


# The probe


def same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(
            np.asarray(x, np.float32).view(np.uint32), np.asarray(y, np.float32).view(np.uint32)
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradients_of_the_parameters_are_the_same_to_the_last_bit(dtype):
    params, x = arrays(dtype)
    # A logit of -0 stays one, which a sum with 0 would not leave.
    params["kernel"] = params["kernel"].at[:, 0].set(0.0)
    params["bias"] = params["bias"].at[0].set(-0.0)

    @functools.partial(jax.jit, static_argnums=3)
    def run(params, probe, x, argnums):
        return jax.value_and_grad(loss_fn, argnums, has_aux=True)(params, probe, x, ALL, soft_cap)

    plain, without = run(params, None, x, 0)
    probed, (grads, g) = run(params, jnp.zeros((N, C)), x, (0, 1))
    same_bits((plain, without), (probed, grads))
    assert g.dtype == jnp.float32
    assert probed[1][0].dtype == dtype
    assert float(jnp.abs(g).max()) > 0


def test_a_loss_of_the_logits_needs_no_probe():
    _, g, *_ = batches()[distillation]
    np.testing.assert_allclose(batches()[None], g, rtol=1e-5, atol=1e-8)


def test_microbatches_seeds_and_remat():
    params, x = arrays()
    rows = jnp.arange(N)

    def accumulated(params, x):
        """Gradients of four microbatches, summed, with the rows' own beside them."""

        def micro(total, part):
            probe = jnp.zeros((N // 4, C))
            backward = jax.grad(jax.checkpoint(loss_fn, static_argnums=4), (0, 1), has_aux=True)
            (grads, g), aux = backward(params, probe, *part, temperature_of)
            scores = gwa_jax.head_scores(**head(params, aux), logit_gradients=g)
            return jax.tree.map(jnp.add, total, grads), scores

        parts = x.reshape(4, -1, F), rows.reshape(4, -1)
        return jax.lax.scan(micro, jax.tree.map(jnp.zeros_like, params), parts)[1]

    def temperature_of(logits, rows):
        return nll(logits / 0.07, jnp.asarray(LABELS)[rows])

    seeds = jax.tree.map(lambda w: jnp.stack([w, 2.0 * w]), params)
    scores = jax.jit(jax.vmap(accumulated, (0, None)))(seeds, x)
    assert scores.shape == (2, 4, N // 4)
    np.testing.assert_allclose(scores[0].ravel(), autograd()[temperature], rtol=1e-5, atol=1e-5)


def test_per_sample_losses_under_vmap():
    params, x = arrays()

    def mean(params, probe, x):
        def one(x, probe, label):
            logits, latents = forward(params, x[None])
            logits = gwa_jax.add_probe(logits[0], probe)
            return -jax.nn.log_softmax(logits / 0.07)[label], (logits, latents[0])

        losses, aux = jax.vmap(one)(x, probe, jnp.asarray(LABELS))
        return losses.mean(), aux

    backward = jax.jit(jax.grad(mean, (0, 1), has_aux=True))
    (_, g), aux = backward(params, jnp.zeros((N, C)), x)
    scores = gwa_jax.head_scores(**head(params, aux), logit_gradients=g)
    np.testing.assert_allclose(scores, autograd()[temperature], rtol=1e-5, atol=1e-5)


def test_shard_map_wants_a_probe_of_each_device():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = PartitionSpec("data"), PartitionSpec()
    params, x = arrays()

    def local(params, x, labels, varies):
        probe = jnp.zeros((N, C))
        if varies and hasattr(jax.lax, "pcast"):
            probe = jax.lax.pcast(probe, ("data",), to="varying")
        elif varies:  # JAX 0.8
            probe = jax.lax.pvary(probe, ("data",))

        def mean(params, probe):
            logits, latents = forward(params, x)
            logits = gwa_jax.add_probe(logits, probe)
            loss = nll(logits / 0.07, labels).mean()
            return jax.lax.pmean(loss, "data"), (logits, latents)

        (_, g), aux = jax.grad(mean, (0, 1), has_aux=True)(params, probe)
        return gwa_jax.update(
            gwa_jax.init(N), **head(params, aux), logit_gradients=g, axis_name="data",
            ids=jnp.arange(N),
        ).values  # fmt: skip

    def split(varies):
        return jax.jit(
            jax.shard_map(
                functools.partial(local, varies=varies), mesh=mesh, in_specs=(whole, rows, rows),
                out_specs=whole,
            )
        )  # fmt: skip

    scores = split(varies=True)(params, x, jnp.asarray(LABELS))
    np.testing.assert_allclose(scores, autograd()[temperature], rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"`probe` must differ between the devices .*'data'.*pcast"
    ):
        split(varies=False)(params, x, jnp.asarray(LABELS))


def test_a_probe_that_does_not_fit():
    logits = jnp.zeros((N, C))
    assert gwa_jax.add_probe(logits, None) is logits
    with pytest.raises(ValueError, match=r"`probe` must have the shape .*\(24, 5\), got \(5,\)"):
        gwa_jax.add_probe(logits, jnp.zeros(C))
    with pytest.raises(TypeError, match="`probe` must be of floating point, got int32"):
        gwa_jax.add_probe(logits, jnp.zeros((N, C), jnp.int32))


# Scores from a gradient


def test_neither_the_scale_of_a_row_nor_the_options_matter():
    batch, g, scores, *_ = batches()[temperature]
    sizes = 10.0 ** jnp.linspace(-12, 12, N)[:, None]
    found = gwa_jax.head_scores(
        **batch, logit_gradients=sizes * g, targets=jnp.asarray(LABELS), label_smoothing=0.3,
        class_weights=jnp.arange(1.0, 6.0),
    )  # fmt: skip
    np.testing.assert_allclose(found, scores, rtol=1e-5, atol=1e-6)


def test_a_gradient_of_zero_has_no_direction():
    batch, g, *_ = batches()[temperature]
    g = g.at[3].set(0.0)
    state = gwa_jax.update(gwa_jax.init(N), **batch, logit_gradients=g, ids=jnp.arange(N))
    assert np.isnan(gwa_jax.scores(state)).nonzero()[0].tolist() == [3]
    summary = gwa_jax.fetch(gwa_jax.summary(state))
    assert (summary.count, summary.omitted) == (N - 1, 1)
    where = jnp.arange(N) != 3
    state = gwa_jax.update(
        gwa_jax.init(N), **batch, logit_gradients=g, ids=jnp.arange(N), where=where
    )
    assert gwa_jax.fetch(gwa_jax.summary(state)).omitted == 0


def test_logits_may_be_left_to_be_made(monkeypatch):
    batch, g, scores, *_ = batches()[temperature]
    batch = {name: x for name, x in batch.items() if name != "logits"}
    tokens = {"latents": batch["latents"].reshape(4, 6, D)}
    found = gwa_jax.head_scores(**(batch | tokens), logit_gradients=g.reshape(4, 6, C))
    np.testing.assert_allclose(found, scores.reshape(4, 6), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(gwa_jax.scoring, "BLOCK_BYTES", 10 * C * 4)
    gwa_jax.scoring._scores.clear_cache()
    blocks = gwa_jax.head_scores(**batch, logit_gradients=g)
    gwa_jax.scoring._scores.clear_cache()
    np.testing.assert_allclose(blocks, scores, rtol=1e-5, atol=1e-6)


def test_one_output():
    batch, *_ = batches()[temperature]
    one = {"kernel": batch["kernel"][:, :1], "bias": batch["bias"][:1], "latents": batch["latents"]}
    logits = batch["logits"][:, :1]
    labels = jnp.asarray(LABELS % 2)
    g = jax.nn.sigmoid(logits) - labels[:, None].astype(logits.dtype)
    found = gwa_jax.head_scores(**one, logits=logits, logit_gradients=g)
    wanted = gwa_jax.head_scores(**one, logits=logits, targets=labels, loss="binary_cross_entropy")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_gradients_that_do_not_fit():
    batch, g, *_ = batches()[temperature]
    with pytest.raises(ValueError, match=r"`logit_gradients` must be \(24, 5\) .* got \(5,\)"):
        gwa_jax.head_scores(**batch, logit_gradients=g.sum(0))
    with pytest.raises(TypeError, match=r"`targets` must be an array, got None; .*logit_gradients"):
        gwa_jax.update(gwa_jax.init(), **batch)
    with pytest.raises(TypeError, match="`logit_gradients` must be an array, got list"):
        gwa_jax.head_scores(**batch, logit_gradients=[0.0])


def test_the_error_of_bfloat16_is_what_the_page_says():
    generator = np.random.default_rng(0)
    rows, width, classes = 2048, 384, 10
    labels = generator.integers(0, classes, rows)
    kernel = generator.standard_normal((width, classes)) / width**0.5
    toward = kernel.T[labels] / np.linalg.norm(kernel, axis=0)[labels][:, None]
    latents = generator.standard_normal((rows, width)) + 3.0 * toward
    latents, kernel = (jnp.asarray(x, jnp.bfloat16) for x in (latents, kernel))
    logits = jnp.dot(latents, kernel)

    @jax.jit
    def score(latents, kernel, logits):
        g = jax.grad(lambda x: nll(x.astype(jnp.float32), labels).mean())(logits)
        assert g.dtype == jnp.bfloat16
        return gwa_jax.head_scores(latents=latents, kernel=kernel, logits=logits, logit_gradients=g)

    found = score(latents, kernel, logits)
    z, w = (np.asarray(x, np.float64) for x in (latents, kernel))
    exact = z @ w
    p = np.exp(exact - exact.max(1, keepdims=True))
    r = np.eye(classes)[labels] - p / p.sum(1, keepdims=True)
    norms = np.linalg.norm(r, axis=1) * np.linalg.norm(z, axis=1) * np.linalg.norm(w)
    error = np.abs(found - (r * exact).sum(1) / norms)
    assert error.max() < 5e-4
    assert np.median(error) < 1e-4
