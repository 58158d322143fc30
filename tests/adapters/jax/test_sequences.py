"""Sequences of tokens: against float64 autograd, the core, loops, and an epoch in one batch."""

from __future__ import annotations

import functools

import numpy as np
import oracles
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

import gwa_core
import gwa_jax
from gwa_jax import _sequences

B, S, C, D, N = 4, 6, 5, 3, 9
REDUCTIONS = ("mean", "min", "gradient")


def batch(seed=0, rows=B):
    """Rows of tokens for `update`, in float32, without ids."""
    rng = np.random.default_rng(seed)
    latents, kernel = rng.standard_normal((rows, S, D)), rng.standard_normal((D, C))
    arrays = {"latents": latents, "kernel": kernel, "bias": rng.standard_normal(C)}
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    logits = np.asarray(latents @ kernel + np.asarray(arrays["bias"]), np.float32)
    return arrays | {
        "logits": jnp.asarray(logits),
        "targets": jnp.asarray(rng.integers(0, C, (rows, S))),
        "where": jnp.asarray(rng.random((rows, S)) < 0.8),
    }


def ids_of(kind, rows=B):
    """Ids of rows, or of the tokens of packed rows, with padding."""
    if kind == "rows":
        return jnp.asarray([3, 0, 8, -1][:rows])
    # One document goes on in the next row, and one lies in two places of its row.
    packed = [[5, 5, 5, 2, 2, 7], [7, 7, 1, 1, -1, -1], [4, 0, 4, 0, 4, 4], [6, 6, 6, 6, 6, 6]]
    return jnp.asarray(packed[:rows])


def wanted_of(given, ids, reduce, **options):
    """The oracle of the core, with float64 gradients written out."""
    host = {name: np.asarray(x) for name, x in given.items()}
    groups = np.broadcast_to(np.asarray(ids)[:, None] if ids.ndim == 1 else np.asarray(ids), (B, S))
    return oracles.sequence_scores(
        host["latents"].astype(float) @ host["kernel"] + host["bias"],
        host["latents"].astype(float),
        np.linalg.norm(host["kernel"].astype(float)),
        host["targets"],
        groups,
        N,
        bias=host["bias"],
        where=host["where"],
        reduce=reduce,
        **options,
    )


def close(found, wanted, tolerance=1e-5):
    """Assert that scores are the same, and nan in the same places."""
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance / 5)


def score(given, ids, reduce, **options):
    """Scores of one batch."""
    state = gwa_jax.update(gwa_jax.init(N, reduce=reduce), **given, ids=ids, **options)
    return gwa_jax.scores(state)


def autograd(given, ids, **options):
    """Each sequence's own loss by the kernel, by float64 automatic differentiation."""

    def loss(kernel, latents, bias, targets, counted):
        log_p = jax.nn.log_softmax(latents @ kernel + bias)
        return -jnp.sum(jnp.where(counted[:, :, None], targets * log_p, 0.0))

    smoothing, weights = options.get("label_smoothing", 0.0), options.get("class_weights")
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        host = {name: np.asarray(x) for name, x in given.items()}
        soft = (1 - smoothing) * np.eye(C)[host["targets"]] + smoothing / C
        soft = soft if weights is None else soft * np.asarray(weights, np.float64)
        kernel = host["kernel"].astype(np.float64)
        fixed = (jnp.asarray(host[name].astype(np.float64)) for name in ("latents", "bias"))
        by_kernel = jax.jit(jax.grad(functools.partial(loss, targets=soft)))
        fixed, scores = tuple(fixed), np.full(N, np.nan)
        for k in range(N):
            own = np.asarray(ids == k)
            counted = host["where"] & (own if own.ndim == 2 else own[:, None])
            if counted.any():
                g = np.asarray(by_kernel(kernel, fixed[0], fixed[1], counted=counted))
                scores[k] = -(g * kernel).sum() / np.linalg.norm(g) / np.linalg.norm(kernel)
    return scores


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=["plain", "smoothed"])
@pytest.mark.parametrize("kind", ["rows", "packed"])
def test_gradient_is_that_of_the_loss_of_the_sequence(kind, options):
    given, ids = batch(), ids_of(kind)
    wanted = autograd(given, ids, **options)
    whole = np.arange(N) != 7  # in two rows, so not exact
    close(score(given, ids, "gradient", **options)[whole], wanted[whole])
    close(wanted_of(given, ids, "gradient", **options)[whole], wanted[whole], 1e-6)


