"""A classifier that is trained on all rows, and kept as it was in the best epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from numbers import Integral
from typing import Any, ClassVar, Self

from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, _fit_context
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_random_state, get_tags
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from gwa_core import EpochSummary, MaxBimodality, Rule
from gwa_core.signals import TrackedSignals
from gwa_sklearn._training import (
    Kept,
    TrainingSet,
    default_batch_size,
    first_steps,
    last_step,
    names_and_labels,
    train,
    training_set,
    untrained,
)

__all__ = ["GWAEarlyStoppingClassifier"]

# Epochs without improvement after which the default rule stops.
PATIENCE = 10


def _offers(name: str) -> Callable[[Any], bool]:
    """Return the check that the estimator inside has a method."""

    def check(self: GWAEarlyStoppingClassifier) -> bool:
        # Its own AttributeError says why not.
        getattr(self.estimator_ if hasattr(self, "estimator_") else self._template(), name)
        return True

    return check


class GWAEarlyStoppingClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """Train a classifier on all rows, and keep it as it was in the best epoch.

    Early stopping as that of `SGDClassifier` and `MLPClassifier`, without the tenth of the rows
    that they hold out: each epoch is judged by the alignment of the training samples.

    Parameters
    ----------
    estimator : estimator, optional
        ``SGDClassifier(loss="log_loss")`` or `MLPClassifier` with solver "adam" or "sgd", alone or
        at the end of a `Pipeline`, whose first steps are fitted once. Default
        ``SGDClassifier(loss="log_loss", average=True)``: without the average an epoch's end is a
        matter of its last samples.
    rule : Rule, optional
        Which epoch to keep, and when to stop. Default ``MaxBimodality(patience=10)``, as in a linear
        model `MaxSeparation` can be late; without `patience` a rule sees all of `max_epochs`.
    max_epochs : int
        Epochs at most, default 100.
    batch_size : int, optional
        Rows that a call of ``partial_fit`` gets. Default 200, and up to 1000 as long as an epoch
        has ten batches; for `MLPClassifier` a multiple of its own mini-batches, which lie inside.
    shuffle : bool
        Shuffle the rows before each epoch, default True.
    warm_start : bool
        Let a further ``fit`` go on from the kept epoch, for `max_epochs` more. The history is cut
        there, and the kept epoch competes with the new ones.
    signals : str or collection of str
        Keys of ``gwa_core.signals.SIGNALS`` to follow beside the scores, default none. The rule
        does not look at them.
    random_state : int, RandomState or None
        Of the shuffling, and of the seeds that `estimator` leaves unset.

    Attributes
    ----------
    estimator_ : estimator
        The fitted estimator as it was after the kept epoch.
    classes_ : array of shape (n_classes,)
        Labels.
    n_features_in_ : int
        Number of features, where `estimator` is no pipeline or X tells.
    feature_names_in_ : array of shape (n_features_in_,)
        Names of features, where X has them.
    history_ : list of EpochSummary
        One summary an epoch.
    best_epoch_ : int
        Position of the kept epoch in `history_`; the last one where none qualifies.
    stopping_reason_ : str
        Why this epoch, and why the rule stopped if it did.
    n_iter_ : int
        Number of epochs in `history_`.
    alignment_ : array of shape (n_samples,)
        Score of each row in the kept epoch, low = suspicious; nan for rows of weight 0.
    signals_ : TrackedSignals or None
        The signals of the last ``fit``, of all its epochs, also those after the kept one.

    Raises
    ------
    TypeError, ValueError
        In ``fit``, on an estimator that can't be trained in this way, with the reason; on data
        that don't fit; on signals of an estimator with a sigmoid for each of several classes, as
        the default one has.

    Notes
    -----
    A batch is scored before its step, with the weights of that moment, so that the scores of an
    epoch are those of a training in progress. Only the first batch of all is scored after its step,
    which makes the weights.

    Cost: beside the training one product with the weights and O(NC) an epoch; for a network a
    forward pass. Memory: O(N), a batch, and two copies of the model; X is not copied if its dtype
    is numeric.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Algorithm 1 and Sec. 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_sklearn import GWAEarlyStoppingClassifier
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neural_network import MLPClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> train, test = np.split(np.random.default_rng(0).permutation(len(y)), [1297])
    >>> network = MLPClassifier((128,), batch_size=32)
    >>> model = GWAEarlyStoppingClassifier(network, random_state=0).fit(X[train] / 16.0, y[train])
    >>> bool(model.score(X[test] / 16.0, y[test]) > 0.95), model.n_iter_ < 100
    (True, True)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [HasMethods(["fit", "predict"]), None],
        "rule": [HasMethods(["begin", "advance"]), None],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "shuffle": ["boolean"],
        "warm_start": ["boolean"],
        "signals": [Collection],
        "random_state": ["random_state"],
    }

    estimator_: Any
    alignment_: Any
    best_epoch_: int
    history_: list[EpochSummary]
    signals_: TrackedSignals | None

    def __init__(
        self,
        estimator: Any = None,
        *,
        rule: Rule | None = None,
        max_epochs: int = 100,
        batch_size: int | None = None,
        shuffle: bool = True,
        warm_start: bool = False,
        signals: Collection[str] = (),
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.rule = rule
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.warm_start = warm_start
        self.signals = signals
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train until the rule stops or `max_epochs` are over.

        Parameters
        ----------
        X : array-like or sparse of shape (n_samples, n_features)
            Training data; for a pipeline, whatever its first step takes. Sparse rows stay sparse.
        y : array-like of shape (n_samples,)
            Labels, strings too. A batch may lack some of them.
        sample_weight : array-like of shape (n_samples,), optional
            At least 0, passed on to ``partial_fit``; a row of weight 0 is left out, and the rule
            counts any other once. With metadata routing it must be requested from `estimator` by
            ``set_partial_fit_request``, and inside other estimators from this class by
            ``set_fit_request``.

        Returns
        -------
        self
        """
        rng = check_random_state(self.random_state)
        going_on = self.warm_start and hasattr(self, "estimator_")
        estimator = copy.deepcopy(self.estimator_) if going_on else untrained(self._template(), rng)
        data = self._prepare(estimator, X, y, sample_weight, going_on)
        before, history = None, []
        if going_on:
            # What came after the kept epoch belongs to weights that are gone.
            history = self.history_[: self.best_epoch_ + 1]
            before = Kept(last_step(self.estimator_), self.alignment_, self.best_epoch_)
        signals = TrackedSignals(self.signals, data.X.shape[0]) if len(self.signals) else None
        rows = data.rows if isinstance(data.rows, int) else len(data.rows)
        kept, reason = train(
            last_step(estimator),
            data,
            rule=MaxBimodality(patience=PATIENCE) if self.rule is None else self.rule,
            max_epochs=self.max_epochs,
            batch_size=self.batch_size or default_batch_size(last_step(estimator), rows),
            rng=rng if self.shuffle else None,
            before=before,
            history=history,
            signals=signals,
        )
        if isinstance(estimator, Pipeline):
            estimator.steps[-1] = (estimator.steps[-1][0], kept.model)
        self.estimator_ = estimator if isinstance(estimator, Pipeline) else kept.model
        self.classes_ = data.classes
        self.history_, self.n_iter_ = history, len(history)
        self.alignment_, self.best_epoch_ = kept.scores, kept.epoch
        self.stopping_reason_, self.signals_ = reason, signals
        return self

    def _template(self) -> Any:
        if self.estimator is not None:
            return self.estimator
        default = SGDClassifier(loss="log_loss", average=True)
        return (
            default.set_partial_fit_request(sample_weight=True) if _routing_enabled() else default
        )

    def _prepare(
        self, estimator: Any, X: Any, y: Any, sample_weight: Any, going_on: bool
    ) -> TrainingSet:
        """Check the data, and let the first steps of a pipeline work on them."""
        first_options, weighted = self._route(sample_weight)
        if isinstance(estimator, Pipeline):
            X, y = names_and_labels(self, X, y, reset=not going_on)
            if len(estimator) > 1:
                X = first_steps(estimator, X, y, None if going_on else first_options)
            X = check_array(X, accept_sparse="csr", dtype="numeric", estimator=self)
        else:
            X, y = validate_data(
                self, X, y, accept_sparse="csr", dtype="numeric", reset=not going_on
            )
        known = self.classes_ if going_on else None
        return training_set(X, y, known, sample_weight, weighted=weighted)

    def _route(self, sample_weight: Any) -> tuple[dict[str, Any], bool]:
        """Return the options of the first steps, and whether `partial_fit` gets the weights."""
        if sample_weight is None:
            return {}, False
        if _routing_enabled():
            routed = process_routing(self, "fit", sample_weight=sample_weight)
            first = routed["transformers"]["fit_transform"] if "transformers" in routed else {}
            return first, "sample_weight" in routed["estimator"]["partial_fit"]
        return {}, True

    def get_metadata_routing(self) -> MetadataRouter:
        """Return where `sample_weight` goes: to this class, and on to `partial_fit`."""
        estimator = self._template()
        router = MetadataRouter(owner=self).add_self_request(self)
        router.add(
            estimator=last_step(estimator),
            method_mapping=MethodMapping().add(caller="fit", callee="partial_fit"),
        )
        if isinstance(estimator, Pipeline) and len(estimator) > 1:
            router.add(
                transformers=estimator[:-1],
                method_mapping=MethodMapping().add(caller="fit", callee="fit_transform"),
            )
        return router

    @available_if(_offers("predict"))
    def predict(self, X: Any) -> Any:
        """Return the label of each sample."""
        return self._ask("predict", X)

    @available_if(_offers("predict_proba"))
    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each class for each sample."""
        return self._ask("predict_proba", X)

    @available_if(_offers("decision_function"))
    def decision_function(self, X: Any) -> Any:
        """Return the estimator's decision values of each sample."""
        return self._ask("decision_function", X)

    def _ask(self, method: str, X: Any) -> Any:
        inputs = self._inputs(X)
        return getattr(self.estimator_, method)(inputs)

    def _inputs(self, X: Any) -> Any:
        """Return X as the estimator inside was given it: checked, but for a pipeline as it is."""
        check_is_fitted(self)
        if isinstance(self.estimator_, Pipeline):
            return X
        # The estimator looks at the values itself.
        return validate_data(
            self, X, reset=False, accept_sparse="csr", dtype=None, ensure_all_finite=False
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self._template()).input_tags
        return tags
