"""Columns that fit a terminal, and text that is safe to print there."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from rich.cells import cell_len

__all__ = ["NAMES", "clean", "fitting"]

# Columns of words, which are folded where they are long, to no less than this.
NAMES = ("label", "model says", "run", "checkpoint", "signal")
SHORTEST_NAME = 12


def clean(text: str) -> str:
    """Return a text without characters that move the cursor or break a row."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cs") else c
        for c in text
    )


def fitting(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    less: Sequence[str],
    words: Sequence[str] = NAMES,
) -> list[int]:
    """Return the positions of the columns of a table that fit beside each other, in order.

    Parameters
    ----------
    columns : sequence of str
        Their heads.
    rows : sequence of sequence of str
        Their cells.
    width : int
        Characters of a line.
    less : sequence of str
        Columns that may go, the first one first.
    words : sequence of str
        Columns that may be folded.

    Returns
    -------
    list of int
        All columns where there is room.
    """
    sizes = []
    for i, column in enumerate(columns):
        size = max(cell_len(cell) for cell in [column, *(row[i] for row in rows)])
        sizes.append(min(size, max(SHORTEST_NAME, cell_len(column))) if column in words else size)
    kept = list(range(len(columns)))
    for column in less:
        # Three spaces between columns, and two at both ends.
        if sum(sizes[i] + 3 for i in kept) + 1 <= width:
            break
        kept = [i for i in kept if columns[i] != column]
    return kept
