"""One epoch in several files is the epoch in one file."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from adapters.offline.test_cli import gwa
from adapters.offline.test_readers import write_folder, write_npz, write_parquet, write_safetensors
from safetensors.numpy import save_file

from gwa_offline import analyse, open_features
from gwa_offline.store import FeaturesError

N, C, D = 61, 3, 5
CUTS = [0, 7, 7 + 30, N]
WRITERS = {
    "npz": write_npz,
    "safetensors": write_safetensors,
    "npy folder": write_folder,
    "parquet": write_parquet,
}
all_formats = pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)


def make_epoch(seed=0, **changes):
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(C, D)).astype(np.float32), np.ones(C, np.float32)
    targets = rng.integers(0, C, N)
    latents = (rng.normal(size=(N, D)) + weight[targets]).astype(np.float32)
    arrays = {"latents": latents, "weight": weight, "bias": bias, "targets": targets}
    return arrays | {"logits": latents @ weight.T + bias, "ids": rng.permutation(N)} | changes


def parts_of(arrays, cuts=CUTS):
    for start, stop in pairwise(cuts):
        yield {
            name: array if name in ("weight", "bias") else array[start:stop]
            for name, array in arrays.items()
            if array is not None
        }


def write_parts(writer, folder, name, arrays):
    """Write parts; `name` has a place for the number."""
    folder.mkdir(exist_ok=True, parents=True)
    return [
        writer(folder / name.format(i), part)
        for i, part in zip((9, 10, 11), parts_of(arrays), strict=True)
    ]


def check_same(found, whole):
    assert [r.summary.epoch for r in found.epochs] == [r.summary.epoch for r in whole.epochs]
    for name in ("scores", "label_quality", "predictions", "targets"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert [r.summary for r in found.epochs] == [r.summary for r in whole.epochs]


@all_formats
@pytest.mark.parametrize("without", [(), ("ids",), ("ids", "logits")])
def test_parts_give_the_results_of_one_file(tmp_path, writer, without):
    arrays = {name: array for name, array in make_epoch().items() if name not in without}
    whole = analyse(write_npz(tmp_path / "whole", arrays))
    files = write_parts(writer, tmp_path / "epoch_0", "part-{}", arrays)
    check_same(analyse(files), whole)
    check_same(analyse(tmp_path / "epoch_0"), whole)
    check_same(analyse(tmp_path / "epoch_0" / "part-*[!y]"), whole)


@pytest.mark.parametrize("rows", [1, 4, 7, 30, N, 100])
def test_blocks_do_not_end_where_parts_do(tmp_path, rows):
    arrays = make_epoch()
    files = write_parts(write_npz, tmp_path, "part-{}", arrays)
    features = open_features(files).epochs[0].features
    blocks = list(features.blocks(rows))
    assert [len(block.latents) for block in blocks[:-1]] == [min(rows, N)] * (len(blocks) - 1)
    for name in ("latents", "targets", "logits", "ids"):
        parts = [getattr(block, name) for block in blocks]
        np.testing.assert_array_equal(np.concatenate(parts), arrays[name])


def test_epochs_of_parts_in_folders_and_in_names(tmp_path):
    epochs = {3: make_epoch(3), 12: make_epoch(12)}
    for number, arrays in epochs.items():
        write_npz(tmp_path / f"epoch_{number}", arrays)
        write_parts(write_npz, tmp_path / "folders" / f"epoch_{number}", "{}", arrays)
        write_parts(write_npz, tmp_path / "names", f"epoch_{number}-part{{}}", arrays)
        for i, part in enumerate(parts_of(arrays)):
            (tmp_path / "of").mkdir(exist_ok=True)
            write_safetensors(tmp_path / "of" / f"epoch_{number}-0000{i}-of-00003", part)
    whole = analyse(tmp_path / "epoch_*.npz")
    assert [record.summary.epoch for record in whole.epochs] == [3, 12]
    for name in ("folders", "names", "of"):
        check_same(analyse(tmp_path / name), whole)
    for pattern in ("folders/epoch_*/*.npz", "folders/epoch_*", "names/*.npz", "of/*"):
        check_same(analyse(tmp_path / pattern), whole)


def test_what_is_hidden_or_half_written_is_passed_over(tmp_path):
    write_parts(write_npz, tmp_path, "part-{}", make_epoch())
    whole = analyse(tmp_path)
    for name in (
        "._part-1.npz",
        ".part-3.npz",
        ".tmp-part-4.npz",
        "part-5.npz.tmp",
        "part-6.tmp12.npz",
    ):
        (tmp_path / name).write_bytes(b"half")
    check_same(analyse(tmp_path), whole)
    check_same(analyse(tmp_path / "*.npz"), whole)


def test_the_head_may_lie_beside_the_parts(tmp_path):
    arrays = make_epoch()
    whole = analyse(write_npz(tmp_path / "whole", arrays))
    bare = arrays | {"weight": None, "bias": None}
    for place in ("inside", "outside", "epoch_1"):
        write_parts(write_npz, tmp_path / place, "part-{}", bare)
    for name in ("weight", "bias"):
        np.save(tmp_path / "inside" / f"{name}.npy", arrays[name])
        np.save(tmp_path / f"outside.{name}.npy", arrays[name])
    check_same(analyse(tmp_path / "inside"), whole)
    check_same(analyse(tmp_path / "outside"), whole)
    with pytest.raises(FeaturesError, match="`weight` is missing"):
        analyse(tmp_path / "epoch_1")


def test_shards_that_are_named_as_epochs_are_refused(tmp_path):
    arrays = make_epoch()
    for i, part in enumerate(parts_of(arrays)):
        write_npz(tmp_path / f"features_{i}", part)
    with pytest.raises(FeaturesError, match="these look like shards of one epoch; say so by"):
        analyse(tmp_path)
    whole = analyse(write_npz(tmp_path / "in_one_file", arrays))
    check_same(analyse(tmp_path / "features_*.npz"), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.zeros((C, D), np.float32)}, "`weight` of part-2.npz is another than that of part-1.npz"),
        ({"ids": None}, "`ids` is missing in part-2.npz, and part-1.npz has it"),
        ({"latents": np.ones((30, D + 1))}, "`latents` of part-2.npz has shape"),
        ({"targets": np.zeros(9, int)}, "`targets` of part-2.npz has 9 rows, and its `latents` 30"),
        ({"ids": np.arange(30)}, "`ids` must be unique"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(tmp_path, change, message):
    parts = list(parts_of(make_epoch(ids=np.arange(N))))
    parts[1] = {k: v for k, v in (parts[1] | change).items() if v is not None}
    for i, part in enumerate(parts, start=1):
        write_npz(tmp_path / f"part-{i}", part)
    with pytest.raises(FeaturesError, match=message):
        analyse(tmp_path)


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_a_part_that_is_missing_is_told(tmp_path, left_out):
    for i, part in enumerate(parts_of(make_epoch())):
        if i != left_out:
            write_npz(tmp_path / f"x-0000{i + 1}-of-00003", part)
    with pytest.raises(FeaturesError, match=f"part {left_out + 1} of 3 is missing, 2 are there"):
        analyse(tmp_path)


def named(folder, *names):
    """Write one part of an epoch under each name, each with the rows of its number."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: array for name, array in make_epoch().items() if name != "ids"}
    for name in names:
        place = folder / name
        writer = {".npz": write_npz, ".safetensors": write_safetensors}[place.suffix]
        writer(folder / place.stem, arrays)
    return folder


