"""Whatever a source is, its results are those of one file."""

from __future__ import annotations

import inspect
import sys

import numpy as np
import pytest
from adapters.offline.sources import (
    KINDS,
    N,
    arrow_folder,
    checkpoint,
    feather,
    hugging_face,
    hugging_face_dataset,
    make_epoch,
    npz,
    parts_of,
    table_of,
)
from backends import require

from gwa_offline import analyse, open_features
from gwa_offline.files import tables
from gwa_offline.files.given import read_given, read_head
from gwa_offline.store import FeaturesError

pa = pytest.importorskip("pyarrow")
ds = pytest.importorskip("pyarrow.dataset")


def check_same(found, whole):
    for name in ("scores", "predictions", "targets"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    # Rows in another order, as those of partitions are, are summed in another order.
    np.testing.assert_allclose(found.label_quality, whole.label_quality, rtol=1e-12)
    for one, other in zip(found.epochs, whole.epochs, strict=True):
        assert one.summary[:4] == other.summary[:4]
        assert one.summary[4:-2] == pytest.approx(other.summary[4:-2], rel=1e-12)


@pytest.fixture
def whole(tmp_path_factory):
    return analyse(npz(tmp_path_factory.mktemp("whole"), make_epoch()))


def opened(kind, folder, arrays):
    given = {name: arrays[name] for name in ("weight", "bias")} if kind.head == "given" else {}
    return open_features(kind.write(folder, arrays), **given)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.write.__name__)
def test_every_kind_of_source_gives_the_results_of_one_file(tmp_path, whole, kind):
    arrays = make_epoch()
    check_same(analyse(opened(kind, tmp_path, arrays)), whole)


# --- what is open already -------------------------------------------------------------------------


def test_a_mapping_of_numbers_is_epochs(tmp_path):
    epochs = {3: make_epoch(3), 12: make_epoch(12)}
    for number, arrays in epochs.items():
        np.savez(tmp_path / f"epoch_{number}.npz", **arrays)
    whole = analyse(tmp_path)
    parts = {
        12: list(parts_of(epochs[12])),
        3: str(tmp_path / "epoch_3.npz"),
    }
    for source in (epochs, parts):
        found = analyse(source)
        assert [record.summary.epoch for record in found.epochs] == [3, 12]
        check_same(found, whole)


def test_mappings_and_files_are_parts_of_one_epoch(tmp_path, whole):
    first, second, third = parts_of(make_epoch())
    np.savez(tmp_path / "middle.npz", **second)
    check_same(analyse([first, tmp_path / "middle.npz", third]), whole)


def test_rows_of_a_data_set_that_were_chosen(whole):
    arrays = make_epoch()
    data = hugging_face_dataset(None, arrays).shuffle(seed=0).with_format("numpy")
    check_same(open_and_analyse(data, arrays), whole)


def open_and_analyse(source, arrays):
    return analyse(open_features(source, weight=arrays["weight"], bias=arrays["bias"]))


