import json
import math

import numpy as np
import oracles
import pytest
from backends import require
from hypothesis import given
from hypothesis import strategies as st

from gwa_core import (
    BestMetric,
    DipThenMax,
    EarlyStopper,
    GradientDisparity,
    GWATracker,
    LabelWave,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    Rule,
    Selection,
    rule_for,
    select_epoch,
    select_step,
    summarize,
)
from gwa_core.history import epochs_cut_short

RULES = (
    MaxGWA(),
    MaxGWA(warmup=0, patience=2),
    MaxGWA(warmup=2, patience=3, min_delta=0.3, smoothing=2),
    MaxGWA(warmup=0.3, min_delta=0.5, relative=True),
    MaxBimodality(patience=4),
    MaxSeparation(patience=3, smoothing=2),
    DipThenMax(),
    DipThenMax(warmup=0.1, patience=2, smoothing=2),
    BestMetric(mode="min", patience=2),
    LabelWave(),
    LabelWave(window=1, patience=2),
    GradientDisparity(),
    GradientDisparity(criterion="five_consecutive"),
)
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)
CURVES = st.lists(
    st.tuples(
        st.one_of(
            st.integers(-8, 8).map(lambda v: v / 4),
            st.sampled_from([math.nan, math.inf, -math.inf]),
        ),
        st.sampled_from([True, True, True, False]),
    ),
    min_size=1,
    max_size=24,
)


def live(rule, curve, total, stopper=None):
    """Feed a curve as a training loop would."""
    stopper = stopper or EarlyStopper(rule, total_steps=total)
    for value, healthy in curve:
        if stopper.update(value, healthy=healthy):
            break
    return stopper


def seen(stopper):
    return json.dumps(
        [
            stopper.best_step,
            stopper.best_value,
            stopper.reason,
            stopper.should_stop,
            stopper.wait_count,
        ]
    )


@every_rule
@given(curve=CURVES)
def test_live_is_what_the_finished_history_says(rule, curve):
    stopper = live(rule, curve, len(curve))
    selection = select_step(
        [value for value, _ in curve], rule, healthy=[healthy for _, healthy in curve]
    )
    assert json.dumps(selection) == json.dumps(
        [stopper.best_step, stopper.best_value, stopper.reason]
    )


@every_rule
@given(curve=CURVES, cut=st.integers(0, 24))
def test_resumed_anywhere_it_goes_on_as_if_nothing_happened(rule, curve, cut):
    whole = live(rule, curve, len(curve))
    before = live(rule, curve[:cut], len(curve))
    after = EarlyStopper(rule, total_steps=len(curve))
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    if not after.should_stop:
        live(rule, curve[cut:], None, after)
    assert seen(after) == seen(whole)


@every_rule
@given(curve=CURVES)
def test_what_is_kept_is_usable_and_always_has_a_reason(rule, curve):
    stopper = EarlyStopper(rule, total_steps=len(curve))
    for value, healthy in curve:
        stopped = stopper.update(value, healthy=healthy)
        assert stopper.reason
        step = stopper.best_step
        if step is None:
            assert math.isnan(stopper.best_value)
        else:
            assert math.isfinite(curve[step][0])
            assert curve[step][1]
            assert math.isfinite(stopper.best_value)
        if stopped:
            assert "stopped at step" in stopper.reason
            break


@every_rule
@given(curve=CURVES)
def test_values_after_the_stop_change_nothing(rule, curve):
    stopper = live(rule, curve, len(curve))
    before = seen(stopper)
    if stopper.should_stop:
        for value in (9e9, math.nan, -9e9):
            assert stopper.update(value)
        assert seen(stopper) == before


@every_rule
def test_steps_may_be_any_clock(rule):
    values = np.random.default_rng(0).integers(-8, 8, 20) / 4
    epochs = range(20)
    plain = select_step(values, rule)
    assert select_step(values, rule, steps=epochs, total_steps=20) == plain
    if getattr(rule, "warmup", 0) != 2:  # a warm-up in steps follows the clock
        scaled = select_step(values, rule, steps=[50 * t for t in epochs], total_steps=1000)
        assert scaled.step == 50 * plain.step
        assert scaled.value == plain.value


