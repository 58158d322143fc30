"""Numbers of samples on their way past a collator that does not know them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset

from gwa_torch.ids import Around

__all__ = ["Columns", "carry_ids", "label_column"]


class Columns(NamedTuple):
    """What the columns of a batch are called, and what its labels mean.

    Parameters
    ----------
    ids : str
        The column of sample numbers.
    labels : tuple of str
        Columns that may be the labels.
    num_samples : int
        N, which for labels by token is rows times places in a row.
    by_row : bool
        Whether a row has one sample, whatever the shape of its labels.
    counted : bool
        Whether places in a row are those of labels that count, as in a decoder after an encoder.
    ignore_index : int
        The label that does not count.
    """

    ids: str
    labels: tuple[str, ...]
    num_samples: int
    by_row: bool
    counted: bool
    ignore_index: int


def carry_ids(loader: Any, columns: Columns) -> None:
    """Have each batch of a loader hold the numbers of its rows, where it has none of its own.

    The collator inside sees the rows as they are. The order of the rows and the random numbers
    stay the same.

    Parameters
    ----------
    loader : DataLoader
        Also one that Accelerate has wrapped. It is changed in place; a loader of an iterable data
        set stays as it is.
    columns : Columns
        The names.
    """
    inner = getattr(loader, "base_dataloader", loader)
    rows: Any = getattr(inner, "dataset", None)
    if not isinstance(inner, DataLoader) or isinstance(rows, (IterableDataset, Numbered)):
        return
    if not hasattr(rows, "__len__") or inner.batch_sampler is None:
        return
    inner.collate_fn = Carry(inner.collate_fn, columns, len(rows))
    # A loader refuses another data set by its attribute.
    vars(inner)["dataset"] = Numbered(rows)


class Numbered(Around):
    """A data set whose rows come with their numbers."""

    # A subset has a `dataset` of its own, which stays in reach.
    inside = "rows"

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        return index, self.rows[index]

    def __getitems__(self, indices: Sequence[Any]) -> list[tuple[Any, Any]]:
        several = getattr(self.rows, "__getitems__", None)
        rows = several(indices) if several else [self.rows[index] for index in indices]
        return list(zip(indices, rows, strict=True))


class Carry:
    """A collator around another one, which numbers what comes out.

    Parameters
    ----------
    collate : callable
        The collator inside.
    columns : Columns
        The names.
    size : int
        How many rows the data set has.
    """

    def __init__(self, collate: Callable[[Any], Any], columns: Columns, size: int) -> None:
        self.collate = collate
        self.columns = columns
        self.size = size

    def __call__(self, features: Sequence[tuple[Any, Any]]) -> Any:
        """Collate the rows."""
        name, rows = self.columns.ids, [row for _, row in features]
        own = [row[name] for row in rows if isinstance(row, Mapping) and name in row]
        _check_kind(name, own)
        by_token = bool(own) and len(own) == len(rows) and all(map(_is_list, own))
        if by_token and len({len(numbers) for numbers in own}) > 1:
            # Of rows that were packed before; no collator pads a column that it does not know.
            rows = [{key: x for key, x in row.items() if key != name} for row in rows]
        numbers = _whole(own if len(own) == len(rows) else [number for number, _ in features])
        batch = self.collate(rows)
        if not isinstance(batch, MutableMapping):
            return batch
        if by_token and name not in batch:
            batch[name] = _by_token(batch, own, self.columns)
            return batch
        if name in batch:
            there = batch[name]
            rowwise = isinstance(there, torch.Tensor) and there.shape == (len(rows),)
            numbers = there if rowwise else None
        if numbers is not None:
            batch[name] = self._fit(batch, numbers)
        return batch

    def _fit(self, batch: Mapping[str, Any], numbers: torch.Tensor) -> torch.Tensor:
        """Return the numbers as they are, or one for each token where labels are by token."""
        columns = self.columns
        labels = next((batch[key] for key in columns.labels if key in batch), None)
        if not isinstance(labels, torch.Tensor) or labels.ndim != 2 or columns.by_row:
            return numbers
        if labels.is_floating_point():
            return numbers
        rows, places = self._places(batch, labels, numbers)
        if columns.num_samples == self.size:
            # A row is one sample, to which its tokens add up.
            return rows
        width, rest = divmod(columns.num_samples, self.size)
        longest = int(((labels != columns.ignore_index) * (places + 1)).amax())
        if rest or longest > width:
            raise ValueError(
                f"`num_samples` must be the number of rows, {self.size}, got {columns.num_samples}; "
                "tokens then add up by row. For a score of each token it is rows × places, at least "
                f"{self.size} × {longest}: token t of row i is sample i * places + t. Without "
                "`num_samples` there is GWA without scores by sample"
            )
        return rows * width + places.clamp(0, width - 1)

    def _places(
        self, batch: Mapping[str, Any], labels: torch.Tensor, numbers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the number of the row of each token, and its place in that row."""
        places, mask = batch.get("position_ids"), batch.get("attention_mask")
        if isinstance(places, torch.Tensor) and len(labels) != len(numbers):
            # Rows one behind the other, each of which begins at 0.
            row = (places == 0).cumsum(-1) - 1
            if int(row.amax()) >= len(numbers):
                raise ValueError(
                    "`position_ids` must begin at 0 once a row in a batch that joins rows, got "
                    f"{int(row.amax()) + 1} beginnings for {len(numbers)} rows; usual cause: rows "
                    "that were packed before, of which nobody knows the samples"
                )
            return numbers[row.clamp(min=0)], places
        if len(labels) != len(numbers):
            raise ValueError(
                f"`position_ids` must be in a batch that joins rows, got {', '.join(batch)}; "
                f"{len(numbers)} rows became {len(labels)}, and nothing says where they begin"
            )
        if self.columns.counted:
            counts = labels != self.columns.ignore_index
        elif isinstance(mask, torch.Tensor) and mask.shape == labels.shape:
            # Padding may be on the left.
            counts = mask != 0
        else:
            counts = torch.ones_like(labels, dtype=torch.bool)
        return numbers[:, None].expand_as(labels), (counts.cumsum(-1) - 1).clamp(min=0)


