"""The average of the weights over the epochs, in place of the best epoch."""

import copy
import pickle

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gwa_core import average_shares
from gwa_offline.store import RunFolder
from gwa_sklearn import BestMetric, GWAEarlyStoppingClassifier, MaxBimodality, MaxGWA, select_epoch

X, Y = make_classification(
    240, 8, n_informative=6, n_redundant=0, n_classes=3, flip_y=0.2, random_state=0
)
EPOCHS = 6

pytestmark = pytest.mark.filterwarnings("ignore:`label_quality_` is unsteady")


def weights(model):
    """All that a model predicts from."""
    if hasattr(model, "coefs_"):
        return [*model.coefs_, *model.intercepts_]
    return [model.coef_, model.intercept_]


def same_weights(a, b):
    return all(np.array_equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


class Storing:
    """Keeps a copy of its weights at the end of each epoch."""

    def partial_fit(self, X, y, **options):
        super().partial_fit(X, y, **options)
        self.seen = getattr(self, "seen", 0) + len(X)
        if self.seen % len(Y) == 0:
            self.stored = [*getattr(self, "stored", []), copy.deepcopy(weights(self))]
        return self


class StoringSGD(Storing, SGDClassifier):
    pass


class StoringMLP(Storing, MLPClassifier):
    pass


def shares_of(history):
    return average_shares(history, 5, warmup=1, signal="bimodality")


def sgd(**options):
    return StoringSGD(loss="log_loss", alpha=0.01, random_state=0, **options)


def network(hidden=(7,), **options):
    options = {"batch_size": 32, "learning_rate_init": 0.01, "random_state": 0, **options}
    return StoringMLP(hidden, **options)


def early(estimator=None, **options):
    options = {
        "keep": "average", "max_epochs": EPOCHS, "batch_size": 50, "random_state": 0, **options,
    }  # fmt: skip
    return GWAEarlyStoppingClassifier(sgd() if estimator is None else estimator, **options)


MODELS = {
    "linear": sgd(),
    "constant steps": sgd(learning_rate="constant", eta0=0.01),
    "averaged within epochs": sgd(average=True),
    "averaged later": sgd(average=700),
    "network": network(),
    "network without hidden layers": network(()),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@every_model
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("labels", [Y, Y == 1], ids=["three classes", "two classes"])
def test_the_weights_are_the_mean_of_stored_checkpoints(model, dtype, labels):
    fitted = early(model).fit(X.astype(dtype), labels)
    stored = fitted.estimator_.stored
    assert len(stored) == fitted.n_iter_ == EPOCHS
    np.testing.assert_array_equal(fitted.shares_, shares_of(fitted.history_))
    assert np.count_nonzero(fitted.shares_) > 1, "a mean of one epoch shows nothing"
    for own, *kept in zip(weights(fitted.estimator_), *stored, strict=True):
        assert own.dtype == kept[-1].dtype
        wanted = np.tensordot(fitted.shares_, np.stack(kept).astype(np.float64), 1)
        np.testing.assert_allclose(own, wanted, rtol=1e-6, atol=1e-7)
    assert not same_weights(fitted.estimator_, fitted._best.model)


@every_model
def test_predictions_are_those_of_the_mean(model):
    fitted = early(model).fit(X, Y)
    by_hand = copy.deepcopy(fitted._best.model)
    for own, *kept in zip(weights(by_hand), *by_hand.stored, strict=True):
        own[:] = np.tensordot(fitted.shares_, np.stack(kept), 1)
    np.testing.assert_allclose(fitted.predict_proba(X), by_hand.predict_proba(X), rtol=1e-9)


@every_model
def test_the_training_is_that_of_any_other_fit(model):
    averaged = early(model).fit(X, Y)
    best = early(model, keep="best", rule=MaxBimodality()).fit(X, Y)
    assert averaged.history_ == best.history_
    assert (
        averaged.best_epoch_
        == best.best_epoch_
        == select_epoch(best.history_, MaxBimodality()).step
    )
    np.testing.assert_array_equal(averaged.alignment_, best.alignment_)
    np.testing.assert_array_equal(averaged.label_quality_, best.label_quality_)
    assert best.shares_ is None
    last = early(model, keep="best", rule=BestMetric(metric="epoch")).fit(X, Y)
    assert same_weights(averaged._best.model, last.estimator_)


def test_only_a_rule_that_was_given_stops():
    assert early(max_epochs=25).fit(X, Y).n_iter_ == 25
    assert early(max_epochs=25, keep="best").fit(X, Y).n_iter_ < 25
    fitted = early(rule=MaxGWA(warmup=1, patience=2), max_epochs=25).fit(X, Y)
    assert fitted.n_iter_ == fitted.best_epoch_ + 3 < 25
    assert "no improvement in 2 steps" in fitted.stopping_reason_
    assert len(fitted.shares_) == fitted.n_iter_


# Going on


@pytest.mark.parametrize(
    "wrap", [lambda model: model, lambda m: make_pipeline(StandardScaler(), m)]
)
@every_model
def test_a_run_in_parts_is_a_run_in_one(model, wrap):
    options = {"shuffle": False, "warm_start": True}
    whole = early(wrap(model), **options).fit(X, Y)
    parts = early(wrap(model), **options, max_epochs=2).fit(X, Y)
    for _ in range(2):
        # As another process would, after the first was killed.
        parts = pickle.loads(pickle.dumps(parts)).fit(X, Y)  # noqa: S301
    assert parts.history_ == whole.history_
    np.testing.assert_array_equal(parts.shares_, whole.shares_)
    np.testing.assert_array_equal(parts.predict_proba(X), whole.predict_proba(X))
    np.testing.assert_array_equal(parts.label_quality_, whole.label_quality_)
    assert parts.best_epoch_ == whole.best_epoch_


def test_a_fit_that_fails_and_a_step_outside_leave_the_mean_as_it_is():
    options = {"shuffle": False, "warm_start": True}
    whole = early(**options).fit(X, Y)
    parts = early(**options, max_epochs=3).fit(X, Y)
    before = copy.deepcopy(weights(parts.estimator_))
    with pytest.raises(ValueError, match="`rule` must watch"):
        parts.set_params(rule=BestMetric()).fit(X, Y)
    assert all(map(np.array_equal, before, weights(parts.estimator_)))
    parts.estimator_.partial_fit(X, Y)
    parts.set_params(rule=None).fit(X, Y)
    assert same_weights(parts.estimator_, whole.estimator_)


def test_what_is_kept_stays_the_same_in_a_warm_start():
    for keep, other in (("best", "average"), ("average", "best")):
        fitted = early(keep=keep, warm_start=True, max_epochs=2).fit(X, Y)
        with pytest.raises(ValueError, match=f"`keep` must stay '{keep}' with `warm_start`"):
            fitted.set_params(keep=other).fit(X, Y)
        fitted.set_params(warm_start=False).fit(X, Y)
        assert (fitted.shares_ is None) == (other == "best")


def test_a_run_folder_has_all_epochs_of_both_fits(tmp_path):
    fitted = early(network(), max_epochs=3, warm_start=True, run_folder=tmp_path).fit(X, Y)
    fitted.fit(X, Y)
    stored = [summary for summary, _ in RunFolder.open(tmp_path).epochs()]
    assert stored == fitted.history_
    assert len(stored) == 6
    np.testing.assert_array_equal(shares_of(stored), fitted.shares_)


# Among the tools of scikit-learn


def test_a_search_can_choose_what_is_kept():
    search = GridSearchCV(early(), {"keep": ["best", "average"]}, cv=2).fit(X, Y)
    assert set(search.cv_results_["param_keep"]) == {"best", "average"}
    assert clone(search.best_estimator_).keep == search.best_params_["keep"]
    with pytest.raises(sklearn.utils._param_validation.InvalidParameterError):
        early(keep="last").fit(X, Y)


def test_columns_keep_their_names():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=[f"column {i}" for i in range(8)])
    fitted = early(warm_start=True)
    for _ in range(2):
        fitted.fit(frame, Y)
        assert list(fitted.estimator_.feature_names_in_) == list(frame.columns)
        assert len(fitted.estimator_.predict(frame)) == len(fitted.predict(frame)) == 240


def test_it_helps_against_wrong_labels():
    digits, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    train, test = np.split(rng.permutation(len(labels)), [1297])
    wrong = rng.choice(1297, 520, replace=False)
    noisy = labels[train]
    noisy[wrong] = (noisy[wrong] + rng.integers(1, 10, 520)) % 10
    # Without an average its weights depend on the last samples of an epoch.
    model = early(SGDClassifier(loss="log_loss"), max_epochs=12, batch_size=650)
    averaged = model.fit(digits[train] / 16, noisy)
    last = averaged._best.model.score(digits[test] / 16, labels[test])
    assert averaged.score(digits[test] / 16, labels[test]) > last + 0.1
