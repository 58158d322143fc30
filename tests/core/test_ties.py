"""Standard errors of the signals of rules, and the epochs that they cannot tell apart."""

import math

import mpmath
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwa_core import (
    DipThenMax,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    Moments,
    near_ties,
    select_epoch,
    signal_standard_error,
    summarize,
)

SIGNALS = ("separation", "bimodality")
DRAWS = {
    "skewed": lambda rng, n: rng.beta(2, 5, n) - 0.1,
    "normal": lambda rng, n: 0.1 + 0.05 * rng.normal(size=n),
    "noisy labels": lambda rng, n: np.where(
        rng.random(n) < 0.15, rng.normal(-0.2, 0.1, n), rng.normal(0.3, 0.1, n)
    ),
}
X = DRAWS["noisy labels"](np.random.default_rng(4), 800)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("name", DRAWS)
def test_the_standard_error_is_the_spread_over_fresh_samples(name, signal):
    rng = np.random.default_rng(5)
    drawn = [DRAWS[name](rng, 2000) for _ in range(500)]
    spread = np.std([getattr(summarize(x), signal) for x in drawn])
    errors = [signal_standard_error(x, signal=signal) for x in drawn[:50]]
    assert np.mean(errors) == pytest.approx(spread, rel=0.12)


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_standard_error_is_that_of_the_derivatives_in_60_digits(signal):
    # Influence by definition: the slope of the signal as the weight of one score grows.
    x = [mpmath.mpf(float(value)) for value in X[:60]]

    def value(weights):
        total = mpmath.fsum(weights)
        mean = mpmath.fsum(w * a for w, a in zip(weights, x, strict=True)) / total
        m2, m3, m4 = (
            mpmath.fsum(w * (a - mean) ** k for w, a in zip(weights, x, strict=True)) / total
            for k in (2, 3, 4)
        )
        bimodality = (m3**2 / m2**3 + 1) / (m4 / m2**2)
        return bimodality * mpmath.root(mean, 4) if signal == "separation" else bimodality

    with mpmath.workdps(60):
        ones, step = [mpmath.mpf(1)] * len(x), mpmath.mpf(10) ** -25
        slopes = [
            (value([*ones[:i], 1 + step, *ones[i + 1 :]]) - value(ones)) / step
            for i in range(len(x))
        ]
        want = float(mpmath.sqrt(mpmath.fsum(slope**2 for slope in slopes)))
    assert signal_standard_error(X[:60], signal=signal) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("signal", [*SIGNALS, "gwa"])
def test_moments_in_any_parts_have_the_standard_error_of_the_whole(signal):
    total = Moments.empty(X)
    for part in np.array_split(X, 7):
        total = total.merge(Moments.from_batch(part))
    whole = signal_standard_error(X, signal=signal)
    assert signal_standard_error(total, signal=signal) == pytest.approx(whole, rel=1e-10)
    if signal == "gwa":
        assert whole == summarize(X).gwa_standard_error


@given(
    st.lists(st.floats(-1, 1, width=16), min_size=4, max_size=40),
    st.sampled_from(SIGNALS),
    st.integers(2, 5),
)
def test_copies_of_all_scores_divide_the_error_by_a_root(values, signal, copies):
    x = np.asarray(values, np.float64)
    once = signal_standard_error(x, signal=signal)
    again = signal_standard_error(np.tile(x, copies), signal=signal)
    if math.isnan(once):
        assert x.std() < 1e-6 or x.mean() <= 0
    else:
        assert again * math.sqrt(copies) == pytest.approx(once, rel=1e-4, abs=1e-7)


@given(st.floats(1e-6, 1.0), st.floats(-0.5, 0.5))
def test_bimodality_does_not_know_scale_or_place(scale, shift):
    want = signal_standard_error(X, signal="bimodality")
    got = signal_standard_error(X * scale + scale * shift, signal="bimodality")
    assert got == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("signal", SIGNALS)
