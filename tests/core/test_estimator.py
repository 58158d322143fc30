import numpy as np
import oracles
import pytest

from gwa_core import Moments, exponential_window, glass_delta, gwa_score, summarize

X = np.random.default_rng(0).beta(3, 4, (60, 32)) - 0.3


def test_gwa_of_a_batch_is_gwa_of_its_scores():
    assert gwa_score(X[0], beta=2.0) == pytest.approx(oracles.gwa(X[0], 2.0), rel=1e-12)
    assert gwa_score(X[0]) == pytest.approx(oracles.gwa(X[0]), rel=1e-12)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_window_weighs_samples_by_their_age(decay):
    window = Moments.empty(X)
    for batch in X:
        window = exponential_window(window, batch, decay=decay)
    want = oracles.exponential_window(list(X), decay)
    np.testing.assert_allclose(np.asarray(window[:10], float), want, rtol=1e-9)


def test_window_follows_a_drift_that_a_whole_run_would_average_away():
    window = Moments.empty(X)
    for batch in [*(X[:30] - 0.5), *(X[30:] + 0.5)]:
        window = exponential_window(window, batch, decay=0.8)
    assert summarize(window).mean == pytest.approx(X[30:].mean() + 0.5, abs=0.02)


def test_window_keeps_its_count_bounded():
    window = Moments.empty(X)
    for _ in range(40):
        for batch in X:
            window = exponential_window(window, batch, decay=0.9)
    assert window.count == pytest.approx(32 / (1 - 0.9), rel=1e-9)
    assert np.isfinite(summarize(window).gwa_standard_error)


def test_glass_delta_by_hand_and_from_moments():
    online, offline = X[0] + 0.05, X[1]
    got = glass_delta(online, offline)
    assert got == pytest.approx(oracles.glass_delta(online, offline), rel=1e-12)
    mixed = glass_delta(Moments.from_batch(online), offline)
    both = glass_delta(Moments.from_batch(online), Moments.from_batch(offline))
    assert got == pytest.approx(mixed, rel=1e-14)
    assert got == pytest.approx(both, rel=1e-14)
    assert glass_delta(offline, offline) == 0.0
    assert glass_delta(offline - 1, offline) < 0


@pytest.mark.parametrize("offline", [np.full(4, 0.2), np.asarray([0.2]), np.zeros(0)])
def test_glass_delta_needs_a_spread(backend, offline):
    arrays = backend.arrays(online=X[0], offline=offline)
    got = backend.call(lambda a: glass_delta(a["online"], a["offline"]), arrays)
    assert np.isnan(backend.read(got))
