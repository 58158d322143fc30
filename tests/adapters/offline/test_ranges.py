"""Ranges of rows of arrays in files, against slices of arrays in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from backends import require
from hypothesis import given
from hypothesis import strategies as st

from gwa_offline.files.arrays import Held, Joined
from gwa_offline.files.formats import open_arrays, open_npy
from gwa_offline.files.ranges import Count, cut, seeks

N, D = 37, 3
WHOLE = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


def _joined(folder, kinds):
    parts = []
    for part, (rows, kind) in enumerate(zip(np.array_split(np.arange(N), 4), kinds, strict=True)):
        file = folder / f"{part}.npy"
        np.save(file, WHOLE[rows].astype(kind))
        parts.append((Path(file.name), open_npy(file)))
    return Joined(tuple(parts))


def _parquet(folder):
    pa = require("pyarrow")
    file = folder / "a.parquet"
    require("pyarrow.parquet").write_table(
        pa.table({"latents": pa.array(list(WHOLE))}), file, row_group_size=10
    )
    return open_arrays(file)[0]["latents"]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranges")
    np.save(folder / "plain.npy", WHOLE)
    np.save(folder / "fortran.npy", np.asfortranarray(WHOLE))
    np.save(folder / "swapped.npy", WHOLE.astype(">f4"))
    np.savez(folder / "stored.npz", latents=WHOLE)
    np.savez_compressed(folder / "packed.npz", latents=WHOLE)
    return {
        "plain": open_npy(folder / "plain.npy"),
        "fortran": open_npy(folder / "fortran.npy"),
        "swapped": open_npy(folder / "swapped.npy"),
        "stored": open_arrays(folder / "stored.npz")[0]["latents"],
        "packed": open_arrays(folder / "packed.npz")[0]["latents"],
        "parquet": _parquet(folder),
        "memory": Held(WHOLE),
        "joined": _joined(folder, ["f4"] * 4),
    }


SEEK = {"plain", "swapped", "stored", "memory", "joined", "parquet"}
KINDS = [*sorted(SEEK), "fortran", "packed"]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_range_has_the_rows_of_a_slice(arrays, kind, data):
    start = data.draw(st.integers(0, N - 1))
    stop = data.draw(st.integers(start + 1, N))
    rows = data.draw(st.integers(1, N))
    found = cut(arrays[kind], start, stop)
    assert found.shape == (stop - start, D)
    assert found.dtype == WHOLE.dtype
    assert found.streams
    blocks = list(found.chunks(rows))
    assert [len(block) for block in blocks[:-1]] == [rows] * (len(blocks) - 1)
    np.testing.assert_array_equal(np.concatenate(blocks), WHOLE[start:stop])
    inner = cut(found, 0, 1)
    np.testing.assert_array_equal(np.concatenate(list(inner.chunks(1))), WHOLE[start : start + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_from_its_middle(arrays, kind):
    assert seeks(arrays[kind]) == (kind in SEEK)


def test_groups_of_a_table_before_a_range_are_not_read(arrays):
    whole = arrays["parquet"]
    assert whole.groups == (10, 10, 10, 7)
    for start, before in {0: 0, 9: 0, 10: 10, 29: 20, 36: 30}.items():
        found = cut(whole, start, N)
        if start:
            assert found.array.shape == (N - before, D)
            assert found.start == start - before
    large = replace(whole, groups=(2**17 + 1,))
    assert not seeks(large)


def test_a_range_of_joined_arrays_has_the_dtype_of_all(tmp_path):
    joined = _joined(tmp_path, ["f2", "f4", "f2", "f8"])
    found = cut(joined, 20, 25)
    assert found.dtype == joined.dtype == np.float64
    (block,) = found.chunks(10)
    assert block.dtype == np.float64
    np.testing.assert_array_equal(block, WHOLE[20:25].astype(np.float16).astype(np.float64))


def test_numbers_that_count_on():
    whole = Count(100, 110)
    assert (whole.shape, whole.dtype, seeks(whole)) == ((10,), np.int64, True)
    assert [block.tolist() for block in cut(whole, 3, 8).chunks(3)] == [[103, 104, 105], [106, 107]]
