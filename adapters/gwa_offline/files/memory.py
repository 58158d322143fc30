"""Sources that are open already: mappings of arrays, tables and data sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwa_offline.files.arrays import Held, LazyArray, Openers, read_all
from gwa_offline.files.checks import ALIASES, FIELDS, to_numpy
from gwa_offline.files.errors import FeaturesError, blame, reading
from gwa_offline.files.tables import is_column, is_stream, is_table, open_column, open_table


@dataclass(frozen=True)
class Sliced:
    """An array of any library that gives blocks of rows when it is sliced."""

    name: str
    array: Any
    streams = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements along each dimension."""
        with blame(f"`{self.name}`"), reading():  # a file may be closed
            return tuple(int(size) for size in self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the blocks, in native byte order."""
        return self._read(0, 0).dtype

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield blocks of `rows` rows, the last one shorter, each a new native C-ordered array."""
        for start in range(0, self.shape[0], rows):
            yield self._read(start, start + rows)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        with blame(f"`{self.name}`"), reading():
            piece = self.array[start:stop]
        block = to_numpy(self.name, piece)
        # A copy: what it was cut from is the user's.
        return np.array(block, dtype=block.dtype.newbyteorder("="), order="C")


def open_array(name: str, array: Any) -> LazyArray:
    """Open an array of any library, a column or a frame of numbers, or a list of them."""
    if isinstance(array, Mapping):
        raise FeaturesError(
            f"`{name}` is a {type(array).__name__} and no array; give what is in it"
        )
    if is_column(array):
        return open_column(name, array)
    # A slice of a frame goes by the labels of its rows.
    with reading():
        sliced = not is_table(array) and hasattr(array, "__getitem__") and hasattr(array, "shape")
        sliced = sliced and len(array.shape) > 0
    return Sliced(name, array) if sliced else Held(to_numpy(name, array))


def read_array(name: str, array: Any) -> NDArray[Any]:
    """Return an array of any library, or a column of a table, in memory."""
    return read_all(open_column(name, array)) if is_column(array) else to_numpy(name, array)


class InMemory:
    """A source that is open already.

    Parameters
    ----------
    data : mapping of str to array, table or data set
        What was given.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.name = self.stem = type(data).__name__

    def __str__(self) -> str:
        return self.name

    def openers(self) -> Openers:
        """Return what opens each array by name."""
        if is_table(self.data):
            return open_table(self.data)
        try:
            items = list(self.data.items())
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise FeaturesError(f"cannot be read; is it closed? ({error})") from error
        arrays = {str(key): array for key, array in items if array is not None}
        tables = [is_table(array) or is_stream(array) for array in arrays.values()]
        if tables and all(tables) and not {*FIELDS, *ALIASES} & {*arrays}:
            raise FeaturesError(
                f"holds the splits {', '.join(arrays)}; give one of them: data[{next(iter(arrays))!r}]"
            )
        return {name: partial(open_array, name, array) for name, array in arrays.items()}


def is_open(source: object) -> bool:
    """Return whether a source is no path."""
    return isinstance(source, InMemory | Mapping) or is_table(source)


def is_epochs(source: object) -> bool:
    """Return whether a mapping has the numbers of epochs for keys."""
    return (
        isinstance(source, Mapping)
        and bool(source)
        and all(isinstance(x, int | np.integer) and not isinstance(x, bool) for x in source)
    )
