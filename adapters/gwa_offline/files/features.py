"""The features of one epoch on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gwa_offline.files.arrays import Held, LazyArray, read_all
from gwa_offline.files.checks import check_ids, check_snapshot, index
from gwa_offline.files.errors import FeaturesError, blame
from gwa_offline.files.formats import KEPT, KEY, open_arrays, open_npy
from gwa_offline.files.memory import InMemory
from gwa_offline.files.parts import join
from gwa_offline.files.places import Snapshot, prefix_of
from gwa_offline.files.strings import Strings, is_text
from gwa_offline.files.urls import Place


class Block(NamedTuple):
    """Consecutive rows of the features of one epoch.

    Parameters
    ----------
    start : int
        Number of the first row.
    latents : array of shape (b, D)
        Input of the head.
    targets : array of shape (b,) or (b, C)
        Labels as int64, or probabilities.
    logits : array of shape (b, C) or None
        Output of the head, where saved.
    ids : array of shape (b,) or None
        Sample ids, where saved; without them the id is the row.
    """

    start: int
    latents: NDArray[Any]
    targets: NDArray[Any]
    logits: NDArray[Any] | None
    ids: NDArray[np.int64] | None


class Features:
    """Features of one epoch on disk; what is read of them is checked, and never all at once.

    Parameters
    ----------
    path : path or str
        The file or folder, for messages.
    arrays : mapping of str to lazy array
        Opened arrays by name.
    loss : str
        Loss of the head.
    num_samples, num_classes : int, optional
        N and C of the run, where known.
    files : sequence of (path, int), optional
        Each file and its number of rows.
    columns : mapping of str to str, optional
        What the files call an array.
    kept : mapping of str to lazy array, optional
        Further columns, one value a row.
    begins : sequence of (str, int), optional
        What each part is called, and the row at which it begins, for messages; the first one may begin
        before these rows do.

    Attributes
    ----------
    path : path or str
        The file or folder; of several parts the first one, in words.
    num_samples, num_classes, num_features : int
        n rows, C and D.
    loss : str
        Loss of the head.
    dtype : numpy.dtype
        Of the latents; bfloat16 is read as float32.
    has_logits : bool
        Whether blocks have logits.
    soft : bool
        Whether targets are probabilities.
    targets : array of shape (n,) or None
        Labels as int64; of soft targets the likeliest class; None where neither makes sense.
    ids : array of shape (n,) or None
        Sample ids.
    kept : mapping of str to lazy array
        Further columns, one value a row.
    stored : mapping of str to lazy array
        The arrays as they were opened; of strings their numbers.
    begins : tuple of (str, int)
        Name and first row of each part; of a single file, the file.
    """

    def __init__(
        self,
        path: Path | str,
        arrays: Mapping[str, LazyArray],
        *,
        loss: str,
        num_samples: int | None = None,
        num_classes: int | None = None,
        files: Sequence[tuple[Place, int]] = (),
        columns: Mapping[str, str] | None = None,
        kept: Mapping[str, LazyArray] | None = None,
        begins: Sequence[tuple[str, int]] = (),
    ) -> None:
        with blame(path):
            layout, self.targets, self.ids = check_snapshot(
                arrays, loss=loss, num_samples=num_samples, num_classes=num_classes
            )
        self.num_samples, self.num_classes, self.num_features = layout
        self.dtype = arrays["latents"].dtype
        self.has_logits = "logits" in arrays
        self.soft = len(arrays["targets"].shape) == 2
        self.path, self.loss = path, loss
        self.kept = dict(kept or {})
        self.begins = tuple(begins) or ((str(path), 0),)
        self.files, self.columns, self.stored = tuple(files), dict(columns or {}), dict(arrays)
        checked = {"targets": None if self.soft else self.targets, "ids": self.ids}
        self._arrays = {
            **arrays,
            **{name: Held(array) for name, array in checked.items() if array is not None},
        }

    @cached_property
    def weight(self) -> NDArray[Any]:
        """Weight of the head, (C, D)."""
        with blame(self.path):
            return read_all(self._arrays["weight"])

    @cached_property
    def bias(self) -> NDArray[Any] | None:
        """Bias of the head, (C,)."""
        with blame(self.path):
            return read_all(self._arrays["bias"]) if "bias" in self._arrays else None

    def blocks(self, rows: int = 4096) -> Iterator[Block]:
        """Read all samples in order.

        Parameters
        ----------
        rows : int, default 4096
            Rows of a block; the last one may have fewer.

        Yields
        ------
        Block
            Latents and logits are new arrays each time.

        Raises
        ------
        FeaturesError
            Where the file is found to be damaged while it is read.

        Notes
        -----
        Takes O(rows (D + C)) memory, whatever n.
        """
        if index("rows", rows) < 1:
            raise FeaturesError(f"`rows` must be at least 1, got {rows}")
        names = [name for name in ("latents", "targets", "logits", "ids") if name in self._arrays]
        start = 0
        with blame(self.path):
            for parts in zip(*(self._arrays[name].chunks(rows) for name in names), strict=True):
                block = dict(zip(names, parts, strict=True))
                targets = block["targets"]
                if self.soft and targets.dtype.kind != "f":
                    targets = targets.astype(np.float32)
                yield Block(start, block["latents"], targets, block.get("logits"), block.get("ids"))
                start += len(targets)


# Both are part of gwa_offline.readers.
Block.__module__ = Features.__module__ = "gwa_offline.readers"


def open_snapshot(
    snapshot: Snapshot,
    *,
    given: Mapping[str, NDArray[Any]],
    loss: str,
    columns: Mapping[str, str] | None = None,
    num_samples: int | None = None,
    num_classes: int | None = None,
    labels: NDArray[np.int64] | None = None,
    strings: Strings | None = None,
    keep: Sequence[str] = (),
) -> Features:
    """Open one epoch; `given` arrays and the `labels` of the run are for what the files lack.

    `strings` numbers ids and labels that are some; without it they are refused. The columns to `keep`
    are `kept` by the features.
    """
    with blame(snapshot):
        opened = []
        for path in snapshot.parts:
            with nullcontext() if len(snapshot.parts) == 1 else blame(path.name):
                opened.append((path, open_arrays(path, columns, keep)))
        arrays = join([(path, found) for path, (found, _) in opened])
        names = opened[0][1][1]
        kept = {name: arrays.pop(KEPT + name) for name in keep}
        if strings is not None and (rows_by_name := strings.ids(arrays.get("ids"))) is not None:
            arrays["ids"] = Held(rows_by_name)
        for name in given:
            if name in arrays:
                raise FeaturesError(f"`{name}` was given, but the file has its own; drop one")
        for name in ("weight", "bias"):
            if name in given:
                arrays[name] = Held(given[name])
            elif name not in arrays:
                beside = next((x for x in _beside(snapshot.parts, name) if x.exists()), None)
                if beside is not None:
                    arrays[name] = open_npy(beside)
        by_id = given.get("targets", labels)
        if "targets" not in arrays and by_id is not None:
            arrays["targets"] = Held(_pick(by_id, arrays, num_samples))
        if missing := [name for name in ("latents", "weight", "targets") if name not in arrays]:
            raise FeaturesError(_missing(missing[0], names, snapshot.parts[0]))
        if strings is not None:
            strings.note(arrays["targets"])
        if strings is not None and is_text(arrays["targets"]) and len(arrays["weight"].shape) == 2:
            classes = arrays["weight"].shape[0]
            arrays["targets"] = Held(strings.targets(arrays["targets"], classes))
    sizes = [(path, math.prod(found["latents"].shape[:1])) for path, (found, _) in opened]
    ends = accumulate((size for _, size in sizes), initial=0)
    return Features(
        str(snapshot),
        arrays,
        loss=loss,
        num_samples=num_samples,
        num_classes=num_classes,
        files=[(path, size) for path, size in sizes if not isinstance(path, InMemory)],
        columns=columns,
        kept=kept,
        begins=[
            (_called(path, i, len(sizes)), end)
            for i, ((path, _), end) in enumerate(zip(sizes, ends, strict=False))
        ],
    )


def _called(path: Place | InMemory, number: int, parts: int) -> str:
    """Return what a part is called in messages; parts in memory have no names."""
    unnamed = isinstance(path, InMemory) and parts > 1
    return f"part {number} in memory, counted from 0" if unnamed else str(path)


def _beside(parts: tuple[Place | InMemory, ...], name: str) -> Iterator[Place]:
    """Yield where the weight or the bias of files without it may lie."""
    first = parts[0]
    if isinstance(first, InMemory):
        return
    yield first.with_name(f"{first.stem}.{name}.npy")
    folder, prefix = first.parent, prefix_of(first)
    if len(parts) == 1 and not prefix and not KEY.match(folder.name):
        return
    if prefix:
        yield folder / f"{prefix}.{name}.npy"
    while True:
        yield folder / f"{name}.npy"
        if folder.name:
            yield folder.with_name(f"{folder.name}.{name}.npy")
        if not KEY.match(folder.name):
            return
        folder = folder.parent


def _missing(field: str, names: list[str], path: Place | InMemory) -> str:
    hint = ""
    if field == "weight" and not isinstance(path, InMemory):
        hint = f"; it may lie beside as {path.stem}.weight.npy"
    elif field == "latents" and any(name.endswith(".weight") for name in names):
        hint = (
            f"; this looks like a checkpoint: its head is read by `--head {path.name}:LAYER`, "
            "beside a file of latents"
        )
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return (
        f"`{field}` is missing, there is {shown or 'nothing'}; needed are "
        f"latents (n, D), weight (C, D) and targets (n,){hint}"
    )


def _pick(
    by_id: NDArray[Any], arrays: Mapping[str, LazyArray], num_samples: int | None
) -> NDArray[Any]:
    """Return the targets of the rows of a file."""
    if "ids" not in arrays or by_id.ndim == 0:
        return by_id
    ids = arrays["ids"]
    if len(ids.shape) != 1 or ids.shape[0] == 0:
        raise FeaturesError(f"`ids` must be (n,), got {ids.dtype} of shape {ids.shape}")
    return by_id[check_ids(read_all(ids), num_samples)]
