"""The file formats: .npy, .npz, .safetensors and .parquet, as arrays that are read in blocks.

Every size is checked against the size of the file before memory is asked for.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gwa_offline.files.arrays import LazyArray, Openers, Packed, check_size, open_at
from gwa_offline.files.checks import FIELDS
from gwa_offline.files.errors import FeaturesError, blame, reading
from gwa_offline.files.tensors import open_safetensors

# Names that data sets commonly use for the same thing.
ALIASES = {"target": "targets", "label": "targets", "labels": "targets", "id": "ids"}
_NPY_DTYPES = {"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"}
_NPY_HEADER_LIMIT = 2**16
# Deflate cannot pack more than 1032 bytes into one, so a larger claim is a damaged size.
_MAX_DEFLATE = 1032


# --- .npy and .npz ------------------------------------------------------------------------------


def _read_npy_header(stream: IO[bytes]) -> tuple[int, tuple[int, ...], np.dtype[Any], bool]:
    """Return header size, shape, dtype and order.

    NumPy's own parser evaluates the header as Python and warns about odd ones; three patterns
    cover all that a plain array can say.
    """
    start = stream.read(12)
    if start[:6] != b"\x93NUMPY":
        raise FeaturesError("is not in NumPy's .npy format")
    fixed, length = (10, start[8:10]) if start[6] == 1 else (12, start[8:12])
    size = int.from_bytes(length, "little")
    if start[6] not in (1, 2) or size > _NPY_HEADER_LIMIT:
        raise FeaturesError(
            f"has a .npy header of version {start[6]} and {size} bytes; "
            "a plain array has version 1 or 2: structured arrays are not read"
        )
    text = (start[fixed:] + stream.read(size - (12 - fixed))).decode("latin1")
    descr = re.search(r"""['"]descr['"]\s*:\s*['"]([<>|=]?)(\w+)['"]""", text)
    order = re.search(r"""['"]fortran_order['"]\s*:\s*(True|False)""", text)
    shape = re.search(r"""['"]shape['"]\s*:\s*\(((?:\s*[0-9]{1,18}L?\s*,?)*)\s*\)""", text)
    if descr and descr[2] == "O":
        raise FeaturesError(
            "holds pickled Python objects; these are refused, as reading them can run any code. "
            "Save a plain array of numbers (a ragged list has become an object array)"
        )
    if descr is None or order is None or shape is None or descr[2] not in _NPY_DTYPES:
        raise FeaturesError(
            f"has the .npy header {text.strip()[:120]!r}; only integers and floats of 2, 4 or 8 "
            "bytes are read (bfloat16 can be saved as float32, or as .safetensors)"
        )
    dims = tuple(int(dim) for dim in re.findall("[0-9]+", shape[1]))
    return fixed + size, dims, np.dtype(descr[1] + descr[2]), order[1] == "True"


def open_npy(path: Path, start: int = 0, stop: int | None = None) -> Packed:
    """Open a .npy file, or one that lies at bytes start..stop of another file."""
    with reading(), path.open("rb") as stream:
        stream.seek(start)
        header, shape, dtype, fortran = _read_npy_header(stream)
        end = path.stat().st_size if stop is None else stop
        check_size(shape, dtype, end - start - header)
    return Packed(open_at(path, start + header), shape, dtype, fortran and len(shape) > 1)


def _open_npz(path: Path) -> Openers:
    with reading(), zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    return {info.filename.removesuffix(".npy"): partial(_open_member, path, info) for info in infos}


def _open_member(path: Path, info: zipfile.ZipInfo) -> Packed:
    if info.flag_bits & 1:
        raise FeaturesError("is encrypted")
    if info.compress_type == zipfile.ZIP_STORED:
        with reading(), path.open("rb") as stream:
            # The local header repeats the name, and its extra field has a length of its own.
            stream.seek(info.header_offset)
            head = stream.read(30)
            if head[:4] != b"PK\x03\x04" or len(head) < 30:
                raise FeaturesError("is not where the zip directory says; the file is damaged")
            start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
            size = stream.seek(0, 2)
        if info.file_size != info.compress_size or start + info.file_size > size:
            raise FeaturesError("does not fit in the file; the file is truncated or damaged")
        return open_npy(path, start, start + info.file_size)

    if info.compress_type != zipfile.ZIP_DEFLATED:
        raise FeaturesError("is compressed in a way that NumPy never writes; use savez_compressed")
    if info.file_size > _MAX_DEFLATE * (info.compress_size + 1):
        raise FeaturesError("claims more bytes than its compressed form can hold; it is damaged")

    def inflate() -> IO[bytes]:
        # The archive keeps its file open until the member is closed.
        with zipfile.ZipFile(path) as archive:
            return archive.open(info)

    with reading(), inflate() as member:
        header, shape, dtype, fortran = _read_npy_header(member)
        check_size(shape, dtype, info.file_size - header)

    def open_stream() -> IO[bytes]:
        stream = inflate()
        stream.read(header)
        return stream

    return Packed(
        open_stream,
        shape,
        dtype,
        fortran and len(shape) > 1,
        seekable=False,
        packed_bytes=info.compress_size,
    )


# --- .parquet -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """A column of numbers, or of lists of one length, of a Parquet file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    streams = True

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        row_shape, found = self.shape[1:], 0
        parts: list[NDArray[Any]] = []
        for values, count in _read_column(self.path, self.name, rows):
            if len(values) != count * math.prod(row_shape):
                raise FeaturesError(f"`{self.name}` must have lists of one length, {row_shape[0]}")
            # Batches may end early at a row group.
            parts.append(values.reshape(count, *row_shape).astype(self.dtype, copy=False))
            found += count
            joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
            while len(joined) >= rows:
                yield joined[:rows]
                joined = joined[rows:]
            parts = [joined] if len(joined) else []
        yield from parts
        if found != self.shape[0]:
            raise FeaturesError(f"has {found} of {self.shape[0]} rows; the file is damaged")


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise FeaturesError(
            "a .parquet file is read with pyarrow: pip install 'gwa-core[formats]'"
        ) from error
    return pyarrow


def _read_column(path: Path, name: str, rows: int) -> Iterator[tuple[NDArray[Any], int]]:
    """Yield the flat values and the number of rows of each batch."""
    pa = _import_parquet()
    # Without these Arrow keeps whole row groups in memory, and all that it has read so far.
    options = {"buffer_size": 2**20, "pre_buffer": False}
    with reading(pa.ArrowException), pa.parquet.ParquetFile(path, **options) as file:
        for batch in file.iter_batches(rows, columns=[name], use_threads=False):
            column = batch.column(0)
            values = column.flatten() if column.type.num_fields else column
            if column.null_count or values.null_count:
                raise FeaturesError(f"`{name}` has missing values (null)")
            yield values.to_numpy(zero_copy_only=False), len(column)


def _open_parquet(path: Path) -> Openers:
    pa = _import_parquet()
    with reading(pa.ArrowException), pa.parquet.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    return {
        field.name: partial(_open_column, path, field.name, field.type, rows) for field in schema
    }


def _open_column(path: Path, name: str, kind: Any, rows: int) -> _Column:
    pa = _import_parquet()
    types = pa.types
    fixed = types.is_fixed_size_list(kind)
    nested = fixed or types.is_list(kind) or types.is_large_list(kind)
    value = kind.value_type if nested else kind
    if not (types.is_integer(value) or types.is_floating(value) or types.is_boolean(value)):
        raise FeaturesError(f"has type {kind}; a column of numbers or of lists of numbers is read")
    shape: tuple[int, ...] = (rows,)
    if fixed:
        shape = (rows, kind.list_size)
    elif nested:
        first = next(_read_column(path, name, 1), None)
        shape = (rows, len(first[0]) if first else 0)
    # What `to_pandas_dtype` gives, for which older releases import pandas.
    dtype = pa.array([], value).to_numpy(zero_copy_only=False).dtype
    return _Column(path, name, shape, dtype)


# --- any of them --------------------------------------------------------------------------------


def _open_folder(path: Path) -> Openers:
    return {file.stem: partial(open_npy, file) for file in sorted(path.glob("*.npy"))}


FORMATS: Mapping[str, Callable[[Path], Openers]] = {
    ".npz": _open_npz,
    ".safetensors": open_safetensors,
    ".parquet": _open_parquet,
}


def open_arrays(
    path: Path, columns: Mapping[str, str] | None = None
) -> tuple[dict[str, LazyArray], list[str]]:
    """Open the known arrays of a file or of a folder of .npy files; also list all names in it.

    `columns` says which names the file has for fields that it calls otherwise.
    """
    openers = _open_folder(path) if path.is_dir() else FORMATS[path.suffix](path)
    aliases = {field: alias for alias, field in reversed(ALIASES.items()) if alias in openers}
    names = {field: field if field in openers else aliases.get(field, field) for field in FIELDS}
    for field, name in (columns or {}).items():
        if name not in openers:
            raise FeaturesError(
                f"`{field}` is missing: `columns` calls it {name!r}, there is "
                f"{', '.join(openers) or 'nothing'}"
            )
        names[field] = name
    arrays: dict[str, LazyArray] = {}
    for field, name in names.items():
        if name in openers:
            with blame(f"`{name}`"):
                arrays[field] = openers[name]()
    return arrays, list(openers)
