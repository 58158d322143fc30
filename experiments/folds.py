"""Label errors by cross-validation, as cleanlab finds them: scores of what a network did not see."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FOLDS", "SCORES", "held_out", "judged", "split"]

FOLDS = 5
#: Methods of cleanlab's ``get_label_quality_scores``; low is suspicious.
SCORES = ("self_confidence", "normalized_margin")


def split(count: int, *, percent: int, fold: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the images that are trained on and those that are not, each in order.

    Parameters
    ----------
    count : int
        Of images.
    percent, fold, seed : int
        See `plan.Settings`; one of the first two holds images out.
    """
    if not 0 <= fold <= FOLDS or (fold and percent != 100):
        raise ValueError(
            f"`fold` must be in 1..{FOLDS} with a `percent` of 100, or 0, got {fold} with {percent}"
        )
    rows = np.random.default_rng(seed).permutation(count)
    held = rows[fold - 1 :: FOLDS] if fold else rows[round(count * percent / 100) :]
    return np.setdiff1d(rows, held), np.sort(held)


def held_out(
    logits: NDArray[Any], labels: NDArray[Any], wrong: NDArray[Any]
) -> dict[str, str | int]:
    """Return cleanlab's scores of held-out samples and which labels are wrong, as short words.

    Parameters
    ----------
    logits : array of shape (N, C)
        Of a network that did not train on them.
    labels : integer array of shape (N,)
        As given.
    wrong : boolean array of shape (N,)
        The truth.
    """
    odds = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    probabilities = odds / odds.sum(1, keepdims=True)
    given = labels[:, None]
    confidence = np.take_along_axis(probabilities, given, 1)[:, 0]
    np.put_along_axis(probabilities, given, -np.inf, 1)
    margin = (confidence - probabilities.max(1) + 1) / 2
    return {
        "count": len(labels),
        "wrong": _word(np.packbits(wrong)),
        # Half precision is finest near 0, where the suspicious ones are.
        "self_confidence": _word(confidence.astype("<f2")),
        "normalized_margin": _word(margin.astype("<f2")),
    }


def _word(x: NDArray[Any]) -> str:
    return base64.b64encode(x.tobytes()).decode()


def _array(word: str, dtype: str) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(word), dtype)


def judged(parts: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return AUROC and average precision of each score over the samples of all folds.

    Parameters
    ----------
    parts : sequence of mappings
        Of `held_out`, one a fold.
    """
    # The machine that trains does not need it.
    from sklearn.metrics import average_precision_score, roc_auc_score

    bits = [np.unpackbits(_array(x["wrong"], "u1"), count=x["count"]) for x in parts]
    wrong = np.concatenate(bits)
    found = {}
    for name in SCORES:
        suspicion = -np.concatenate([_array(x[name], "<f2") for x in parts]).astype(float)
        area = float(roc_auc_score(wrong, suspicion))
        found[name] = area, float(average_precision_score(wrong, suspicion))
    return found
