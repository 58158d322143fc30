"""Damaged sources of every kind: one error, in little memory, and no wrong number.

`GWA_FUZZ=10000 python -m pytest tests/adapters/offline/test_fuzz.py` tries ten thousand of them.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adapters.offline import sources, test_rows
from adapters.offline.sources import KINDS, make_epoch
from adapters.offline.test_readers import bend, little_memory, read_all, write_compressed, write_run
from backends import require

from gwa_offline import open_features
from gwa_offline.files.given import read_head
from gwa_offline.store import FeaturesError

__all__ = ["little_memory"]

if sys.platform != "linux":
    pytest.skip("memory is limited and measured through Linux's /proc", allow_module_level=True)

LARGEST = 300 * 2**20  # bytes that a refusal may take

# Arrow's allocator reserves a gigabyte of addresses when it is first used, which is not to count.
pq.write_table(pa.table({"x": [0]}), pa.BufferOutputStream())


def run_folder(folder, arrays):
    from adapters.offline import test_readers

    return write_run(folder / "x", test_readers.make_arrays())


def head(folder, arrays):
    """Weight and bias of a checkpoint."""
    torch = require("torch")
    layers = {f"fc.{name}": torch.as_tensor(arrays[name]) for name in ("weight", "bias")}
    torch.save({"model": layers, "epoch": 3}, folder / "x.pt")
    return folder / "x.pt"


def read_source(source):
    return read_all(open_features(source))


def read_layer(file):
    return [read_head(f"{file}:model.fc")]


def read_remote(source):
    """Read what lies in the memory of fsspec."""
    fsspec = require("fsspec")
    system = fsspec.filesystem("memory")
    system.store.clear()
    for path in source.parent.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/x/{path.relative_to(source.parent)}", path.read_bytes())
    return read_all(open_features(f"memory://x/{source.name}"))


def named(write):
    """A source whose labels and ids are strings, with a column that is kept."""

    def write_named(folder, arrays):
        names = {"targets": np.array(["cat", "dog", "öwl"])[arrays["targets"]]}
        names["ids"] = np.array([f"img/{i}.png" for i in arrays["ids"]])
        return write(folder / "x", arrays | names | {"path": names["ids"], "width": arrays["ids"]})

    return write_named


def read_named(source):
    found = open_features(source, keep=["path", "width"])
    assert all(len(values) == found.num_samples for values in found.kept.values())
    return read_all(found)


def index(suffix):
    def write(folder, arrays):
        file, paths = folder / f"rows{suffix}", [f"img/{i}" for i in arrays["ids"]]
        if suffix == ".csv":
            return test_rows.write_index(file, arrays["ids"], path=paths)
        pq.write_table(pa.table({"id": arrays["ids"], "path": paths}), file)
        return file

    return write


def read_index(file):
    return open_features(make_epoch(), index=file).kept


READERS = {
    **{
        f"named_{name}": (named(test_rows.WRITERS[name]), read_named)
        for name in ("npz", "compressed npz", "npy folder", "parquet", "dictionary", "feather")
    },
    **{f"index{suffix}": (index(suffix), read_index) for suffix in (".csv", ".parquet")},
    **{kind.write.__name__: (kind.write, read_source) for kind in KINDS if kind.on_disk},
    "compressed": (lambda folder, arrays: write_compressed(folder / "x", arrays), read_source),
    "run_folder": (run_folder, read_source),
    "head": (head, read_layer),
    "remote_npz": (sources.npz, read_remote),
    "remote_parquet": (sources.parquet, read_remote),
    "remote_feather": (sources.feather, read_remote),
}
EACH = -(-int(os.environ.get("GWA_FUZZ", "500")) // len(READERS))


def memory(field):
    """Bytes of this process: `VmRSS` now, `VmHWM` at most since the peak was cleared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def tried(read, source):
    """Read a source; return the error if there is one, and the memory that it took at most."""
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    error = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*last line is incomplete")
        try:
            read(source)
        except FeaturesError as found:
            error = str(found)
    return error, memory("VmHWM") - before


@pytest.mark.parametrize(("write", "read"), READERS.values(), ids=READERS)
def test_damage_is_one_error_in_little_memory(tmp_path, little_memory, write, read):
    source = write(tmp_path, make_epoch())
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    good = {file: file.read_bytes() for file in files}
    good = {file: data for file, data in good.items() if data}
    assert tried(read, source)[0] is None
    rng = np.random.default_rng(11)
    errors = 0
    for _ in range(EACH):
        file = list(good)[rng.integers(len(good))]
        file.write_bytes(bend(good[file], rng))
        error, grown = tried(read, source)
        errors += error is not None
        assert grown <= LARGEST, error
        if error is not None:
            assert len(error) < 2000
            assert "\n" not in error
        file.write_bytes(good[file])
    assert errors > EACH // 4
    assert tried(read, source)[0] is None


def many_rows(folder):
    """Little bytes that say truly that they are many rows."""
    n = 2**23
    latents = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(n, np.float32)), 1)
    columns = {"latents": latents, "targets": np.zeros(n, int), "ids": np.zeros(n, int)}
    np.save(folder / "x.weight.npy", np.ones((2, 1)))
    return pa.table(columns)


def parquet_bomb(folder):
    pq.write_table(many_rows(folder), folder / "x.parquet", compression="zstd")
    return folder / "x.parquet"


def arrow_bomb(folder, new=pa.ipc.new_file):
    table, options = many_rows(folder), pa.ipc.IpcWriteOptions(compression="zstd")
    file = folder / "x.arrow"
    with pa.OSFile(str(file), "wb") as sink, new(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return file


def stream_bomb(folder):
    return arrow_bomb(folder, pa.ipc.new_stream)


def repeated_tensor(folder):
    torch = require("torch")
    ones = torch.ones(1, 1)
    arrays = {"latents": ones.expand(10**9, 8), "targets": ones.int()[0].expand(10**9)}
    torch.save({**arrays, "weight": ones.expand(2, 8)}, folder / "x.pt")
    return folder / "x.pt"


@pytest.mark.parametrize("write", [parquet_bomb, arrow_bomb, stream_bomb, repeated_tensor])
def test_what_inflates_beyond_reason_is_refused_before_it(tmp_path, write):
    source = write(tmp_path)
    assert source.stat().st_size < 3e5
    error, grown = tried(read_source, source)
    assert re.search(r"inflates (a batch )?from|that are repeated to", error)
    assert grown < 100 * 2**20


def test_streams_that_were_put_together_are_not_read_in_half(tmp_path):
    table = sources.table_of(make_epoch())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "x.arrow").write_bytes(2 * sink.getvalue().to_pybytes())
    with pytest.raises(FeaturesError, match=r"x\.arrow: has data behind its end"):
        open_features(tmp_path / "x.arrow")


def test_the_measurement_sees_what_was_given_back():
    error, grown = tried(lambda size: np.ones(size, np.uint8).sum(), 2**26)
    assert error is None
    assert 2**25 < grown < 2**27
