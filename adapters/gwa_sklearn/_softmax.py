"""Heads as a softmax over the classes, which is what signals of a sample are of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import norm
from sklearn.utils._array_api import get_namespace

from gwa_sklearn.heads import Classifier

__all__ = ["check_softmax", "of_softmax"]


def check_softmax(found: Classifier, estimator: Any) -> None:
    """Raise where no softmax over the classes says which one a sample is."""
    if found.loss == "cross_entropy" or (len(found.weight) == 1 and not found.multilabel):
        return
    kind = "labels that a sample may have together" if found.multilabel else "classes"
    raise ValueError(
        f"`estimator` must have one softmax over its classes, got {type(estimator).__name__} with "
        f"a sigmoid for each of {len(found.weight)} {kind}; of those no one has the margin or the "
        "probability of the label. MLPClassifier(hidden_layer_sizes=()) is linear, with a softmax"
    )


def of_softmax(logits: Any, latents: Any) -> tuple[Any, Any]:
    r"""Return logits of the classes (N, C), and latents that have the same gradient norms.

    Parameters
    ----------
    logits : array of shape (N, C) or (N, 1)
        Outputs of a softmax, or of one sigmoid.
    latents : array of shape (N, D), or sparse
        Input of the head.

    Returns
    -------
    tuple of two arrays
        (N, C) and (N, D). Of sparse latents their norms, (N, 1), which is all that is looked at.

    Notes
    -----
    A sigmoid of :math:`w \cdot z` is the softmax of two outputs of weights :math:`\mp w / \sqrt 2`
    on latents :math:`z / \sqrt 2`. Those weights lie as far from each other as w itself, so that
    gradients and curvature are those of the sigmoid.
    """
    if sp.issparse(latents):
        latents = norm(latents.astype(np.float64), axis=1).astype(logits.dtype)[:, None]
    if logits.shape[1] > 1:
        return logits, latents
    xp, _ = get_namespace(logits)
    half = logits[:, 0] / 2
    return xp.stack([-half, half], axis=1), latents * math.sqrt(0.5)
