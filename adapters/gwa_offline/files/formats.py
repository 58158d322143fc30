"""The file formats as arrays that are read in blocks: .npy and .npz, and all others by suffix.

Every size is checked against the size of the file before memory is asked for.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import IO, Any
from urllib.parse import unquote

import numpy as np

from gwa_offline.files.arrays import Held, LazyArray, Openers, Packed, check_size, open_at
from gwa_offline.files.checkpoints import open_checkpoint
from gwa_offline.files.checks import ALIASES, FIELDS
from gwa_offline.files.errors import FeaturesError, blame, reading
from gwa_offline.files.memory import InMemory
from gwa_offline.files.tables import Column, open_ipc, open_parquet
from gwa_offline.files.tensors import open_safetensors
from gwa_offline.files.urls import Place, handle, size_of

_NPY_DTYPES = {"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"}
# Strings of a fixed length, the longest that a path can have.
_STRINGS = re.compile("U[1-9][0-9]{0,3}")
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
    known = descr is not None and (descr[2] in _NPY_DTYPES or _STRINGS.fullmatch(descr[2]))
    if descr is None or order is None or shape is None or not known:
        raise FeaturesError(
            f"has the .npy header {text.strip()[:120]!r}; only integers and floats of 2, 4 or 8 "
            "bytes are read (bfloat16 can be saved as float32, or as .safetensors)"
        )
    dims = tuple(int(dim) for dim in re.findall("[0-9]+", shape[1]))
    return fixed + size, dims, np.dtype(descr[1] + descr[2]), order[1] == "True"


def open_npy(path: Place, start: int = 0, stop: int | None = None) -> Packed:
    """Open a .npy file, or one that lies at bytes start..stop of another file."""
    with reading(), open_at(path, start)() as stream:
        header, shape, dtype, fortran = _read_npy_header(stream)
        end = size_of(path) if stop is None else stop
        check_size(shape, dtype, end - start - header)
    return Packed(open_at(path, start + header), shape, dtype, fortran and len(shape) > 1)


def _open_npz(path: Place) -> Openers:
    with reading(), zipfile.ZipFile(handle(path)) as archive:
        infos = archive.infolist()
    return {info.filename.removesuffix(".npy"): partial(_open_member, path, info) for info in infos}


def _open_member(path: Place, info: zipfile.ZipInfo) -> Packed:
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
        with zipfile.ZipFile(handle(path)) as archive:
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


# --- any of them --------------------------------------------------------------------------------


def _open_folder(path: Place) -> Openers:
    files: list[Place] = [file for file in path.iterdir() if file.suffix == ".npy"]
    return {file.stem: partial(open_npy, file) for file in sorted(files, key=str)}


FORMATS: Mapping[str, Callable[[Place], Openers]] = {
    ".npz": _open_npz,
    ".safetensors": open_safetensors,
    ".parquet": open_parquet,
    ".arrow": open_ipc,
    ".feather": open_ipc,
    ".pt": open_checkpoint,
    ".pth": open_checkpoint,
}


# Before the names of columns that are carried along, as no field begins.
KEPT = "kept "

# A partition, such as the folder ``label=3``.
KEY = re.compile(r"^([A-Za-z_]\w*)=(.*)$")
_NULL = "__HIVE_DEFAULT_PARTITION__"


def open_arrays(
    part: Place | InMemory, columns: Mapping[str, str] | None = None, keep: Sequence[str] = ()
) -> tuple[dict[str, LazyArray], list[str]]:
    """Open the known arrays of a file or of a folder of .npy files; also list all names in it.

    `columns` says which names the file has for fields that it calls otherwise. The folders around a
    file may be partitions, which are columns too. The columns to `keep` have KEPT before their names.
    """
    arrays: dict[str, LazyArray] = {}
    if isinstance(part, InMemory):
        openers = part.openers()
    elif part.is_dir():
        openers = _open_folder(part)
    else:
        openers = {**_keys(part, arrays), **FORMATS[part.suffix](part)}
    aliases = {field: alias for alias, field in reversed(ALIASES.items()) if alias in openers}
    names = {field: field if field in openers else aliases.get(field, field) for field in FIELDS}
    for field, name in (columns or {}).items():
        if name not in openers:
            raise FeaturesError(
                f"`{field}` is missing: `columns` calls it {name!r}, there is "
                f"{', '.join(openers) or 'nothing'}"
            )
        names[field] = name
    for field, name in names.items():
        if name in openers:
            with blame(f"`{name}`"):
                arrays[field] = openers[name]()
    for name in keep:
        if name not in openers:
            raise FeaturesError(
                f"`keep` names {name!r}, there is {', '.join(openers) or 'nothing'}"
            )
        with blame(f"`{name}`"):
            arrays[KEPT + name] = open_kept(openers[name]())
    return arrays, list(openers)


def open_kept(array: LazyArray) -> LazyArray:
    """Return a column that is carried along, which may have missing values."""
    return replace(array, optional=True) if isinstance(array, Column) else array


def _keys(file: Place, arrays: Mapping[str, LazyArray]) -> Openers:
    """Return what opens the columns that the names of the folders around a file say."""
    found: dict[str, Callable[[], LazyArray]] = {}
    for folder in reversed(file.parts[:-1]):
        key = KEY.match(folder)
        if key is None:
            break
        found.setdefault(key[1], partial(_repeated, key[1], key[2], arrays))
    return found


def _repeated(name: str, value: str, arrays: Mapping[str, LazyArray]) -> LazyArray:
    if value == _NULL:
        raise FeaturesError(f"the folder {name}={value} is of rows that have no {name}")
    rows = arrays["latents"].shape[:1] if "latents" in arrays else (0,)
    number = re.fullmatch("[0-9]{1,18}", value)
    return Held(np.full(rows, int(value) if number else unquote(value)))