PARTS = ("part-0.npz", "part-1.npz", "part-2.npz", "part-3.npz")


@pytest.mark.parametrize("folder", ["epoch_3", "saved"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["part-0.safetensors"], r"part-0\.npz and part-0\.safetensors are the same part"),
        (["part-4.safetensors"], r"part-3\.npz and part-4\.safetensors are of two formats"),
        (["part-01.npz"], r"part-1\.npz and part-01\.npz are the same part"),
        (["part_1.npz"], r"part-1\.npz and part_1\.npz are the same part"),
        (["part-1 (copy).npz"], r"part-1 \(copy\)\.npz: is a copy of part-1\.npz by its name"),
        (["part-1 (2).npz"], r"part-1 \(2\)\.npz: is a copy of part-1\.npz"),
        (["part-1 - Copy.npz"], r"part-1 - Copy\.npz: is a copy of part-1\.npz"),
        (["part-1-old.npz"], r"part-0\.npz and part-1-old\.npz are parts of different names"),
        (["part-5.npz"], "part-3.npz: part 4 is missing, and part 5 is there; to leave it out, list"),
    ],
)  # fmt: skip
def test_a_part_that_is_there_twice_or_missing(tmp_path, folder, names, message):
    place = named(tmp_path / folder, *PARTS, *names)
    for source in (place, place / "part*"):
        with pytest.raises(FeaturesError, match=message):
            open_features(source)


