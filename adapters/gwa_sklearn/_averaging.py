"""The running mean of a classifier's weights over its epochs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier

from gwa_core import EpochAverage, EpochSummary, average_shares

__all__ = ["WeightAverage"]

# Separation can be late in a linear model, so an epoch counts by its bimodality. The warm-up is in
# epochs: a run in two parts averages as one run does.
POWER, WARMUP, SIGNAL = 5.0, 1, "bimodality"


class WeightAverage:
    """The mean of what a model predicts from, each epoch by its share.

    Attributes
    ----------
    mean : list of float64 arrays
        In the order of the weights of the model; empty before the first epoch.
    """

    def __init__(self) -> None:
        self.mean: list[NDArray[np.float64]] = []
        self._average = EpochAverage(POWER, WARMUP, signal=SIGNAL)

    def update(self, model: Any, record: Mapping[str, Any]) -> None:
        """Take in the weights of a model at the end of an epoch."""
        share = self._average.share(record)
        # The model trains on in the same memory.
        weights = [weight.astype(np.float64) for weight in _weights(model)]
        if share == 1.0:
            self.mean = weights
        elif share > 0.0:
            for mean, new in zip(self.mean, weights, strict=True):
                mean += share * (new - mean)

    def shares(self, history: Iterable[EpochSummary]) -> NDArray[np.float64]:
        """Return the share of each epoch of a history in the mean."""
        return average_shares(history, POWER, WARMUP, signal=SIGNAL)

    def applied_to(self, model: Any) -> Any:
        """Return a copy of a model that predicts from the mean, in the dtypes of its weights."""
        model = copy.deepcopy(model)
        pairs = zip(self.mean, _weights(model), strict=True)
        weights = [mean.astype(own.dtype) for mean, own in pairs]
        if isinstance(model, MLPClassifier):
            layers = len(model.coefs_)
            model.coefs_, model.intercepts_ = weights[:layers], weights[layers:]
        else:
            model.coef_, model.intercept_ = weights
        return model


def _weights(model: Any) -> list[NDArray[Any]]:
    """Return what predictions use: of an averaged SGDClassifier, its own averages."""
    if isinstance(model, MLPClassifier):
        return [*model.coefs_, *model.intercepts_]
    return [model.coef_, model.intercept_]
