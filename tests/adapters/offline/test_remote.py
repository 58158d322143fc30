"""Sources behind addresses: the results of files on a disk, read by ranges."""

from __future__ import annotations

import pickle
import re
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from adapters.offline import sources
from adapters.offline.runs import ABOUT, write
from adapters.offline.sources import KINDS, make_epoch, serving
from adapters.offline.test_cli import gwa
from adapters.offline.test_sources import check_same
from backends import require

from gwa_offline import RunFolder, analyse, open_features
from gwa_offline.files import urls
from gwa_offline.files.urls import Url, place_of
from gwa_offline.store import FeaturesError

fsspec = require("fsspec")

FILES = [kind for kind in KINDS if kind.remote]
QUICK = (sources.npz, sources.parquet, sources.pattern, sources.hugging_face)
all_files = pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.write.__name__)


@pytest.fixture
def whole(tmp_path_factory):
    return analyse(sources.npz(tmp_path_factory.mktemp("whole"), make_epoch()))


def test_a_file_in_an_archive_behind_an_address(tmp_path, server, whole):
    file = sources.safetensors(tmp_path, make_epoch())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(file, file.name)
    check_same(analyse(f"zip://{file.name}::{server.address}/a.zip"), whole)


@pytest.fixture
def server(tmp_path):
    require("aiohttp")
    with serving(tmp_path) as found:
        yield found


def behind(address, folder, source):
    """The address of a source that was written to a folder."""
    if isinstance(source, list):
        return [behind(address, folder, part) for part in source]
    return f"{address}/{source.relative_to(folder).as_posix()}"


def copy_to_memory(folder):
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/{folder.name}/{path.relative_to(folder)}", path.read_bytes())
    return f"memory://{folder.name}"


@all_files
def test_memory_gives_what_the_disk_gives(tmp_path, whole, kind):
    source = kind.write(tmp_path, make_epoch())
    check_same(analyse(behind(copy_to_memory(tmp_path), tmp_path, source)), whole)


@all_files
def test_a_web_server_gives_what_the_disk_gives(tmp_path, server, whole, kind):
    source = kind.write(tmp_path, make_epoch())
    check_same(analyse(behind(server.address, tmp_path, source)), whole)


def test_a_file_behind_an_address_of_a_file(tmp_path, whole):
    file = sources.npz(tmp_path, make_epoch())
    check_same(analyse(f"file://{file}"), whole)


@pytest.mark.parametrize("save", [sources.npz, sources.safetensors, sources.parquet])
def test_what_is_not_needed_is_not_fetched(tmp_path, server, save):
    arrays, images = make_epoch(n=20_000), np.zeros((20_000, 500), np.float32)
    file = save(tmp_path, arrays)
    if save is sources.parquet:
        import pyarrow.parquet as pq

        noise = np.random.default_rng(0).random((20_000, 200)).astype(np.float32)
        columns = {"pixels": list(noise), **dict(zip("ab", noise.T[:2], strict=True))}
        table = sources.table_of(arrays)
        for name, column in columns.items():
            table = table.append_column(name, [column])
        pq.write_table(table, file)
    else:
        save(tmp_path, {"images": images, **arrays})
    total = file.stat().st_size
    assert total > 1.5e7
    used = sum(array.nbytes for array in arrays.values())
    features = open_features(f"{server.address}/{file.name}").epochs[0].features
    before = server.sent
    rows = sum(len(block.latents) for block in features.blocks())
    assert rows == 20_000
    assert server.sent < used + 3e6
    # Targets and ids are read once when a source is opened, latents by blocks.
    assert server.sent - before < arrays["latents"].nbytes + 1e6
    assert all(asked for path, asked in server.requests if path.endswith(file.name))


def test_blocks_are_fetched_as_they_are_read(tmp_path, server):
    file = sources.npz(tmp_path, make_epoch(n=600_000))
    blocks = open_features(f"{server.address}/{file.name}").epochs[0].features.blocks(1000)
    before = server.sent
    next(blocks)
    assert server.sent - before < 1e5
    requests = len(server.requests)
    assert sum(len(block.latents) for block in blocks) == 599_000
    assert len(server.requests) - requests < 10  # what is read in order comes in large pieces


