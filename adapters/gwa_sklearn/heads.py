"""The linear head of a fitted classifier, and the input that the head sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import norm
from scipy.special import expit
from sklearn.base import RegressorMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection._search import BaseSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils._array_api import get_namespace
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["Head", "latents_and_head"]

# Latents of a network and logits are made in blocks of this size.
BLOCK_BYTES = 8 * 1024 * 1024

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda z: z,
    "logistic": expit,
    "relu": lambda z: np.maximum(z, 0, out=z),
    "tanh": np.tanh,
}

# Looked up by the names of a class and its bases, so that nothing is imported for a refusal.
OTHER_LOSSES = {
    "LinearSVC": "is trained with the hinge loss",
    "NuSVC": "is trained with the hinge loss",
    "PassiveAggressiveClassifier": "is trained with the hinge loss",
    "Perceptron": "is trained with the perceptron's loss",
    "RidgeClassifier": "is trained with the squared error",
    "RidgeClassifierCV": "is trained with the squared error",
    "SVC": "is trained with the hinge loss",
}


class Head(NamedTuple):
    """The linear head of a classifier, with its input.

    Parameters
    ----------
    latents : array or sparse array of shape (N, D)
        What the head multiplies: X as the last step sees it, or the last hidden activations of a
        network. Sparse (CSR) where X is sparse.
    weight : array of shape (C, D)
        Weights; one row where a sigmoid separates two classes.
    bias : array of shape (C,)
        Biases.
    classes : array
        Labels in the order of the outputs; two where there is one output.
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid.
    multilabel : bool
        Whether targets are an indicator matrix (N, C) instead of labels.
    """

    latents: Any
    weight: Any
    bias: Any
    classes: Any
    loss: Literal["cross_entropy", "binary_cross_entropy"]
    multilabel: bool


class Classifier(NamedTuple):
    """The classifier inside an estimator: its head, without latents, and how to make them."""

    inputs: Any
    encode: Callable[[Any], Any] | None
    weight: Any
    bias: Any
    classes: Any
    loss: Literal["cross_entropy", "binary_cross_entropy"]
    multilabel: bool

    def latents(self, rows: slice = slice(None)) -> Any:
        """Return the latents of some rows of the input."""
        inputs = self.inputs if rows == slice(None) else self.inputs[rows]
        return inputs if self.encode is None else self.encode(inputs)

    def logits(self, latents: Any) -> Any:
        """Return the outputs of the head."""
        return latents @ self.weight.T + self.bias

    def blocks(self) -> Iterator[slice]:
        """Yield all rows, in blocks whose latents and logits take 8 MiB at most."""
        outputs, features = self.weight.shape
        width = outputs if self.encode is None else max(outputs, features)
        step = max(BLOCK_BYTES // (8 * width), 256)
        for begin in range(0, self.inputs.shape[0], step):
            yield slice(begin, begin + step)


def narrow(latents: Any) -> Any:
    """Return dense latents as they are, of sparse ones their norms, (N, 1).

    Of latents nothing but the norms is looked at where the logits are there.
    """
    if not sp.issparse(latents):
        return latents
    # In float64, as SciPy squares without a scale.
    norms = norm(latents.astype(np.float64), axis=1).astype(latents.dtype)
    return norms[:, None]


def latents_and_head(estimator: Any, X: Any) -> Head:
    """Return the linear head of a fitted classifier, with the input that it sees for X.

    Parameters
    ----------
    estimator : estimator
        Fitted: `LogisticRegression`, `LogisticRegressionCV`, ``SGDClassifier(loss="log_loss")``,
        `MLPClassifier`, or a `OneVsRestClassifier` of the linear ones; also at the end of a
        `Pipeline`, as ``best_estimator_`` of a search, in a `FrozenEstimator`, or in a
        `CalibratedClassifierCV` that holds one estimator.
    X : array-like or sparse of shape (n_samples, n_features)
        What `estimator` predicts from.

    Returns
    -------
    Head
        ``(latents, weight, bias, classes, loss, multilabel)``. The loss is the estimator's own:
        softmax for a multinomial `LogisticRegression` and a network of several classes; one
        sigmoid with one output for two classes; a sigmoid an output for one-vs-rest (that is
        `SGDClassifier` and `OneVsRestClassifier`) and for several labels.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    TypeError
        If it has no linear head that is trained with cross-entropy: `LinearSVC`, `SVC`,
        `RidgeClassifier`, `Perceptron`, trees, neighbours, regressors, ...
    ValueError
        If its settings are at fault: another loss of `SGDClassifier`, a search with
        ``refit=False``, several calibrated estimators, one-vs-rest over models that don't share X.

    Notes
    -----
    Regularisation and class weights are part of the training, not of the head. Cost: none for a
    linear model, whose latents are X itself; one forward pass and O(NH) memory for a network.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 1.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from gwa_sklearn import latents_and_head
    >>> X, y = load_iris(return_X_y=True)
    >>> head = latents_and_head(LogisticRegression(max_iter=1000).fit(X, y), X)
    >>> head.latents.shape, head.weight.shape, head.loss
    ((150, 4), (3, 4), 'cross_entropy')
    """
    found = one_classifier(estimator, X)
    return Head(found.latents(), *found[2:])


def one_classifier(estimator: Any, X: Any) -> Classifier:
    """Return the classifier inside an estimator that holds one."""
    first, *others = find_classifiers(estimator, X)
    if others:
        raise ValueError(
            "`estimator` must have one head, got a CalibratedClassifierCV of several fitted "
            "estimators; `alignment_scores` averages over them, and ensemble=False keeps one"
        )
    return first


def find_classifiers(estimator: Any, X: Any) -> Iterator[Classifier]:
    """Yield the classifier inside an estimator; several only for calibrated clones."""
    for leaf, inputs in _leaves(estimator, X):
        yield _classifier(leaf, inputs)


def _leaves(estimator: Any, X: Any) -> Iterator[tuple[Any, Any]]:
    """Walk through what only wraps a classifier; X becomes what the classifier was given."""
    if hasattr(estimator, "_inside"):  # a GWAEarlyStoppingClassifier, which imports this module
        yield from _leaves(*estimator._inside(X))
    elif isinstance(estimator, Pipeline):
        check_is_fitted(estimator)
        inputs = estimator[:-1].transform(X) if len(estimator) > 1 else X
        yield from _leaves(estimator[-1], inputs)
    elif isinstance(estimator, FrozenEstimator):
        yield from _leaves(estimator.estimator, X)
    elif isinstance(estimator, CalibratedClassifierCV):
        check_is_fitted(estimator)
        for clone in estimator.calibrated_classifiers_:
            yield from _leaves(clone.estimator, X)
    elif isinstance(estimator, BaseSearchCV) or hasattr(estimator, "best_estimator_"):
        check_is_fitted(estimator)
        if not hasattr(estimator, "best_estimator_"):
            raise ValueError(
                f"`estimator` must hold its best estimator, got {type(estimator).__name__} with "
                "refit=False; a search that doesn't refit has no model to look into"
            )
        yield from _leaves(estimator.best_estimator_, X)
    else:
        yield estimator, X


def _classifier(estimator: Any, X: Any) -> Classifier:
    """Return what a classifier that wraps nothing, or one-vs-rest, has fitted."""
    named = estimator
    if isinstance(estimator, OneVsRestClassifier):
        check_is_fitted(estimator)
        heads = [_shared_head(binary, X) for binary in estimator.estimators_]
        weight, bias = (np.concatenate(parts) for parts in zip(*heads, strict=True))
        softmax, multilabel, encode = False, bool(estimator.multilabel_), None
        # After `partial_fit` the estimators inside alone know the names of the columns.
        named = estimator.estimators_[0]
    elif isinstance(estimator, MLPClassifier):
        check_is_fitted(estimator)
        weight, bias = estimator.coefs_[-1].T, estimator.intercepts_[-1]
        softmax = estimator.out_activation_ == "softmax"
        multilabel = not softmax and estimator.n_outputs_ > 1
        encode = _hidden_layers(estimator)
    else:
        weight, bias = _linear_head(estimator)
        softmax, multilabel, encode = _is_multinomial(estimator), False, None
    xp, _ = get_namespace(X)
    return Classifier(
        inputs=validate_data(
            named, X, reset=False, accept_sparse="csr", dtype=[xp.float64, xp.float32]
        ),
        encode=encode,
        weight=weight,
        bias=bias,
        classes=estimator.classes_,
        loss="cross_entropy" if softmax else "binary_cross_entropy",
        multilabel=multilabel,
    )


def _linear_head(estimator: Any) -> tuple[Any, Any]:
    """Return weight and bias of a linear model, or say why it has none."""
    if not isinstance(estimator, (LogisticRegression, SGDClassifier)):
        _refuse(estimator)
    if getattr(estimator, "loss", "log_loss") != "log_loss":
        raise ValueError(
            f"`estimator` must be trained with cross-entropy, got SGDClassifier(loss="
            f"{estimator.loss!r}); the alignment is defined for its gradient, so train with "
            "loss='log_loss'"
        )
    check_is_fitted(estimator)
    weight = estimator.coef_
    # As `sparsify` leaves it.
    return weight.toarray() if hasattr(weight, "toarray") else weight, estimator.intercept_


def _is_multinomial(estimator: Any) -> bool:
    """Tell softmax from sigmoids by what a linear model was fitted with."""
    if not isinstance(estimator, LogisticRegression) or len(estimator.classes_) == 2:
        return False
    # `multi_class` is gone with scikit-learn 1.8; before, liblinear was one-vs-rest.
    return estimator.solver != "liblinear" and getattr(estimator, "multi_class", None) != "ovr"


def _shared_head(binary: Any, X: Any) -> tuple[Any, Any]:
    """Return the one output of a binary classifier inside one-vs-rest."""
    if type(binary).__name__ == "_ConstantPredictor":
        raise ValueError(
            "`estimator` must have weights for every class, got a OneVsRestClassifier with a "
            "constant output; in its training rows a label was in all of them or in none"
        )
    (leaf, inputs), *others = _leaves(binary, X)
    if others or inputs is not X or isinstance(leaf, (MLPClassifier, OneVsRestClassifier)):
        raise ValueError(
            "`estimator` must have one input for all its classes, got a OneVsRestClassifier of "
            f"{type(binary).__name__}, each with latents of its own; put a Pipeline around the "
            "OneVsRestClassifier instead of into it"
        )
    return _linear_head(leaf)


def _hidden_layers(network: MLPClassifier) -> Callable[[Any], Any] | None:
    """Return the function from X to the last hidden activations; None where there are none."""
    layers = list(zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True))
    activation = ACTIVATIONS[network.activation]

    def encode(latents: Any) -> Any:
        for weight, bias in layers:
            latents = activation(latents @ weight + bias)
        return latents

    return encode if layers else None


def _refuse(estimator: Any) -> NoReturn:
    names = [kind.__name__ for kind in type(estimator).__mro__]
    if isinstance(estimator, RegressorMixin):
        reason = "is a regressor, which has no classes"
    else:
        known = (OTHER_LOSSES[name] for name in names if name in OTHER_LOSSES)
        reason = next(known, "has no linear head that is trained with cross-entropy")
    raise TypeError(
        "`estimator` must be a LogisticRegression, SGDClassifier(loss='log_loss'), MLPClassifier, "
        f"or hold one, got {names[0]}, which {reason}; the alignment is defined for the gradient "
        "of cross-entropy at a linear head"
    )
