"""Signals of fitted classifiers are those of the estimator's own probabilities and weights."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

import scipy.sparse as sp
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification, make_multilabel_classification
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.tree import DecisionTreeClassifier

from gwa_core import BestMetric
from gwa_core.signals import SIGNALS
from gwa_sklearn import GWAEarlyStoppingClassifier, heads, sample_signals

X, Y = make_classification(
    90, 6, n_informative=5, n_redundant=0, n_classes=4, flip_y=0.2, random_state=0
)
NAMES = np.asarray(["fig", "apple", "plum", "pear"])[Y]
TWO = np.where(Y < 2, "no", "yes")
ALL = [*(name for name, signal in SIGNALS.items() if "ids" not in signal.needs), "correct"]
SEVERAL = make_multilabel_classification(40, 6, n_classes=3, random_state=0)


def logistic(**options):
    return LogisticRegression(C=0.5, max_iter=2000, **options)


def sgd():
    return SGDClassifier(loss="log_loss", alpha=0.1, random_state=0)


def network(hidden=(5,), **options):
    return MLPClassifier(hidden, batch_size=30, learning_rate_init=0.01, random_state=0, **options)


def head(model):
    """The array of head weights that the estimator itself predicts from."""
    if hasattr(model, "steps"):
        return head(model[-1])
    if hasattr(model, "best_estimator_"):
        return head(model.best_estimator_)
    return model.coefs_[-1] if hasattr(model, "coefs_") else model.coef_


def by_hand(model, x, y, step=1e-4):
    """Signals from the estimator's probabilities, and from small changes of each weight."""
    number = np.searchsorted(model.classes_, y)

    def chance():
        return model.predict_proba(x)

    def losses():
        return -np.log(chance()[np.arange(len(y)), number])

    p, rows, weight = chance(), np.arange(len(y)), head(model)
    others = p.copy()
    others[rows, number] = 0
    slopes, curves, middle = [], [], losses()
    for index in np.ndindex(weight.shape):
        value = weight[index]
        weight[index] = value + step
        above = losses()
        weight[index] = value - step
        below = losses()
        weight[index] = value
        slopes.append((above - below) / (2 * step))
        curves.append((above + below - 2 * middle) / step**2)
    squares = np.square(slopes).sum(axis=0)
    return {
        "margin": np.log(p[rows, number] / others.max(axis=1)),
        "sample_loss": middle,
        "label_probability": p[rows, number],
        "el2n": np.linalg.norm(p - np.eye(p.shape[1])[number], axis=1),
        "gradient_norm": np.sqrt(squares),
        "self_influence": squares,
        "head_hessian_trace": np.sum(curves, axis=0),
        "correct": model.predict(x) == y,
    }


@pytest.mark.parametrize(
    ("model", "labels"),
    [
        (logistic(), NAMES),
        (logistic(), TWO),
        (sgd(), TWO),
        (network(max_iter=50), NAMES),
        (network(max_iter=50), TWO),
        (network((), max_iter=50), Y),
        (make_pipeline(MaxAbsScaler(), logistic()), NAMES),
        (GridSearchCV(logistic(), {"fit_intercept": [True, False]}, cv=2), NAMES),
    ],
    ids=[
        "softmax",
        "two",
        "sgd",
        "network",
        "network two",
        "no hidden layer",
        "pipeline",
        "search",
    ],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("layout", [np.asarray, sp.csr_array], ids=["dense", "sparse"])
def test_signals_are_those_of_the_estimators_loss(model, labels, layout, monkeypatch):
    monkeypatch.setattr(heads, "BLOCK_BYTES", 1)  # blocks of 256 rows, of which there is one here
    x, labels = np.tile(X, (3, 1)), np.tile(labels, 3)  # two blocks
    model = clone(model).fit(layout(x), labels)
    found, wanted = sample_signals(model, layout(x), labels, names=ALL), by_hand(model, x, labels)
    assert list(found) == ALL
    for name in ALL:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=2e-6, err_msg=name)
    assert (found["correct"] == 0).any(), "the margin would have one sign"
    assert list(sample_signals(model, layout(x), labels)) == ALL[:-1]
    alone = sample_signals(model, layout(x), labels, names="margin")
    np.testing.assert_array_equal(alone["margin"], found["margin"])


def test_rows_without_a_part_in_the_loss_have_none():
    model = logistic().fit(X[Y != 3], NAMES[Y != 3])
    weight = np.ones(len(X))
    weight[4] = 0
    with pytest.warns(UndefinedMetricWarning, match="'pear'"):
        found = sample_signals(model, X, NAMES, sample_weight=weight)
    missing = (Y == 3) | (weight == 0)
    for name, values in found.items():
        np.testing.assert_array_equal(np.isnan(values), missing, err_msg=name)
    whole = sample_signals(model, X[~missing], NAMES[~missing])
    np.testing.assert_array_equal(found["el2n"][~missing], whole["el2n"])


