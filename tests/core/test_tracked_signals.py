"""Signals followed through a training, against loops over a dictionary; saved, resumed, refused."""

import copy

import numpy as np
import pytest
import signal_oracles as oracles

from gwa_core import signals
from gwa_core.signals import SIGNALS, TrackedSignals

N, C, D, EPOCHS = 37, 4, 6, 5
ALL = tuple(SIGNALS)


def training(seed=0):
    """Logits, latents and labels of each epoch, in batches that go through all ids."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, N)
    for _ in range(EPOCHS):
        logits, latents = rng.normal(size=(N, C)), rng.normal(size=(N, D))
        order = rng.permutation(N)
        yield logits, latents, labels, [order[k : k + 8] for k in range(0, N, 8)]


def follow(tracked, epochs=None, *, start=0):
    for k, (logits, latents, labels, batches) in enumerate(training()):
        if k < start or (epochs is not None and k >= epochs):
            continue
        for ids in batches:
            tracked.update(
                logits=logits[ids], latents=latents[ids], targets=labels[ids], ids=ids
            )  # fmt: skip
        tracked.end_epoch()
    return tracked


@pytest.fixture(scope="module")
def run():
    return follow(TrackedSignals(ALL, num_samples=N))


PER_BATCH = [name for name in ALL if "previous epoch" not in SIGNALS[name].needs]


@pytest.mark.parametrize("name", PER_BATCH)
def test_a_signal_of_a_batch(run, name):
    by_epoch = []
    for logits, latents, labels, _ in training():
        given = (latents, logits, labels) if "latents" in SIGNALS[name].needs else (logits, labels)
        if name == "head_hessian_trace":
            given = (latents, logits)
        by_epoch.append(getattr(oracles, name)(*given))
    np.testing.assert_allclose(run.values[name], by_epoch[-1], rtol=1e-9)
    np.testing.assert_allclose(run.over_epochs[name], np.mean(by_epoch, axis=0), rtol=1e-9)
    np.testing.assert_allclose(
        [summary[name] for summary in run.history], np.mean(by_epoch, axis=1), rtol=1e-9
    )


def test_signals_that_compare_epochs(run):
    seen = list(training())
    predicted = np.array([logits.argmax(axis=1) for logits, *_ in seen])
    labels = seen[0][2]
    probability = [oracles.label_probability(logits, labels) for logits, *_ in seen]
    np.testing.assert_allclose(
        run.over_epochs["variability"], np.std(probability, axis=0), rtol=1e-9
    )
    events = oracles.forgetting_events(predicted == labels)
    np.testing.assert_array_equal(run.over_epochs["forgetting_events"], events)
    assert run.history[-1]["forgetting_events"] == pytest.approx(events.mean())
    changes = [summary["prediction_changes"] for summary in run.history]
    assert np.isnan(changes[0])
    np.testing.assert_allclose(changes[1:], (predicted[1:] != predicted[:-1]).mean(axis=1))


def test_a_sample_that_is_not_seen_in_an_epoch():
    tracked = TrackedSignals(["margin", "forgetting_events", "variability"], num_samples=3)
    right, wrong = [[2.0, 0.0]], [[0.0, 2.0]]
    target = np.asarray([0])
    # Sample 0: right, absent, wrong: one event. Sample 1: never right. Sample 2: never seen.
    for logits, ids in (
        ([*right, *wrong], [0, 1]), (wrong, [1]), ([*wrong, *wrong], [0, 1])
    ):  # fmt: skip
        tracked.update(
            logits=np.asarray(logits), targets=target.repeat(len(ids)), ids=np.asarray(ids)
        )
        tracked.end_epoch()
    found = tracked.over_epochs
    np.testing.assert_allclose(found["margin"], [0.0, -2.0, np.nan])
    np.testing.assert_allclose(found["forgetting_events"], [1.0, 3.0, np.nan])
    np.testing.assert_allclose(found["variability"][1], 0.0, atol=1e-15)
    assert np.isnan(found["variability"][2])


def test_without_ids_there_are_means():
    tracked = TrackedSignals("el2n")
    for logits, _, labels, _ in training():
        tracked.update(logits=logits[:20], targets=labels[:20])
        tracked.update(logits=logits[20:], targets=labels[20:])
        summary = tracked.end_epoch()
        assert summary["el2n"] == pytest.approx(oracles.el2n(logits, labels).mean())
    with pytest.raises(ValueError, match="to compare epochs"):
        tracked.over_epochs  # noqa: B018


@pytest.mark.parametrize("batches", [0, 2, 5])
def test_a_resumed_run_is_the_whole_run(run, batches):
    half = follow(TrackedSignals(ALL, num_samples=N), 2)
    logits, latents, labels, given = list(training())[2]
    done, left = given[:batches], given[batches:]
    for ids in done:
        half.update(logits=logits[ids], latents=latents[ids], targets=labels[ids], ids=ids)
    state = copy.deepcopy(half.state_dict())
    resumed = TrackedSignals(ALL, num_samples=N)
    resumed.load_state_dict(state)
    for ids in left:
        resumed.update(logits=logits[ids], latents=latents[ids], targets=labels[ids], ids=ids)
    resumed.end_epoch()
    follow(resumed, start=3)
    for a, b in zip(resumed.history, run.history, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_array_equal(list(a.values()), list(b.values()))
    for name, values in run.over_epochs.items():
        np.testing.assert_array_equal(resumed.over_epochs[name], values)


def test_one_pass_gives_what_each_function_gives():
    logits, latents, labels, _ = next(training())
    for name, value in signals.sample_signals(
        PER_BATCH, logits=logits, latents=latents, targets=labels
    ).items():
        given = {"logits": logits, "targets": labels, "latents": latents}
        if "latents" not in SIGNALS[name].needs:
            del given["latents"]
        if name == "head_hessian_trace":
            del given["targets"]
        # The trace takes another class as the label, and rounds otherwise.
        np.testing.assert_allclose(value, getattr(signals, name)(**given), rtol=1e-12)


def test_where_leaves_samples_out():
    logits, _, labels, _ = next(training())
    where = np.arange(N) % 3 != 0
    tracked = TrackedSignals("margin", num_samples=N)
    tracked.update(logits=logits, targets=labels, ids=np.arange(N), where=where)
    tracked.end_epoch()
    assert (np.isnan(tracked.values["margin"]) == ~where).all()


def test_the_catalogue_says_what_is_so(run):
    for name, signal in SIGNALS.items():
        assert signal.name == name
        values = [summary[name] for summary in run.history if np.isfinite(summary[name])]
        if name in run.over_epochs:
            values = [*values, *run.over_epochs[name]]
        low, high = signal.range
        assert low <= min(values) <= max(values) <= high
        assert signal.reference
        assert signal.cost


LOGITS, TARGETS, IDS = np.zeros((2, C)), np.zeros(2, int), np.arange(2)

CASES = [
    ("an unknown signal", lambda: TrackedSignals("margn"), ValueError, "near: 'margin'"),
    ("no signal", lambda: TrackedSignals([]), ValueError, "at least one"),
    ("a signal by id without ids", lambda: TrackedSignals("forgetting_events"),
     ValueError, "`num_samples` must be given for 'forgetting_events'"),
    ("ids without num_samples", lambda: TrackedSignals("margin").update(
        logits=LOGITS, targets=TARGETS, ids=IDS), ValueError, "given together"),
    ("no latents", lambda: TrackedSignals("gradient_norm").update(
        logits=LOGITS, targets=TARGETS), ValueError, "`latents` must be given"),
    ("ids out of range", lambda: TrackedSignals("margin", 2).update(
        logits=LOGITS, targets=TARGETS, ids=IDS + 1), ValueError, "`ids` must be in"),
    ("an epoch without batches", lambda: TrackedSignals("margin").end_epoch(),
     ValueError, "must have scores"),
    ("a state of other signals", lambda: TrackedSignals("el2n").load_state_dict(
        TrackedSignals("margin").state_dict()), ValueError, "`state` must be of"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("with_ids", [True, False])
def test_ranks_merged_are_one_process(with_ids):
    names = ALL if with_ids else ("margin", "gradient_norm")
    size = N if with_ids else None
    whole, ranks = TrackedSignals(names, size), [TrackedSignals(names, size) for _ in range(3)]
    for logits, latents, labels, batches in training():
        for k, ids in enumerate(batches):
            given = {"logits": logits[ids], "latents": latents[ids], "targets": labels[ids]}
            if with_ids:
                given["ids"] = ids
            whole.update(**given)
            ranks[k % 3].update(**given)
        for other in ranks[1:]:
            ranks[0].merge(other)
        want = whole.end_epoch()
        assert ranks[0].end_epoch() == pytest.approx(want, rel=1e-12, nan_ok=True)
        if with_ids:
            for other in ranks[1:]:
                other.load_state_dict(ranks[0].state_dict())
        else:
            ranks[1:] = [TrackedSignals(names) for _ in range(2)]
    if with_ids:
        for name, values in whole.over_epochs.items():
            np.testing.assert_allclose(ranks[0].over_epochs[name], values, rtol=1e-12)


def test_signals_that_do_not_belong_together_are_not_merged():
    tracked = TrackedSignals(["margin"], N)
    for other in (TrackedSignals(["margin"], N + 1), TrackedSignals(["el2n"], N)):
        with pytest.raises(ValueError, match="`other` must agree in names, num_samples"):
            tracked.merge(other)