def test_a_file_beside_parts_is_no_part(tmp_path):
    place = named(tmp_path / "epoch_3", *PARTS, "all.npz")
    for source in (place, place / "*.npz", tmp_path, sorted(place.iterdir())):
        with pytest.raises(FeaturesError, match=r"all\.npz: is no part, and part-0\.npz beside it"):
            open_features(source)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.npz", "a (1).npz"], r"a \(1\)\.npz: is a copy of a\.npz"),
        (["1.npz", "01.npz"], "are the same part by their names"),
        (["a.npz", "a.safetensors"], "are the same part by their names"),
        (["a.npz", "b.safetensors"], "are of two formats"),
        (["train-part-0.npz", "val-part-0.npz"], "are parts of different names"),
        (["a-1-of-2.npz", "b-2-of-2.npz"], "are parts of different names"),
    ],
)
def test_files_of_any_name_that_are_there_twice(tmp_path, names, message):
    with pytest.raises(FeaturesError, match=message):
        open_features(named(tmp_path / "epoch_3", *names))


def test_a_copy_is_no_epoch_of_its_own(tmp_path):
    with pytest.raises(FeaturesError, match=r"3 \(1\)\.npz: is a copy of 3\.npz"):
        open_features(named(tmp_path / "saved", "3.npz", "3 (1).npz"))


def test_names_of_parts_that_are_no_copies(tmp_path):
    task = "{}-0f5c1d3a-1b2c-4d5e-8f90-a1b2c3d4e5f6-c00{}.npz"
    spark = [task.format(f"part-0000{i}", j) for i, j in ((0, 0), (3, 0), (3, 1))]
    ranks = [f"rank{rank}-part-{part}.npz" for rank in (0, 1) for part in (0, 1)]
    for names in (spark, ranks, ["0.npz", "1000.npz", "2000.npz"], ["b.npz", "a.npz"]):
        place = named(tmp_path / f"epoch_{len(names)}_{names[0][:4]}", *names)
        assert open_features(place).num_samples == N * len(names)
    place = named(tmp_path / "epoch_9", *PARTS)
    assert open_features([place / PARTS[0], place / PARTS[3]]).num_samples == 2 * N
    with pytest.raises(FeaturesError, match=r"part-0\.npz: is there twice"):
        open_features([place / PARTS[0], place / PARTS[0]])
    shell = gwa("analyse", place / PARTS[0], place / PARTS[3])
    assert shell.returncode == 2
    assert "part 1 is missing, and part 3 is there" in shell.stderr


@pytest.mark.parametrize("name", ["cifar_epochs50", "max_epoch50", "num_epoch_50", "Epochs_50"])
def test_a_number_of_epochs_is_no_number_of_one(tmp_path, name):
    place = named(tmp_path / name, *(f"features_{i}.npz" for i in range(3)))
    assert [epoch.epoch for epoch in open_features(place).epochs] == [0, 1, 2]


def test_parts_that_a_shell_listed_are_one_source(tmp_path):
    arrays = make_epoch()
    files = write_parts(write_npz, tmp_path / "epoch_0", "part-{}", arrays)
    whole = json.loads(gwa("analyse", write_npz(tmp_path / "whole", arrays), "--json").stdout)
    for args in (files, [tmp_path / "epoch_0" / "*.npz"], [tmp_path / "epoch_0"]):
        found = json.loads(gwa("analyse", *args, "--json").stdout)
        assert found["name"] == "epoch_0"
        assert found["scores"] == whole["scores"]


