"""The parts of an epoch: rows of it that are scored on their own, by another process or later."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from gwa_offline.analysis.scoring import block_rows, pieces_of
from gwa_offline.files.arrays import Held, LazyArray
from gwa_offline.files.copies import copy_array
from gwa_offline.files.ranges import Count, cut, seeks
from gwa_offline.files.urls import Place, Url
from gwa_offline.readers import Features
from gwa_offline.store import FeaturesError

__all__ = ["Part", "fingerprint_of", "parts_of", "stamp_of"]

# What storages call the length and the age of a file.
_AGES = {"ETag", "LastModified", "created", "etag", "last_modified", "mtime", "size", "updated"}

# Rows of a part where they can be chosen: some seconds of work.
PART_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive rows of an epoch, unread; it holds places in files and goes to another process.

    Parameters
    ----------
    start, stop : int
        The rows of the epoch.
    files : tuple of path
        Where they lie.
    stamps : tuple of str
        How long and how old each file was.
    arrays : mapping of str to lazy array
        Their arrays, with the weight and bias of the epoch.
    loss : str
        Loss of the head.
    num_samples, num_classes : int
        N and C of the source.
    fingerprint : str
        Of all of these and of the numbers of the head: what the scores depend on, beside the options
        of the training.
    begins : tuple of (str, int)
        What is called what in messages, and at which of these rows it begins.
    """

    start: int
    stop: int
    files: tuple[Place, ...]
    stamps: tuple[str, ...]
    arrays: Mapping[str, LazyArray]
    loss: str
    num_samples: int
    num_classes: int
    fingerprint: str
    begins: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        more = len(self.files) - 1
        names = str(self.files[0]) if self.files else "arrays in memory"
        names += f" and {more} more" if more > 0 else ""
        return f"{names}, rows {self.start} to {self.stop - 1}"

    def open(self) -> Features:
        """Return its features, which `score_part` takes.

        Returns
        -------
        Features
            With ids, so that rows are known.

        Raises
        ------
        FeaturesError
            If the files are not there, have changed or are damaged.
        """
        for file, stamp in zip(self.files, self.stamps, strict=True):
            found = stamp_of(file)
            if found != stamp:
                what = (
                    "it has changed since it was opened" if found else "it cannot be seen from here"
                )
                raise FeaturesError(f"{file}: {what}")
        return Features(
            str(self),
            self.arrays,
            loss=self.loss,
            num_samples=self.num_samples,
            num_classes=self.num_classes,
            begins=self.begins,
        )


def parts_of(
    features: Features,
    *,
    num_samples: int,
    rows: int | None = None,
    folder: Path | None = None,
) -> list[Part]:
    """Cut an epoch into parts.

    Parameters
    ----------
    features : Features
        Of the epoch.
    num_samples : int
        N of the source.
    rows : int, optional
        Rows of a part at most, where they can be chosen; default 65,536.
    folder : path, optional
        Where arrays that are in memory are written, so that parts hold places in files. Default parts
        hold the arrays themselves.

    Returns
    -------
    list of Part
        In the order of the rows. A part begins where a block of rows does, so that its scores are those
        of the whole epoch to the last bit.

    Notes
    -----
    Small files go together. A file is cut in its middle where rows there are read without those before
    them: ``.npy``, ``.npz`` that is not compressed, ``.safetensors``, and Parquet whose row
    groups are small. Cost: O(parts); only the head is
    read.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from gwa_offline.readers import open_features
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = folder.name + "/features.npz"
    >>> np.savez(file, latents=np.ones((5000, 3)), weight=np.eye(2, 3), targets=np.arange(5000) % 2)
    >>> features = open_features(file).epochs[0].features
    >>> [(part.start, part.stop) for part in parts_of(features, num_samples=5000, rows=3000)]
    [(0, 2048), (2048, 4096), (4096, 5000)]
    >>> folder.cleanup()
    """
    stored, marks = dict(features.stored), {}
    for name, array in features.stored.items():
        if folder is not None and (isinstance(array, Held) or not features.files):
            stored[name], marks[name] = copy_array(array, folder)
    about = fingerprint_of(
        features.loss, num_samples, features.columns, marks, features.weight, features.bias
    )
    if "ids" not in stored:
        stored["ids"] = Count(0, features.num_samples)
    found: list[Part] = []
    spans, end = [], 0
    for path, count in features.files:
        spans.append((end, end + count, path, stamp_of(path)))
        end += count
    for start, stop in pairwise(_edges(features, stored, PART_ROWS if rows is None else rows)):
        inside = [span for span in spans if span[0] < stop and span[1] > start]
        arrays = {
            name: array if name in ("weight", "bias") else cut(array, start, stop)
            for name, array in stored.items()
        }
        found.append(
            Part(
                start=start,
                stop=stop,
                files=tuple(span[2] for span in inside),
                stamps=tuple(span[3] for span in inside),
                arrays=arrays,
                loss=features.loss,
                num_samples=num_samples,
                num_classes=features.num_classes,
                fingerprint=fingerprint_of(
                    about, start, stop, [(_absolute(span[2]), span[3]) for span in inside]
                ),
                begins=tuple(
                    (name, first - start) for name, first, _ in pieces_of(features, start, stop)
                ),
            )
        )
    return found


def fingerprint_of(*facts: object) -> str:
    """Return a short text that differs where a fact does; arrays count by their numbers."""
    found = hashlib.blake2b(digest_size=16)
    for fact in facts:
        if isinstance(fact, np.ndarray):
            found.update(f"{fact.dtype.str} {fact.shape}".encode())
            found.update(np.ascontiguousarray(fact).reshape(-1).view(np.uint8).data)
        else:
            found.update(repr(fact).encode())
        found.update(b"\0")
    return found.hexdigest()


def _absolute(file: Place) -> str:
    return str(file.absolute() if isinstance(file, Path) else file)


def stamp_of(file: Place) -> str:
    """Return how long and how old a file is, or the files of a folder; empty if it is not there."""
    if isinstance(file, Url):
        info = file.info or {}
        return ", ".join(f"{key} {info[key]}" for key in sorted(info) if key in _AGES)
    if file.is_dir():
        return "; ".join(f"{path.name}: {stamp_of(path)}" for path in sorted(file.glob("*.*")))
    if not file.exists():
        return ""
    stat = file.stat()
    return f"{stat.st_size} bytes at {stat.st_mtime_ns}"


def _edges(features: Features, stored: Mapping[str, LazyArray], rows: int) -> Iterator[int]:
    """Yield where parts begin, and the end of the last one."""
    n, block = features.num_samples, block_rows(features.num_classes)
    most = max(rows // block * block, block)
    middle = all(seeks(array) for name, array in stored.items() if name not in ("weight", "bias"))
    yield 0
    start = last = end = 0
    for _, count in features.files or ((features.path, n),):
        end += count
        # The block in which a file ends is read with it.
        edge = min(math.ceil(end / block) * block, n)
        if edge - start > most and last > start:
            yield last
            start = last
        while middle and edge - start > most:
            start += most
            yield start
        last = edge
    if last > start:
        yield last
