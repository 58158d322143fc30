"""Wrong labels come first, in all the ways in which scikit-learn trains."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from backends import require

sklearn = pytest.importorskip("sklearn")

import scipy.sparse as sp
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, SGDClassifier
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_info

from gwa_core import epoch_weights, label_quality
from gwa_sklearn import (
    LabelIssues,
    LabelIssuesDisplay,
    alignment_scores,
    find_label_issues,
    get_label_quality_scores,
)

X, RIGHT = load_digits(return_X_y=True)
SCALED = StandardScaler().fit_transform(X)


def flipped(y, rate, kind, seed=0):
    """Labels of which a share is wrong, and which they are."""
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(y), round(rate * len(y)), replace=False)
    classes, given = int(y.max()) + 1, y.copy()
    step = rng.integers(1, classes, len(wrong)) if kind == "symmetric" else 1
    given[wrong] = (y[wrong] + step) % classes
    return given, given != y


GIVEN, WRONG = flipped(RIGHT, 0.1, "symmetric")


# For estimators that take their time.
FEW = slice(0, 500)


def precision(quality, wrong=WRONG):
    return average_precision_score(wrong, -quality)


def sgd(**options):
    return SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.01, **options)


def words(rows=600, seed=0):
    """Sparse counts of words; each of three classes has words of its own."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    rates = np.full((3, 90), 0.1)
    for label in range(3):
        rates[label, 30 * label : 30 * label + 30] = 0.3
    return sp.csr_array(rng.poisson(rates[y])), y


@pytest.fixture(scope="module")
def found():
    """One fit that several tests look at."""
    return LabelIssues(max_epochs=4, random_state=0, n_jobs=1).fit(X, GIVEN)


# Labels that chance gave can't be learned.
@pytest.mark.filterwarnings("ignore:.*labels .* are issues:UserWarning")
@parametrize_with_checks(
    [
        LabelIssues(max_epochs=2),
        LabelIssues(LogisticRegression()),
        LabelIssues(sgd(), max_epochs=2),
        LabelIssues(make_pipeline(StandardScaler(), MLPClassifier((5,))), max_epochs=2),
    ]
)
def test_estimator_keeps_the_conventions_of_scikit_learn(estimator, check):
    check(estimator)


