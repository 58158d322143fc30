import copy
import math
import pickle

import numpy as np
import oracles
import pytest
from backends import CASES, open_case, require, skip_reason

import gwa_core.tracker
from gwa_core import GWATracker, label_quality, summarize

RNG = np.random.default_rng(0)
SCORES = np.clip(RNG.normal(0.2, 0.2, 200), -1, 1)
HOSTED = [case for case in CASES if skip_reason("GWATracker", case) is None]


def fields(summary):
    """What must agree between two ways to the same epoch, in one array."""
    whole = -1 if summary.expected is None else summary.expected
    return np.asarray([summary.count, summary.omitted, whole, *summary[4:-2]])


def feed(tracker, batches):
    for batch in batches:
        tracker.update(*batch[:1], **({"ids": batch[1]} if len(batch) > 1 else {}))


def dealt(seed, num_samples, batch):
    """An epoch in random order, as (scores, ids) batches."""
    order = np.random.default_rng(seed).permutation(num_samples)
    parts = np.split(order, range(batch, num_samples, batch))
    return [(SCORES[ids] + 0.001 * seed, ids) for ids in parts]


@pytest.mark.parametrize("case", HOSTED, ids=[case.name for case in HOSTED])
def test_scores_of_any_library_and_dtype_are_taken(case):
    with open_case(case) as backend:
        tracker, by_id = GWATracker(), GWATracker(200)
        rounded = []
        for start in range(0, 200, 60):
            piece = SCORES[start : start + 60]
            scores = backend.array(piece)
            where = np.arange(len(piece)) % 7 > 0
            tracker.update(scores, where=backend.array(where))
            ids = backend.array(start + np.arange(len(piece)))
            by_id.update(scores, ids=ids, where=backend.array(where))
            rounded.append(np.where(where, backend.read(scores), np.nan))
        want = np.concatenate(rounded)
        summary = tracker.end_epoch()
        np.testing.assert_allclose(
            np.asarray(summary[4:-2]), oracles.summary(want)[1:], rtol=1e-9, atol=1e-12
        )
        assert summary.expected is None
        named = by_id.end_epoch()
        assert fields(named) == pytest.approx(
            fields(summary._replace(expected=named.count)), rel=1e-9
        )
        assert isinstance(by_id.scores, np.ndarray)
        np.testing.assert_allclose(by_id.scores, want, rtol=1e-6)
        np.testing.assert_allclose(tracker.scores, want[np.isfinite(want)], rtol=1e-6)


def test_score_of_a_sample_stands_at_its_id_in_every_epoch():
    tracker = GWATracker(200)
    for epoch in range(3):
        feed(tracker, dealt(epoch, 200, 32))
        summary = tracker.end_epoch(step=100 * epoch + 7)
        np.testing.assert_array_equal(tracker.scores, SCORES + 0.001 * epoch)
        assert summary[:4] == (epoch, 100 * epoch + 7, 200, 0)
        assert summary.gwa == pytest.approx(oracles.gwa(SCORES + 0.001 * epoch), rel=1e-9)
    assert [s.epoch for s in tracker.history] == [0, 1, 2]


def test_samples_not_seen_are_nan_and_do_not_count():
    tracker = GWATracker(10)
    tracker.update(np.asarray([0.5, 0.1, 0.2]), ids=np.asarray([7, 0, 3]))
    assert tracker.end_epoch().count == 3
    assert np.isnan(tracker.scores).sum() == 7
    tracker.update(np.asarray([0.4]), ids=np.asarray([1]))
    assert np.isnan(tracker.scores[[0, 3, 7]]).all()


def test_a_sample_seen_twice_counts_once_with_its_first_score():
    tracker = GWATracker(4)
    batches = [([0.1, 0.9, 0.8], [2, 2, 0]), ([0.7, 0.6], [0, 3]), ([0.5], [2])]
    for scores, ids in batches:
        tracker.update(np.asarray(scores), ids=np.asarray(ids))
    want = oracles.tracked_scores(4, [(s, i, [True] * len(s)) for s, i in batches])
    np.testing.assert_array_equal(tracker.scores, want)
    np.testing.assert_array_equal(want, [0.8, np.nan, 0.1, 0.6])
    assert tracker.end_epoch().count == 3


