"""Training on all rows: scikit-learn's rules, the scores of each moment, and the best epoch."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
from backends import require

sklearn = pytest.importorskip("sklearn")

import scipy.sparse as sp
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.estimator_checks import check_estimator

import gwa_core
import gwa_sklearn
from gwa_core import label_quality
from gwa_offline.store import FeaturesError, RunFolder
from gwa_sklearn import (
    BestMetric,
    GWAEarlyStoppingClassifier,
    LabelWave,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    alignment_scores,
    rank_samples,
    select_epoch,
)

X, Y = make_classification(
    240, 8, n_informative=6, n_redundant=0, n_classes=3, flip_y=0.2, random_state=0
)
NAMES = np.asarray(["fig", "apple", "plum"])[Y]


# It is that of a SGDClassifier with its default steps in many tests, of which it warns.
pytestmark = pytest.mark.filterwarnings("ignore:`label_quality_` is unsteady")


def sgd(**options):
    return SGDClassifier(loss="log_loss", alpha=0.01, random_state=0, **options)


def network(hidden=(7,), **options):
    return MLPClassifier(hidden, batch_size=32, learning_rate_init=0.01, random_state=0, **options)


def early(estimator=None, **options):
    options = {"max_epochs": 12, "batch_size": 50, "random_state": 0, **options}
    return GWAEarlyStoppingClassifier(sgd() if estimator is None else estimator, **options)


def weights(model):
    """All that a model predicts from."""
    if hasattr(model, "coefs_"):
        return [*model.coefs_, *model.intercepts_]
    return [model.coef_, model.intercept_]


def same_weights(a, b):
    return all(np.array_equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


# scikit-learn's own checks


NOT_EQUIVALENT = dict.fromkeys(
    (
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weight_equivalence_on_sparse_data",
    ),
    "a step of SGDClassifier with weight 2 is not two steps, as its own list of checks says",
)
# What this machine lacks; scikit-learn runs these checks where it is there.
SKIPS = ("pandas is not installed", "SCIPY_ARRAY_API is not set")


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (GWAEarlyStoppingClassifier(max_epochs=40), NOT_EQUIVALENT),
        (
            # A rule sees a row once, whatever its weight: the last epoch is the same of both.
            GWAEarlyStoppingClassifier(
                MLPClassifier((32,), learning_rate_init=0.02),
                rule=BestMetric(metric="epoch"),
                max_epochs=12,
            ),
            {},
        ),
        (
            GWAEarlyStoppingClassifier(make_pipeline(MaxAbsScaler(), sgd()), max_epochs=40),
            NOT_EQUIVALENT,
        ),
        (
            GWAEarlyStoppingClassifier(keep="average", max_epochs=12),
            NOT_EQUIVALENT,
        ),
    ],
    ids=["default", "network", "pipeline", "average"],
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_it_passes_scikit_learns_checks(estimator, expected):
    results = check_estimator(
        estimator, expected_failed_checks=expected, on_skip=None, on_fail="raise"
    )
    assert len(results) > 50
    failed = {result["check_name"] for result in results if result["status"] == "xfail"}
    assert failed == set(expected)
    for result in results:
        if result["status"] == "skipped":
            assert str(result["exception"]).startswith(SKIPS)


# What an epoch is


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (sgd(), "binary_cross_entropy"),
        (network(), "cross_entropy"),
        (network(()), "cross_entropy"),
    ],
    ids=["linear", "network", "network without hidden layers"],
)
def test_a_batch_is_scored_with_the_weights_before_its_step(model, loss):
    fitted = early(model, max_epochs=2, rule=BestMetric(metric="epoch")).fit(X, NAMES)
    by_hand, rng = clone(model), np.random.RandomState(0)
    scores = np.full(len(X), np.nan)
    for epoch in range(2):
        order = rng.permutation(len(X))
        for begin in range(0, len(X), 50):
            rows = order[begin : begin + 50]
            if (epoch, begin) != (0, 0):
                scores[rows] = alignment_scores(by_hand, X[rows], NAMES[rows])
            by_hand.partial_fit(X[rows], NAMES[rows], classes=np.unique(NAMES))
    assert fitted.best_epoch_ == 1
    assert same_weights(fitted.estimator_, by_hand)
    np.testing.assert_allclose(fitted.alignment_, scores, rtol=1e-12)
    summary = gwa_core.summarize(scores)
    np.testing.assert_allclose(fitted.history_[1].gwa, summary.gwa, rtol=1e-10)
    assert fitted.history_[1].count == len(X)


def test_the_first_batch_of_all_is_scored_after_the_step_that_makes_the_weights():
    fitted = early(max_epochs=1, shuffle=False).fit(X, NAMES)
    by_hand = sgd().partial_fit(X[:50], NAMES[:50], classes=np.unique(NAMES))
    first = alignment_scores(by_hand, X[:50], NAMES[:50])
    np.testing.assert_allclose(fitted.alignment_[:50], first, rtol=1e-12)
    assert np.isfinite(fitted.alignment_).all()


@pytest.mark.parametrize("rule", [MaxBimodality(), MaxSeparation()], ids=str)
@pytest.mark.parametrize("model", [sgd(average=True), network()], ids=["linear", "network"])
def test_the_best_epoch_is_the_model_that_stopping_there_would_have_left(model, rule):
    whole = early(model, rule=rule).fit(X, Y)
    best = whole.best_epoch_
    assert 0 < best < 11, "the check below would be idle"
    assert best == select_epoch(whole.history_, rule).step
    assert len(whole.history_) == whole.n_iter_ == 12
    short = early(model, rule=rule, max_epochs=best + 1).fit(X, Y)
    # Its last epoch, whatever its rule prefers.
    assert short.history_ == whole.history_[: best + 1]
    last = early(model, rule=BestMetric(metric="epoch"), max_epochs=best + 1).fit(X, Y)
    assert same_weights(whole.estimator_, last.estimator_)
    np.testing.assert_array_equal(whole.alignment_, last.alignment_)


def test_it_stops_by_the_rule_and_says_why():
    fitted = early(rule=MaxGWA(warmup=1, patience=2), max_epochs=60).fit(X, Y)
    assert fitted.n_iter_ == fitted.best_epoch_ + 3 < 60
    assert "no improvement in 2 steps" in fitted.stopping_reason_
    assert (
        fitted.stopping_reason_
        == select_epoch(fitted.history_, MaxGWA(warmup=1, patience=2), total_steps=60).reason
    )


def test_where_no_epoch_qualifies_the_last_is_best():
    fitted = early(rule=MaxGWA(warmup=99)).fit(X, Y)
    assert (fitted.best_epoch_, fitted.n_iter_) == (11, 12)
    assert "no step qualifies" in fitted.stopping_reason_


def test_the_default_is_an_averaged_linear_model_that_can_stop():
    fitted = GWAEarlyStoppingClassifier(random_state=0).fit(X, Y)
    assert fitted.estimator_.average is True
    assert fitted.estimator_.loss == "log_loss"
    assert fitted.n_iter_ < 100
    assert fitted.score(X, Y) > 0.6


@pytest.mark.slow
def test_it_helps_against_wrong_labels():
    digits, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    train, test = np.split(rng.permutation(len(labels)), [1297])
    wrong = rng.choice(1297, 520, replace=False)
    noisy = labels[train]
    noisy[wrong] = (noisy[wrong] + rng.integers(1, 10, 520)) % 10
    model = MLPClassifier((128,), batch_size=32, random_state=0)
    options = {"max_epochs": 100, "batch_size": None, "random_state": 0}
    best = early(model, **options).fit(digits[train] / 16, noisy)
    last = early(model, rule=BestMetric(metric="epoch"), **options).fit(digits[train] / 16, noisy)
    assert last.best_epoch_ == 99
    gain = best.score(digits[test] / 16, labels[test]) - last.score(digits[test] / 16, labels[test])
    assert gain > 0.02
    assert np.isin(rank_samples(best.alignment_, k=520), wrong).mean() > 0.85


# What a rule sees, and what is left of it

RECORDED = [
    (LabelWave(), "prediction_changes"),
    (LabelWave(window=2, patience=2), ["margin", "prediction_changes"]),
    (BestMetric(metric="sample_loss", mode="min", patience=3), ["sample_loss"]),
]


@pytest.mark.parametrize(("rule", "signals"), RECORDED, ids=str)
def test_a_rule_may_watch_a_signal(rule, signals, tmp_path):
    model = network()
    options = {"signals": signals, "max_epochs": 60}
    fitted = early(model, rule=rule, run_folder=tmp_path / "run", **options).fit(X, Y)
    assert fitted.n_iter_ < 60
    assert 0 < fitted.best_epoch_ < fitted.n_iter_ - 1
    pairs = zip(fitted.history_, fitted.signals_.history, strict=True)
    in_memory = [{**summary._asdict(), **means} for summary, means in pairs]
    stored = RunFolder.open(tmp_path / "run").epochs()
    on_disk = [{**summary._asdict(), **means} for summary, means in stored]
    for history in (in_memory, on_disk):
        selected = select_epoch(history, rule, total_steps=60)
        assert (selected.step, selected.reason) == (fitted.best_epoch_, fitted.stopping_reason_)
    # The weights of that epoch.
    last = early(model, **{**options, "max_epochs": fitted.best_epoch_ + 1})
    last.set_params(rule=BestMetric(metric="epoch")).fit(X, Y)
    assert same_weights(fitted.estimator_, last.estimator_)


def test_the_best_epoch_competes_by_its_signal_after_a_warm_start():
    rule = BestMetric(metric="margin", mode="min")
    first = early(network(), rule=rule, signals="margin", warm_start=True, max_epochs=3).fit(X, Y)
    best, margin = first.best_epoch_, first.signals_.history[first.best_epoch_]["margin"]
    for _ in range(2):  # the means of the best epoch are not in the second fit
        first.fit(X, Y)
        assert min(record["margin"] for record in first.signals_.history) > margin
        assert first.best_epoch_ == best == 0


def epochs_of(model, count, **options):
    """The scores of each of the first epochs, by fits that end there."""
    last = {"rule": BestMetric(metric="epoch"), **options}
    return [early(model, max_epochs=n + 1, **last).fit(X, Y).alignment_ for n in range(count)]


@pytest.mark.parametrize("model", [sgd(average=True), network()], ids=["linear", "network"])
def test_label_quality_is_that_of_all_epochs(model):
    fitted = early(model, rule=MaxBimodality(), max_epochs=6).fit(X, Y)
    whole = label_quality(np.stack(epochs_of(model, 6)))
    np.testing.assert_allclose(fitted.label_quality_, whole, rtol=1e-12)
    assert np.isin(rank_samples(fitted.label_quality_, k=5), np.arange(240)).all()


def test_label_quality_is_cut_where_the_history_is():
    model, options = sgd(average=3), {"shuffle": False, "warm_start": True}
    rule = MaxBimodality(warmup=1)
    fitted = early(model, rule=rule, max_epochs=8, **options).fit(X, Y)
    best = fitted.best_epoch_
    assert best < 7, "nothing would be cut"
    first = epochs_of(model, 8, shuffle=False)
    np.testing.assert_allclose(fitted.label_quality_, label_quality(np.stack(first)), rtol=1e-12)
    fitted.fit(X, Y)
    # In this order the epochs after the best one come again.
    again = epochs_of(model, best + 9, shuffle=False)
    assert len(fitted.history_) == best + 9
    np.testing.assert_allclose(fitted.label_quality_, label_quality(np.stack(again)), rtol=1e-12)


def test_label_quality_of_other_rows_begins_with_them():
    fitted = early(warm_start=True, max_epochs=2).fit(X, Y)
    fitted.fit(X[:150], Y[:150])
    assert fitted.label_quality_.shape == (150,)
    assert np.isfinite(fitted.label_quality_).all()


def test_an_epoch_knows_how_many_rows_it_has():
    weight = (np.arange(240) % 3 > 0).astype(float)
    fitted = early(max_epochs=2).fit(X, Y, sample_weight=weight)
    assert [(s.count, s.expected) for s in fitted.history_] == [(160, 160)] * 2
    assert np.isnan(fitted.label_quality_[weight == 0]).all()
    assert np.isfinite(fitted.label_quality_[weight > 0]).all()


# The folder of a run


@pytest.mark.parametrize(
    ("model", "loss"),
    [(sgd(), "binary_cross_entropy"), (network(), "cross_entropy")],
    ids=["sigmoids", "softmax"],
)
def test_a_run_folder_has_every_epoch(model, loss, tmp_path):
    folder = tmp_path / "run"
    weight = np.r_[np.zeros(20), np.ones(220)]
    fitted = early(model, run_folder=str(folder)).fit(X, NAMES, sample_weight=weight)
    run = RunFolder.open(folder)
    assert (run.adapter, run.loss, run.num_samples) == ("sklearn", loss, 240)
    assert run.class_names == ("apple", "fig", "plum")
    np.testing.assert_array_equal(run.targets(), np.searchsorted(fitted.classes_, NAMES))
    assert [summary for summary, _ in run.epochs()] == fitted.history_
    best = run.scores(fitted.best_epoch_)
    np.testing.assert_array_equal(best, fitted.alignment_.astype(np.float32))
    stacked = np.stack([run.scores(epoch) for epoch in range(fitted.n_iter_)]).astype(float)
    np.testing.assert_allclose(label_quality(stacked), fitted.label_quality_, atol=1e-6)
    plain = early(model).fit(X, NAMES, sample_weight=weight)
    assert same_weights(plain.estimator_, fitted.estimator_)


@pytest.mark.parametrize("labels", [Y, Y % 2], ids=["classes", "two classes"])
@pytest.mark.parametrize("model", [sgd(), network()], ids=["sgd", "network"])
def test_a_run_folder_has_what_the_model_said(model, labels, tmp_path):
    weight = np.r_[np.zeros(20), np.ones(220)]
    options = {"shuffle": False, "batch_size": 110, "max_epochs": 3, "run_folder": tmp_path}
    early(model, **options).fit(X, labels, sample_weight=weight)
    twin, rows = clone(model), np.arange(20, 240)
    for epoch in range(3):
        want = np.full(240, -1)
        for part in np.array_split(rows, 2):
            if not epoch and part[0] == 20:  # the first step makes the weights
                twin.partial_fit(X[part], labels[part], classes=np.unique(labels))
                want[part] = twin.predict(X[part])
                continue
            want[part] = twin.predict(X[part])
            twin.partial_fit(X[part], labels[part])
        np.testing.assert_array_equal(RunFolder.open(tmp_path).predictions(epoch), want)


def test_a_warm_start_leaves_the_folder_of_another_run_alone(tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    early(network(), max_epochs=4, run_folder=other).fit(X, Y)
    before = (other / "epochs.jsonl").read_bytes()
    fitted = early(network(), max_epochs=2, warm_start=True, run_folder=mine).fit(X, Y)
    with pytest.raises(ValueError, match="already holds a run of 4 epochs"):
        fitted.set_params(run_folder=other).fit(X, Y)
    assert (other / "epochs.jsonl").read_bytes() == before
    # Nor are other rows written into the same run.
    lines = (mine / "epochs.jsonl").read_bytes()
    with pytest.raises(ValueError, match="already holds a run"):
        fitted.set_params(run_folder=mine).fit(X[:150], Y[:150])
    assert (mine / "epochs.jsonl").read_bytes() == lines


def test_label_quality_under_steps_that_are_too_large_warns():
    fitted = early(sgd(), max_epochs=2).fit(X, Y)
    with pytest.warns(
        UserWarning, match="unsteady under the default steps of SGDClassifier with 3"
    ):
        assert fitted.label_quality_.shape == (240,)
    steady = sgd(learning_rate="constant", eta0=0.01, average=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model, classes in ((steady, Y), (network(), Y), (sgd(), Y % 2)):
            assert early(model, max_epochs=2).fit(X, classes).label_quality_.shape == (240,)
    assert not hasattr(early(), "label_quality_")


def test_a_warm_start_may_not_change_to_what_was_not_measured():
    fitted = early(network(), max_epochs=2, warm_start=True).fit(X, Y)
    with pytest.raises(ValueError, match="`rule` must watch what the fit before has measured"):
        fitted.set_params(rule=LabelWave(), signals="prediction_changes").fit(X, Y)


def test_a_warm_start_goes_on_in_its_folder(tmp_path):
    options = {"rule": MaxBimodality(warmup=1), "run_folder": tmp_path, "signals": "margin"}
    fitted = early(network(), warm_start=True, max_epochs=5, **options).fit(X, Y)
    fitted.fit(X, Y)
    stored = RunFolder.open(tmp_path).epochs()
    assert [summary for summary, _ in stored] == fitted.history_
    assert [means for _, means in stored[-5:]] == fitted.signals_.history


def test_a_folder_with_a_run_is_refused_before_the_training(tmp_path):
    early(max_epochs=1, run_folder=tmp_path).fit(X, Y)
    again = early(max_epochs=10**6, run_folder=tmp_path)
    with pytest.raises(FeaturesError, match="already holds a run of 1 epochs"):
        again.fit(X, Y)


# Going on


def test_a_warm_start_goes_on_from_the_best_epoch():
    first = early(rule=MaxBimodality(warmup=1), warm_start=True).fit(X, Y)
    best, before = first.best_epoch_, copy.deepcopy(first)
    assert best < 11
    first.fit(X, Y)
    assert first.history_[: best + 1] == before.history_[: best + 1]
    assert len(first.history_) == first.n_iter_ == best + 1 + 12
    assert [summary.epoch for summary in first.history_] == list(range(best + 13))
    if first.best_epoch_ == best:
        assert same_weights(first.estimator_, before.estimator_)
    values = [summary.bimodality for summary in first.history_[best:]]
    assert first.best_epoch_ == best + int(np.argmax(values))


def test_a_warm_start_never_ends_with_a_worse_epoch():
    once = early(rule=MaxGWA(warmup=0), max_epochs=3, warm_start=True).fit(X, Y)
    best = once.history_[once.best_epoch_].gwa
    for _ in range(3):
        once.fit(X, Y)
        assert once.history_[once.best_epoch_].gwa >= best
        best = once.history_[once.best_epoch_].gwa


@pytest.mark.parametrize("model", [sgd(average=3), network()], ids=["linear", "network"])
def test_a_run_in_two_parts_is_a_run_in_one(model):
    # Each epoch is the best so far: nothing is lost between the parts.
    options = {"rule": BestMetric(metric="epoch"), "shuffle": False}
    whole = early(model, max_epochs=6, **options).fit(X, Y)
    parts = early(model, max_epochs=3, warm_start=True, **options).fit(X, Y).fit(X, Y)
    assert same_weights(whole.estimator_, parts.estimator_)
    assert whole.history_ == parts.history_


def test_without_a_warm_start_nothing_is_left_of_the_first_fit():
    twice = early().fit(X[:100], NAMES[:100]).fit(X, Y)
    once = early().fit(X, Y)
    assert twice.history_ == once.history_
    assert same_weights(twice.estimator_, once.estimator_)


def test_a_warm_start_knows_the_labels_of_the_first_fit_only():
    fitted = early(warm_start=True, max_epochs=2).fit(X, NAMES)
    fitted.fit(X[Y < 2], NAMES[Y < 2])
    assert list(fitted.classes_) == ["apple", "fig", "plum"]
    with pytest.raises(ValueError, match=r"classes of the first fit only, got \['pear'\]"):
        fitted.fit(X[:2], ["pear", "fig"])


# Data


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", [sp.csr_array, sp.csr_matrix, sp.csc_array])
def test_sparse_rows_give_what_dense_rows_give(dtype, layout):
    dense = np.where(np.abs(X) > 1, X, 0).astype(dtype)
    # With an intercept SGDClassifier itself learns something else from sparse rows.
    for model in (sgd(fit_intercept=False), network()):
        a, b = (early(model, max_epochs=4).fit(data, NAMES) for data in (dense, layout(dense)))
        assert a.alignment_.dtype == b.alignment_.dtype == dtype
        close = {"rtol": 1e-9} if dtype == np.float64 else {"rtol": 1e-2, "atol": 1e-3}
        np.testing.assert_allclose(b.alignment_, a.alignment_, **close)
        np.testing.assert_array_equal(b.predict(layout(dense)), a.predict(dense))


@pytest.mark.parametrize("model", [sgd(), network()], ids=["linear", "network"])
@pytest.mark.parametrize("layout", [np.asarray, sp.csr_array])
def test_images_in_bytes_are_numbers(model, layout):
    # Squares of 200 don't fit a byte.
    images = np.abs(X * 40).clip(0, 255).astype(np.uint8)
    a = early(model, max_epochs=3).fit(layout(images), Y)
    b = early(model, max_epochs=3).fit(layout(images.astype(np.float64)), Y)
    np.testing.assert_allclose(a.alignment_, b.alignment_, rtol=1e-9)


def test_labels_of_any_kind():
    numbers = early().fit(X, Y)
    for labels in (NAMES, NAMES.astype(object), Y.astype(float), list(NAMES), Y == 1):
        fitted = early().fit(X, labels)
        assert set(fitted.predict(X)) <= set(np.unique(labels))
    order = np.argsort(["fig", "apple", "plum"])
    assert list(early().fit(X, NAMES).classes_) == ["apple", "fig", "plum"]
    assert list(order) == [1, 0, 2]
    assert numbers.predict_proba(X).shape == (240, 3)


def test_a_column_of_labels_is_warned_about_as_elsewhere():
    with pytest.warns(DataConversionWarning):
        early(max_epochs=1).fit(X, Y[:, None])


def test_a_class_may_be_missing_from_a_batch():
    order = np.argsort(Y, kind="stable")
    fitted = early(shuffle=False, batch_size=40).fit(X[order], NAMES[order])
    assert np.isfinite(fitted.alignment_).all()
    assert fitted.estimator_.coef_.shape == (3, 8)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="two classes or more, got one class, 'fig'"):
        early().fit(X, np.full(len(X), "fig"))


def test_a_batch_larger_than_the_data_and_a_last_batch_of_one_row():
    for size in (1000, 239, 1):
        fitted = early(batch_size=size, max_epochs=2).fit(X, Y)
        assert fitted.history_[0].count == 240


def test_default_batches_are_steps_of_a_network_and_leave_ten_an_epoch():
    from gwa_sklearn._training import default_batch_size

    rows = (50, 2000, 4000, 10_000, 10**6)
    assert [default_batch_size(sgd(), n) for n in rows] == [200, 200, 400, 1000, 1000]
    assert [default_batch_size(network(), n) for n in rows] == [32, 192, 384, 992, 992]
    assert default_batch_size(MLPClassifier(batch_size=5000), 10**6) == 5000


def test_a_network_gets_no_batch_that_is_shorter_than_its_own():
    # It would warn, in each epoch.
    fitted = early(network(), batch_size=64, max_epochs=1).fit(X[:150], Y[:150])
    assert fitted.history_[0].count == 150


# Weights of samples


@pytest.mark.parametrize("model", [sgd(), network()], ids=["linear", "network"])
def test_a_weight_of_zero_leaves_a_row_out(model):
    weight = np.where(np.arange(240) % 3 == 0, 0.0, 2.0)
    there = weight > 0
    a = early(model).fit(X, Y, sample_weight=weight)
    b = early(model).fit(X[there], Y[there], sample_weight=weight[there])
    assert same_weights(a.estimator_, b.estimator_)
    assert a.history_ == b.history_
    np.testing.assert_array_equal(a.alignment_[there], b.alignment_)
    assert np.isnan(a.alignment_[~there]).all()


def test_weights_reach_the_steps():
    weight = np.where(Y == 0, 50.0, 1.0)
    plain, weighted = early().fit(X, Y), early().fit(X, Y, sample_weight=weight)
    assert (weighted.predict(X) == 0).mean() > (plain.predict(X) == 0).mean() + 0.1
    with pytest.raises(ValueError, match="Negative values"):
        early().fit(X, Y, sample_weight=-weight)


def test_weights_are_routed_to_those_who_ask():
    weight = np.where(Y == 0, 50.0, 1.0)
    with config_context(enable_metadata_routing=True):
        asks = early(sgd().set_partial_fit_request(sample_weight=True))
        refuses = early(sgd().set_partial_fit_request(sample_weight=False))
        weighted = asks.fit(X, Y, sample_weight=weight)
        plain = refuses.fit(X, Y, sample_weight=weight)
        with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError):
            early(sgd()).fit(X, Y, sample_weight=weight)
        in_search = GridSearchCV(
            clone(asks).set_fit_request(sample_weight=True).set_score_request(sample_weight=False),
            {"estimator__alpha": [0.01]},
            cv=2,
        ).fit(X, Y, sample_weight=weight)
        default = GWAEarlyStoppingClassifier(max_epochs=2).fit(X, Y, sample_weight=weight)
    same = early().fit(X, Y, sample_weight=weight)
    assert same_weights(weighted.estimator_, same.estimator_)
    assert same_weights(plain.estimator_, early().fit(X, Y).estimator_)
    assert same_weights(in_search.best_estimator_.estimator_, same.estimator_)
    assert default.n_iter_ == 2


def test_a_scaler_in_a_pipeline_can_ask_for_the_weights():
    weight = np.where(Y == 0, 50.0, 1.0)
    with config_context(enable_metadata_routing=True):
        scaler = StandardScaler().set_fit_request(sample_weight=True)
        model = sgd().set_partial_fit_request(sample_weight=True)
        fitted = early(make_pipeline(scaler, model)).fit(X, Y, sample_weight=weight)
    expected = StandardScaler().fit(X, sample_weight=weight).mean_
    np.testing.assert_allclose(fitted.estimator_[0].mean_, expected)


def rare(y):
    """Rows of which few are of the first class."""
    return np.flatnonzero((y > 0) | (np.arange(len(y)) % 4 == 0))


@pytest.mark.parametrize("wrap", [lambda model: model, lambda m: make_pipeline(MaxAbsScaler(), m)])
def test_balanced_classes_are_those_of_all_labels(wrap):
    rows = rare(Y)
    x, names = X[rows], NAMES[rows]
    weights = compute_class_weight("balanced", classes=np.unique(names), y=names)
    by_hand = dict(zip(np.unique(names), weights, strict=True))
    wishes = {"balanced": "balanced", "by hand": by_hand, "none": None}
    fits = {}
    for name, wish in wishes.items():
        model = sgd(class_weight=wish)
        fits[name] = early(wrap(model)).fit(x, names)
        assert model.class_weight is wish
    balanced, same, none = (fits[name].predict_proba(x) for name in wishes)
    np.testing.assert_allclose(balanced, same, rtol=1e-12)
    assert np.abs(balanced - none).max() > 0.01


def test_balanced_classes_are_those_of_the_rows_that_count():
    weight = np.ones(240)
    weight[np.setdiff1d(np.arange(240), rare(Y))] = 0.0
    last = {"rule": BestMetric(metric="epoch"), "max_epochs": 3}
    balanced = early(sgd(class_weight="balanced"), warm_start=True, **last)
    left = clone(balanced).fit(X[weight > 0], Y[weight > 0])
    out = clone(balanced).fit(X, Y, sample_weight=weight)
    assert same_weights(left.estimator_, out.estimator_)
    # A further fit counts its own labels.
    assert out.estimator_.class_weight != balanced.fit(X, Y).estimator_.class_weight
    assert out.fit(X, Y).estimator_.class_weight == balanced.estimator_.class_weight


# Pipelines, and what is around them


def test_the_first_steps_of_a_pipeline_are_fitted_once():
    fits = []

    class Counted(StandardScaler):
        def fit(self, X, y=None, sample_weight=None):
            fits.append(len(X))
            return super().fit(X, y, sample_weight)

    pipeline = make_pipeline(Counted(), sgd())
    fitted = early(pipeline).fit(X, Y)
    assert fits == [240]
    alone = early().fit(StandardScaler().fit_transform(X), Y)
    assert same_weights(fitted.estimator_[-1], alone.estimator_)
    np.testing.assert_array_equal(fitted.predict(X), fitted.estimator_.predict(X))
    assert not hasattr(pipeline[-1], "coef_"), "fit must not touch what it was given"
    fitted.set_params(warm_start=True).fit(X, Y)
    assert fits == [240]


def test_a_pipeline_with_a_memory(tmp_path):
    # Its first steps are then clones, all but the last transformer.
    steps = StandardScaler(), MaxAbsScaler(), sgd()
    cached = early(make_pipeline(*steps, memory=str(tmp_path))).fit(X, Y)
    np.testing.assert_array_equal(
        cached.predict_proba(X), early(make_pipeline(*steps)).fit(X, Y).predict_proba(X)
    )


def test_a_pipeline_takes_text():
    texts = [f"the {name} is {'ripe' if i % 2 else 'green'}" for i, name in enumerate(NAMES)]
    fitted = early(make_pipeline(TfidfVectorizer(), sgd())).fit(texts, NAMES)
    assert fitted.score(texts, NAMES) == 1.0
    np.testing.assert_allclose(
        alignment_scores(fitted, texts, NAMES),
        alignment_scores(fitted.estimator_, texts, NAMES),
    )


def test_it_is_a_classifier_like_others():
    model = early(network())
    assert cross_val_score(model, X, Y, cv=3).mean() > 0.5
    search = GridSearchCV(model, {"estimator__alpha": [1e-4, 1.0]}, cv=2).fit(X, Y)
    assert isinstance(search.best_estimator_, GWAEarlyStoppingClassifier)
    again = pickle.loads(pickle.dumps(search.best_estimator_))  # noqa: S301
    np.testing.assert_array_equal(again.predict(X), search.predict(X))
    assert again.history_ == search.best_estimator_.history_


def test_the_same_seed_is_the_same_run_and_leaves_the_global_one_alone():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    unseeded = MLPClassifier((5,))
    a, b = (early(unseeded).fit(X, Y) for _ in range(2))
    assert same_weights(a.estimator_, b.estimator_)
    assert not same_weights(a.estimator_, early(unseeded, random_state=1).fit(X, Y).estimator_)
    assert unseeded.random_state is None
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_numbers_of_numpy_are_numbers():
    grid = {"max_epochs": np.arange(2, 4), "batch_size": np.arange(40, 60, 10)}
    search = GridSearchCV(early(), grid, cv=2, error_score="raise").fit(X, Y)
    best = search.best_params_
    plain = early(max_epochs=int(best["max_epochs"]), batch_size=int(best["batch_size"])).fit(X, Y)
    assert plain.history_ == search.best_estimator_.history_
    rule = MaxGWA(warmup=np.int64(1), patience=np.int32(2), min_delta=np.float32(0))
    assert early(rule=rule, max_epochs=np.int64(30)).fit(X, Y).n_iter_ < 30


@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.parametrize("kind", ["alone", "pipeline", "inside a pipeline"])
def test_columns_keep_their_names_and_nothing_warns(kind, warm_start):
    # A warning is an error here, also scikit-learn's about feature names.
    pandas = require("pandas")
    frame = pandas.DataFrame(X, columns=[f"column {i}" for i in range(8)])
    model, options = sgd(), {"max_epochs": 2, "warm_start": warm_start}
    if kind == "pipeline":
        model = make_pipeline(StandardScaler(), model).set_output(transform="pandas")
    whole = early(model, **options)
    if kind == "inside a pipeline":
        whole = make_pipeline(StandardScaler(), whole).set_output(transform="pandas")
    for _ in range(2):
        whole.fit(frame, Y)
        for method in ("predict", "predict_proba", "decision_function"):
            assert len(getattr(whole, method)(frame)) == 240
        assert 0 <= whole.score(frame, Y) <= 1
        assert np.isfinite(alignment_scores(whole, frame, Y)).all()
    if kind != "inside a pipeline":
        assert list(whole.feature_names_in_) == list(frame.columns)
        assert len(whole.estimator_.predict(frame)) == 240
    if kind == "alone" and not warm_start:
        assert not hasattr(whole.fit(X, Y), "feature_names_in_")
        assert len(whole.predict(X)) == len(whole.estimator_.predict(X)) == 240


def test_a_loop_imports_from_one_place():
    names = [
        "BestMetric",
        "DipThenMax",
        "EarlyStopper",
        "GradientDisparity",
        "LabelWave",
        "MaxBimodality",
        "MaxGWA",
        "MaxSeparation",
        "rank_samples",
        "select_epoch",
    ]
    assert set(names) <= set(gwa_sklearn.__all__)
    assert all(getattr(gwa_sklearn, name) is getattr(gwa_core, name) for name in names)


def test_methods_are_those_of_the_estimator_inside():
    assert not hasattr(early(network()), "decision_function")
    assert hasattr(early(), "decision_function")
    for method in ("predict", "predict_proba", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(early(), method)(X)
        fitted = early(max_epochs=2).fit(X, Y)
        np.testing.assert_array_equal(
            getattr(fitted, method)(X), getattr(fitted.estimator_, method)(X)
        )


# What is refused


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (SGDClassifier(), ValueError, "loss='hinge'"),
        (LinearSVC(), TypeError, "hinge loss"),
        (LogisticRegression(), TypeError, "must learn by partial_fit"),
        (MLPClassifier(solver="lbfgs"), TypeError, "must learn by partial_fit"),
        (make_pipeline(StandardScaler(), LinearSVC()), TypeError, "hinge loss"),
        (sgd(early_stopping=True), ValueError, "early_stopping"),
    ],
    ids=["hinge", "svc", "logistic", "lbfgs", "pipeline", "early_stopping"],
)
def test_what_cannot_be_trained_so_is_refused_with_the_reason(model, error, words):
    with pytest.raises(error, match=words):
        early(model).fit(X, Y)


@pytest.mark.parametrize(
    "options", [{"max_epochs": 0}, {"batch_size": 0}, {"rule": "gwa"}, {"shuffle": "yes"}]
)
def test_options_are_checked_as_in_scikit_learn(options):
    with pytest.raises(sklearn.utils._param_validation.InvalidParameterError):
        early(**options).fit(X, Y)


@pytest.mark.parametrize("rule", [BestMetric(), LabelWave()])
def test_a_rule_that_watches_what_is_not_measured_is_refused(rule):
    with pytest.raises(ValueError, match=f"watches '{rule.signal}'"):
        early(rule=rule).fit(X, Y)


def test_the_refusal_says_what_is_measured_and_how_to_have_the_rest():
    follow = r"separation, expected, window, margin; follow it, signals=\['margin', 'prediction_changes'\]"
    with pytest.raises(ValueError, match=follow):
        early(network(), rule=LabelWave(), signals=["margin"]).fit(X, Y)
    with pytest.raises(ValueError, match=r"there are epoch, step, .*; nothing else is measured"):
        early(rule=BestMetric()).fit(X, Y)


# Cost


def test_x_is_not_copied():
    big = np.random.default_rng(0).standard_normal((20_000, 400), dtype=np.float32)
    labels = (big[:, 0] > 0).astype(int)
    early(max_epochs=1, batch_size=500).fit(big[:1000], labels[:1000])
    tracemalloc.start()
    early(max_epochs=1, batch_size=500).fit(big, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.4 * big.nbytes


def test_the_weights_of_many_features_are_not_copied_for_each_batch():
    wide = sp.random_array((200, 100_000), density=1e-4, format="csr", rng=0)
    model = early(batch_size=20, max_epochs=1).fit(wide, Y[:200])
    from gwa_sklearn._training import BatchScorer

    scorer = BatchScorer(model.estimator_, wide)
    tracemalloc.start()
    scorer.score(wide[:20], Y[:20], slice(0, 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * model.estimator_.coef_.nbytes
