"""Small data sets in the format of MNIST whose shade says the class."""

import gzip
import struct

import numpy as np


def write_shades(folder, counts, classes, step):
    """Write grey images to `folder`, `counts` by part, `step` apart from class to class."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for part, count in counts.items():
        labels = np.arange(count) % classes
        shades = step * labels[:, None, None] + rng.normal(40, 20, (count, 28, 28))
        for kind, x in {"images-idx3": shades.clip(0, 255), "labels-idx1": labels}.items():
            head = struct.pack(f">BBBB{x.ndim}I", 0, 0, 8, x.ndim, *x.shape)
            raw = gzip.compress(head + x.astype(np.uint8).tobytes())
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(raw)
