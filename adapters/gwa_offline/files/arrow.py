"""The messages of an Arrow file or stream, as the format lays them out.

Arrow says the rows of a batch, and how far its buffers inflate, once all of it is in memory. Both stand
in small tables before the data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

from gwa_offline.files.errors import FeaturesError
from gwa_offline.files.urls import Place, size_of

# What an Arrow file begins and ends with, and a stream ends with.
FILE, END = b"ARROW1", b"\xff\xff\xff\xff\x00\x00\x00\x00"

# Bytes that the buffers of a batch may inflate to, and how many times their packed size beyond them.
_INFLATED, _RATIO = 2**27, 64
_LONGEST = 2**24  # of a table; that of a batch has some bytes a column
_DICTIONARY, _BATCH = 2, 3  # kinds of messages


class _Table(NamedTuple):
    """A table of FlatBuffers: fields by number, each at an offset that a second table says."""

    data: bytes
    at: int

    def read(self, kind: str, at: int) -> int:
        if at < 0:
            raise FeaturesError("has a table that points before its beginning; the file is damaged")
        return int(struct.unpack_from("<" + kind, self.data, at)[0])

    def field(self, number: int) -> int | None:
        """Return where a field is; None where it is left out."""
        offsets = self.at - self.read("i", self.at)
        place = 4 + 2 * number
        offset = self.read("H", offsets + place) if place < self.read("H", offsets) else 0
        return self.at + offset if offset else None

    def number(self, number: int, kind: str) -> int:
        """Return a field that is a number; 0 where it is left out."""
        at = self.field(number)
        return 0 if at is None else self.read(kind, at)

    def table(self, number: int) -> _Table | None:
        """Return a field that is a table."""
        at = self.field(number)
        return None if at is None else _Table(self.data, at + self.read("I", at))

    def structs(self, number: int, kind: str) -> Iterator[tuple[int, ...]]:
        """Yield the elements of a field that is a vector of structs."""
        at = self.field(number)
        if at is None:
            return
        start = at + self.read("I", at)
        for i in range(self.read("I", start)):
            yield struct.unpack_from("<" + kind, self.data, start + 4 + i * struct.calcsize(kind))


class Contents(NamedTuple):
    """What the batches of a file hold."""

    rows: int
    compressed: bool


def read_contents(path: Place) -> Contents:
    """Look at all batches; refuse a file that is not whole, or inflates beyond reason."""
    size, rows, compressed = size_of(path), 0, False
    with path.open("rb", buffering=0) as stream:
        head = _read(stream, 0, len(FILE))
        if head[:4] == b"FEA1":
            raise FeaturesError(
                "is Feather of version 1; write it anew by pyarrow.feather.write_feather"
            )
        if head == FILE:
            places = _places_in_file(stream, size)
        elif _read(stream, max(size - len(END), 0), len(END)) == END:
            places = _places_in_stream(stream, size)
        else:
            raise FeaturesError("is no Arrow file, or a stream that was not written to its end")
        for place in places:
            message, body = _message(stream, place)
            if not 0 <= message.number(3, "q") <= size - body:
                raise FeaturesError("has a batch that is longer than the file; it is truncated")
            found = _check_batch(stream, message, body)
            rows += found.rows
            compressed |= found.compressed
    return Contents(rows, compressed)


def _read(stream: IO[bytes], start: int, size: int) -> bytes:
    stream.seek(start)
    return stream.read(size)


def _places_in_file(stream: IO[bytes], size: int) -> Iterator[int]:
    """Yield where the messages of batches begin, as the footer says."""
    length, end = struct.unpack("<i6s", _read(stream, size - 10, 10))
    if end != FILE or not 0 < length <= min(size - 20, _LONGEST):
        raise FeaturesError("has no footer; the file is truncated")
    data = _read(stream, size - 10 - length, length)
    footer = _Table(data, struct.unpack_from("<I", data)[0])
    for number in (2, 3):  # dictionaries, batches
        for place, table, body in footer.structs(number, "qi4xq"):
            if min(place, table, body) < 0 or place + table + body > size:
                raise FeaturesError("has a batch that is longer than the file; it is truncated")
            yield place


def _places_in_stream(stream: IO[bytes], size: int) -> Iterator[int]:
    """Yield where messages begin, one behind the other."""
    place = 0
    while place + 8 < size:
        message, body = _message(stream, place)
        if message.at == 0:
            if place + 8 < size:
                raise FeaturesError(
                    "has data behind its end, as streams have that were put together"
                )
            return
        yield place
        place = body + message.number(3, "q")


def _message(stream: IO[bytes], place: int) -> tuple[_Table, int]:
    """Return a message, and where its body is; at 0 the end of a stream."""
    mark, length = struct.unpack("<Ii", _read(stream, place, 8))
    start = place + 8
    if mark != 0xFFFFFFFF:  # as it was before Arrow 0.15
        start, length = place + 4, mark
    if length > _LONGEST or length < 0:
        raise FeaturesError(f"has a table of {length} bytes, which no batch needs")
    data = _read(stream, start, length)
    return _Table(data, struct.unpack_from("<I", data)[0] if length else 0), start + length


def _check_batch(stream: IO[bytes], message: _Table, body: int) -> Contents:
    """Return what a batch holds; other messages hold nothing."""
    kind, batch = message.number(1, "B"), message.table(2)
    if kind == _DICTIONARY and batch is not None:
        batch = batch.table(1)
    if batch is None or kind not in (_DICTIONARY, _BATCH):
        return Contents(0, compressed=False)
    compressed = batch.field(3) is not None
    if compressed:  # each buffer says first what it inflates to
        packed = inflated = 0
        for offset, length in batch.structs(2, "qq"):
            if length >= 8:
                packed += length
                inflated += max(0, struct.unpack("<q", _read(stream, body + offset, 8))[0])
        if inflated > max(_INFLATED, _RATIO * packed):
            raise FeaturesError(
                f"inflates a batch from {packed / 1e6:.3g} MB to {inflated / 1e9:.3g} GB, which numbers "
                "that were measured do not; write it uncompressed"
            )
    rows = batch.number(0, "q")
    if rows < 0:
        raise FeaturesError(f"has a batch of {rows} rows; the file is damaged")
    return Contents(rows if kind == _BATCH else 0, compressed)