def test_class_weights_count_in_the_sum_over_tokens():
    given, ids = batch(), ids_of("rows")
    plain = score(given, ids, "gradient")
    for options in ({}, {"label_smoothing": 0.2}):
        options["class_weights"] = jnp.linspace(0.3, 3.0, C)
        found = score(given, ids, "gradient", **options)
        close(found, autograd(given, ids, **options))
        assert np.nanmax(np.abs(found - plain)) > 0.01


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("kind", ["rows", "packed"])
@pytest.mark.parametrize("with_logits", [True, False])
def test_scores_equal_a_loop(reduce, kind, with_logits):
    given, ids = batch(), ids_of(kind)
    wanted = wanted_of(given, ids, reduce)
    assert np.isfinite(wanted).sum() == (3 if kind == "rows" else 7)
    logits = given.pop("logits")
    more = {"logits": logits} if with_logits else {}
    close(score(given | more, ids, reduce), wanted)


@pytest.mark.parametrize("by", ["targets", "gradient"])
def test_half_precision_is_raised(by):
    given, ids = batch(), ids_of("rows")
    names = ("latents", "kernel", "bias", "logits")
    half = given | {name: given[name].astype(jnp.bfloat16) for name in names}
    more = {}
    if by == "gradient":
        loss = functools.partial(capped, targets=given["targets"], where=given["where"])
        more = {"logit_gradients": jax.grad(loss)(given["logits"])}
    found = score(half, ids, "gradient", **more)
    assert found.dtype == jnp.float32
    more = {name: g.astype(jnp.bfloat16) for name, g in more.items()}
    close(score(half, ids, "gradient", **more), score(given, ids, "gradient", **more), 0.05)
    close(found, score(given, ids, "gradient", **more), 0.05)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_blocks_of_rows_give_the_same(reduce, monkeypatch):
    given, ids = batch(), ids_of("packed")
    wanted = score(given, ids, reduce)
    del given["logits"]
    monkeypatch.setattr(_sequences, "BLOCK_BYTES", 3 * S * (S + C) * 4)
    _sequences.gradient_parts.clear_cache()
    close(score(given, ids, reduce), wanted)
    _sequences.gradient_parts.clear_cache()


