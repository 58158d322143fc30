"""How tables look, and what the paper's runs are called in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

__all__ = [
    "LABELS",
    "MISSING",
    "NETWORKS",
    "RANKINGS",
    "TITLES",
    "accuracy_cell",
    "markdown",
    "spread",
]

LABELS = ("label", "aggre", "random1", "worse")
TITLES = {
    "label": "clean",
    "aggre": "aggre, 9 %",
    "random1": "random1, 17 %",
    "worse": "worse, 40 %",
}
#: Studies of all label sets, by what they are called.
NETWORKS = {
    "convnext": "ConvNeXt-V2 pico",
    "vit": "ViT, six layers",
    "coarse": "ConvNeXt-V2 pico, coarse",
}
MISSING = "–"
#: Ways to find label errors that choose their epochs themselves.
RANKINGS = (
    "label_quality",
    "by excess bimodality",
    "mean to twice the peak",
    "margin to twice the peak",
)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def spread(values: list[float], digits: int = 2) -> str:
    """Return the mean, and in brackets the largest less the smallest."""
    known = [x for x in values if np.isfinite(x)]
    if not known:
        return MISSING
    mean = f"{np.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ({max(known) - min(known):.{digits}f})"


def accuracy_cell(found: list[tuple[float, float, float]]) -> str:
    """Return accuracy, regret and epoch of one criterion over runs."""
    if not found:
        return MISSING
    accuracy, lost, epochs = (list(x) for x in zip(*found, strict=True))
    if not np.isfinite(accuracy).any():
        return "keeps none"
    below = f", −{np.nanmean(lost):.1f}" if np.nanmax(lost) > 0 else ""
    return f"{spread(accuracy)}{below}, epoch {np.nanmean(epochs):.0f}"
