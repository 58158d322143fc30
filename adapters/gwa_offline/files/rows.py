"""What is carried along beside the rows of a source: columns of its files, and tables by id."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwa_offline.files.arrays import LazyArray, refuse_inflating
from gwa_offline.files.errors import FeaturesError, blame, reading
from gwa_offline.files.features import Features
from gwa_offline.files.formats import FORMATS, open_kept
from gwa_offline.files.strings import Strings, text_blocks
from gwa_offline.files.urls import place_of

__all__ = ["NAME", "RESULTS", "carried", "check_keep", "keep_rows", "read_index"]

# The column that the string ids of a source become.
NAME = "name"

# Columns that results have of their own.
RESULTS = ("id", "label", "target", "prediction", "alignment", "label_quality", NAME)

_IDS = ("id", "ids")


def check_keep(keep: Sequence[str]) -> tuple[str, ...]:
    """Return the names of columns to keep."""
    if isinstance(keep, str) or not all(isinstance(name, str) and name for name in keep):
        raise FeaturesError(f"`keep` must be names of columns, such as ['path'], got {keep!r}")
    for name in keep:
        if name in RESULTS:
            raise FeaturesError(
                f"`keep` names {name!r}, which results have of their own ({', '.join(RESULTS)}); "
                "give the column another name in the file"
            )
    return tuple(dict.fromkeys(keep))


def carried(
    openers: Iterable[Callable[[], Features]],
    keep: Sequence[str],
    index: str | os.PathLike[str] | None,
    strings: Strings,
    num_samples: int,
) -> dict[str, NDArray[Any]]:
    """Return names of rows, columns to keep and those of an index, each (N,) by sample id."""
    found: dict[str, NDArray[Any]] = {}
    if (names := strings.row_names) is not None:
        found[NAME] = np.full(num_samples, None, object)
        found[NAME][: len(names)] = names
    found |= keep_rows((opener() for opener in openers), keep, num_samples)
    if index is not None:
        columns = read_index(index, num_samples, strings)
        if twice := [name for name in columns if name in found]:
            raise FeaturesError(
                f"{index}: `{twice[0]}` is a column of the source and of the index; keep one"
            )
        found |= columns
    return found


def keep_rows(
    epochs: Iterable[Features], keep: Sequence[str], num_samples: int
) -> dict[str, NDArray[Any]]:
    """Return the columns to keep by sample id; where a sample comes again the first one counts.

    Parameters
    ----------
    epochs : iterable of Features
        In order; those after the one with which all samples are known are not opened.
    keep : sequence of str
        Names of columns.
    num_samples : int
        N.

    Returns
    -------
    dict of str to array of shape (N,)
        Of objects, None where unknown, unless all samples have numbers: then of the dtype that holds
        those of all epochs.

    Raises
    ------
    FeaturesError
        If a column is damaged, or has text in some rows and numbers in others.
    """
    if not keep:
        return {}
    found = {name: np.full(num_samples, None, object) for name in keep}
    known = np.zeros(num_samples, np.bool_)
    dtypes: dict[str, set[np.dtype[Any]]] = {name: set() for name in keep}
    kinds: dict[str, dict[str, object]] = {name: {} for name in keep}
    for features in epochs:
        ids = np.arange(features.num_samples) if features.ids is None else features.ids
        fresh = ~known[ids]
        for name in keep:
            array = features.kept[name]
            dtypes[name].add(array.dtype)
            with blame(features.path), blame(f"`{name}`"):
                values = _values(array, features.num_samples)
                _check_kinds(values, kinds[name], features.path)
            found[name][ids[fresh]] = values[fresh]
        known[ids] = True
        if known.all():
            break
    return {name: _narrow(values, dtypes[name]) for name, values in found.items()}


def _check_kinds(values: NDArray[Any], kinds: dict[str, object], where: object) -> None:
    """Refuse text beside numbers; `kinds` has where each of them came first."""
    for value in values:
        if value is not None and value == value:  # nan may stand for text that is missing
            kinds.setdefault("text" if isinstance(value, str) else "numbers", where)
    if len(kinds) > 1:
        (first, place), (other, _) = kinds.items()
        raise FeaturesError(
            f"must be text or numbers, got {other} here and {first} in {place}; save it as one of them"
        )


def _values(array: LazyArray, rows: int) -> NDArray[Any]:
    """Return a column as objects of Python."""
    if tuple(array.shape) != (rows,) or array.dtype.kind not in "iufbUO":
        raise FeaturesError(
            f"must be one number or string a row, ({rows},), got {array.dtype} of shape {array.shape}"
        )
    refuse_inflating(array)
    values = np.empty(rows, object)
    start = 0
    for block in text_blocks(array):
        wrong = next((x for x in block if not isinstance(x, str | int | float | None)), None)
        if wrong is not None:
            raise FeaturesError(f"must be numbers or strings, got {type(wrong).__name__}")
        values[start : start + len(block)] = block
        start += len(block)
    return values


def _narrow(values: NDArray[Any], dtypes: set[np.dtype[Any]]) -> NDArray[Any]:
    """Return numbers as numbers where none is missing, and where one dtype holds them all."""
    if any(dtype.kind not in "iufb" for dtype in dtypes) or any(x is None for x in values):
        return values
    numbers = values.astype(np.result_type(*dtypes))
    # Floats do not hold all whole numbers.
    exact = len(dtypes) == 1 or all(
        new == old or old != old for new, old in zip(numbers.tolist(), values, strict=True)
    )
    return numbers if exact else values


def read_index(
    file: str | os.PathLike[str], num_samples: int, strings: Strings
) -> dict[str, NDArray[Any]]:
    """Read a table by id.

    Parameters
    ----------
    file : path
        A ``.csv`` file with a line of names, whose values stay text, or a table that features may be,
        such as ``.parquet``. The column ``id`` or ``ids`` has the ids of the source: its whole
        numbers, or its strings.
    num_samples : int
        N.
    strings : Strings
        Of the source.

    Returns
    -------
    dict of str to array of shape (N,)
        The other columns by sample id, None where the table has no row. A name that results have of
        their own has ``index.`` before it.

    Raises
    ------
    FeaturesError
        If the table has no ids, or one twice, or none of the source, or two columns would have one name.
    """
    place = Path(file)
    with blame(place):
        if not place.is_file():
            raise FeaturesError("there is no such file; an index is a .csv or .parquet file")
        columns = _read_csv(place) if place.suffix == ".csv" else _read_table(place)
        key = next((name for name in _IDS if name in columns), None)
        if key is None:
            raise FeaturesError(
                f"has no column `id`, there is {', '.join(list(columns)[:8]) or 'nothing'}; an index "
                "says which sample each row is"
            )
        ids = _find(columns.pop(key), key, num_samples, strings)
    inside = ids >= 0
    found = {}
    for name, values in columns.items():
        column = np.full(num_samples, None, object)
        column[ids[inside]] = values[inside]
        called = f"index.{name}" if name in RESULTS else name
        if called != name and called in columns:
            raise FeaturesError(
                f"{place}: has the columns `{name}` and `{called}`, and results call the first one "
                f"`{called}`, as they have their own `{name}`; give one of them another name"
            )
        found[called] = column
    return found


def _find(values: NDArray[Any], key: str, num_samples: int, strings: Strings) -> NDArray[np.int64]:
    """Return the number of each id, -1 where the source does not have it."""
    if strings.row_names is None:
        numbers = []
        for row, value in enumerate(values):
            number = _whole(value)
            if number is None:
                raise FeaturesError(
                    f"`{key}` must be whole numbers as in the source, got {value!r} in row {row}"
                )
            numbers.append(number if 0 <= number < num_samples else -1)
        ids = np.array(numbers, np.int64)
    else:
        ids = strings.find([str(value) for value in values])
    known = ids[ids >= 0]
    if not len(known):
        got = f", got {values[0]!r}" if len(values) else ""
        raise FeaturesError(f"`{key}` must be ids of the source, none of them is{got}")
    often = np.bincount(known)
    if often.max() > 1:
        twice = values[ids == int(often.argmax())][0]
        raise FeaturesError(f"`{key}` must be unique, {twice!r} is there {often.max()} times")
    return ids


def _whole(value: Any) -> int | None:
    """Return a whole number, or a text that is one, and None for others."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if whole else None


def _read_csv(place: Path) -> dict[str, NDArray[Any]]:
    with reading(csv.Error), place.open(newline="", encoding="utf-8-sig") as stream:
        table = csv.reader(stream)
        names = next(table, [])
        if len(set(names)) < len(names):
            raise FeaturesError("has two columns of one name")
        rows = []
        for row in table:
            if row and len(row) != len(names):
                raise FeaturesError(
                    f"line {table.line_num} has {len(row)} cells, the first one has {len(names)}"
                )
            if row:
                rows.append(row)
    return {name: np.array([row[i] for row in rows], dtype=object) for i, name in enumerate(names)}


def _read_table(place: Path) -> dict[str, NDArray[Any]]:
    if place.suffix not in FORMATS:
        raise FeaturesError(f"an index is a .csv or .parquet file, got {place.suffix or 'neither'}")
    found: dict[str, NDArray[Any]] = {}
    openers: Mapping[str, Any] = FORMATS[place.suffix](place_of(place))
    rows: int | None = None
    for name, opener in openers.items():
        with blame(f"`{name}`"):
            array = open_kept(opener())
            rows = array.shape[0] if rows is None and array.shape else rows
            found[name] = _values(array, rows or 0)
    return found
