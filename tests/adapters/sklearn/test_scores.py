"""Scores are the cosine of the estimator's own gradient; a search can use GWA as its score."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

import scipy.sparse as sp
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, make_classification, make_multilabel_classification
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, SGDClassifier
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    cross_val_score,
    cross_validate,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler
from sklearn.utils import get_tags

import gwa_core
from gwa_sklearn import alignment_scores, gwa_score, gwa_scorer, latents_and_head

X, Y = make_classification(
    90, 6, n_informative=5, n_redundant=0, n_classes=4, flip_y=0.2, random_state=0
)
NAMES = np.asarray(["fig", "apple", "plum", "pear"])[Y]


def logistic(**options):
    return LogisticRegression(C=0.5, max_iter=2000, tol=1e-10, **options)


def sgd(**options):
    return SGDClassifier(loss="log_loss", alpha=0.1, random_state=0, **options)


def network(hidden=(7, 5), **options):
    return MLPClassifier(
        hidden, solver="lbfgs", alpha=5.0, max_iter=9999, random_state=0, **options
    )


def liblinear():
    return LogisticRegression(solver="liblinear", C=0.5, tol=1e-8)


def searched(model):
    return GridSearchCV(model, {"fit_intercept": [True, False]}, cv=2)


def weights(model):
    """The weight arrays of the last layer, as the estimator itself keeps and uses them."""
    if hasattr(model, "best_estimator_"):
        return weights(model.best_estimator_)
    if hasattr(model, "steps"):
        return weights(model[-1])
    if hasattr(model, "calibrated_classifiers_"):
        return weights(model.calibrated_classifiers_[0].estimator)
    if hasattr(model, "estimators_"):
        return [array for inner in model.estimators_ for array in weights(inner)]
    return [model.coefs_[-1] if hasattr(model, "coefs_") else model.coef_]


def losses(model, inputs, labels, kind):
    """The loss of each sample from what the estimator answers, without its regulariser."""
    if hasattr(model, "calibrated_classifiers_"):
        model = model.calibrated_classifiers_[0].estimator
    if kind == "probabilities":
        p = model.predict_proba(inputs)
        if labels.ndim == 2:
            return -(labels * np.log(p) + (1 - labels) * np.log1p(-p)).sum(axis=1)
        return -np.log(p[np.arange(len(p)), np.searchsorted(model.classes_, labels)])
    logits = model.decision_function(inputs)
    if kind == "softmax":
        own = logits[np.arange(len(logits)), np.searchsorted(model.classes_, labels)]
        return logsumexp(logits, axis=1) - own
    if logits.ndim == 1:
        logits, positive = logits[:, None], (labels == model.classes_[1])[:, None]
    else:
        positive = labels == 1 if labels.ndim == 2 else labels[:, None] == model.classes_
    return np.logaddexp(0.0, np.where(positive, -logits, logits)).sum(axis=1)


def cosines(model, inputs, labels, kind, step=1e-5):
    """Definition 1 by central differences at every single weight."""
    gradients, values = [], []
    for array in weights(model):
        for index in np.ndindex(array.shape):
            value = array[index]
            sides = []
            for change in (step, -step):
                array[index] = value + change
                sides.append(losses(model, inputs, labels, kind))
            array[index] = value
            gradients.append((sides[0] - sides[1]) / (2 * step))
            values.append(value)
    pull, values = -np.asarray(gradients).T, np.asarray(values)
    return pull @ values / (np.linalg.norm(pull, axis=1) * np.linalg.norm(values))


SEVERAL = make_multilabel_classification(60, 6, n_classes=3, random_state=0)
CASES = {
    "multinomial": (logistic(), NAMES, "softmax"),
    "no intercept": (logistic(fit_intercept=False), Y, "softmax"),
    "class weights": (logistic(class_weight="balanced"), NAMES, "softmax"),
    "binary": (logistic(), NAMES == "fig", "sigmoid"),
    "liblinear": (liblinear(), np.where(Y < 2, "no", "yes"), "sigmoid"),
    "cross-validated": (LogisticRegressionCV(Cs=2, cv=2), NAMES, "softmax"),
    "sgd": (sgd(), NAMES, "sigmoid"),
    "sgd averaged": (sgd(average=True), NAMES, "sigmoid"),
    "sgd binary": (sgd(), Y > 1, "sigmoid"),
    "one-vs-rest": (OneVsRestClassifier(liblinear()), NAMES, "sigmoid"),
    "one-vs-rest of sgd": (OneVsRestClassifier(sgd()), NAMES, "sigmoid"),
    "one-vs-rest binary": (OneVsRestClassifier(logistic()), NAMES == "fig", "sigmoid"),
    "pipeline": (make_pipeline(MaxAbsScaler(), logistic()), NAMES, "softmax"),
    "search": (searched(make_pipeline(MaxAbsScaler(), logistic())[-1]), NAMES, "softmax"),
    "calibrated": (CalibratedClassifierCV(logistic(), ensemble=False, cv=2), NAMES, "softmax"),
    "network": (network(), NAMES, "probabilities"),
    "network without a hidden layer": (network(()), NAMES, "probabilities"),
    "network binary": (network(activation="tanh"), NAMES == "fig", "probabilities"),
    "pipeline of a network": (make_pipeline(MaxAbsScaler(), network()), Y, "probabilities"),
}


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array, sp.csc_matrix])
@pytest.mark.parametrize("name", CASES)
def test_scores_are_the_gradient_of_the_estimators_own_loss(name, kind):
    model, labels, form = CASES[name]
    model = clone(model)
    if name == "cross-validated" and "use_legacy_attributes" in model.get_params():
        model.set_params(use_legacy_attributes=False, l1_ratios=(0,), scoring="accuracy")
    model.fit(kind(X), labels)
    expected = cosines(model, kind(X), labels, form)
    scores = alignment_scores(model, kind(X), labels)
    assert scores.shape == (len(X),)
    assert np.abs(scores - expected).max() < 1e-6
    assert scores.std() > 0.01


@pytest.mark.parametrize("model", [OneVsRestClassifier(logistic()), network()], ids=["ovr", "mlp"])
@pytest.mark.parametrize("sparse", [False, True])
def test_several_labels(model, sparse):
    inputs, labels = SEVERAL
    model = clone(model).fit(inputs, sp.csr_array(labels) if sparse else labels)
    form = "probabilities" if hasattr(model, "coefs_") else "sigmoid"
    expected = cosines(model, inputs, labels, form)
    scores = alignment_scores(model, inputs, sp.csr_array(labels) if sparse else labels)
    assert np.abs(scores - expected).max() < 1e-6
    with pytest.raises(ValueError, match=r"indicator matrix \(N, 3\), got shape \(60,\)"):
        alignment_scores(model, inputs, labels[:, 0])


@pytest.mark.parametrize("labels", [NAMES, NAMES == "fig"], ids=["multinomial", "binary"])
def test_the_loss_is_what_the_estimator_minimised(labels):
    # At the optimum of C sum(loss) + |W|^2 / 2 the sum of the gradients is -W / C.
    model = logistic().fit(X, labels)
    head = latents_and_head(model, X)
    residual = gwa_core.residual(
        logits=head.latents @ head.weight.T + head.bias,
        targets=np.searchsorted(model.classes_, labels),
        loss=head.loss,
    )
    np.testing.assert_allclose(0.5 * residual.T @ head.latents, head.weight, atol=1e-5)


def test_names_of_labels_and_order_of_rows_change_nothing():
    base = alignment_scores(logistic().fit(X, Y), X, Y)
    # In this order the classes have other numbers.
    for labels in (NAMES, -Y, NAMES.astype(object), Y.astype(float), list(NAMES), Y[:, None]):
        model = logistic().fit(X, np.ravel(labels))
        np.testing.assert_allclose(alignment_scores(model, X, labels), base, atol=1e-6)
    model = logistic().fit(X, Y)
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(alignment_scores(model, X[order], Y[order]), base[order], atol=1e-12)
    # A label is known by its value: what was fitted with integers knows floats and booleans.
    binary = logistic().fit(X, (Y > 1).astype(int))
    np.testing.assert_array_equal(
        alignment_scores(binary, X, Y > 1), alignment_scores(binary, X, (Y > 1).astype(float))
    )


def test_a_weight_changes_no_cosine_and_zero_takes_a_sample_out():
    model = logistic().fit(X, NAMES)
    base = alignment_scores(model, X, NAMES)
    weight = np.random.default_rng(0).uniform(0.1, 9.0, len(X))
    np.testing.assert_array_equal(alignment_scores(model, X, NAMES, sample_weight=weight), base)
    weight[:9] = 0.0
    scores = alignment_scores(model, X, NAMES, sample_weight=weight)
    np.testing.assert_array_equal(scores, np.r_[np.full(9, np.nan), base[9:]])
    assert gwa_score(model, X, NAMES, sample_weight=weight) == gwa_score(model, X[9:], NAMES[9:])
    for bad in (-weight, weight[1:], np.full(len(X), np.nan), NAMES):
        with pytest.raises(ValueError, match="`sample_weight` must be"):
            alignment_scores(model, X, NAMES, sample_weight=bad)


def test_labels_that_the_estimator_never_saw():
    known = NAMES != "plum"
    model = logistic().fit(X[known], NAMES[known])
    with pytest.warns(UndefinedMetricWarning, match=r"samples of labels .* \('plum'\)"):
        scores = alignment_scores(model, X, NAMES)
    np.testing.assert_array_equal(np.isnan(scores), ~known)
    np.testing.assert_array_equal(scores[known], alignment_scores(model, X[known], NAMES[known]))
    with pytest.raises(ValueError, match=r"fitted with \('apple', .*got only others \(0, 3, 2, 1"):
        alignment_scores(model, X, np.asarray([0, 3, 2, 1] + [0] * 86))


def test_labels_that_do_not_fit_the_rows():
    model = logistic().fit(X, Y)
    with pytest.raises(ValueError, match="`y` must have one label for each of the 90 rows"):
        alignment_scores(model, X, Y[:-1])
    with pytest.raises(ValueError, match=r"`y` must be labels \(N,\), got shape \(90, 4\)"):
        alignment_scores(model, X, np.eye(4)[Y])
    with pytest.raises(ValueError, match="not empty"):
        alignment_scores(model, X, [])


def test_several_calibrated_estimators_give_their_mean():
    model = CalibratedClassifierCV(logistic(), cv=3).fit(X, NAMES)
    inner = [part.estimator for part in model.calibrated_classifiers_]
    expected = np.mean([alignment_scores(one, X, NAMES) for one in inner], axis=0)
    np.testing.assert_allclose(alignment_scores(model, X, NAMES), expected, atol=1e-12)
    # The last fold holds all of the last class: the other estimators speak for its samples.
    labels = np.sort(Y % 3)
    model = CalibratedClassifierCV(logistic(), cv=KFold(3)).fit(X, labels)
    inner = [part.estimator for part in model.calibrated_classifiers_]
    assert [len(one.classes_) for one in inner] == [3, 3, 2]
    scores = alignment_scores(model, X, labels)
    expected = [alignment_scores(one, X[-9:], labels[-9:]) for one in inner[:2]]
    np.testing.assert_allclose(scores[-9:], np.mean(expected, axis=0), atol=1e-12)


def test_blocks_give_what_one_pass_gives():
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(1200, 3)), rng.integers(0, 3, 1200)
    model = MLPClassifier((2048,), random_state=0).partial_fit(inputs, labels, classes=[0, 1, 2])
    head = latents_and_head(model, inputs)
    whole = gwa_core.alignment_scores(
        latents=head.latents, weight=head.weight, bias=head.bias, targets=labels
    )
    np.testing.assert_allclose(alignment_scores(model, inputs, labels), whole, atol=1e-12)


@pytest.mark.parametrize("kind", [sp.csr_array, sp.csr_matrix])
def test_sparse_rows_are_never_made_dense(kind):
    rng = np.random.default_rng(0)
    inputs = kind(sp.random_array((400, 200_000), density=1e-4, format="csr", rng=rng))
    labels = rng.integers(0, 3, 400)
    model = sgd().fit(inputs, labels)
    tracemalloc.start()
    scores = alignment_scores(model, inputs, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.isfinite(scores).all()
    # Dense rows would take 640 MB; the weights of the model are 5.
    assert peak < 20e6


def test_a_row_of_zeros_scores_zero():
    model = logistic().fit(X, Y)
    for kind in (np.asarray, sp.csr_array):
        assert alignment_scores(model, kind(np.zeros((1, 6))), Y[:1]) == 0.0


def test_gwa_is_that_of_the_core():
    model = logistic().fit(X, NAMES)
    scores = alignment_scores(model, X, NAMES)
    assert (
        gwa_score(model, X, NAMES)
        == float(gwa_core.gwa_score(scores))
        == gwa_scorer(model, X, NAMES)
    )
    assert gwa_score(model, X, NAMES, beta=2.0) == float(gwa_core.gwa_score(scores, beta=2.0))
    assert isinstance(gwa_score(model, X, NAMES), float)


ROWS = np.arange(len(X))
SPLIT = [(ROWS, ROWS)]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (GridSearchCV, {}),
        (RandomizedSearchCV, {"n_iter": 2, "random_state": 0}),
        (HalvingGridSearchCV, {"min_resources": 180, "random_state": 0}),
    ],
    ids=["grid", "random", "halving"],
)
@pytest.mark.parametrize("cv", [3, None], ids=["folds", "all rows"])
def test_a_search_maximises_it(kind, options, cv):
    inputs, names = np.tile(X, (4, 1)), np.tile(NAMES, 4)
    inputs += np.random.default_rng(0).normal(size=inputs.shape)
    cv = [(np.arange(len(names)),) * 2] if cv is None else cv
    grid = {"C": [0.01, 1.0]}
    search = kind(logistic(), grid, scoring=gwa_scorer, cv=cv, **options).fit(inputs, names)
    means = search.cv_results_["mean_test_score"]
    assert search.best_params_["C"] == search.cv_results_["param_C"][search.best_index_]
    if kind is not HalvingGridSearchCV:
        assert search.best_index_ == np.argmax(means)
    if kind is GridSearchCV and cv != 3:
        models = [logistic().set_params(C=value).fit(inputs, names) for value in grid["C"]]
        expected = [gwa_score(model, inputs, names) for model in models]
        np.testing.assert_allclose(means, expected, rtol=1e-9)


def test_it_goes_with_other_scores_and_into_other_processes():
    scoring = {"gwa": gwa_scorer, "accuracy": "accuracy"}
    result = cross_validate(logistic(), X, NAMES, scoring=scoring, cv=3, return_train_score=True)
    assert np.isfinite(result["train_gwa"]).all()
    assert np.isfinite(result["test_gwa"]).all()
    there = cross_val_score(logistic(), X, NAMES, scoring=gwa_scorer, cv=3, n_jobs=2)
    np.testing.assert_allclose(there, result["test_gwa"], rtol=1e-10)
    assert repr(gwa_scorer) == "gwa_scorer"


def test_beyond_the_pole_the_scorer_answers_nan_and_a_search_takes_another():
    # By the first feature alone half of the scores are near 1 and half near -1.
    inputs = np.c_[np.linspace(1, 2, len(X)), X]
    labels = np.arange(len(X)) % 2
    labels[:9] = 1
    inputs[:, 1] += 2 * labels
    model = make_pipeline(FunctionTransformer(first), logistic(fit_intercept=False))
    model.fit(inputs, labels)
    assert np.isfinite(gwa_score(model, inputs, labels))
    assert not gwa_core.summarize(alignment_scores(model, inputs, labels)).healthy
    assert np.isnan(gwa_scorer(model, inputs, labels))
    grid = {"functiontransformer__kw_args": [{"columns": 1}, {"columns": 7}]}
    search = GridSearchCV(model, grid, scoring=gwa_scorer, cv=SPLIT)
    with pytest.warns(UserWarning, match="non-finite"):
        search.fit(inputs, labels)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [True, False]
    assert search.best_index_ == 1


def first(inputs, columns=1):
    return inputs[:, :columns]


def test_a_fold_without_a_class_keeps_its_score():
    labels = np.where(ROWS < 4, "rare", NAMES)
    with pytest.warns(UndefinedMetricWarning, match="missing from the training fold"):
        scores = cross_val_score(logistic(), X, labels, scoring=gwa_scorer, cv=KFold(3))
    assert np.isfinite(scores).all()


def test_a_weight_is_routed():
    weight = np.r_[np.zeros(30), np.ones(60)]
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = copy.deepcopy(gwa_scorer).set_score_request(sample_weight=True)
        model = logistic().set_fit_request(sample_weight=True)
        result = cross_validate(
            model, X, NAMES, scoring=scorer, cv=SPLIT, params={"sample_weight": weight}
        )
    expected = gwa_score(model.fit(X, NAMES, sample_weight=weight), X[30:], NAMES[30:])
    assert result["test_score"] == pytest.approx([expected], rel=1e-9)


def test_the_monitor_of_scikit_learn_follows_it():
    callback = pytest.importorskip("sklearn.callback")
    monitor = callback.ScoringMonitor(scoring=gwa_scorer)
    weight = np.r_[np.zeros(30), np.ones(60)]
    model = logistic().set_callbacks(monitor).fit(X, NAMES, sample_weight=weight)
    data = monitor.get_logs().data
    values = [row["score"] for row in data if row["task_name"] == "lbfgs-iter"]
    assert len(values) == model.n_iter_[0]
    assert values[-1] == pytest.approx(gwa_score(model, X[30:], NAMES[30:]), rel=1e-9)


def test_tensors_where_scikit_learn_dispatches():
    pytest.importorskip("torch")
    if not get_tags(LogisticRegression()).array_api_support:
        pytest.skip("this scikit-learn dispatches no LogisticRegression")
    # SciPy reads this when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", DISPATCHED],
        env={**os.environ, "SCIPY_ARRAY_API": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


DISPATCHED = """
import numpy as np, sklearn, torch
from gwa_sklearn import alignment_scores, gwa_score, latents_and_head, sample_signals
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

