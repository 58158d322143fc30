"""Columns of tables as arrays: Parquet, Arrow's files and streams, and tables in memory."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwa_offline.files.arrays import Held, LazyArray, Openers, in_blocks
from gwa_offline.files.arrow import FILE, read_contents
from gwa_offline.files.errors import FeaturesError, blame, reading
from gwa_offline.files.urls import Place, handle, size_of

# The arrays of one column of a table, about as many rows each as asked for.
Batches = Callable[..., Iterator[Any]]

# Mapped pages count as memory of the process, so a map is given back after as many bytes.
_MAPPED = 2**26

# Bytes that a column read whole may be, and how many times its file beyond them.
_INFLATED, _RATIO = 2**25, 64


@dataclass(frozen=True)
class Column:
    """A column of numbers, or of lists of one length."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    batches: Callable[..., Iterator[Any]]
    packed: int | None = None  # bytes of its file
    optional: bool = False  # may have missing values: None, of floats nan
    groups: tuple[int, ...] = ()  # rows of each group, where reading can begin at one
    classes: tuple[str, ...] = ()  # names of the numbers, where its library says them
    streams = True

    def check_inflated(self) -> None:
        """Refuse a few bytes that say that they are many rows."""
        needed = math.prod(self.shape) * self.dtype.itemsize
        if self.packed is not None and needed > max(_INFLATED, _RATIO * self.packed):
            raise FeaturesError(
                f"`{self.name}` inflates from a file of {self.packed / 1e6:.3g} MB to "
                f"{needed / 1e9:.3g} GB, which numbers that were measured do not"
            )

    def since(self, start: int) -> tuple[Column, int]:
        """Return the column from the group on that has a row, and how many rows are before it."""
        first = before = 0
        while first < len(self.groups) and before + self.groups[first] <= start:
            before += self.groups[first]
            first += 1
        if not first:
            return self, 0
        batches = partial(self.batches, first=first)
        shape = (self.shape[0] - before, *self.shape[1:])
        return replace(self, shape=shape, batches=batches, groups=()), before

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield blocks of `rows` rows, the last one shorter, each a new native C-ordered array."""
        return in_blocks(self._blocks(rows), rows)

    def _blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        row_shape, found = self.shape[1:], 0
        batches = self.batches(rows)
        for values, count in _flat(self.name, batches, row_shape, optional=self.optional):
            # Batches may end early at a row group.
            dtype = values.dtype if self.optional else self.dtype
            found += count
            yield values.reshape(count, *row_shape).astype(dtype, copy=False)
        if found != self.shape[0]:
            raise FeaturesError(f"has {found} of {self.shape[0]} rows; the file is damaged")


def _flat(
    name: str,
    batches: Iterator[Any],
    row_shape: tuple[int, ...] | None = None,
    *,
    optional: bool = False,
) -> Iterator[tuple[NDArray[Any], int]]:
    """Yield the flat values and the number of rows of each batch; rows have a shape, where known."""
    with reading(_arrow().ArrowException):
        for column in batches:
            if _arrow().types.is_dictionary(column.type):
                column = column.dictionary_decode()
            values = column.flatten() if column.type.num_fields else column
            missing = column.null_count or values.null_count
            if missing and optional:
                yield np.array(values.to_pylist(), dtype=object), len(column)
                continue
            if missing:
                raise FeaturesError(f"`{name}` has missing values (null)")
            if row_shape is not None:
                _check_lengths(name, column, len(values), row_shape)
            # A copy, so that nothing stays mapped.
            yield np.array(values.to_numpy(zero_copy_only=False)), len(column)


def _check_lengths(name: str, column: Any, total: int, row_shape: tuple[int, ...]) -> None:
    """Refuse a list of another length; what one has too much another may lack."""
    wrong = None
    if hasattr(column, "offsets"):  # others have one length by their type
        sizes = np.diff(column.offsets.to_numpy())
        wrong = next((int(size) for size in sizes[sizes != math.prod(row_shape)]), None)
    if wrong is not None or total != len(column) * math.prod(row_shape):
        got = "" if wrong is None else f", got one of {wrong}"
        raise FeaturesError(f"`{name}` must have lists of one length, {row_shape[0]}{got}")


def _open_columns(
    schema: Any,
    rows: int,
    batches: Batches,
    packed: int | None = None,
    groups: tuple[int, ...] = (),
) -> Openers:
    with reading():  # a damaged name is no text
        classes = _classes(schema)
        openers: dict[str, Callable[[], LazyArray]] = {}
        for i, field in enumerate(schema):
            column = field.name, field.type, rows, partial(batches, i), packed, groups
            openers[field.name] = partial(_open_column, *column, classes.get(field.name, ()))
        return openers


def _classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of classes that Hugging Face writes beside the types of columns."""
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(text)["info"]["features"]
        return {
            column: tuple(map(str, about["names"]))
            for column, about in features.items()
            if about.get("_type") == "ClassLabel"
        }
    except (ValueError, LookupError, TypeError, AttributeError):  # of others, who may say anything
        return {}


