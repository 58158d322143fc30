"""The analysis against the core on whole arrays, and its report."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from gwa_core import (
    BestMetric,
    GWATracker,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    alignment_scores,
    average_shares,
    glass_delta,
    label_quality,
    near_ties,
    signal_standard_error,
    summarize,
)
from gwa_offline import RunFolder, analyse, open_features
from gwa_offline.analysis import statistics
from gwa_offline.analysis.comparison import compare
from gwa_offline.analysis.view import average_sentence, ties_words

N, C, D = 700, 4, 6


def _features(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(C, D)).astype(np.float32)
    targets = np.arange(N) % C
    latents = (rng.normal(size=(N, D)) + scale * weight[targets]).astype(np.float32)
    return {"latents": latents, "weight": weight, "targets": targets}


def _snapshots(folder, epochs=8):
    made = [_features(epoch, scale=0.2 * epoch) for epoch in range(epochs)]
    for epoch, arrays in enumerate(made):
        np.savez(folder / f"epoch_{epoch}.npz", **arrays)
    return made


def test_single_file_equals_the_core(tmp_path):
    arrays = _features()
    bias = np.linspace(-1, 1, C).astype(np.float32)
    np.savez(tmp_path / "f.npz", bias=bias, **arrays)
    report = analyse(tmp_path / "f.npz")
    want = alignment_scores(**arrays, bias=bias)
    np.testing.assert_allclose(report.scores, want, rtol=1e-5, atol=1e-7)
    summary = report.epochs[0].summary
    assert summary.gwa == pytest.approx(float(summarize(want.astype(np.float64)).gwa), rel=1e-5)
    np.testing.assert_array_equal(
        report.predictions, (arrays["latents"] @ arrays["weight"].T + bias).argmax(1)
    )
    assert report.best_index == 0
    assert report.histograms.sum() == N


def test_class_weights_are_those_of_the_loss(tmp_path):
    arrays, weights = _features(), [0.5, 1, 2, 4]
    np.savez(tmp_path / "f.npz", **arrays)
    plain = analyse(tmp_path / "f.npz", label_smoothing=0.2).scores
    got = analyse(tmp_path / "f.npz", label_smoothing=0.2, class_weights=weights).scores
    # -sum_c w_c t_c log p_c, sample by sample: its gradient by the logits, written out.
    logits = (arrays["latents"] @ arrays["weight"].T).astype(float)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    t = (0.8 * np.eye(C)[arrays["targets"]] + 0.2 / C) * weights
    r = t - p * t.sum(1, keepdims=True)
    norms = [np.linalg.norm(x, axis=-1) for x in (r, arrays["latents"])]
    want = (r * logits).sum(1) / (norms[0] * norms[1] * np.linalg.norm(arrays["weight"]))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert np.abs(got - plain).max() > 0.01
    # Of hard labels without smoothing they change nothing.
    hard = analyse(tmp_path / "f.npz", class_weights=weights).scores
    np.testing.assert_allclose(hard, analyse(tmp_path / "f.npz").scores, rtol=1e-4, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"`class_weights` must be \(C,\) = \(4,\), got shape \(2,\)"
    ):
        analyse(tmp_path / "f.npz", class_weights=[1.0, 2.0])
    for bad in ([1, 1, 1, -1], [1, 1, np.nan, 1], [0, 0, 0, 0]):
        with pytest.raises(ValueError, match="`class_weights` must be finite, at least 0"):
            analyse(tmp_path / "f.npz", class_weights=bad)
    sigmoid = open_features(tmp_path / "f.npz", loss="binary_cross_entropy")
    with pytest.raises(ValueError, match="`class_weights` must come with loss='cross_entropy'"):
        analyse(sigmoid, class_weights=weights)


def test_features_of_an_epoch_cut_short_are_those_of_one(tmp_path):
    run = RunFolder.create(tmp_path, num_samples=N, num_classes=C, adapter="test")
    for epoch in range(5):
        arrays = _features(epoch, scale=0.2 * epoch)
        scores = alignment_scores(**arrays)
        part = slice(None) if epoch < 4 else slice(8)
        tracker = GWATracker(N)
        tracker.update(scores[part], ids=np.arange(N)[part])
        ended = tracker.end_epoch()._replace(epoch=epoch, step=epoch, expected=N)
        features = {name: x if name == "weight" else x[part] for name, x in arrays.items()}
        run.write_epoch(ended, features={**features, "ids": np.arange(N)[part]})
    report = analyse(tmp_path)
    assert [record.summary.expected for record in report.epochs] == [N] * 5
    assert report.best_index < 4
    assert "1 cut short left out" in report.selection.reason
    assert any("cut short (4)" in message for message in report.messages)


def test_snapshots_give_history_quality_and_classes(tmp_path, monkeypatch):
    made = _snapshots(tmp_path)
    # In pieces of 87 samples.
    monkeypatch.setattr(statistics, "CHUNK", 87)
    report = analyse(tmp_path, rule=MaxGWA())
    history = np.stack([alignment_scores(**arrays) for arrays in made])
    np.testing.assert_allclose(
        report.label_quality, label_quality(history.astype(np.float64)), rtol=1e-5
    )
    gwa = [record.summary.gwa for record in report.epochs]
    assert report.best_index == int(np.argmax(gwa))
    chosen = history[report.best_index]
    for label in range(C):
        member = chosen[made[0]["targets"] == label]
        assert report.class_mean[report.best_index, label] == pytest.approx(member.mean(), rel=1e-5)
    want = (made[report.best_index]["latents"] @ made[report.best_index]["weight"].T).argmax(1)
    np.testing.assert_array_equal(report.predictions, want)


def test_online_scores_come_first_and_offline_ones_check_them(tmp_path):
    arrays = _features()
    online = (alignment_scores(**arrays) + 0.01).astype(np.float32)
    tracker = GWATracker(N)
    tracker.update(online, ids=np.arange(N))
    run = RunFolder.create(tmp_path, num_samples=N, num_classes=C, adapter="test")
    run.write_epoch(tracker.end_epoch(), scores=online, features=arrays, metrics={"acc": 0.5})
    report = analyse(tmp_path)
    assert report.epochs[0].source == "online"
    np.testing.assert_array_equal(report.scores, online)
    want = float(glass_delta(online, alignment_scores(**arrays)))
    assert report.epochs[0].glass_delta == pytest.approx(want, rel=1e-4)
    assert report.epochs[0].metrics == {"acc": 0.5}


def test_run_of_summaries_alone(tmp_path):
    run = RunFolder.create(tmp_path, num_samples=N, num_classes=C, adapter="test")
    tracker = GWATracker()
    for shift in (0.0, 0.1, 0.05):
        tracker.update(np.random.default_rng(0).normal(0.1 + shift, 0.1, 50))
        run.write_epoch(tracker.end_epoch(), metrics={"acc": shift})
    report = analyse(tmp_path, rule=BestMetric(metric="acc"))
    assert report.selection.step == 1
    assert np.isnan(report.scores).all()
    assert np.isnan(report.label_quality).all()
    assert report.rank(3).size == 0
    assert json.loads(report.to_json())["scores"][0] is None


def _run_of(folder, *epochs, expected=None):
    run = RunFolder.create(folder, num_samples=100, num_classes=2, adapter="test")
    tracker = GWATracker(100)
    for scores in epochs:
        ids = np.arange(len(scores))
        tracker.update(scores, ids=ids)
        run.write_epoch(tracker.end_epoch()._replace(expected=expected), scores=tracker.scores)
    return run


def test_only_rules_on_gwa_skip_two_modes(tmp_path):
    rng = np.random.default_rng(0)
    _run_of(tmp_path, rng.normal(0.1, 0.1, 100), np.tile([-0.3, 0.5], 50))
    gwa = analyse(tmp_path, rule=MaxGWA())
    assert (gwa.best_index, gwa.best_epoch) == (0, 0)
    for rule in (None, MaxSeparation(), MaxBimodality()):
        report = analyse(tmp_path, rule=rule)
        assert (report.best_index, report.best_epoch) == (1, 1)
        text = " ".join(report.messages)
        assert "GWA means nothing at 1 of 2 epochs (1)" in text
        assert "Rules on GWA skip these epochs; other rules do not." in text


@pytest.mark.parametrize("expected", [100, None])
def test_an_epoch_cut_short_is_never_kept_and_said(tmp_path, expected):
    rng = np.random.default_rng(0)
    whole = [rng.normal(0.1, 0.1, 100) for _ in range(3)]
    _run_of(tmp_path, *whole, np.tile([-0.1, 0.9], 4), expected=expected)
    report = analyse(tmp_path)
    assert report.best_epoch in (0, 1, 2)
    assert "1 cut short left out" in report.selection.reason
    assert "1 of 4 epochs was cut short (3)" in " ".join(report.messages)
    run = RunFolder.open(tmp_path)
    assert run.epochs()[3][0].expected == expected
    assert run.epochs()[3][0].separation > 2 * run.epochs()[0][0].separation
    assert not any("cut short" in text for text in analyse(run.truncate(3).path).messages)


def test_best_epoch_is_a_number_and_best_index_a_position(tmp_path):
    run = RunFolder.create(tmp_path, num_samples=50, num_classes=2, adapter="test")
    tracker = GWATracker()
    rng = np.random.default_rng(0)
    for epoch, value in ((3, 0.2), (7, 0.9), (9, 0.4)):
        tracker.update(rng.normal(0.1, 0.1, 50))
        run.write_epoch(tracker.end_epoch()._replace(epoch=epoch), metrics={"acc": value})
    report = analyse(tmp_path, rule=BestMetric(metric="acc"))
    assert (report.best_epoch, report.best_index, report.shown) == (7, 1, 1)
    loaded = json.loads(report.to_json())
    assert (loaded["best_epoch"], loaded["best_index"]) == (7, 1)
    assert loaded["selection"]["step"] == 7
    assert compare([report]).rows[0].best_epoch == 7
    # Not every epoch was evaluated: the others cannot be the best, and that is no error.
    tracker.update(rng.normal(0.1, 0.1, 50))
    run.write_epoch(tracker.end_epoch()._replace(epoch=11))
    assert analyse(tmp_path, rule=BestMetric(metric="acc")).best_epoch == 7
    with pytest.raises(ValueError, match=r"must have the column 'accuracy'.* got acc, bimodality"):
        analyse(tmp_path, rule=BestMetric(metric="accuracy"))


def test_no_epoch_qualifies(tmp_path):
    run = RunFolder.create(tmp_path, num_samples=10, num_classes=2, adapter="test")
    tracker = GWATracker(10)
    tracker.update(np.tile([-0.3, 0.3], 5), ids=np.arange(10))
    run.write_epoch(tracker.end_epoch(), scores=np.tile([-0.3, 0.3], 5))
    report = analyse(tmp_path, rule=MaxGWA())
    assert report.best_index is None
    assert report.best_epoch is None
    assert report.selection.step is None
    assert np.isfinite(report.scores).all()


def test_omitted_scores_are_counted(tmp_path):
    arrays = _features()
    arrays["latents"][5, 0] = np.nan
    np.savez(tmp_path / "f.npz", **arrays)
    report = analyse(tmp_path / "f.npz")
    assert report.epochs[0].summary.omitted == 1
    assert np.isnan(report.scores[5])
    assert "1 score was not finite" in " ".join(report.messages)


def test_numpy_numbers_are_numbers(tmp_path):
    np.savez(tmp_path / "f.npz", **_features())
    rule = MaxGWA(patience=np.int64(5), warmup=np.float64(0.1), smoothing=np.int32(2))
    report = analyse(tmp_path / "f.npz", rule=rule, label_smoothing=np.float32(0.25))
    same = analyse(
        tmp_path / "f.npz", rule=MaxGWA(patience=5, warmup=0.1, smoothing=2), label_smoothing=0.25
    )
    assert report.to_json() == same.to_json()
    record = replace(report.epochs[0], metrics={"loss": np.float32(0.5), "n": np.int64(3)})
    loaded = json.loads(replace(report, epochs=(record,), best_index=np.int64(0)).to_json())
    assert (loaded["epochs"][0]["loss"], loaded["epochs"][0]["n"]) == (0.5, 3)
    assert loaded["best_index"] == 0


def test_sigmoid_head(tmp_path):
    arrays = _features()
    arrays["targets"] = (np.random.default_rng(1).random((N, C)) < 0.4).astype(np.float32)
    np.savez(tmp_path / "f.npz", **arrays)
    report = analyse(open_features(tmp_path / "f.npz", loss="binary_cross_entropy"))
    want = alignment_scores(**arrays, loss="binary_cross_entropy")
    np.testing.assert_allclose(report.scores, want, rtol=1e-5, atol=1e-7)


def test_progress_ends_at_its_total(tmp_path):
    _snapshots(tmp_path, epochs=2)
    calls = []
    analyse(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (2 * N, 2 * N)


def test_ranks_per_class(tmp_path):
    np.savez(tmp_path / "f.npz", **_features())
    report = analyse(tmp_path / "f.npz")
    table = report.rank(3, per_class=True)
    assert table.shape == (C, 3)
    for label, row in enumerate(table):
        members = np.flatnonzero(report.targets == label)
        want = members[np.argsort(report.label_quality[members], kind="stable")[:3]]
        np.testing.assert_array_equal(row, want)
    highest = report.rank(1, order="highest", by="scores")
    assert highest[0] == np.nanargmax(report.scores)
    suspicious = (report.label_quality < 0.5).sum()
    assert isinstance(suspicious, np.integer)
    np.testing.assert_array_equal(report.rank(suspicious), report.rank(int(suspicious)))
    assert report.rank(np.uint8(3), per_class=True).tolist() == table.tolist()
    for wrong in (2.0, True, 0, 10.0**9):
        with pytest.raises(ValueError, match="`k` must be"):
            report.rank(wrong)
    with pytest.raises(ValueError, match="`by` must be 'label_quality' or 'scores'"):
        report.rank(3, by="targets")


def test_files_hold_what_the_report_holds(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    np.savez(tmp_path / "f.npz", **_features())
    report = analyse(tmp_path / "f.npz")
    epochs, samples = report.to_csv(tmp_path / "out")
    with samples.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == N
    assert float(rows[7]["label_quality"]) == report.label_quality[7]
    assert int(rows[7]["target"]) == report.targets[7]
    with epochs.open(newline="") as file:
        assert float(next(csv.DictReader(file))["gwa"]) == report.epochs[0].summary.gwa
    table = parquet.read_table(report.to_parquet(tmp_path / "out")[1])
    np.testing.assert_array_equal(table["alignment"].to_numpy(), report.scores)
    loaded = json.loads(report.to_json())
    assert loaded["label_quality"] == report.label_quality.tolist()
    assert loaded["epochs"][0]["healthy"] is True


def test_comparison_ranks_runs_as_the_metric_does(tmp_path):
    reports = []
    for number, quality in enumerate((0.1, 0.3, 0.2, 0.4)):
        run = RunFolder.create(
            tmp_path / f"run{number}", num_samples=60, num_classes=2, adapter="test"
        )
        tracker = GWATracker()
        tracker.update(np.random.default_rng(number).normal(quality, 0.05, 60))
        run.write_epoch(tracker.end_epoch(), metrics={"acc": quality**2})
        reports.append(analyse(run.path))
    comparison = compare(reports, metric="acc")
    assert comparison.spearman == pytest.approx(1.0)
    assert 0.9 < comparison.pearson < 1.0
    with pytest.raises(ValueError, match=r"`metric` must be a column.*there is acc"):
        compare(reports, metric="nope")
    assert compare(reports[:2], metric="acc").pearson is None


def test_signals_of_a_run_stand_beside_its_metric(tmp_path):
    run = RunFolder.create(tmp_path / "run", num_samples=60, num_classes=2, adapter="test")
    tracker = GWATracker()
    rng = np.random.default_rng(0)
    accuracy = [0.1, 0.5, 0.3, 0.6, 0.7, 0.65]
    rising, constant, late = [], [], []
    for epoch, value in enumerate(accuracy):
        tracker.update(rng.normal(value, 0.05, 60))
        rising.append(value**3)
        constant.append(1.0)
        late.append(-value if epoch > 1 else None)
        columns = {"rising": rising[-1], "constant": 1.0, "late": late[-1] or float("nan")}
        run.write_epoch(tracker.end_epoch(), metrics={"acc": value, **columns})
    found = {row.signal: row for row in compare([analyse(run.path)], metric="acc").signals}
    assert list(found) == ["gwa", "mean", "bimodality", "separation", *columns]
    wanted = np.corrcoef(accuracy, np.array(accuracy) ** 3)[0, 1]
    assert found["rising"].pearson == pytest.approx(wanted)
    assert found["rising"].spearman == pytest.approx(1.0)
    assert found["mean"].pearson > 0.99
    # Epochs without it do not count, and what does not change has no correlation.
    assert found["late"].pearson == pytest.approx(-1.0)
    assert found["constant"].pearson is None
    assert compare([analyse(run.path)]).signals == ()


def test_shares_in_the_average_are_the_core_s_and_said(tmp_path):
    _snapshots(tmp_path)
    report = analyse(tmp_path)
    shares = average_shares([record.summary for record in report.epochs])
    np.testing.assert_array_equal(report.average_shares, shares)
    assert json.loads(report.to_json())["average_shares"] == shares.tolist()
    named = replace(report, average_shares=np.asarray([0, 0.02, 0.1, 0.35, 0.5, 0.03, 0, 0]))
    words = "Or average the weights: epochs 2 to 4 are 95 % of the average."
    assert average_sentence(named) == words
    alone = replace(report, average_shares=np.eye(8)[3])
    assert average_sentence(alone) == "Or average the weights: epoch 3 is 100 % of the average."


def test_the_decision_is_that_of_the_core(tmp_path):
    made = _snapshots(tmp_path)
    scores = [alignment_scores(**arrays) for arrays in made]
    history = [summarize(x.astype(np.float64)) for x in scores]
    for rule in (MaxSeparation(), MaxBimodality(warmup=2), MaxGWA()):
        seen, name = analyse(tmp_path, rule=rule).decision, rule.signal
        errors = [signal_standard_error(x.astype(np.float64), signal=name) for x in scores]
        assert seen.signal == name
        np.testing.assert_allclose(seen.values, [getattr(s, name) for s in history], rtol=1e-4)
        np.testing.assert_allclose(seen.standard_errors, errors, rtol=1e-4)
        assert seen.tied.tolist() == near_ties(history, errors, rule).tolist()
        assert seen.warmup == (2 if name == "bimodality" else 0)
    smoothed = analyse(tmp_path, rule=MaxSeparation(smoothing=2))
    assert np.isnan(smoothed.decision.standard_errors).all()
    assert smoothed.decision.tied.sum() == 1
    assert ties_words(smoothed) is None


def test_where_no_epoch_counts_there_is_no_average(tmp_path):
    for epoch in range(3):
        np.savez(tmp_path / f"epoch_{epoch}.npz", **_features(epoch, scale=-1.0))
    report = analyse(tmp_path)
    assert report.average_shares.tolist() == [0.0, 0.0, 0.0]
    assert average_sentence(report) is None
    assert average_sentence(analyse(tmp_path / "epoch_1.npz")) is None
