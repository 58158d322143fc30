"""How sentences say numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["listed", "number", "signed", "spread"]

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


def listed(values: Iterable[float], digits: int = 1) -> str:
    """Return numbers as a sentence lists them."""
    *first, last = (f"{x:.{digits}f}" for x in values)
    return f"{', '.join(first)} and {last}" if first else last


def signed(text: str) -> str:
    """Return numbers with the minus sign of print."""
    return text.replace("-", "−")
