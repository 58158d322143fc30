"""What a person knows of the rows: labels and ids that are strings, columns that are carried along."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

pytest.importorskip("typer")

from adapters.offline.test_cli import gwa

from gwa_offline import RunFolder, analyse, open_features
from gwa_offline.app.tables import NAMES as NAMES_OF_COLUMNS
from gwa_offline.app.tables import fitting
from gwa_offline.store import FeaturesError

N, C, D = 40, 3, 5
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, C, N)
WEIGHT = RNG.normal(size=(C, D))
LATENTS = RNG.normal(size=(N, D)) + WEIGHT[LABELS]
NAMES = np.array(["Katze", "dog", "öwl"])  # in sorted order
FILES = np.array([f"img/{i}.png" for i in RNG.permutation(1000)[:N]])
PLAIN = {"latents": LATENTS, "weight": WEIGHT, "targets": LABELS}
NAMED = PLAIN | {"targets": NAMES[LABELS], "ids": FILES}
COLUMNS = {
    "path": FILES,
    "width": RNG.integers(10, 90, N),
    "share": RNG.random(N),
    "seen": LABELS > 0,
}


def write_npz(place, arrays):
    np.savez(place.with_suffix(".npz"), **arrays)
    return place.with_suffix(".npz")


def write_compressed(place, arrays):
    np.savez_compressed(place.with_suffix(".npz"), **arrays)
    return place.with_suffix(".npz")


def write_folder(place, arrays):
    place.mkdir()
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    return place


def table(place, arrays, *, encode=False, kind=None):
    columns = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        if name in ("weight", "bias"):
            np.save(place.with_name(f"{place.name}.{name}.npy"), array)
        elif array.ndim == 2:
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), D)
        else:
            column = pa.array(array.tolist())
            text = pa.types.is_string(column.type)
            column = column.cast(kind) if text and kind is not None else column
            columns[name] = column.dictionary_encode() if text and encode else column
    return pa.table(columns)


def write_parquet(place, arrays):
    file = place.with_suffix(".parquet")
    pq.write_table(table(place, arrays), file, row_group_size=7)
    return file


def write_dictionary(place, arrays):
    file = place.with_suffix(".parquet")
    pq.write_table(table(place, arrays, encode=True), file)
    return file


def write_feather(place, arrays):
    file = place.with_suffix(".feather")
    feather.write_feather(table(place, arrays, encode=True, kind=pa.large_string()), str(file))
    return file


def in_memory(place, arrays):
    return {name: np.asarray(array) for name, array in arrays.items()}


def of_objects(place, arrays):
    return {
        name: np.asarray(array, object if np.asarray(array).dtype.kind == "U" else None)
        for name, array in arrays.items()
    }


WRITERS = {
    "npz": write_npz,
    "compressed npz": write_compressed,
    "npy folder": write_folder,
    "parquet": write_parquet,
    "dictionary": write_dictionary,
    "feather": write_feather,
    "arrays": in_memory,
    "objects": of_objects,
}
all_kinds = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return analyse(write_npz(tmp_path_factory.mktemp("plain") / "a", PLAIN))


# --- labels and ids that are strings ------------------------------------------------------------


@all_kinds
def test_strings_are_classes_and_rows(write, tmp_path, plain):
    source = open_features(write(tmp_path / "a", NAMED))
    assert source.class_names == tuple(NAMES)
    assert source.num_samples == N
    np.testing.assert_array_equal(source.targets, LABELS)
    assert source.kept["name"].tolist() == FILES.tolist()
    report = analyse(source)
    # To the last bit: the rows and the classes are those of the numbers.
    np.testing.assert_array_equal(report.scores, plain.scores)
    np.testing.assert_array_equal(report.predictions, plain.predictions)
    np.testing.assert_array_equal(report.label_quality, plain.label_quality)
    assert report.kept["name"][report.rank(1)[0]] == FILES[plain.rank(1)[0]]


@all_kinds
def test_epochs_join_by_the_strings(write, tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    order = RNG.permutation(N)[: N - 5]
    later = {name: np.asarray(NAMED[name])[order] for name in ("latents", "targets", "ids")}
    later["weight"] = 2 * WEIGHT
    if write in (in_memory, of_objects):
        source = open_features({0: write(place, NAMED), 3: write(place, later)})
    else:
        write(place / "epoch_0", NAMED)
        write(place / "epoch_3", later)
        source = open_features(place)
    np.testing.assert_array_equal(source.targets, LABELS)
    assert source.kept["name"].tolist() == FILES.tolist()
    np.testing.assert_array_equal(source.epochs[1].features.ids, order)
    # Opened again, the rows have the same numbers.
    np.testing.assert_array_equal(source.epochs[0].features.ids, np.arange(N))
    new = np.append(FILES[:-1], "img/new.png")
    if write is write_npz:
        write(place / "epoch_4", NAMED | {"ids": new})
        source = open_features(place)
        assert source.num_samples == N + 1
        assert source.kept["name"][N] == "img/new.png"
        assert source.targets[N] == LABELS[-1]


def test_parts_of_an_epoch_join(tmp_path, plain):
    for part, rows in enumerate(np.array_split(np.arange(N), 3)):
        arrays = {name: np.asarray(NAMED[name])[rows] for name in ("latents", "targets", "ids")}
        arrays["ids"] = np.array([f"{'x' * 40 * part}{x}" for x in arrays["ids"]])
        write_npz(tmp_path / f"part-{part}", arrays | {"weight": WEIGHT})
    source = open_features(tmp_path)
    np.testing.assert_array_equal(source.targets, LABELS)
    assert source.kept["name"][0] == FILES[0]
    assert source.kept["name"][N - 1] == "x" * 80 + FILES[N - 1]
    np.testing.assert_array_equal(analyse(source).scores, plain.scores)


def test_given_names_say_the_order_of_the_outputs(tmp_path):
    names = ["öwl", "dog", "Katze"]
    file = write_npz(tmp_path / "a", NAMED | {"weight": WEIGHT[::-1]})
    source = open_features(file, class_names=names)
    np.testing.assert_array_equal(source.targets, 2 - LABELS)
    assert source.class_names == tuple(names)
    # A class may have no sample then.
    few = {name: np.asarray(NAMED[name])[LABELS < 2] for name in ("latents", "targets", "ids")}
    file = write_npz(tmp_path / "b", few | {"weight": WEIGHT})
    assert open_features(file, class_names=list(NAMES)).targets.max() == 1


def test_labels_of_their_own_file_and_of_one_output(tmp_path):
    arrays = {"latents": LATENTS, "weight": WEIGHT}
    source = open_features(write_npz(tmp_path / "a", arrays), targets=NAMES[LABELS])
    np.testing.assert_array_equal(source.targets, LABELS)
    assert source.class_names == tuple(NAMES)
    arrays = {
        "latents": LATENTS,
        "weight": WEIGHT[:1],
        "targets": np.where(LABELS > 0, "yes", "no"),
    }
    report = analyse(open_features(write_npz(tmp_path / "b", arrays), loss="binary_cross_entropy"))
    np.testing.assert_array_equal(report.targets, LABELS > 0)
    np.testing.assert_array_equal(report.predictions, LATENTS @ WEIGHT[0] > 0)
    assert (report.num_classes, report.class_names) == (2, ("no", "yes"))


def test_a_run_folder_takes_labels_that_are_strings(tmp_path):
    run = RunFolder.create(
        tmp_path, num_samples=N, num_classes=C, adapter="mine", class_names=NAMES
    )
    epoch = analyse(write_npz(tmp_path / "a", PLAIN)).epochs[0].summary
    run.write_epoch(epoch, scores=np.zeros(N))
    np.testing.assert_array_equal(open_features(tmp_path, targets=NAMES[LABELS]).targets, LABELS)


def opening(changes=None, **options):
    """Open the arrays with names after some changes."""

    def build(folder):
        open_features(write_npz(folder / "x", NAMED | (changes or {})), **options)

    return build


def indexed(text):
    """Open the arrays with a table by id."""

    def build(folder):
        (folder / "rows.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        file = write_npz(folder / "x", PLAIN | COLUMNS)
        open_features(file, keep=["path"], index=folder / "rows.csv")

    return build


def epochs(first, second):
    """Open two epochs."""

    def build(folder):
        for epoch, arrays in enumerate((first, second)):
            write_npz(folder / f"epoch_{epoch}", arrays)
        open_features(folder)

    return build


def kept(*names):
    wide = {"wide": np.zeros((N, 2)), "label_quality": LABELS}
    return opening({**COLUMNS, **wide}, keep=names)


CASES = [
    (
        "string ids, one of them twice",
        opening({"ids": np.append(FILES[:-1], FILES[0])}),
        rf"`ids` must be unique, '{FILES[0]}' is there 2 times",
    ),
    (
        "string ids, and numbers in another epoch",
        epochs(NAMED, NAMED | {"ids": np.arange(N)}),
        "`ids` are numbers, and in another epoch they are strings",
    ),
    (
        "string ids, and none in another epoch",
        epochs(NAMED, PLAIN | {"targets": NAMES[LABELS]}),
        "`ids` are missing, and in another epoch they are strings",
    ),
    (
        "string labels, fewer than outputs",
        opening({"targets": NAMES[np.minimum(LABELS, 1)]}),
        "`targets` has 2 different labels, 'Katze', 'dog', and .* C = 3 outputs; give `class_names`",
    ),
    (
        "string labels, more than outputs",
        opening({"targets": np.append(NAMES[LABELS][:-1], "zebra")}),
        "`targets` has 4 different labels, .* do they belong to another head",
    ),
    (
        "a string label without a name",
        opening(class_names=["Katze", "dog", "owl"]),
        "`targets` has the label 'öwl', and `class_names` has 'Katze', 'dog', 'owl'",
    ),
    (
        "string labels and names that are equal",
        opening(class_names=["Katze", "dog", "dog"]),
        "`class_names` must be different, 'dog' is there twice",
    ),
    (
        "string labels in two dimensions",
        opening({"targets": NAMES[LABELS][:, None]}),
        r"`targets` must be \(n,\) labels, got strings",
    ),
    (
        "latents that are strings",
        opening({"latents": np.full((N, D), "x")}),
        "`latents` must be floating, got <U1",
    ),
    (
        "a column to keep that is not there",
        kept("nothing"),
        "`keep` names 'nothing', there is latents",
    ),
    (
        "a column to keep that results have",
        kept("label_quality"),
        "`keep` names 'label_quality', which results have of their own",
    ),
    ("a column to keep of vectors", kept("wide"), "`wide`: must be one number or string a row"),
    ("an index without ids", indexed("key,x\n1,2\n"), "has no column `id`, there is key, x"),
    ("an empty index", indexed(""), "has no column `id`, there is nothing"),
    (
        "an index by string for ids that are numbers",
        indexed("id,x\n1,2\na.png,3\n"),
        r"must be whole numbers as in the source, got 'a\.png' in row 1",
    ),
    (
        "an index by fractions",
        indexed("id,x\n1.5,2\n"),
        r"must be whole numbers as in the source, got '1\.5' in row 0",
    ),
    (
        "an index by digits of another script",
        indexed("id,x\n٣,2\n"),
        "must be whole numbers as in the source, got '٣' in row 0",
    ),
    ("an index with an id twice", indexed("id,x\n1,2\n1,3\n"), "must be unique, '1' is there 2"),
    ("an index of other samples", indexed("id,x\n999,2\n"), "none of them is, got '999'"),
    ("an index without rows", indexed("id,x\n"), "none of them is$"),
    (
        "an index with a ragged line",
        indexed("id,x\n1,2\n2,3,4\n"),
        "line 3 has 3 cells, the first one has 2",
    ),
    ("an index with equal names", indexed("id,x,x\n1,2,3\n"), "two columns of one name"),
    (
        "an index with a column of the source",
        indexed("id,path\n1,2\n"),
        "`path` is a column of the source and of the index",
    ),
    ("an index that is no UTF-8", indexed(b"id,x\n\xff\xfe,2\n"), "cannot be read"),
]


@pytest.mark.parametrize(("build", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_does_not_fit_is_refused(build, message, tmp_path):
    with pytest.raises(FeaturesError, match=message) as caught:
        build(tmp_path)
    if build.__qualname__.startswith("indexed"):
        assert "rows.csv" in str(caught.value)


def test_objects_that_are_no_strings_are_refused():
    for wrong, shown in ((7, "int '7'"), ([1], r"list '\[1\]'"), (0.5, "float '0.5'")):
        mixed = np.array([*FILES[:-1], None], object)
        mixed[-1] = wrong
        with pytest.raises(
            FeaturesError, match=f"`ids` must be strings or .*, got {shown}.* row 39"
        ):
            open_features(NAMED | {"ids": mixed})


@pytest.mark.parametrize("first", [0, 1])
def test_strings_in_one_epoch_and_numbers_in_another_are_refused(first, tmp_path):
    kinds = [NAMED, NAMED | {"ids": np.arange(N)}, PLAIN | {"targets": NAMES[LABELS]}]
    for other, word in ((1, "numbers"), (2, "missing")):
        pair = (kinds[0], kinds[other]) if first == 0 else (kinds[other], kinds[0])
        for epoch, arrays in enumerate(pair):
            write_npz(tmp_path / f"epoch_{epoch}", arrays)
        with pytest.raises(FeaturesError, match=r"`ids` are .*, and in another epoch") as caught:
            open_features(tmp_path)
        assert {"strings", word} < set(str(caught.value).replace(";", ",").replace(",", "").split())


def test_strings_in_one_part_and_numbers_in_another_are_refused(tmp_path):
    write_npz(tmp_path / "part-0", NAMED)
    write_npz(tmp_path / "part-1", NAMED | {"ids": np.arange(N)})
    with pytest.raises(
        FeaturesError, match=r"`ids` of part-0\.npz are strings, and those of part-1"
    ):
        open_features(tmp_path)


def test_strings_that_are_damaged_are_a_sentence(tmp_path):
    file = write_folder(tmp_path / "a", NAMED) / "ids.npy"
    for point in (b"\xff\xff\xff\xff", b"\x00\x00\x11\x00", b"\x00\xd8\x00\x00"):
        file.write_bytes(file.read_bytes()[:-4] + point)
        with pytest.raises(FeaturesError, match="has what is no character; the file is damaged"):
            open_features(tmp_path / "a")
    # A compressed file of a few kilobytes may claim strings of gigabytes.
    header = {"descr": "<U9999", "fortran_order": False, "shape": (2**17,)}
    with (tmp_path / "a" / "ids.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(FeaturesError, match=r"must hold \d+ bytes"):
        open_features(tmp_path / "a")


# --- columns that are carried along -------------------------------------------------------------


@all_kinds
def test_columns_are_kept_by_id(write, tmp_path):
    ids = RNG.permutation(N)
    arrays = PLAIN | {"ids": ids} | COLUMNS
    source = open_features(write(tmp_path / "a", arrays), keep=list(COLUMNS))
    assert list(source.kept) == list(COLUMNS)
    for name, values in COLUMNS.items():
        kept = source.kept[name]
        assert kept[ids].tolist() == values.tolist()
        assert kept.dtype.kind == ("O" if name == "path" else values.dtype.kind)
    assert analyse(source).kept is source.kept


def test_missing_values_and_rows_are_none(tmp_path):
    columns = table(tmp_path / "a", PLAIN | {"ids": np.arange(N)})
    texts = [None if i % 3 == 0 else f"t{i}" for i in range(N)]
    numbers = [None if i % 4 == 0 else i for i in range(N)]
    for name, values in {"text": texts, "number": numbers}.items():
        columns = columns.append_column(name, pa.array(values))
    (tmp_path / "run").mkdir()
    for epoch, rows in enumerate((columns.slice(0, 30), columns.slice(20, 20))):
        pq.write_table(rows, tmp_path / "run" / f"epoch_{epoch}.parquet")
        np.save(tmp_path / "run" / f"epoch_{epoch}.weight.npy", WEIGHT)
    kept = open_features(tmp_path / "run", keep=["text", "number"]).kept
    assert kept["text"].tolist() == texts
    assert kept["number"].tolist() == numbers
    # The same in parts of one epoch, with and without missing values.
    (tmp_path / "parts").mkdir()
    for part, rows in enumerate((columns.slice(0, 5), columns.slice(5, 2), columns.slice(7))):
        pq.write_table(rows, tmp_path / "parts" / f"part-{part}.parquet")
    np.save(tmp_path / "parts" / "weight.npy", WEIGHT)
    kept = open_features(tmp_path / "parts", keep=["text", "number"]).kept
    assert kept["text"].tolist() == texts
    assert kept["number"].tolist() == numbers
    pq.write_table(columns.slice(20, 20), tmp_path / "b.parquet")
    np.save(tmp_path / "b.weight.npy", WEIGHT)
    source = open_features(tmp_path / "b.parquet", keep=["text"])
    assert source.kept["text"].tolist() == [None] * 20 + texts[20:]


HALF = N // 2


def save_halves(folder, first, second):
    """Write two epochs, of half of the samples each, with one value; a sample is in both."""
    folder.mkdir()
    halves = (np.arange(HALF), first), (np.arange(HALF - 1, N), second)
    for epoch, (ids, value) in enumerate(halves):
        arrays = {name: x if name == "weight" else x[ids] for name, x in PLAIN.items()}
        column = np.full(len(ids), value, np.asarray(value).dtype)
        write_npz(folder / f"epoch_{epoch}", arrays | {"ids": ids, "score": column})
    return folder


@pytest.mark.parametrize(
    ("one", "other", "dtype"),
    [
        (np.int64(3), np.float64(156.75), "f8"),
        (np.int8(3), np.int64(1000), "i8"),
        (np.uint8(3), np.int8(-1), "i2"),
        (np.bool_(True), np.int64(7), "i8"),
        (np.float32(0.25), np.float64(1e300), "f8"),
        (np.float64("nan"), np.int64(7), "f8"),
        (np.int64(2**53 + 1), np.float64(0.5), "O"),  # no dtype has both
        (np.int64(-1), np.uint64(2**64 - 1), "O"),
        (np.str_("a"), np.str_("longer"), "O"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_columns_of_epochs_keep_their_values(tmp_path, one, other, dtype, turned):
    first, second = (other, one) if turned else (one, other)
    folder = save_halves(tmp_path / "run", first, second)
    found = open_features(folder, keep=["score"]).kept["score"]
    # By Python, which compares whole numbers with floats exactly.
    want = [first.item()] * HALF + [second.item()] * (N - HALF)
    pairs = zip(found.tolist(), want, strict=True)
    assert all(new == old or np.isnan([new, old]).all() for new, old in pairs)
    assert found.dtype == dtype


def test_text_beside_numbers_is_refused(tmp_path):
    said = r"epoch_1\.npz: `score`: must be text or numbers, got text here and numbers in .*epoch_0"
    with pytest.raises(FeaturesError, match=said):
        open_features(save_halves(tmp_path / "run", 3, "high"), keep=["score"])
    mixed = np.array([*range(N - 2), np.nan, "high"], object)
    with pytest.raises(FeaturesError, match="`score`: must be text or numbers, got text here"):
        open_features(PLAIN | {"score": mixed}, keep=["score"])
    mixed[:-2] = "low"  # nan is text that is missing
    assert open_features(PLAIN | {"score": mixed}, keep=["score"]).kept["score"][0] == "low"


def test_an_error_of_arithmetic_is_a_sentence(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OverflowError("a number is too large")

    monkeypatch.setattr("gwa_offline.app.options.SourceOptions.open", fail)
    done = gwa("samples", tmp_path)
    assert (done.returncode, done.stderr) == (2, "gwa: a number is too large\n")


def test_keep_is_for_a_source_that_is_not_open(tmp_path):
    file = write_npz(tmp_path / "a", PLAIN | COLUMNS)
    with pytest.raises(FeaturesError, match="`keep` must be names of columns"):
        open_features(file, keep="path")
    with pytest.raises(ValueError, match="`keep` and `index` must go to `open_features`"):
        analyse(open_features(file), keep=["path"])


def write_index(file, ids, **columns):
    with file.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream)
        lines.writerow(["id", *columns])
        lines.writerows(zip(ids, *columns.values(), strict=True))
    return file


def test_an_index_is_a_table_by_id(tmp_path):
    numbers = write_npz(tmp_path / "a", PLAIN)
    order = RNG.permutation(N)
    places = [f"in, {x}" for x in FILES]
    shown = {"place": np.array(places)[order], "label": LABELS[order]}
    index = write_index(tmp_path / "rows.csv", order, **shown)
    kept = open_features(numbers, index=index).kept
    assert kept["place"].tolist() == places
    # What results have of their own gets another name; text stays text.
    assert kept["index.label"].tolist() == [str(x) for x in LABELS]
    by_name = write_index(tmp_path / "names.csv", FILES[order], **shown)
    kept = analyse(write_npz(tmp_path / "b", NAMED), index=by_name).kept
    assert list(kept) == ["name", "place", "index.label"]
    assert kept["place"].tolist() == places
    # Rows of other samples, such as those of a test set, do not matter; others are unknown.
    more = write_index(tmp_path / "more.csv", [*range(5, 100)], place=range(5, 100))
    kept = open_features(numbers, index=more).kept
    assert kept["place"].tolist() == [None] * 5 + [str(x) for x in range(5, N)]
    # Types of a Parquet file stay.
    pq.write_table(pa.table({"ids": order, "width": order * 2}), tmp_path / "rows.parquet")
    kept = open_features(numbers, index=tmp_path / "rows.parquet").kept
    assert kept["width"].tolist() == [2 * i for i in range(N)]


@pytest.mark.parametrize("turned", [False, True])
def test_no_column_of_an_index_hides_another(tmp_path, turned):
    columns = {"label": FILES, "index.label": LABELS}
    columns = dict(reversed(columns.items())) if turned else columns
    source = write_npz(tmp_path / "a", PLAIN)
    said = r"rows\.\w+: has the columns `label` and `index\.label`"
    with pytest.raises(FeaturesError, match=said):
        open_features(source, index=write_index(tmp_path / "rows.csv", range(N), **columns))
    pq.write_table(pa.table({"id": range(N), **columns}), tmp_path / "rows.parquet")
    with pytest.raises(FeaturesError, match=said):
        open_features(source, index=tmp_path / "rows.parquet")
    # Beside a column of the source the same holds.
    kept = write_npz(tmp_path / "b", PLAIN | {"index.label": LABELS})
    index = write_index(tmp_path / "one.csv", range(N), label=FILES)
    with pytest.raises(FeaturesError, match=r"`index\.label` is a column of the source and of the"):
        open_features(kept, keep=["index.label"], index=index)


def test_an_index_of_a_run_folder(tmp_path):
    run = RunFolder.create(tmp_path / "run", num_samples=N, num_classes=C, adapter="mine")
    epoch = analyse(write_npz(tmp_path / "a", PLAIN)).epochs[0].summary
    run.write_epoch(epoch, scores=np.zeros(N))
    index = write_index(tmp_path / "rows.csv", range(N), path=FILES)
    assert open_features(run.path, index=index).kept["path"].tolist() == FILES.tolist()
    with pytest.raises(
        FeaturesError, match="has no features with columns; give a table by `index`"
    ):
        open_features(run.path, keep=["path"])


def test_an_index_is_a_file_of_a_known_kind(tmp_path):
    file = write_npz(tmp_path / "a", PLAIN)
    with pytest.raises(FeaturesError, match="there is no such file"):
        open_features(file, index=tmp_path / "none.csv")
    (tmp_path / "rows.txt").write_text("id")
    with pytest.raises(FeaturesError, match=r"a \.csv or \.parquet file, got \.txt"):
        open_features(file, index=tmp_path / "rows.txt")


# --- where they are shown -----------------------------------------------------------------------


@pytest.fixture
def report(tmp_path):
    hostile = {"note": ["=1+1", "<b>", *["ok"] * (N - 3), None]}
    file = write_npz(tmp_path / "a", NAMED | {"width": COLUMNS["width"]})
    pq.write_table(pa.table({"id": FILES.tolist(), **hostile}), tmp_path / "rows.parquet")
    return analyse(file, keep=["width"], index=tmp_path / "rows.parquet")


def test_files_have_what_was_kept(report, tmp_path):
    report.to_csv(tmp_path)
    with (tmp_path / "samples.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == FILES.tolist()
    assert [int(row["width"]) for row in rows] == COLUMNS["width"].tolist()
    assert [rows[i]["note"] for i in (0, 1, -1)] == ["'=1+1", "<b>", ""]
    report.to_parquet(tmp_path)
    found = pq.read_table(tmp_path / "samples.parquet").to_pydict()
    assert found["name"] == FILES.tolist()
    assert found["note"] == report.kept["note"].tolist()
    value = json.loads(report.to_json())
    assert value["kept"] == {name: x.tolist() for name, x in report.kept.items()}


def test_commands_take_what_to_keep(tmp_path):
    file = write_npz(tmp_path / "a", NAMED | COLUMNS)
    index = write_index(tmp_path / "rows.csv", FILES, note=[f"[/]{i}" for i in range(N)])
    options = ("--keep", "path, width", "--index", index, "--lowest", 3)
    done = gwa("samples", file, *options)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[0] == [
        "id", "name", "path", "width", "note", "label", "model says", "label quality", "alignment"
    ]  # fmt: skip
    worst = analyse(file).rank(3)
    for row, i in zip(rows[1:], worst, strict=True):
        assert row[:5] == [str(i), FILES[i], FILES[i], str(COLUMNS["width"][i]), f"[/]{i}"]
        assert {row[5], row[6]} <= set(NAMES)
    found = json.loads(gwa("samples", file, *options, "--json").stdout)
    assert [row["note"] for row in found] == [f"[/]{i}" for i in worst]
    assert [row["width"] for row in found] == [int(COLUMNS["width"][i]) for i in worst]
    done = gwa("analyse", file, *options[:-2], "--out", tmp_path / "out", "--parquet")
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "out" / "samples.parquet")["path"].to_pylist() == FILES.tolist()
    for command in ("stop", "report"):
        where = ("--out", tmp_path / "r.html") if command == "report" else ()
        done = gwa(command, file, *options[:-2], *where)
        assert done.returncode == 0, done.stderr
    done = gwa("samples", file, "--keep", "nothing")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "`keep` names 'nothing'" in done.stderr


def test_on_a_narrow_terminal_columns_go_and_paths_are_folded(report):
    columns = ["id", *report.kept, "label"]
    rows = [["1", "img/" + "x" * 60, "12345", "a" * 40, "dog"]]
    words = [*NAMES_OF_COLUMNS, *report.kept]
    assert fitting(columns, rows, 70, ["note", "width"], words) == [0, 1, 2, 3, 4]
    assert fitting(columns, rows, 45, ["note", "width"], words) == [0, 1, 2, 4]


def test_a_frame_has_the_samples(report):
    frame = report.to_frame()
    assert list(frame) == [
        "id", "label", "prediction", "alignment", "label_quality", "name", "width", "note"
    ]  # fmt: skip
    assert frame["label"].tolist() == NAMES[LABELS].tolist()
    assert frame["prediction"].tolist() == NAMES[report.predictions].tolist()
    np.testing.assert_array_equal(frame["alignment"], report.scores)
    worst = frame.sort_values("label_quality", kind="stable").head(5)
    assert worst["id"].tolist() == report.rank(5).tolist()


def test_a_frame_of_classes_of_one_name_and_unknown_labels():
    arrays = PLAIN | {"ids": np.arange(N) + 2}
    found = analyse(open_features(arrays, class_names=["a", "a", "b"])).to_frame()
    assert found["label"].isna().sum() == 2
    assert set(found["label"].cat.categories) == {"a (0)", "a (1)", "b"}
