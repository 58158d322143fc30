"""The signals of a run beside each other: turned, scaled, with the epochs that they keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from adapters.offline.reports import SICK, T, make_report
from scipy.stats import pearsonr, spearmanr

from gwa_core import (
    LabelWave,
    MaxGWA,
    MaxSeparation,
    rule_for,
    select_epoch,
    select_step,
    warmup_steps,
)
from gwa_offline.analysis.curves import signal_curves, stored_signals
from gwa_offline.analysis.results import Report
from gwa_offline.analysis.statistics import scaled

BEGIN = T // 10
RNG = np.random.default_rng(0)
COLUMNS = {
    "accuracy": np.linspace(0.2, 0.9, T) + RNG.normal(0, 0.05, T),
    "margin": np.linspace(-1, 3, T) + RNG.normal(0, 0.3, T),
    "el2n": np.linspace(0.9, 0.2, T) + RNG.normal(0, 0.05, T),
    "self_influence": RNG.random(T),
    "prediction_changes": np.abs(np.linspace(-0.3, 0.5, T)) + 0.01,
    "test_loss": np.linspace(2, 1, T) + RNG.normal(0, 0.1, T),
}
COLUMNS["el2n"][0] = 50.0  # so far off that the rest would be flat
COLUMNS["margin"][SICK] = 99.0  # best where GWA means nothing


def run(columns: dict[str, np.ndarray]) -> Report:
    """A report that stored these columns; a value that is not finite is missing."""
    report = make_report()
    epochs = [
        replace(record, metrics={n: float(v[t]) for n, v in columns.items() if np.isfinite(v[t])})
        for t, record in enumerate(report.epochs)
    ]
    return replace(report, epochs=tuple(epochs))


def test_each_is_turned_and_scaled_after_the_warm_up() -> None:
    found = signal_curves(run(COLUMNS), metric="accuracy")
    names = [curve.name for curve in found.signals]
    assert names == ["mean", "separation", "margin", "el2n", "prediction_changes"]
    assert stored_signals(run(COLUMNS)) == names[2:]
    assert found.warmup == BEGIN
    for curve in (*found.signals, found.metric):
        counted = curve.values[BEGIN:]
        assert (counted.min(), counted.max()) == (0.0, 1.0)
    el2n = found.signals[3]
    assert el2n.values[0] < -10
    low, high = COLUMNS["el2n"][BEGIN:].min(), COLUMNS["el2n"][BEGIN:].max()
    np.testing.assert_allclose(el2n.values, (high - COLUMNS["el2n"]) / (high - low))
    assert np.flatnonzero(np.isnan(found.gwa.values)).tolist() == [SICK]


def test_each_keeps_the_epoch_of_its_rule() -> None:
    report = run(COLUMNS)
    found = signal_curves(report, metric="accuracy")
    best = {curve.name: curve.best_index for curve in found.signals}
    history = [record.summary for record in report.epochs]
    assert found.gwa.best_index == select_epoch(history, MaxGWA()).step
    assert best["separation"] == select_epoch(history, MaxSeparation()).step
    assert (
        best["prediction_changes"] == select_step(COLUMNS["prediction_changes"], LabelWave()).step
    )
    late = np.arange(T) >= BEGIN
    # An epoch where GWA means nothing is an epoch like others to the other signals.
    assert best["margin"] == np.argmax(np.where(late, COLUMNS["margin"], -np.inf)) == SICK
    assert best["el2n"] == np.argmin(np.where(late, COLUMNS["el2n"], np.inf))
    assert found.metric.best_index == np.argmax(COLUMNS["accuracy"])


def test_the_warm_up_and_the_rules_are_those_of_the_core() -> None:
    report = run(COLUMNS)
    found = signal_curves(report, metric="accuracy")
    assert found.warmup == warmup_steps(MaxGWA().warmup, T)
    best = {curve.name: curve.best_index for curve in found.signals}
    rows = [{**r.metrics, **r.summary._asdict()} for r in report.epochs]
    for name in ("separation", "prediction_changes", "margin", "mean"):
        assert best[name] == select_epoch(rows, rule_for(name)).step


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("test_loss", -1)])
def test_correlations_are_those_of_the_turned_curves(metric: str, sign: int) -> None:
    found = signal_curves(run(COLUMNS), metric=metric, mode="max" if sign > 0 else "min")
    for name, turn in (("margin", 1), ("el2n", -1)):
        curve = next(curve for curve in found.signals if curve.name == name)
        a, b = (x[found.warmup :] for x in (turn * COLUMNS[name], sign * COLUMNS[metric]))
        assert curve.pearson == pytest.approx(pearsonr(a, b).statistic)
        assert curve.spearman == pytest.approx(spearmanr(a, b).statistic)
        shown = (x.values[found.warmup :] for x in (curve, found.metric))
        assert pearsonr(*shown).statistic == pytest.approx(curve.pearson)
    assert f"Pearson {found.gwa.pearson:+.2f}".replace("-", "\u2212") in found.gwa.correlations


def test_what_is_missing_or_constant_has_no_curve_but_no_error_either() -> None:
    columns = {"margin": np.full(T, 2.0), "el2n": np.full(T, np.nan)}
    columns["el2n"][4] = 0.3
    found = signal_curves(run(columns))
    assert found.metric is None
    assert found.gwa.correlations == ""
    margin, el2n = found.signals[2:]
    assert (margin.values == 0.5).all()
    assert np.flatnonzero(np.isfinite(el2n.values)).tolist() == [el2n.best_index] == [4]
    assert signal_curves(run(COLUMNS)).metric.name == "accuracy"
    with pytest.raises(ValueError, match="`metric` must be a column of the runs, got 'acc'"):
        signal_curves(run(columns), metric="acc")
    assert np.isnan(scaled(np.full(3, np.nan), better="low")).all()


def test_a_signal_may_be_the_metric() -> None:
    found = signal_curves(run(COLUMNS), metric="el2n", mode="min")
    assert found.metric.name == "el2n"
    assert "el2n" not in [curve.name for curve in found.signals]
