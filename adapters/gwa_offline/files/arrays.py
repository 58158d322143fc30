"""Arrays in files, read a block of rows at a time.

Blocks are read with plain file reads, not through a memory map: mapped pages count as resident
memory of the process, so a map over a large file looks like (and is limited as) memory in use.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gwa_offline.files.errors import FeaturesError, blame, reading
from gwa_offline.files.urls import Place

# Bytes that an array read whole may inflate to, and how many times its packed size beyond them.
_INFLATED, _RATIO = 2**28, 64


class LazyArray(Protocol):
    """An array that is not in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements along each dimension."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the blocks, in native byte order."""

    @property
    def streams(self) -> bool:
        """Whether blocks of rows can be read without reading all."""

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield blocks of `rows` rows, the last one shorter, each a new native C-ordered array."""


Openers = Mapping[str, Callable[[], LazyArray]]


def refuse_inflating(array: LazyArray) -> None:
    """Refuse what inflates to more than it may before it is read whole."""
    for part in [part for _, part in array.parts] if isinstance(array, Joined) else [array]:
        check = getattr(part, "check_inflated", None)
        if check is not None:
            check()


def read_all(array: LazyArray) -> NDArray[Any]:
    """Read a whole array."""
    refuse_inflating(array)
    blocks = list(array.chunks(max(1, array.shape[0])))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def open_at(path: Place, offset: int) -> Callable[[], IO[bytes]]:
    """Return what opens a file at one of its bytes."""

    def open_stream() -> IO[bytes]:
        stream: IO[bytes] = path.open("rb", buffering=0)
        stream.seek(offset)
        return stream

    return open_stream


def check_size(shape: tuple[int, ...], dtype: np.dtype[Any], available: int) -> None:
    """Refuse an array that its bytes do not hold."""
    needed = math.prod(shape) * dtype.itemsize
    if needed != available:
        raise FeaturesError(
            f"must hold {needed} bytes for {dtype} of shape {shape}, has {available}; "
            "the file is truncated or damaged"
        )


def _fill(stream: IO[bytes], out: NDArray[Any]) -> None:
    """Read exactly `out.nbytes` bytes into a contiguous array."""
    view = out.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        got = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise FeaturesError(f"ends {len(view) - done} bytes early; the file is truncated")
        done += got


def _native(block: NDArray[Any]) -> NDArray[Any]:
    return block.astype(block.dtype.newbyteorder("="), copy=False)


def _row_blocks(n: int, rows: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + rows, n)) for start in range(0, n, rows))


def in_blocks(pieces: Iterable[NDArray[Any]], rows: int) -> Iterator[NDArray[Any]]:
    """Yield pieces of any lengths as blocks of `rows` rows, the last one shorter."""
    held: list[NDArray[Any]] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count < rows:  # many small pieces are joined once
            continue
        joined = np.concatenate(held) if len(held) > 1 else piece
        while len(joined) >= rows:
            yield joined[:rows]
            joined = joined[rows:]
        held, count = [joined] if len(joined) else [], len(joined)
    if count:
        yield np.concatenate(held) if len(held) > 1 else held[0]


@dataclass(frozen=True)
class Held:
    """An array in memory, read like one in a file."""

    array: NDArray[Any]
    streams = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements along each dimension."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the blocks."""
        return self.array.dtype

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield blocks of `rows` rows, the last one shorter, each C-ordered."""
        spans = _row_blocks(self.shape[0], rows)
        return (np.ascontiguousarray(self.array[a:b]) for a, b in spans)


@dataclass(frozen=True)
class Packed:
    """An array as consecutive bytes of a stream: plain in a file, or inflated from a zip member."""

    open_stream: Callable[[], IO[bytes]]  # positioned at the first byte
    shape: tuple[int, ...]
    stored: np.dtype[Any]
    fortran: bool = False
    seekable: bool = True
    bfloat16: bool = False
    packed_bytes: int | None = None  # of a compressed zip member

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the blocks."""
        return np.dtype(np.float32) if self.bfloat16 else self.stored.newbyteorder("=")

    @property
    def kind(self) -> str:
        """The dtype in words."""
        return "bfloat16" if self.bfloat16 else self.stored.name

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def streams(self) -> bool:
        """Whether blocks of rows can be read without reading all."""
        return self.seekable or not self.fortran

    def check_inflated(self) -> None:
        """Refuse to inflate a few bytes to more than the memory of many machines."""
        needed, packed = self.size * self.stored.itemsize, self.packed_bytes
        if packed is not None and needed > max(_INFLATED, _RATIO * packed):
            raise FeaturesError(
                f"inflates from {packed / 1e6:.3g} MB to {needed / 1e9:.3g} GB, which numbers that were "
                "measured do not; save it by numpy.savez, uncompressed"
            )

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield blocks of `rows` rows, the last one shorter, each a new native C-ordered array."""
        with reading(), self.open_stream() as stream:
            origin = stream.tell() if self.seekable else 0
            for start, stop in _row_blocks(self.shape[0], rows):
                if self.fortran:
                    block = self._read_columns(stream, origin, start, stop)
                else:
                    block = np.empty((stop - start, *self.shape[1:]), dtype=self.stored)
                    _fill(stream, block)
                yield self._decode(block)

    def part(self, start: int, stop: int) -> NDArray[Any]:
        """Read elements start..stop, counted in C order, as a flat array."""
        with reading(), self.open_stream() as stream:
            stream.seek(start * self.stored.itemsize, os.SEEK_CUR)
            flat = np.empty(stop - start, dtype=self.stored)
            _fill(stream, flat)
        return self._decode(flat)

    def _decode(self, block: NDArray[Any]) -> NDArray[Any]:
        if self.bfloat16:  # the upper half of a float32
            block = (block.astype(np.uint32) << 16).view(np.float32)
        return _native(block)

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values as they are stored, rounded to the nearest, ties to even."""
        if not self.bfloat16:
            return values.astype(self.stored)
        bits = values.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(self.stored)

    def _read_columns(self, stream: IO[bytes], origin: int, start: int, stop: int) -> NDArray[Any]:
        n, size = self.shape[0], self.stored.itemsize
        columns = np.empty((*self.shape[:0:-1], stop - start), dtype=self.stored)
        for j, column in enumerate(columns.reshape(-1, stop - start)):
            if self.seekable:
                stream.seek(origin + (j * n + start) * size)
            elif stop - start != n:
                raise FeaturesError("a compressed array in Fortran order cannot be read in blocks")
            _fill(stream, column)
        return np.ascontiguousarray(columns.T)