@pytest.mark.parametrize(
    ("model", "y", "error", "words"),
    [
        (sgd(), NAMES, ValueError, "SGDClassifier with a sigmoid for each of 4 classes"),
        (OneVsRestClassifier(logistic()), Y, ValueError, "sigmoid for each of 4 classes"),
        (network(max_iter=2), SEVERAL[1], ValueError, "3 labels that a sample may have together"),
        (DecisionTreeClassifier(), Y, TypeError, "no linear head"),
        (CalibratedClassifierCV(logistic(), cv=2), Y, ValueError, "must have one head"),
    ],
    ids=["sgd", "one-vs-rest", "several labels", "tree", "calibrated"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_has_no_signals_is_refused(model, y, error, words):
    x = SEVERAL[0] if len(y) == 40 else X
    model.fit(x, y)
    with pytest.raises(error, match=words):
        sample_signals(model, x, y)


def test_what_does_not_fit_is_refused():
    model = logistic().fit(X, NAMES)
    with pytest.raises(ValueError, match="near: 'margin'"):
        sample_signals(model, X, NAMES, names=["margins"])
    with pytest.raises(ValueError, match="one label for each of the 90 rows"):
        sample_signals(model, X, NAMES[1:])
    with pytest.raises(ValueError, match="labels that the estimator was fitted with"):
        sample_signals(model, X, Y)


# Through a training


FOLLOWED = ["margin", "gradient_norm", "head_hessian_trace", "forgetting_events"]


def early(model, **options):
    options = {"max_epochs": 4, "batch_size": 30, "random_state": 0, **options}
    return GWAEarlyStoppingClassifier(model, signals=FOLLOWED, **options)


@pytest.mark.parametrize("layout", [np.asarray, sp.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("model", "labels"),
    [(network(), NAMES), (network(()), NAMES), (sgd(), TWO)],
    ids=["network", "no hidden layer", "sigmoid"],
)
def test_a_batch_has_the_signals_of_the_weights_before_its_step(model, labels, layout):
    weight = (np.arange(len(X)) >= 30) * 1.0  # two batches of 30 rows
    options = {"shuffle": False, "rule": BestMetric(metric="epoch")}
    fitted = early(model, **options).fit(layout(X), labels, sample_weight=weight)
    plain = clone(fitted).set_params(signals=()).fit(layout(X), labels, sample_weight=weight)
    assert plain.signals_ is None
    np.testing.assert_array_equal(plain.alignment_, fitted.alignment_)

    x, again, epochs = layout(X), clone(model), []
    for epoch in range(4):
        values = {name: np.full(len(X), np.nan) for name in [*FOLLOWED[:3], "correct"]}
        for rows in (slice(30, 60), slice(60, 90)):
            first = (epoch, rows.start) == (0, 30)
            if first:  # the step that makes the weights
                again.partial_fit(x[rows], labels[rows], classes=np.unique(labels))
            found = sample_signals(again, x[rows], labels[rows], names=values)
            if not first:
                again.partial_fit(x[rows], labels[rows])
            for name in values:
                values[name][rows] = found[name]
        epochs.append(values)
    for name in FOLLOWED[:3]:
        np.testing.assert_allclose(fitted.signals_.values[name], epochs[-1][name], rtol=1e-9)
        means = [np.nanmean(values[name]) for values in epochs]
        kept = [entry[name] for entry in fitted.signals_.history]
        np.testing.assert_allclose(kept, means, rtol=1e-9)
    correct = np.asarray([values["correct"] for values in epochs])
    falls = (np.diff(correct, axis=0) < 0).sum(axis=0)
    events = np.where(correct.any(axis=0), falls, 4)
    np.testing.assert_array_equal(
        fitted.signals_.over_epochs["forgetting_events"], np.where(weight > 0, events, np.nan)
    )


def test_signals_are_of_the_last_fit_and_go_with_the_estimator():
    fitted = early(network(), warm_start=True, rule=BestMetric(metric="epoch")).fit(X, NAMES)
    fitted.fit(X, NAMES)
    assert len(fitted.history_) == 8
    assert len(fitted.signals_.history) == 4
    found = fitted.signals_.over_epochs
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    np.testing.assert_array_equal(again.signals_.over_epochs["margin"], found["margin"])
    assert clone(fitted).get_params()["signals"] == FOLLOWED
    one = clone(fitted).set_params(signals="margin").fit(X, NAMES)
    assert one.signals_.names == ("margin",)


def test_signals_that_cannot_be_followed_are_refused():
    with pytest.raises(ValueError, match="SGDClassifier with a sigmoid for each of 4 classes"):
        early(sgd()).fit(X, NAMES)
    with pytest.raises(ValueError, match="near: 'margin'"):
        early(network()).set_params(signals=["margins"]).fit(X, NAMES)
    with pytest.raises(ValueError, match="'signals' parameter"):
        early(network()).set_params(signals=3).fit(X, NAMES)
