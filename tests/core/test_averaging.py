"""The shares of the epochs in the average of the weights."""

import json
import math

import mpmath
import numpy as np
import pytest
from backends import require
from hypothesis import given
from hypothesis import strategies as st

from gwa_core import EpochAverage, GWATracker, average_shares, summarize, update_share

SIGNALS = st.lists(
    st.one_of(
        st.floats(1e-30, 1.0),
        st.sampled_from([0.0, -0.5, math.nan, math.inf, None]),
    ),
    min_size=1,
    max_size=20,
)


def records(values, **columns):
    return [{"separation": value, **columns} for value in values]


def expected_shares(values, power, first=0):
    """Powers over their sum, in 60 digits."""
    with mpmath.workdps(60):
        weights = [
            mpmath.mpf(value) ** power
            if value is not None and position >= first and 0 < value < math.inf
            else mpmath.mpf(0)
            for position, value in enumerate(values)
        ]
        total = mpmath.fsum(weights)
        if total == 0:
            return [0.0] * (len(values) - 1) + [1.0]
        return [float(weight / total) for weight in weights]


@given(SIGNALS, st.sampled_from([0, 0.5, 1, 10, 200]), st.integers(0, 4))
def test_shares_are_powers_over_their_sum(values, power, warmup):
    got = average_shares(records(values), power, warmup)
    np.testing.assert_allclose(got, expected_shares(values, power, warmup), rtol=1e-10, atol=1e-14)
    assert got.dtype == np.float64
    assert math.isclose(got.sum(), 1.0, rel_tol=1e-12)


@given(SIGNALS, st.sampled_from([0, 3, 10]), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_the_running_mean_is_the_mean_by_the_final_shares(values, power, warmup, seed):
    weights = np.random.default_rng(seed).normal(size=(len(values), 3))
    average, mean = EpochAverage(power, warmup), np.full(3, 77.0)
    for record, new in zip(records(values), weights, strict=True):
        mean = mean + average.share(record) * (new - mean)
    shares = average_shares(records(values), power, warmup)
    np.testing.assert_allclose(mean, shares @ weights, rtol=1e-9, atol=1e-9)


@given(SIGNALS, st.integers(0, 20), st.integers(0, 3))
def test_a_resumed_average_goes_on_as_if_never_stopped(values, at, warmup):
    whole, first = EpochAverage(warmup=warmup), EpochAverage(warmup=warmup)
    wanted = [whole.share(record) for record in records(values)]
    got = [first.share(record) for record in records(values[:at])]
    second = EpochAverage(warmup=warmup)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert got + [second.share(record) for record in records(values[at:])] == wanted
    assert second.state_dict() == whole.state_dict()


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=20))
def test_the_scale_of_the_signal_does_not_matter(values):
    # A vocabulary of 50,000 words has scores of 0.004: to the tenth power, 1e-24.
    wanted = average_shares(records(values))
    np.testing.assert_allclose(
        average_shares(records([1e-60 * value for value in values])), wanted, rtol=1e-9, atol=1e-12
    )


def test_without_a_power_it_is_the_plain_mean_after_the_warm_up():
    shares = average_shares(records([0.9, 0.1, 0.5, 0.7, 0.2]), power=0, warmup=0.4)
    np.testing.assert_allclose(shares, [0, 0, 1 / 3, 1 / 3, 1 / 3], rtol=1e-15)


def test_the_warm_up_is_that_of_the_whole_run():
    average = EpochAverage(warmup=0.25, total_steps=8)
    shares = [average.share(record) for record in records([0.5, 0.5, 0.5, 0.5])]
    assert shares == pytest.approx([1, 1, 1, 0.5])
    assert (average.step, average.counted) == (4, 2)
    np.testing.assert_allclose(
        average_shares(records([0.5] * 4), warmup=0.25, total_steps=8), [0, 0, 0.5, 0.5]
    )


def test_the_newest_weights_are_the_mean_until_an_epoch_counts():
    average = EpochAverage(warmup=1)
    values = [0.5, 0.0, math.nan, 0.3, -1.0, None]
    assert [average.share(record) for record in records(values)] == [1, 1, 1, 1, 0, 0]
    assert average.counted == 1


