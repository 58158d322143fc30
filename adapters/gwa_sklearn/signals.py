"""What `gwa_core.signals` has of each sample, for fitted classifiers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sklearn.utils._array_api import get_namespace_and_device

from gwa_core import signals
from gwa_sklearn._labels import as_labels, class_numbers, counted_rows, report_unknown
from gwa_sklearn.heads import Classifier, narrow, one_classifier

__all__ = ["sample_signals"]

# One pass over the samples gives them, without other epochs.
NAMES = tuple(name for name, signal in signals.SIGNALS.items() if "ids" not in signal.needs)


def sample_signals(
    estimator: Any, X: Any, y: Any, *, names: Iterable[str] = NAMES, sample_weight: Any = None
) -> dict[str, Any]:
    r"""Return the signals of each sample that alignment is compared with, from one pass.

    With the logits :math:`z_i W^\top + b` of the estimator's head, :math:`z_i` its latents and
    :math:`p_i` its probabilities, among others

    .. math::

       \mathrm{margin}_i = \mathrm{logit}_{y_i} - \max_{c \ne y_i} \mathrm{logit}_c, \qquad
       \mathrm{gradient\ norm}_i = \|\mathrm{onehot}(y_i) - p_i\| \, \|z_i\|

    Parameters
    ----------
    estimator : estimator
        A fitted classifier that `latents_and_head` supports, with one softmax over its classes, or
        one sigmoid between two.
    X : array-like or sparse of shape (n_samples, n_features)
        What `estimator` predicts from. Sparse rows stay sparse.
    y : array-like of shape (n_samples,)
        Labels as they were given to ``fit``, strings too.
    names : str or iterable of str
        Names that `gwa_core.signals.sample_signals` knows, default all of ``SIGNALS`` that look
        at no other epoch. ``SIGNALS[name].suspicious`` says which end to look at.
    sample_weight : array-like of shape (n_samples,), optional
        A sample of weight 0 has no part in the loss and gets nan; other weights change nothing.

    Returns
    -------
    dict of str to array of shape (n_samples,)
        In the order of `names` and the ranges of ``SIGNALS``; nan for samples of weight 0 or of a
        label that the estimator never saw. From NumPy input NumPy arrays, else in the namespace
        that scikit-learn dispatched to.

    Raises
    ------
    NotFittedError, TypeError
        As `latents_and_head`.
    ValueError
        As `latents_and_head`; also on unknown names, on a sigmoid for each of several classes or
        labels, if no label is known to the estimator, and if lengths differ or weights are
        negative.

    Warns
    -----
    UndefinedMetricWarning
        If some labels are unknown, as in a fold whose training part lacks a class.

    Notes
    -----
    The loss is without its regulariser and class weights. One sigmoid between two classes counts as
    the softmax that gives the same probabilities, loss and gradient norms.

    Cost: O(NCD) for the logits, or O(nnz C) for sparse rows, and O(NC + ND) for all signals
    together, in blocks of 8 MiB.

    References
    ----------
    Of each signal: ``SIGNALS[name].reference``.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from gwa_sklearn import sample_signals
    >>> X = np.asarray([[2.0, 0.1], [1.5, -0.2], [-1.0, 0.3], [-2.0, 0.2], [2.0, 0.0]])
    >>> y = ["cat", "cat", "dog", "dog", "dog"]  # the last one is wrong
    >>> model = LogisticRegression(fit_intercept=False).fit(X, y)
    >>> found = sample_signals(model, X, y, names=["margin", "el2n"])
    >>> found["margin"].round(1)
    array([ 0.9,  0.8,  0.5,  1. , -1. ])
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    labels = as_labels(y)
    counted = counted_rows(sample_weight, len(labels))
    found = one_classifier(estimator, X)
    check_signals(found, estimator)
    if len(labels) != found.inputs.shape[0]:
        raise ValueError(
            f"`y` must have one label for each of the {found.inputs.shape[0]} rows of `X`, got "
            f"{len(labels)}"
        )
    targets, known = class_numbers(found, labels)
    if not known.all():
        report_unknown(estimator, labels, ~known)
    parts = []
    for rows in found.blocks():
        latents = found.latents(rows)
        logits = found.logits(latents)
        xp, _, device = get_namespace_and_device(logits)
        part = signals.sample_signals(
            names,
            logits=logits,
            latents=narrow(latents),
            targets=xp.asarray(targets[rows], device=device),
        )
        counts = xp.asarray((known & counted)[rows], device=device)
        parts.append({n: xp.where(counts, v, xp.full_like(v, xp.nan)) for n, v in part.items()})
    return {name: xp.concat([part[name] for part in parts]) for name in names}


def check_signals(found: Classifier, estimator: Any) -> None:
    """Raise where a head has no signals: where no softmax over the classes says which one it is."""
    if found.loss == "cross_entropy" or (len(found.weight) == 1 and not found.multilabel):
        return
    kind = "labels that a sample may have together" if found.multilabel else "classes"
    raise ValueError(
        f"`estimator` must have one softmax over its classes, got {type(estimator).__name__} with "
        f"a sigmoid for each of {len(found.weight)} {kind}; none of them knows the margin or the "
        "probability of the label. MLPClassifier(hidden_layer_sizes=()) is linear, with a softmax"
    )
