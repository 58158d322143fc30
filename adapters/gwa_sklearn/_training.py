"""Epochs of `partial_fit`: batches, their scores, and the model as it was after the best epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d, gen_batches
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.extmath import row_norms
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data

import gwa_core
from gwa_core import EarlyStopper, EpochSummary, GWATracker, LabelQuality, Rule
from gwa_core.signals import SIGNALS, TrackedSignals
from gwa_offline.store import RunFolder
from gwa_sklearn._averaging import WeightAverage
from gwa_sklearn.heads import find_classifiers
from gwa_sklearn.signals import check_signals

__all__ = [
    "BatchScorer",
    "Best",
    "TrainingSet",
    "balance",
    "check_rule",
    "default_batch_size",
    "first_steps",
    "last_step",
    "names_and_labels",
    "train",
    "training_set",
    "untrained",
]

# Rows in a batch, or their positions.
Rows: TypeAlias = slice | NDArray[np.intp]

# Rows whose norms are taken at once where X holds no floating-point numbers.
BLOCK_ROWS = 1 << 12
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


def batches(
    rows: NDArray[np.intp] | int, size: int, rng: np.random.RandomState | None, *, least: int
) -> Iterator[Rows]:
    """Yield the rows of each batch of an epoch: of those given, or of so many; shuffled by `rng`.

    A last batch of fewer than `least` rows goes into the one before. All rows in order come as
    slices, which copy nothing of a dense X.
    """
    if rng is not None:
        rows = rng.permutation(rows)
    count = rows if isinstance(rows, int) else len(rows)
    for part in gen_batches(count, size, min_batch_size=least):
        yield part if isinstance(rows, int) else rows[part]


def floating(X: Any) -> Any:
    """Return X in a dtype that scikit-learn trains in; a copy only where it is of another.

    A batch at a time, so that images in bytes never lie in memory as float64.
    """
    return X if X.dtype in (np.float32, np.float64) else X.astype(np.float64)


class BatchScorer:
    """Scores batches of X with the weights that the model has at the moment.

    Parameters
    ----------
    model : SGDClassifier or MLPClassifier
        After its first step, which makes the weights. It may be trained on.
    X : array or sparse array of shape (N, D)
        The whole training set.
    signals : TrackedSignals or None
        What follows signals of the same batches, by row of X.
    predictions : int32 array of shape (N,) or None
        Where the predicted class of each row of X goes.
    """

    def __init__(
        self,
        model: Any,
        X: Any,
        signals: TrackedSignals | None = None,
        predictions: NDArray[np.int32] | None = None,
    ) -> None:
        found = next(find_classifiers(model, floating(X[:1])))
        self.signals = signals
        self.predictions = predictions
        if signals is not None:
            check_signals(found, model)
            self.ids = np.arange(X.shape[0])
        self.model = model
        self.loss = found.loss
        self.hidden = isinstance(model, MLPClassifier) and model.n_layers_ > 2
        # The latents of a linear model are X, whose norms don't change while it learns.
        self.norms = None if self.hidden else _row_norms(X)

    def score(self, X: Any, targets: NDArray[np.intp], rows: Rows) -> Any:
        """Return the alignment scores of a batch X, which are these rows of the training set."""
        if self.norms is None:
            found = next(find_classifiers(self.model, X))
            latents = found.latents()
            logits = found.logits(latents)
            self._follow(logits, latents, targets, rows)
            return gwa_core.alignment_scores(
                latents=latents,
                weight=found.weight,
                logits=logits,
                bias=found.bias,
                targets=targets,
                loss=self.loss,
            )
        weight, bias = _linear_head(self.model)
        logits = _product(X, weight)
        logits += bias
        # Of the latents only the norms are looked at.
        self._follow(logits, self.norms[rows, None], targets, rows)
        return gwa_core.alignment_from_logits(
            logits=logits,
            latent_norms=self.norms[rows],
            weight_norm=np.linalg.norm(weight),
            bias=bias.astype(logits.dtype, copy=False),
            targets=targets,
            loss=self.loss,
        )

    def _follow(self, logits: Any, latents: Any, targets: NDArray[np.intp], rows: Rows) -> None:
        if self.predictions is not None:
            one = logits.shape[1] == 1
            self.predictions[rows] = logits[:, 0] > 0 if one else logits.argmax(axis=1)
        if self.signals is not None:
            self.signals.update(logits=logits, latents=latents, targets=targets, ids=self.ids[rows])


def _linear_head(model: Any) -> tuple[Any, Any]:
    if isinstance(model, MLPClassifier):  # without hidden layers
        return model.coefs_[0].T, model.intercepts_[0]
    return model.coef_, model.intercept_


def _product(X: Any, weight: Any) -> Any:
    """Return X @ weight.T.

    SciPy would copy the whole of a transposed (C, D) weight for each batch; with a million
    features and a few hundred rows that is most of the time.
    """
    if not sp.issparse(X):
        return X @ weight.T
    return np.stack([X @ output for output in weight], axis=1)


def _row_norms(X: Any) -> Any:
    if X.dtype in (np.float32, np.float64):
        return row_norms(X)
    parts = (row_norms(floating(X[rows])) for rows in gen_batches(X.shape[0], BLOCK_ROWS))
    return np.concatenate(list(parts))


class Best(NamedTuple):
    """The best epoch by the rule, and from where a further fit goes on.

    Parameters
    ----------
    model : SGDClassifier or MLPClassifier
        A copy as it was after the epoch; where weights are averaged, the model after the last one.
    epoch : int
        Position in the history.
    record : mapping
        The summary of the epoch with the means of the signals: what the rule has seen.
    scores : array of shape (N,)
        Of the epoch, by row of X.
    quality : dict
        State of the label quality over all epochs that `model` has seen.
    """

    model: Any
    epoch: int
    record: Mapping[str, Any]
    scores: NDArray[Any]
    quality: dict[str, Any]


def balance(model: Any, wish: Any, y: NDArray[Any]) -> None:
    """Give a model the numbers that ``class_weight="balanced"`` means, where it is the wish.

    `partial_fit` refuses the word, as a batch does not tell how many rows each class has.
    """
    if isinstance(wish, str) and wish == "balanced":
        classes = np.unique(y)
        weights = compute_class_weight(wish, classes=classes, y=y)
        model.set_params(class_weight=dict(zip(classes.tolist(), weights.tolist(), strict=True)))


def too_large_steps(model: Any, classes: int) -> bool:
    """Tell whether the scores of right labels suffer from the default steps of a SGDClassifier.

    It has a sigmoid for each of more than two classes; see the notes of `LabelIssues`.
    """
    linear = model.estimator if isinstance(model, OneVsRestClassifier) else model
    sigmoids = isinstance(linear, SGDClassifier) and classes > 2
    return sigmoids and linear.learning_rate == "optimal"


def check_rule(rule: Rule, followed: tuple[str, ...] | None = None) -> None:
    """Raise where a rule watches no column of the epochs.

    An epoch has the fields of its summary, and the signals that are followed where any can be.
    """
    columns = (*EpochSummary._fields, *(followed or ()))
    if rule.signal not in columns:
        known = followed is not None and rule.signal in SIGNALS
        cause = (
            f"follow it, signals={[*(followed or ()), rule.signal]}"
            if known
            else "nothing else is measured here"
        )
        raise ValueError(
            f"`rule` must watch a column of the epochs, got {rule!r}, which watches "
            f"{rule.signal!r}; there are {', '.join(columns)}; {cause}"
        )


def train(
    model: Any,
    data: TrainingSet,
    *,
    rule: Rule,
    max_epochs: int,
    batch_size: int,
    rng: np.random.RandomState | None,
    before: Best | None,
    history: list[EpochSummary],
    signals: TrackedSignals | None,
    start_run: Callable[[str], RunFolder] | None,
    average: WeightAverage | None,
) -> tuple[Best, LabelQuality, str]:
    """Train the model on; return the best epoch by the rule, the label quality, and why.

    Parameters
    ----------
    model : SGDClassifier or MLPClassifier
        Trained in place.
    data : TrainingSet
        Of the run.
    rule, max_epochs, batch_size
        See `GWAEarlyStoppingClassifier`.
    rng : RandomState or None
        Shuffles the rows; None leaves them in order.
    before : Best or None
        The best epoch of an earlier fit, from which `model` goes on; it competes with the new ones.
    history : list of EpochSummary
        Epochs up to that one; the new ones are appended.
    signals : TrackedSignals or None
        Follows the new epochs.
    start_run : callable or None
        Opens the folder to write to, given the loss of the head.
    average : WeightAverage or None
        Takes in the weights of each epoch. No copy of the model is kept then.

    Returns
    -------
    Best, LabelQuality, str
        The last epoch where none qualifies; the quality over the whole history.
    """
    check_rule(rule, () if signals is None else signals.names)
    rows, size = data.rows, data.X.shape[0]
    predictions = None if start_run is None else np.full(size, -1, np.int32)
    tracker, quality = GWATracker(keep_scores=False), LabelQuality(size)
    tracker.history = history
    stopper = EarlyStopper(rule, total_steps=len(history) + max_epochs)
    best, scorer, run = None, None, None
    if before is not None:
        if rule.signal not in before.record:
            raise ValueError(
                f"`rule` must watch what the fit before has measured, got {rule!r}, which watches "
                f"{rule.signal!r}; with `warm_start` follow that signal from the first fit on"
            )
        stopper.observe(before.record, step=before.epoch)
        best = before if stopper.best_step == before.epoch else None
        if len(before.scores) == size:
            quality.load_state_dict(before.quality)
        scorer = BatchScorer(model, data.X, signals, predictions)
        run = start_run and start_run(scorer.loss)
    # The whole of X was checked once.
    with config_context(assume_finite=True):
        for epoch in range(len(history), len(history) + max_epochs):
            scores = data.no_scores()
            for part in batches(rows, batch_size, rng, least=_own_batch_size(model)):
                X, y, options = data.batch(part)
                if scorer is None:
                    # The first step makes the weights.
                    model.partial_fit(X, y, classes=data.classes, **options)
                    scorer = BatchScorer(model, data.X, signals, predictions)
                    run = start_run and start_run(scorer.loss)
                    scores[part] = scorer.score(X, data.targets[part], part)
                else:
                    scores[part] = scorer.score(X, data.targets[part], part)
                    model.partial_fit(X, y, **options)
            summary = _summary(tracker, scores if isinstance(rows, int) else scores[rows])
            means = {} if signals is None else signals.end_epoch()
            quality.update(scores, summary)
            if run:
                run.write_epoch(summary, scores=scores, predictions=predictions, metrics=means)
            record = {**summary._asdict(), **means}
            stopper.observe(record, step=epoch)
            if average is not None:
                average.update(model, record)
            if stopper.best_step == epoch:
                kept = model if average is not None else copy.deepcopy(model)
                best = Best(kept, epoch, record, scores, quality.state_dict())
            if stopper.should_stop:
                break
    best = best or Best(model, epoch, record, scores, quality.state_dict())
    if average is not None:
        best = best._replace(model=model, quality=quality.state_dict())
    return best, quality, stopper.reason


def _summary(tracker: GWATracker, scores: NDArray[Any]) -> EpochSummary:
    """End an epoch; its scores go to the tracker in blocks that stay in the cache."""
    for part in gen_batches(len(scores), BLOCK_SCORES):
        tracker.update(scores[part])
    return tracker.end_epoch(expected=len(scores))
