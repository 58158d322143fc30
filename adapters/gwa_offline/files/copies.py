"""Arrays that are in memory, written to files for other processes."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from uuid import uuid4

import numpy as np

from gwa_offline.files.arrays import LazyArray
from gwa_offline.files.formats import open_npy

# Bytes that are written at a time.
BLOCK = 1 << 24


def copy_array(array: LazyArray, folder: Path) -> tuple[LazyArray, str]:
    """Write an array into a file that is named after its numbers; return the file and the name."""
    temporary = folder / f".array-{uuid4().hex}.tmp"
    found = hashlib.blake2b(digest_size=16)
    kind = np.dtype(array.dtype)
    rows = max(BLOCK // max(math.prod(array.shape[1:]) * kind.itemsize, 1), 1)
    with temporary.open("wb") as file:
        header = {"descr": kind.str, "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(file, header)
        found.update(repr(header).encode())
        for block in array.chunks(rows):
            data = np.ascontiguousarray(block, kind).reshape(-1).view(np.uint8).data
            found.update(data)
            file.write(data)
    path = folder / f"array-{found.hexdigest()}.npy"
    temporary.replace(path)
    return open_npy(path), path.stem
