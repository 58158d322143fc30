import math

import numpy as np
import oracles
import pytest

from gwa_core import EpochSummary, Summary, summarize, summarize_history
from gwa_core.history import expected_samples


def epoch(number, scores):
    return EpochSummary.from_summary(summarize(np.asarray(scores)), epoch=number)


def plain(**changes):
    return EpochSummary(**{**dict.fromkeys(EpochSummary._fields, 1), **changes})


def run(separation, memorised):
    """Scores of 2000 samples of which a fifth is mislabelled, over three stages of a training."""
    rng = np.random.default_rng(0)
    wrong = np.arange(2000) % 5 == 0
    stages = ((0.02, 0.0), (0.4, separation), (0.6, memorised))
    return [
        epoch(t, np.where(wrong, low, high) + 0.08 * rng.normal(size=2000))
        for t, (high, low) in enumerate(stages)
    ]


def test_summary_of_arrays_becomes_plain_numbers():
    summary = summarize(np.asarray([0.1, 0.2, 0.4, -0.3], "f4"))
    got = EpochSummary.from_summary(summary, epoch=3, step=900, omitted=2)
    assert got[:4] == (3, 900, 4, 2)
    assert [type(value) for value in got[:-2]] == [int] * 4 + [float] * 10
    assert (got.expected, got.window) == (None, None)
    assert EpochSummary.from_summary(summary, epoch=3, window=500).window == 500
    assert EpochSummary.from_summary(summary, epoch=3, expected=7.6).expected == 8
    for name in Summary._fields[1:]:
        assert getattr(got, name) == pytest.approx(float(getattr(summary, name)))
    assert got.healthy == bool(summary.healthy)
    assert EpochSummary.from_summary(summary, epoch=3).step == 3


def test_health_is_the_sign_of_the_denominator():
    assert plain(denominator=0.1).healthy
    assert not plain(denominator=0.0).healthy
    assert not plain(denominator=-0.1).healthy
    assert not plain(denominator=math.nan).healthy


@pytest.mark.parametrize("shift", [0.3, 0.01, 0.0, -0.05, -0.4])
def test_separation_is_bimodality_times_a_root_of_the_mean(shift):
    scores = np.random.default_rng(0).beta(2, 5, 500) - 2 / 7 + shift
    got = epoch(0, scores).separation
    assert got == pytest.approx(oracles.separation(scores), rel=1e-9)
    assert (got > 0) == (scores.mean() > 0)


def derived(**changes):
    """What is made of a line that gwa-core 0.1.0 wrote, without separation and expected."""
    fields = plain(**changes)._asdict()
    del fields["separation"], fields["expected"]
    return EpochSummary.from_mapping({**fields, "other": 3})


def test_a_summary_of_an_older_version_gets_its_separation():
    assert math.isnan(derived(mean=math.nan).separation)
    assert math.isnan(derived(bimodality=math.nan).separation)
    assert derived(mean=-0.5, bimodality=0.9).separation == 0.0
    assert derived(mean=0.0625, bimodality=0.5).separation == 0.25
    assert derived().expected is None
    new = plain(separation=0.7, expected=9)
    assert EpochSummary.from_mapping(new._asdict()) == new


@pytest.mark.parametrize(
    ("came", "rows", "total", "expected"),
    [(8, 8, 100, 100.0), (100, 100, 100, 100.0), (60, 103, 100, 60.0), (30, 50, 100, 60.0)],
)
def test_what_a_whole_epoch_has(came, rows, total, expected):
    assert expected_samples(came, rows=rows, total=total) == pytest.approx(expected, rel=1e-12)
    arrays = np.asarray(came), np.asarray(rows)
    assert float(expected_samples(arrays[0], rows=arrays[1], total=total)) == pytest.approx(
        expected
    )


def test_a_run_that_learns_its_wrong_labels_by_heart_is_memorising():
    assert summarize_history(run(separation=-0.3, memorised=0.55)).memorising


@pytest.mark.parametrize(
    "history",
    [
        run(separation=-0.3, memorised=-0.4),
        run(separation=0.3, memorised=0.55),
        run(separation=-0.3, memorised=0.55)[:2],
        run(separation=-0.3, memorised=0.55)[::-1],
        [plain(skewness=s, negative_fraction=f) for s, f in ((0, 0.1), (-0.9, 0.04), (0, 0.0))],
        [plain(skewness=s, negative_fraction=f) for s, f in ((0, 0.4), (-0.9, 0.2), (-0.8, 0.01))],
        [plain(skewness=s, negative_fraction=f) for s, f in ((0, 0.4), (-0.2, 0.2), (0.2, 0.0))],
    ],
    ids=[
        "stays apart",
        "was never apart",
        "stopped in time",
        "backwards",
        "had hardly a negative score",
        "is as skewed as before",
        "was hardly skewed",
    ],
)
def test_other_runs_are_not(history):
    assert not summarize_history(history).memorising


def test_maxima_pass_over_what_means_nothing():
    history = [
        plain(gwa=0.2, mean=0.1),
        plain(gwa=9.0, mean=0.3, denominator=-1.0),
        plain(gwa=math.nan, mean=math.nan, denominator=math.nan, skewness=math.nan),
        plain(gwa=0.4, mean=0.2),
    ]
    got = summarize_history(history)
    assert (got.epochs, got.unhealthy, got.max_mean, got.max_gwa) == (4, 2, 0.3, 0.4)


def test_a_run_without_a_healthy_epoch():
    got = summarize_history([plain(denominator=-1.0, mean=math.nan, skewness=math.nan)])
    assert (got.epochs, got.unhealthy, got.memorising) == (1, 1, False)
    assert math.isnan(got.max_gwa)
    assert math.isnan(got.max_mean)


@pytest.mark.parametrize(
    ("rows", "batch", "before", "whole"),
    [
        (1536, 512, 0, 1),
        (1024, 512, 0, 1797 / 1024),
        (1024, 1024, 1797, 1797 / 1024),
        (900, 64, 900, 1),
        (9, 64, 900, 100),
        (99, 8, 50, 1),
    ],
)
def test_dropped_rows_and_loops_over_a_part(rows, batch, before, whole):
    given = {"rows": rows, "total": 1797, "batch": batch, "before": before}
    assert expected_samples(70, **given) == pytest.approx(70 * whole, rel=1e-12)
    arrays = {name: np.asarray(value) for name, value in given.items()}
    assert float(expected_samples(np.asarray(70), **arrays)) == pytest.approx(70 * whole, rel=1e-12)


def test_a_line_without_a_mean_has_no_separation():
    assert math.isnan(derived(mean=None).separation)
