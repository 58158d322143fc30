import faulthandler
import json
import os
import re
import resource
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from gwa_core import EpochSummary
from gwa_offline.readers import Block, open_features
from gwa_offline.store import FeaturesError, RunFolder

N, C, D = 23, 3, 5


def make_arrays(seed=0, n=N):
    """All that a file can hold."""
    rng = np.random.default_rng(seed)
    return {
        "latents": rng.standard_normal((n, D)).astype(np.float32),
        "weight": rng.standard_normal((C, D)).astype(np.float32),
        "targets": rng.integers(0, C, n),
        "logits": rng.standard_normal((n, C)).astype(np.float32),
        "bias": rng.standard_normal(C).astype(np.float32),
        "ids": rng.permutation(n),
    }


def make_few(**changes):
    """What a file must hold, with changes."""
    arrays = make_arrays()
    return {name: arrays[name] for name in ("latents", "weight", "targets")} | changes


def write_npz(place, arrays):
    np.savez(place.with_suffix(".npz"), **arrays)
    return place.with_suffix(".npz")


def write_compressed(place, arrays):
    np.savez_compressed(place.with_suffix(".npz"), **arrays)
    return place.with_suffix(".npz")


def write_safetensors(place, arrays):
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(arrays, place.with_suffix(".safetensors"))
    return place.with_suffix(".safetensors")


def write_folder(place, arrays):
    place.mkdir()
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    return place


def write_parquet(place, arrays, *, fixed=True, names=None, row_group_size=None):
    columns = {}
    for name, array in arrays.items():
        if name in {"weight", "bias"}:
            np.save(place.with_name(f"{place.name}.{name}.npy"), array)
            continue
        column = pa.array(array.reshape(-1))
        if array.ndim == 2 and fixed:
            column = pa.FixedSizeListArray.from_arrays(column, array.shape[1])
        elif array.ndim == 2:
            starts = np.arange(len(array) + 1, dtype=np.int32) * array.shape[1]
            column = pa.ListArray.from_arrays(starts, column)
        columns[(names or {}).get(name, name)] = column
    file = place.with_suffix(".parquet")
    pq.write_table(pa.table(columns), file, row_group_size=row_group_size)
    return file


def write_parquet_lists(place, arrays):
    names = {"targets": "label", "ids": "id"}
    return write_parquet(place, arrays, fixed=False, names=names, row_group_size=10)


def make_summary(epoch):
    return EpochSummary(epoch, 7 * epoch, N, 0, *([0.5] * (len(EpochSummary._fields) - 6)))


def write_run(place, arrays, *, epochs=1, **options):
    run = RunFolder.create(place, num_samples=N, num_classes=C, adapter="test", **options)
    for epoch in range(epochs):
        run.write_epoch(
            make_summary(epoch),
            scores=np.full(N, epoch / 10),
            features=arrays,
            metrics={"acc": epoch / 4},
        )
    return place


WRITERS = {
    "npz": write_npz,
    "compressed npz": write_compressed,
    "safetensors": write_safetensors,
    "npy folder": write_folder,
    "parquet": write_parquet,
    "parquet of lists": write_parquet_lists,
    "run folder": write_run,
}
all_formats = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def read_all(source):
    """Read everything, as an analysis would; return the blocks put together."""
    whole = []
    for epoch in source.epochs:
        if epoch.scores is not None:
            np.nansum(epoch.scores)
        features = epoch.features
        if features is None:
            continue
        blocks = list(features.blocks(rows=7))
        assert [b.start for b in blocks] == list(range(0, features.num_samples, 7))
        parts = [
            None if column[0] is None else np.concatenate(column)
            for column in list(zip(*blocks, strict=True))[1:]
        ]
        whole.append((features.weight, features.bias, Block(0, *parts)))
    return whole


# --- what is written comes back -----------------------------------------------------------------