def _open_column(
    name: str,
    kind: Any,
    rows: int,
    batches: Callable[[int], Iterator[Any]],
    packed: int | None,
    groups: tuple[int, ...],
    classes: tuple[str, ...],
) -> LazyArray:
    pa = _arrow()
    types = pa.types
    fixed = types.is_fixed_size_list(kind)
    nested = fixed or types.is_list(kind) or types.is_large_list(kind)
    value = kind.value_type if nested or types.is_dictionary(kind) else kind
    numbers = types.is_integer(value) or types.is_floating(value) or types.is_boolean(value)
    strings = not nested and (types.is_string(value) or types.is_large_string(value))
    # An empty part was written by who saw no number; it is passed over.
    if not (numbers or strings or (types.is_null(value) and not rows)):
        raise FeaturesError(
            f"has type {kind}; a column of numbers, of strings or of lists of numbers is read"
        )
    shape: tuple[int, ...] = (rows,)
    if fixed:
        shape = (rows, kind.list_size)
    elif nested:
        # A batch may have no rows, which says nothing of the others.
        widths = (len(values) // count for values, count in _flat(name, batches(1)) if count)
        shape = (rows, next(widths, 0))
    # What `to_pandas_dtype` gives, for which older releases import pandas.
    value = pa.float64() if types.is_null(value) else value
    dtype = pa.array([], value).to_numpy(zero_copy_only=False).dtype
    return Column(name, shape, dtype, batches, packed, groups=groups, classes=classes)


def _arrow(file: Place | None = None) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        what = "a table" if file is None else f"a {file.suffix} file"
        raise FeaturesError(
            f"{what} is read with pyarrow: pip install 'gwa-core[formats]'"
        ) from error
    return pyarrow


# --- Parquet ------------------------------------------------------------------------------------


def open_parquet(path: Place) -> Openers:
    """Return what opens each column of a Parquet file."""
    pa = _arrow(path)
    with reading(pa.ArrowException), pa.parquet.ParquetFile(handle(path)) as file:
        schema, about = file.schema_arrow, file.metadata
        rows, count = about.num_rows, about.num_row_groups
        groups = tuple(about.row_group(i).num_rows for i in range(count))

    def batches(column: int, rows: int, first: int = 0) -> Iterator[Any]:
        # Without these Arrow keeps whole row groups in memory, and all that it has read so far.
        options = {"buffer_size": 2**20, "pre_buffer": False}
        with pa.parquet.ParquetFile(handle(path), **options) as file:
            name = schema.field(column).name
            wanted = {"columns": [name], "row_groups": range(first, count)}
            for batch in file.iter_batches(rows, use_threads=False, **wanted):
                yield batch.column(0)

    return _open_columns(schema, rows, batches, size_of(path), groups)


# --- Arrow's own files --------------------------------------------------------------------------


def open_ipc(path: Place) -> Openers:
    """Return what opens each column of an Arrow or Feather file, or of a stream in a file."""
    pa = _arrow(path)
    with reading(pa.ArrowException):
        contents = read_contents(path)
        with _record_batches(path) as (schema, _):
            pass
    # Arrow copies where it reads some columns only, and inflates all where it reads all.
    mapped = isinstance(path, Path)
    alone = contents.compressed or not mapped

    def batches(column: int, rows: int) -> Iterator[Any]:
        done, ended = 0, False
        while not ended:
            touched, start = 0, done
            with _record_batches(path, column if alone else None) as (_, found):
                for array in _slices(found, 0 if alone else column, rows, start):
                    array.validate(full=True)  # a file may say anything of its buffers
                    done, touched = done + len(array), touched + array.nbytes
                    yield array
                    if mapped and touched > _MAPPED:
                        break
                else:
                    ended = True

    return _open_columns(schema, contents.rows, batches, size_of(path))


@contextmanager
def _record_batches(path: Place, only: int | None = None) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Open a file, and give its schema and record batches, of all columns or of one only."""
    pa = _arrow(path)
    options = pa.ipc.IpcReadOptions(included_fields=None if only is None else [only])
    mapped = isinstance(path, Path)
    with pa.memory_map(str(path)) if mapped else pa.PythonFile(handle(path)) as source:
        head = source.read(len(FILE))
        source.seek(0)
        if head == FILE:
            file = pa.ipc.open_file(source, options=options)
            yield file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            stream = pa.ipc.open_stream(source, options=options)
            yield stream.schema, iter(stream)


def _slices(found: Iterator[Any], column: int, rows: int, start: int) -> Iterator[Any]:
    """Yield a column of record batches from a row on, in pieces of at most some rows."""
    first = 0
    for batch in found:
        for at in range(max(0, start - first), batch.num_rows, rows):
            yield batch.column(column).slice(at, rows)
        first += batch.num_rows


# --- in memory ----------------------------------------------------------------------------------

# What tables call their columns, in one library or another; a column has none.
_NAMES = ("columns", "column_names", "schema")


def is_table(data: object) -> bool:
    """Return whether an object is a table or a data set, of Arrow or of what speaks its language."""
    named = any(hasattr(data, name) for name in _NAMES)
    return (hasattr(data, "__arrow_c_stream__") and named) or _is(
        data, "pyarrow.dataset.Dataset", "datasets.Dataset"
    )


def is_stream(data: object) -> bool:
    """Return whether an object is rows without a number, which are read once."""
    return _is(data, "datasets.IterableDataset", "torch.utils.data.DataLoader")


def is_column(data: object) -> bool:
    """Return whether an object is one column, of Arrow or of what speaks its language."""
    speaks = hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__")
    column = speaks and not any(hasattr(data, name) for name in _NAMES)
    return column or _is(data, "pandas.Series")  # older ones do not speak


def _is(data: object, *names: str) -> bool:
    """Return whether an object is of a class of a library, which is then imported already."""
    for name in names:
        module, _, kind = name.rpartition(".")
        found = getattr(sys.modules.get(module), kind, None)
        if found is not None and isinstance(data, found):
            return True
    return False


def open_table(data: Any) -> Openers:
    """Return what opens each column of a table or a data set."""
    pa = _arrow()
    with reading(pa.ArrowException, TypeError):
        if _is(data, "datasets.Dataset"):
            return _open_columns(data.features.arrow_schema, len(data), partial(_of_rows, data))
        if _is(data, "pyarrow.dataset.Dataset"):
            return _open_columns(data.schema, data.count_rows(), partial(_of_files, data))
        table = pa.table(data)
        return _open_columns(table.schema, table.num_rows, partial(_of_table, table))


def open_column(name: str, data: Any) -> LazyArray:
    """Open one column."""
    kind = getattr(data, "dtype", None)
    if isinstance(kind, np.dtype) and kind.kind != "O":
        return Held(np.asarray(data))
    pa = _arrow()
    with blame(f"`{name}`"), reading(pa.ArrowException, TypeError):
        chunks = data if hasattr(data, "__arrow_c_stream__") else [pa.array(data)]
        table = pa.table({name: pa.chunked_array(chunks)})
        return open_table(table)[name]()


def _of_table(table: Any, column: int, rows: int) -> Iterator[Any]:
    return (x.column(0) for x in table.select([column]).to_batches(max_chunksize=rows))


def _of_files(data: Any, column: int, rows: int) -> Iterator[Any]:
    options = {"batch_readahead": 1, "fragment_readahead": 1, "use_threads": False}
    name = data.schema.names[column]
    found = data.scanner(columns=[name], batch_size=rows, **options).to_batches()
    return (batch.column(0) for batch in found)


def _of_rows(data: Any, column: int, rows: int) -> Iterator[Any]:
    chosen = data.select_columns([data.column_names[column]]).with_format("arrow")
    for table in chosen.iter(rows):
        yield from table.column(0).chunks
