"""Arrays that are read in blocks: many parts, and parts of several kinds of numbers."""

from __future__ import annotations

import time

import numpy as np
import pytest

from gwa_offline import open_features
from gwa_offline.files.arrays import Held, Joined, in_blocks, read_all
from gwa_offline.store import FeaturesError


def joined(*parts):
    return Joined(tuple((f"part-{i}", Held(np.asarray(part))) for i, part in enumerate(parts)))


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
def test_blocks_of_pieces_of_any_lengths(rows):
    rng = np.random.default_rng(0)
    pieces = [rng.normal(size=(n, 2)) for n in (0, 3, 1, 0, 1, 9, 2, 0)]
    blocks = list(in_blocks(iter(pieces), rows))
    assert [len(block) for block in blocks[:-1]] == [rows] * (len(blocks) - 1)
    assert 0 < len(blocks[-1]) <= rows
    np.testing.assert_array_equal(np.concatenate(blocks), np.concatenate(pieces))


def test_many_parts_are_read_in_linear_time():
    part, seconds = Held(np.zeros((20, 8), np.float32)), []
    for count in (2_000, 8_000):
        array = Joined((("part", part),) * count)
        start = time.process_time()
        assert sum(len(block) for block in array.chunks(500)) == 20 * count
        assert read_all(array).shape == (20 * count, 8)
        seconds.append(time.process_time() - start)
    # Four times the parts; to look at all of them for each block took sixteen times as long.
    assert seconds[1] < max(8 * seconds[0], 1.0)


# --- whole numbers --------------------------------------------------------------------------------


def test_whole_numbers_of_several_kinds_stay_whole():
    array = joined(np.array([2**53 + 1], np.uint64), np.array([-1], np.int64), [True])
    assert array.dtype == np.int64
    assert read_all(array).tolist() == [2**53 + 1, -1, 1]
    assert joined([1], [0.5]).dtype == np.float64
    with pytest.raises(FeaturesError, match=f"part-0: has {2**63}, and int64 of other parts ends"):
        read_all(joined(np.array([2**63], np.uint64), np.array([-1], np.int64)))


def test_ids_of_several_kinds_of_whole_numbers():
    rng = np.random.default_rng(0)
    head = {"weight": rng.normal(size=(2, 3))}
    parts = [
        {"latents": rng.normal(size=(4, 3)), "targets": [0, 1, 0, 1], "ids": ids, **head}
        for ids in (np.arange(4, dtype=np.uint64), np.arange(4, 8, dtype=np.int64))
    ]
    np.testing.assert_array_equal(open_features(parts).epochs[0].features.ids, np.arange(8))
