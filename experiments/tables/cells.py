"""How tables look, and what the paper's runs are called in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

__all__ = [
    "LABELS",
    "MISSING",
    "NETWORKS",
    "RANKINGS",
    "TITLES",
    "accuracy_cell",
    "counted",
    "markdown",
    "parts_of",
    "spread",
    "transposed",
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


def counted(n: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{n} {noun}{'s' * (n != 1)}"


def parts_of(tables: Mapping[str, str]) -> str:
    """Return tables below each other, each with its title."""
    return "\n".join(f"**{title}**\n\n{table}" for title, table in tables.items())


def transposed(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose columns are given as rows."""
    first, *others = zip(head, *rows, strict=True)
    return markdown(first, others)


def spread(values: list[float], digits: int = 2) -> str:
    """Return the mean, and in brackets the largest less the smallest."""
    known = [x for x in values if np.isfinite(x)]
    if not known:
        return MISSING
    mean = f"{np.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ({max(known) - min(known):.{digits}f})"


def accuracy_cell(found: list[tuple[float, float, float]], *, epoch: bool = False) -> str:
    """Return accuracy and regret of one criterion over runs, and the epoch where it is asked for."""
    if not found:
        return MISSING
    accuracy, lost, epochs = (list(x) for x in zip(*found, strict=True))
    if not np.isfinite(accuracy).any():
        return "keeps none"
    below = f", −{np.nanmean(lost):.1f}" if np.nanmax(lost) > 0 else ""
    at = f", epoch {np.nanmean(epochs):.0f}" if epoch else ""
    return f"{spread(accuracy)}{below}{at}"
