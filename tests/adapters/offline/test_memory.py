"""What is open already: columns and frames as arrays, arrays beside a file, and what is none."""

from __future__ import annotations

import numpy as np
import pytest
from adapters.offline.sources import make_epoch, npz
from adapters.offline.test_sources import check_same
from backends import require

from gwa_offline import analyse, open_features
from gwa_offline.store import FeaturesError


@pytest.fixture
def whole(tmp_path):
    return analyse(npz(tmp_path, make_epoch()))


# --- columns --------------------------------------------------------------------------------------


def series(array, index=None):
    rows = list(array) if array.ndim > 1 else array
    return require("pandas").Series(rows, index=index)


def labelled_series(array):
    """One whose labels are floats, by which slices go."""
    return series(array, index=np.arange(len(array))[::-1] / 2)


def arrow_array(array):
    return require("pyarrow").array(list(array))


def chunked(array):
    rows = arrow_array(array)
    return require("pyarrow").chunked_array([rows[:7], rows[:0], rows[7:]])


def frame(array):
    pd = require("pandas")
    labels = np.arange(len(array))[::-1] / 2
    return pd.DataFrame(array, index=labels) if array.ndim > 1 else series(array, labels)


@pytest.mark.parametrize("column", [series, labelled_series, chunked, arrow_array, frame])
def test_columns_in_a_mapping_are_arrays(whole, column):
    arrays = make_epoch()
    columns = {name: column(arrays[name]) for name in ("latents", "targets", "ids")}
    check_same(analyse(arrays | columns), whole)
    rows = {name: arrays[name] for name in ("latents", "targets")}
    by_id = {name: column(arrays[name]) for name in ("bias", "targets")}
    head = {"weight": frame(arrays["weight"]), "bias": by_id["bias"]}
    want = analyse({**rows, "weight": arrays["weight"], "bias": arrays["bias"]})
    check_same(analyse(open_features(rows, **head)), want)
    given = open_features({"latents": arrays["latents"]}, **head, targets=by_id["targets"])
    check_same(analyse(given), want)


def test_strings_in_columns_are_names():
    arrays = make_epoch()
    words = np.array(["cat", "dog", "owl"])[arrays["targets"]]
    want = analyse(arrays | {"targets": words})
    for column in (series(words), series(words).astype("category"), chunked(words)):
        found = analyse(arrays | {"targets": column})
        check_same(found, want)
        assert found.class_names == ("cat", "dog", "owl")


def test_columns_with_holes_are_refused():
    arrays = make_epoch()
    holes = arrays["targets"].tolist()
    holes[3] = None
    for column in (require("pyarrow").array(holes), require("pandas").Series(holes, dtype="Int64")):
        with pytest.raises(FeaturesError, match="`targets` has missing values"):
            analyse(arrays | {"targets": column})
    ragged = [list(row) for row in arrays["latents"]]
    ragged[3] += [1.0]
    with pytest.raises(FeaturesError, match="must have lists of one length, 5, got one of 6"):
        analyse(arrays | {"latents": require("pandas").Series(ragged)})


# --- tensors --------------------------------------------------------------------------------------


def test_tensors_beside_a_source(tmp_path):
    torch = require("torch")
    arrays = make_epoch()
    head = {name: torch.as_tensor(arrays[name]).bfloat16() for name in ("weight", "bias")}
    rounded = {name: value.float().numpy() for name, value in head.items()}
    want = analyse(npz(tmp_path, arrays | rounded))
    rows = {name: arrays[name] for name in ("latents", "ids")}
    by_id = torch.as_tensor(arrays["targets"])[np.argsort(arrays["ids"])]
    head = {name: value.requires_grad_() for name, value in head.items()}
    check_same(analyse(open_features(rows, targets=by_id, **head)), want)


# --- numbers of epochs ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_numbers_of_epochs_are_of_any_integer_type(kind):
    found = open_features({kind(12): make_epoch(12), 3: make_epoch(3)})
    assert [(type(epoch.epoch), epoch.epoch) for epoch in found.epochs] == [(int, 3), (int, 12)]