@pytest.mark.parametrize("shape", [(2, 2, S), (B, 2, S // 2), (B * S,)])
def test_other_shapes_of_tokens(shape):
    given, ids, reduce = batch(), ids_of("packed"), "gradient"
    wanted = score(given, ids, reduce)
    names = ("latents", "logits", "targets", "where")
    other = given | {name: given[name].reshape(*shape, *given[name].shape[2:]) for name in names}
    if shape == (2, 2, S):
        # Rows of rows: an id each.
        ids = jnp.arange(4)
        found = score(other, ids.reshape(2, 2), reduce)
        close(found, score(given, ids, reduce))
        return
    found = score(other, ids.reshape(shape), reduce)
    # In one row a sequence that was cut is whole.
    same = np.arange(N) != 7 if shape == (B * S,) else slice(None)
    close(found[same], wanted[same])


# The gradient of a loss


def capped(logits, targets, where):
    """A loss that the closed form does not know, which sees some of the tokens."""
    log_p = jax.nn.log_softmax(2.0 * jnp.tanh(logits / 2.0))
    return -jnp.sum(jnp.where(where[..., None], jax.nn.one_hot(targets, C) * log_p, 0.0)) / 7


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_any_loss_by_its_gradient(reduce):
    given, ids = batch(), ids_of("packed")
    where = given.pop("where")
    g = jax.grad(capped)(given["logits"], given.pop("targets"), where)
    found = score(given, ids, reduce, logit_gradients=g)
    # The loss does not see what it masks, and no mask has to be given.
    close(found, score(given | {"where": where}, ids, reduce, logit_gradients=g), 1e-7)
    host = {name: np.asarray(x, np.float64) for name, x in given.items()}
    residuals, activations = -np.asarray(g, np.float64), host["latents"] @ host["kernel"]
    for k in range(N):
        own = np.argwhere(np.asarray(where & (ids == k)))
        if k == 7 or not len(own):
            continue
        pulls = [np.outer(host["latents"][b, t], residuals[b, t]) for b, t in own]
        cosines = oracles.cosine(
            np.stack([*pulls, sum(pulls)]).reshape(len(own) + 1, -1), host["kernel"].ravel()
        )
        tokens, whole = cosines[:-1], cosines[-1]
        wanted = {"mean": tokens.mean(), "min": tokens.min(), "gradient": whole}[reduce]
        close(found[k], wanted)
    assert activations.shape == residuals.shape


@pytest.mark.parametrize("reduce", ["mean", "gradient"])
def test_closed_form_and_gradient_agree(reduce):
    given, ids = batch(), ids_of("rows")

    def loss(logits):
        log_p = jax.nn.log_softmax(logits)
        hot = jax.nn.one_hot(given["targets"], C)
        return -jnp.sum(jnp.where(given["where"][..., None], hot * log_p, 0.0))

    g = jax.grad(loss)(given["logits"])
    wanted = score(given, ids, reduce)
    del given["targets"]
    close(score(given, ids, reduce, logit_gradients=g), wanted, 2e-5)


# An epoch


def epoch_of(state, given, ids, size=2):
    """The rows of a batch in several updates, in one compiled scan."""

    def body(state, part):
        rows, kernel_free = part
        return gwa_jax.update(state, **kernel_free, **fixed, ids=rows), None

    fixed = {name: given[name] for name in ("kernel", "bias")}
    split = {n: x.reshape(-1, size, *x.shape[1:]) for n, x in given.items() if n not in fixed}
    return jax.lax.scan(body, state, (ids.reshape(-1, size, *ids.shape[1:]), split))[0]


@pytest.mark.parametrize(
    ("reduce", "kind"), [("mean", "rows"), ("min", "packed"), ("gradient", "packed")]
)
def test_what_comes_of_a_sequence_in_batches_adds_up(reduce, kind):
    given, ids = batch(rows=8), jnp.concatenate([ids_of(kind), ids_of(kind)[::-1]])
    run = jax.jit(functools.partial(epoch_of, size=2), donate_argnums=0)
    state = run(gwa_jax.init(N, reduce=reduce), given, ids)
    one = gwa_jax.update(gwa_jax.init(N, reduce=reduce), **given, ids=ids)
    close(gwa_jax.scores(state), gwa_jax.scores(one))
    parts = [{n: x[k : k + 4] if x.shape[0] == 8 else x for n, x in given.items()} for k in (0, 4)]
    states = [
        gwa_jax.update(gwa_jax.init(N, reduce=reduce), **part, ids=ids[k : k + 4])
        for k, part in zip((0, 4), parts, strict=True)
    ]
    close(gwa_jax.scores(gwa_jax.merge(*states)), gwa_jax.scores(one))
    if reduce == "gradient":
        return
    # A loop over the tokens of an id, wherever they came.
    tokens = gwa_jax.head_scores(**given)
    groups = np.broadcast_to(ids[:, None] if ids.ndim == 1 else ids, (8, S))
    for k in range(N):
        own = np.asarray(tokens)[(groups == k) & np.asarray(given["where"])]
        wanted = getattr(np, reduce)(own) if len(own) else np.nan
        close(gwa_jax.scores(state)[k], wanted)


@pytest.mark.parametrize("reduce", ["min", "gradient"])
def test_an_epoch_ends_and_label_quality_goes_on(reduce):
    state, history, summaries = gwa_jax.init(N, reduce=reduce), [], []
    ids = jnp.arange(8)
    for seed in range(3):
        state = gwa_jax.update(state, **batch(seed, rows=8), ids=ids)
        history.append(np.asarray(gwa_jax.scores(state), np.float64))
        state, summary = gwa_jax.end_epoch(state)
        summaries.append(gwa_jax.fetch(summary))
        assert np.isnan(gwa_jax.scores(state)).all()
    assert [s.count for s in summaries] == [8, 8, 8]
    assert [s.omitted for s in summaries] == [0, 0, 0]
    close(summaries[1].mean, np.nanmean(history[1]))
    wanted = gwa_core.label_quality(np.stack(history))
    close(gwa_jax.label_quality(state), wanted)


def test_an_epoch_cut_short_is_known():
    state = gwa_jax.init(8, reduce="mean")
    given, ids = batch(rows=8), jnp.arange(8)
    expected = []
    for rows in (8, 4, 8):
        part = {n: x[:rows] if x.shape[0] == 8 else x for n, x in given.items()}
        for k in range(0, rows, 2):
            two = {n: x[k : k + 2] if x.shape[0] == rows else x for n, x in part.items()}
            state = gwa_jax.update(state, **two, ids=ids[k : k + 2])
        state, summary = gwa_jax.end_epoch(state)
        expected.append(gwa_jax.fetch(summary).expected)
    assert expected == [8, 8, 8]
    # Packed rows: a sequence begins where the id changes.
    state = gwa_jax.update(gwa_jax.init(N, reduce="mean"), **batch(), ids=ids_of("packed"))
    assert int(state.rows) == 3 + 2 + 5 + 1
    assert int(state.omitted) == 0


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_what_is_not_finite_and_ids_that_are_not_there_are_counted(reduce):
    given = batch()
    given["where"] = jnp.ones((B, S), bool)
    wanted = score(given, jnp.arange(B), reduce)
    given["latents"] = given["latents"].at[1, 2, 0].set(jnp.nan)
    given["logits"] = given["logits"].at[1, 2].set(jnp.nan)
    state = gwa_jax.init(N, reduce=reduce)
    state = gwa_jax.update(state, **given, ids=jnp.asarray([0, 1, N, -1]))
    close(gwa_jax.scores(state)[:1], wanted[:1])
    assert np.isnan(gwa_jax.scores(state)[1:]).all()
    summary = gwa_jax.fetch(gwa_jax.summary(state))
    assert (summary.count, summary.omitted) == (1, 2)


def test_models_side_by_side():
    runs = [batch(seed) for seed in range(3)]
    stacked = {name: jnp.stack([run[name] for run in runs]) for name in runs[0]}
    ids = ids_of("packed")

    def one(given):
        state = gwa_jax.update(gwa_jax.init(N, reduce="gradient"), **given, ids=ids)
        return gwa_jax.end_epoch(state)[0], gwa_jax.scores(state), state

    ended, found, states = jax.jit(jax.vmap(one))(stacked)
    for k, run in enumerate(runs):
        close(found[k], score(run, ids, "gradient"))
    close(gwa_jax.scores(states), found)
    assert gwa_jax.label_quality(ended).shape == (3, N)


def test_scores_of_tokens_that_are_known_already():
    given, ids = batch(), ids_of("packed")
    tokens = gwa_jax.head_scores(**given)
    for reduce in ("mean", "min"):
        state = gwa_jax.init(N, reduce=reduce)
        added = gwa_jax.add(state, tokens, ids=ids, where=given["where"])
        np.testing.assert_array_equal(gwa_jax.scores(added), score(given, ids, reduce))
    with pytest.raises(TypeError, match="not known from the scores of its tokens, call `update`"):
        gwa_jax.add(gwa_jax.init(N, reduce="gradient"), tokens, ids=ids)


def test_a_sequence_takes_sixteen_bytes():
    for reduce in REDUCTIONS:
        init = functools.partial(gwa_jax.init, 1_000_000, reduce=reduce)
        shapes = jax.eval_shape(init)
        assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)) < 16_000_200


def test_the_metric_of_flax():
    flax = pytest.importorskip("gwa_jax.flax")
    given, ids = batch(), ids_of("rows")
    metric = flax.GWAMetric(N, reduce="min")
    given["labels"], given["mask"] = given.pop("targets"), given.pop("where")
    metric.update(**given, ids=ids)
    given["targets"], given["where"] = given.pop("labels"), given.pop("mask")
    np.testing.assert_array_equal(metric.scores(), score(given, ids, "min"))


# What does not fit


CASES = [
    ("an unknown way", lambda: gwa_jax.init(N, reduce="sum"), "`reduce` must be one of 'mean'"),
    ("no number of them", lambda: gwa_jax.init(reduce="mean"), "`reduce` must come with"),
    ("rows without a way", lambda: score(batch(), ids_of("rows"), None), r"say init\(.*'mean'\)"),
    ("tokens without a way", lambda: score(batch(), ids_of("packed"), None), "one score.*reshaped"),
    ("no ids", lambda: gwa_jax.update(gwa_jax.init(N, reduce="mean"), **batch()), "`ids` and"),
    ("ids of other rows", lambda: score(batch(), jnp.arange(3), "gradient"), "one entry a sample"),
    ("a mask of rows", lambda: score(batch() | {"where": jnp.ones(B, bool)}, ids_of("rows"), "min"),
     "`where` must have one entry a sample"),
    ("a bias of rows", lambda: score(batch() | {"bias": jnp.ones((S, C))}, ids_of("rows"),
     "gradient"), r"`bias` must be \(C,\) = \(5,\)"),
    ("labels of rows", lambda: score(batch() | {"targets": jnp.ones(B, int)}, ids_of("rows"),
     "gradient"), "`targets` must be"),
    ("two ways", lambda: gwa_jax.merge(gwa_jax.init(N, reduce="mean"), gwa_jax.init(N)),
     "the same `reduce`"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_does_not_fit(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_ids_of_64_bits_do_not_wrap_to_another_sequence():
    with jax.enable_x64(True):
        state = gwa_jax.init(3, reduce="mean")
        ids = jnp.asarray(np.array([2**32 + 1, 0]))
        assert ids.dtype == jnp.int64
        scores = jnp.asarray([[0.1, 0.2], [0.3, 0.5]])
        state = gwa_jax.add(state, scores, ids=ids)
        found = np.asarray(gwa_jax.scores(state))
    np.testing.assert_allclose(found, [0.4, np.nan, np.nan], rtol=1e-6)
