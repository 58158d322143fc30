"""How sentences say numbers."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["number", "spread"]

NAMES = (
    *("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen", "twenty"),
)


def number(n: int) -> str:
    """Return a count, in words up to twenty."""
    return NAMES[n] if n < len(NAMES) else str(n)


def spread(values: Sequence[float], digits: int) -> str:
    """Return the smallest and the largest value, or the one that both round to."""
    return " to ".join(dict.fromkeys(f"{x:.{digits}f}" for x in (min(values), max(values))))
