"""What workers leave in the folder of a run until it is written: one file of scores for each part."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from gwa_core import Moments
from gwa_offline.analysis.scoring import PartScores

__all__ = ["PartFile", "Staging"]


class PartFile(NamedTuple):
    """The scores of a part in a file, and the fingerprint of all that they depend on.

    Parameters
    ----------
    path : path
        The file.
    fingerprint : str
        Of the part. A file with another one counts for nothing.
    """

    path: Path
    fingerprint: str

    def write(self, found: PartScores) -> None:
        """Write the scores of the part, whole or not at all."""
        ids = found.ids
        if np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids))):
            ids = ids[:1]  # the others count on from it
        arrays = {
            "fingerprint": np.array(self.fingerprint),
            "ids": ids,
            "scores": found.scores,
            "predictions": found.predictions,
            "moments": pack(found.moments),
        }
        _write_whole(self.path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    def read(self) -> PartScores | None:
        """Read the scores of the part; None if the file is missing or belongs to another source."""
        found = self._read("ids", "scores", "predictions", "moments")
        if found is None:
            return None
        ids, scores, predictions, moments = found
        if len(ids) < len(scores):
            ids = np.arange(ids[0], ids[0] + len(scores))
        return PartScores(ids, scores, predictions, unpack(moments))

    def moments(self) -> Moments | None:
        """Read the moments alone."""
        found = self._read("moments")
        return None if found is None else unpack(found[0])

    def _read(self, *names: str) -> list[NDArray[Any]] | None:
        try:
            # NumPy leaves a damaged file open.
            with self.path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                if str(file["fingerprint"]) == self.fingerprint:
                    return [file[name] for name in names]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            pass  # not there, or damaged: it is made again
        return None


def pack(moments: Moments) -> NDArray[np.float64]:
    """Return moments as one vector."""
    return np.concatenate([np.atleast_1d(np.asarray(field, np.float64)) for field in moments])


def unpack(packed: NDArray[np.float64]) -> Moments:
    """Return the moments of a vector."""
    last = len(Moments._fields) - 1
    return Moments._make([*packed[:last], packed[last:]])


class Staging:
    """The folder ``parts`` in the folder of a run.

    Parameters
    ----------
    run : path
        The folder of the run, absolute, on a file system that all workers share.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / "parts"
        self.folder.mkdir(parents=True, exist_ok=True)
        #: A file that says that a worker sees this very folder.
        self.token = self.folder / f"call-{uuid4().hex}"
        self.token.touch()

    def part(self, epoch: int, start: int, fingerprint: str) -> PartFile:
        """Return the file of the part of an epoch that begins at a row."""
        return PartFile(self.folder / f"{epoch:06d}-{start:012d}.npz", fingerprint)

    def weights(self, class_weights: NDArray[np.float64]) -> Path:
        """Put class weights into a file, and return it."""
        path = self.folder / "class-weights.npy"
        _write_whole(path, lambda file: np.save(file, class_weights))
        return path

    def note(self, epoch: int, fingerprint: str, moments: Moments) -> None:
        """Say of which files the scores are that the run is about to have for an epoch."""
        line = json.dumps({"fingerprint": fingerprint, "moments": pack(moments).tolist()})
        _write_whole(self._noted(epoch), lambda file: file.write(line.encode()))

    def noted(self, epoch: int, fingerprint: str) -> Moments | None:
        """Return the moments of an epoch that the run has already; None if it has another."""
        try:
            found = json.loads(self._noted(epoch).read_bytes())
            if found["fingerprint"] == fingerprint:
                return unpack(np.array(found["moments"], np.float64))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def _noted(self, epoch: int) -> Path:
        return self.folder / f"{epoch:06d}.json"

    def close(self) -> None:
        """Remove what is of this call alone, however it ends."""
        self.token.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all but the notes of the epochs."""
        for pattern in ("*.npz", "*.npy", "call-*", ".*.tmp"):
            _remove(self.folder.glob(pattern))


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a name of its own, then rename it: two workers may write the same part."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
