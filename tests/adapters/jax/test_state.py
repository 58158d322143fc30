"""The pure functions: against float64 autograd, the core, PyTorch, and a run without a break."""

from __future__ import annotations

import functools

import numpy as np
import oracles
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

import gwa_core
import gwa_jax
from gwa_jax import scoring

N, C, D = 24, 5, 7


def batch(rows=N, classes=C, seed=0, scale=1.0):
    """Latents, kernel, bias and labels, as JAX arrays."""
    rng = np.random.default_rng(seed)
    latents = scale * rng.standard_normal((rows, D))
    kernel, bias = rng.standard_normal((D, classes)), rng.standard_normal(classes)
    arrays = (jnp.asarray(x, jnp.float32) for x in (latents, kernel, bias))
    return (*arrays, jnp.asarray(rng.integers(0, max(classes, 2), rows)))


@functools.cache
def gradients_of(loss):
    """One compilation serves all tests of a loss with arrays of these shapes."""

    def one(w, z, b, t):
        logits = z @ w + b
        if loss == "cross_entropy":
            return -jnp.sum(t * jax.nn.log_softmax(logits))
        return jnp.sum(jnp.logaddexp(0.0, logits) - t * logits)

    return jax.jit(jax.vmap(jax.grad(one), in_axes=(None, 0, None, 0)))