@every_rule
def test_a_state_of_another_rule_or_version_is_refused_and_changes_nothing(rule):
    stopper = live(rule, [(0.5, True), (0.4, True), (0.2, True)], 10)
    before, state = seen(stopper), stopper.state_dict()
    other = MaxGWA(warmup=3) if rule != MaxGWA(warmup=3) else MaxGWA()
    for wrong in ({**state, "version": 0}, {**state, "rule": repr(other)}, {}):
        with pytest.raises(ValueError, match="`state` must be of version 2 and rule"):
            stopper.load_state_dict(wrong)
    assert seen(stopper) == before


def test_state_shares_nothing_with_the_stopper():
    stopper = live(MaxGWA(warmup=0, smoothing=3), [(0.5, True), (0.7, True)], None)
    state = stopper.state_dict()
    state["state"]["recent"].clear()
    state["state"]["best_step"] = 77
    assert stopper.best_step == 1
    stopper.update(0.9)
    assert stopper.best_value == pytest.approx(0.7)


def test_steps_must_increase():
    stopper = EarlyStopper(MaxGWA(warmup=0))
    stopper.update(0.1, step=10)
    for step in (10, 3, -1):
        with pytest.raises(ValueError, match="`step` must be larger than the last one, 10, got"):
            stopper.update(0.2, step=step)
    assert not stopper.update(0.2)
    assert stopper.best_step == 11


def test_a_fractional_warm_up_needs_the_length_of_the_run():
    for rule in (None, MaxGWA(), LabelWave(), MaxGWA(warmup=0.0), MaxGWA(warmup=1.0)):
        if rule is None or rule == MaxGWA():
            with pytest.raises(
                ValueError, match="`total_steps` must be given where `warmup` is a fraction"
            ):
                EarlyStopper(rule)
        else:
            assert EarlyStopper(rule).update(0.5) is False
        assert EarlyStopper(rule, total_steps=30).update(0.5) is False


def test_the_default_rule_is_one_for_live_and_finished_runs():
    assert EarlyStopper(total_steps=5).rule == MaxSeparation()
    rows = [{"separation": value, "gwa": -value} for value in (0.1, 0.4, 0.2)]
    assert select_epoch(rows) == select_epoch(rows, MaxSeparation())
    assert select_epoch(rows).step == 1


def test_numbers_of_any_library_are_taken():
    stopper = EarlyStopper(MaxGWA(warmup=0))
    values = [np.float32(0.25), np.asarray(0.5), require("torch").tensor(0.75)]
    for value in values:
        stopper.update(value, healthy=np.bool_(True))
    assert (stopper.best_step, stopper.best_value) == (2, 0.75)
    assert isinstance(stopper.best_value, float)


@pytest.mark.parametrize("rule", [MaxGWA(patience=3), MaxSeparation(patience=3)], ids=repr)
def test_a_history_of_summaries_live_and_finished(rule):
    rng = np.random.default_rng(0)
    tracker, stopper = GWATracker(), EarlyStopper(rule, total_steps=20)
    for epoch in range(20):
        tracker.update(rng.beta(2 + min(epoch, 6) - max(0, epoch - 6) / 4, 5, 500))
        summary = tracker.end_epoch(step=1000 + epoch)
        if stopper.observe(summary):
            break
    assert stopper.should_stop
    selection = select_epoch(tracker.history, rule, total_steps=20)
    assert selection == (stopper.best_step, stopper.best_value, stopper.reason)
    assert isinstance(selection, Selection)
    # The position in the history, not the step of the caller's clock.
    assert selection.step < 20


def test_rows_may_be_mappings_and_health_is_read_from_the_denominator():
    rows = [
        {"gwa": 0.1, "denominator": 1.0},
        {"gwa": 9.0, "denominator": -0.5},
        {"gwa": 8.0, "denominator": math.nan},
        {"gwa": 0.2, "denominator": 0.7},
    ]
    selection = select_epoch(rows, MaxGWA(warmup=0))
    assert selection.step == 3
    assert "2 unhealthy or non-finite left out" in selection.reason


