"""Epochs in a run folder: what is written is what the command line reads."""

from __future__ import annotations

import json

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

import gwa_jax
from gwa_offline import open_features
from gwa_offline.store import FeaturesError, RunFolder

N, C = 30, 3


def train(folder, state=None, epochs=3, **options):
    """Save some epochs; return the state, and each epoch's scores and summary."""
    state, told = gwa_jax.init(N) if state is None else state, []
    for _ in range(epochs):
        rng = np.random.default_rng(int(state.epoch))
        state = gwa_jax.add(
            state, jnp.asarray(rng.uniform(-1, 1, N), jnp.float32), ids=np.arange(N)
        )
        scores = gwa_jax.scores(state)
        state, summary = gwa_jax.end_epoch(state)
        gwa_jax.save(folder, summary, scores=scores, num_classes=C, **options)
        told.append((np.asarray(scores), gwa_jax.fetch(summary)))
    return state, told


def test_a_run_folder_has_what_was_given(tmp_path):
    names, labels = ["a", "b", "c"], jnp.arange(N) % C
    metrics = {"loss": jnp.asarray(0.25), "accuracy": 0.5}
    _, told = train(
        tmp_path / "run", targets=labels, class_names=names, metrics=metrics,
        loss="binary_cross_entropy",
    )  # fmt: skip
    header = json.loads((tmp_path / "run" / "run.json").read_text())
    assert header["adapter"] == "jax"
    run = RunFolder.open(tmp_path / "run")
    assert (run.num_samples, run.num_classes, run.class_names) == (N, C, tuple(names))
    assert (run.beta, run.loss) == (1.2, "binary_cross_entropy")
    np.testing.assert_array_equal(run.targets(), labels)
    assert [summary for summary, _ in run.epochs()] == [summary for _, summary in told]
    assert [found for _, found in run.epochs()] == [{"loss": 0.25, "accuracy": 0.5}] * 3
    for k, (scores, _) in enumerate(told):
        np.testing.assert_array_equal(run.scores(k), scores)
    assert open_features(tmp_path / "run").num_samples == N


def test_predictions_are_those_of_the_first_row_of_a_sample(tmp_path):
    rng = np.random.default_rng(0)
    kernel, latents = rng.normal(size=(4, C)), rng.normal(size=(N, 4))
    state = gwa_jax.init(N, predictions=True)
    want = np.full(N, -1)

    @jax.jit
    def step(state, kernel, latents, targets, ids):
        logits = latents @ kernel
        made = {"logits": logits, "latents": latents, "kernel": kernel}
        return gwa_jax.update(state, **made, targets=targets, ids=ids)

    for epoch in range(2):
        want[:] = -1
        for part in (np.arange(20), np.arange(10, 28)):  # the last two do not come
            logits = latents[part] @ kernel
            fresh = want[part] < 0
            want[part[fresh]] = logits[fresh].argmax(1)
            arrays = (jnp.asarray(x, jnp.float32) for x in (kernel, latents[part]))
            state = step(state, *arrays, jnp.asarray(part % C), jnp.asarray(part))
            kernel = -kernel
        scores, predictions = gwa_jax.scores(state), state.predictions
        state, summary = gwa_jax.end_epoch(state)
        about = {"num_classes": C, "scores": scores, "predictions": predictions}
        gwa_jax.save(tmp_path, summary, **about)
        np.testing.assert_array_equal(RunFolder.open(tmp_path).predictions(epoch), want)
    assert (np.asarray(state.predictions) == -1).all()


def test_predictions_of_shards_merge_and_are_refused_where_there_are_none():
    parts = []
    logits = np.eye(C)[np.arange(6) % C]
    for ids in (np.arange(4), np.arange(3, 6)):
        one = logits[ids] if not parts else -logits[ids]
        made = {"logits": jnp.asarray(one), "latents": jnp.asarray(one), "kernel": jnp.eye(C)}
        state = gwa_jax.init(6, predictions=True)
        parts.append(gwa_jax.update(state, **made, targets=jnp.asarray(ids % C), ids=ids))
    for merged in (gwa_jax.merge(*parts), gwa_jax.merge(*parts[::-1])):
        found = np.asarray(merged.predictions)
        np.testing.assert_array_equal(found[[0, 1, 2]], [0, 1, 2])
        np.testing.assert_array_equal(found[[4, 5]], (-logits[[4, 5]]).argmax(1))
    with pytest.raises(ValueError, match="`other` must have predictions"):
        gwa_jax.merge(parts[0], gwa_jax.init(6))
    with pytest.raises(ValueError, match="`logits` must be those of samples"):
        gwa_jax.update(
            parts[0], latents=jnp.eye(3), kernel=jnp.eye(3), targets=jnp.arange(3), ids=np.arange(3)
        )
    for options in ({}, {"num_samples": 6, "reduce": "mean"}):
        with pytest.raises(ValueError, match="`predictions` must come with `num_samples`"):
            gwa_jax.init(**options, predictions=True)


