import json
import math
from dataclasses import dataclass

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwa_core import (
    DipThenMax,
    EarlyStopper,
    Extremum,
    LabelWave,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    Rule,
    select_epoch,
    select_step,
    summarize,
    warmup_steps,
)

VALUES = st.lists(
    st.one_of(st.integers(-6, 6).map(lambda v: v / 4), st.just(math.nan), st.just(math.inf)),
    min_size=1,
    max_size=25,
)


def usable(values):
    return [math.isfinite(value) for value in values]


@pytest.mark.parametrize(
    ("rule", "values", "step"),
    [
        (MaxGWA(warmup=0), [0.1, 0.5, 0.3], 1),
        (MaxGWA(warmup=0), [0.5, 0.5, 0.5], 0),
        (MaxGWA(warmup=0), [-0.5, -0.2, -0.9], 1),
        (MaxGWA(warmup=1), [0.9, 0.1, 0.4, 0.2], 2),
        (MaxGWA(warmup=0, patience=2), [0.5, 0.4, 0.3, 0.9], 0),
        (MaxGWA(warmup=0, patience=3), [0.5, 0.4, 0.3, 0.9], 3),
        (MaxGWA(warmup=0, min_delta=0.25), [0.5, 0.75, 1.0, 1.25], 2),
        (MaxGWA(warmup=0, min_delta=0.5, relative=True), [0.5, 0.7, 0.8, 1.1], 2),
        (MaxGWA(warmup=0, min_delta=0.5, relative=True), [-1.0, -0.6, -0.4, -0.3], 2),
        (MaxGWA(warmup=0, smoothing=3), [0.0, 9.0, 0.0, 4.0, 4.0, 4.0, 1.0], 1),
        (MaxGWA(warmup=2, smoothing=2), [0.0, 9.0, 0.0, 4.0, 4.0, 4.0, 1.0], 2),
        (MaxBimodality(warmup=0), [0.4, 0.6, 0.5], 1),
        (MaxSeparation(warmup=0), [0.0, 0.2, 0.3, 0.3, 0.1], 2),
        (DipThenMax(), [0.9, 0.3, 0.2, 0.5, 0.6, 0.4], 4),
        (DipThenMax(), [0.1, 0.2, 0.3], 2),
        (DipThenMax(), [0.9, 0.5, 0.5, 0.7, 0.6], 3),
        (DipThenMax(patience=1), [0.9, 0.3, 0.5, 0.4, 0.8], 2),
        (DipThenMax(warmup=2), [0.1, 0.9, 0.5, 0.4, 0.6], 4),
        (DipThenMax(), [0.9, 0.8, 0.7], None),
    ],
)
def test_hand_made_curves(rule, values, step):
    selection = select_step(values, rule)
    assert selection.step == step
    if rule.smoothing == 1 and step is not None:
        assert selection.value == values[step]
    if step is None:
        assert math.isnan(selection.value)


@pytest.mark.parametrize(
    ("warmup", "total", "first"),
    [
        (0.1, 30, 3),
        (0.1, 39, 3),
        (0.1, 5, 0),
        (0.3, 10, 3),
        (0.29, 100, 29),
        (0.5, 5, 2),
        (0.99, 3, 2),
        (0.0, 7, 0),
        (0, 7, 0),
        (1, 7, 1),
        (6, 7, 6),
    ],
)
@pytest.mark.parametrize("kind", [MaxGWA, MaxBimodality, MaxSeparation, DipThenMax])
def test_the_first_step_after_the_warm_up(kind, warmup, total, first):
    # Falling, so that the first step that may be kept is kept; the dip rule needs a rise instead.
    values = [float(total - t) for t in range(total)]
    if kind is DipThenMax:
        values = [float(t == first + 1) - (t == first) for t in range(total)]
        first = first + 1 if first + 1 < total else None
    assert select_step(values, kind(warmup=warmup), total_steps=total).step == first


def test_a_warm_up_as_long_as_the_run_keeps_nothing_and_says_so():
    selection = select_step([0.1, 0.2], MaxGWA(warmup=2))
    assert selection.step is None
    assert selection.reason == "no step qualifies after the warm-up"


def test_a_fraction_is_of_the_whole_run_and_not_of_the_steps_so_far():
    values = [0.9, 0.8, 0.1, 0.3]
    assert select_step(values, MaxGWA(warmup=0.5)).step == 3
    assert select_step(values, MaxGWA(warmup=0.5), total_steps=20).step is None
    steps = [100, 200, 300, 400]
    assert select_step(values, MaxGWA(warmup=0.2), steps=steps, total_steps=1000).step == 200