@all_formats
@pytest.mark.parametrize("rows", [1, 7, N - 1, N, 4096])
def test_every_format_gives_the_same_blocks(tmp_path, write, rows):
    arrays = make_arrays()
    source = open_features(write(tmp_path / "saved", arrays))
    assert (source.num_samples, source.num_classes) == (N, C)
    assert (source.beta, source.loss, source.class_names) == (1.2, "cross_entropy", None)
    (epoch,) = source.epochs
    features = epoch.features
    assert (features.num_samples, features.num_classes, features.num_features) == (N, C, D)
    assert features.dtype == np.float32
    assert features.has_logits
    np.testing.assert_array_equal(features.weight, arrays["weight"])
    np.testing.assert_array_equal(features.bias, arrays["bias"])
    np.testing.assert_array_equal(features.targets, arrays["targets"])
    np.testing.assert_array_equal(source.targets[arrays["ids"]], arrays["targets"])

    blocks = list(features.blocks(rows))
    assert [b.start for b in blocks] == list(range(0, N, rows))
    for i, name in enumerate(Block._fields[1:], start=1):
        parts = [block[i] for block in blocks]
        np.testing.assert_array_equal(np.concatenate(parts), arrays[name])
        assert [len(part) for part in parts] == [min(rows, N - b.start) for b in blocks]
        assert all(part.flags.c_contiguous and part.dtype.isnative for part in parts)
    assert len(list(features.blocks(rows))) == len(blocks)  # a second pass starts again


@all_formats
def test_optional_arrays_may_lack(tmp_path, write):
    source = open_features(write(tmp_path / "saved", make_few()))
    features = source.epochs[0].features
    assert features.bias is features.ids is None
    assert not features.has_logits
    block = next(features.blocks())
    assert block.logits is block.ids is None
    np.testing.assert_array_equal(source.targets, make_few()["targets"])


@all_formats
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_floats_of_any_size_keep_their_type(tmp_path, write, dtype):
    latents = make_arrays()["latents"].astype(dtype)
    features = open_features(write(tmp_path / "s", make_few(latents=latents))).epochs[0].features
    assert features.dtype == next(features.blocks()).latents.dtype == dtype
    np.testing.assert_array_equal(next(features.blocks()).latents, latents)


@all_formats
def test_soft_targets_are_read_with_the_blocks(tmp_path, write):
    soft = np.random.default_rng(3).dirichlet(np.ones(C), N).astype(np.float32)
    source = open_features(write(tmp_path / "saved", make_few(targets=soft)))
    features = source.epochs[0].features
    assert features.soft
    np.testing.assert_array_equal(source.targets, soft.argmax(axis=1))
    np.testing.assert_array_equal(np.concatenate([b.targets for b in features.blocks(9)]), soft)


def test_one_hot_integers_are_soft_targets(tmp_path):
    one_hot = np.eye(C, dtype=np.int64)[make_few()["targets"]]
    source = open_features(write_npz(tmp_path / "saved", make_few(targets=one_hot)))
    block = next(source.epochs[0].features.blocks())
    assert block.targets.dtype == np.float32
    np.testing.assert_array_equal(block.targets, one_hot)


@all_formats
def test_latents_that_are_not_finite_are_no_error(tmp_path, write):
    latents = make_arrays()["latents"]
    latents[3, 1], latents[4, 2] = np.nan, -np.inf
    ((_, _, block),) = read_all(open_features(write(tmp_path / "s", make_few(latents=latents))))
    np.testing.assert_array_equal(block.latents, latents)


def test_bfloat16_becomes_float32(tmp_path):
    arrays = make_arrays()
    half = {
        name: array.astype(ml_dtypes.bfloat16) if array.dtype.kind == "f" else array
        for name, array in arrays.items()
    }
    ((weight, bias, block),) = read_all(open_features(write_safetensors(tmp_path / "s", half)))
    for name, found in {"weight": weight, "bias": bias, **block._asdict()}.items():
        if name in half:
            np.testing.assert_array_equal(found, half[name].astype(arrays[name].dtype))
    assert block.latents.dtype == np.float32