# --- one definition of the options ----------------------------------------------------------------


@pytest.fixture
def sigmoid(tmp_path):
    """Features of a sigmoid head under other names, its head in a checkpoint."""
    arrays = make_epoch()
    names = {"embedding": arrays["latents"], "y": arrays["targets"]}
    np.savez(tmp_path / "bce.npz", **names)
    head = {"model.fc.weight": arrays["weight"], "model.fc.bias": arrays["bias"]}
    save_file(head, tmp_path / "model.safetensors")
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n")
    whole = {name: arrays[name] for name in ("latents", "targets", "weight", "bias")}
    np.savez(tmp_path / "whole.npz", **whole)
    for name in ("weight", "bias", "targets"):
        np.save(tmp_path / f"{name}.npy", arrays[name])
    return tmp_path


OPTIONS = [
    "--head", "model.safetensors:model.fc", "--columns", "latents=embedding,targets=y",
    "--loss", "binary_cross_entropy", "--label-smoothing", "0.1", "--class-names", "names.txt",
]  # fmt: skip


def test_all_commands_take_what_a_source_does_not_say(sigmoid):
    want = analyse(
        open_features(sigmoid / "whole.npz", loss="binary_cross_entropy"), label_smoothing=0.1
    )
    found = json.loads(gwa("analyse", "bce.npz", *OPTIONS, "--json", cwd=sigmoid).stdout)
    np.testing.assert_array_equal(np.float32(found["scores"]), want.scores)
    assert found["class_names"] == ["cat", "dog", "owl"]
    listed = json.loads(gwa("samples", "bce.npz", *OPTIONS, "--json", cwd=sigmoid).stdout)
    assert [row["id"] for row in listed] == want.rank(20).tolist()
    assert {row["label"] for row in listed} <= {"cat", "dog", "owl"}
    other = analyse(sigmoid / "whole.npz")
    assert want.rank(20).tolist() != other.rank(20).tolist()
    for command in ("stop", "compare"):
        done = gwa(command, "bce.npz", *OPTIONS, "--json", cwd=sigmoid)
        assert done.returncode == 0, done.stderr
        value = json.loads(done.stdout)
        best = value["value"] if command == "stop" else value["rows"][0]["max_mean"]
        assert best == (want.selection.value if command == "stop" else want.epochs[0].summary.mean)


@pytest.mark.parametrize("option", ["--targets", "--labels"])
def test_arrays_come_from_files_of_their_own(sigmoid, option):
    np.savez(sigmoid / "bare.npz", latents=np.load(sigmoid / "whole.npz")["latents"])
    given = ["--weight", "weight.npy", "--bias", "bias.npy", option, "targets.npy"]
    found, want = (
        json.loads(gwa("analyse", *args, "--json", cwd=sigmoid).stdout)["scores"]
        for args in (["bare.npz", *given], ["whole.npz"])
    )
    assert found == want


def test_labels_are_targets(sigmoid):
    arrays = dict(np.load(sigmoid / "whole.npz"))
    arrays["labels"] = arrays.pop("targets")
    np.savez(sigmoid / "labels.npz", **arrays)
    np.testing.assert_array_equal(open_features(sigmoid / "labels.npz").targets, arrays["labels"])


# --- saved logits ---------------------------------------------------------------------------------


def test_logits_that_are_not_those_of_the_head_are_refused(tmp_path):
    arrays = make_epoch()
    e = np.exp(arrays["logits"])
    wrong = {"probabilities": e / e.sum(axis=1, keepdims=True), "halved": arrays["logits"] / 2}
    for name, logits in wrong.items():
        file = write_npz(tmp_path / name, arrays | {"logits": logits})
        words = "before the softmax" if name == "probabilities" else "or probabilities"
        with pytest.raises(FeaturesError, match=rf"{name}\.npz: `logits` must be.*{words}"):
            analyse(file)
    half = arrays | {"logits": arrays["logits"].astype(np.float16)}
    assert np.isfinite(analyse(write_npz(tmp_path / "half", half)).scores).all()
