import json
import tracemalloc

import numpy as np
import oracles
import pytest
from backends import CASE, open_case, require, skip_reason
from hypothesis import given
from hypothesis import strategies as st
from scenarios import HISTORY, make_trajectories

from gwa_core import (
    EpochSummary,
    LabelQuality,
    alignment_scores,
    epoch_weights,
    label_quality,
    rank_samples,
    summarize,
)

SCORES = st.lists(
    st.one_of(st.integers(-4, 4).map(lambda v: v / 4), st.sampled_from([np.nan, np.inf, -np.inf])),
    min_size=1,
    max_size=30,
)


def summaries(history):
    return [EpochSummary.from_summary(summarize(row), epoch=t) for t, row in enumerate(history)]


def memorised(epochs=25, seed=0):
    """A run that sees through its wrong labels for five epochs, and then knows them by heart."""
    apart = make_trajectories(5, 400, 2, seed)
    late = 0.3 + 0.08 * np.random.default_rng(seed).normal(size=(epochs - 5, 400))
    wrong = np.arange(400) % 5 == 0
    # What a network learned last it pulls on hardest.
    late[:, wrong] += 0.1
    return np.clip(np.concatenate([apart, late]), -1, 1), wrong


@given(SCORES, st.sampled_from(["lowest", "highest"]), st.data())
def test_ranking_is_a_sort_that_knows_ties_and_nan(scores, order, data):
    k = data.draw(st.integers(1, len(scores)))
    got = rank_samples(np.asarray(scores), k=k, order=order)
    assert got.tolist() == oracles.rank(scores, k, order)


@given(SCORES, st.data())
def test_ranking_within_classes(scores, data):
    n = len(scores)
    targets = np.asarray(data.draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n)))
    targets[data.draw(st.integers(0, n - 1))] = 2
    k = data.draw(st.integers(1, n))
    got = rank_samples(np.asarray(scores), k=k, targets=targets, per_class=True)
    assert got.shape == (max(targets) + 1, k)
    for label, row in enumerate(got):
        inside = np.where(targets == label, scores, np.nan)
        assert row.tolist() == oracles.rank(inside, k)


def test_ranking_on_every_backend(backend):
    reason = skip_reason("rank_samples", backend.case)
    if reason is not None:
        pytest.skip(reason)
    scores = np.asarray([0.5, np.nan, -0.5, 0.25, -0.5, np.inf, -np.inf])
    for order in ("lowest", "highest"):
        got = backend.call(
            lambda a, order=order: rank_samples(a["scores"], k=7, order=order),
            backend.arrays(scores=scores),
        )
        assert backend.read(got).tolist() == oracles.rank(scores, 7, order)


def test_wrong_labels_rank_lowest():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 20))
    clean = rng.integers(0, 4, 300)
    latents = weight[clean] + 0.5 * rng.normal(size=(300, 20))
    noisy = clean.copy()
    noisy[:30] = (noisy[:30] + 1) % 4
    scores = alignment_scores(latents=latents, weight=weight / 20, targets=noisy)
    assert set(rank_samples(scores, k=30)) == set(range(30))


def test_quality_follows_the_shape_of_the_scores(backend):
    got = backend.call(lambda a: label_quality(a["history"]), backend.arrays(history=HISTORY))
    want = oracles.label_quality(backend.read(backend.array(HISTORY)))
    np.testing.assert_allclose(backend.read(got), want, rtol=1e-5)


@pytest.mark.parametrize(("epochs", "peak"), [(6, 0), (6, 3), (30, 7), (30, 29), (2, 1)])
def test_epochs_in_which_scores_stand_apart_count_most(epochs, peak):
    history = make_trajectories(epochs, 400, peak)
    weights = epoch_weights(summaries(history))
    np.testing.assert_allclose(weights, oracles.epoch_weights(history), rtol=1e-9, atol=1e-15)
    assert int(np.argmax(weights)) == peak
    assert all(w < 0.05 * max(weights) for t, w in enumerate(weights) if abs(t - peak) > 3)
    np.testing.assert_allclose(label_quality(history), oracles.label_quality(history), rtol=1e-12)