def test_a_masked_sample_has_not_been_seen():
    tracker = GWATracker(2)
    ids = np.asarray([0, 1])
    tracker.update(np.asarray([0.9, 0.1]), ids=ids, where=np.asarray([False, True]))
    tracker.update(np.asarray([0.5, 0.6]), ids=ids)
    np.testing.assert_array_equal(tracker.scores, [0.5, 0.1])


@pytest.mark.parametrize("with_ids", [True, False])
def test_scores_that_are_not_finite_are_left_out_and_counted(with_ids):
    scores = np.asarray([0.1, np.nan, 0.3, -np.inf, -0.2, np.nan])
    where = np.asarray([True, True, True, True, True, False])
    tracker = GWATracker(9)
    tracker.update(scores, where=where, ids=np.arange(6) if with_ids else None)
    summary = tracker.end_epoch()
    assert (summary.count, summary.omitted) == (3, 3 - 1)
    assert summary.mean == pytest.approx(0.2 / 3)


@pytest.mark.parametrize("with_ids", [True, False])
def test_an_epoch_of_nothing_but_nan_is_an_unhealthy_epoch(with_ids):
    tracker = GWATracker(9)
    tracker.update(np.full(4, np.nan), ids=np.arange(4) if with_ids else None)
    summary = tracker.end_epoch()
    assert (summary.count, summary.omitted, summary.healthy) == (0, 4, False)
    assert math.isnan(summary.gwa)


def test_strict_policy_raises_and_keeps_the_rest():
    tracker = GWATracker(nan_policy="raise")
    tracker.update(np.asarray([0.1, 0.2]))
    tracker.update(np.asarray([0.1, np.nan]))
    with pytest.raises(ValueError, match="`scores` must be finite"):
        tracker.end_epoch()
    tracker.update(np.asarray([0.3]))
    tracker.update(np.asarray([np.nan]), where=np.asarray([False]))
    summary = tracker.end_epoch()
    assert (summary.count, summary.omitted) == (3, 0)
    assert summary.mean == pytest.approx(0.2)


def test_bad_ids_of_an_accelerator_are_found_when_they_are_fetched():
    torch = require("torch")
    tracker = GWATracker(4)
    tracker.update(torch.tensor([0.1, 0.2]), ids=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"`ids` must be in 0\.\.3, got 0\.\.4"):
        tracker.end_epoch()
    tracker.update(torch.tensor([0.3]), ids=torch.tensor([1]))
    assert tracker.end_epoch().count == 1


def test_a_buffer_may_be_written_again_after_the_call():
    tracker, by_id = GWATracker(), GWATracker(4)
    scores, ids, where = np.zeros(2), np.zeros(2, int), np.zeros(2, bool)
    for values, numbers in (([0.1, 0.2], [3, 1]), ([0.5, 0.9], [0, 2])):
        scores[:], ids[:], where[:] = values, numbers, [True, numbers[1] == 1]
        tracker.update(scores, where=where)
        by_id.update(scores, ids=ids)
    np.testing.assert_array_equal(by_id.scores, [0.5, 0.2, 0.9, 0.1])
    np.testing.assert_array_equal(tracker.scores, [0.1, 0.2, 0.5])


def test_inputs_are_left_alone():
    scores, ids, where = SCORES[:9].copy(), np.arange(9)[::-1].copy(), np.arange(9) % 2 > 0
    for x in (scores, ids, where):
        x.flags.writeable = False
    tracker = GWATracker(9)
    tracker.update(scores, ids=ids, where=where)
    tracker.end_epoch()
    np.testing.assert_array_equal(scores, SCORES[:9])
    np.testing.assert_array_equal(tracker.scores[ids[where]], scores[where])


def test_waiting_scores_are_folded_in_before_they_pile_up():
    tracker = GWATracker(keep_scores=False)
    size = gwa_core.tracker.PENDING_SCORES // 4
    batch = np.resize(SCORES, size)
    for _ in range(10):
        tracker.update(batch)
        assert sum(len(scores) for scores, _, _ in tracker._pending) < 4 * size
    assert tracker.scores is None
    summary = tracker.end_epoch()
    assert summary.count == 10 * size
    assert summary.gwa == pytest.approx(oracles.gwa(batch), rel=1e-9)


