"""Columns of tables, whoever wrote them, are the arrays that they say, or an error."""

from __future__ import annotations

import numpy as np
import pytest
from adapters.offline.sources import make_epoch, save_head
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