def test_the_check_that_skips_itself_passes_where_it_can_run():
    # `check_array_api_input` wants a variable that must be set before SciPy is imported.
    code = """
from sklearn.utils.estimator_checks import estimator_checks_generator
from gwa_sklearn import LabelIssues
for estimator, check in estimator_checks_generator(LabelIssues(max_epochs=2)):
    if check.func.__name__ == "check_array_api_input":
        check(estimator)
        print("passed")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SCIPY_ARRAY_API": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if sklearn.utils.fixes.parse_version(sklearn.__version__).release >= (1, 9):
        assert done.stdout == "passed\n"


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("rate", [0.1, 0.2])
def test_wrong_labels_come_first(kind, rate):
    given, wrong = flipped(RIGHT, rate, kind, seed=1)
    found = LabelIssues(random_state=0).fit(X, given)
    quality = found.label_quality_
    # At random it is the rate.
    assert precision(quality, wrong) > 0.85
    assert precision(found.label_quality_[::-1], wrong) < 0.3
    # The loss of the same model at the end, which has begun to memorise the wrong labels.
    own = found.estimator_.predict_proba(X)[np.arange(len(X)), given]
    assert precision(quality, wrong) >= precision(own, wrong)
    assert 0.5 * wrong.sum() < found.issues_.sum() < 1.3 * wrong.sum()
    assert wrong[found.issues_].mean() > 0.75


@pytest.mark.parametrize("data", ["digits", "cancer"])
def test_few_labels_are_issues_where_all_are_right(data):
    x, y = (X, RIGHT) if data == "digits" else load_breast_cancer(return_X_y=True)
    assert LabelIssues(random_state=0).fit(x, y).issues_.mean() < 0.03


def test_results_belong_together(found):
    quality = found.label_quality_
    assert quality.shape == found.issues_.shape == found.ranked_indices_.shape == (len(X),)
    assert quality.min() >= 0
    assert quality.max() <= 1
    assert np.array_equal(found.issues_, quality < 0.5)
    assert np.array_equal(np.sort(found.ranked_indices_), np.arange(len(X)))
    assert (np.diff(quality[found.ranked_indices_]) >= 0).all()
    assert [row.epoch for row in found.history_] == list(range(4))
    assert all(row.count == row.expected == len(X) for row in found.history_)
    assert found.classes_.tolist() == list(range(10))
    assert found.n_features_in_ == 64
    # A model to go on with.
    assert (found.estimator_.predict(X) == RIGHT).mean() > 0.9
    again = pickle.loads(pickle.dumps(found))  # noqa: S301
    assert np.array_equal(again.label_quality_, quality)


@pytest.mark.parametrize(
    "estimator", [None, MLPClassifier(batch_size=10), sgd()], ids=["default", "mlp", "sgd"]
)
def test_the_seed_decides(estimator):
    fits = [
        LabelIssues(estimator, max_epochs=3, random_state=seed).fit(SCALED[FEW], GIVEN[FEW])
        for seed in (0, 0, 1)
    ]
    first, same, other = (fit.label_quality_ for fit in fits)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_seed_of_the_estimator_itself_stays():
    estimator = MLPClassifier(batch_size=10, random_state=3)
    fits = [
        LabelIssues(estimator, max_epochs=2, random_state=seed).fit(SCALED[FEW], GIVEN[FEW])
        for seed in (0, 1)
    ]
    assert np.array_equal(fits[0].label_quality_, fits[1].label_quality_)
    assert fits[0].estimator_.get_params()["random_state"] == 3


def test_each_epoch_of_an_sgd_classifier_has_an_order_of_its_own():
    found = LabelIssues(sgd(), max_epochs=3, random_state=0).fit(SCALED, GIVEN)
    alike = sgd(random_state=0)
    for _ in range(3):
        alike.partial_fit(SCALED, GIVEN, classes=np.arange(10))
    assert not np.allclose(found.estimator_.coef_, alike.coef_)


def test_scores_are_those_after_each_epoch():
    found = LabelIssues(sgd(random_state=0), max_epochs=4).fit(SCALED, GIVEN)
    model, history = sgd(random_state=0), []
    for _ in range(4):
        model.partial_fit(SCALED, GIVEN, classes=np.arange(10))
        history.append(alignment_scores(model, SCALED, GIVEN))
    history = np.stack(history)
    assert found.label_quality_ == pytest.approx(label_quality(history), abs=1e-6)
    streamed = label_quality(history, weights=epoch_weights(found.history_))
    assert found.label_quality_ == pytest.approx(streamed, abs=1e-6)
    assert np.abs(found.label_quality_ - label_quality(history, method="mean")).max() > 1e-3


def test_a_logistic_regression_takes_a_path_to_its_own_strength():
    estimator = LogisticRegression(C=2.0, max_iter=500, random_state=0)
    x, given, wrong = SCALED[FEW], GIVEN[FEW], WRONG[FEW]
    found = LabelIssues(estimator).fit(x, given)
    assert len(found.history_) == 5
    assert found.estimator_.get_params() == estimator.get_params()
    plain = clone(estimator).fit(x, given)
    assert found.estimator_.coef_ == pytest.approx(plain.coef_, abs=0.05)
    # Which is what makes it better than the fitted model alone, whose C lets it memorise.
    own = plain.predict_proba(x)[np.arange(len(x)), given]
    alone = alignment_scores(plain, x, given)
    best = max(precision(own, wrong), precision(alone, wrong))
    assert precision(found.label_quality_, wrong) > best


@pytest.mark.parametrize("options", [{"C": 1e-9}, {"C": np.inf}], ids=["weak", "none"])
def test_where_there_is_no_path_the_fitted_model_is_scored(options):
    estimator = LogisticRegression(max_iter=500, tol=0.01, **options)
    found = LabelIssues(estimator).fit(SCALED[:500], GIVEN[:500])
    scores = alignment_scores(found.estimator_, SCALED[:500], GIVEN[:500])
    assert len(found.history_) == 1
    assert found.label_quality_ == pytest.approx((1 + scores) / 2, abs=1e-6)


# Since 1.8 LogisticRegressionCV warns without them of what its defaults will be.
FUTURE = {"l1_ratios": (0,), "use_legacy_attributes": False, "scoring": "neg_log_loss"}
ONE_SCORE = {key: x for key, x in FUTURE.items() if key in LogisticRegressionCV().get_params()}


@pytest.mark.parametrize(
    ("estimator", "epochs"),
    [
        (OneVsRestClassifier(sgd()), 20),
        (CalibratedClassifierCV(LogisticRegression(C=0.01), cv=2), 1),
        (GridSearchCV(LogisticRegression(), {"C": [0.001, 0.01]}, cv=2), 1),
        (LogisticRegressionCV(Cs=[0.001, 0.01], cv=2, **ONE_SCORE), 1),
        (FrozenEstimator(LogisticRegression(C=0.01).fit(SCALED[FEW], GIVEN[FEW])), 1),
        (make_pipeline(StandardScaler(), sgd()), 20),
        (make_pipeline(StandardScaler(), LogisticRegression()), 5),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else str(value),
)
def test_everything_that_has_a_head_can_be_trained(estimator, epochs):
    found = LabelIssues(estimator, random_state=0).fit(SCALED[FEW], GIVEN[FEW])
    assert len(found.history_) == epochs
    assert precision(found.label_quality_, WRONG[FEW]) > 0.8


def test_a_pipeline_is_the_same_as_its_steps_by_hand():
    options = {"max_epochs": 5}
    pipeline = make_pipeline(StandardScaler(), sgd(random_state=0))
    whole = LabelIssues(pipeline, **options).fit(X, GIVEN)
    last = LabelIssues(sgd(random_state=0), **options).fit(SCALED, GIVEN)
    assert np.array_equal(whole.label_quality_, last.label_quality_)
    assert whole.estimator_.predict(X).tolist() == last.estimator_.predict(SCALED).tolist()


def test_a_pipeline_may_begin_with_text_and_keep_its_steps_in_a_memory(tmp_path):
    counts, right = words()
    texts = [
        " ".join(f"word{j}" for j in np.repeat(np.arange(90), row)) for row in counts.toarray()
    ]
    given, wrong = flipped(right, 0.1, "symmetric")
    pipeline = make_pipeline(TfidfVectorizer(), sgd(), memory=str(tmp_path))
    pipeline.set_params(sgdclassifier__eta0=1.0)
    found = LabelIssues(pipeline, random_state=0).fit(texts, given)
    assert precision(found.label_quality_, wrong) > 0.8
    assert (found.estimator_.predict(texts) == right).mean() > 0.9


def test_sparse_rows_stay_sparse():
    counts, right = words()
    given, wrong = flipped(right, 0.1, "symmetric")
    found = LabelIssues(random_state=0).fit(counts, given)
    assert precision(found.label_quality_, wrong) > 0.8
    seen = []
    look = FunctionTransformer(lambda x: seen.append(sp.issparse(x)) or x, accept_sparse=True)
    LabelIssues(make_pipeline(look, sgd()), max_epochs=1).fit(counts, given)
    assert all(seen)
    # Too wide to be made dense: 40 GB.
    columns = np.random.default_rng(0).integers(0, 1_000_000, 50_000, dtype=np.int32)
    wide = sp.csr_array(
        (np.ones(50_000), columns, np.arange(0, 50_001, 10, dtype=np.int32)), (5000, 1_000_000)
    )
    found = LabelIssues(max_epochs=1, random_state=0).fit(wide, np.arange(5000) % 2)
    assert found.label_quality_.shape == (5000,)


def test_sparse_and_dense_rows_give_the_same():
    counts, y = words()
    given, _ = flipped(y, 0.1, "symmetric")
    estimator = LogisticRegression()
    sparse = LabelIssues(estimator).fit(counts, given)
    dense = LabelIssues(estimator).fit(counts.toarray(), given)
    assert sparse.label_quality_ == pytest.approx(dense.label_quality_, abs=1e-3)


def test_labels_may_be_words(found):
    names = np.asarray([f"digit {label}" for label in range(10)])
    options = {"max_epochs": 4, "random_state": 0, "n_jobs": 1}
    words = LabelIssues(**options).fit(X, names[GIVEN])
    assert np.array_equal(words.label_quality_, found.label_quality_)
    assert words.estimator_.classes_.tolist() == names.tolist()
    assert np.array_equal(find_label_issues(X, names[GIVEN].tolist(), **options), found.issues_)


def test_the_order_of_rows_is_no_matter_where_it_is_none_to_the_estimator():
    x, given = SCALED[FEW], GIVEN[FEW]
    order = np.random.default_rng(0).permutation(len(x))
    estimator = LogisticRegression(C=0.1, tol=1e-8, max_iter=2000)
    straight = LabelIssues(estimator).fit(x, given).label_quality_
    shuffled = LabelIssues(estimator).fit(x[order], given[order]).label_quality_
    assert shuffled == pytest.approx(straight[order], abs=1e-3)


def test_scale_and_offset_of_features_are_no_matter_to_the_default():
    rng = np.random.default_rng(0)
    scale, offset = 10.0 ** rng.uniform(-4, 4, 64), rng.normal(size=64) * 1e3
    moved = LabelIssues(random_state=0).fit(scale * (X + offset), GIVEN)
    assert precision(moved.label_quality_) > 0.9


@pytest.mark.parametrize("rows", [2, 3, 30])
def test_few_rows_will_do(rows):
    y = np.arange(rows) % 2
    found = LabelIssues(random_state=0).fit(y[:, None] + 0.1 * SCALED[:rows, :3], y)
    assert np.isfinite(found.label_quality_).all()


def test_processors_change_nothing_but_the_time():
    threads = []
    look = FunctionTransformer(lambda x: threads.append(threadpool_info()) or x)
    pipeline = make_pipeline(look, sgd())
    alone = LabelIssues(pipeline, max_epochs=2, n_jobs=1, random_state=0).fit(SCALED, GIVEN)
    assert all(pool["num_threads"] == 1 for pool in threads[0])
    assert alone.estimator_[-1].n_jobs == 1
    more = LabelIssues(pipeline, max_epochs=2, n_jobs=2, random_state=0).fit(SCALED, GIVEN)
    assert more.label_quality_ == pytest.approx(alone.label_quality_, abs=1e-6)
    assert pipeline[-1].n_jobs is None


def test_functions_give_what_the_class_gives(found):
    options = {"max_epochs": 4, "random_state": 0, "n_jobs": 1}
    assert np.array_equal(find_label_issues(X, GIVEN, **options), found.issues_)
    assert np.array_equal(get_label_quality_scores(X, GIVEN, **options), found.label_quality_)
    ranked = find_label_issues(X, GIVEN, return_indices_ranked_by="label_quality", **options)
    assert np.array_equal(np.sort(ranked), np.flatnonzero(found.issues_))
    assert np.array_equal(ranked, found.ranked_indices_[: len(ranked)])
    given = find_label_issues(SCALED, GIVEN, sgd(), **options)
    assert np.array_equal(given, LabelIssues(sgd(), **options).fit(SCALED, GIVEN).issues_)


def test_what_was_found_can_be_drawn(found):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    display = LabelIssuesDisplay.from_estimator(found, images=X.reshape(-1, 8, 8), labels=GIVEN)
    assert display.ax_.get_legend().get_texts()[0].get_text() == f"{found.issues_.sum()} issues"
    assert display.quality is found.label_quality_
    plt.close(display.figure_)


def test_the_names_of_cleanlab_that_mean_something_else_are_refused():
    with pytest.raises(ValueError, match="must be None or 'label_quality', got 'self_confidence'"):
        find_label_issues(X, GIVEN, return_indices_ranked_by="self_confidence")


@pytest.mark.parametrize("function", [find_label_issues, get_label_quality_scores])
def test_the_arguments_of_cleanlab_are_answered_with_the_right_call(function):
    proba = np.full((len(X), 10), 0.1)
    call = rf"{function.__name__}\(X, labels\)"
    with pytest.raises(
        TypeError, match=f"got `labels` and `pred_probs`, which are cleanlab's.*{call}"
    ):
        function(labels=GIVEN, pred_probs=proba)
    with pytest.raises(TypeError, match=f"got `pred_probs`.*{call}"):
        function(X, GIVEN, pred_probs=proba)
    with pytest.raises(TypeError, match="unexpected keyword argument 'n_job'"):
        function(X, GIVEN, n_job=2)


# Steps, and warnings

CALM = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.01, average=True)


@pytest.mark.parametrize(
    "estimator",
    [
        SGDClassifier(loss="log_loss"),
        SGDClassifier(loss="log_loss", average=True),
        OneVsRestClassifier(SGDClassifier(loss="log_loss")),
        make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss")),
    ],
    ids=["alone", "averaged", "one-vs-rest", "pipeline"],
)
def test_steps_too_large_for_a_sigmoid_a_class_are_refused(estimator):
    # 54 % of these right labels were issues.
    with pytest.raises(ValueError, match=r"10 classes, got SGDClassifier.*eta0=0.01, average=True"):
        LabelIssues(estimator, random_state=0).fit(X / 16, RIGHT)


@pytest.mark.parametrize("load", [load_digits, load_wine])
def test_the_call_that_the_refusal_shows_leaves_right_labels_alone(load):
    x, right = load(return_X_y=True)
    model = make_pipeline(StandardScaler(), CALM)
    assert LabelIssues(model, random_state=0).fit(x, right).issues_.mean() < 0.1
    given, wrong = flipped(right, 0.1, "symmetric")
    found = LabelIssues(model, random_state=0).fit(x, given)
    assert precision(found.label_quality_, wrong) > 0.9
    assert 0.7 * wrong.sum() < found.issues_.sum() < 1.5 * wrong.sum()


def test_two_classes_have_one_sigmoid_which_takes_the_default_steps():
    x, right = load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss"))
    assert LabelIssues(model, random_state=0).fit(x, right).issues_.mean() < 0.05
    given, wrong = flipped(right, 0.1, "symmetric")
    found = LabelIssues(model, random_state=0).fit(x, given)
    assert precision(found.label_quality_, wrong) > 0.8


def test_more_issues_than_there_can_be_are_warned_of():
    x, y = load_wine(return_X_y=True)  # of columns that are not scaled
    with pytest.warns(
        UserWarning, match=r"of 178 labels \(\d+%\) are issues.*StandardScaler"
    ) as seen:
        found = LabelIssues(sgd(), random_state=0).fit(x, y)
    assert found.issues_.mean() > 0.4
    assert [one.filename for one in seen] == [__file__]


def test_balanced_classes_are_those_of_all_labels():
    rows = np.flatnonzero((RIGHT < 3) & ((RIGHT > 0) | (np.arange(len(X)) % 5 == 0)))
    x, y = SCALED[rows], np.asarray(["zero", "one", "two"])[RIGHT[rows]]
    weights = compute_class_weight("balanced", classes=np.unique(y), y=y)
    assert weights.max() > 2 * weights.min()
    by_hand = dict(zip(np.unique(y), weights, strict=True))
    fits = {}
    for name, wish in {"balanced": "balanced", "by hand": by_hand, "none": None}.items():
        estimator = sgd(class_weight=wish, random_state=0)
        fits[name] = LabelIssues(estimator, max_epochs=3).fit(x, y)
        assert estimator.class_weight is wish
    np.testing.assert_array_equal(fits["balanced"].label_quality_, fits["by hand"].label_quality_)
    assert not np.array_equal(fits["balanced"].label_quality_, fits["none"].label_quality_)


NAMED = {
    "default": None,
    "sgd": CALM,
    "network": MLPClassifier(batch_size=4),
    "logistic": LogisticRegression(C=0.1),
    "search": GridSearchCV(LogisticRegression(), {"C": [0.01, 0.1]}, cv=2),
    "one-vs-rest": OneVsRestClassifier(CALM),
    "calibrated": CalibratedClassifierCV(LogisticRegression(C=0.1), cv=2),
    "pipeline": make_pipeline(StandardScaler(), CALM),
    "set_output": make_pipeline(StandardScaler(), CALM).set_output(transform="pandas"),
    "set_output, one fit": make_pipeline(StandardScaler(), LogisticRegression()).set_output(
        transform="pandas"
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_columns_keep_their_names_and_nothing_warns(name):
    # A warning is an error here, also scikit-learn's about feature names.
    pandas = require("pandas")
    x, y = load_wine(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    frame = pandas.DataFrame(x, columns=[f"column {i}" for i in range(x.shape[1])])
    options = {"max_epochs": 3, "random_state": 0}
    named = LabelIssues(NAMED[name], **options).fit(frame, y)
    assert named.feature_names_in_.tolist() == list(frame.columns)
    assert named.estimator_.predict(frame).shape == y.shape
    assert np.isfinite(alignment_scores(named.estimator_, frame, y)).all()
    if not name.startswith("set_output"):
        # The last step would be told so by names that a frame of numbers does not have.
        plain = LabelIssues(NAMED[name], **options).fit(x, y)
        assert named.label_quality_ == pytest.approx(plain.label_quality_, abs=1e-6)
        assert plain.estimator_.predict(x).tolist() == named.estimator_.predict(frame).tolist()


def test_a_frame_may_change_its_mind_about_names():
    pandas = require("pandas")
    issues = LabelIssues(sgd(), max_epochs=2, random_state=0)
    issues.fit(pandas.DataFrame(SCALED[FEW]).add_prefix("pixel "), GIVEN[FEW])
    again = issues.fit(SCALED[FEW], GIVEN[FEW])
    assert not hasattr(again, "feature_names_in_")
    assert again.estimator_.predict(SCALED[FEW]).shape == (500,)


def test_numbers_of_numpy_are_numbers():
    options = {"max_epochs": np.int64(2), "n_jobs": np.int32(1), "random_state": np.int64(0)}
    found = LabelIssues(sgd(), **options).fit(SCALED, GIVEN)
    plain = LabelIssues(sgd(), max_epochs=2, n_jobs=1, random_state=0).fit(SCALED, GIVEN)
    assert np.array_equal(found.label_quality_, plain.label_quality_)


def test_memory_does_not_grow_with_the_epochs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 2))
    y = (x[:, 0] + rng.standard_normal(20_000) > 0).astype(int)
    peaks = []
    for epochs in (2, 40):
        tracemalloc.start()
        LabelIssues(sgd(), max_epochs=epochs, random_state=0).fit(x, y)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A list of the scores of 38 epochs more would take 3 MB.
    assert peaks[1] < peaks[0] + 500_000


@pytest.mark.parametrize(
    ("estimator", "error", "message"),
    [
        (LinearSVC(), TypeError, "got LinearSVC, which is trained with the hinge loss"),
        (GaussianNB(), TypeError, "got GaussianNB, which has no linear head"),
        (SGDClassifier(), ValueError, r"SGDClassifier\(loss='hinge'\)"),
        (make_pipeline(StandardScaler(), LinearSVC()), TypeError, "got LinearSVC"),
        ("MLPClassifier", ValueError, "'estimator' parameter of LabelIssues must be"),
    ],
    ids=["hinge", "no-head", "loss", "pipeline", "name"],
)
def test_what_has_no_head_is_refused_before_it_is_trained(estimator, error, message):
    with pytest.raises(error, match=message):
        LabelIssues(estimator).fit(X, GIVEN)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(len(X)), r"`y` must have at least two classes, got 1 class in 1797 samples"),
        (X[:, 2] / 3, "Unknown label type: continuous"),
        (GIVEN[:-1], "inconsistent numbers of samples"),
        (np.eye(10)[GIVEN], "1d array"),
        (np.where(WRONG, np.nan, 1.0), "NaN"),
    ],
    ids=["one-class", "continuous", "short", "indicators", "nan"],
)
@pytest.mark.parametrize("estimator", [None, make_pipeline(StandardScaler(), sgd())], ids=str)
def test_labels_that_are_none_are_refused(y, message, estimator):
    with pytest.raises(ValueError, match=message):
        LabelIssues(estimator).fit(X, y)


def test_before_a_fit_there_is_nothing():
    with pytest.raises(NotFittedError):
        sklearn.utils.validation.check_is_fitted(LabelIssues())
    with pytest.raises(ValueError, match="max_epochs"):
        LabelIssues(max_epochs=0).fit(X, GIVEN)


def test_balanced_classes_inside_one_vs_rest_are_refused_in_words():
    inner = SGDClassifier(
        loss="log_loss", learning_rate="constant", eta0=0.01, class_weight="balanced"
    )
    X, y = load_digits(return_X_y=True)
    with pytest.raises(ValueError, match="no class_weight='balanced' inside OneVsRestClassifier"):
        LabelIssues(OneVsRestClassifier(inner)).fit(X[:300], y[:300])