@pytest.mark.parametrize("write", [write_npz, write_folder])
def test_fortran_order_and_foreign_byte_order(tmp_path, write):
    arrays = make_arrays()
    odd = {
        name: np.asfortranarray(array).astype(array.dtype.newbyteorder(">"), order="K")
        for name, array in arrays.items()
    }
    assert odd["latents"].flags.f_contiguous
    ((weight, _, block),) = read_all(open_features(write(tmp_path / "s", odd)))
    np.testing.assert_array_equal(weight, arrays["weight"])
    for name in ("latents", "targets", "logits", "ids"):
        found = getattr(block, name)
        np.testing.assert_array_equal(found, arrays[name])
        assert found.dtype.isnative


def test_a_flax_kernel_transposed_may_be_compressed(tmp_path):
    weight = np.asfortranarray(make_arrays()["weight"])
    ((found, _, _),) = read_all(
        open_features(write_compressed(tmp_path / "s", make_few(weight=weight)))
    )
    np.testing.assert_array_equal(found, weight)


def test_arguments_fill_in_what_the_file_lacks(tmp_path):
    arrays = make_arrays()
    file = write_parquet(tmp_path / "s", {name: arrays[name] for name in ("latents", "ids")})
    by_id = np.empty(N, np.int64)
    by_id[arrays["ids"]] = arrays["targets"]
    source = open_features(file, weight=arrays["weight"], bias=arrays["bias"], targets=by_id)
    ((weight, bias, block),) = read_all(source)
    np.testing.assert_array_equal(weight, arrays["weight"])
    np.testing.assert_array_equal(bias, arrays["bias"])
    np.testing.assert_array_equal(block.targets, arrays["targets"])
    np.testing.assert_array_equal(source.targets, by_id)


def test_a_subset_is_placed_by_its_ids(tmp_path):
    few = make_few(ids=np.arange(N) * 3)
    source = open_features(write_npz(tmp_path / "s", few))
    assert source.num_samples == 3 * (N - 1) + 1
    np.testing.assert_array_equal(source.targets[::3], few["targets"])
    assert (np.delete(source.targets, few["ids"]) == -1).all()


@pytest.mark.parametrize("write", [write_npz, write_safetensors, write_folder, write_parquet])
def test_snapshots_are_ordered_by_the_number_in_their_names(tmp_path, write):
    for number in (10, 2, 0):
        latents = np.full((N, D), number, np.float32)
        write(tmp_path / f"vit16_epoch_{number}_seed7", make_few(latents=latents))
    (tmp_path / "README.md").write_text("notes")
    source = open_features(tmp_path)
    assert [(e.epoch, e.step) for e in source.epochs] == [(0, 0), (2, 2), (10, 10)]
    assert source.name == tmp_path.name
    assert [block.latents[0, 0] for _, _, block in read_all(source)] == [0, 2, 10]
    assert all(e.summary is e.scores is None for e in source.epochs)


def test_a_run_gives_its_summaries_scores_and_features(tmp_path):
    place = write_run(tmp_path / "run7", make_few(), epochs=3, class_names=list("abc"), beta=1.5)
    RunFolder.open(place).write_epoch(make_summary(5))
    source = open_features(place)
    assert (source.name, source.class_names, source.beta) == ("run7", ("a", "b", "c"), 1.5)
    assert [e.summary for e in source.epochs] == [make_summary(i) for i in (0, 1, 2, 5)]
    assert [e.step for e in source.epochs] == [0, 7, 14, 35]
    assert [e.metrics for e in source.epochs] == [{"acc": 0.0}, {"acc": 0.25}, {"acc": 0.5}, {}]
    assert isinstance(source.epochs[1].scores, np.memmap)
    np.testing.assert_array_equal(source.epochs[1].scores, np.full(N, 0.1, np.float32))
    assert source.epochs[3].scores is source.epochs[3].features is None
    assert len(read_all(source)) == 3