def test_a_resumed_run_goes_on_where_its_checkpoint_was(tmp_path):
    checkpoint, _ = train(tmp_path / "run", epochs=2)
    _, first = train(tmp_path / "run", checkpoint, epochs=2)
    # Killed in epoch 4: epochs 2 and 3 are made again.
    _, again = train(tmp_path / "run", checkpoint, epochs=1)
    run = RunFolder.open(tmp_path / "run")
    assert [summary.epoch for summary, _ in run.epochs()] == [0, 1, 2]
    assert again[0][1] == first[0][1]
    # A run whose first epochs were not saved begins where it is.
    train(tmp_path / "late", checkpoint, epochs=1)
    assert [summary.epoch for summary, _ in RunFolder.open(tmp_path / "late").epochs()] == [2]


def test_without_ids_summaries_alone_are_saved(tmp_path):
    state = gwa_jax.add(gwa_jax.init(), jnp.linspace(-0.5, 0.5, N))
    state, summary = gwa_jax.end_epoch(state)
    gwa_jax.save(tmp_path, summary, scores=gwa_jax.scores(state), num_classes=C, beta=1.2)
    run = RunFolder.open(tmp_path)
    assert run.num_samples == N
    assert run.scores(0) is None
    assert run.epochs()[0][0] == gwa_jax.fetch(summary)


def begun(ids, values):
    """A state of three samples in its second epoch, with predictions."""
    state = gwa_jax.init(3, predictions=True)
    logits = jnp.eye(3)
    made = {"logits": logits, "latents": logits, "kernel": jnp.eye(3)}
    state = gwa_jax.update(state, **made, targets=jnp.arange(3), ids=np.arange(3))
    state, _ = gwa_jax.end_epoch(state)
    logits = jnp.asarray(np.diag(values)[list(ids)], jnp.float32)
    made = {"logits": logits, "latents": logits, "kernel": jnp.eye(3)}
    return gwa_jax.update(state, **made, targets=jnp.asarray(ids), ids=np.asarray(ids))


def test_what_end_epoch_has_emptied_is_refused(tmp_path):
    before = begun([0, 1, 2], [1.0, 2.0, 3.0])
    after, summary = gwa_jax.end_epoch(before)
    folder, about = tmp_path / "run", {"num_classes": 3}
    for name, emptied in {
        "scores": gwa_jax.scores(after),
        "predictions": after.predictions,
    }.items():
        with pytest.raises(ValueError, match=rf"`{name}` must be those of the epoch.*before it"):
            gwa_jax.save(folder, summary, **about, **{name: emptied})
    early = gwa_jax.scores(begun([0, 1], [1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="3 of them finite, got 2 finite ones"):
        gwa_jax.save(folder, summary, **about, scores=early)
    assert not folder.exists()
    kept = {"scores": gwa_jax.scores(before), "predictions": before.predictions}
    gwa_jax.save(folder, summary, **about, **kept)
    assert len(RunFolder.open(folder).epochs()) == 1


def test_samples_that_are_omitted_or_do_not_come_are_no_reason_to_refuse(tmp_path):
    for number, (ids, values, omitted) in enumerate(
        [([0, 1, 2], [1.0, np.nan, 3.0], 1), ([0, 2], [1.0, 2.0, 3.0], 0)]
    ):
        state = begun(ids, values)
        kept = {"scores": gwa_jax.scores(state), "predictions": state.predictions}
        summary = gwa_jax.fetch(gwa_jax.end_epoch(state)[1])
        assert (summary.count, summary.omitted) == (2, omitted)
        gwa_jax.save(tmp_path / str(number), summary, **kept, num_classes=3)
        saved = RunFolder.open(tmp_path / str(number)).scores(summary.epoch)
        np.testing.assert_array_equal(saved, kept["scores"])


def test_what_does_not_fit_is_refused_and_nothing_is_lost(tmp_path):
    state, told = train(tmp_path, epochs=2)
    with pytest.raises(FeaturesError, match="already holds a run of 2 epochs"):
        train(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"`run_folder` must hold a run with .*'beta': 1.5"):
        train(tmp_path, state, epochs=1, beta=1.5)
    with pytest.raises(ValueError, match="got none since the last"):
        gwa_jax.save(tmp_path, gwa_jax.end_epoch(state)[1], num_classes=C)
    _, summary = gwa_jax.end_epoch(
        gwa_jax.add(gwa_jax.init(2)._replace(epoch=state.epoch), jnp.zeros(2), ids=np.arange(2))
    )
    with pytest.raises(ValueError, match=r"'num_samples': 2.* got one with .*'num_samples': 30"):
        gwa_jax.save(tmp_path, summary, scores=jnp.zeros(2), num_classes=C)
    kept = [summary for summary, _ in RunFolder.open(tmp_path).epochs()]
    assert kept == [summary for _, summary in told]