def autograd(latents, kernel, bias, targets, loss):
    """Each sample's γ from its own gradient, by float64 automatic differentiation."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        wide = (jnp.asarray(np.asarray(x, np.float64)) for x in (kernel, latents, bias, targets))
        gradients = gradients_of(loss)(*wide)
        flat, w = np.asarray(gradients).reshape(len(latents), -1), np.asarray(kernel).ravel()
        assert gradients.dtype == jnp.float64
    w = w.astype(np.float64)
    return -(flat @ w) / np.linalg.norm(flat, axis=1) / np.linalg.norm(w)


# Scores


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("given", ["latents", "logits"])
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_scores_equal_float64_autograd(loss, given, jitted):
    latents, kernel, bias, labels = batch()
    hot = np.eye(C)[np.asarray(labels)]
    logits = jnp.dot(latents, kernel) + bias[None] if given == "logits" else None

    def score(latents, kernel, bias, targets, logits, smoothing):
        return gwa_jax.head_scores(
            latents=latents, kernel=kernel, bias=bias, targets=targets, logits=logits,
            loss=loss, label_smoothing=smoothing,
        )  # fmt: skip

    call = jax.jit(score, static_argnums=5) if jitted else score
    share = 1 / C if loss == "cross_entropy" else 0.5
    for targets, smoothing, soft in (
        (labels, 0.0, hot),
        (labels, 0.1, 0.9 * hot + 0.1 * share),
        (jnp.asarray(0.7 * hot + 0.3 / C, jnp.float32), 0.0, 0.7 * hot + 0.3 / C),
    ):
        found = call(latents, kernel, bias, targets, logits, smoothing)
        np.testing.assert_allclose(
            found, autograd(latents, kernel, bias, soft, loss), rtol=1e-5, atol=1e-6
        )


def test_one_output_is_a_sigmoid():
    latents, kernel, bias, labels = batch(classes=1)
    found = gwa_jax.head_scores(
        latents=latents, kernel=kernel, bias=bias, targets=labels, loss="binary_cross_entropy"
    )
    wanted = autograd(latents, kernel, bias, labels[:, None], "binary_cross_entropy")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_same_as_the_core_and_as_pytorch():
    torch = pytest.importorskip("torch")
    from gwa_torch import head_scores

    latents, kernel, bias, labels = batch(scale=20.0)  # softmax saturates
    ours = gwa_jax.head_scores(latents=latents, kernel=kernel, bias=bias, targets=labels)
    z, w, b, y = (np.asarray(x) for x in (latents, kernel.T, bias, labels))
    core = gwa_core.alignment_scores(latents=z, weight=w, bias=b, targets=y)
    there = head_scores(
        latents=torch.tensor(z), weight=torch.tensor(w), bias=torch.tensor(b),
        targets=torch.tensor(y).long(),
    )  # fmt: skip
    np.testing.assert_allclose(ours, core, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(ours, there.numpy(), rtol=2e-5, atol=1e-6)


def test_class_weights_are_those_of_the_weighted_loss():
    latents, kernel, bias, labels = batch()
    weights = jnp.linspace(0.5, 4.0, C)
    hot = np.eye(C)[np.asarray(labels)]
    soft = jnp.asarray(0.7 * hot + 0.3 / C, jnp.float32)
    given = {"latents": latents, "kernel": kernel, "bias": bias}
    logits = jnp.dot(latents, kernel) + bias[None]
    for targets, smoothing, plain in (
        (labels, 0.0, hot),
        (labels, 0.1, 0.9 * hot + 0.1 / C),
        (soft, 0.0, np.asarray(soft)),
    ):
        # -Σ w_c t_c log p_c, by automatic differentiation.
        wanted = autograd(latents, kernel, bias, plain * np.asarray(weights), "cross_entropy")
        options = {"targets": targets, "class_weights": weights, "label_smoothing": smoothing}
        for more in ({}, {"logits": logits}):
            found = gwa_jax.head_scores(**given, **more, **options)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        state = gwa_jax.update(gwa_jax.init(N), **given, **options, ids=jnp.arange(N))
        np.testing.assert_allclose(gwa_jax.scores(state), wanted, rtol=1e-5, atol=1e-6)
        if smoothing:
            unweighted = gwa_jax.head_scores(**given, targets=targets, label_smoothing=smoothing)
            assert np.abs(unweighted - wanted).max() > 1e-3


def test_class_weights_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    from gwa_torch import head_scores

    latents, kernel, bias, labels = batch(seed=5)
    weights = np.linspace(3.0, 0.5, C, dtype=np.float32)
    found = gwa_jax.head_scores(
        latents=latents, kernel=kernel, bias=bias, targets=labels, label_smoothing=0.2,
        class_weights=jnp.asarray(weights),
    )  # fmt: skip
    z, w, b, y = (torch.tensor(np.array(x)) for x in (latents, kernel.T, bias, labels))
    there = head_scores(
        latents=z, weight=w, bias=b, targets=y.long(), label_smoothing=0.2,
        class_weights=torch.tensor(weights),
    )  # fmt: skip
    np.testing.assert_allclose(found, there.numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_that_do_not_fit(smoothing):
    latents, kernel, _, labels = batch()

    def score(weights, **options):
        return gwa_jax.head_scores(
            latents=latents, kernel=kernel, targets=labels, class_weights=weights,
            label_smoothing=smoothing, **options,
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"`class_weights` must be \(C,\) = \(5,\), got .*\(4,\)"):
        score(jnp.ones(4))
    with pytest.raises(TypeError, match="`class_weights` must be an array, got list"):
        score([1.0] * C)
    with pytest.raises(TypeError, match="`class_weights` must be floating point, got int32"):
        score(jnp.ones(C, jnp.int32))
    with pytest.raises(ValueError, match=r"`class_weights` .*loss='cross_entropy', got 'binary"):
        score(jnp.ones(C), loss="binary_cross_entropy")


def test_tokens_are_samples():
    latents, kernel, bias, labels = batch()
    flat = gwa_jax.head_scores(latents=latents, kernel=kernel, bias=bias, targets=labels)
    where = jnp.arange(24).reshape(4, 6) < 20
    tokens = gwa_jax.head_scores(
        latents=latents.reshape(4, 6, D), kernel=kernel, bias=bias,
        targets=labels.reshape(4, 6), where=where,
    )  # fmt: skip
    assert tokens.shape == (4, 6)
    np.testing.assert_allclose(tokens.ravel()[:20], flat[:20], rtol=1e-6)
    assert np.isnan(tokens.ravel()[20:]).all()


@pytest.mark.parametrize("rows", [24, 23, 129])
def test_blocks_of_rows_give_the_same(rows, monkeypatch):
    latents, kernel, bias, labels = batch(rows)
    weights = jnp.linspace(0.5, 2.0, C)

    def scores():
        given = {"latents": latents, "kernel": kernel, "bias": bias, "targets": labels}
        plain = gwa_jax.head_scores(**given)
        return plain, gwa_jax.head_scores(**given, class_weights=weights, label_smoothing=0.1)

    whole = scores()
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 10 * C * 4)
    scoring._scores.clear_cache()
    parts = scores()
    scoring._scores.clear_cache()
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-7)


def test_the_logits_of_a_language_model_are_never_there():
    rows, classes = 8192, 50_000
    shapes = [(rows, 64), (64, classes)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
    compiled = jax.jit(
        lambda z, w, y: gwa_jax.head_scores(latents=z, kernel=w, targets=y)
    ).lower(*arrays, labels).compile()  # fmt: skip
    assert compiled.memory_analysis().temp_size_in_bytes < rows * classes * 4 / 2


def test_half_precision_is_raised():
    latents, kernel, bias, labels = batch()
    z, w, b = (x.astype(jnp.bfloat16) for x in (latents, kernel, bias))
    found = gwa_jax.head_scores(latents=z, kernel=w, bias=b, targets=labels)
    assert found.dtype == jnp.float32
    z, w, b = (np.asarray(x, np.float32) for x in (z, w, b))
    np.testing.assert_allclose(
        found, oracles.alignment(z, w.T, np.asarray(labels), bias=b), rtol=1e-4, atol=1e-5
    )


def test_float64_stays_where_jax_has_it():
    latents, kernel, bias, labels = batch()
    with jax.enable_x64(True):
        z, w, b = (jnp.asarray(np.asarray(x, np.float64)) for x in (latents, kernel, bias))
        found = gwa_jax.head_scores(latents=z, kernel=w, bias=b, targets=labels)
        assert found.dtype == jnp.float64
        state = gwa_jax.init(N, dtype=jnp.float64)
        state = gwa_jax.add(state, found, ids=jnp.arange(N))
        assert gwa_jax.scores(state).dtype == jnp.float64
        np.testing.assert_allclose(
            found, oracles.alignment(z, w.T, np.asarray(labels), bias=b), rtol=1e-12
        )


def test_no_gradient_flows_through():
    latents, kernel, bias, labels = batch()

    def loss(kernel, watched):
        logits = jnp.dot(latents, kernel) + bias[None]
        log_p = jax.nn.log_softmax(logits)
        value = -jnp.sum(jax.nn.one_hot(labels, C) * log_p)
        state = gwa_jax.init(N)
        if watched:
            state = gwa_jax.update(
                state, latents=latents, kernel=kernel, logits=logits, bias=bias, targets=labels,
                ids=jnp.arange(N),
            )  # fmt: skip
        return value + 0.0 * jnp.nansum(state.values), state

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnames="watched")
    plain, _ = gradient(kernel, watched=False)
    seen, _ = gradient(kernel, watched=True)
    np.testing.assert_array_equal(plain, seen)


# The state of an epoch


def epoch(state, scores, ids=None, where=None, size=5):
    for begin in range(0, len(scores), size):
        part = slice(begin, begin + size)
        state = gwa_jax.add(
            state, scores[part], ids=None if ids is None else ids[part],
            where=None if where is None else where[part],
        )  # fmt: skip
    return state


def values(rows=40, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(0.1, 0.2, rows), jnp.float32)


def same(summary, wanted, rtol=1e-5):
    """Compare with a summary of the core's tracker, which does not know what to expect."""
    summary, wanted = (x._replace(expected=None) for x in (summary, wanted))
    np.testing.assert_allclose(
        np.asarray(summary[2:], float), np.asarray(wanted[2:], float), rtol=rtol, atol=1e-6
    )