def test_an_epoch_that_was_cut_short_does_not_count():
    fine, short = {"count": 100, "expected": 100}, {"count": 80, "expected": 100}
    history = [{"separation": 0.5, **columns} for columns in (fine, short, fine)]
    assert average_shares(history, warmup=0) == pytest.approx([0.5, 0, 0.5])
    # Where nobody knows how many there should be, half of the fullest.
    history = records([0.5], count=100) + records([0.5], count=49) + records([0.5], count=51)
    assert average_shares(history, warmup=0) == pytest.approx([0.5, 0, 0.5])


def test_a_gwa_beyond_its_pole_does_not_count():
    history = [{"gwa": 0.5, "denominator": d} for d in (1.0, -0.1, 1.0)]
    assert average_shares(history, signal="gwa", warmup=0) == pytest.approx([0.5, 0, 0.5])
    both = [{**record, "separation": 0.5} for record in history]
    assert average_shares(both, warmup=0) == pytest.approx([1 / 3] * 3)


def test_records_of_a_tracker_and_of_arrays():
    tracker, scores = GWATracker(), np.asarray([-0.2, 0.1, 0.3, 0.35, 0.4])
    summaries = []
    for shift in (0.0, 0.2, 0.1):
        tracker.update(scores + shift)
        tracker.end_epoch()
        summaries.append(summarize(scores + shift))
    shares = average_shares(tracker.history, warmup=0)
    assert shares.argmax() == 1
    np.testing.assert_allclose(average_shares(summaries, warmup=0), shares, rtol=1e-12)


def test_under_scan_and_vmap_in_jax():
    jax = require("jax")
    jnp = jax.numpy
    values = np.asarray([[0.2, np.nan, 0.6, 0.3], [0.5, 0.4, 0.0, 0.1]])
    counts = np.asarray([False, True, True, True])

    def run(row):
        def step(total, epoch):
            share, total = update_share(total, epoch[0], counts=epoch[1])
            return total, share

        return jax.lax.scan(step, jnp.asarray(-jnp.inf), (row, jnp.asarray(counts)))[1]

    got = jax.jit(jax.vmap(run))(jnp.asarray(values))
    for row, moves in zip(values, np.asarray(got), strict=True):
        average = EpochAverage(warmup=1)
        np.testing.assert_allclose(
            moves, [average.share(record) for record in records(row)], rtol=1e-5
        )


def test_the_share_has_a_finite_derivative():
    torch = require("torch")
    value = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for total in (-math.inf, math.log(0.3) * 10):
        share, _ = update_share(torch.tensor(total, dtype=torch.float64), value)
        (gradient,) = torch.autograd.grad(share, value)
        assert torch.isfinite(gradient)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": -1}, "`power` must be a finite number of at least 0, got -1.0"),
        ({"power": math.inf}, "`power` must be a finite"),
        ({"power": math.nan}, "`power` must be a finite"),
        ({}, "`total_steps` must be given where `warmup` is a fraction"),
        ({"warmup": 1.5}, "`warmup` must be a fraction"),
        ({"warmup": 2, "total_steps": 0}, "`total_steps` must be"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        EpochAverage(**options)


def test_a_missing_column_says_which_there_are_and_changes_nothing():
    average = EpochAverage(warmup=0)
    average.share({"separation": 0.5})
    before = average.state_dict()
    with pytest.raises(ValueError, match=r"'separation' that EpochAverage watches, got gwa, mean;"):
        average.share({"gwa": 0.5, "mean": 0.1})
    assert average.state_dict() == before
    with pytest.raises(ValueError, match="at least one epoch"):
        average_shares([])


@pytest.mark.parametrize("change", [{"version": 0}, {"options": {}}])
def test_a_state_of_another_average_is_refused(change):
    average = EpochAverage(warmup=0)
    average.share({"separation": 0.5})
    before = average.state_dict()
    with pytest.raises(ValueError, match="make the average with the options"):
        average.load_state_dict({**before, **change})
    with pytest.raises(ValueError, match="'power': 10"):
        average.load_state_dict(EpochAverage(3, 0).state_dict())
    assert average.state_dict() == before