def test_only_rules_on_gwa_skip_unhealthy_epochs():
    rows = [
        {"gwa": 0.1, "separation": 0.1, "bimodality": 0.4, "loss": 0.5, "denominator": 1.0},
        {"gwa": 9.0, "separation": 0.8, "bimodality": 0.9, "loss": 0.1, "denominator": -0.5},
        {"gwa": 0.2, "separation": 0.2, "bimodality": 0.5, "loss": 0.4, "denominator": 0.7},
    ]
    for rule in (MaxGWA(warmup=0), DipThenMax(), BestMetric(metric="gwa")):
        assert select_epoch(rows, rule).step == 2
        assert "1 unhealthy or non-finite left out" in select_epoch(rows, rule).reason
    loss = BestMetric(metric="loss", mode="min")
    for rule in (MaxSeparation(warmup=0), MaxBimodality(warmup=0), loss):
        assert select_epoch(rows, rule).step == 1
        assert "left out" not in select_epoch(rows, rule).reason


def test_separation_is_the_field_of_every_summary():
    rng = np.random.default_rng(0)
    scores = [rng.beta(2, b, 400) - 0.1 for b in (9, 6, 4, 5, 7)]
    tracker = GWATracker()
    for batch in scores:
        tracker.update(batch)
        tracker.end_epoch()
    rule, rows = MaxSeparation(warmup=0), [s._asdict() for s in tracker.history]
    selection = select_epoch(tracker.history, rule)
    assert selection.step == np.argmax([oracles.separation(batch) for batch in scores])
    for history in (rows, [summarize(batch) for batch in scores]):
        again = select_epoch(history, rule)
        assert again.step == selection.step
        assert again.value == pytest.approx(selection.value)
    # A column of that name is the run's own word, and other rules do not look at the field.
    assert select_epoch([{**r, "separation": -r["epoch"]} for r in rows], rule).step == 0
    assert select_epoch([{**r, "separation": None} for r in rows], MaxGWA()).step is not None


def test_a_value_that_is_not_there_is_not_kept():
    rows = [{"separation": value} for value in (math.nan, None, 0.3, math.inf, 0.1)]
    selection = select_epoch(rows, MaxSeparation(warmup=0))
    assert selection.step == 2
    assert "3 unhealthy or non-finite left out" in selection.reason
    assert select_epoch(rows[:2], MaxSeparation(warmup=0)).step is None


@pytest.mark.parametrize("record", [0.5, None, [0.1, 0.2], np.float64(0.5)])
def test_a_plain_number_is_no_record(record):
    with pytest.raises(
        TypeError, match=r"`record` must be a summary or a mapping, got .* plain numbers"
    ):
        EarlyStopper(MaxGWA(warmup=0)).observe(record)


def test_steps_are_whole():
    stopper = EarlyStopper(MaxGWA(warmup=0))
    stopper.update(0.1, step=np.int64(2))
    for step in (2.5, np.float64(3.0), True):
        with pytest.raises(ValueError, match="`step` must be an integer, got"):
            stopper.update(0.2, step=step)
    assert stopper.best_step == 2


def test_a_missing_column_is_named_with_those_there_are_and_nothing_changes():
    stopper = EarlyStopper(LabelWave())
    with pytest.raises(ValueError, match=r"column 'prediction_changes' that LabelWave.*got gwa, n"):
        stopper.observe({"gwa": 0.1, "n": 3})
    assert stopper.state_dict() == EarlyStopper(LabelWave()).state_dict()
    rows = [{"prediction_changes": 0.1}, {"gwa": 0.1}]
    with pytest.raises(ValueError, match=r"`history\[1\]` must have the column"):
        select_epoch(rows, LabelWave())


@every_rule
def test_observing_a_record_is_updating_with_its_column(rule):
    rng = np.random.default_rng(1)
    values = rng.integers(-8, 8, 20) / 4
    by_hand, by_record = (EarlyStopper(rule, total_steps=20) for _ in range(2))
    for step, value in enumerate(values):
        record = {rule.signal: value, "other": math.nan, "denominator": 1.0}
        assert by_record.observe(record, step=3 * step) == by_hand.update(value, step=3 * step)
    assert by_record.state_dict() == by_hand.state_dict()


