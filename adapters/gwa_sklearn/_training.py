"""Epochs of `partial_fit`, each summed up, and the model as it was in the best of them."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data

from gwa_core import EarlyStopper, EpochSummary, GWATracker, Rule
from gwa_core.signals import TrackedSignals
from gwa_sklearn._batches import BatchScorer, batches, floating
from gwa_sklearn.heads import find_classifiers

__all__ = [
    "Kept",
    "TrainingSet",
    "default_batch_size",
    "first_steps",
    "last_step",
    "names_and_labels",
    "train",
    "training_set",
    "untrained",
]

# Scores that are summed up at once: few enough to stay in the cache, enough to cost little.
BLOCK_SCORES = 1 << 16


def last_step(estimator: Any) -> Any:
    """Return what learns: the last step of a pipeline, or the estimator itself."""
    return estimator[-1] if isinstance(estimator, Pipeline) else estimator


def untrained(estimator: Any, rng: np.random.RandomState) -> Any:
    """Return a clone whose seeds are set, or say why it can't be trained by epochs."""
    estimator = clone(estimator)
    model = last_step(estimator)
    # It looks at the kind and the loss before it asks whether the model is fitted.
    with suppress(NotFittedError):
        next(find_classifiers(model, None))
    learns = isinstance(model, (SGDClassifier, MLPClassifier)) and hasattr(model, "partial_fit")
    if not learns:
        raise TypeError(
            "`estimator` must learn by partial_fit: SGDClassifier(loss='log_loss') or "
            "MLPClassifier with solver 'adam' or 'sgd', alone or at the end of a Pipeline, got "
            f"{model!r}; without epochs there is none to keep"
        )
    unset = {
        name: rng.randint(np.iinfo(np.int32).max)
        for name, value in sorted(estimator.get_params().items())
        if name.rpartition("__")[2] == "random_state" and value is None
    }
    return estimator.set_params(**unset)


def names_and_labels(owner: Any, X: Any, y: Any, *, reset: bool) -> tuple[Any, NDArray[Any]]:
    """Check y, and of X the names alone: the first step of a pipeline may take text."""
    X, y = validate_data(owner, X, y, skip_check_array=True, reset=reset)
    y = column_or_1d(y, warn=True)
    assert_all_finite(y, input_name="y")
    check_consistent_length(X, y)
    return X, y


def first_steps(pipeline: Pipeline, X: Any, y: NDArray[Any], options: dict[str, Any] | None) -> Any:
    """Return X after all steps but the last, which are fitted with the options unless None."""
    first = pipeline[:-1]
    X = first.transform(X) if options is None else first.fit_transform(X, y, **options)
    # With a memory these are clones.
    pipeline.steps[:-1] = first.steps
    return X


