"""The check of what `update` is told: a bias that was not given, and a loss that is another one."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

import gwa_core
import gwa_jax

N, C, D = 24, 5, 7


def batch(dtype=jnp.float32):
    """A head that is sound, with a bias that weighs more than its kernel."""
    rng = np.random.default_rng(0)
    latents, kernel = rng.standard_normal((N, D)), 0.2 * rng.standard_normal((D, C))
    bias = np.linspace(-2.0, 2.0, C)
    latents, kernel, bias = (jnp.asarray(x, dtype) for x in (latents, kernel, bias))
    labels = jnp.asarray(rng.integers(0, C, N))
    logits = jnp.dot(latents, kernel) + bias[None]
    return {"latents": latents, "kernel": kernel, "logits": logits, "bias": bias, "targets": labels}


def gradients(given, scale=1.0, smoothing=0.0, weights=None):
    """Gradient of a loss in float32 that may divide the logits by a temperature."""
    targets = (1.0 - smoothing) * jax.nn.one_hot(given["targets"], C) + smoothing / C
    targets = targets if weights is None else targets * weights[None]

    def loss(logits):
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32) * scale)
        return -jnp.sum(targets * log_p) / N

    return jax.jit(jax.grad(loss))(given["logits"])


# Logits that are not those of the head


WRONG = {
    "a bias that was not given": ({"bias": None}, "has a bias, which must be given"),
    "a soft cap": (lambda x: {"logits": jnp.tanh(x["logits"])}, "scaled or capped"),
    "a temperature": (lambda x: {"logits": x["logits"] / 0.07}, "scaled or capped"),
    "a kernel of another step": (lambda x: {"kernel": 1.5 * x["kernel"]}, "optimiser's step"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_logits_of_another_head_are_found(wrong):
    change, words = WRONG[wrong]
    given = batch()
    given |= change(given) if callable(change) else change
    message = rf"^`logits` must be latents @ kernel \+ bias, got row 0 .*{words}"
    with pytest.raises(ValueError, match=message):
        gwa_jax.check(**given)
    with pytest.raises(ValueError, match=message):
        gwa_jax.head_scores(**given)
    with pytest.raises(ValueError, match=message):
        gwa_jax.update(gwa_jax.init(N), **given, ids=jnp.arange(N))


def test_a_sound_head_passes():
    given = batch()
    assert gwa_jax.check(**given) is None
    assert np.isfinite(gwa_jax.head_scores(**given)).all()
    half = batch(jnp.bfloat16)
    assert gwa_jax.check(**half) is None
    tokens = {
        name: x.reshape(4, 6, *x.shape[1:]) if x.shape[0] == N else x for name, x in given.items()
    }
    where = jnp.arange(N).reshape(4, 6) >= 9
    # A row that does not count may hold anything.
    tokens["logits"] = tokens["logits"].at[0].set(100.0)
    assert gwa_jax.check(**tokens, where=where) is None
    tokens["logits"] = tokens["logits"].at[1, 3].set(100.0)
    with pytest.raises(ValueError, match="got row 9 "):
        gwa_jax.check(**tokens, where=where)
    assert gwa_jax.check(**tokens, where=jnp.zeros((4, 6), bool)) is None


def test_update_looks_at_the_first_batch_of_an_epoch_alone():
    given = batch()
    wrong = given | {"bias": None}
    for ids, state in ((jnp.arange(N), gwa_jax.init(N)), (None, gwa_jax.init())):
        state = gwa_jax.update(state, **given, ids=ids)
        state = gwa_jax.update(state, **wrong, ids=ids)
        state, _ = gwa_jax.end_epoch(state)
        with pytest.raises(ValueError, match="`logits` must be"):
            gwa_jax.update(state, **wrong, ids=ids)


def test_to_look_at_a_row_is_no_transfer():
    given, state, ids = batch(), gwa_jax.init(N), jnp.arange(N)
    for guard in ("allow", "disallow"):  # the first call makes constants
        with jax.transfer_guard(guard):
            found = gwa_jax.update(state, **given, ids=ids)
            gwa_jax.head_scores(**given)
    assert jnp.isfinite(found.values).all()


# A loss that is not the one of the options


def test_a_loss_with_a_temperature_is_found():
    given = batch()
    with pytest.raises(
        ValueError, match=r"`loss` must be .* in 2\d of 24 samples, by up to 0\.\d+; "
    ):
        gwa_jax.check(**given, logit_gradients=gradients(given, scale=10.0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_loss_of_the_options_passes(dtype):
    given, weights = batch(dtype), jnp.linspace(0.5, 4.0, C)
    g = gradients(given, smoothing=0.1, weights=weights)
    options = {"label_smoothing": 0.1, "class_weights": weights}
    where = jnp.arange(N) != 2
    found = gwa_jax.check(**given, **options, logit_gradients=g, where=where)
    assert isinstance(found, gwa_core.Agreement)
    assert (int(found.rows), int(found.differing)) == (N - 1, 0)
    with pytest.raises(ValueError, match="`loss` must be that of the training, 'cross_entropy'"):
        gwa_jax.check(**given, logit_gradients=g)


def test_a_probe_that_the_loss_does_not_read():
    given = batch()
    with pytest.raises(ValueError, match=r"`logit_gradients` must have a row that is not 0.*probe"):
        gwa_jax.check(**given, logit_gradients=jnp.zeros((N, C)))


def test_nothing_is_looked_at_under_jit():
    given = batch() | {"bias": None}
    with pytest.raises(TypeError, match="`check` must be called outside jit"):
        jax.jit(gwa_jax.check)(**given)
    jax.jit(gwa_jax.head_scores)(**given)
    # What is closed over is no argument.
    scores = jax.jit(lambda logits: gwa_jax.head_scores(**(given | {"logits": logits})))
    assert scores(given["logits"]).shape == (N,)
