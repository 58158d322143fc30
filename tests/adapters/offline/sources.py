"""The kinds of source, each written by its own library; what they hold is one epoch."""

from __future__ import annotations

import http.server
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from backends import require

N, C, D = 61, 3, 5
CUTS = [0, 7, 7 + 30, N]


def make_epoch(seed=0, n=N):
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(C, D)).astype(np.float32), np.ones(C, np.float32)
    targets = rng.integers(0, C, n)
    latents = (rng.normal(size=(n, D)) + weight[targets]).astype(np.float32)
    return {
        "latents": latents,
        "targets": targets,
        "ids": rng.permutation(n),
        "weight": weight,
        "bias": bias,
    }


def parts_of(arrays, cuts=CUTS):
    for start, stop in pairwise(cuts):
        yield {k: v if k in ("weight", "bias") else v[start:stop] for k, v in arrays.items()}


def table_of(arrays):
    """The rows as a table of Arrow; the head is no column."""
    pa = require("pyarrow")
    flat = pa.array(arrays["latents"].reshape(-1))
    latents = pa.FixedSizeListArray.from_arrays(flat, arrays["latents"].shape[1])
    return pa.table({"latents": latents, "targets": arrays["targets"], "ids": arrays["ids"]})


def save_head(arrays, place):
    for name in ("weight", "bias"):
        np.save(f"{place}.{name}.npy", arrays[name])


# --- files ----------------------------------------------------------------------------------------


def npz(folder, arrays):
    np.savez(folder / "x.npz", **arrays)
    return folder / "x.npz"


def npy_folder(folder, arrays):
    (folder / "x").mkdir()
    for name, array in arrays.items():
        np.save(folder / "x" / f"{name}.npy", array)
    return folder / "x"


def safetensors(folder, arrays):
    save_file = require("safetensors.numpy").save_file
    save_file(arrays, folder / "x.safetensors")
    return folder / "x.safetensors"


def parquet(folder, arrays):
    pq = require("pyarrow.parquet")
    pq.write_table(table_of(arrays), folder / "x.parquet", row_group_size=13)
    save_head(arrays, folder / "x")
    return folder / "x.parquet"


def feather(folder, arrays):
    require("pyarrow.feather").write_feather(table_of(arrays), folder / "x.feather", chunksize=13)
    save_head(arrays, folder / "x")
    return folder / "x.feather"


def checkpoint(folder, arrays):
    torch = require("torch")
    torch.save({name: torch.as_tensor(x) for name, x in arrays.items()}, folder / "x.pt")
    return folder / "x.pt"


# --- several files --------------------------------------------------------------------------------


def listed(folder, arrays):
    files = []
    for i, part in enumerate(parts_of(arrays)):
        files.append(folder / f"{'cab'[i]}.npz")
        np.savez(files[-1], **part)
    return files


def pattern(folder, arrays):
    for i, part in enumerate(parts_of(arrays)):
        np.savez(folder / f"rows_{9 + i}.npz", **part)
    return folder / "rows_*.npz"


def folder_of_parts(folder, arrays):
    (folder / "epoch_0").mkdir()
    for i, part in enumerate(parts_of(arrays)):
        np.savez(folder / "epoch_0" / f"part-{9 + i}.npz", **part)
    return folder / "epoch_0"


def numbered_of(folder, arrays):
    save_file = require("safetensors.numpy").save_file
    (folder / "x").mkdir()
    for i, part in enumerate(parts_of(arrays)):
        part = {name: np.ascontiguousarray(x) for name, x in part.items()}
        save_file(part, folder / "x" / f"epoch_0-0000{i + 1}-of-00003.safetensors")
    return folder / "x"


def hugging_face(folder, arrays):
    datasets = require("datasets")
    data = hugging_face_dataset(folder, arrays)
    datasets.disable_progress_bars()
    data.save_to_disk(folder / "x", num_shards=3)
    # What a later `map` leaves beside the data.
    (folder / "x" / "cache-0123456789abcdef.arrow").write_bytes(b"other rows")
    save_head(arrays, folder / "x")
    return folder / "x"


def arrow_folder(folder, arrays):
    pa = require("pyarrow")
    (folder / "epoch_0").mkdir()
    for i, part in enumerate(parts_of(arrays)):
        table = table_of(part)
        write = pa.ipc.new_stream if i == 1 else pa.ipc.new_file  # the same name for both
        file = folder / "epoch_0" / f"{i}.arrow"
        with pa.OSFile(str(file), "wb") as stream, write(stream, table.schema) as writer:
            writer.write_table(table, max_chunksize=11)
    for name in ("weight", "bias"):
        np.save(folder / "epoch_0" / f"{name}.npy", arrays[name])
    return folder / "epoch_0"


def partitioned(folder, arrays):
    pa, ds = require("pyarrow"), require("pyarrow.dataset")
    table = table_of(arrays).append_column("epoch", pa.array(np.zeros(len(arrays["ids"]), int)))
    keys = pa.schema([table.schema.field("epoch"), table.schema.field("targets")])
    ds.write_dataset(
        table, folder / "x", format="parquet", partitioning=ds.partitioning(keys, flavor="hive")
    )
    save_head(arrays, folder / "x")
    return folder / "x"