X, y = load_iris(return_X_y=True)
names = np.asarray(["fig", "apple", "plum"])[y]
inputs, labels = torch.asarray(X), torch.asarray(y)
model = make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=999, tol=1e-10))
base = alignment_scores(model.fit(X, y), X, y)
with sklearn.config_context(array_api_dispatch=True):
    model.fit(inputs, labels)
    assert isinstance(latents_and_head(model, inputs).latents, torch.Tensor)
    scores = alignment_scores(model, inputs, labels, sample_weight=labels)
    number = gwa_score(model, inputs, labels)
    named = alignment_scores(model.fit(inputs, names), inputs, names)
    signals = sample_signals(model, inputs, names)
    two = sample_signals(model.fit(inputs[:100], labels[:100]), inputs[:100], labels[:100])
assert isinstance(scores, torch.Tensor) and isinstance(named, torch.Tensor)
assert abs(number - gwa_score(model.fit(X, y), X, y)) < 1e-6
np.testing.assert_allclose(named.numpy(), base, atol=1e-6)
np.testing.assert_allclose(scores.numpy()[50:], base[50:], atol=1e-6)
assert np.isnan(scores.numpy()[:50]).all()
for found, count in ((signals, 150), (two, 100)):
    for name, values in sample_signals(model.fit(X[:count], y[:count]), X[:count], y[:count]).items():
        assert isinstance(found[name], torch.Tensor)
        np.testing.assert_allclose(found[name].numpy(), values, atol=1e-5)
"""


def test_wrong_digits_score_low():
    inputs, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    wrong = rng.choice(len(labels), 180, replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, 180)) % 10
    model = LogisticRegression(C=0.1, max_iter=1000).fit(inputs / 16.0, labels)
    lowest = np.argsort(alignment_scores(model, inputs / 16.0, labels))[:180]
    assert len(np.intersect1d(lowest, wrong)) > 150
