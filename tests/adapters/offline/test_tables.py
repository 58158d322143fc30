"""Columns of tables, whoever wrote them, are the arrays that they say, or an error."""

from __future__ import annotations

import numpy as np
import pytest
from adapters.offline.sources import make_epoch
from backends import require

from gwa_offline import analyse, open_features
from gwa_offline.store import FeaturesError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")


def of_table(folder, table):
    return table


def of_parquet(folder, table):
    pq.write_table(table, folder / "x.parquet", row_group_size=13)
    return folder / "x.parquet"


def of_feather(folder, table):
    feather.write_feather(table, folder / "x.feather", chunksize=13)
    return folder / "x.feather"


def of_dataset(folder, table):
    return require("pyarrow.dataset").dataset(of_parquet(folder, table))


def of_hugging_face(folder, table):
    return require("datasets").Dataset(table)


WAYS = (of_table, of_parquet, of_feather, of_dataset, of_hugging_face)
all_ways = pytest.mark.parametrize("way", WAYS)


# --- lists ----------------------------------------------------------------------------------------


@all_ways
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("longer", "shorter"), [(5, 7), (7, 5), (60, 1)])
def test_lists_of_which_one_has_what_another_lacks(tmp_path, way, large, longer, shorter):
    arrays = make_epoch()
    rows = arrays["latents"].tolist()
    rows[longer] += [1.0]
    rows[shorter] = rows[shorter][:-1]
    kind = (pa.large_list if large else pa.list_)(pa.float32())
    table = pa.table({"latents": pa.array(rows, kind), "targets": arrays["targets"]})
    source = way(tmp_path, table)
    with pytest.raises(FeaturesError, match="`latents` must have lists of one length, 5, got one"):
        analyse(open_features(source, weight=arrays["weight"]))


# --- names of classes -----------------------------------------------------------------------------


NAMES = ["cat", "dog", "owl"]


def labelled(arrays, names=None):
    datasets = require("datasets")
    datasets.disable_progress_bars()
    kinds = {
        "latents": datasets.Sequence(datasets.Value("float32")),
        "label": datasets.ClassLabel(names=names or NAMES),
    }
    columns = {"latents": arrays["latents"], "label": arrays["targets"]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def saved(folder, data):
    data.save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved"


def as_parquet(folder, data):
    data.to_parquet(folder / "x.parquet")
    return folder / "x.parquet"


@pytest.mark.parametrize("way", [lambda _, data: data, saved, as_parquet])
def test_names_of_classes_that_hugging_face_knows(tmp_path, way):
    arrays = make_epoch()
    source = way(tmp_path, labelled(arrays))
    assert open_features(source, weight=arrays["weight"]).class_names == ("cat", "dog", "owl")
    given = open_features(source, weight=arrays["weight"], class_names=["a", "b", "c"])
    assert given.class_names == ("a", "b", "c")
    # A head of more outputs has other classes.
    wider = np.concatenate([arrays["weight"], arrays["weight"][:1]])
    assert open_features(source, weight=wider).class_names is None


def test_classes_of_two_orders_are_refused():
    arrays = make_epoch()
    one, other = labelled(arrays), labelled(arrays, ["owl", "dog", "cat"])
    message = "has the classes 'owl', 'dog', 'cat' here, and 'cat', 'dog', 'owl' elsewhere"
    for source in ([one, other], {0: one, 1: other}):
        with pytest.raises(FeaturesError, match=message):
            open_features(source, weight=arrays["weight"])


@pytest.mark.parametrize("text", [b"", b"[]", b'{"info": {"features": {"label": 3}}}', b"\xff"])
def test_what_others_write_in_its_place_is_passed_over(tmp_path, text):
    arrays = make_epoch()
    table = pa.table({"latents": list(arrays["latents"]), "label": arrays["targets"]})
    pq.write_table(table.replace_schema_metadata({"huggingface": text}), tmp_path / "x.parquet")
    source = open_features(tmp_path / "x.parquet", weight=arrays["weight"])
    assert source.class_names is None


# --- parts without rows ---------------------------------------------------------------------------


def typed(table):
    return table.slice(0, 0)


def untyped(table):
    """As pandas writes lists of which it saw none."""
    kinds = {"latents": pa.list_(pa.null()), "targets": pa.null(), "ids": pa.int64()}
    return pa.schema(list(kinds.items())).empty_table()


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("empty", [typed, untyped])
@pytest.mark.parametrize("way", [of_table, of_parquet, of_feather])
def test_a_part_without_rows_is_passed_over(tmp_path, way, empty, place):
    arrays = make_epoch()
    columns = {"latents": list(arrays["latents"])} | {k: arrays[k] for k in ("targets", "ids")}
    table = pa.table(columns)
    parts = [table.slice(0, 20), table.slice(20)]
    parts.insert(place, empty(table))
    sources = []
    for i, part in enumerate(parts):
        (tmp_path / str(i)).mkdir()
        sources.append(way(tmp_path / str(i), part))
    head = {name: arrays[name] for name in ("weight", "bias")}
    found = analyse(open_features(sources, **head))
    np.testing.assert_array_equal(found.scores, analyse(arrays).scores)
    with pytest.raises(FeaturesError, match="`latents` is empty"):
        open_features([sources[place]], **head)


def test_a_part_of_which_only_one_array_has_no_rows(tmp_path):
    arrays = make_epoch()
    parts = [arrays, arrays | {"latents": arrays["latents"][:0]}]
    with pytest.raises(FeaturesError, match="`targets` of dict has 61 rows, and its `latents` 0"):
        open_features(parts)
    head = {name: arrays[name] for name in ("weight", "bias")}
    rows = {name: arrays[name] for name in ("latents", "targets", "ids")}
    nothing = {name: array[:0] for name, array in rows.items()} | head
    np.testing.assert_array_equal(analyse([nothing, rows]).scores, analyse(arrays).scores)
    other = nothing | {"weight": head["weight"] + 1}
    with pytest.raises(FeaturesError, match="`weight` of dict is another"):
        analyse([arrays, other])