def test_a_server_that_sends_no_ranges(tmp_path):
    require("aiohttp")
    file = sources.npz(tmp_path, make_epoch(n=60_000))
    small = sources.safetensors(tmp_path, make_epoch())
    with serving(tmp_path, ranges=False) as server:
        with pytest.raises(FeaturesError, match="sends the whole file where a range is asked for"):
            open_features(f"{server.address}/{file.name}")
        cached = analyse(f"simplecache::{server.address}/{file.name}")
        whole = analyse(f"{server.address}/{small.name}")  # small files are fetched whole
    np.testing.assert_array_equal(whole.scores, analyse(small).scores)
    np.testing.assert_array_equal(cached.scores, analyse(file).scores)


def test_what_signs_an_address_is_no_name_and_is_not_shown(tmp_path, server):
    file = sources.npz(tmp_path, make_epoch())
    address = f"{server.address}/{file.name}?X-Signature=secret"
    source = open_features(address)
    assert source.name == "x.npz"
    assert any("secret" in path for path, _ in server.requests)
    file.write_bytes(file.read_bytes()[:500])
    forbidden = f"{server.address}/forbidden.npz?X-Signature=secret"
    for wrong in (address, f"{server.address}/none.npz?X-Signature=secret", forbidden):
        with pytest.raises(FeaturesError) as error:
            open_features(wrong)
        assert "secret" not in str(error.value)


def test_what_fails_while_it_is_read(tmp_path, server):
    file = sources.npz(tmp_path, make_epoch(n=100_000))
    blocks = open_features(f"{server.address}/{file.name}").epochs[0].features.blocks(1000)
    next(blocks)
    server.refuse = True
    with pytest.raises(FeaturesError, match=r"x\.npz: cannot be reached: 403"):
        list(blocks)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nothing://bucket/x.npz", "nothing://bucket/x.npz: .*[Pp]rotocol not known: nothing"),
        ("memory://none/x.npz", "memory://none/x.npz: there is no such file or folder"),
        ("memory://none/*.npz", "no file fits the pattern"),
        ("http://127.0.0.1:9/x.npz", "there is no such file|cannot be reached"),
        (Path("memory://none/x.npz"), "an address is given as a string, which keeps both slashes"),
        ("memory://", "memory://: names no file or folder"),
        ("zip://x.npz::/none/a.zip", "a.zip: there is no such file or folder"),
        (["memory://none/x.npz"], "there is no such file or folder"),
    ],
)
def test_addresses_of_nothing(address, message):
    with pytest.raises(FeaturesError, match=message):
        open_features(address)