def test_the_long_tail_of_an_untrained_network_is_not_two_modes():
    history = make_trajectories(9, 400, 5)
    # Of large skewness, which Sarle's coefficient takes for two modes; that of a normal one is 1/3.
    history[0] = -0.01 * np.random.default_rng(0).gamma(0.25, size=400)
    assert summarize(history[0]).bimodality > 0.5
    weights = epoch_weights(summaries(history))
    assert weights[0] == min(weights)
    assert weights[0] < 0.01 * weights[5]
    # Two values alone are two modes, whatever their shares; no weight is larger, nor by rounding.
    most = (2 / 3) ** 2 + 0.02**2
    for count in (1, 37, 200):
        two = np.where(np.arange(400) < count, -0.3, 0.7)
        assert epoch_weights(summaries([two])) == pytest.approx([most], rel=1e-9)
        assert epoch_weights(summaries([two.astype("f4")]))[0] <= most + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_a_memorised_run_gives_its_wrong_labels_away(seed):
    history, wrong = memorised(seed=seed)
    hits = {
        name: wrong[rank_samples(quality, k=int(wrong.sum()))].mean()
        for name, quality in {
            "weighted": label_quality(history),
            "mean": label_quality(history, method="mean"),
            "last": label_quality(history[-1:]),
        }.items()
    }
    assert hits["weighted"] > 0.95
    assert hits["mean"] < 0.3
    assert hits["last"] < 0.3


def test_pieces_of_samples_give_what_the_whole_gives():
    history, _ = memorised()
    history[3, 50:60], history[0, 70] = np.nan, np.inf
    weights = epoch_weights(summaries(history))
    pieces = [
        label_quality(history[:, i : i + 7], weights=weights) for i in range(0, history.shape[1], 7)
    ]
    np.testing.assert_allclose(np.concatenate(pieces), label_quality(history), rtol=1e-12)
    # Their own weights are others.
    alone = label_quality(history[:, :7])
    assert np.abs(alone - label_quality(history)[:7]).max() > 1e-3


def test_weights_that_are_given_count_and_their_size_does_not():
    history = np.asarray([[0.2, -0.4], [0.4, -0.2], [np.nan, 1.0]])
    want = [0.5 + 0.5 * (0.2 + 3 * 0.4) / 4, 0.5 + 0.5 * (-0.4 - 3 * 0.2) / 4]
    for size in (1.0, 1e-60, 1e60):
        for dtype in ("f4", "f8"):
            got = label_quality(history.astype(dtype), weights=[size, 3 * size, 0.0])
            np.testing.assert_allclose(got, want, rtol=1e-6)
    ints = label_quality(history, weights=np.asarray([1, 3, 0]))
    np.testing.assert_allclose(ints, want, rtol=1e-12)


def test_a_sample_of_few_epochs_is_judged_by_those():
    history = make_trajectories(6, 400, 2)
    least = int(np.argmin(epoch_weights(summaries(history))))
    for seen in ([2], [0, 5], [least]):
        partly = history.copy()
        partly[[t for t in range(6) if t not in seen], 7] = np.nan
        quality = label_quality(partly)
        np.testing.assert_allclose(quality, oracles.label_quality(partly), rtol=1e-12)
        low, high = history[seen, 7].min(), history[seen, 7].max()
        assert (1 + low) / 2 - 1e-12 <= quality[7] <= (1 + high) / 2 + 1e-12


def test_an_epoch_without_a_distribution_counts_nothing():
    history = make_trajectories(6, 400, 2)
    with_gaps = np.insert(history, [1, 4], [[0.1], [np.nan]], axis=0)
    weights = epoch_weights(summaries(with_gaps))
    assert (weights[1], weights[5]) == (0.0, 0.0)
    np.testing.assert_allclose(label_quality(with_gaps), label_quality(history), rtol=1e-12)


