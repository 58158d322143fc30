import math

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwa_core import BestMetric, GradientDisparity, LabelWave, select_epoch, select_step

NUMBERS = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=25)


@pytest.mark.parametrize(
    ("rule", "values", "step"),
    [
        (BestMetric(), [0.5, 0.7, 0.6], 1),
        (BestMetric(mode="min"), [0.5, 0.7, 0.3, 0.4], 2),
        (BestMetric(mode="min", patience=2), [0.9, 0.5, 0.6, 0.7, 0.1], 1),
        (BestMetric(mode="min", min_delta=0.2), [0.9, 0.8, 0.6, 0.5], 2),
        (BestMetric(mode="min", min_delta=0.5, relative=True), [0.8, 0.5, 0.3, 0.2], 2),
        (BestMetric(warmup=2), [0.9, 0.8, 0.1, 0.2], 3),
        (LabelWave(window=1), [0.9, 0.4, 0.5, 0.1], 1),
        (LabelWave(window=1, patience=2), [0.9, 0.4, 0.5, 0.1, 0.2, 0.2], 3),
        (LabelWave(window=2), [0.9, 0.6, 0.3, 0.2, 0.1, 0.7, 0.1], 4),
        (LabelWave(window=2), [0.0, 0.9, 0.5, 0.6, 0.1], 1),
        (LabelWave(), [0.3, 0.2], None),
        (LabelWave(), [0.9, 0.8, 0.7, 0.6], 3),
        (GradientDisparity(), [1, 2, 3, 2, 3, 4, 5, 6], 6),
        (GradientDisparity(), [5, 4, 3, 2, 1], 4),
        (GradientDisparity(), [0, 1, 2, 3, 4, 5, 9], 5),
        (GradientDisparity(criterion="five_consecutive"), [1, 2, 3, 2, 3, 4, 5, 6, 7, 8], 8),
        (GradientDisparity(criterion="five_consecutive"), [1, 2, 3, 4, 5, 5, 6, 7, 8, 9], 9),
    ],
)
def test_hand_made_curves(rule, values, step):
    assert select_step(values, rule).step == step


@given(NUMBERS, st.integers(1, 4), st.booleans())
def test_patience_is_the_obvious_loop(values, patience, down):
    sign = -1 if down else 1
    rule = BestMetric(mode="min" if down else "max", patience=patience)
    kept, _ = oracles.patient_step(values, [True] * len(values), patience, sign=sign)
    assert select_step(values, rule).step == kept


@given(NUMBERS, st.integers(1, 4), st.integers(1, 3))
def test_label_wave_is_the_first_minimum_of_a_moving_average(values, window, patience):
    means = np.convolve(values, np.full(window, 1 / window), "valid").round(9)
    kept, _ = oracles.patient_step(list(means), [True] * len(means), patience, sign=-1)
    want = None if kept is None or len(values) < window else kept + window - 1
    assert select_step(values, LabelWave(window=window, patience=patience)).step == want


@given(NUMBERS)
def test_gradient_disparity_counts_increases(values):
    rises = np.diff(values) > 0
    total = np.cumsum(rises)
    fifth = [i + 1 for i in range(len(rises)) if total[i] == 5 and rises[i]]
    in_a_row = [i + 1 for i in range(4, len(rises)) if rises[i - 4 : i + 1].all()]
    last = len(values) - 1
    assert select_step(values, GradientDisparity()).step == (fifth[0] if fifth else last)
    rule = GradientDisparity(criterion="five_consecutive")
    assert select_step(values, rule).step == (in_a_row[0] if in_a_row else last)


def test_values_that_are_not_finite_are_passed_over():
    nan = math.nan
    assert select_step([0.9, nan, 0.4, nan, 0.5], LabelWave(window=1)).step == 2
    assert select_step([0, nan, 1, 2, nan, 3, 4, 5, 0], GradientDisparity()).step == 7
    assert select_step([nan, nan], GradientDisparity()).step is None
    assert select_step([nan, 0.4, nan, 0.5], BestMetric()).step == 3


def test_each_rule_names_its_column():
    rows = [
        {"gwa": 0.0, "denominator": 1.0, "test_loss": a, "prediction_changes": b, "gradient_disparity": c}
        for a, b, c in ((0.9, 0.5, 1.0), (0.4, 0.3, 2.0), (0.6, 0.4, 3.0))
    ]  # fmt: skip
    loss = BestMetric(mode="min", metric="test_loss")
    assert loss.signal == "test_loss"
    assert select_epoch(rows, loss).step == 1
    assert select_epoch(rows, LabelWave(window=1)).step == 1
    assert select_epoch(rows, GradientDisparity()).step == 2
    with pytest.raises(
        ValueError, match="must have the column 'validation_accuracy' that BestMetric"
    ):
        select_epoch(rows, BestMetric())


def test_reasons_say_what_happened():
    say = lambda values, rule: select_step(values, rule).reason  # noqa: E731
    assert say([0.3, 0.2], LabelWave()) == "fewer than the 3 values of a mean"
    assert say([0.5, 0.4, 0.6], LabelWave(window=1)) == (
        "first minimum of the mean over 1 epochs; stopped at step 2: no improvement in 1 step"
    )
    assert say(range(9), GradientDisparity()) == (
        "5 of 5 increases; stopped at step 5: 5 increases"
    )
    assert say(range(9), GradientDisparity(criterion="five_consecutive")).endswith(
        "stopped at step 5: 5 increases in a row"
    )
    assert say([1, 2], GradientDisparity()) == "1 of 5 increases"
    assert say([0.5, 0.4], BestMetric(mode="min")) == "smallest validation_accuracy"
    assert "after the warm-up" in say([0.5, 0.4], BestMetric(warmup=1))