@pytest.mark.parametrize("by_id", [False, True])
def test_an_epoch_equals_the_cores_tracker(by_id):
    scores, rng = values(), np.random.default_rng(2)
    scores = scores.at[7].set(jnp.nan)
    ids = jnp.asarray(rng.permutation(40) % 33) if by_id else None  # some come twice
    where = jnp.asarray(rng.random(40) < 0.8)
    tracker = gwa_core.GWATracker(33 if by_id else None)
    state = gwa_jax.init(33 if by_id else None)
    for _ in range(2):
        state = epoch(state, scores, ids, where)
        for begin in range(0, 40, 5):
            part = slice(begin, begin + 5)
            tracker.update(
                np.asarray(scores[part]), ids=np.asarray(ids[part]) if by_id else None,
                where=np.asarray(where[part]),
            )  # fmt: skip
        if by_id:
            np.testing.assert_array_equal(gwa_jax.scores(state), tracker.scores)
        state, summary = gwa_jax.end_epoch(state)
        same(gwa_jax.fetch(summary), tracker.end_epoch())
    assert int(state.epoch) == 2
    begun = gwa_jax.scores(state)
    assert np.isnan(begun).all() if by_id else begun is None


def test_the_first_of_two_rows_in_one_batch_counts():
    state = gwa_jax.add(
        gwa_jax.init(3), jnp.asarray([0.1, 0.2, 0.3]), ids=jnp.asarray([2, 2, 0]),
        where=jnp.asarray([False, True, True]),
    )  # fmt: skip
    np.testing.assert_allclose(gwa_jax.scores(state), [0.3, np.nan, 0.2])


