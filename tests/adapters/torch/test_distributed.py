"""Two real processes are one run: the same scores, moments and decisions."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import ranks
import torch.multiprocessing as multiprocessing
from numpy.testing import assert_allclose, assert_array_equal

WORLD = 2


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of each work by rank, of two gloo processes: most time is their start."""
    folder = tmp_path_factory.mktemp("ranks")
    works = [work.__name__ for work in ranks.WORKS.values()]
    for work in works:
        (folder / work).mkdir()
    multiprocessing.spawn(ranks.begin_each, (WORLD, str(folder), works), nprocs=WORLD)
    return {
        work: [torch.load(folder / work / f"{rank}.pt") for rank in range(WORLD)] for work in works
    }


def same(got, want):
    for ours, theirs in zip(got["history"], want["history"], strict=True):
        # Counts exactly; the weights of the runs differ by the rounding of one all-reduce.
        assert ours[:4] == theirs[:4]
        assert_allclose(ours[4:-2], theirs[4:-2], rtol=1e-4, atol=1e-6)
        assert ours[-2:] == theirs[-2:]
    for name in ("scores", "quality"):
        for ours, theirs in zip(got[name], want[name], strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert got["decisions"] == want["decisions"]
    for ours, theirs in zip(got["predictions"], want["predictions"], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.min() >= 0
            # Two classes may be equal but for that rounding.
            assert (ours == theirs).float().mean() > 0.9
    for ours, theirs in zip(got["signals"], want["signals"], strict=True):
        assert list(ours) == list(theirs)
        for name, values in ours.items():
            assert_allclose(values, theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("work", ["padded_ids", "uneven_ids", "uneven_stream"])
def test_two_processes_equal_one(work, results):
    got = results[work]
    want = getattr(ranks, work)(None, WORLD)
    assert [row[2] for row in want["history"]] == [ranks.SAMPLES] * ranks.EPOCHS
    whole = None if work == "uneven_stream" else ranks.SAMPLES
    assert [row[-2] for row in want["history"]] == [whole] * ranks.EPOCHS
    for one in got:
        same(one, want)
    # Between the ranks nothing differs at all, or they would decide differently one day.
    assert got[0]["history"] == got[1]["history"]
    for ours, theirs in zip(*(one["quality"] for one in got), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    for ours, theirs in zip(*(one["signals"] for one in got), strict=True):
        for name, values in ours.items():
            assert_array_equal(values, theirs[name])


@pytest.mark.parametrize(
    ("work", "whole"), [("resumed_ids", "padded_ids"), ("resumed_stream", "uneven_stream")]
)
def test_one_state_taken_in_mid_epoch_serves_all_ranks(work, whole, results):
    want = getattr(ranks, whole)(None, WORLD)
    for one in results[work]:
        same(one, want)


def test_what_one_process_saw_is_not_counted_once_a_rank(results):
    (first, want), (second, _) = results["widened"]
    assert first == second
    for (summary, found), expected in zip(first, (12, None), strict=True):
        assert summary[2] == 12
        assert summary[-2] == expected
        assert found == pytest.approx(want, rel=1e-5)


def test_a_rank_without_samples_does_no_harm(results):
    first, second = results["idle_rank"]
    assert first == second
    assert first[0][2] == first[3][2] == 12
    assert "an epoch must have scores" in first[1]
    assert len(first[2]) == 1
    assert first[2][0]["margin"] == pytest.approx(first[5][0]["margin"])


def test_sequences_add_up_over_ranks(results):
    want = ranks.sequences(None, WORLD)
    for got in results["sequences"]:
        for (count, mean, *found), (number, average, *expected) in zip(got, want, strict=True):
            assert count == number == 5
            assert mean == pytest.approx(average, rel=1e-6)
            for ours, theirs in zip(found, expected, strict=True):
                assert_allclose(ours, theirs, rtol=1e-6)
    for ours, theirs in zip(*results["sequences"], strict=True):
        assert torch.equal(ours[2], theirs[2])


def test_a_sample_on_several_ranks_has_its_score_and_signals_of_one(results):
    (first, got), (second, same) = results["shared_samples"]
    places = [one["order"].argsort() for one in (first, second)]
    mine = places[0] <= places[1]  # drawn in turn, the first rank first
    # The signals go by batches, of three samples on one rank and of five on the other.
    batches = places[0] // 3 <= places[1] // 5
    for name, of_first in {"scores": mine, "margin": batches}.items():
        assert 0 < of_first.sum() < 12
        want = torch.where(of_first, first[name], second[name])
        assert_allclose(got[name], want, rtol=1e-5, atol=1e-6)
        assert_array_equal(got[name], same[name])


def test_ranks_that_disagree_are_told(results):
    for message in results["disagreeing"]:
        assert "`num_samples` must be the same on all ranks, got 12, 13" in message


def test_fsdp(results):
    for pairs in results["fsdp"]:
        for got, want in pairs:
            assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_average_of_the_weights_is_the_same_on_all_ranks(results):
    first, second = results["averaged_weights"]
    for (got, want), (same, _) in zip(first, second, strict=True):
        for name in want:
            assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-7)
            assert_array_equal(got[name], same[name])


def test_every_work_of_the_documentation_is_run():
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{work.__name__}"' in source for work in ranks.WORKS.values())