def test_without_fsspec(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(FeaturesError, match=re.escape("pip install 'gwa-core[remote]'")):
        open_features("s3://bucket/x.npz")


def test_runs_and_checkpoints_need_a_disk(tmp_path):
    sources.checkpoint(tmp_path, make_epoch())
    write(RunFolder.create(tmp_path / "run", **ABOUT), range(2))
    address = copy_to_memory(tmp_path)
    with pytest.raises(FeaturesError, match="a run folder is read from a disk; download it"):
        open_features(f"{address}/run")
    with pytest.raises(
        FeaturesError, match="mapped into memory, which takes a file of this machine"
    ):
        open_features(f"{address}/x.pt")


def test_addresses_on_the_command_line(tmp_path, server):
    sources.folder_of_parts(tmp_path, make_epoch())
    want = gwa("stop", tmp_path / "epoch_0").stdout
    for address in ("epoch_0/", "epoch_0", "epoch_0/part-*.npz"):
        done = gwa("stop", f"{server.address}/{address}")
        assert done.returncode == 0, done.stderr
        assert done.stdout == want
    done = gwa("stop", "nothing://bucket/x.npz")
    assert done.returncode == 2
    assert done.stderr.startswith("gwa: nothing://bucket/x.npz: ")


def test_a_place_goes_to_another_process(tmp_path):
    file = sources.npz(tmp_path, make_epoch())
    place = place_of(f"{copy_to_memory(tmp_path)}/{file.name}")
    assert isinstance(place, Url)
    assert place.exists()
    again = pickle.loads(pickle.dumps(place))  # noqa: S301
    assert again == place
    assert str(again) == str(place)
    assert again.stat().st_size == file.stat().st_size
    assert again.stat().st_mtime_ns > 0


# --- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [sources.npz, sources.safetensors, sources.folder_of_parts])
def test_small_files_are_fetched_once(tmp_path, server, whole, kind):
    source = kind(tmp_path, make_epoch())
    check_same(analyse(behind(server.address, tmp_path, source)), whole)
    files = [path for path, _ in server.requests if path.endswith((".npz", ".safetensors"))]
    assert len(files) == len(set(files))  # of GET, beside one HEAD each
    # Whether something lies beside, such as x.bias.npy, is asked once.
    assert len(server.requests) == len(set(server.requests))


def test_what_is_kept_of_small_files_has_an_end(tmp_path, server, whole, monkeypatch):
    monkeypatch.setattr(urls, "_KEPT", 5000)
    source = behind(server.address, tmp_path, sources.folder_of_parts(tmp_path, make_epoch()))
    opened = open_features(source)
    check_same(analyse(opened), whole)
    (place,) = {part._known for part in opened.epochs[0]._features.args[0].parts}
    assert sum(map(len, place._files.values())) == place._kept <= 5000


@pytest.mark.parametrize("n", [61, 60_000])
def test_a_server_that_is_busy_is_asked_again(tmp_path, server, monkeypatch, n):
    monkeypatch.setattr(urls, "_PAUSES", (0.001, 0.001))
    file = sources.npz(tmp_path, make_epoch(n=n))
    want = analyse(file)
    for failing in (1, 2):  # HEAD and GET fail alike
        server.busy = {}
        server.failing = failing
        np.testing.assert_array_equal(analyse(f"{server.address}/x.npz").scores, want.scores)
    server.failing = 99
    with pytest.raises(FeaturesError, match=r"x\.npz: cannot be reached: 503"):
        analyse(f"{server.address}/x.npz")


def test_a_server_that_fails_says_not_that_there_is_no_bias(tmp_path, server):
    arrays = make_epoch()
    bias = arrays.pop("bias")
    np.save(tmp_path / "x.bias.npy", bias)
    file = sources.npz(tmp_path, arrays)
    server.failing, server.only = 99, "x.bias.npy"
    with pytest.raises(FeaturesError, match=r"x\.bias\.npy: cannot be reached: 503"):
        analyse(f"{server.address}/{file.name}")


@pytest.mark.parametrize("name", ["x.npz", "*.npz", "epoch_0/"])
def test_a_server_that_is_not_there(monkeypatch, name):
    require("aiohttp")
    monkeypatch.setattr(urls, "_PAUSES", (0.001, 0.001))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(FeaturesError, match=r"cannot be reached: Cannot connect to host 127\.0"):
        open_features(
            f"{address}/{name}?X-Signature=secret" if "x" in name else f"{address}/{name}"
        )
    with pytest.raises(FeaturesError, match="cannot be reached: Cannot connect to host"):
        open_features(f"zip://x.npz::{address}/a.zip")


# --- S3 -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3():
    """A server that speaks S3, in a process of its own, and how to reach it."""
    require("s3fs")
    require("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


@pytest.fixture
def bucket(s3, monkeypatch):
    """An empty bucket, found as users are told to configure S3."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    name = f"bucket-{time.monotonic_ns()}"
    system.mkdir(name)
    return system, f"s3://{name}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "kind",
    [
        # Each way of asking for names and for bytes; the others go them again.
        pytest.param(kind, marks=() if kind.write in QUICK else pytest.mark.slow)
        for kind in FILES
    ],
    ids=lambda kind: kind.write.__name__,
)
def test_s3_gives_what_the_disk_gives(tmp_path, bucket, whole, kind):
    system, address = bucket
    source = kind.write(tmp_path, make_epoch())
    for path in tmp_path.rglob("*"):
        if path.is_file():
            system.pipe_file(f"{address}/{path.relative_to(tmp_path)}", path.read_bytes())
    check_same(analyse(behind(address, tmp_path, source)), whole)