# --- open already ---------------------------------------------------------------------------------


def mapping(folder, arrays):
    np.save(folder / "latents.npy", arrays["latents"])
    return arrays | {"latents": np.load(folder / "latents.npy", mmap_mode="r")}


def tensors(folder, arrays):
    torch = require("torch")
    found: dict[str, Any] = {name: torch.as_tensor(array) for name, array in arrays.items()}
    found["weight"].requires_grad_()
    return found


def hugging_face_dataset(folder, arrays):
    datasets = require("datasets")
    columns = {name: arrays[name] for name in ("latents", "targets", "ids")}
    return datasets.Dataset.from_dict(columns)


def arrow_dataset(folder, arrays):
    ds = require("pyarrow.dataset")
    return ds.dataset(parquet(folder, arrays))


def arrow_table(folder, arrays):
    return table_of(arrays)


# --- behind an address ----------------------------------------------------------------------------


class _Handler(http.server.SimpleHTTPRequestHandler):
    """A file server that answers requests for ranges, as all but Python's own do."""

    def _is_busy(self):
        """Answer the first requests for each file or range of it by an error."""
        server, asked = self.server, (self.command, self.path, self.headers.get("Range"))
        server.busy[asked] = server.busy.get(asked, 0) + 1
        if server.busy[asked] > server.failing or server.only not in self.path:
            return False
        self.send_error(503)
        return True

    def do_HEAD(self):
        if not self._is_busy():
            super().do_HEAD()

    def do_GET(self):
        if self._is_busy():
            return
        path, asked = Path(self.translate_path(self.path)), self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        if self.server.refuse or path.name == "forbidden.npz":
            self.send_error(403)
            return
        if asked is None or not self.server.ranges or not path.is_file():
            super().do_GET()
            return
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", asked).groups())
        with path.open("rb") as file:
            file.seek(first)
            data = file.read(last + 1 - first)
        self.server.sent += len(data)
        self.send_response(206)
        size = path.stat().st_size
        self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves a folder on the loopback address, and counts the bytes of its answers to ranges."""

    daemon_threads = True

    def __init__(self, folder, *, ranges=True):
        self.sent, self.requests, self.ranges, self.refuse = 0, [], ranges, False
        self.busy, self.failing, self.only = {}, 0, ""
        super().__init__(("127.0.0.1", 0), lambda *args: _Handler(*args, directory=str(folder)))

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(folder, **options) -> Iterator[Server]:
    server = Server(folder, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Kind(NamedTuple):
    """A kind of source.

    Parameters
    ----------
    name : str
        In the table of the documentation.
    written : str
        By what.
    write : callable
        Takes an empty folder and the arrays; returns the source.
    about : str
        How its rows are read.
    head : str
        Where the weight and the bias are.
    on_disk : bool
        Whether it is a path, which may also be an address.
    """

    name: str
    written: str
    write: Callable[..., Any]
    about: str
    head: str = "in it"
    on_disk: bool = True

    @property
    def remote(self):
        """Whether it is read behind an address."""
        return self.on_disk and self.write is not checkpoint


KINDS = [
    Kind("`.npz`", "`numpy.savez`", npz, "blocks of rows; a compressed one from its beginning"),
    Kind("folder of `.npy`", "`numpy.save`", npy_folder, "blocks of rows"),
    Kind("`.safetensors`", "safetensors", safetensors, "blocks of rows"),
    Kind("`.parquet`", "pyarrow", parquet, "the columns needed, row group by row group", head="beside it"),
    Kind("`.arrow`, `.feather`", "pyarrow", feather, "the columns needed, mapped into memory", head="beside it"),
    Kind("`.pt`, `.pth`", "`torch.save` of a dictionary of tensors", checkpoint, "mapped into memory; nothing in it is run"),
    Kind("list of files", "`numpy.savez`", listed, "one after the other, in the order of the list"),
    Kind("pattern", "`numpy.savez`", pattern, "in the order of the names"),
    Kind("folder of parts", "`numpy.savez`", folder_of_parts, "in the order of the names"),
    Kind("`-00001-of-00003`", "safetensors", numbered_of, "in the order of the numbers"),
    Kind("folder of `save_to_disk`", "datasets", hugging_face, "in the order of its `state.json`", head="beside it"),
    Kind("folder of Arrow files", "pyarrow", arrow_folder, "files and streams", head="beside it"),
    Kind("partitioned Parquet", "`pyarrow.dataset`", partitioned, "`epoch=3` is an epoch, other keys are columns", head="beside it"),
    Kind("mapping of arrays", "NumPy, memory-mapped", mapping, "sliced", on_disk=False),
    Kind("mapping of tensors", "PyTorch", tensors, "sliced, and copied to the host", on_disk=False),
    Kind("`datasets.Dataset`", "datasets", hugging_face_dataset, "the columns needed", head="given", on_disk=False),
    Kind("`pyarrow.dataset.Dataset`", "pyarrow", arrow_dataset, "the columns needed", head="given", on_disk=False),
    Kind("`pyarrow.Table`", "pyarrow", arrow_table, "the columns needed", head="given", on_disk=False),
]  # fmt: skip