@pytest.mark.parametrize(
    "history",
    [
        make_trajectories(1, 400, 0),
        np.full((3, 20), 0.1),
        np.full((3, 20), np.nan),
        # The same scores, but for the rounding of their sums.
        np.random.default_rng(0).permuted(np.tile(make_trajectories(1, 400, 0), (9, 1)), axis=1),
    ],
    ids=["one epoch", "constant scores", "nothing seen", "shuffled scores"],
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_where_no_epoch_stands_out_all_count_alike(history, dtype):
    history = history.astype(dtype)
    weights = epoch_weights(summaries(history))
    np.testing.assert_allclose(weights, weights[0], rtol=1e-5 if dtype == "f4" else 1e-12)
    np.testing.assert_allclose(
        label_quality(history), label_quality(history, method="mean"), rtol=1e-6
    )


@pytest.mark.parametrize("until", [1, 3, 6, 99])
def test_until_and_mean_are_averages(until):
    want = oracles.label_quality(HISTORY, until)
    np.testing.assert_allclose(label_quality(HISTORY, until=until), want, rtol=1e-12)
    np.testing.assert_allclose(
        label_quality(HISTORY, method="mean"), oracles.label_quality(HISTORY, 99), rtol=1e-12
    )


def test_quality_is_low_for_wrong_labels_and_in_range():
    quality = label_quality(HISTORY)
    wrong = np.arange(HISTORY.shape[1]) % 5 == 0
    seen = np.isfinite(quality)
    assert quality[wrong & seen].max() < quality[~wrong & seen].min()
    assert quality[seen].min() >= 0.0
    assert quality[seen].max() <= 1.0
    assert np.isnan(quality[3])


def test_quality_of_perfect_scores_is_exactly_zero_and_one():
    history = np.tile(np.asarray([[1.0, -1.0]], "f4"), (3, 1))
    assert label_quality(history, method="mean").tolist() == [1.0, 0.0]


def test_single_precision_ranks_as_double():
    history, _ = memorised()
    single, double = label_quality(history.astype("f4")), label_quality(history)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, atol=1e-6)
    np.testing.assert_allclose(
        epoch_weights(summaries(history.astype("f4"))), epoch_weights(summaries(history)), atol=1e-4
    )


def streamed(history, summaries=None):
    """The label quality of a history, epoch by epoch."""
    quality = LabelQuality(history.shape[1])
    for t in range(history.shape[0]):
        summary = summarize(history[t, ...]) if summaries is None else summaries[t]
        quality.update(history[t, ...], summary)
    return quality


def sparse_history(seed=0, epochs=12, samples=60):
    """Scores with gaps, epochs that have no kurtosis, and a sample that only those have seen."""
    rng = np.random.default_rng(seed)
    history = make_trajectories(epochs, samples, 2, seed)
    history[rng.random(history.shape) < 0.3] = np.nan
    history[[1, 4]] = np.nan
    history[1, :7], history[4, 5:9] = 0.25, -0.5
    history[:, 5] = np.where(np.arange(epochs) == 1, 0.25, np.nan)
    history[:, 8] = np.where(np.arange(epochs) == 4, -0.5, np.nan)
    history[:, 9] = np.nan
    return history


@pytest.mark.parametrize("name", ["numpy-f64", "numpy-readonly", "strict", "torch-f64"])
def test_streamed_label_quality_is_that_of_the_history(name):
    with open_case(CASE[name]) as backend:
        history = sparse_history()
        want = label_quality(history)
        assert np.isnan(want[9])
        assert np.isfinite(want[[5, 8]]).all()
        arrays = backend.arrays(history=history)
        got = backend.read(streamed(arrays["history"]).value)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=0)


def test_streamed_label_quality_under_jit():
    with open_case(CASE["jax-x64-jit"]) as backend:
        history = sparse_history(1, epochs=6)
        found = backend.call(
            lambda a: streamed(a["history"]).value, backend.arrays(history=history)
        )
        np.testing.assert_allclose(backend.read(found), label_quality(history), rtol=1e-12, atol=0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4))