def _encode(y: NDArray[Any], known: NDArray[Any] | None) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the classes, those of an earlier fit where given, and the positions of y in them."""
    check_classification_targets(y)
    classes, targets = np.unique(y, return_inverse=True)
    if known is None:
        if len(classes) < 2:
            only = classes.tolist()[0]
            raise ValueError(f"`y` must have two classes or more, got one class, {only!r}")
        return classes, targets
    new = np.setdiff1d(classes, known)
    if len(new):
        raise ValueError(
            f"`y` must have classes of the first fit only, got {new.tolist()} too; warm_start goes "
            "on with the outputs there are"
        )
    return known, np.searchsorted(known, y)


def _own_batch_size(model: Any) -> int:
    """Return the mini-batch that a network asks for, or 0."""
    size = model.batch_size if isinstance(model, MLPClassifier) else 0
    return 0 if size == "auto" else int(size)


def default_batch_size(model: Any, rows: int) -> int:
    """Return 200 rows, and up to 1000 as long as an epoch has ten batches.

    A multiple of the mini-batch of a network, which is 200 by default, so that it takes no short
    step inside.
    """
    own = _own_batch_size(model) or 200
    return own * max(1, min(rows // (10 * own), 1000 // own))


class TrainingSet(NamedTuple):
    """The checked data of a fit.

    Parameters
    ----------
    X : array or sparse array of shape (N, D)
        Of any real dtype.
    y : array of shape (N,)
        Labels as they were given.
    targets : integer array of shape (N,)
        Their positions in `classes`.
    classes : array of shape (C,)
        Labels in order.
    rows : int or integer array
        N, or the rows to train on.
    weight : array of shape (N,) or None
        Sample weights for `partial_fit`.
    """

    X: Any
    y: NDArray[Any]
    targets: NDArray[np.intp]
    classes: NDArray[Any]
    rows: int | NDArray[np.intp]
    weight: NDArray[Any] | None

    def no_scores(self) -> NDArray[Any]:
        """Return nan for each row of X, in the dtype that its scores will have."""
        return np.full(self.X.shape[0], np.nan, np.float32 if self.X.dtype == np.float32 else float)

    def batch(self, rows: Any) -> tuple[Any, NDArray[Any], dict[str, Any]]:
        """Return X, y and the options of `partial_fit` for some rows."""
        options = {} if self.weight is None else {"sample_weight": self.weight[rows]}
        return floating(self.X[rows]), self.y[rows], options


def training_set(
    X: Any, y: NDArray[Any], known: NDArray[Any] | None, sample_weight: Any, *, weighted: bool
) -> TrainingSet:
    """Return the data of a fit; `weighted` tells whether `partial_fit` gets the weights."""
    classes, targets = _encode(y, known)
    rows, weight = X.shape[0], None
    if sample_weight is not None:
        weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        # A weight of 0 leaves a row out; a batch of nothing else could not be trained on.
        rows = np.flatnonzero(weight) if (weight == 0).any() else rows
        weight = weight if weighted else None
    return TrainingSet(X, y, targets, classes, rows, weight)


class Kept(NamedTuple):
    """A model as it was after an epoch, with the scores of that epoch by row of X."""

    model: Any
    scores: NDArray[Any]
    epoch: int


def train(
    model: Any,
    data: TrainingSet,
    *,
    rule: Rule,
    max_epochs: int,
    batch_size: int,
    rng: np.random.RandomState | None,
    before: Kept | None,
    history: list[EpochSummary],
    signals: TrackedSignals | None,
) -> tuple[Kept, str]:
    """Train the model on; return the epoch that the rule keeps, and why.

    Parameters
    ----------
    model : SGDClassifier or MLPClassifier
        Trained in place.
    data : TrainingSet
        Of the run.
    rule, max_epochs, batch_size
        As those of `GWAEarlyStoppingClassifier`.
    rng : RandomState or None
        Shuffles the rows; None leaves them in order.
    before : Kept or None
        What an earlier fit kept, from which `model` goes on; it competes with the new epochs.
    history : list of EpochSummary
        Epochs up to the one kept before; the new ones are appended.
    signals : TrackedSignals or None
        Follows the new epochs.

    Returns
    -------
    Kept, str
        The last epoch where none qualifies.
    """
    if rule.signal not in (*EpochSummary._fields, "separation"):
        raise ValueError(
            f"`rule` must watch a field of the epoch summaries, got {rule!r}, which watches "
            f"{rule.signal!r}; no held-out rows or predictions are looked at here"
        )
    tracker = GWATracker(keep_scores=False)
    tracker.history = history
    stopper = EarlyStopper(rule, total_steps=len(history) + max_epochs)
    kept = before if before is not None and _is_best(stopper, history[-1]) else None
    scorer = None if before is None else BatchScorer(model, data.X, signals)
    # The whole of X was checked once.
    with config_context(assume_finite=True):
        for epoch in range(len(history), len(history) + max_epochs):
            scores = data.no_scores()
            for rows in batches(data.rows, batch_size, rng, least=_own_batch_size(model)):
                X, y, options = data.batch(rows)
                if scorer is None:
                    # The first step makes the weights.
                    model.partial_fit(X, y, classes=data.classes, **options)
                    scorer = BatchScorer(model, data.X, signals)
                    scores[rows] = scorer.score(X, data.targets[rows], rows)
                else:
                    scores[rows] = scorer.score(X, data.targets[rows], rows)
                    model.partial_fit(X, y, **options)
            _add(tracker, scores if isinstance(data.rows, int) else scores[data.rows])
            if signals is not None:
                signals.end_epoch()
            if _is_best(stopper, tracker.end_epoch()):
                kept = Kept(copy.deepcopy(model), scores, epoch)
            if stopper.should_stop:
                break
    return (kept or Kept(model, scores, epoch)), stopper.reason


def _add(tracker: GWATracker, scores: NDArray[Any]) -> None:
    """Give an epoch's scores to the tracker in blocks that stay in the cache."""
    for begin in range(0, len(scores), BLOCK_SCORES):
        tracker.update(scores[begin : begin + BLOCK_SCORES])


def _is_best(stopper: EarlyStopper, summary: EpochSummary) -> bool:
    """Take in an epoch and return whether it is the one to keep so far."""
    value = getattr(summary, stopper.rule.signal)
    stopper.update(value, step=summary.epoch, healthy=summary.healthy)
    return stopper.best_step == summary.epoch
