"""Several records an epoch: where they are made, what is kept of them, and the wrong labels found."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.measures import judged
from gwa_core import label_quality

__all__ = ["DIGITS", "KEPT", "detected", "ends"]

#: Of a number in a result: records are many, and a window has few samples.
DIGITS = 4
#: Means of the weights that are judged at the end.
KEPT = (
    "separation^10",
    "separation^10, warm-up 0",
    "separation^10, within epochs",
    "plain, warm-up 0.1",
)


def ends(steps: int, windows: int) -> dict[int, int]:
    """Return after which steps of an epoch a window ends, and how many steps it has.

    Parameters
    ----------
    steps : int
        Of an epoch.
    windows : int
        How many an epoch has; 0 for none.
    """
    at = [round(k * steps / windows) for k in range(windows + 1)] if windows else []
    return {end: end - begin for begin, end in itertools.pairwise(at) if end > begin}


def detected(
    samples: dict[str, NDArray[Any]], wrong: NDArray[np.bool_], device: str
) -> dict[str, dict[str, float]]:
    """Return average precision of the wrong labels by what all windows say of a sample.

    Parameters
    ----------
    samples : mapping of str to array of shape (T, N)
        Values of each window, nan for samples that it lacks.
    wrong : boolean array of shape (N,)
        The truth.
    device : str
        Where to sort.
    """
    if not wrong.any():
        return {}
    truth = torch.as_tensor(wrong, device=device)
    found = {"label_quality": -label_quality(samples["alignment"])}
    for name, sign in {"alignment": -1, "margin": -1, "sample_loss": 1}.items():
        found[name] = sign * np.nanmean(samples[name], axis=0)
    return {name: {"mean": judged(x, truth)[1]} for name, x in found.items()}
