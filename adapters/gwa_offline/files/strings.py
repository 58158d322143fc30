"""Strings as numbers: names of classes, and names of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwa_offline.files.arrays import Joined, LazyArray, refuse_inflating
from gwa_offline.files.errors import FeaturesError

__all__ = ["Strings", "is_text", "text_blocks"]

# The last character, and the first of those that are half of one.
_LAST, _HALF = 0x10FFFF, 0xD800

# Bytes of strings that are read at once.
_BLOCK = 2**22

ORDER = "give `class_names` in the order of the outputs of the head"


def is_text(array: Any) -> bool:
    """Return whether an array has strings, or objects that may be some."""
    return array.dtype.kind in "UO"


def text_blocks(array: LazyArray) -> Iterator[list[Any]]:
    """Yield the elements of a long array of strings, some at a time."""
    rows = max(1, _BLOCK // max(array.dtype.itemsize, 64))
    found = 0
    for block in array.chunks(rows):
        found += len(block)
        if found > array.shape[0]:
            raise FeaturesError(f"has more than its {array.shape[0]} rows; the file is damaged")
        if block.dtype.kind == "U":
            points = np.ascontiguousarray(block).view(np.uint32)
            # NumPy takes them as they are, and Python breaks on them.
            if ((points > _LAST) | ((points >= _HALF) & (points < _HALF + 0x800))).any():
                raise FeaturesError("has what is no character; the file is damaged")
        yield block.tolist()


class Strings:
    """The numbers of the strings in one source, the same in all of its epochs.

    Parameters
    ----------
    class_names : tuple of str, optional
        C names in the order of the outputs. Default the labels of the first epoch, sorted.
    """

    def __init__(self, class_names: tuple[str, ...] | None = None) -> None:
        self._given = class_names
        self._classes = {name: i for i, name in enumerate(class_names or ())}
        self._rows: dict[str, int] = {}
        self._kind: str | None = None
        self._told: tuple[str, ...] = ()
        self.labelled = False

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, if any labels are strings."""
        return tuple(self._classes) if self.labelled else None

    def note(self, array: LazyArray) -> None:
        """Remember the names of classes that a column of numbers has; refuse two orders of them."""
        parts = array.parts if isinstance(array, Joined) else (("", array),)
        for _, part in parts:
            names = getattr(part, "classes", ())
            if names and self._told and names != self._told:
                raise FeaturesError(
                    f"`targets` has the classes {_listed(names)} here, and {_listed(self._told)} "
                    "elsewhere; one number must be one class in all parts and epochs"
                )
            self._told = self._told or names

    def told(self, num_classes: int) -> tuple[str, ...] | None:
        """Return the names that columns have, where the head has as many outputs."""
        fits = len(self._told) in (num_classes, max(num_classes, 2)) and bool(self._told)
        return self._told if fits and not self.labelled else None

    @property
    def row_names(self) -> list[str] | None:
        """Names of the rows in the order of their numbers, if the ids are strings."""
        return list(self._rows) if self._kind == "strings" else None

    def targets(self, array: LazyArray, num_classes: int | None = None) -> NDArray[np.int64]:
        """Return (n,) labels as class numbers, of as many classes as the head has outputs."""
        if len(array.shape) != 1:
            raise FeaturesError(f"`targets` must be (n,) labels, got strings of {array.shape}")
        self.labelled = True
        if self._given is not None and len(self._classes) < len(self._given):
            twice = next(name for name in self._given if self._given.count(name) > 1)
            raise FeaturesError(f"`class_names` must be different, {twice!r} is there twice")
        if self._classes:
            return _numbers(array, "targets", self._classes, self._refuse)
        seen: dict[str, int] = {}
        found = _numbers(array, "targets", seen)
        self._classes = {name: i for i, name in enumerate(sorted(seen))}
        if num_classes is not None:
            self.check_outputs(num_classes)
        return np.array([self._classes[name] for name in seen], np.int64)[found]

    def check_outputs(self, num_classes: int) -> None:
        """Refuse labels of which the head has more or fewer."""
        outputs, names = max(num_classes, 2), list(self._classes)
        if self.labelled and len(names) != outputs:
            more = "; do they belong to another head?" if len(names) > outputs else f"; {ORDER}"
            raise FeaturesError(
                f"`targets` has {len(names)} different labels, {_listed(names)}, and the head has "
                f"C = {num_classes} outputs{more}"
            )

    def _refuse(self, name: str) -> None:
        where = "the first epoch" if self._given is None else "`class_names`"
        raise FeaturesError(
            f"`targets` has the label {name!r}, and {where} has {_listed(list(self._classes))}"
        )

    def ids(self, array: LazyArray | None) -> NDArray[np.int64] | None:
        """Return (n,) row numbers of strings, or None where the ids are none.

        A string has the number of the row where it came first.
        """
        kind = "missing" if array is None else "strings" if is_text(array) else "numbers"
        if self._kind is None:
            self._kind = kind
        if kind != self._kind and "strings" in (kind, self._kind):
            raise FeaturesError(
                f"`ids` are {kind}, and in another epoch they are {self._kind}; all epochs must name "
                "their rows in the same way"
            )
        if kind != "strings":
            return None
        assert array is not None  # noqa: S101  (missing is another kind)
        if len(array.shape) != 1:
            raise FeaturesError(f"`ids` must be (n,), got strings of shape {array.shape}")
        found = _numbers(array, "ids", self._rows)
        often = np.bincount(found, minlength=1)
        if often.max() > 1:
            twice = list(self._rows)[int((often > 1).argmax())]
            raise FeaturesError(
                f"`ids` must be unique, {twice!r} is there {often.max()} times; save each sample once, "
                "and give files of one name their folders"
            )
        return found

    def find(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the numbers of the rows of these names, -1 where there is none."""
        return np.array([self._rows.get(name, -1) for name in names], np.int64)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")


def _numbers(
    array: LazyArray,
    field: str,
    known: dict[str, int],
    refuse: Callable[[str], None] | None = None,
) -> NDArray[np.int64]:
    """Return the numbers of strings; new ones get the next number, unless they are refused."""
    refuse_inflating(array)
    found = np.empty(array.shape[0], np.int64)
    start = 0
    for block in text_blocks(array):
        try:
            numbers = np.fromiter(map(known.get, block, repeat(-1)), np.int64, len(block))
        except TypeError:  # lists and the like cannot be looked up
            numbers = np.full(len(block), -1)
        for i in np.flatnonzero(numbers < 0).tolist():
            name = block[i]
            if not isinstance(name, str):
                raise FeaturesError(
                    f"`{field}` must be strings or whole numbers, got {type(name).__name__} "
                    f"{str(name)[:40]!r} in row {start + i}"
                )
            if refuse is not None:
                refuse(name)
            numbers[i] = known.setdefault(name, len(known))
        found[start : start + len(block)] = numbers
        start += len(block)
    return found
