"""Sentences of the results chapter: rules that stop, and what the scores depend on."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["CHECKED", "QUOTES"]

#: Of each page: what gives the numbers, and a sentence with places for them.
QUOTES: tuple[tuple[str, Callable[[], dict[str, str]], str], ...] = ()
#: Pages of which each number is quoted or defined.
CHECKED: tuple[str, ...] = ()
