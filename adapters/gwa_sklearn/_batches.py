"""Mini-batches of a training set, scored with the weights that a model has at the moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier
from sklearn.utils import gen_batches
from sklearn.utils.extmath import row_norms

import gwa_core
from gwa_core.signals import TrackedSignals
from gwa_sklearn._softmax import check_softmax, of_softmax
from gwa_sklearn.heads import find_classifiers

__all__ = ["BatchScorer", "batches", "floating"]

# Rows in a batch, or their positions.
Rows: TypeAlias = slice | NDArray[np.intp]

# Rows whose norms are taken at once where X holds no floating-point numbers.
BLOCK_ROWS = 1 << 12


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
    """

    def __init__(self, model: Any, X: Any, signals: TrackedSignals | None = None) -> None:
        found = next(find_classifiers(model, floating(X[:1])))
        self.signals = signals
        if signals is not None:
            check_softmax(found, model)
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
            logits = latents @ found.weight.T + found.bias
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
        if self.signals is not None:
            logits, latents = of_softmax(logits, latents)
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
