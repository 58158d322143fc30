"""The seam of all ways to analyse: parts of an epoch, their scores, and how they merge."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from backends import require
from hypothesis import given
from hypothesis import strategies as st

from gwa_core import alignment_scores
from gwa_offline import FeaturesError, open_features
from gwa_offline.analysis.parts import parts_of
from gwa_offline.analysis.scoring import BLOCK_ROWS, PartScores, block_rows, score_part
from gwa_offline.files.arrays import Held
from gwa_offline.files.ranges import Count

N, C, D = 3 * BLOCK_ROWS + 500, 3, 5


def _arrays():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(C, D)).astype(np.float32)
    targets = np.arange(N) % C
    latents = (rng.normal(size=(N, D)) + weight[targets]).astype(np.float32)
    ids = rng.permutation(N)
    return {"latents": latents[ids], "targets": targets[ids], "ids": ids, "weight": weight}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    file = tmp_path_factory.mktemp("scoring") / "f.npz"
    np.savez(file, **_arrays())
    return open_features(file).epochs[0].features


def _same(found, want):
    for name in ("ids", "scores", "predictions"):
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name))
        assert getattr(found, name).dtype == getattr(want, name).dtype
    for ours, theirs in zip(found.moments, want.moments, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def test_the_scores_are_those_of_the_core(features):
    arrays = _arrays()
    found = score_part(features)
    want = alignment_scores(
        **{name: arrays[name].astype(float) for name in ("latents", "weight")},
        targets=arrays["targets"],
    )
    np.testing.assert_allclose(found.scores, want, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found.ids, arrays["ids"])
    logits = arrays["latents"] @ arrays["weight"].T
    np.testing.assert_array_equal(found.predictions, logits.argmax(axis=1))
    assert float(found.moments.count) == N
    assert float(found.moments.mean) == pytest.approx(want.mean(), rel=1e-6)


def test_threads_change_nothing(features):
    done = []
    _same(score_part(features, threads=1, progress=done.append), score_part(features))
    assert sum(done) == N
    _same(score_part(features, threads=3), score_part(features))


@given(rows=st.integers(1, N + 10), data=st.data())
def test_parts_in_any_order_merge_to_the_whole(features, rows, data):
    parts = parts_of(features, num_samples=N, rows=rows)
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert (parts[0].start, parts[-1].stop) == (0, N)
    assert all(part.start % block_rows(C) == 0 for part in parts)
    assert len(parts) == (4 if rows < 2 * BLOCK_ROWS else 2 if rows < N else 1)
    found = [score_part(part.open(), threads=1) for part in parts]
    _same(reduce(PartScores.merge, found), score_part(features))
    mixed = reduce(PartScores.merge, data.draw(st.permutations(found)))
    order = np.argsort(mixed.ids)
    whole = score_part(features)
    np.testing.assert_array_equal(mixed.scores[order], whole.scores[np.argsort(whole.ids)])
    assert float(mixed.moments.m4) == pytest.approx(float(whole.moments.m4), rel=1e-12)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_parts_of_many_files(tmp_path, write):
    arrays = _arrays()
    sizes = [10, 1000, 5090, 544]
    for part, rows in enumerate(np.split(np.arange(N), np.cumsum(sizes)[:-1])):
        cut = {name: x if name == "weight" else x[rows] for name, x in arrays.items()}
        write(tmp_path / f"part-{part}.npz", **cut)
    epoch = open_features(str(tmp_path / "part-*.npz")).epochs[0].features
    parts = parts_of(epoch, num_samples=N, rows=BLOCK_ROWS)
    names = [[file.name for file in part.files] for part in parts]
    if write is np.savez:
        assert [part.stop for part in parts] == [2048, 4096, 6144, N]
    else:  # no file is read from its middle
        assert [part.stop for part in parts] == [2048, 6144, N]
    assert names[0] == ["part-0.npz", "part-1.npz", "part-2.npz"]
    sent = [pickle.loads(_dumps(part)) for part in parts]  # noqa: S301
    found = [score_part(part.open(), threads=1) for part in sent]
    _same(reduce(PartScores.merge, found), score_part(epoch))


def _dumps(part):
    return require("cloudpickle").dumps(part)


def test_a_part_is_small_whatever_its_rows(features):
    (part,) = parts_of(features, num_samples=N)
    assert len(_dumps(part)) < 6000


def test_ids_of_a_part_may_be_beyond_those_of_a_file_alone(features):
    """A file whose ids are so large is refused where it may be of hashes; N says what they are."""
    first = 2**26 + 5
    (part,) = parts_of(features, num_samples=first + N)
    far = replace(part, arrays={**part.arrays, "ids": Count(first, first + N)})
    found = score_part(far.open(), threads=1)
    np.testing.assert_array_equal(found.ids, np.arange(first, first + N))
    np.testing.assert_array_equal(found.scores, score_part(features).scores)
    with pytest.raises(FeaturesError, match=f"rows 0 to {N - 1}: `ids` must be in 0..N-1"):
        replace(far, num_samples=first).open()


def test_a_part_with_an_id_twice_is_named(features):
    (part,) = parts_of(features, num_samples=N)
    twice = replace(part, arrays={**part.arrays, "ids": Held(np.zeros(N, np.int64))})
    with pytest.raises(FeaturesError, match=r"f\.npz, rows 0 to .*`ids` must be unique"):
        twice.open()


def test_class_weights_of_another_head(features):
    with pytest.raises(ValueError, match=r"`class_weights` must be \(C,\) = \(3,\), got"):
        score_part(features, class_weights=np.ones(4))


def test_a_fingerprint_is_of_all_that_scores_depend_on(tmp_path):
    arrays = _arrays()
    file = tmp_path / "f.npz"

    def prints(num_samples=N, rows=None, **changes):
        np.savez(file, **(arrays | changes))
        os.utime(file, ns=(1, 1))
        opened = open_features(file).epochs[0].features
        parts = parts_of(opened, num_samples=num_samples, rows=rows)
        return [part.fingerprint for part in parts]

    (first,) = prints()
    assert prints() == [first]
    head = arrays["weight"] * np.float32(1 + 1e-6)
    others = [*prints(num_samples=N + 1), *prints(rows=2048), *prints(weight=head)]
    os.utime(file, ns=(2, 2))
    opened = open_features(file).epochs[0].features
    others += [part.fingerprint for part in parts_of(opened, num_samples=N)]
    opened = open_features(file, columns={"latents": "latents"}).epochs[0].features
    others += [part.fingerprint for part in parts_of(opened, num_samples=N)]
    assert len({first, *others}) == 1 + len(others)


def test_arrays_in_memory_go_into_files(tmp_path):
    arrays = _arrays()
    opened = open_features(arrays).epochs[0].features
    parts = parts_of(opened, num_samples=N, rows=2048, folder=tmp_path)
    assert len(parts) == 4
    assert all(len(_dumps(part)) < 6000 for part in parts)
    _same(reduce(PartScores.merge, [score_part(part.open()) for part in parts]), score_part(opened))
    # The same numbers are the same file, and others another.
    again = parts_of(open_features(arrays).epochs[0].features, num_samples=N, folder=tmp_path)
    files = set(tmp_path.iterdir())
    assert len(files) == len(arrays)
    other = arrays | {"latents": arrays["latents"] + 1}
    (changed,) = parts_of(open_features(other).epochs[0].features, num_samples=N, folder=tmp_path)
    assert len(set(tmp_path.iterdir()) - files) == 1
    assert changed.fingerprint != again[0].fingerprint


def _in_four(change=dict):
    """An epoch in four parts of 1,661 rows, with its logits and without ids."""
    arrays = _arrays()
    arrays["logits"] = arrays["latents"] @ arrays["weight"].T
    del arrays["ids"]
    return [
        change(i, {name: x if name == "weight" else x[rows] for name, x in arrays.items()})
        for i, rows in enumerate(np.array_split(np.arange(N), 4))
    ]


@pytest.mark.parametrize("wrong", range(4))
@pytest.mark.parametrize("first", [0, 7])
def test_the_logits_of_each_file_are_checked(tmp_path, wrong, first):
    """A shard that another job wrote, after rows that are not finite."""

    def change(i, part):
        if i == wrong:
            part["logits"] = np.exp(part["logits"])
            part["logits"][: first // 2] = np.nan
            part["latents"][:first] = np.nan
        return part

    parts = _in_four(change)
    files = [tmp_path / f"part-{i}.npz" for i in range(4)]
    for file, part in zip(files, parts, strict=True):
        np.savez(file, **part)
    told = rf"got row {first} that differs by .*or probabilities, saved as logits"
    with pytest.raises(FeaturesError, match=rf"^{files[wrong]}: `logits` .*{told}"):
        score_part(open_features(files).epochs[0].features)
    with pytest.raises(FeaturesError, match=rf"^part {wrong} in memory, .*: `logits` .*{told}"):
        score_part(open_features(parts).epochs[0].features)


def test_a_row_far_in_a_file_is_named_by_its_number(tmp_path):
    file = tmp_path / "f.npz"
    arrays = _arrays()
    logits = arrays["latents"] @ arrays["weight"].T
    logits[2 * BLOCK_ROWS :] *= -1
    np.savez(file, **arrays, logits=logits)
    features = open_features(file).epochs[0].features
    said = rf"f\.npz: `logits` .*got row {2 * BLOCK_ROWS} that"
    with pytest.raises(FeaturesError, match=said):
        score_part(features)
    last = parts_of(features, num_samples=N, rows=BLOCK_ROWS)[2]
    with pytest.raises(FeaturesError, match=said):
        score_part(last.open(), threads=1)


def test_logits_of_files_change_no_score(tmp_path):
    """The rows of a block that lie in several files are scored as they are in one."""
    parts = _in_four(lambda _, part: part)
    whole = {
        name: x if name == "weight" else np.concatenate([part[name] for part in parts])
        for name, x in parts[0].items()
    }
    found, want = (score_part(open_features(x).epochs[0].features) for x in (parts, whole))
    assert np.isfinite(want.scores).all()
    _same(found, want)
