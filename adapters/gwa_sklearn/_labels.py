"""Labels as users give them, and the targets of a head that they become."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.exceptions import UndefinedMetricWarning

from gwa_sklearn.heads import Classifier

__all__ = ["as_labels", "class_numbers", "counted_rows", "report_unknown"]


def as_labels(y: Any) -> NDArray[Any]:
    """Return labels as a NumPy array: (N,), or (N, C) for an indicator matrix."""
    labels = y.toarray() if sp.issparse(y) else _host(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) == 0:
        raise ValueError(
            "`y` must be labels (N,) or an indicator matrix (N, C) and not empty, got shape "
            f"{labels.shape}"
        )
    return labels


def _host(x: Any) -> NDArray[Any]:
    # Labels are looked up one by one, wherever X lives.
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)


def counted_rows(sample_weight: Any, rows: int) -> NDArray[Any]:
    """Return which samples have a part in the loss."""
    if sample_weight is None:
        return np.ones(rows, dtype=bool)
    weight = _host(sample_weight)
    if weight.shape != (rows,) or weight.dtype.kind not in "biuf" or not (weight >= 0).all():
        raise ValueError(
            f"`sample_weight` must be (N,) = ({rows},) numbers of at least 0, got {weight.dtype} "
            f"of shape {weight.shape}; a negative weight would turn its sample's gradient around"
        )
    return np.asarray(weight > 0)


def class_numbers(found: Classifier, labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return class numbers, or the indicator matrix, and which rows the classifier knows."""
    classes = _host(found.classes).tolist()
    if (labels.ndim == 2) != found.multilabel or (
        found.multilabel and labels.shape[1] != len(classes)
    ):
        wanted = f"an indicator matrix (N, {len(classes)})" if found.multilabel else "labels (N,)"
        raise ValueError(
            f"`y` must be {wanted}, got shape {labels.shape}; give it as it was given to fit"
        )
    if found.multilabel:
        return labels.astype(np.float64), np.ones(len(labels), dtype=bool)
    # By value, so that 1, 1.0 and True are one label whatever the dtypes.
    number = {label: i for i, label in enumerate(classes)}
    numbers = np.asarray([number.get(label, -1) for label in labels.tolist()], dtype=np.intp)
    return np.maximum(numbers, 0), numbers >= 0


def report_unknown(estimator: Any, labels: NDArray[Any], unknown: NDArray[Any]) -> None:
    """Say which labels have no gradient, and raise where no label has one."""
    names = _listed(dict.fromkeys(labels[unknown].tolist()))
    known = _listed(_host(estimator.classes_).tolist())
    if unknown.all():
        raise ValueError(
            f"`y` must hold labels that the estimator was fitted with ({known}), got only others "
            f"({names}); give labels as they were given to fit, not encoded again"
        )
    warnings.warn(
        f"`y` has {unknown.sum()} samples of labels that the estimator was never fitted with "
        f"({names}); they get nan. A class may be missing from the training fold",
        UndefinedMetricWarning,
        stacklevel=3,
    )


def _listed(labels: Iterable[Any]) -> str:
    shown = [repr(label) for label in labels]
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")