@dataclass(frozen=True)
class Joined:
    """The rows of several arrays after each other, read like one."""

    parts: tuple[tuple[str, LazyArray], ...]  # the name of each

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of elements along each dimension."""
        first = self.parts[0][1].shape
        return (sum(array.shape[0] for _, array in self.parts), *first[1:])

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the blocks: one that holds the numbers of all parts."""
        kinds = {array.dtype for _, array in self.parts}
        found = np.result_type(*kinds)
        # NumPy takes floats for uint64 beside negative numbers, and they do not hold all of either.
        whole = found.kind == "f" and all(kind.kind in "iub" for kind in kinds)
        return np.dtype(np.int64) if whole else found

    @cached_property
    def streams(self) -> bool:
        """Whether blocks of rows can be read without reading all."""
        return all(array.streams for _, array in self.parts)

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield blocks of `rows` rows, the last one shorter, as one array would."""
        return in_blocks(self._blocks(rows), rows)

    def _blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        for name, array in self.parts:
            with blame(name):
                for block in array.chunks(rows):
                    # With missing values it is of objects.
                    yield block if block.dtype.kind == "O" else self._cast(block)

    def _cast(self, block: NDArray[Any]) -> NDArray[Any]:
        if block.dtype == np.uint64 and self.dtype == np.int64 and (block >> 63).any():
            raise FeaturesError(f"has {block.max()}, and int64 of other parts ends at 2**63 - 1")
        return block.astype(self.dtype, copy=False)