# --- strings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["O", "S12"])
def test_strings_of_hdf5_are_text(tmp_path, kind):
    h5py = require("h5py")
    arrays = make_epoch()
    words = np.array(["Kätzchen", "dog", "owl"])[arrays["targets"]]
    names = np.array([f"img/{i}.png" for i in arrays["ids"]])
    want = analyse(arrays | {"targets": words, "ids": names})
    assert want.class_names == ("Kätzchen", "dog", "owl")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, array in (arrays | {"targets": words, "ids": names, "path": names}).items():
            if array.dtype.kind == "U":
                array = np.array([text.encode() for text in array], kind)
            file[name] = array
    with h5py.File(tmp_path / "x.h5") as file:
        found = analyse(file)
        check_same(found, want)
        assert found.class_names == want.class_names
        source = open_features(file, keep=["path"])
        assert source.kept["path"].tolist() == source.kept["name"].tolist() == list(names)
    encoded = np.array([word.encode() for word in words])
    rows = {name: value for name, value in arrays.items() if name not in ("targets", "ids")}
    check_same(analyse(open_features(rows, targets=encoded)), analyse(rows | {"targets": words}))


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(FeaturesError, match=r"`targets` has bytes that are no text in UTF-8"):
        open_features(make_epoch() | {"targets": [b"\xff"] * 61})


# --- what is no source ----------------------------------------------------------------------------


def stream_of_rows():
    datasets = require("datasets")

    def rows():
        raise AssertionError("a stream that is refused is not read")
        yield {}

    return datasets.IterableDataset.from_generator(rows)


def loader():
    torch = require("torch")
    return torch.utils.data.DataLoader([1, 2])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: None, "got NoneType; is a variable unset"),
        (lambda: 5, "got int$"),
        (lambda: b"x.npz", "got bytes$"),
        (lambda: np.ones((3, 2)), "got ndarray; give arrays their names"),
        (lambda: (np.ones((3, 2)), np.ones((2, 2)), [0, 1, 1]), "got ndarray in a tuple; give arr"),
        (lambda: [None], "got NoneType in a list; is a variable unset"),
        (lambda: {3: np.ones((3, 2))}, "epoch 3: `path` must be .* got ndarray; give arrays their"),
        (lambda: {3: None}, "epoch 3: `path` must be .* got NoneType"),
        (lambda: {3: "none.npz"}, "epoch 3: none.npz: there is no such file or folder"),
        (lambda: require("torch").ones(3, 2), "got Tensor; give arrays their names"),
        (lambda: require("pandas").Series([1.0]), "got Series; give arrays their names"),
        (stream_of_rows, "got IterableDataset; a stream has no number of rows: store it first"),
        (lambda: [stream_of_rows()], "got IterableDataset in a list; a stream has no number"),
        (lambda: {"train": stream_of_rows()}, r"holds the splits train; give one of them: data"),
        (loader, "got DataLoader; a stream has no number"),
    ],
)  # fmt: skip
def test_what_is_no_source_is_refused_at_once(build, message):
    with pytest.raises(FeaturesError, match=message):
        analyse(build())


def test_files_that_are_yielded_and_named_by_numpy(tmp_path, whole):
    file = npz(tmp_path, make_epoch())
    check_same(analyse(path for path in [file]), whole)
    check_same(analyse(np.array([str(file)])), whole)


def test_a_file_that_was_closed(tmp_path):
    h5py = require("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["latents"] = make_epoch()["latents"]
        latents = file["latents"]
        source = open_features(make_epoch() | {"latents": latents})
    archive = np.load(npz(tmp_path, make_epoch()))
    archive.close()
    for closed in (file, archive):
        with pytest.raises(FeaturesError, match=r"File: cannot be read; is it closed\?"):
            analyse(closed)
    with pytest.raises(FeaturesError, match="`latents`: cannot be read"):
        open_features(make_epoch() | {"latents": latents})
    with pytest.raises(FeaturesError, match="`latents`: cannot be read"):
        list(source.epochs[0].features.blocks())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_no_array(tmp_path):
    torch = require("torch")
    nested = torch.nested.nested_tensor([torch.ones(2, 5), torch.ones(3, 5)])
    torch.save({"latents": nested}, tmp_path / "x.pt")
    with pytest.raises(FeaturesError, match=r"`latents`: is nested torch\.float32; a plain dense"):
        open_features(tmp_path / "x.pt")
    with pytest.raises(FeaturesError, match="`latents`: cannot be read"):
        open_features(make_epoch() | {"latents": nested})