def test_ids_that_are_not_there_are_counted_and_harm_nobody():
    state = gwa_jax.add(gwa_jax.init(3), jnp.asarray([0.1, 0.2, 0.3]), ids=jnp.asarray([-2, 3, 1]))
    np.testing.assert_allclose(gwa_jax.scores(state), [np.nan, 0.3, np.nan])
    summary = gwa_jax.fetch(gwa_jax.summary(state))
    assert (summary.count, summary.omitted) == (1, 2)


@pytest.mark.parametrize("kind", [np, jnp], ids=["numpy", "jax"])
def test_padding_with_the_id_minus_one_is_left_out_silently(kind):
    ids = kind.asarray([-1, 2, 1, -1])
    state = gwa_jax.add(gwa_jax.init(3), jnp.asarray([0.1, 0.2, jnp.nan, jnp.nan]), ids=ids)
    np.testing.assert_allclose(gwa_jax.scores(state), [np.nan, np.nan, 0.2])
    summary = gwa_jax.fetch(gwa_jax.summary(state))
    assert (summary.count, summary.omitted) == (1, 1)
    # A batch of padding alone is no epoch.
    padding = gwa_jax.add(gwa_jax.init(3), jnp.zeros(2), ids=kind.asarray([-1, -1]))
    with pytest.raises(ValueError, match="got none since the last"):
        gwa_jax.fetch(gwa_jax.summary(padding))


def test_a_hundred_million_scores_keep_their_digits():
    # Counts beyond 2^24, in float32: the same batch again and again, by doubling.
    scores = np.random.default_rng(0).normal(0.3, 0.2, 100_000).astype(np.float32)
    state = gwa_jax.add(gwa_jax.init(), jnp.asarray(scores))
    for _ in range(10):
        state = gwa_jax.merge(state, state)
    summary = gwa_jax.fetch(gwa_jax.summary(state))
    assert summary.count == 102_400_000
    wanted = gwa_core.summarize(scores.astype(np.float64))
    for name in ("mean", "variance", "skewness", "kurtosis", "gwa", "bimodality"):
        np.testing.assert_allclose(
            getattr(summary, name), getattr(wanted, name), rtol=1e-5, atol=1e-6
        )


def test_one_more_score_still_counts_after_2_to_the_24():
    state = gwa_jax.add(gwa_jax.init(), jnp.full((1 << 15,), 0.25, jnp.float32))
    for _ in range(10):
        state = gwa_jax.merge(state, state)
    for _ in range(3):
        state = gwa_jax.add(state, jnp.asarray([0.5]))
    moments = state.moments
    assert float(moments.count) + float(moments.low[0]) == (1 << 25) + 3


@pytest.mark.parametrize("by_id", [False, True])
def test_shards_merge_to_the_whole(by_id):
    scores, ids = values(45), jnp.arange(45) if by_id else None
    whole = epoch(gwa_jax.init(45 if by_id else None), scores, ids)
    parts = [
        epoch(gwa_jax.init(45 if by_id else None), scores[k::3], ids[k::3] if by_id else None)
        for k in range(3)
    ]
    merged = gwa_jax.merge(gwa_jax.merge(parts[2], parts[0]), parts[1])
    same(gwa_jax.fetch(gwa_jax.summary(merged)), gwa_jax.fetch(gwa_jax.summary(whole)))
    np.testing.assert_array_equal(gwa_jax.scores(merged), gwa_jax.scores(whole))


def test_of_two_shards_the_earlier_row_stays():
    a = gwa_jax.add(gwa_jax.init(2), jnp.asarray([0.1, 0.2]), ids=jnp.asarray([0, 1]))
    b = gwa_jax.add(gwa_jax.init(2), jnp.asarray([0.3]), ids=jnp.asarray([1]))
    for merged in (gwa_jax.merge(a, b), gwa_jax.merge(b, a)):
        np.testing.assert_allclose(gwa_jax.scores(merged), [0.1, 0.3])


# Transformations


def updates(state, batches):
    """Score five batches of tokens with a kernel each, as a training does."""
    latents, kernels, labels, ids = batches
    for k in range(len(latents)):
        state = gwa_jax.update(
            state, latents=latents[k], kernel=kernels[k], targets=labels[k], ids=ids[k]
        )
    return state


