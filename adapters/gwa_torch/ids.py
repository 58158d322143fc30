"""Row numbers of a data set, beside its items."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

__all__ = ["with_ids"]

KEY = "ids"

ADVICE = (
    "where the samples are made, number them 0..N-1 and yield the number as the last item of a "
    'tuple, or under "ids" of a dict'
)


def with_ids(dataset: Any) -> Dataset[Any]:
    """Return a data set whose items also have their row number.

    The numbers are what ``num_samples=len(dataset)`` asks for: 0 to N-1, one for each row of
    `dataset`, whatever the order in which a sampler draws them.

    Parameters
    ----------
    dataset : map-style data set
        Anything with ``__getitem__`` and ``__len__``: a ``torch.utils.data.Dataset``, a data set of
        Hugging Face, a list.

    Returns
    -------
    Dataset
        A tuple or a list gets the number as its last item, a dict under the key ``"ids"``. Any
        other item becomes ``(item, number)``. A named tuple becomes a plain one. All other
        attributes are those of `dataset`.

    Raises
    ------
    TypeError
        On an iterable-style data set, a loader, or a dict of data sets. On an item whose index is
        a string.
    ValueError
        If the items have a key ``"ids"`` already.

    Notes
    -----
    Wrap the data set that `num_samples` counts. A ``Subset`` of a wrapped data set keeps the numbers
    of the whole one. A ``ConcatDataset`` of wrapped data sets has the same number twice: wrap the
    concatenation instead. Methods that return another data set, such as ``shuffle`` and ``map`` of
    Hugging Face, return it without numbers: wrap last. Collators of your own must keep the number:
    a batch needs it as a tensor.
    Cost: one integer an item. Nothing is read before it is asked for.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from gwa_torch import with_ids
    >>> dataset = with_ids(TensorDataset(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])))
    >>> inputs, targets, ids = next(iter(DataLoader(dataset, batch_size=3)))
    >>> ids
    tensor([0, 1, 2])
    """
    if isinstance(dataset, _WithIds):
        # As in a notebook cell that runs twice.
        return dataset
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"`dataset` must be one data set, got {kind} with the keys "
            f"{', '.join(map(repr, list(dataset)[:5]))}; wrap the part to train on, such as "
            'with_ids(datasets["train"])'
        )
    sized = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, IterableDataset) or not sized:
        raise TypeError(
            f"`dataset` must be map-style, with `__getitem__` and `__len__`, got {kind}; wrap the "
            f"data set and not its loader. The rows of an iterable-style one have no number: {ADVICE}"
        )
    if KEY in (getattr(dataset, "column_names", None) or ()):
        raise _taken(kind, "a column")
    return _WithIds(dataset)


class Around:
    """A data set around another one: its other attributes are those of the one inside."""

    # The attribute that has the one inside.
    inside = "dataset"

    def __init__(self, dataset: Any) -> None:
        setattr(self, self.inside, dataset)

    def __len__(self) -> int:
        return len(getattr(self, self.inside))

    def __getattr__(self, name: str) -> Any:
        # A copy that is being unpickled has no attributes yet, and must not look for them for ever.
        if name == self.inside or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(getattr(self, self.inside), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # A transform that is set later is meant for the data set.
        if name == self.inside:
            super().__setattr__(name, value)
        else:
            setattr(getattr(self, self.inside), name, value)


class _WithIds(Around, Dataset[Any]):
    """A data set whose items have their row number."""

    def __getitem__(self, index: Any) -> Any:
        """Return an item with its number; several items, by a slice or a list, with theirs."""
        if isinstance(index, str):
            return self._column(index)
        found = self.dataset[index]
        if isinstance(index, slice):
            return _join(found, torch.arange(len(self))[index])
        if isinstance(index, Sequence) or getattr(index, "ndim", 0) > 0:
            return _join(found, torch.arange(len(self))[torch.as_tensor(index)])
        return _join(found, self._number(index))

    def __getitems__(self, indices: Any) -> Any:
        """Return the items of a batch, as loaders ask for them."""
        whole = getattr(self.dataset, "__getitems__", None)
        if whole is None:
            return [self[index] for index in indices]
        found, numbers = whole(indices), [self._number(index) for index in indices]
        if isinstance(found, list) and len(found) == len(numbers):
            return [_join(item, number) for item, number in zip(found, numbers, strict=True)]
        # A batch that is already put together.
        return _join(found, torch.tensor(numbers))

    def _number(self, index: Any) -> int:
        number = operator.index(index)
        return number + len(self) if number < 0 else number

    def _column(self, name: str) -> Any:
        # Data sets of Hugging Face return a column by its name.
        columns = getattr(self.dataset, "column_names", None)
        if columns is None:
            raise TypeError(
                f"`index` must be an integer, got {name!r}; strings cannot say which row it is: "
                "number them 0..N-1, and keep the strings in a list to look them up"
            )
        return list(range(len(self))) if name == KEY else self.dataset[name]


def _join(item: Any, number: Any) -> Any:
    """Return an item with its number."""
    if isinstance(item, Mapping):
        if KEY in item:
            raise _taken(type(item).__name__, f"an item {item[KEY]!r}")
        return {**item, KEY: number}
    if isinstance(item, tuple):
        return (*item, number)
    if isinstance(item, list):
        return [*item, number]
    return item, number


def _taken(kind: str, what: str) -> ValueError:
    return ValueError(
        f'`dataset` must have no key "{KEY}", got {kind} with {what} of that name; integers from '
        "0..N-1 need no `with_ids`. Rename anything else: strings cannot be ids, number them 0..N-1"
    )