def test_old_scores_are_not_overwritten_by_the_next_epoch():
    tracker = GWATracker(3)
    kept = []
    for epoch in range(3):
        tracker.update(0.1 * epoch + np.asarray([0.0, 0.01, 0.02]), ids=np.arange(3))
        tracker.end_epoch()
        kept.append(tracker.scores)
    np.testing.assert_allclose(np.stack(kept)[:, 0], [0.0, 0.1, 0.2])


@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("backwards", [False, True])
def test_merged_ranks_equal_one_process_in_spite_of_padding(ranks, backwards):
    n, batch = 200, 8
    order = np.random.default_rng(1).permutation(n)
    # The score of a sample drifts with the step, so it matters which of two looks counts.
    score_at = lambda ids, step: np.clip(SCORES[ids] + 0.01 * step, -1, 1)  # noqa: E731
    single = GWATracker(n)
    for step, start in enumerate(range(0, n, batch * ranks)):
        ids = order[start : start + batch * ranks]
        single.update(score_at(ids, step), ids=ids)
    shares = oracles.distributed_shares(order, ranks)
    if n % ranks:
        assert sum(map(len, shares)) > n
    workers = []
    for share in shares:
        worker = GWATracker(n)
        for step, start in enumerate(range(0, len(share), batch)):
            ids = np.asarray(share[start : start + batch])
            worker.update(score_at(ids, step), ids=ids)
        workers.append(worker)
    first, *others = workers[::-1] if backwards else workers
    for other in others:
        first.merge(other)
    np.testing.assert_array_equal(first.scores, single.scores)
    assert fields(first.end_epoch()) == pytest.approx(fields(single.end_epoch()), rel=1e-12)


def test_a_rank_resumed_in_the_middle_of_an_epoch_knows_its_batch():
    one, other, single = GWATracker(9), GWATracker(9), GWATracker(9)
    for step, (left, right) in enumerate([([0], [1]), ([2], [3]), ([8], [5]), ([7], [8])]):
        if step == 3:
            # Both ranks are killed and come back before their last step.
            states = one.state_dict(), other.state_dict()
            one, other = GWATracker(9), GWATracker(9)
            one.load_state_dict(states[0])
            other.load_state_dict(states[1])
        one.update(np.asarray([0.1 * step]), ids=np.asarray(left))
        other.update(np.asarray([0.1 * step]), ids=np.asarray(right))
        single.update(np.full(2, 0.1 * step), ids=np.asarray(left + right))
    other.merge(one)
    np.testing.assert_array_equal(other.scores, single.scores)
    # What comes after a merge is later than all that was merged.
    fresh, early = GWATracker(9), GWATracker(9)
    fresh.merge(other)
    fresh.update(np.asarray([0.7]), ids=np.asarray([4]))
    for number in (6, 6, 4):
        early.update(np.asarray([-0.9]), ids=np.asarray([number]))
    fresh.merge(early)
    assert fresh.scores[4] == -0.9


def test_shares_are_dealt_as_torch_deals_them():
    data = require("torch.utils.data")
    for n, ranks in ((10, 3), (3, 8), (12, 4)):
        want = [
            list(data.DistributedSampler(range(n), ranks, rank, shuffle=False))
            for rank in range(ranks)
        ]
        assert oracles.distributed_shares(range(n), ranks) == want


def test_merged_streams_equal_one_stream():
    whole, parts = GWATracker(), [GWATracker() for _ in range(3)]
    for i, batch in enumerate(np.split(SCORES, 10)):
        whole.update(batch)
        parts[i % 3].update(batch)
    for part in parts[:2]:
        part.update(np.asarray([np.nan]))
        whole.update(np.asarray([np.nan]))
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    np.testing.assert_array_equal(np.sort(parts[0].scores), np.sort(whole.scores))
    assert fields(parts[0].end_epoch()) == pytest.approx(fields(whole.end_epoch()), rel=1e-10)


def test_a_rank_without_a_batch_adds_nothing():
    one, idle = GWATracker(200), GWATracker(200)
    feed(one, dealt(0, 200, 64))
    want = copy.deepcopy(one).end_epoch()
    one.merge(idle)
    assert copy.deepcopy(one).end_epoch() == want
    idle.merge(one)
    assert idle.end_epoch() == want


