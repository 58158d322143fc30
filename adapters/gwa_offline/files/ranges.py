"""Ranges of rows of an array that is not in memory, read without the rows before them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gwa_offline.files.arrays import Held, Joined, LazyArray, Packed
from gwa_offline.files.tables import Column

# Rows of a group of a table that may be read for one row of it.
GROUP_ROWS = 1 << 17


@dataclass(frozen=True)
class Count:
    """The numbers start..stop, read like an array in a file."""

    start: int
    stop: int
    dtype = np.dtype(np.int64)
    streams = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements."""
        return (self.stop - self.start,)

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield blocks of `rows` numbers, the last one shorter."""
        for first in range(self.start, self.stop, rows):
            yield np.arange(first, min(first + rows, self.stop))


@dataclass(frozen=True)
class Rows:
    """Rows start..stop of an array; what is before them is read too."""

    array: LazyArray
    start: int
    stop: int
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements along each dimension."""
        return (self.stop - self.start, *self.array.shape[1:])

    @property
    def streams(self) -> bool:
        """Whether blocks of rows can be read without reading all."""
        return self.array.streams

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield blocks of `rows` rows, the last one shorter."""
        seen, held = 0, np.empty((0, *self.shape[1:]), self.dtype)
        for block in self.array.chunks(rows):
            kept = block[max(self.start - seen, 0) : max(self.stop - seen, 0)]
            kept = kept.astype(self.dtype, copy=False)
            held = np.concatenate([held, kept]) if len(held) else kept
            seen += len(block)
            while len(held) >= rows:
                yield held[:rows]
                held = held[rows:]
            if seen >= self.stop:
                break
        if len(held):
            yield held


@dataclass(frozen=True)
class _At:
    """Open a stream some bytes further on."""

    open_stream: Callable[[], IO[bytes]]
    offset: int

    def __call__(self) -> IO[bytes]:
        stream = self.open_stream()
        stream.seek(self.offset, os.SEEK_CUR)
        return stream


def seeks(array: LazyArray) -> bool:
    """Return whether rows in the middle are read without those before them."""
    if isinstance(array, Joined):
        return all(seeks(part) for _, part in array.parts)
    if isinstance(array, Packed):
        return array.seekable and not array.fortran
    if isinstance(array, Column):
        return 0 < max(array.groups, default=0) <= GROUP_ROWS
    return isinstance(array, Held | Count)


def cut(array: LazyArray, start: int, stop: int) -> LazyArray:
    """Return rows start..stop of an array, unread."""
    if (start, stop) == (0, array.shape[0]):
        return array
    if isinstance(array, Held):
        return Held(array.array[start:stop])
    if isinstance(array, Count):
        return Count(array.start + start, array.start + stop)
    if isinstance(array, Joined):
        return _cut_joined(array, start, stop)
    if isinstance(array, Packed) and seeks(array):
        shape = (stop - start, *array.shape[1:])
        before = start * math.prod(shape[1:]) * array.stored.itemsize
        return replace(array, open_stream=_At(array.open_stream, before), shape=shape)
    if isinstance(array, Column):
        rest, before = array.since(start)
        return Rows(rest, start - before, stop - before, array.dtype)
    return Rows(array, start, stop, array.dtype)


def _cut_joined(array: Joined, start: int, stop: int) -> LazyArray:
    parts, first = [], 0
    for path, part in array.parts:
        begin, end = max(start - first, 0), min(stop - first, part.shape[0])
        if begin < end:
            parts.append((path, cut(part, begin, end)))
        first += part.shape[0]
    joined = Joined(tuple(parts))
    if joined.dtype != array.dtype:  # parts that are not in this range have wider numbers
        return Rows(joined, 0, stop - start, array.dtype)
    return joined
