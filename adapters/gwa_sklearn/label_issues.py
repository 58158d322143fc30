"""Which labels of a training set to look at, from one training on all of it."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar, Literal, Self

import numpy as np
from joblib import effective_n_jobs  # type: ignore[import-untyped]
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn import config_context
from sklearn.base import BaseEstimator, MetaEstimatorMixin, _fit_context
from sklearn.pipeline import Pipeline
from sklearn.utils import (
    assert_all_finite,
    check_array,
    check_consistent_length,
    check_random_state,
    column_or_1d,
    get_tags,
)
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data
from threadpoolctl import threadpool_limits

from gwa_core import EpochSummary, epoch_weights, label_quality, rank_samples
from gwa_sklearn._label_training import default_estimator, train_watched, untrained
from gwa_sklearn._training import first_steps, last_step

__all__ = ["LabelIssues", "find_label_issues", "get_label_quality_scores"]

FLOATS = (np.float64, np.float32)

# The label quality of a row whose pulls with and against the weights cancel.
THRESHOLD = 0.5


class LabelIssues(MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    r"""Find labels that are probably wrong, by training once on all rows.

    .. math:: q_i = \frac 1 2 \left(1 + \frac {\sum_t w_t \gamma_{t,i}} {\sum_t w_t}\right)

    After each epoch every row gets its alignment score :math:`\gamma_{t,i}`. Epochs count by how
    far right and wrong labels stand apart in them (`gwa_core.epoch_weights`). A row below one half,
    which pulled against the head's weights on average, is an issue.

    Parameters
    ----------
    estimator : estimator, optional
        What to train: a classifier that `latents_and_head` supports, also as the last step of a
        `Pipeline`, whose other steps are fitted first. One with `partial_fit` is trained for
        `max_epochs`; a `LogisticRegression` five times with `C` growing to its own; another one,
        such as a search, once. Default for dense X: `StandardScaler` and an `MLPClassifier` of
        100 hidden units; for sparse X: `Normalizer` and a `SGDClassifier`.
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
        all of one class, or X and y do not fit.

    Notes
    -----
    The threshold is no estimate of the number of wrong labels: where many are wrong it finds too
    few, and classes that overlap have rows below one half though their labels are right. It has no
    option; go down `ranked_indices_` as far as pays.

    Cost: one training, and one forward pass an epoch. Memory: 4 T bytes a row for T epochs.

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
        with threadpool_limits(None if self.n_jobs is None else effective_n_jobs(self.n_jobs)):
            if isinstance(estimator, Pipeline):
                X = self._first_steps(estimator, X, y)
            model = last_step(estimator)
            # The whole of X was checked once.
            with config_context(assume_finite=True):
                self.history_, scores = train_watched(model, X, y, self.max_epochs, self.classes_)
        self.estimator_ = estimator
        # Later epochs learn wrong labels by heart; each C of a path begins anew.
        weights = epoch_weights(self.history_) if hasattr(model, "partial_fit") else None
        self.label_quality_ = label_quality(scores, weights=weights, method="mean")
        self.issues_ = self.label_quality_ < THRESHOLD
        self.ranked_indices_ = rank_samples(self.label_quality_, k=len(y))
        return self

    def _check(self, X: Any, y: Any) -> tuple[Any, NDArray[Any]]:
        if isinstance(self.estimator, Pipeline):
            # Its first step may take text: only names and y can be checked before.
            X, y = validate_data(self, X, y, skip_check_array=True)
            check_consistent_length(X, y)
        else:
            X, y = validate_data(self, X, y, accept_sparse="csr", dtype=FLOATS)
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
        return check_array(X, accept_sparse="csr", dtype=FLOATS, estimator=self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.sparse = True
        if self.estimator is not None:
            tags.input_tags = get_tags(self.estimator).input_tags
        return tags


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
        As those of `LabelIssues`.

    Returns
    -------
    boolean array of shape (n_samples,), or integer array of shape (n_issues,)
        True where there is an issue; or the indices of the issues.

    Raises
    ------
    TypeError, ValueError
        As `LabelIssues`.

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
        As those of `find_label_issues`.

    Returns
    -------
    array of shape (n_samples,)
        In [0, 1], low = suspicious. Not a probability.

    Raises
    ------
    TypeError, ValueError
        As `LabelIssues`.

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