@every_rule
def test_an_epoch_cut_short_is_never_kept_and_is_counted(rule):
    # Values of which each is better than all before, by any rule's direction.
    better = rule == BestMetric(mode="min", patience=2) or isinstance(rule, LabelWave)
    values = [(-1.0 if better else 1.0) * t for t in range(12)]

    def last_of(counts, expected):
        rows = [
            {rule.signal: v, "count": n, "omitted": 0, "expected": expected, "denominator": 1.0}
            for v, n in zip(values, counts, strict=True)
        ]
        return select_epoch(rows, rule)

    whole = last_of([100] * 12, 100)
    assert "cut short" not in whole.reason
    for expected, count, short in (
        (100, 89, True), (100, 90, False), (None, 49, True), (None, 50, False)
    ):  # fmt: skip
        cut = last_of([100] * 11 + [count], expected)
        assert (cut.step == 11) == (whole.step == 11 and not short)
        stopped = "stopped" in cut.reason and whole.reason == cut.reason
        assert stopped or ("1 cut short left out" in cut.reason) == short


def test_where_the_length_of_an_epoch_is_unknown_the_fullest_so_far_counts():
    def at(*counts, omitted=0):
        rows = [{"separation": t, "count": n, "omitted": omitted} for t, n in enumerate(counts)]
        return select_epoch(rows, MaxSeparation(warmup=0)).step

    assert at(8, 100, 8) == 1
    assert epochs_cut_short([{"count": n} for n in (8, 100, 8, 50, 49)]) == [2, 4]
    assert epochs_cut_short([{"count": 89, "expected": 100}, {"count": 90, "expected": 100}]) == [0]
    assert at(8, 10, 40) == 2
    assert at(1000, 400, 400) == 0
    # Scores that were not finite came all the same.
    assert at(40, 1, omitted=60) == 1
    rows = [{"separation": 0.1}, {"separation": 0.3}]
    assert select_epoch(rows, MaxSeparation(warmup=0)).step == 1


def test_the_last_epoch_of_eight_samples_is_not_kept():
    rng = np.random.default_rng(0)
    for ids in (True, False):
        tracker = GWATracker(1297 if ids else None)
        for epoch in range(41):
            n = 1297 if epoch < 40 else 8
            scores = rng.beta(2 + epoch / 9, 5, n) if epoch < 40 else np.linspace(0.5, 0.9, n)
            tracker.update(scores, ids=np.arange(n) if ids else None)
            tracker.end_epoch()
        assert tracker.history[-1].expected == (1297 if ids else None)
        for rule in (MaxGWA(), MaxBimodality(), MaxSeparation()):
            selection = select_epoch(tracker.history, rule)
            assert selection.step < 40
            assert "1 cut short left out" in selection.reason


def test_a_stopper_resumed_after_a_cut_epoch_knows_the_fullest():
    rule = MaxSeparation(warmup=0)
    records = [{"separation": t, "count": n} for t, n in enumerate((100, 30, 99, 20))]
    whole, first = EarlyStopper(rule), EarlyStopper(rule)
    for record in records:
        whole.observe(record)
    for record in records[:2]:
        first.observe(record)
    rest = EarlyStopper(rule)
    rest.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for record in records[2:]:
        rest.observe(record)
    assert seen(rest) == seen(whole)
    assert whole.best_step == 2
    assert "2 cut short left out" in whole.reason


def test_each_signal_has_the_rule_that_reads_it():
    for rule in (MaxSeparation(), MaxBimodality(), MaxGWA(), LabelWave(), GradientDisparity()):
        found: Rule = rule_for(rule.signal, mode="min")
        assert found == rule
    assert rule_for("gwa", warmup=3) == MaxGWA(warmup=3)
    assert rule_for("prediction_changes", warmup=3) == LabelWave()
    other = rule_for("sample_loss", mode="min", warmup=3)
    assert other == BestMetric(metric="sample_loss", mode="min", warmup=3)
    assert other.signal == "sample_loss"


@pytest.mark.parametrize("step", range(5))
def test_wait_count_is_the_steps_since_the_best(step):
    stopper = live(MaxGWA(warmup=0), [(float(t == step), True) for t in range(5)], None)
    assert stopper.best_step == step
    assert stopper.wait_count == 4 - step