def test_single_precision_is_enough(signal, scale):
    got = signal_standard_error((X * scale).astype("f4"), signal=signal)
    assert got.dtype == np.float32
    assert got == pytest.approx(oracles.signal_standard_error(X * scale, signal), rel=1e-5)


def test_what_has_no_standard_error():
    assert np.isnan(signal_standard_error(np.full(5, 0.3)))
    assert np.isnan(signal_standard_error(np.zeros(0)))
    assert np.isnan(signal_standard_error(-np.abs(X)))
    assert signal_standard_error(-np.abs(X), signal="bimodality") > 0
    with pytest.raises(ValueError, match="`signal` must be one of 'separation', 'bimodality', 'g"):
        signal_standard_error(X, signal="mean")
    with pytest.raises(ValueError, match="`scores_or_moments`"):
        signal_standard_error(X[None])


def rows(values, signal="separation", **columns):
    return [{signal: value, **columns} for value in values]


def tied(*arguments, **options):
    return np.flatnonzero(near_ties(*arguments, **options)).tolist()


def test_within_two_errors_of_the_difference():
    # Two errors of 0.03 and 0.04 are 0.05 together.
    values, errors = [0.5, 0.401, 0.399, 0.45, math.nan], [0.03, 0.04, 0.04, math.nan, 0.1]
    assert tied(rows(values), errors, MaxSeparation(warmup=0)) == [0, 1]


def test_epochs_that_the_rule_could_not_keep_are_never_tied():
    same = [0.4] * 8
    history = [{**row, "count": 100} for row in rows(same)]
    history[5]["count"] = 10
    assert tied(history, [0.1] * 8, MaxSeparation(warmup=2)) == [2, 3, 4, 6, 7]
    # After two without improvement the rule has stopped.
    assert tied(rows(same), [0.1] * 8, MaxSeparation(warmup=1, patience=2)) == [1, 2, 3]
    sick = [{"gwa": 0.4, "denominator": 1.0 - position} for position in range(3)]
    assert tied(sick, [1.0] * 3, MaxGWA(warmup=0)) == [0]
    dip = rows([0.5, 0.2, 0.45, 0.5, 0.5], "gwa")
    assert tied(dip, [1.0] * 5, DipThenMax()) == [2, 3, 4]


def test_no_epoch_kept_or_no_error_known():
    assert tied(rows([math.nan] * 2), [0.1] * 2, MaxSeparation(warmup=0)) == []
    assert tied(rows([0.1, 0.2]), [math.nan] * 2, MaxSeparation(warmup=0)) == [1]
    smoothed = MaxSeparation(warmup=0, smoothing=2)
    assert tied(rows([0.1, 0.2, 0.2]), [1.0] * 3, smoothed) == [2]


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 0.2)), min_size=1, max_size=12))
def test_the_kept_epoch_is_tied_and_larger_errors_tie_more(pairs):
    history, errors = rows([value for value, _ in pairs]), [error for _, error in pairs]
    found = near_ties(history, errors)
    assert found[select_epoch(history).step]
    assert np.all(near_ties(history, 2 * np.asarray(errors)) >= found)


def test_noise_alone_is_tied_and_a_real_difference_is_not():
    rng = np.random.default_rng(6)
    kinds = [0.15, 0.15, 0.15, 0.02]
    scores = [
        np.where(rng.random(4000) < share, rng.normal(-0.2, 0.1, 4000), rng.normal(0.3, 0.1, 4000))
        for share in kinds
    ]
    history = [summarize(x) for x in scores]
    errors = [signal_standard_error(x, signal="bimodality") for x in scores]
    assert tied(history, errors, MaxBimodality(warmup=0)) == [0, 1, 2]


def test_errors_of_the_arguments():
    with pytest.raises(ValueError, match="`history` must have at least one epoch"):
        near_ties([], [])
    for errors in ([0.1], [0.1, -0.1]):
        with pytest.raises(ValueError, match="`standard_errors` must be 2 numbers of at least 0"):
            near_ties(rows([0.1, 0.2]), errors)
    with pytest.raises(ValueError, match="must have the column 'gwa'"):
        near_ties(rows([0.1]), [0.1], MaxGWA())
