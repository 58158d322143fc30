"""All tables by name."""

from __future__ import annotations

from collections.abc import Callable

from experiments import ablations, comparisons, dips, extremes, regrets, tables
from experiments.store import Result

__all__ = ["TABLES"]

#: By name: what makes the table of all results; empty where its runs are missing.
TABLES: dict[str, Callable[[list[Result]], str]] = (
    tables.TABLES
    | regrets.TABLES
    | comparisons.TABLES
    | ablations.TABLES
    | dips.TABLES
    | extremes.TABLES
)