@given(VALUES, st.integers(0, 8))
def test_without_patience_it_is_the_first_largest_value(values, first):
    want = oracles.best_step(values, usable(values), first=first)
    assert select_step(values, MaxGWA(warmup=first)).step == want


@given(VALUES, st.integers(0, 4), st.integers(1, 4), st.sampled_from([0.0, 0.25, 0.6]))
def test_with_patience_it_is_the_obvious_loop(values, first, patience, margin):
    rule = MaxGWA(warmup=first, patience=patience, min_delta=margin)
    kept, stopped = oracles.patient_step(
        values, usable(values), patience, first=first, margin=margin
    )
    selection = select_step(values, rule)
    assert selection.step == kept
    assert ("stopped at step" in selection.reason) == (stopped is not None)
    if stopped is not None:
        assert f"stopped at step {stopped}: no improvement in {patience} step" in selection.reason


@given(VALUES, st.integers(2, 4))
def test_smoothing_is_the_mean_of_the_last_usable_values(values, window):
    smoothed, last = [], []
    for value in values:
        last = [*last, value][-window:] if math.isfinite(value) else last
        smoothed.append(math.fsum(last) / len(last) if math.isfinite(value) else math.nan)
    selection = select_step(values, MaxGWA(warmup=0, smoothing=window))
    want = oracles.best_step(smoothed, usable(smoothed))
    assert selection.step == want
    if want is not None:
        assert selection.value == smoothed[want]


@given(VALUES)
def test_dip_is_the_first_rise_of_the_usable_values(values):
    rise, lowest = None, math.nan
    for i, value in enumerate(values):
        if math.isfinite(value):
            if value > lowest:
                rise = i
                break
            lowest = value
    want = None if rise is None else oracles.best_step(values, usable(values), first=rise)
    assert select_step(values, DipThenMax()).step == want


def test_two_far_modes_are_never_kept_however_good_they_look():
    rng = np.random.default_rng(0)
    # A hair more of the positive mode: GWA is large on the wrong side of the pole.
    poles = summarize(np.where(rng.random(500) < 0.3, -0.3, 0.3))
    near = summarize(np.repeat([-0.3, 0.3], [200, 300]))
    good = summarize(rng.beta(2, 5, 500))
    better = summarize(rng.beta(3, 5, 500))
    history = [near, good, poles, better, near]
    assert not near.healthy
    assert near.bimodality > better.bimodality
    for rule in (MaxGWA(warmup=0), DipThenMax()):
        selection = select_epoch(history, rule)
        assert selection.step in (1, 3), rule
        assert "unhealthy or non-finite left out" in selection.reason
        assert select_epoch([near, near], rule).step is None
    # The pole is one of GWA alone; two groups are what the other rules look for.
    for rule in (MaxBimodality(warmup=0), MaxSeparation(warmup=0)):
        selection = select_epoch(history, rule)
        best = max(history, key=lambda summary: getattr(summary, rule.signal))
        assert selection.value == getattr(best, rule.signal)
        assert "left out" not in selection.reason
        assert select_epoch([near, near], rule).step == 0


def test_an_unhealthy_step_costs_patience():
    values, healthy = [0.5, 9.0, 9.0, 0.6], [True, False, False, True]
    assert select_step(values, MaxGWA(warmup=0, patience=2), healthy=healthy).step == 0
    assert select_step(values, MaxGWA(warmup=0, patience=3), healthy=healthy).step == 3


def test_before_the_first_healthy_step_nothing_is_waited_for():
    values = [math.nan] * 5 + [0.3, 0.4]
    assert select_step(values, MaxGWA(warmup=0, patience=2)).step == 6


def test_the_second_rise_of_a_memorising_run():
    # GWA climbs twice, bimodality once: the reason to have both rules. The mean rises to the end.
    gwa = [0.1, 0.3, 0.4, 0.3, 0.25, 0.4, 0.6]
    bimodality = [0.35, 0.5, 0.6, 0.5, 0.4, 0.38, 0.36]
    mean = [0.01, 0.05, 0.08, 0.09, 0.09, 0.11, 0.13]
    rows = [
        {"gwa": a, "bimodality": b, "separation": b * c**0.25, "denominator": 1.0}
        for a, b, c in zip(gwa, bimodality, mean, strict=True)
    ]
    assert select_epoch(rows, MaxGWA(warmup=0)).step == 6
    assert select_epoch(rows, MaxBimodality(warmup=0)).step == 2
    assert select_epoch(rows, MaxSeparation(warmup=0)).step == 2
    assert select_epoch(rows, MaxGWA(warmup=0, patience=2)).step == 2