def batches(seed=0):
    rng = np.random.default_rng(seed)
    return (
        jnp.asarray(rng.standard_normal((5, 8, D)), jnp.float32),
        jnp.asarray(rng.standard_normal((5, D, C)), jnp.float32),
        jnp.asarray(rng.integers(0, C, (5, 8))),
        jnp.asarray(rng.permutation(40).reshape(5, 8)),
    )


def scanned(state, batches):
    """The same under scan."""

    def step(state, batch):
        latents, kernel, labels, ids = batch
        state = gwa_jax.update(state, latents=latents, kernel=kernel, targets=labels, ids=ids)
        return state, None

    return jax.lax.scan(step, state, batches)[0]


def test_scan_over_the_steps_of_an_epoch():
    given = batches()

    @jax.jit
    def run(state):
        return gwa_jax.end_epoch(scanned(state, given))

    state, summary = run(gwa_jax.init(40))
    _, wanted = gwa_jax.end_epoch(updates(gwa_jax.init(40), given))
    same(gwa_jax.fetch(summary), gwa_jax.fetch(wanted), rtol=1e-5)
    again, _ = run(state)
    assert int(again.epoch) == 2


def test_vmap_over_seeds():
    runs = [batches(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *runs)
    states = jax.tree.map(lambda *x: jnp.stack(x), *[gwa_jax.init(40)] * 3)
    states = jax.jit(jax.vmap(scanned))(states, stacked)
    ended, summaries = jax.vmap(gwa_jax.end_epoch)(states)
    assert summaries.mean.shape == (3,)
    for k, run in enumerate(runs):
        alone = updates(gwa_jax.init(40), run)
        np.testing.assert_allclose(gwa_jax.scores(states)[k], gwa_jax.scores(alone), rtol=1e-5)
        one = gwa_jax.fetch(jax.tree.map(lambda x, k=k: x[k], summaries))
        same(one, gwa_jax.fetch(gwa_jax.summary(alone)))
    with pytest.raises(ValueError, match="one run"):
        gwa_jax.fetch(summaries)
    assert ended.epoch.tolist() == [1, 1, 1]


@pytest.mark.parametrize("by_id", [False, True])
def test_one_compilation_and_no_transfer_in_an_epoch_with_a_ragged_end(by_id):
    latents, kernel, bias, labels = batch(40)
    traced = []

    def step(state, kernel, bias, latents, labels, ids, where):
        traced.append(1)
        return gwa_jax.update(
            state, latents=latents, kernel=kernel, bias=bias, targets=labels,
            ids=ids if by_id else None, where=where,
        )  # fmt: skip

    # The state is donated: its buffers are used again.
    step = jax.jit(step, donate_argnums=0)
    end = jax.jit(gwa_jax.end_epoch, donate_argnums=0)
    padded = []
    for begin in range(0, 44, 16):
        rows = jnp.arange(begin, begin + 16)
        where = rows < 40
        rows = jnp.minimum(rows, 39)
        padded.append((latents[rows], labels[rows], rows, where))
    state = gwa_jax.init(40 if by_id else None)
    summaries = []
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            for given in padded:
                state = step(state, kernel, bias, *given)
            state, summary = end(state)
            summaries.append(summary)
    assert len(traced) == 1
    scores = gwa_jax.head_scores(latents=latents, kernel=kernel, bias=bias, targets=labels)
    wanted = gwa_core.summarize(np.asarray(scores, np.float64))
    for k, summary in enumerate(summaries):
        found = gwa_jax.fetch(summary)
        assert (found.epoch, found.count, found.omitted) == (k, 40, 0)
        np.testing.assert_allclose(found.gwa, wanted.gwa, rtol=1e-4)


def test_a_state_saved_in_mid_epoch_goes_on(tmp_path):
    given = batches()
    half = updates(gwa_jax.init(40), jax.tree.map(lambda x: x[:2], given))
    leaves, treedef = jax.tree.flatten(half)
    np.savez(tmp_path / "state.npz", *leaves)
    with np.load(tmp_path / "state.npz") as saved:
        loaded = jax.tree.unflatten(treedef, [jnp.asarray(saved[name]) for name in saved.files])
    ends = [updates(state, jax.tree.map(lambda x: x[2:], given)) for state in (half, loaded)]
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)


# Label quality: in the state, over the epochs that ended


