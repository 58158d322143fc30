"""The training that tells which labels are wrong: what to train, and its scores by epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.extmath import row_norms

from gwa_core import EpochSummary, GWATracker
from gwa_sklearn._training import last_step
from gwa_sklearn.heads import find_classifiers
from gwa_sklearn.scores import alignment_scores

__all__ = ["default_estimator", "train_watched", "untrained"]

# A LogisticRegression has no epochs. It is fitted with this many C up to its own, the first of
# them this much over the sum of squares of X: few of the weights are learnt there.
PATH_LENGTH, PATH_BEGIN = 5, 300.0


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


def train_watched(
    model: Any, X: Any, y: NDArray[Any], max_epochs: int, classes: NDArray[Any]
) -> tuple[list[EpochSummary], NDArray[np.float32]]:
    """Train a model; return the summaries and the scores (T, N) after each epoch."""
    tracker, every = GWATracker(keep_scores=False), []
    for _ in _epochs(model, X, y, max_epochs, classes):
        scores = alignment_scores(model, X, y)
        tracker.update(scores)
        tracker.end_epoch()
        every.append(scores.astype(np.float32))
    return tracker.history, np.stack(every)


def _epochs(
    model: Any, X: Any, y: NDArray[Any], max_epochs: int, classes: NDArray[Any]
) -> Iterator[None]:
    """Train a model in place, and stop after each of its epochs."""
    if hasattr(model, "partial_fit"):
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
    if not isinstance(model, LogisticRegression) or getattr(model, "penalty", "l2") is None:
        return np.empty(0)
    begin = PATH_BEGIN / max(float(row_norms(X, squared=True).sum()), PATH_BEGIN)
    if not begin < model.C < np.inf:
        return np.empty(0)
    path = np.geomspace(begin, model.C, PATH_LENGTH)
    path[-1] = model.C
    return path