def test_labels_of_a_run_serve_features_without_targets(tmp_path):
    few = make_few()
    place = write_run(tmp_path / "run", few, targets=few["targets"])
    write_safetensors(place / "features" / "000000", make_few() | {"targets": few["targets"]})
    (place / "features" / "000000.npz").unlink()
    lacking = {"latents": few["latents"][:9], "weight": few["weight"], "ids": np.arange(9) + 5}
    write_npz(place / "features" / "000000", lacking)
    source = open_features(place)
    np.testing.assert_array_equal(source.epochs[0].features.targets, few["targets"][5:14])
    np.testing.assert_array_equal(source.targets, few["targets"])


def test_a_sigmoid_head_with_one_output(tmp_path):
    place = tmp_path / "run"
    run = RunFolder.create(
        place, num_samples=N, num_classes=1, adapter="test", loss="binary_cross_entropy"
    )
    few = make_few(weight=np.ones((1, D)), targets=np.arange(N) % 2)
    run.write_epoch(make_summary(0), features=few)
    run.write_epoch(make_summary(1), features=few | {"targets": np.full((N, 1), 0.3)})
    first, second = (e.features for e in open_features(place).epochs)
    np.testing.assert_array_equal(first.targets, few["targets"])
    assert second.targets is None
    assert (next(second.blocks()).targets == 0.3).all()


# --- memory -------------------------------------------------------------------------------------