def two_groups(epoch, rows=40):
    """Scores of right and wrong labels that lie further apart in some epochs; some are nan."""
    rng = np.random.default_rng(epoch)
    center = np.where(np.arange(rows) < rows // 4, -0.2, 0.3) * (1 + epoch % 3)
    scores = np.clip(center + 0.1 * rng.standard_normal(rows), -1, 1)
    scores[rng.integers(0, rows)] = np.nan
    return scores


def seen_in(epoch, rows=40):
    """Ids of an epoch: some come twice, and the last ones never."""
    ids = np.random.default_rng(100 + epoch).permutation(rows - 3)
    return np.concatenate([ids[: rows - 8], ids[:3]])


@pytest.mark.parametrize("wide", [True, False], ids=["float64", "float32"])
def test_label_quality_equals_that_of_the_whole_history(wide):
    dtype = np.float64 if wide else np.float32
    with jax.enable_x64(wide):

        @jax.jit
        def epoch(state, scores, ids):
            state, _ = jax.lax.scan(
                lambda state, batch: (gwa_jax.add(state, batch[0], ids=batch[1]), None),
                state, (scores.reshape(5, -1), ids.reshape(5, -1)),
            )  # fmt: skip
            return gwa_jax.scores(state), *gwa_jax.end_epoch(state)

        state, history = gwa_jax.init(40, dtype=dtype), []
        assert np.isnan(gwa_jax.label_quality(state)).all()
        for k in range(6):
            ids = seen_in(k)
            given = jnp.asarray(two_groups(k)[ids], dtype)
            scores, state, _ = epoch(state, given, jnp.asarray(ids, jnp.int32))
            history.append(np.asarray(scores))
        found = gwa_jax.label_quality(state)
        assert found.dtype == dtype
        wanted = gwa_core.label_quality(np.stack(history).astype(np.float64))
        assert np.isnan(wanted).sum() == 3
        np.testing.assert_allclose(found, wanted, rtol=1e-12 if wide else 1e-5)
        plain = gwa_core.label_quality(np.stack(history).astype(np.float64), method="mean")
        assert np.nanmax(np.abs(plain - wanted)) > 1e-3, "the weights must matter"
        # The epoch in progress has no part in it, nor has one without scores.
        state = gwa_jax.add(state, jnp.ones(2, dtype), ids=jnp.asarray([0, 39]))
        np.testing.assert_array_equal(gwa_jax.label_quality(state), found)
        state, _ = gwa_jax.end_epoch(gwa_jax.init(40, dtype=dtype)._replace(quality=state.quality))
        np.testing.assert_array_equal(gwa_jax.label_quality(state), found)


def test_label_quality_over_shards_that_merge_at_every_epoch():
    # Each rank goes on from the whole state, or only the first one does.
    for onward in (lambda state: [state] * 3, lambda state: [state, *[gwa_jax.init(40)] * 2]):
        states, history = [gwa_jax.init(40)] * 3, []
        for k in range(4):
            ids = np.arange(40)
            given = jnp.asarray(two_groups(k), jnp.float32)
            states = [
                gwa_jax.add(state, given[r::3], ids=ids[r::3]) for r, state in enumerate(states)
            ]
            merged = gwa_jax.merge(gwa_jax.merge(states[2], states[0]), states[1])
            history.append(np.asarray(gwa_jax.scores(merged), np.float64))
            merged, summary = gwa_jax.end_epoch(merged)
            assert gwa_jax.fetch(summary).expected == 40
            states = onward(merged)
        wanted = gwa_core.label_quality(np.stack(history))
        np.testing.assert_allclose(gwa_jax.label_quality(merged), wanted, rtol=1e-5)


def test_label_quality_of_shards_by_samples():
    # Two that ended their epochs each on its own samples: nothing is lost, nothing counts twice.
    parts = []
    for rows in (np.arange(25), np.arange(25, 40)):
        state = gwa_jax.init(40)
        for k in range(2):
            state = gwa_jax.add(state, jnp.asarray(two_groups(k)[rows], jnp.float32), ids=rows)
            state, _ = gwa_jax.end_epoch(state)
        parts.append(state)
    whole = gwa_jax.label_quality(gwa_jax.merge(*parts))
    for state, rows in zip(parts, (slice(25), slice(25, 40)), strict=True):
        np.testing.assert_array_equal(whole[rows], gwa_jax.label_quality(state)[rows])
    again = gwa_jax.merge(gwa_jax.merge(parts[1], parts[0]), parts[1])
    np.testing.assert_array_equal(gwa_jax.label_quality(again), whole)


def test_label_quality_under_vmap():
    def run(scores):
        state = gwa_jax.init(40)
        for k in range(2):
            state, _ = gwa_jax.end_epoch(gwa_jax.add(state, scores[k], ids=jnp.arange(40)))
        return state

    runs = np.asarray([[two_groups(seed + k) for k in range(2)] for seed in range(3)], np.float32)
    states = jax.jit(jax.vmap(run))(jnp.asarray(runs))
    assert gwa_jax.scores(states).shape == gwa_jax.label_quality(states).shape == (3, 40)
    for found, history in zip(gwa_jax.label_quality(states), runs, strict=True):
        np.testing.assert_allclose(found, gwa_core.label_quality(history), rtol=1e-5)


def test_without_ids_nothing_is_said_of_a_sample():
    state = gwa_jax.add(gwa_jax.init(), values())
    state, summary = gwa_jax.end_epoch(state)
    assert gwa_jax.scores(state) is None
    assert gwa_jax.label_quality(state) is None
    assert gwa_jax.fetch(summary).expected is None


def test_a_sample_takes_sixteen_bytes():
    shapes = jax.eval_shape(lambda: gwa_jax.init(1_000_000))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    assert size < 16_000_200


# What an epoch should have had


def test_an_epoch_cut_short_knows_what_is_missing():
    state, everything = gwa_jax.init(100), np.arange(100)
    most = everything % 5 > 0
    cases = [
        # ids that came, which of them count; what was expected
        (everything, None, 100),
        # 40 of 100 rows, as few as the last epoch of 4.4 has
        (everything[:40], None, 100),
        # a fifth is masked in a whole epoch, and in half of one
        (everything, most, 80),
        (everything[:50], most[:50], 80),
        # with replacement 100 rows are an epoch
        (everything // 2, None, 50),
        # 10 rows of padding, which is no part of the data
        (np.concatenate([everything, np.full(10, -1)]), None, 100),
    ]
    for ids, where, expected in cases:
        mask = np.ones(len(ids), bool) if where is None else where
        state = epoch(state, values(len(ids)), ids, mask, size=10)
        state, summary = gwa_jax.end_epoch(state)
        assert gwa_jax.fetch(summary).expected == expected


def test_a_loader_may_drop_a_batch_and_a_loop_train_on_a_part():
    state, expected = gwa_jax.init(200), []
    for n, size in ((192, 64), (192, 64), (8, 8), (120, 60), (200, 50)):
        state = epoch(state, values(n), np.arange(n), np.ones(n, bool), size=size)
        state, summary = gwa_jax.end_epoch(state)
        expected.append(gwa_jax.fetch(summary).expected)
    assert expected == [192, 192, 192, 120, 200]
    state, summary = gwa_jax.end_epoch(
        gwa_jax.add(state, values(50), ids=np.arange(50)), expected=80
    )
    assert gwa_jax.fetch(summary).expected == 80
    _, summary = gwa_jax.end_epoch(gwa_jax.add(gwa_jax.init(), values(50)), expected=80)
    assert gwa_jax.fetch(summary).expected == 80


def test_the_stopper_observes_summaries_and_keeps_no_epoch_cut_short():
    state, stopper = gwa_jax.init(40), gwa_jax.EarlyStopper(total_steps=10)
    for k in range(4):
        part = slice(None) if k < 3 else slice(8, 16)
        scores = jnp.asarray(np.nan_to_num(two_groups(2 * k)), jnp.float32)
        state = gwa_jax.add(state, scores[part], ids=jnp.arange(40)[part])
        state, summary = gwa_jax.end_epoch(state)
        summary = gwa_jax.fetch(summary)
        stopper.observe(summary)
    assert summary.count == 8
    assert stopper.best_step < 3
    assert "cut short" in stopper.reason


# What does not fit


CASES = [
    ("kernel of an Equinox layer", {"kernel": (C, D)}, ValueError, "Equinox"),
    ("kernel of another layer", {"kernel": (D + 1, C)}, ValueError, "input of this head"),
    ("kernel with its bias", {"kernel": (C,)}, ValueError, "`kernel` must be"),
    ("targets of another batch", {"targets": (N - 1,)}, ValueError, "`targets` must be"),
    ("logits of other classes", {"logits": (N, C + 1)}, ValueError, "`logits` must be"),
    ("mask of another batch", {"where": (N - 1,)}, ValueError, "`where` must"),
    ("ids of another batch", {"ids": (N - 1,)}, ValueError, "`ids` must"),
    ("no samples", {"latents": (0, D), "targets": (0,)}, ValueError, "at least one sample"),
]


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(("shapes", "error", "words"), [c[1:] for c in CASES],
                         ids=[c[0] for c in CASES])  # fmt: skip
def test_shapes_that_do_not_fit(shapes, error, words, jitted):
    usual = {"latents": (N, D), "kernel": (D, C), "targets": (N,), "ids": (N,)} | shapes
    kinds = {"targets": jnp.int32, "ids": jnp.int32, "where": bool}
    given = {name: jnp.ones(shape, kinds.get(name, jnp.float32)) for name, shape in usual.items()}
    update = jax.jit(gwa_jax.update) if jitted else gwa_jax.update
    with pytest.raises(error, match=words):
        update(gwa_jax.init(N), **given)


def test_ids_go_with_num_samples():
    with pytest.raises(ValueError, match="num_samples=None"):
        gwa_jax.add(gwa_jax.init(), jnp.zeros(2), ids=jnp.arange(2))
    with pytest.raises(ValueError, match="no ids and num_samples=4"):
        gwa_jax.add(gwa_jax.init(4), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"in 0\.\.3, got 0\.\.4"):
        gwa_jax.add(gwa_jax.init(4), jnp.zeros(2), ids=np.array([0, 4]))
    with pytest.raises(ValueError, match=r"in 0\.\.3, got -2\.\.1; .*-1 marks padding"):
        gwa_jax.add(gwa_jax.init(4), jnp.zeros(2), ids=np.array([-2, 1]))
    with pytest.raises(TypeError, match="integers"):
        gwa_jax.add(gwa_jax.init(4), jnp.zeros(2), ids=jnp.zeros(2))
    with pytest.raises(ValueError, match="num_samples=4"):
        gwa_jax.merge(gwa_jax.init(4), gwa_jax.init(5))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, np.bool_(True), np.float64(3.0), "10", 1 << 31])
