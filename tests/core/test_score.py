import numpy as np
import oracles
import pytest
from backends import require

from gwa_core import Moments, Summary, gwa_score, summarize

SKEWED = np.random.default_rng(0).beta(2, 5, 3000) - 0.2
TWO_POINTS = np.asarray([-0.3, 0.3] * 50)


@pytest.mark.parametrize("beta", [1.2, 0.0, 5.0])
def test_summary_is_the_obvious_one(beta):
    got = summarize(SKEWED, beta=beta)
    np.testing.assert_allclose(np.asarray(got, float), oracles.summary(SKEWED, beta), rtol=1e-10)
    assert gwa_score(SKEWED, beta=beta) == got.gwa


def test_gwa_is_equation_two_with_the_moments_of_scipy():
    stats = require("scipy.stats")
    want = SKEWED.mean() / (stats.kurtosis(SKEWED) + 1.2)
    assert gwa_score(SKEWED) == pytest.approx(want, rel=1e-12)
    assert summarize(SKEWED).skewness == pytest.approx(stats.skew(SKEWED), rel=1e-12)


def test_a_hand_made_example():
    # Mean 0.1, variance 0.04, fourth moment 0.0064 / 2, so excess kurtosis 2 - 3.
    x = np.asarray([0.1 - 0.2 * 2**0.5, 0.1, 0.1, 0.1 + 0.2 * 2**0.5])
    summary = summarize(x)
    assert summary.kurtosis == pytest.approx(-1.0)
    assert summary.gwa == pytest.approx(0.1 / 0.2)
    assert summary.bimodality == pytest.approx(1.0 / 2.0)
    assert summary.negative_fraction == 0.25
    assert summary.healthy


@pytest.mark.parametrize(
    ("draw", "coefficient"),
    [
        (lambda rng: rng.normal(size=10**6), 1 / 3),
        (lambda rng: rng.uniform(size=10**6), 5 / 9),
        (lambda rng: rng.choice([-0.3, 0.3], 10**6), 1.0),
    ],
    ids=["normal", "uniform", "two points"],
)
def test_bimodality_of_known_distributions(draw, coefficient):
    summary = summarize(draw(np.random.default_rng(0)))
    assert summary.bimodality == pytest.approx(coefficient, rel=0.01)


def test_two_far_modes_are_not_healthy(backend):
    summary = backend.call(lambda a: summarize(a["x"]), backend.arrays(x=TWO_POINTS))
    assert float(backend.read(summary.denominator)) == pytest.approx(-0.8, rel=1e-5)
    assert not bool(summary.healthy)
    healthy = backend.call(lambda a: summarize(a["x"]).healthy, backend.arrays(x=SKEWED))
    assert bool(healthy)


def test_the_pole_itself_is_nan_and_not_healthy():
    # Excess kurtosis -2 exactly, and beta = 2 takes the denominator to 0.
    summary = summarize(np.asarray([-0.5, 0.5]), beta=2.0)
    assert summary.denominator == 0.0
    assert np.isnan(summary.gwa)
    assert np.isnan(summary.gwa_standard_error)
    assert not summary.healthy


@pytest.mark.parametrize(
    "x", [np.full(7, 0.3), np.zeros(0), np.full(3, np.nan), np.asarray([0.4])], ids=len
)
def test_scores_without_a_spread_have_no_gwa_and_no_health(backend, x):
    summary = backend.call(lambda a: summarize(a["x"]), backend.arrays(x=x))
    for field in ("gwa", "gwa_standard_error", "skewness", "kurtosis", "denominator", "bimodality"):
        assert np.isnan(backend.read(getattr(summary, field))), field
    assert not bool(summary.healthy)
    finite = np.isfinite(x)
    assert float(backend.read(summary.count)) == finite.sum()
    mean = float(backend.read(summary.mean))
    assert np.isnan(mean) if not finite.any() else mean == pytest.approx(x[0], rel=1e-2)
    for field in ("variance", "negative_fraction"):
        value = float(backend.read(getattr(summary, field)))
        assert value == 0.0 if finite.any() else np.isnan(value), field


def test_moments_and_scores_give_the_same(backend):
    def run(a):
        return summarize(a["x"]), summarize(Moments.from_batch(a["x"]))

    direct, merged = backend.call(run, backend.arrays(x=SKEWED))
    for a, b in zip(direct, merged, strict=True):
        np.testing.assert_allclose(backend.read(a), backend.read(b), rtol=1e-5)
    assert isinstance(direct, Summary)
    assert direct.gwa.dtype == getattr(backend.xp, backend.case.result_dtype)
    assert merged.gwa.dtype == getattr(backend.xp, backend.case.accumulator_dtype)


DRAWS = {
    "skewed": lambda rng, n: rng.beta(2, 5, n) - 0.2,
    "normal": lambda rng, n: 0.1 + 0.05 * rng.normal(size=n),
    "noisy labels": lambda rng, n: np.where(
        rng.random(n) < 0.15, rng.normal(-0.2, 0.1, n), rng.normal(0.3, 0.1, n)
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_standard_error_is_that_of_the_influence_function(name):
    x = DRAWS[name](np.random.default_rng(1), 2000)
    for beta in (1.2, 3.0):
        got = summarize(x, beta=beta).gwa_standard_error
        assert got == pytest.approx(oracles.gwa_standard_error(x, beta), rel=1e-9)


@pytest.mark.parametrize("name", DRAWS)
def test_standard_error_is_that_of_the_bootstrap(name):
    x = DRAWS[name](np.random.default_rng(2), 3000)
    got = summarize(x).gwa_standard_error
    assert got == pytest.approx(oracles.bootstrap_standard_error(x, draws=600), rel=0.12)


@pytest.mark.parametrize("name", DRAWS)
def test_standard_error_is_the_spread_over_fresh_samples(name):
    rng = np.random.default_rng(3)
    summaries = [summarize(DRAWS[name](rng, 2000)) for _ in range(500)]
    spread = np.std([s.gwa for s in summaries])
    assert np.mean([s.gwa_standard_error for s in summaries]) == pytest.approx(spread, rel=0.12)


def test_standard_error_survives_merging():
    whole = summarize(SKEWED)
    parts = [Moments.from_batch(part) for part in np.array_split(SKEWED, 37)]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    assert summarize(total).gwa_standard_error == pytest.approx(whole.gwa_standard_error, rel=1e-10)


def test_small_scores_keep_their_standard_error():
    # Eighth powers of 1e-4 leave float32, and sums in units of the spread must not.
    small = summarize(SKEWED * 1e-4)
    assert small.gwa_standard_error == pytest.approx(1e-4 * summarize(SKEWED).gwa_standard_error)
    single = summarize((SKEWED * 1e-4).astype("f4"))
    assert single.gwa_standard_error == pytest.approx(small.gwa_standard_error, rel=1e-4)


def test_gradient_of_gwa_is_that_of_the_formula():
    jax = require("jax")
    x = SKEWED[:50].astype("f4")
    got = np.asarray(jax.jit(jax.grad(gwa_score))(x))
    for i in (0, 7, 49):
        step = np.zeros(50)
        step[i] = 1e-5
        numeric = (oracles.gwa(x + step) - oracles.gwa(x - step)) / 2e-5
        assert got[i] == pytest.approx(numeric, rel=1e-3, abs=1e-6)
