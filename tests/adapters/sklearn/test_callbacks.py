"""The callback sees each iteration, keeps the best one, and says when to stop."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from backends import require

sklearn = pytest.importorskip("sklearn")

from importlib.util import find_spec

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from gwa_core import GWATracker
from gwa_sklearn import (
    GWAStopping,
    LabelWave,
    MaxBimodality,
    MaxGWA,
    alignment_scores,
    gwa_score,
    select_epoch,
)

if find_spec("sklearn.callback") is None:

    def test_older_versions_are_named():
        with pytest.raises(ImportError, match="GWAStopping needs the callbacks of scikit-learn"):
            GWAStopping(MaxGWA())

    pytest.skip("scikit-learn has no callbacks", allow_module_level=True)

from sklearn.callback import CallbackSupportMixin, FitCallback, with_callbacks

X, Y = load_digits(return_X_y=True)
X = X[:400] / 16.0
NAMES = np.asarray([f"digit {label}" for label in Y[:400]])
NAMES[:40] = NAMES[40:80]


def logistic(**options):
    return LogisticRegression(**{"C": 10.0, "tol": 1e-3, "max_iter": 999, **options})


class Epochs(CallbackSupportMixin, SGDClassifier):
    """An estimator of somebody else that calls callbacks after each epoch and heeds them."""

    @with_callbacks
    def fit(self, X, y):
        # scikit-learn ends the callbacks of an estimator with its partial_fit.
        inner = SGDClassifier(**self.get_params())
        context = self._init_callback_context(max_subtasks=self.max_iter)
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        for epoch in range(self.max_iter):
            epoch_context = context.subcontext(task_name="epoch", max_subtasks=2)
            for _half in range(2):
                step = epoch_context.subcontext(task_name="half")
                rows = np.random.default_rng(epoch).permutation(len(X))
                inner.partial_fit(X[rows], y[rows], classes=np.unique(y))
                vars(self).update(vars(inner))
                step.call_on_fit_task_end(
                    estimator=self, X=X[:5], y=y[:5], reconstruction_attributes={}
                )
            self.epochs_ = epoch + 1
            if epoch_context.call_on_fit_task_end(
                estimator=self, X=X, y=y, reconstruction_attributes={}
            ):
                break
        context.call_on_fit_task_end(estimator=self, X=X, y=y, reconstruction_attributes={})
        return self


def test_it_follows_the_protocol():
    assert isinstance(GWAStopping(MaxGWA()), FitCallback)


def test_each_iteration_is_what_a_fit_of_that_many_gives():
    stopping = GWAStopping(MaxGWA(warmup=0))
    model = logistic().set_callbacks(stopping).fit(X, NAMES)
    assert len(stopping.history_) == model.n_iter_[0]
    assert stopping.history_[-1].gwa == pytest.approx(gwa_score(model, X, NAMES), rel=1e-9)
    for iterations in (1, 4):
        short = logistic(max_iter=iterations)
        with pytest.warns(sklearn.exceptions.ConvergenceWarning):
            short.fit(X, NAMES)
        expected = gwa_score(short, X, NAMES)
        assert stopping.history_[iterations - 1].gwa == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rule", [MaxGWA(warmup=2), MaxBimodality(warmup=5, patience=10)], ids=str)
def test_the_best_iteration_is_the_one_of_the_rule_and_is_there(rule):
    everything = GWAStopping(MaxGWA())
    logistic().set_callbacks(everything).fit(X, NAMES)
    selected = select_epoch(everything.history_, rule)
    stopping = GWAStopping(rule)
    model = logistic().set_callbacks(stopping).fit(X, NAMES)
    assert stopping.best_epoch_ == selected.step
    assert stopping.stopping_reason_ == selected.reason
    best = stopping.best_estimator_
    expected = everything.history_[selected.step].gwa
    assert gwa_score(best, X, NAMES) == pytest.approx(expected, rel=1e-9)
    assert not np.array_equal(best.coef_, model.coef_)
    assert len(stopping.history_) == (
        len(everything.history_) if rule.patience is None else selected.step + 1 + rule.patience
    )


def test_the_best_is_an_estimator_like_any_other():
    stopping = GWAStopping(MaxGWA(warmup=2))
    model = make_pipeline(MinMaxScaler(), logistic().set_callbacks(stopping)).fit(X, NAMES)
    best = pickle.loads(pickle.dumps(stopping.best_estimator_))  # noqa: S301
    assert set(vars(best)) <= set(vars(LogisticRegression().fit(X, NAMES)))
    np.testing.assert_array_equal(best.classes_, np.unique(NAMES))
    assert best.score(X, NAMES) > 0.5
    assert best.fit(X, NAMES).n_iter_[0] > 0
    assert pickle.loads(pickle.dumps(stopping)).best_epoch_ == stopping.best_epoch_  # noqa: S301
    assert model[-1].n_iter_[0] == len(stopping.history_)


def test_the_default_rule_needs_few_iterations():
    default = GWAStopping()
    logistic().set_callbacks(default).fit(X, NAMES)
    written = GWAStopping(MaxBimodality(warmup=5, patience=10))
    logistic().set_callbacks(written).fit(X, NAMES)
    assert default.history_ == written.history_
    assert 5 <= default.best_epoch_ == written.best_epoch_
    assert default.stopping_reason_ == written.stopping_reason_
    assert [row.expected for row in default.history_] == [400] * len(default.history_)


def test_a_rule_that_watches_what_is_not_measured_is_refused():
    model = logistic().set_callbacks(GWAStopping(LabelWave()))
    with pytest.raises(ValueError, match=r"watches 'prediction_changes'; there are epoch, .*, gwa"):
        model.fit(X, NAMES)
    assert not hasattr(model, "coef_")


def test_columns_keep_their_names_and_nothing_warns():
    # A warning is an error here, also scikit-learn's about feature names.
    pandas = require("pandas")
    frame = pandas.DataFrame(X).add_prefix("pixel ")
    stopping = GWAStopping()
    logistic().set_callbacks(stopping).fit(frame, NAMES)
    assert list(stopping.best_estimator_.feature_names_in_) == list(frame.columns)
    assert len(stopping.best_estimator_.predict(frame)) == 400
    plain = GWAStopping()
    logistic().set_callbacks(plain).fit(X, NAMES)
    assert plain.history_ == stopping.history_


def test_an_estimator_that_heeds_the_answer_is_stopped():
    rule = MaxGWA(warmup=1, patience=2)
    stopping = GWAStopping(rule)
    model = Epochs(loss="log_loss", random_state=0, max_iter=60).set_callbacks(stopping)
    model.fit(X, NAMES)
    assert stopping.stopping_reason_.endswith("no improvement in 2 steps")
    assert model.epochs_ == len(stopping.history_) == stopping.best_epoch_ + 3 < 60
    # The same loop by hand. Later epochs wrote into the same array.
    hand, tracker, weights = SGDClassifier(loss="log_loss", random_state=0), GWATracker(), []
    for epoch in range(model.epochs_):
        for _half in range(2):
            rows = np.random.default_rng(epoch).permutation(len(X))
            hand.partial_fit(X[rows], NAMES[rows], classes=np.unique(NAMES))
        tracker.update(alignment_scores(hand, X, NAMES))
        tracker.end_epoch()
        weights.append(hand.coef_.copy())
    assert [one.gwa for one in tracker.history] == [one.gwa for one in stopping.history_]
    np.testing.assert_array_equal(stopping.best_estimator_.coef_, weights[stopping.best_epoch_])


def test_a_fraction_of_the_iterations_as_warm_up():
    stopping = GWAStopping(MaxGWA(warmup=0.5))
    model = Epochs(loss="log_loss", random_state=0, max_iter=6).set_callbacks(stopping)
    model.fit(X, NAMES)
    assert stopping.best_epoch_ >= 3


def test_samples_of_weight_zero_are_left_out():
    weight = np.r_[np.zeros(40), np.ones(360)]
    stopping = GWAStopping(MaxGWA(warmup=0))
    model = logistic().set_callbacks(stopping).fit(X, NAMES, sample_weight=weight)
    last = stopping.history_[-1]
    assert (last.count, last.omitted) == (360, 40)
    assert last.gwa == pytest.approx(gwa_score(model, X[40:], NAMES[40:]), rel=1e-9)


def test_a_search_leaves_the_history_of_its_last_fit():
    stopping = GWAStopping(MaxGWA(warmup=2))
    search = GridSearchCV(logistic().set_callbacks(stopping), {"C": [0.1, 1.0]}, cv=2, n_jobs=1)
    search.fit(X, NAMES)
    assert len(stopping.history_) == search.best_estimator_.n_iter_[0]
    # In other processes the callback must at least not break the search.
    parallel = GridSearchCV(logistic().set_callbacks(stopping), {"C": [0.1]}, cv=2, n_jobs=2)
    assert parallel.fit(X, NAMES).best_params_ == {"C": 0.1}


def test_a_second_fit_begins_again_and_a_failed_one_leaves_nothing_behind():
    stopping = GWAStopping(MaxGWA(warmup=2))
    model = logistic().set_callbacks(stopping)
    first = len(model.fit(X, NAMES) and stopping.history_)
    assert len(model.fit(X, NAMES) and stopping.history_) == first
    with pytest.raises(ValueError, match=r"SGDClassifier\(loss='hinge'\)"):
        Epochs(loss="hinge", max_iter=2).set_callbacks(stopping).fit(X, NAMES)
    assert stopping.history_ == []
    assert stopping.best_epoch_ is stopping.best_estimator_ is None


def test_it_belongs_on_the_classifier_itself():
    for model in (make_pipeline(MinMaxScaler(), logistic()), GridSearchCV(logistic(), {})):
        model.set_callbacks(GWAStopping(MaxGWA()))
        with pytest.raises(TypeError, match="set the callback on the classifier itself"):
            model.fit(X, NAMES)
