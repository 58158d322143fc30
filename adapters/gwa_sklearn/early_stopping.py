"""A classifier that is trained on all rows, with the weights of its best epoch or their average."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Collection
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, _fit_context
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_random_state, get_tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import (
    _check_feature_names,
    _get_feature_names,
    check_is_fitted,
    validate_data,
)

from gwa_core import EpochSummary, MaxBimodality, Rule
from gwa_core.signals import TrackedSignals
from gwa_offline.store import RunFolder
from gwa_sklearn._averaging import WeightAverage
from gwa_sklearn._training import (
    Best,
    TrainingSet,
    balance,
    default_batch_size,
    first_steps,
    last_step,
    names_and_labels,
    too_large_steps,
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


def _with_last_step(estimator: Any, model: Any) -> Any:
    """Return the estimator with another model in it."""
    if not isinstance(estimator, Pipeline):
        return model
    estimator.steps[-1] = (estimator.steps[-1][0], model)
    return estimator


class GWAEarlyStoppingClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    r"""Train a classifier on all rows, and keep the weights of the best epoch, or an average.

    It replaces the early stopping of `SGDClassifier` and `MLPClassifier`, which hold out a tenth of
    the rows: here the alignment of the training samples says how good an epoch is.

    Parameters
    ----------
    estimator : estimator, optional
        ``SGDClassifier(loss="log_loss")`` or `MLPClassifier` with solver "adam" or "sgd", alone or
        at the end of a `Pipeline`, whose first steps are fitted once. Default
        ``SGDClassifier(loss="log_loss", average=True)``: without the average the weights at the end
        of an epoch depend on its last samples. ``class_weight="balanced"`` counts all of `y`.
    rule : Rule, optional
        Which epoch is the best, and when to stop. Default ``MaxBimodality(patience=10)``, because
        `MaxSeparation` can be late in a linear model. A rule without `patience` sees all of
        `max_epochs`; under ``keep="average"`` the default one has none. It watches a field of the
        epoch summaries, or one of `signals`: ``LabelWave()`` needs ``signals="prediction_changes"``.
    max_epochs : int
        Epochs at most, default 100.
    batch_size : int, optional
        Rows that a call of ``partial_fit`` gets. Default 200, and up to 1000 as long as an epoch
        has ten batches; for `MLPClassifier` a multiple of its own mini-batches, which lie inside.
    shuffle : bool
        Shuffle the rows before each epoch, default True.
    warm_start : bool
        Let a further ``fit`` go on from the best epoch, for `max_epochs` more. The history is cut
        there, and the best epoch competes with the new ones. Under ``keep="average"`` it goes on
        from the last epoch, and so do the history and the average.
    signals : str or collection of str
        Keys of ``gwa_core.signals.SIGNALS`` to follow beside the scores, default none.
    run_folder : path, optional
        Folder in which to write each epoch as it ends: its summary, scores and predictions by row, and
        the means of the signals. ``gwa analyse`` and `gwa_offline.store.RunFolder` read it. One fit
        needs one folder, so leave it out inside a search. With `warm_start` a further ``fit`` goes
        on in the same folder.
    keep : {"best", "average"}
        The weights to predict from: the weights of the best epoch, the default, or the mean of the
        weights at the ends of all epochs, see the notes. The rule stops the training in both.
    random_state : int, RandomState or None
        Of the shuffling, and of the seeds that `estimator` leaves unset.

    Attributes
    ----------
    estimator_ : estimator
        The fitted estimator as it was after the best epoch, or with the average of its weights.
    classes_ : array of shape (n_classes,)
        Labels.
    n_features_in_ : int
        Number of features, where `estimator` is no pipeline or X tells.
    feature_names_in_ : array of shape (n_features_in_,)
        Names of features, where X has them.
    history_ : list of EpochSummary
        One summary an epoch.
    best_epoch_ : int
        Position of the best epoch by the rule in `history_`; the last one where none qualifies.
    stopping_reason_ : str
        Why this epoch is the best, and why the rule stopped if it did.
    n_iter_ : int
        Number of epochs in `history_`.
    shares_ : array of shape (n_iter_,) or None
        The share of each epoch in the average of the weights; they sum to one.
    alignment_ : array of shape (n_samples,)
        Score of each row in the best epoch, low = suspicious; nan for rows of weight 0.
    label_quality_ : array of shape (n_samples,)
        How far each label can be trusted, over all epochs of `history_`: in [0, 1], low =
        suspicious; nan for rows of weight 0. See `gwa_core.LabelQuality`. After a further ``fit``
        with `warm_start` it covers both fits if they have as many rows, else the last one. It warns
        for a `SGDClassifier` with its default steps and more than two classes, as the default
        estimator is: see the notes of `LabelIssues`.
    signals_ : TrackedSignals or None
        The signals of the last ``fit``, of all its epochs, also those after the best one.

    Raises
    ------
    TypeError, ValueError
        In ``fit``, on an estimator that can't be trained in this way, with the reason; on data
        that don't fit; on a rule that watches what is not there, with what is; on signals of an
        estimator with a sigmoid for each of several classes, as the default one has; on a
        `run_folder` that already holds a run.

    Notes
    -----
    A batch is scored before its step, with the weights of that moment, so the scores come from a
    training in progress. Only the very first batch is scored after its step,
    which makes the weights.

    The average is the mean of the weights at the ends of the epochs after the first. An epoch has
    the share :math:`b_t^5 / \sum_u b_u^5` in it by its bimodality b, see `gwa_core.EpochAverage`.
    The training goes on with its own weights. Of ``SGDClassifier(average=True)`` the averaged
    weights are averaged, from which it predicts. `best_epoch_` and `alignment_` are then those of
    the rule alone, and the history has all epochs.

    Cost: beside the training one product with the weights and O(NC) an epoch; for a network a
    forward pass. Memory: O(N), a batch, and two copies of the model; under ``keep="average"`` one
    of them is in float64, and a third is made at the end. X is not copied if its dtype is numeric.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Algorithm 1 and Sec. 4.1. Izmailov et al., UAI 2018,
    for a mean of weights in which all epochs count alike.

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

    The labels to look at first:

    >>> from gwa_sklearn import rank_samples
    >>> suspicious = rank_samples(model.label_quality_, k=100)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [HasMethods(["fit", "predict"]), None],
        "rule": [HasMethods(["begin", "advance"]), None],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "shuffle": ["boolean"],
        "warm_start": ["boolean"],
        "signals": [Collection, None],
        "run_folder": [str, os.PathLike, None],
        "keep": [StrOptions({"best", "average"})],
        "random_state": ["random_state"],
    }

    estimator_: Any
    alignment_: NDArray[Any]
    best_epoch_: int
    history_: list[EpochSummary]
    signals_: TrackedSignals | None
    shares_: NDArray[np.float64] | None
    _best: Best
    # The mean of the weights, where it is kept.
    _average: WeightAverage | None = None
    _label_quality: NDArray[Any]
    # Where the last fit has written its run.
    _written: Path | None = None

    def __init__(
        self,
        estimator: Any = None,
        *,
        rule: Rule | None = None,
        max_epochs: int = 100,
        batch_size: int | None = None,
        shuffle: bool = True,
        warm_start: bool = False,
        signals: Collection[str] | None = None,
        run_folder: str | os.PathLike[str] | None = None,
        keep: Literal["best", "average"] = "best",
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.rule = rule
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.warm_start = warm_start
        self.signals = signals
        self.run_folder = run_folder
        self.keep = keep
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
        estimator, average, history = self._begin(rng, going_on)
        data, named = self._prepare(estimator, X, y, sample_weight, going_on)
        model, rows = last_step(estimator), data.rows
        count, known = (rows, data.y) if isinstance(rows, int) else (len(rows), data.y[rows])
        balance(model, getattr(last_step(self._template()), "class_weight", None), known)
        # Batches have no names.
        _check_feature_names(model, data.X, reset=True)
        signals = TrackedSignals(self.signals, data.X.shape[0]) if self.signals else None
        best, quality, reason = train(
            model,
            data,
            rule=self._rule(),
            max_epochs=self.max_epochs,
            batch_size=self.batch_size or default_batch_size(model, count),
            rng=rng if self.shuffle else None,
            before=self._best if going_on else None,
            history=history,
            signals=signals,
            start_run=None if self.run_folder is None else self._starter(data, len(history)),
            average=average,
        )
        model = best.model if average is None else average.applied_to(best.model)
        _check_feature_names(model, named, reset=True)
        self._best, self._average = best, average
        self.estimator_ = _with_last_step(estimator, model)
        self.shares_ = None if average is None else average.shares(history)
        self.classes_ = data.classes
        self.history_, self.n_iter_ = history, len(history)
        self.alignment_, self.best_epoch_ = best.scores, best.epoch
        self._label_quality = np.asarray(quality.value)
        self._written = None if self.run_folder is None else Path(self.run_folder).resolve()
        self.stopping_reason_, self.signals_ = reason, signals
        return self

    def _begin(
        self, rng: np.random.RandomState, going_on: bool
    ) -> tuple[Any, WeightAverage | None, list[EpochSummary]]:
        """Return what is trained, the mean of its weights, and the epochs that it has seen."""
        averages = self.keep == "average"
        if not going_on:
            return untrained(self._template(), rng), WeightAverage() if averages else None, []
        if averages != (self._average is not None):
            before = "best" if averages else "average"
            raise ValueError(
                f"`keep` must stay {before!r} with `warm_start`, got {self.keep!r}; the weights of "
                "the epochs before are gone"
            )
        # The model in training is not the one that predicts, where weights are averaged.
        estimator, model, average = copy.deepcopy(
            (self.estimator_, self._best.model, self._average)
        )
        # What came after the best epoch belongs to weights that are gone.
        end = self.n_iter_ if averages else self.best_epoch_ + 1
        return _with_last_step(estimator, model), average, self.history_[:end]

    def _rule(self) -> Rule:
        """Return the rule; the default one ends no average."""
        if self.rule is not None:
            return self.rule
        return MaxBimodality(patience=PATIENCE if self.keep == "best" else None)

    @property
    def label_quality_(self) -> NDArray[Any]:
        """How far each label can be trusted, over all epochs of `history_`."""
        if too_large_steps(last_step(self.estimator_), len(self.classes_)):
            warnings.warn(
                "`label_quality_` is unsteady under the default steps of SGDClassifier with "
                f"{len(self.classes_)} classes: a third to a half of right labels may be below one "
                "half. Say SGDClassifier(loss='log_loss', learning_rate='constant', eta0=0.01, "
                "average=True), or take an MLPClassifier",
                UserWarning,
                stacklevel=2,
            )
        return self._label_quality

    def _starter(self, data: TrainingSet, epoch: int) -> Callable[[str], RunFolder]:
        """Return what opens the folder of a run whose next epoch is given."""
        folder = Path(self.run_folder or "")

        def start(loss: str) -> RunFolder:
            if epoch and self._written == folder.resolve() and (folder / "run.json").exists():
                run = RunFolder.open(folder)
                if run.num_samples == data.X.shape[0]:
                    return run.truncate(epoch)
            # Refuses a folder that has a run, be it of another model or of other rows.
            return RunFolder.create(
                folder,
                num_samples=data.X.shape[0],
                num_classes=len(data.classes),
                class_names=[str(name) for name in data.classes],
                adapter="sklearn",
                loss=loss,
                targets=data.targets,
            )

        return start

    def _template(self) -> Any:
        if self.estimator is not None:
            return self.estimator
        default = SGDClassifier(loss="log_loss", average=True)
        return (
            default.set_partial_fit_request(sample_weight=True) if _routing_enabled() else default
        )

    def _prepare(
        self, estimator: Any, X: Any, y: Any, sample_weight: Any, going_on: bool
    ) -> tuple[TrainingSet, Any]:
        """Check the data, and let the first steps of a pipeline work on them.

        Returns the training set, and X as the last step gets it, with the names of its columns.
        """
        first_options, weighted = self._route(sample_weight)
        if isinstance(estimator, Pipeline):
            X, y = names_and_labels(self, X, y, reset=not going_on)
            if len(estimator) > 1:
                X = first_steps(estimator, X, y, None if going_on else first_options)
            named, X = X, check_array(X, accept_sparse="csr", dtype="numeric", estimator=self)
        else:
            named = X
            X, y = validate_data(
                self, X, y, accept_sparse="csr", dtype="numeric", reset=not going_on
            )
        known = self.classes_ if going_on else None
        return training_set(X, y, known, sample_weight, weighted=weighted), named

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
        estimator, inputs = self._inside(X)
        return getattr(estimator, method)(inputs)

    def _inside(self, X: Any) -> tuple[Any, Any]:
        """Return the estimator inside, and X as it was given it: checked, or with its names."""
        check_is_fitted(self)
        if isinstance(self.estimator_, Pipeline):
            return self.estimator_, X
        # The estimator looks at the values itself.
        checked = validate_data(
            self, X, reset=False, accept_sparse="csr", dtype=None, ensure_all_finite=False
        )
        return self.estimator_, checked if _get_feature_names(X) is None else X

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self._template()).input_tags
        return tags
