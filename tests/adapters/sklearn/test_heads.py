"""The head that is found is the one the estimator predicts with; what has none is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

import scipy.sparse as sp
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris, make_multilabel_classification
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, RandomizedSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from gwa_sklearn import latents_and_head

X, Y = load_iris(return_X_y=True)
NAMES = np.asarray(["setosa", "versicolor", "virginica"])[Y]


def linear():
    return LogisticRegression(max_iter=1000)


def network(hidden=(8, 5), **options):
    return MLPClassifier(
        hidden, solver="lbfgs", alpha=1.0, max_iter=2000, random_state=0, **options
    )


@pytest.mark.parametrize(
    ("model", "loss", "outputs"),
    [
        (linear(), "cross_entropy", 3),
        (OneVsRestClassifier(LogisticRegression(solver="liblinear")), "binary_cross_entropy", 3),
        (SGDClassifier(loss="log_loss", random_state=0), "binary_cross_entropy", 3),
        (network(), "cross_entropy", 3),
    ],
    ids=["multinomial", "one-vs-rest", "sgd", "network"],
)
def test_the_loss_is_the_one_it_was_trained_with(model, loss, outputs):
    head = latents_and_head(clone(model).fit(X, NAMES), X)
    assert head.loss == loss
    assert head.weight.shape == (outputs, head.latents.shape[1])
    assert head.bias.shape == (outputs,)
    assert list(head.classes) == ["setosa", "versicolor", "virginica"]
    assert not head.multilabel
    binary = latents_and_head(clone(model).fit(X, Y == 1), X)
    assert (binary.loss, binary.weight.shape[0]) == ("binary_cross_entropy", 1)
    assert list(binary.classes) == [False, True]


@pytest.mark.parametrize("options", [{"multi_class": "ovr"}, {"solver": "liblinear"}], ids=str)
def test_one_vs_rest_of_older_versions(options):
    if "multi_class" not in LogisticRegression().get_params():
        pytest.skip("since 1.8 this LogisticRegression is multinomial or binary")
    model = LogisticRegression(max_iter=1000, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.fit(X, Y)
    assert latents_and_head(model, X).loss == "binary_cross_entropy"


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("hidden", [(8, 5), (7,), ()], ids=str)
def test_a_network_predicts_from_its_latents_and_head(activation, hidden):
    model = network(hidden, activation=activation).fit(X, Y)
    head = latents_and_head(model, X)
    logits = head.latents @ head.weight.T + head.bias
    np.testing.assert_allclose(softmax(logits, axis=1), model.predict_proba(X), atol=1e-12)
    sparse = latents_and_head(model, sp.csr_array(X)).latents
    sparse = sparse.toarray() if sp.issparse(sparse) else sparse
    np.testing.assert_allclose(sparse, head.latents, atol=1e-12)


def test_a_network_of_several_labels():
    inputs, labels = make_multilabel_classification(60, 6, n_classes=4, random_state=0)
    # With more of a penalty it depends on the processor whether the fit converges.
    model = network().set_params(alpha=0.1).fit(inputs, labels)
    head = latents_and_head(model, inputs)
    assert (head.loss, head.multilabel, head.weight.shape[0]) == ("binary_cross_entropy", True, 4)
    logits = head.latents @ head.weight.T + head.bias
    np.testing.assert_allclose(expit(logits), model.predict_proba(inputs), atol=1e-12)


def test_the_input_keeps_its_dtype():
    model = MLPClassifier((5,), max_iter=5, tol=1.0, n_iter_no_change=1)
    single = latents_and_head(model.fit(X.astype(np.float32), Y), X.astype(np.float32))
    assert single.latents.dtype == single.weight.dtype == np.float32
    assert latents_and_head(linear().fit(X, Y), X.astype(int)).latents.dtype == np.float64


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: Pipeline([("only", model)]),
        FrozenEstimator,
        lambda model: GridSearchCV(model, {"fit_intercept": [True]}, cv=2),
        lambda model: RandomizedSearchCV(model, {"fit_intercept": [True]}, n_iter=1, cv=2),
        lambda model: HalvingGridSearchCV(model, {"fit_intercept": [True]}, cv=2),
        lambda model: CalibratedClassifierCV(model, ensemble=False, cv=2),
        lambda model: CalibratedClassifierCV(FrozenEstimator(model)),
        lambda model: GridSearchCV(make_pipeline("passthrough", model), {}, cv=2),
    ],
    ids=["pipeline", "frozen", "grid", "random", "halving", "calibrated", "prefit", "nested"],
)
def test_the_classifier_is_found_inside(wrap):
    inner = linear().fit(X, NAMES)
    head = latents_and_head(wrap(linear().fit(X, NAMES)).fit(X, NAMES), X)
    np.testing.assert_allclose(head.weight, inner.coef_, rtol=1e-10)
    np.testing.assert_allclose(head.bias, inner.intercept_, rtol=1e-10)
    np.testing.assert_array_equal(head.latents, X)
    assert list(head.classes) == list(inner.classes_)


def test_a_pipeline_gives_what_its_last_step_sees():
    model = make_pipeline(StandardScaler(), Normalizer(), linear()).fit(X, Y)
    head = latents_and_head(model, X)
    np.testing.assert_allclose(np.linalg.norm(head.latents, axis=1), 1.0)
    expected = model.decision_function(X)
    np.testing.assert_allclose(head.latents @ head.weight.T + head.bias, expected, atol=1e-12)


def test_one_vs_rest_stacks_its_classifiers():
    search = GridSearchCV(LogisticRegression(solver="liblinear"), {"C": [0.1, 1.0]}, cv=2)
    for inner in (LogisticRegression(solver="liblinear"), search):
        model = OneVsRestClassifier(inner).fit(X, NAMES)
        head = latents_and_head(model, X)
        expected = model.decision_function(X)
        np.testing.assert_allclose(head.latents @ head.weight.T + head.bias, expected, atol=1e-12)
    several = np.eye(3, dtype=int)[Y] | np.eye(3, dtype=int)[0]
    several[0, 0] = 0
    assert latents_and_head(OneVsRestClassifier(linear()).fit(X, several), X).multilabel


@pytest.mark.parametrize("kind", [sp.csr_array, sp.csc_matrix, sp.coo_array])
def test_sparse_input_stays_sparse(kind):
    model = make_pipeline(MaxAbsScaler(), linear()).fit(kind(X), Y)
    model[-1].sparsify()
    head = latents_and_head(model, kind(X))
    assert sp.issparse(head.latents)
    assert head.latents.format == "csr"
    assert isinstance(head.weight, np.ndarray)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (SGDClassifier(loss="hinge"), ValueError, "SGDClassifier.loss='hinge'"),
        (SGDClassifier(loss="modified_huber"), ValueError, "train with loss='log_loss'"),
        (LinearSVC(), TypeError, "LinearSVC, which is trained with the hinge loss"),
        (SVC(kernel="linear"), TypeError, "SVC, which is trained with the hinge loss"),
        (Perceptron(), TypeError, "is trained with the perceptron's loss"),
        (RidgeClassifier(), TypeError, "is trained with the squared error"),
        (DecisionTreeClassifier(), TypeError, "has no linear head"),
        (RandomForestClassifier(2), TypeError, "has no linear head"),
        (LinearDiscriminantAnalysis(), TypeError, "has no linear head that is trained"),
        (LinearRegression(), TypeError, "LinearRegression, which is a regressor"),
        (
            MLPRegressor(hidden_layer_sizes=(2,), tol=9.0, n_iter_no_change=1),
            TypeError,
            "MLPRegressor, which is a regressor",
        ),
        (make_pipeline(StandardScaler(), RidgeClassifier()), TypeError, "RidgeClassifier, which"),
        (OneVsRestClassifier(LinearSVC()), TypeError, "LinearSVC, which"),
        (
            OneVsRestClassifier(make_pipeline(StandardScaler(), linear())),
            ValueError,
            "around the One",
        ),
        (OneVsRestClassifier(network((2,))), ValueError, "latents of its own"),
        (GridSearchCV(linear(), {}, cv=2, refit=False), ValueError, "refit=False"),
        (CalibratedClassifierCV(linear(), cv=2), ValueError, "ensemble=False keeps one"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
def test_what_has_no_such_head_is_refused_with_the_reason(model, error, words):
    model.fit(X, Y)
    with pytest.raises(error, match=words):
        latents_and_head(model, X)


def test_a_label_that_was_in_all_rows_has_no_weights():
    with pytest.warns(UserWarning, match="present in all"):
        model = OneVsRestClassifier(linear()).fit(X, np.c_[Y == 0, Y >= 0].astype(int))
    with pytest.raises(ValueError, match="constant output"):
        latents_and_head(model, X)


def test_what_is_no_estimator_is_refused():
    with pytest.raises(TypeError, match="got str, which has no linear head"):
        latents_and_head("model", X)


@pytest.mark.parametrize(
    "model",
    [
        linear(),
        LogisticRegressionCV(),
        SGDClassifier(loss="log_loss"),
        MLPClassifier(),
        OneVsRestClassifier(linear()),
        CalibratedClassifierCV(linear()),
        make_pipeline(StandardScaler(), linear()),
        FrozenEstimator(linear()),
        GridSearchCV(linear(), {}),
        HalvingGridSearchCV(linear(), {}),
    ],
    ids=lambda model: type(model).__name__,
)
def test_an_estimator_must_be_fitted(model):
    with pytest.raises(NotFittedError):
        latents_and_head(clone(model), X)


def test_input_of_another_width_is_refused():
    with pytest.raises(ValueError, match="X has 3 features"):
        latents_and_head(linear().fit(X, Y), X[:, :3])