def test_label_quality_over_any_split_of_epochs_and_ranks(seed, ranks, shards):
    history = sparse_history(seed)
    wholes = [summarize(row) for row in history]
    rng = np.random.default_rng(seed)
    rank_of = rng.integers(0, ranks, history.shape)
    shard_of = rng.integers(0, shards, len(history))
    parts = []
    for rank in range(ranks):
        for shard in range(shards):
            part = LabelQuality(history.shape[1])
            for t in np.flatnonzero(shard_of == shard):
                part.update(np.where(rank_of[t] == rank, history[t], np.nan), wholes[t])
            parts.append(part)
    merged = LabelQuality(history.shape[1])
    for i in rng.permutation(len(parts)):
        merged.merge(parts[i])
    np.testing.assert_allclose(merged.value, label_quality(history), rtol=1e-12, atol=0)


def test_label_quality_of_half_precision_and_float32():
    history = sparse_history()
    want = label_quality(history)
    for dtype, tolerance in ((np.float16, 2e-3), (np.float32, 1e-6)):
        got = streamed(history.astype(dtype)).value
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=tolerance)


def test_label_quality_saved_and_resumed_where_the_scores_are():
    history, torch = sparse_history(), require("torch")
    for array in (np.asarray, torch.as_tensor):
        first = streamed(array(history[:5]))
        rest = LabelQuality(np.int64(60))
        rest.load_state_dict(first.state_dict())
        before = np.asarray(first.value)
        for row in history[5:]:
            rest.update(array(row), summarize(array(row)))
        np.testing.assert_allclose(np.asarray(rest.value), label_quality(history), rtol=1e-12)
        assert isinstance(rest.value, type(array(history)))
        # Resuming leaves the one that was saved as it was, and merging leaves the other.
        np.testing.assert_array_equal(np.asarray(first.value), before)
        first.merge(rest)
        np.testing.assert_allclose(np.asarray(rest.value), label_quality(history), rtol=1e-12)
        # A live one takes one that was only loaded, and the other way round.
        live, loaded = streamed(array(history[5:])), LabelQuality(60)
        loaded.load_state_dict(streamed(array(history[:5])).state_dict())
        live.merge(loaded)
        loaded.merge(streamed(array(history[5:])))
        for one in (live, loaded):
            np.testing.assert_allclose(np.asarray(one.value), label_quality(history), rtol=1e-12)
    empty = LabelQuality(60)
    assert empty.value is None
    assert json.loads(json.dumps(empty.state_dict()))["sums"] is None
    for wrong in ({}, {**empty.state_dict(), "version": 0}, LabelQuality(4).state_dict()):
        with pytest.raises(ValueError, match="`state` must be of version"):
            empty.load_state_dict(wrong)


def test_label_quality_of_a_million_samples_fits_in_forty_megabytes():
    rng = np.random.default_rng(0)
    scores = rng.normal(0.2, 0.1, 10**6).astype(np.float32)
    summary = summarize(scores)
    tracemalloc.start()
    try:
        quality = LabelQuality(10**6)
        for _ in range(3):
            quality.update(scores, summary)
        assert quality.value.shape == (10**6,)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Two sums a sample, the answer, and blocks: nothing that grows with the epochs.
    assert peak < 40e6, peak


def test_counts_and_fractions_of_numpy():
    scores = np.asarray([0.3, -0.2, 0.1])
    assert rank_samples(scores, k=(scores < 0.2).sum()).tolist() == [1, 2]
    np.testing.assert_array_equal(
        label_quality(scores[None], until=np.int32(1)), label_quality(scores[None], until=1)
    )
    for wrong in (True, np.bool_(True), require("torch").tensor(True), 2.0, np.float64(2)):
        with pytest.raises(ValueError, match="`k` must be an integer"):
            rank_samples(scores, k=wrong)