MEASURE = textwrap.dedent(
    """
    import json, sys
    sys.path[:0] = sys.argv[2:]
    import numpy as np
    import pyarrow.parquet
    from gwa_offline.readers import open_features
    def peak():  # in MB; ru_maxrss starts at the peak of the parent process
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

    before = peak()
    features = open_features(sys.argv[1]).epochs[0].features
    rows = sum(len(block.latents) for block in features.blocks(1024))
    print(json.dumps([rows, peak() - before]))
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("write", [write_folder, write_compressed, write_parquet])
def test_memory_does_not_grow_with_the_file(tmp_path, write):
    n, d = 40_000, 1024  # 164 MB
    small = {"weight": np.ones((C, d), np.float32), "targets": np.zeros(n, np.int64)}
    latents = np.zeros((n, d), np.float32)
    if write is not write_compressed:  # which takes seconds to pack noise
        np.random.default_rng(0).random(dtype=np.float32, out=latents)
    path = write(tmp_path / "big", {"latents": latents, **small})
    command = [sys.executable, "-c", MEASURE, str(path), *sys.path]
    rows, grown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert rows == n
    assert 4 <= grown < 120  # it holds at least a block, so the measurement works


# --- errors -------------------------------------------------------------------------------------


def opening(writer=write_npz, /, **changes):
    """Build a case: a file with some arrays changed (None: left out), then opened and read."""

    def build(folder):
        arrays = {k: v for k, v in make_few(**changes).items() if v is not None}
        read_all(open_features(writer(folder / "saved", arrays)))

    return build


def truncated(writer, keep):
    def build(folder):
        file = writer(folder / "saved", make_few())
        file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
        read_all(open_features(file))

    return build


def two_snapshots(**changes):
    def build(folder):
        write_npz(folder / "epoch_1", make_few())
        write_npz(folder / "epoch_2", make_few(**changes))
        open_features(folder)

    return build


def with_arguments(writer=write_npz, /, leave_out=(), **arguments):
    def build(folder):
        arrays = {k: v for k, v in make_few().items() if k not in leave_out}
        open_features(writer(folder / "saved", arrays), **arguments)

    return build


def named_file(name):
    def build(folder):
        (folder / name).write_bytes(b"data")
        open_features(folder / name)

    return build


def in_a_run(change):
    def build(folder):
        change(write_run(folder / "run", make_few(), targets=make_few()["targets"]))
        read_all(open_features(folder / "run"))

    return build


def object_array(folder):
    ragged = np.array([[1.0], [2.0, 3.0]], dtype=object)
    np.savez(folder / "saved.npz", **make_few(latents=ragged))
    open_features(folder / "saved.npz")


def newer_run(run):
    header = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(header | {"schema": 2}))


def no_pyarrow(folder):
    file = write_parquet(folder / "saved", make_few())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow.parquet", None)
        open_features(file)


def write_bytes_column(folder):
    pq.write_table(pa.table({"label": [b"cat"], "latents": [[1.0]]}), folder / "x.parquet")
    open_features(folder / "x.parquet")


def write_ragged(folder):
    table = pa.table({"label": [0, 1], "latents": [[1.0, 2.0], [3.0]]})
    pq.write_table(table, folder / "x.parquet")
    read_all(open_features(folder / "x.parquet", weight=np.ones((2, 2))))


def write_nulls(folder):
    table = pa.table({"label": [0, None], "latents": [[1.0, 2.0], [3.0, 4.0]]})
    pq.write_table(table, folder / "x.parquet")
    read_all(open_features(folder / "x.parquet", weight=np.ones((2, 2))))


def write_twice(folder):
    write_npz(folder / "epoch_1", make_few())
    write_safetensors(folder / "epoch_01", make_few())
    open_features(folder)


def write_alone(folder):
    write_npz(folder / "last", make_few())
    open_features(folder)


def write_odd_ids_and_give_targets(folder):
    few = make_few(ids=np.array(3))
    del few["targets"]
    open_features(write_npz(folder / "saved", few), targets=LABELS)


def write_run_and_give_targets(folder):
    place = write_run(folder / "run", make_few())
    open_features(place, targets=np.ones((9, C)) / C)


LABELS = make_few()["targets"]
UNNORMALISED = np.full((N, C), 0.5)

# What a user gets for bad input: (name, function of an empty folder that raises, pattern).
CASES = [
    ("no such file", lambda folder: open_features(folder / "x.npz"), "x.npz: there is no such"),
    ("unknown suffix", named_file("x.csv"), r"\.csv is unknown; supported are \.npz, \.safetensors"),
    ("no suffix", named_file("x"), "no suffix is unknown; supported are"),
    ("empty folder", open_features, "there are no features, there is nothing; supported are"),
    ("empty file", named_file("x.npz"), "is it truncated or damaged"),
    ("weight missing", opening(weight=None), r"`weight` is missing, there is latents, targets"),
    ("weight missing (npy)", opening(write_folder, weight=None), r"`weight` is missing"),
    (
        "weight missing (parquet)",
        opening(write_parquet, weight=None),
        r"`weight` is missing.*may lie beside as saved\.weight\.npy",
    ),
    ("other names", opening(latents=None, x=LABELS), "`latents` is missing, there is weight, targ"),
    ("latents of integers", opening(latents=np.ones((N, D), np.uint8)), "`latents` must be floating, got uint8.*not images"),
    ("latents of maps", opening(latents=np.ones((N, D, 2, 2))), r"`latents` must be \(n, D\).*pooled"),
    ("no samples", opening(latents=np.ones((0, D)), targets=LABELS[:0]), "`latents` is empty"),
    ("weight transposed", opening(weight=np.ones((D, C))), r"\(C, D\) = \(C, 5\), got \(5, 3\); a Flax kernel is \(D, C\) and must be transposed"),
    ("weight of another layer", opening(weight=np.ones((C, 7))), r"got \(3, 7\).*same linear layer"),
    ("weight of integers", opening(weight=np.ones((C, D), int)), "`weight` must be floating.*dequantised"),
    ("weight of one class", opening(weight=np.ones((1, D))), "C = 1 class with loss='cross_entropy'"),
    ("weight a vector", opening(weight=np.ones(D)), r"`weight` must be \(C, D\) = \(C, 5\)"),
    ("labels too few", opening(targets=LABELS[1:]), r"`targets` must be \(n,\) = \(23,\) labels"),
    ("labels as a column", opening(targets=LABELS[:, None]), r"`targets` must be.*got int64 of shape \(23, 1\)"),
    ("labels as floats", opening(targets=LABELS * 1.0), "must be integer class labels, got float64"),
    ("labels from 1", opening(targets=LABELS + 1), r"must be in 0\.\.2 \(C = 3\), got 3 in row \d+; do the labels start at 1"),
    ("labels of -100", opening(targets=LABELS - 100), "got -9[89] in row 0|got -100 in row 0"),
    ("soft targets", opening(targets=UNNORMALISED), "sum to one, row 0 sums to 1.5"),
    ("soft targets with nan", opening(targets=np.full((N, C), np.nan)), "row 0 sums to nan"),
    ("logits for targets", opening(targets=np.eye(C)[LABELS] * 3 - 1), r"smallest -1\); are these logits"),
    ("logits of another head", opening(logits=np.ones((N, 9))), r"`logits` must be \(n, C\) = \(23, 3\)"),
    ("logits of integers", opening(logits=np.ones((N, C), int)), "`logits` must be floating"),
    ("bias of another head", opening(bias=np.ones(9)), r"`bias` must be \(C,\) = \(3,\)"),
    ("ids twice", opening(ids=np.minimum(np.arange(N), 20)), "`ids` must be unique, 20 is there 3 times; a distributed sampler"),
    ("ids negative", opening(ids=np.arange(N) - 1), r"must be in 0\.\.N-1, got -1 in row 0"),
    ("ids that are hashes", opening(ids=np.arange(N) + 2**40), "not a hash"),
    ("ids as floats", opening(ids=np.arange(N) * 1.0), "`ids` must be integers, got float64"),
    ("ids too few", opening(ids=np.arange(9)), r"`ids` must be \(n,\) = \(23,\)"),
    ("pickled objects", object_array, "`latents`: holds pickled Python objects; these are refused"),
    ("complex numbers", opening(latents=np.ones((N, D), complex)), "`latents`: has the .npy header.*only integers and floats"),
    ("bfloat16 in npy", opening(latents=np.ones((N, D), ml_dtypes.bfloat16)), "bfloat16 can be saved as float32"),
    ("columns compressed", opening(write_compressed, latents=np.ones((N, D), order="F")), "`latents` is compressed and in Fortran order.*ascontiguousarray"),
    ("npz truncated", truncated(write_npz, 0.6), "truncated or damaged"),
    ("compressed truncated", truncated(write_compressed, 0.6), "truncated or damaged"),
    ("safetensors truncated", truncated(write_safetensors, 0.9), "truncated or damaged"),
    ("safetensors of 3 bytes", named_file("x.safetensors"), "has 4 bytes and a header"),
    ("parquet truncated", truncated(write_parquet, 0.6), "truncated or damaged"),
    ("float8", opening(write_safetensors, latents=np.ones((N, D), ml_dtypes.float8_e4m3fn)), "`latents`: has dtype F8_E4M3; save it as F32"),
    ("column of bytes", write_bytes_column, "`label`: has type binary; a column of numbers"),
    ("ragged lists", write_ragged, "`latents` must have lists of one length, 2"),
    ("missing values", write_nulls, "has missing values"),
    ("no pyarrow", no_pyarrow, re.escape("pip install 'gwa-core[formats]'")),
    ("weight given twice", with_arguments(weight=np.ones((C, D))), "`weight` was given, but the file has its own"),
    ("given weight transposed", with_arguments(leave_out=("weight",), weight=np.ones((D, C))), "must be transposed"),
    ("given targets too many", with_arguments(leave_out=("targets",), targets=np.zeros(99, int)), r"got int64 of shape \(99,\); one target for each row"),
    ("given targets one number", with_arguments(leave_out=("targets",), targets=3), r"`targets` must be \(n,\) = \(23,\) labels.*shape \(\)"),
    ("ids one number", write_odd_ids_and_give_targets, r"`ids` must be \(n,\), got int64 of shape \(\)"),
    ("name too long", lambda folder: open_features(folder / ("x" * 300 + ".npz")), "cannot be read: .*too long|there is no such"),
    ("snapshots of other classes", two_snapshots(weight=np.ones((4, D)), targets=LABELS), r"epoch_2\.npz: `weight` has C = 4 rows, the rest of the run has 3"),
    ("snapshots of other samples", two_snapshots(latents=np.ones((9, D)), targets=LABELS[:9]), r"epoch_2\.npz: `ids` is missing: the file has 9 samples, another epoch has 23"),
    ("snapshots shuffled", two_snapshots(targets=LABELS[::-1]), r"epoch_2\.npz: `targets` has another label in row.*shuffled\? Then `ids`"),
    ("snapshots of one number", write_twice, "are both of epoch 1"),
    ("snapshot without number", write_alone, "its name has no number of an epoch"),
    ("run of a newer version", in_a_run(newer_run), "`schema` is 2, this gwa-core reads version 1.*newer gwa-core"),
    ("run without epochs", in_a_run(lambda run: RunFolder.open(run).truncate(0)), "no finished epoch yet"),
    ("run with other targets", in_a_run(lambda run: np.save(run / "targets.npy", LABELS[::-1])), r"000000\.npz: `targets` has another label in row"),
    ("run with given targets", write_run_and_give_targets, r"`targets` must be.*\(23, 3\) prob.*shape \(9, 3\)"),
    ("run with scores of another", in_a_run(lambda run: np.save(run / "scores" / "000000.npy", np.zeros(4))), r"scores must be float32 of shape \(N,\) = \(23,\)"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_input_gets_an_error_that_says_why(tmp_path, build, message):
    with pytest.raises(FeaturesError, match=message):
        build(tmp_path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    file = write_folder(tmp_path / "saved", make_few()) / "latents.npy"
    blocks = open_features(tmp_path / "saved").epochs[0].features.blocks(rows=5)
    next(blocks)
    os.truncate(file, 300)
    with pytest.raises(FeaturesError, match=r"saved: ends \d+ bytes early; the file is tr"):
        list(blocks)


# --- fuzz ---------------------------------------------------------------------------------------


def bend(data, rng):
    """Damage a file in one of the ways that disks, networks and people do."""
    data = bytearray(data)
    way = rng.integers(6)
    if way == 0:
        return data[: rng.integers(len(data))]
    if way == 1:  # anywhere
        places = rng.integers(len(data), size=4)
    elif way == 2:  # where formats keep their headers
        places = rng.integers(min(len(data), 300), size=2)
    elif way == 3:
        places = len(data) - 1 - rng.integers(min(len(data), 600), size=2)
    elif way == 4:
        start = rng.integers(len(data))
        data[start : start + 64] = bytes(min(64, len(data) - start))
        return data
    else:
        return bytearray(rng.bytes(int(rng.integers(1, 400))))
    for place in places:
        data[place] ^= 1 << rng.integers(8)
    return data


@pytest.fixture
def little_memory():
    """Refuse allocations of more than 1 GB, and hangs."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, hard))
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited through Linux's rlimits")
@all_formats
def test_damaged_files_give_one_error_only(tmp_path, little_memory, write):
    path = write(tmp_path / "saved", make_arrays())
    files = sorted(p for p in [path, *path.parent.rglob("*")] if p.is_file())
    rng = np.random.default_rng(11)
    errors = []
    for _ in range(150):
        file = files[rng.integers(len(files))]
        good = file.read_bytes()
        file.write_bytes(bend(good, rng))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*last line is incomplete")
                read_all(open_features(path))
        except FeaturesError as error:
            errors.append(str(error))
        finally:
            file.write_bytes(good)
    assert len(errors) > 50
    assert all(path.name in error for error in errors)
    assert len(read_all(open_features(path))) == 1