def test_an_epoch_that_ended_is_not_merged_again():
    one, other = GWATracker(), GWATracker()
    other.update(SCORES)
    other.end_epoch()
    one.update(SCORES[:50])
    one.merge(other)
    assert one.end_epoch().count == 50
    # A tracker whose own epoch has ended begins a new one with what it is given.
    other.update(SCORES[:20])
    one.merge(other)
    assert one.end_epoch().count == 20


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("stored", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])  # noqa: S301
def test_resumed_in_the_middle_of_an_epoch_it_goes_on_as_if_nothing_happened(with_ids, stored):
    batches = [batch if with_ids else batch[:1] for batch in dealt(0, 200, 32)]
    whole, before, after = GWATracker(200), GWATracker(200), GWATracker(200)
    for tracker in (whole, before):
        feed(tracker, [batch if with_ids else batch[:1] for batch in dealt(1, 200, 50)])
        tracker.end_epoch(step=5)
        feed(tracker, batches[:3])
    after.load_state_dict(stored(before.state_dict()))
    for tracker in (whole, after):
        feed(tracker, batches[3:])
        tracker.end_epoch()
    assert after.history == whole.history
    np.testing.assert_array_equal(after.scores, whole.scores)


def test_state_between_epochs_and_at_the_very_start():
    fresh, loaded = GWATracker(200, beta=2.0), GWATracker(200)
    loaded.load_state_dict(fresh.state_dict())
    assert loaded.beta == 2.0
    feed(fresh, dealt(0, 200, 64))
    fresh.end_epoch()
    loaded.load_state_dict(fresh.state_dict())
    np.testing.assert_array_equal(loaded.scores, fresh.scores)
    with pytest.raises(ValueError, match="an epoch must have scores"):
        loaded.end_epoch()
    feed(loaded, dealt(1, 200, 64))
    assert loaded.end_epoch().epoch == 1


def test_state_is_plain_and_shares_nothing_with_the_tracker():
    torch = require("torch")
    tracker = GWATracker(200)
    tracker.update(torch.as_tensor(SCORES), ids=torch.arange(200))
    state = tracker.state_dict()

    def plain(value):
        if isinstance(value, dict):
            return all(map(plain, value.values()))
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (bool, int, float, str, np.ndarray)

    assert plain(state)
    state["by_sample"]["scores"][:] = 0
    state["moments"][0][...] = 0
    assert tracker.end_epoch().count == 200
    np.testing.assert_array_equal(tracker.scores, SCORES)


def test_a_state_that_does_not_fit_changes_nothing():
    tracker = GWATracker(200)
    feed(tracker, dealt(0, 200, 64))
    state = tracker.state_dict()
    for wrong in ({**state, "version": 99}, {**state, "num_samples": 7}, {}):
        with pytest.raises(ValueError, match="`state`"):
            tracker.load_state_dict(wrong)
    assert tracker.end_epoch().count == 200


def test_beta_reaches_the_summary():
    tracker = GWATracker(beta=3.0)
    tracker.update(SCORES)
    assert tracker.end_epoch().gwa == pytest.approx(float(summarize(SCORES, beta=3.0).gwa))


def test_ids_with_all_or_none_of_the_batches_of_an_epoch():
    tracker = GWATracker(4)
    tracker.update(np.asarray([0.1]), ids=np.asarray([1]))
    with pytest.raises(ValueError, match=r"got none in an epoch that began with them"):
        tracker.update(np.asarray([0.2]))
    assert tracker.end_epoch().count == 1
    tracker.update(np.asarray([0.2]))
    with pytest.raises(ValueError, match="got some in an epoch that began without them"):
        tracker.update(np.asarray([0.2]), ids=np.asarray([1]))


def test_an_empty_batch_is_no_batch():
    tracker = GWATracker()
    tracker.update(SCORES[:0])
    with pytest.raises(ValueError, match="an epoch must have scores"):
        tracker.end_epoch()
    tracker.update(SCORES)
    assert tracker.end_epoch().count == 200


def test_many_epochs_do_not_grow_the_tracker():
    tracker = GWATracker(keep_scores=False)
    for _ in range(3):
        tracker.update(SCORES)
        tracker.end_epoch()
        assert tracker._stream == []
        assert tracker._pending == []


