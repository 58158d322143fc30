"""Label errors by cross-validation, as cleanlab finds them: scores of what a network did not see."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FOLDS", "SCORES", "judged", "packed", "scores", "split", "unpacked"]

FOLDS = 5
#: Methods of cleanlab's ``get_label_quality_scores``; low is suspicious.
SCORES = ("self_confidence", "normalized_margin")


def split(count: int, *, percent: int, fold: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the images that are trained on and the images that are held out, each in order.

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


def scores(logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return cleanlab's scores in half precision, which is finest near 0: low is suspicious.

    Parameters
    ----------
    logits : array of shape (N, C)
        Of a network that did not train on the samples.
    labels : integer array of shape (N,)
        As given.
    """
    odds = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    probabilities = odds / odds.sum(1, keepdims=True)
    given = labels[:, None]
    confidence = np.take_along_axis(probabilities, given, 1)[:, 0]
    np.put_along_axis(probabilities, given, -np.inf, 1)
    margin = (confidence - probabilities.max(1) + 1) / 2
    return {"self_confidence": confidence.astype("<f2"), "normalized_margin": margin.astype("<f2")}


def packed(found: Mapping[str, NDArray[Any]], wrong: NDArray[Any]) -> dict[str, dict[str, str]]:
    """Return scores and which labels are wrong as short words, each score in its own order.

    Parameters
    ----------
    found : mapping of str to half-precision array of shape (N,)
        Of `scores`.
    wrong : boolean array of shape (N,)
        The truth.
    """
    words = {}
    for name, values in found.items():
        # Sorted, neighbours differ by little, and a ranking is judged without its order.
        order = np.lexsort([wrong, values])
        steps = np.diff(values[order].view("<u2"), prepend=np.uint16(0))
        words[name] = {"scores": _word(steps), "wrong": _word(np.packbits(wrong[order]))}
    return words


def unpacked(words: Mapping[str, str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the sorted values of one score, and which of these labels are wrong.

    Parameters
    ----------
    words : mapping
        Of `packed`, for one score.
    """
    steps = _array(words["scores"], "<u2")
    values = np.cumsum(steps, dtype="<u2").view("<f2")
    return values, np.unpackbits(_array(words["wrong"], "u1"), count=len(values)).astype(bool)


def _word(x: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(x.tobytes(), 9)).decode()


def _array(word: str, dtype: str) -> NDArray[Any]:
    return np.frombuffer(zlib.decompress(base64.b64decode(word)), dtype)


def judged(parts: Sequence[Mapping[str, Mapping[str, str]]]) -> dict[str, tuple[float, float]]:
    """Return AUROC and average precision of each score over the samples of all folds.

    Parameters
    ----------
    parts : sequence of mappings
        Of `packed`, one a fold.
    """
    # The machine that trains does not need it.
    from sklearn.metrics import average_precision_score, roc_auc_score

    found = {}
    for name in SCORES:
        values, wrong = map(np.concatenate, zip(*(unpacked(x[name]) for x in parts), strict=True))
        suspicion = -values.astype(float)
        area = float(roc_auc_score(wrong, suspicion))
        found[name] = area, float(average_precision_score(wrong, suspicion))
    return found
