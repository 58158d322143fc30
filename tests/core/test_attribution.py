import numpy as np
import oracles
import pytest
from backends import skip_reason
from hypothesis import given
from hypothesis import strategies as st
from scenarios import HISTORY, make_trajectories

from gwa_core import (
    EpochSummary,
    alignment_scores,
    informative_epochs,
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


def test_quality_follows_the_bimodality(backend):
    got = backend.call(lambda a: label_quality(a["history"]), backend.arrays(history=HISTORY))
    want = oracles.label_quality(backend.read(backend.array(HISTORY)))
    np.testing.assert_allclose(backend.read(got), want, rtol=1e-5)


@pytest.mark.parametrize(
    ("epochs", "peak", "used"),
    [(6, 2, 5), (6, 3, 6), (6, 0, 1), (30, 7, 15), (30, 14, 29), (1, 0, 1)],
)
def test_epochs_up_to_twice_the_peak_are_used(epochs, peak, used):
    history = make_trajectories(epochs, 400, peak)
    assert oracles.informative_epochs(history) == used
    assert informative_epochs(summaries(history)) == used
    np.testing.assert_allclose(
        label_quality(history), label_quality(history, until=used), rtol=1e-12
    )
    np.testing.assert_allclose(label_quality(history), oracles.label_quality(history), rtol=1e-12)


def test_a_peak_in_the_first_tenth_is_not_looked_at():
    history = make_trajectories(30, 400, 1)
    used = informative_epochs(summaries(history))
    assert used == oracles.informative_epochs(history)
    assert used >= 7


def test_without_a_healthy_epoch_all_are_used():
    history = np.tile([[-0.5, 0.5]], (4, 50)) + np.arange(4)[:, None] / 10
    assert informative_epochs(summaries(history)) == 4
    np.testing.assert_allclose(label_quality(history), label_quality(history, method="mean"))


def test_unhealthy_epochs_are_no_peak():
    history = make_trajectories(12, 400, 2)
    history[8] = np.where(np.arange(400) % 2, 0.6, -0.6)
    assert informative_epochs(summaries(history)) == 5


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


def test_memorised_epochs_do_not_hide_wrong_labels():
    apart = make_trajectories(5, 400, 2)
    memorised = np.full((20, 400), 0.9) + 0.01 * np.random.default_rng(0).normal(size=(20, 400))
    wrong = np.arange(400) % 5 == 0
    memorised[:, wrong] += 0.05
    history = np.concatenate([apart, np.clip(memorised, -1, 1)])
    lowest = set(rank_samples(label_quality(history), k=int(wrong.sum())))
    assert lowest == set(np.flatnonzero(wrong))