@pytest.mark.parametrize(
    ("rows", "batch", "expected"),
    [
        (np.arange(200), 64, 200),
        (np.arange(8), 8, 200),
        (np.arange(128), 64, 200),
        # What does not fill a batch is dropped.
        (np.arange(192), 64, 192),
        (np.arange(150), 150, 150),
        # With replacement: 200 rows of 120 samples are a whole epoch, 100 rows of 60 a half.
        (np.arange(200) % 120, 50, 120),
        (np.arange(100) % 60, 50, 120),
        # A distributed sampler pads.
        (np.arange(204) % 200, 51, 200),
    ],
)
def test_an_epoch_knows_how_many_samples_it_should_have_had(rows, batch, expected):
    tracker = GWATracker(200)
    for part in np.split(rows, range(batch, len(rows), batch)):
        tracker.update(SCORES[part % 200], ids=part)
    assert tracker.end_epoch().expected == expected


def test_a_loop_over_a_part_of_the_samples_shows_its_length_in_the_first_epoch():
    tracker, expected = GWATracker(200), []
    for n in (120, 120, 8, 118, 200, 150):
        for ids in np.split(np.arange(n), range(4, n, 4)):
            tracker.update(SCORES[ids], ids=ids)
        expected.append(tracker.end_epoch().expected)
        resumed = GWATracker(200)
        resumed.load_state_dict(tracker.state_dict())
        tracker = resumed
    assert expected == [200, 120, 120, 118, 200, 200]


def test_an_epoch_of_one_batch_after_a_whole_one_is_cut_short():
    # In the first epoch a loader may have dropped what did not fill a batch; later it is known.
    for n, size in ((1797, 1024), (1000, 512), (100, 64)):
        tracker = GWATracker(n)
        for ids in (np.arange(size), np.arange(size, n)):
            tracker.update(np.sin(ids), ids=ids)
        tracker.end_epoch()
        tracker.update(np.sin(np.arange(size)), ids=np.arange(size))
        assert tracker.end_epoch().expected == n


def test_samples_drawn_several_times_are_measured_by_the_epoch_before():
    tracker = GWATracker(100)
    for rows in (300, 120):
        for ids in np.split(np.arange(rows) % 100, range(10, rows, 10)):
            tracker.update(np.sin(ids), ids=ids)
        summary = tracker.end_epoch()
    assert (summary.count, summary.expected) == (100, 250)


def test_masked_samples_are_no_samples_cut_short():
    tracker = GWATracker(200)
    tracker.update(SCORES, ids=np.arange(200), where=np.arange(200) % 2 == 0)
    summary = tracker.end_epoch()
    assert (summary.count, summary.expected) == (100, 100)


def test_what_the_caller_expects_comes_first():
    for tracker, ids in ((GWATracker(), None), (GWATracker(200), np.arange(50))):
        tracker.update(SCORES[:50], ids=ids)
        assert tracker.end_epoch(expected=np.float64(60.4)).expected == 60


def test_ranks_and_resumed_trackers_count_the_rows_of_all():
    parts = [GWATracker(200) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.update(SCORES[rank::2], ids=np.arange(rank, 200, 2))
    resumed = GWATracker(200)
    resumed.load_state_dict(parts[0].state_dict())
    resumed.merge(parts[1])
    assert resumed.end_epoch().expected == 200


def test_label_quality_is_that_of_the_stacked_scores():
    whole, history = GWATracker(200), []
    for epoch in range(6):
        feed(whole, dealt(epoch, 200, 64)[: 4 if epoch % 2 else 2])
        whole.end_epoch()
        history.append(whole.scores.copy())
        if epoch == 2:
            resumed = GWATracker(200)
            resumed.load_state_dict(whole.state_dict())
            whole = resumed
    np.testing.assert_allclose(
        whole.label_quality, label_quality(np.stack(history)), rtol=1e-12, atol=0
    )
    assert GWATracker().label_quality is None
    assert GWATracker(3).label_quality is None


def test_counts_of_numpy_are_counts():
    tracker = GWATracker(np.int64(200), beta=np.float32(1.5))
    feed(tracker, dealt(0, 200, 64))
    summary = tracker.end_epoch(step=np.int32(7))
    assert (tracker.num_samples, summary.step, tracker.beta) == (200, 7, 1.5)
    assert [type(x) for x in (tracker.num_samples, summary.step, tracker.beta)] == [int, int, float]
