"""Which labels of a training set to look at, from one training on all of it."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any, ClassVar, Literal, ParamSpec, Self, TypeVar

import numpy as np
from joblib import effective_n_jobs  # type: ignore[import-untyped]
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn import config_context
from sklearn.base import BaseEstimator, MetaEstimatorMixin, _fit_context, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils import (
    assert_all_finite,
    check_array,
    check_consistent_length,
    check_random_state,
    column_or_1d,
    get_tags,
)
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.extmath import row_norms
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _get_feature_names, validate_data
from threadpoolctl import threadpool_limits

from gwa_core import EpochSummary, GWATracker, LabelQuality, label_quality, rank_samples
from gwa_sklearn._training import balance, first_steps, last_step, too_large_steps
from gwa_sklearn.heads import find_classifiers
from gwa_sklearn.scores import alignment_scores

__all__ = ["THRESHOLD", "LabelIssues", "find_label_issues", "get_label_quality_scores"]

P = ParamSpec("P")
R = TypeVar("R")

FLOATS = (np.float64, np.float32)

# The label quality of a row whose pulls with and against the weights cancel.
THRESHOLD = 0.5
# A larger share of issues than this is seldom the truth.
MOST = 0.4

# A LogisticRegression has no epochs. It is fitted with this many C up to its own, the first of
# them this much over the sum of squares of X: few of the weights are learnt there.
PATH_LENGTH, PATH_BEGIN = 5, 300.0


class LabelIssues(MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    r"""Find labels that are probably wrong, by training once on all rows.

    .. math:: q_i = \frac 1 2 \left(1 + \frac {\sum_t w_t \gamma_{t,i}} {\sum_t w_t}\right)

    After each epoch every row gets its alignment score :math:`\gamma_{t,i}`. Epochs count by how
    far apart right and wrong labels are in them (`gwa_core.LabelQuality`). A row below one half,
    which pulled against the head's weights on average, is an issue.

    Parameters
    ----------
    estimator : estimator, optional
        What to train: a classifier that `latents_and_head` supports, also as the last step of a
        `Pipeline`, whose other steps are fitted first. One with `partial_fit` is trained for
        `max_epochs`; a `LogisticRegression` five times with `C` growing to its own; another one,
        such as a search or a `LogisticRegressionCV`, once. ``class_weight="balanced"`` counts all
        of `y`. Default for dense X: `StandardScaler` and an `MLPClassifier` of 100 hidden units;
        for sparse X: `Normalizer` and a `SGDClassifier`.
    max_epochs : int
        Epochs of `partial_fit` over all rows, default 20.
    n_jobs : int, optional
        Threads of BLAS, and `n_jobs` of an estimator that has it; default None leaves both as they
        are, -1 is all processors.
    random_state : int, RandomState instance, optional
        Seed of everything in `estimator` whose own is None.

    Attributes
    ----------
    label_quality_ : array of shape (n_samples,)
        In [0, 1], low = suspicious. The order means more than the size.
    issues_ : boolean array of shape (n_samples,)
        Where the label quality is below one half.
    ranked_indices_ : integer array of shape (n_samples,)
        All rows, the most suspicious first.
    history_ : list of EpochSummary
        The summary of each epoch, or of each fit.
    estimator_ : estimator
        As it was after the last epoch, trained on all labels, the wrong ones too.
    classes_ : array of shape (n_classes,)
        Labels in order.
    n_features_in_ : int
        Number of features, where X is an array.
    feature_names_in_ : array of shape (n_features_in_,)
        Their names, where X has them.

    Raises
    ------
    TypeError, ValueError
        In `fit`: if the estimator has no head that can be scored, the labels are not classes or
        all of one class, or X and y do not fit; if a `SGDClassifier` with its default
        ``learning_rate="optimal"`` has more than two classes, see the notes.

    Warns
    -----
    UserWarning
        In `fit`, if more than 40 % of the labels are issues, with the usual causes.

    Notes
    -----
    The threshold is no estimate of the number of wrong labels: where many are wrong it finds too
    few, and classes that overlap have rows below one half though their labels are right. It has no
    option; go down `ranked_indices_` as far as pays.

    With more than two classes `SGDClassifier` has a sigmoid for each. The steps of its default
    ``learning_rate="optimal"`` are too large for their scores, so it is refused there: of the right
    labels of digits 40 % were issues, 41 % after 100 epochs, 37 % with averaged weights. A small
    constant step with averaged weights leaves 8 %.

    Cost: one training, and one forward pass an epoch. Memory: 8 bytes a row for any
    number of epochs, 20 for a `LogisticRegression`.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.3 and Fig. 16.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from gwa_sklearn import LabelIssues
    >>> X, y = load_digits(return_X_y=True)
    >>> wrong = np.random.default_rng(0).choice(len(y), 90, replace=False)
    >>> y[wrong] = (y[wrong] + 1) % 10
    >>> found = LabelIssues(random_state=0).fit(X, y)
    >>> bool(np.isin(found.ranked_indices_[:50], wrong).mean() > 0.9)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [HasMethods("fit"), None],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    label_quality_: NDArray[Any]
    issues_: NDArray[np.bool_]
    ranked_indices_: NDArray[np.intp]
    history_: list[EpochSummary]
    estimator_: Any
    classes_: NDArray[Any]

    def __init__(
        self,
        estimator: Any = None,
        *,
        max_epochs: int = 20,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.max_epochs = max_epochs
        self.n_jobs = n_jobs
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any) -> Self:
        """Train on all rows and rank their labels.

        Parameters
        ----------
        X : array-like or sparse of shape (n_samples, n_features)
            Samples, or whatever the first step of a `Pipeline` takes.
        y : array-like of shape (n_samples,)
            Labels, strings too.

        Returns
        -------
        LabelIssues
            Itself.
        """
        X, y = self._check(X, y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(
                f"`y` must have at least two classes, got {len(self.classes_)} class in {len(y)} "
                f"samples: {self.classes_.tolist()}"
            )
        template = default_estimator(X) if self.estimator is None else self.estimator
        estimator = untrained(template, check_random_state(self.random_state), self.n_jobs)
        model = last_step(estimator)
        check_steps(model, self.classes_)
        with threadpool_limits(None if self.n_jobs is None else effective_n_jobs(self.n_jobs)):
            if isinstance(estimator, Pipeline):
                X = self._first_steps(estimator, X, y)
            # The whole of X was checked once.
            with config_context(assume_finite=True):
                self.history_, self.label_quality_ = watch(
                    model, X, y, self.max_epochs, self.classes_
                )
        self.estimator_ = estimator
        self.issues_ = self.label_quality_ < THRESHOLD
        self.ranked_indices_ = rank_samples(self.label_quality_, k=len(y))
        if self.issues_.sum() > MOST * len(y):
            warnings.warn(
                f"{self.issues_.sum()} of {len(y)} labels ({self.issues_.mean():.0%}) are issues, "
                "more than 40 %, which is seldom true. Usual causes: features that are not scaled "
                "(StandardScaler), training steps that are too large (SGDClassifier: a smaller "
                "`eta0`, average=True) or too few (`max_epochs`, smaller batches), features that "
                "tell little about the classes. Look at the first of `ranked_indices_` before you "
                "trust `issues_`",
                UserWarning,
                stacklevel=3,  # where `fit` was called, through the check of its options
            )
        return self

    def _check(self, X: Any, y: Any) -> tuple[Any, NDArray[Any]]:
        if isinstance(self.estimator, Pipeline):
            # Its first step may take text: only names and y can be checked before.
            X, y = validate_data(self, X, y, skip_check_array=True)
            check_consistent_length(X, y)
        else:
            named = X
            X, y = validate_data(self, X, y, accept_sparse="csr", dtype=FLOATS)
            X = _with_names(named, X)
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        return X, y

    def _first_steps(self, pipeline: Pipeline, X: Any, y: NDArray[Any]) -> Any:
        """Fit all steps but the last one and return what they make of X."""
        if len(pipeline) > 1:
            X = first_steps(pipeline, X, y, {})
        if self.estimator is None and not issparse(X):
            # Half the time of training; after the scaling, so that no large offset eats the digits.
            return X.astype(np.float32)
        checked = check_array(X, accept_sparse="csr", dtype=FLOATS, estimator=self)
        return _with_names(X, checked)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.sparse = True
        if self.estimator is not None:
            tags.input_tags = get_tags(self.estimator).input_tags
        return tags


def default_estimator(X: Any) -> Pipeline:
    """Return what is trained where nothing was given."""
    if issparse(X):
        # Rows of one length have one step size that suits them. The default one is far too large.
        model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=1.0)
        return make_pipeline(Normalizer(), model)
    rows, features = X.shape
    # About 20 steps an epoch for a small set; the sum over more features needs smaller steps.
    network = MLPClassifier(
        batch_size=min(rows, 200, max(16, rows // 20)), learning_rate_init=0.02 / features**0.5
    )
    return make_pipeline(StandardScaler(), network)


def untrained(template: Any, rng: np.random.RandomState, n_jobs: int | None) -> Any:
    """Return a clone with seeds and processors, or say why it can't be scored."""
    estimator = clone(template)
    if not isinstance(last_step(estimator), FrozenEstimator):
        # Its kind and its loss are looked at before whether it is fitted.
        with contextlib.suppress(NotFittedError):
            next(find_classifiers(last_step(estimator), None))
    for key, value in sorted(estimator.get_params().items()):
        name = key.rpartition("__")[2]
        if name == "random_state" and value is None:
            # Not a number, with which a SGDClassifier would shuffle alike in every epoch.
            seed = rng.randint(np.iinfo(np.int32).max)
            estimator.set_params(**{key: np.random.RandomState(seed)})
        elif name == "n_jobs" and n_jobs is not None:
            estimator.set_params(**{key: n_jobs})
    return estimator


def check_steps(model: Any, classes: NDArray[Any]) -> None:
    """Refuse what tells little of labels; see the notes of `LabelIssues`."""
    one_vs_rest = isinstance(model, OneVsRestClassifier)
    if one_vs_rest and getattr(model.estimator, "class_weight", None) == "balanced":
        raise ValueError(
            "`estimator` must have no class_weight='balanced' inside OneVsRestClassifier, got "
            f"{model.estimator!r}; each class against the rest would need weights of its own: give "
            "the classifier itself"
        )
    if too_large_steps(model, len(classes)):
        raise ValueError(
            f"`estimator` must take small steps where it has a sigmoid for each of {len(classes)} "
            "classes, got SGDClassifier(learning_rate='optimal'), its default, which takes a third "
            "to a half of right labels for wrong ones; say SGDClassifier(loss='log_loss', "
            "learning_rate='constant', eta0=0.01, average=True), or take a softmax: "
            "LogisticRegression(), MLPClassifier(hidden_layer_sizes=())"
        )


def watch(
    model: Any, X: Any, y: NDArray[Any], max_epochs: int, classes: NDArray[Any]
) -> tuple[list[EpochSummary], NDArray[np.float32]]:
    """Train a model; return the summary of each epoch, and the label quality over all of them."""
    tracker, quality, fits = GWATracker(keep_scores=False), LabelQuality(len(y)), []
    by_epoch = hasattr(model, "partial_fit")
    for _ in _epochs(model, X, y, max_epochs, classes):
        scores = alignment_scores(model, X, y).astype(np.float32)
        tracker.update(scores)
        summary = tracker.end_epoch(expected=len(y))
        if by_epoch:
            # Later epochs memorise wrong labels; each C of a path begins from the labels again.
            quality.update(scores, summary)
        else:
            fits.append(scores)
    if by_epoch:
        return tracker.history, np.asarray(quality.value)
    return tracker.history, label_quality(np.stack(fits), method="mean")


def _epochs(
    model: Any, X: Any, y: NDArray[Any], max_epochs: int, classes: NDArray[Any]
) -> Iterator[None]:
    """Train a model in place, and stop after each of its epochs."""
    if hasattr(model, "partial_fit"):
        balance(model, getattr(model, "class_weight", None), y)
        for _ in range(max_epochs):
            # All rows at once: the model makes its own batches, and shuffles them itself.
            model.partial_fit(X, y, classes=classes)
            yield
    elif len(path := _path(model, X)) > 1:
        own = {"C": model.C, "warm_start": model.warm_start}
        for strength in path:
            model.set_params(C=strength, warm_start=True).fit(X, y)
            yield
        model.set_params(**own)
    else:
        model.fit(X, y)
        yield


def _path(model: Any, X: Any) -> NDArray[Any]:
    """Return the C to fit one after the other; none where the model has no penalty of its own."""
    one = isinstance(model, LogisticRegression) and not isinstance(model, LogisticRegressionCV)
    if not one or getattr(model, "penalty", "l2") is None:
        return np.empty(0)
    squares = row_norms(X if issparse(X) else np.asarray(X), squared=True)
    begin = PATH_BEGIN / max(float(squares.sum()), PATH_BEGIN)
    if not begin < model.C < np.inf:
        return np.empty(0)
    path = np.geomspace(begin, model.C, PATH_LENGTH)
    path[-1] = model.C
    return path


def _with_names(X: Any, checked: Any) -> Any:
    """Return X as it was given where it names its columns, which an estimator remembers."""
    return checked if _get_feature_names(X) is None or issparse(checked) else X


def _not_of_cleanlab(function: Callable[P, R]) -> Callable[P, R]:
    """Answer the keywords of cleanlab's function of the same name with the call to make here."""

    @functools.wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        if given := [name for name in ("labels", "pred_probs") if name in options]:
            raise TypeError(
                f"{function.__name__}() takes the samples `X` and the labels `y`, got "
                f"{' and '.join(f'`{name}`' for name in given)}, which are cleanlab's; predicted "
                f"probabilities are not needed: {function.__name__}(X, labels), or with a "
                f"classifier of your own {function.__name__}(X, labels, estimator)"
            )
        return function(*args, **options)

    return checked


@_not_of_cleanlab
def find_label_issues(
    X: Any,
    y: Any,
    estimator: Any = None,
    *,
    return_indices_ranked_by: Literal["label_quality"] | None = None,
    max_epochs: int = 20,
    n_jobs: int | None = None,
    random_state: Any = None,
) -> NDArray[Any]:
    """Return which labels are probably wrong.

    Parameters
    ----------
    X : array-like or sparse of shape (n_samples, n_features)
        Samples.
    y : array-like of shape (n_samples,)
        Labels.
    estimator : estimator, optional
        What to train, see `LabelIssues`.
    return_indices_ranked_by : {"label_quality"}, optional
        Return the indices of the issues, the most suspicious first, instead of a mask.
    max_epochs, n_jobs, random_state
        See `LabelIssues`.

    Returns
    -------
    boolean array of shape (n_samples,), or integer array of shape (n_issues,)
        True where there is an issue; or the indices of the issues.

    Raises
    ------
    TypeError, ValueError
        As `LabelIssues`; on the arguments of cleanlab's function, with the call to make here.

    Notes
    -----
    cleanlab's function of this name starts from predicted probabilities. Cost, method and
    reference: see `LabelIssues`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from gwa_sklearn import find_label_issues
    >>> X, y = load_digits(return_X_y=True)
    >>> y[:3] = (y[:3] + 5) % 10
    >>> ranked = find_label_issues(X, y, return_indices_ranked_by="label_quality", random_state=0)
    >>> np.isin([0, 1, 2], ranked)
    array([ True,  True,  True])
    """
    if return_indices_ranked_by not in (None, "label_quality"):
        raise ValueError(
            "`return_indices_ranked_by` must be None or 'label_quality', got "
            f"{return_indices_ranked_by!r}; the scores that cleanlab knows by other names need "
            "predicted probabilities, which are not made here"
        )
    found: LabelIssues = LabelIssues(
        estimator, max_epochs=max_epochs, n_jobs=n_jobs, random_state=random_state
    ).fit(X, y)
    if return_indices_ranked_by is None:
        return found.issues_
    return found.ranked_indices_[: found.issues_.sum()]


@_not_of_cleanlab
def get_label_quality_scores(
    X: Any,
    y: Any,
    estimator: Any = None,
    *,
    max_epochs: int = 20,
    n_jobs: int | None = None,
    random_state: Any = None,
) -> NDArray[Any]:
    """Return one number a sample: how far its label can be trusted.

    Parameters
    ----------
    X, y, estimator, max_epochs, n_jobs, random_state
        See `find_label_issues`.

    Returns
    -------
    array of shape (n_samples,)
        In [0, 1], low = suspicious. Not a probability.

    Raises
    ------
    TypeError, ValueError
        As `LabelIssues`; on the arguments of cleanlab's function, with the call to make here.

    Notes
    -----
    cleanlab's function of this name starts from predicted probabilities. Cost, method and
    reference: see `LabelIssues`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from gwa_sklearn import get_label_quality_scores
    >>> X, y = load_digits(return_X_y=True)
    >>> y[0] = 7  # a zero
    >>> quality = get_label_quality_scores(X, y, random_state=0)
    >>> bool(quality[0] < 0.5)
    True
    """
    options = {"max_epochs": max_epochs, "n_jobs": n_jobs, "random_state": random_state}
    found: LabelIssues = LabelIssues(estimator, **options).fit(X, y)
    return found.label_quality_