def _check_kind(name: str, own: Sequence[Any]) -> None:
    if own and isinstance(own[0], str):
        raise ValueError(
            f"`ids` must be whole numbers, got {own[0]!r} in the column {name!r}; number the "
            "samples 0..N-1, such as by dataset.add_column('number', range(len(dataset))) and "
            "ids='number'"
        )


def _is_list(x: Any) -> bool:
    return isinstance(x, (list, tuple)) or (isinstance(x, torch.Tensor) and x.ndim == 1)


def _by_token(
    batch: Mapping[str, Any], own: Sequence[Sequence[int]], columns: Columns
) -> torch.Tensor:
    """Lay the numbers of tokens out as the labels are."""
    labels = next((batch[key] for key in columns.labels if key in batch), None)
    shape = tuple(labels.shape) if isinstance(labels, torch.Tensor) else ()
    parts = [torch.as_tensor(numbers) for numbers in own]
    sizes = [len(part) for part in parts]
    if len(shape) == 2 and shape[0] == 1 and shape[1] == sum(sizes):
        return torch.cat(parts)[None]
    mask = batch.get("attention_mask")
    if len(shape) != 2 or shape[0] != len(parts) or shape[1] < max(sizes):
        raise ValueError(
            f"`ids` must have one number for each token of a row, {sizes}, where labels are {shape}; "
            "usual cause: rows that were cut after they had their numbers"
        )
    if not isinstance(mask, torch.Tensor):
        mask = torch.arange(shape[1]) < torch.tensor(sizes)[:, None]
    found = torch.zeros(shape, dtype=torch.int64)
    # Padding has no label, and its number does not count.
    found[mask.bool()] = torch.cat(parts).long()
    return found


def _whole(numbers: Sequence[Any]) -> torch.Tensor | None:
    """Return the numbers as a tensor, or None where they are something else."""
    try:
        return torch.tensor([operator.index(number) for number in numbers])
    except (TypeError, ValueError):
        return None


def label_column(
    rows: Any, labels: Sequence[str], ids: str | None
) -> tuple[Sequence[int], Sequence[int]] | None:
    """Return class numbers and sample numbers of a data set of 🤗 Datasets, or None elsewhere."""
    names: Any = getattr(rows, "column_names", None)
    found = [
        name for name in (*labels, "labels", "label") if isinstance(names, list) and name in names
    ]
    # A stream has columns, too, and cannot be read twice.
    if not found or isinstance(rows, IterableDataset):
        return None
    given = rows.with_format(None)[found[0]]
    own = rows.with_format(None)[ids] if ids in names else range(len(rows))
    kinds = {type(x) for x in (*given, *own)}
    return (list(given), list(own)) if kinds == {int} else None