def test_a_number_of_samples_is_one(size):
    with pytest.raises(ValueError, match="`num_samples` must be an integer"):
        gwa_jax.init(size)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.asarray, jnp.asarray])
def test_integers_of_any_library_are_integers(kind):
    assert gwa_jax.init(kind(5)).order.shape == (5,)


@pytest.mark.parametrize("dtype", ["bool", "float32", "bfloat16"])
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_labels_that_are_no_class_numbers_are_named_by_their_dtype(dtype, jitted):
    latents, kernel, _, labels = batch()
    score = jax.jit(gwa_jax.head_scores) if jitted else gwa_jax.head_scores
    with pytest.raises(ValueError, match=rf"`targets` .* got {dtype} .*24.*; cast .* an integer"):
        score(latents=latents, kernel=kernel, targets=labels.astype(dtype))


def test_other_arguments_that_do_not_fit():
    latents, kernel, _, labels = batch()
    with pytest.raises(TypeError, match="`targets` must be an array, got list"):
        gwa_jax.head_scores(latents=latents, kernel=kernel, targets=[0] * N)
    with pytest.raises(TypeError, match="`latents` must be floating point, got int32"):
        gwa_jax.head_scores(latents=latents.astype(int), kernel=kernel, targets=labels)
    with pytest.raises(ValueError, match="`loss` must be one of"):
        gwa_jax.head_scores(latents=latents, kernel=kernel, targets=labels, loss="hinge")
    with pytest.raises(ValueError, match="`where` must be boolean"):
        gwa_jax.add(gwa_jax.init(), jnp.zeros(2), where=jnp.ones(2))


def test_an_epoch_without_scores_is_said():
    _, summary = gwa_jax.end_epoch(gwa_jax.init(4))
    assert int(summary.count) == 0
    with pytest.raises(ValueError, match="got none since the last"):
        gwa_jax.fetch(summary)
    masked = gwa_jax.add(gwa_jax.init(), jnp.zeros(2), where=jnp.zeros(2, bool))
    with pytest.raises(ValueError, match="got none since the last"):
        gwa_jax.fetch(gwa_jax.summary(masked))


def test_rules_read_the_history():
    state, history = gwa_jax.init(), []
    for mean in (0.1, 0.3, 0.2):
        state = gwa_jax.add(state, values(seed=3) + mean)
        state, summary = gwa_jax.end_epoch(state)
        history.append(gwa_jax.fetch(summary))
    assert gwa_core.select_epoch(history, gwa_core.MaxGWA(warmup=0)).step == 1
    assert [summary.epoch for summary in history] == [0, 1, 2]