@pytest.mark.parametrize("library", ["pandas", "h5py", "zarr", "jax", "lists", "torch"])
def test_arrays_of_other_libraries(tmp_path, whole, library):
    module = require(library) if library != "lists" else None
    arrays = source = make_epoch()
    if library == "pandas":
        columns = {name: list(arrays[name]) for name in ("latents", "targets", "ids")}
        source = module.DataFrame(columns)
    elif library == "h5py":
        with module.File(tmp_path / "x.h5", "w") as file:
            for name, array in arrays.items():
                file[name] = array
        source = module.File(tmp_path / "x.h5")
    elif library == "zarr":
        group = module.open_group(tmp_path / "x.zarr", mode="w")
        for name, array in arrays.items():
            group.create_array(name, data=array)
        source = dict(module.open_group(tmp_path / "x.zarr", mode="r").arrays())
    elif library == "jax":
        source = {name: module.numpy.asarray(array) for name, array in arrays.items()}
    elif library == "lists":
        source = arrays | {name: arrays[name].tolist() for name in ("targets", "ids")}
    else:
        half = {name: module.as_tensor(arrays[name]) for name in ("latents", "weight")}
        source = arrays | {name: x.to(module.bfloat16) for name, x in half.items()}
        arrays = arrays | {name: x.to(module.bfloat16).float().numpy() for name, x in half.items()}
        whole = analyse(npz(tmp_path, arrays))
    found = open_and_analyse(source, arrays) if library == "pandas" else analyse(source)
    check_same(found, whole)
    if library == "h5py":
        source.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_checkpoints_of_any_floats(tmp_path, dtype):
    torch = require("torch")
    arrays = {name: torch.as_tensor(array) for name, array in make_epoch().items()}
    for name in ("latents", "weight", "bias"):
        arrays[name] = arrays[name].to(getattr(torch, dtype))
    torch.save({"epoch": 3, "features": arrays}, tmp_path / "nested.pt")
    torch.save(arrays, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    columns = {name: f"features.{name}" for name in arrays}
    nested = open_features(tmp_path / "nested.pt", columns=columns)
    block = next(nested.epochs[0].features.blocks())
    np.testing.assert_array_equal(block.latents, arrays["latents"].double().numpy())
    assert block.latents.dtype == (np.float32 if dtype == "bfloat16" else dtype)
    check_same(analyse(nested), analyse(tmp_path / "x.pt"))


def test_a_head_from_a_checkpoint_of_pytorch(tmp_path, whole):
    torch = require("torch")
    arrays = make_epoch()
    rows = {name: arrays[name] for name in ("latents", "targets", "ids")}
    np.savez(tmp_path / "rows.npz", **rows)
    head = {name: torch.as_tensor(arrays[name]) for name in ("weight", "bias")}
    torch.save({"net": {f"fc.{name}": x for name, x in head.items()}}, tmp_path / "model.pt")
    for name, tensor in head.items():
        torch.save(tensor, tmp_path / f"{name}.pt")
    both = read_head(f"{tmp_path / 'model.pt'}:net.fc")
    alone = {name: read_given(tmp_path / f"{name}.pt", name) for name in ("weight", "bias")}
    for given in (both, alone):
        check_same(analyse(open_features(tmp_path / "rows.npz", **given)), whole)


# --- Arrow and folders ----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 30, N, 100])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.write.__name__)
def test_blocks_of_any_size(tmp_path, kind, rows):
    arrays = make_epoch()
    features = opened(kind, tmp_path, arrays).epochs[0].features
    blocks = list(features.blocks(rows))
    assert [len(block.latents) for block in blocks[:-1]] == [min(rows, N)] * (len(blocks) - 1)
    ids = np.concatenate([block.ids for block in blocks])
    order = np.empty(N, int)
    order[arrays["ids"]] = np.arange(N)
    for name in ("latents", "targets"):
        found = np.concatenate([getattr(block, name) for block in blocks])
        np.testing.assert_array_equal(found, arrays[name][order[ids]])


def test_a_map_is_given_back(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(tables, "_MAPPED", 100)
    arrays = make_epoch()
    check_same(analyse(feather(tmp_path, arrays)), whole)
    (tmp_path / "more").mkdir()
    check_same(analyse(arrow_folder(tmp_path / "more", arrays)), whole)


def test_keys_of_partitions_are_columns_and_epochs(tmp_path):
    epochs = {3: make_epoch(3), 12: make_epoch(12)}
    parts = []
    for number, arrays in epochs.items():
        np.savez(tmp_path / f"epoch_{number}.npz", **arrays)
        rows = len(arrays["ids"])
        table = table_of(arrays).append_column("epoch", pa.array(np.full(rows, number)))
        parts.append(table.append_column("split", pa.array(["a", "b"] * (rows // 2) + ["a"])))
    keys = pa.schema([("targets", pa.int64()), ("epoch", pa.int64()), ("split", pa.string())])
    layout = ds.partitioning(keys, flavor="hive")
    ds.write_dataset(pa.concat_tables(parts), tmp_path / "x", format="parquet", partitioning=layout)
    weight = epochs[3]["weight"]
    found = open_features(tmp_path / "x", weight=weight)
    want = {
        n: {k: v for k, v in arrays.items() if k != "bias"} | {"weight": weight}
        for n, arrays in epochs.items()
    }
    check_same(analyse(found), analyse(want))


def test_keys_of_partitions_may_be_words(tmp_path, whole):
    arrays = make_epoch()
    words = np.array(["a cat", "dog/wolf", "owl"])[arrays["targets"]]
    table = table_of(arrays).drop_columns("targets").append_column("label", pa.array(words))
    layout = ds.partitioning(pa.schema([("label", pa.string())]), flavor="hive")
    ds.write_dataset(table, tmp_path / "x", format="parquet", partitioning=layout)
    source = open_features(tmp_path / "x", weight=arrays["weight"], bias=arrays["bias"])
    assert source.class_names == ("a cat", "dog/wolf", "owl")
    check_same(analyse(source), whole)


def several_splits(folder):
    datasets = require("datasets")
    datasets.disable_progress_bars()
    data = hugging_face_dataset(folder, make_epoch())
    datasets.DatasetDict(train=data, test=data).save_to_disk(folder / "x")
    open_features(folder / "x")


def several_splits_in_memory(folder):
    datasets = require("datasets")
    data = hugging_face_dataset(folder, make_epoch())
    open_features(datasets.DatasetDict(train=data, test=data))


def saved_without_a_file(folder):
    place = hugging_face(folder, make_epoch())
    (place / "data-00001-of-00003.arrow").unlink()
    open_features(place)


def half_a_stream(folder):
    table = table_of(make_epoch())
    with pa.OSFile(str(folder / "x.arrow"), "wb") as stream:
        writer = pa.ipc.new_stream(stream, table.schema)
        writer.write_table(table)
        stream.flush()
        (folder / "half.arrow").write_bytes((folder / "x.arrow").read_bytes())
        writer.close()
    open_features(folder / "half.arrow", weight=make_epoch()["weight"])


def partitions_of_nothing(folder):
    table = table_of(make_epoch()).drop_columns("targets")
    table = table.append_column("label", pa.nulls(len(table), pa.string()))
    layout = ds.partitioning(pa.schema([("label", pa.string())]), flavor="hive")
    ds.write_dataset(table, folder / "x", format="parquet", partitioning=layout)
    open_features(folder / "x", weight=make_epoch()["weight"])


def saved_module(folder):
    torch = require("torch")
    torch.save(torch.nn.Linear(2, 2), folder / "x.pt")
    open_features(folder / "x.pt")


def no_torch(folder):
    checkpoint(folder, make_epoch())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        open_features(folder / "x.pt")


def named(name, *, is_folder=False):
    def build(folder):
        if is_folder:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(b"data")
        open_features(folder / name)

    return build


def given(**changes):
    return lambda: open_features(make_epoch() | changes)


class Opaque:
    shape = (N,)

    def __getitem__(self, rows):
        raise OSError("the disk is gone")


# What a user gets: (name, function that raises, pattern).
CASES = [
    ("splits of Hugging Face", several_splits, r"x: holds the splits train, test; give the folder of one: .*x/train"),
    ("splits in memory", several_splits_in_memory, r"DatasetDict: holds the splits train, test; give one of them: data\['train'\]"),
    ("data set without a file", saved_without_a_file, "data-00001-of-00003.arrow: is missing, and state.json names it"),
    ("half-written Arrow", half_a_stream, r"half\.arrow: is no Arrow file, or a stream that was not written to its end"),
    ("partition of missing values", partitions_of_nothing, "is of rows that have no label"),
    ("pickled module", saved_module, r"holds pickled objects \(torch.nn.modules.linear.Linear\), which are read by running"),
    ("no PyTorch", no_torch, r"a \.pt file is read with PyTorch: pip install 'gwa-core\[torch\]', or save"),
    ("HDF5", named("x.h5"), r"HDF5 is opened by h5py, in Python: analyse\(h5py\.File\('x\.h5'\)\)"),
    ("Zarr", named("x.zarr", is_folder=True), r"analyse\(dict\(zarr\.open_group\('x\.zarr'\)\.arrays\(\)\)\)"),
    ("WebDataset", named("x.tar"), "WebDataset has a file for each sample; put them together"),
    ("mapping without latents", given(latents=None), "dict: `latents` is missing, there is targets, ids, weight"),
    ("mapping of ragged lists", given(latents=[[1.0], [1.0, 2.0]]), "`latents` cannot become a NumPy array"),
    ("array that cannot be sliced", given(latents=Opaque()), r"`latents`: cannot be read.*the disk is gone"),
    ("group for an array", given(latents={"a": 1}), "`latents` is a dict and no array; give what is in it"),
    ("negative epoch", lambda: open_features({-1: make_epoch()}), "the number of an epoch must be at least 0, got -1"),
    ("empty mapping", lambda: open_features({}), "`latents` is missing, there is nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_is_refused(tmp_path, build, message):
    arguments = [tmp_path] if inspect.signature(build).parameters else []
    with pytest.raises(FeaturesError, match=message):
        build(*arguments)