def test_right_labels_stand_apart_long_before_the_training_is_over():
    # The bimodality alone keeps the epoch where easy samples have left the hard ones behind.
    bimodality = [0.45, 0.6, 0.66, 0.62, 0.6, 0.59, 0.58, 0.57, 0.565, 0.56]
    mean = [0.005, 0.01, 0.02, 0.035, 0.05, 0.06, 0.07, 0.075, 0.08, 0.08]
    rows = [
        {"bimodality": a, "separation": a * b**0.25} for a, b in zip(bimodality, mean, strict=True)
    ]
    assert select_epoch(rows, MaxBimodality()).step == 2
    assert select_epoch(rows, MaxSeparation()).step == 8


def test_rules_are_frozen_options_with_a_signal():
    signals = {MaxGWA(): "gwa", MaxBimodality(): "bimodality", MaxSeparation(): "separation"}
    for rule, signal in {**signals, DipThenMax(): "gwa"}.items():
        assert rule.signal == signal
        assert rule == type(rule)()
        assert hash(rule) == hash(type(rule)())
        with pytest.raises(AttributeError):
            rule.warmup = 3


def test_a_rule_of_ones_own_needs_only_the_protocol():
    class LastRise:
        signal = "gwa"

        def begin(self):
            return {"best_step": None, "best_value": math.nan, "wait_count": 0, "stopped": "",
                    "note": "", "recent": [], "before": math.inf}  # fmt: skip

        def advance(self, state, value, step, usable, total):
            if usable and value > state["before"]:
                state.update(best_step=step, best_value=value, note="the last rise")
            state["before"] = value

    rule: Rule = LastRise()
    assert select_step([0.3, 0.1, 0.2, 0.1], rule) == (2, 0.2, "the last rise")


@pytest.mark.parametrize(
    ("warmup", "total", "steps"),
    [
        (0, None, 0),
        (0.0, None, 0),
        (3, None, 3),
        (1.0, None, 1),
        (5.0, 10, 5),
        (0.1, 30, 3),
        (0.1, 29, 2),
        (np.int64(4), None, 4),
        (np.float32(0.5), np.int64(9), 4),
    ],
)
def test_the_length_of_a_warm_up(warmup, total, steps):
    assert warmup_steps(warmup, total) == steps
    assert isinstance(warmup_steps(warmup, total), int)
    rule = MaxGWA(warmup=warmup)
    assert select_step([9.0] * steps + [0.5], rule, total_steps=total or 99).step == steps


@pytest.mark.parametrize(
    "warmup", [-1, -0.5, 1.5, math.nan, math.inf, True, "1", None, np.bool_(1)]
)
def test_what_is_no_warm_up(warmup):
    for make in (lambda: warmup_steps(warmup, 10), lambda: MaxGWA(warmup=warmup)):
        with pytest.raises(ValueError, match="`warmup` must be a fraction of all steps"):
            make()


def test_options_of_numpy_are_plain_numbers():
    made = MaxSeparation(
        warmup=np.float64(2.0),
        patience=np.int64(5),
        min_delta=np.float32(0.5),
        smoothing=np.int8(2),
    )
    assert made == MaxSeparation(warmup=2, patience=5, min_delta=0.5, smoothing=2)
    options = [made.warmup, made.patience, made.min_delta, made.smoothing]
    assert [type(option) for option in options] == [int, int, float, int]
    assert repr(made) == "MaxSeparation(warmup=2, patience=5, min_delta=0.5, smoothing=2)"
    json.dumps(EarlyStopper(MaxGWA(warmup=0, relative=np.bool_(True))).state_dict())
    wave = LabelWave(window=np.int64(2), patience=np.uint8(3))
    assert (wave.window, wave.patience) == (2, 3)
    for wrong in (True, 2.0, np.float64(2.0), "2"):
        with pytest.raises(ValueError, match="`patience` must be an integer of at least 1"):
            MaxGWA(patience=wrong)


def test_a_subclass_of_extremum_is_a_rule():
    @dataclass(frozen=True, kw_only=True, repr=False)
    class MinVariance(Extremum):
        signal, sign = "variance", -1

    rows = [{"variance": value, "denominator": -1.0} for value in (0.1, 0.5, 0.2, 0.3)]
    selection = select_epoch(rows, MinVariance(warmup=1))
    assert (selection.step, selection.reason) == (2, "smallest variance after the warm-up")
