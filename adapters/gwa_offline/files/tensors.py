"""The .safetensors format: its header, and tensors that are read in parts.

The `safetensors` package maps the whole file and gives NumPy no bfloat16, and the format is made to
be read by hand: eight bytes of length, a table in JSON, then the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gwa_offline.files.arrays import Openers, Packed, check_size, open_at
from gwa_offline.files.errors import FeaturesError, blame, reading
from gwa_offline.files.urls import Place, size_of

_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2",
}  # fmt: skip

# Python's objects take some twenty times the text that they are parsed from.
_LONGEST_HEADER = 10_000_000


class Header(NamedTuple):
    """What a file says of its tensors, and the bytes that say it."""

    head: bytes
    entries: Mapping[str, Any]
    size: int  # of the file


def read_header(path: Place) -> Header:
    """Read the header; the entries are checked where a tensor is opened."""
    with reading(), path.open("rb") as stream:
        size = size_of(path)
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if size < 8 or length > size - 8:
            raise FeaturesError(f"has {size} bytes and a header of {length}; it is truncated")
        if length > _LONGEST_HEADER:
            raise FeaturesError(f"has a header of {length} bytes, which no table of tensors needs")
        text = stream.read(length)
        entries = json.loads(text)
    if not isinstance(entries, dict):
        raise FeaturesError("has a header that is no table of tensors")
    entries.pop("__metadata__", None)
    return Header(start + text, entries, size)


def open_safetensors(path: Place) -> Openers:
    """Return what opens each tensor of a file."""
    header = read_header(path)
    return {name: partial(_open_tensor, path, header, name) for name in header.entries}


def open_all(path: Place) -> tuple[bytes, dict[str, Packed]]:
    """Return the bytes of the header, and all tensors in the order of their bytes, without a gap."""
    with blame(path):
        header = read_header(path)
        tensors = {}
        for name in header.entries:
            with blame(f"`{name}`"):
                tensors[name] = _open_tensor(path, header, name)
        spans = {name: _parse(entry)[2] for name, entry in header.entries.items()}
        names = sorted(spans, key=spans.__getitem__)
        ends = [0, *(spans[name][1] for name in names)]
        starts = [*(spans[name][0] for name in names), header.size - len(header.head)]
        if starts != ends:
            raise FeaturesError("has bytes that belong to no tensor or to two; it is damaged")
    return header.head, {name: tensors[name] for name in names}


def _open_tensor(path: Place, header: Header, name: str) -> Packed:
    kind, shape, (start, stop) = _parse(header.entries[name])
    data = len(header.head)
    if kind not in _DTYPES:
        raise FeaturesError(f"has dtype {kind}; save it as F32, F16 or BF16")
    if not 0 <= start <= stop <= header.size - data:
        raise FeaturesError(
            f"lies at bytes {start} to {stop} of {header.size - data}; "
            "the file is truncated or damaged"
        )
    stored = np.dtype(_DTYPES[kind])
    check_size(shape, stored, stop - start)
    return Packed(open_at(path, data + start), shape, stored, bfloat16=kind == "BF16")


def _parse(entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    if isinstance(entry, Mapping):
        kind, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if isinstance(kind, str) and isinstance(shape, list) and isinstance(span, list):
            numbers = [*shape, *span]
            if len(span) == 2 and all(type(x) is int and x >= 0 for x in numbers):
                return kind, tuple(shape), (span[0], span[1])
    raise FeaturesError(f"has the header {str(entry)[:120]}; the file is damaged")
