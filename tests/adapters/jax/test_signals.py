"""Signals in a jitted step, against what the core follows on the host."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

import gwa_core
import gwa_jax
from gwa_core.signals import SIGNALS, TrackedSignals, sample_signals

N, C, D, ROWS, EPOCHS = 37, 4, 6, 16, 3
ALL = tuple(SIGNALS)
BY_EPOCH = tuple(name for name in ALL if "ids" not in SIGNALS[name].needs)


def training(seed=0, samples=N):
    """Padded batches of each epoch: ids come twice, some not at all, some values are nan."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, samples)
    epochs = []
    for epoch in range(EPOCHS):
        ids = rng.permutation(samples)[: samples - 4 * epoch]
        ids = np.concatenate([ids, ids[:5], rng.integers(0, samples, 3)])
        ids = np.resize(ids, (-(-len(ids) // ROWS), ROWS))
        where = np.arange(ids.size).reshape(ids.shape) < samples
        logits = 2.0 * rng.standard_normal((*ids.shape, C)).astype(np.float32)
        latents = rng.standard_normal((*ids.shape, D)).astype(np.float32)
        latents[0, 1, 0] = np.nan
        epochs.append(
            {"logits": logits, "latents": latents, "targets": labels[ids], "ids": ids,
             "where": where}
        )  # fmt: skip
    return epochs


def batches(epoch, *without):
    given = {name: x for name, x in epoch.items() if name not in without}
    return [{name: x[k] for name, x in given.items()} for k in range(len(epoch["ids"]))]


def on_host(names, samples, epochs, *without):
    tracked = TrackedSignals(names, samples)
    for epoch in epochs:
        for batch in batches(epoch, *without):
            tracked.update(**batch)
        tracked.end_epoch()
    return tracked


def close(found, wanted):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == jnp.float32
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_training_equals_what_the_core_follows():
    epochs = training()
    tracked = on_host(ALL, N, epochs)
    traced = []

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        traced.append(1)
        return gwa_jax.signals.update(state, **batch)

    end = jax.jit(gwa_jax.signals.end_epoch, donate_argnums=0)
    given = jax.tree.map(jnp.asarray, [batches(epoch) for epoch in epochs])
    state, history = gwa_jax.signals.init(ALL, N), []
    with jax.transfer_guard("disallow"):
        for epoch in given:
            for batch in epoch:
                state = step(state, batch)
            before = gwa_jax.signals.values(state)
            state, means = end(state)
            history.append(means)
    assert len(traced) == 1
    for means, wanted in zip(history, tracked.history, strict=True):
        close(means, wanted)
    assert np.isnan(history[0]["prediction_changes"])
    assert history[-1]["forgetting_events"] > 0.2, "the test must see something"
    close(before, tracked.values)
    close(gwa_jax.signals.values(state), tracked.values)
    close(gwa_jax.signals.over_epochs(state), tracked.over_epochs)
    assert np.isnan(before["margin"]).any()
    # The first batch of the next epoch takes the values of the last one away.
    state = step(state, given[0][0])
    seen = np.unique(epochs[0]["ids"][0])
    margin = gwa_jax.signals.values(state)["margin"]
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(margin)), seen)


@pytest.mark.parametrize("names", ["el2n", "variability", "prediction_changes"])
def test_one_signal_alone(names):
    epochs = training(seed=3, samples=9)[:2]
    tracked = on_host(names, 9, epochs)
    state = gwa_jax.signals.init(names, 9)
    for epoch in epochs:
        for batch in batches(epoch):
            state = gwa_jax.signals.update(state, **batch)
        state, means = gwa_jax.signals.end_epoch(state)
    close(means, tracked.history[-1])
    close(gwa_jax.signals.over_epochs(state), tracked.over_epochs)


def test_without_ids_there_are_means():
    epochs = training()
    tracked = on_host(BY_EPOCH, None, epochs, "ids")
    state = gwa_jax.signals.init(BY_EPOCH)
    step = jax.jit(lambda state, batch: gwa_jax.signals.update(state, **batch), donate_argnums=0)
    for epoch, wanted in zip(epochs, tracked.history, strict=True):
        for batch in batches(epoch, "ids"):
            state = step(state, batch)
        state, means = gwa_jax.signals.end_epoch(state)
        close(means, wanted)
    for function in (gwa_jax.signals.values, gwa_jax.signals.over_epochs):
        with pytest.raises(ValueError, match=r"`num_samples` must be given to keep values"):
            function(state)


def run(state, stacked):
    """Scan over the steps of each epoch."""

    def step(state, batch):
        return gwa_jax.signals.update(state, **batch), None

    history = []
    for epoch in stacked:
        state, _ = jax.lax.scan(step, state, epoch)
        state, means = gwa_jax.signals.end_epoch(state)
        history.append(means)
    return state, history


def test_scan_and_vmap_over_seeds():
    seeds = [training(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    states = jax.tree.map(lambda *x: jnp.stack(x), *[gwa_jax.signals.init(ALL, N)] * 3)
    states, history = jax.jit(jax.vmap(run))(states, stacked)
    values, over = gwa_jax.signals.values(states), gwa_jax.signals.over_epochs(states)
    for k, epochs in enumerate(seeds):
        tracked = on_host(ALL, N, epochs)
        for means, wanted in zip(history, tracked.history, strict=True):
            close({name: mean[k] for name, mean in means.items()}, wanted)
        close({name: x[k] for name, x in values.items()}, tracked.values)
        close({name: x[k] for name, x in over.items()}, tracked.over_epochs)


def test_no_gradient_flows_through():
    (batch, *_) = batches(training()[0])

    latents, kernel = jnp.nan_to_num(jnp.asarray(batch["latents"])), jnp.ones((D, C))

    def loss(kernel, watched):
        logits = jnp.dot(latents, kernel)
        value, state = jnp.sum(jax.nn.log_softmax(logits)[:, 0]), gwa_jax.signals.init(ALL, N)
        if watched:
            given = batch | {"logits": logits, "latents": latents}
            state = gwa_jax.signals.update(state, **given)
        return value + sum(jnp.nansum(x) for x in state.latest.values())

    gradient = jax.jit(jax.grad(loss), static_argnames="watched")
    np.testing.assert_array_equal(gradient(kernel, watched=True), gradient(kernel, watched=False))


def test_tokens_are_samples():
    (batch, *_) = batches(training()[0])
    flat = gwa_jax.signals.update(gwa_jax.signals.init(ALL, N), **batch)
    tokens = {name: x.reshape(4, 4, *x.shape[1:]) for name, x in batch.items()}
    found = gwa_jax.signals.update(gwa_jax.signals.init(ALL, N), **tokens)
    for name, x in gwa_jax.signals.values(flat).items():
        np.testing.assert_array_equal(gwa_jax.signals.values(found)[name], x)


def test_half_precision_is_raised():
    (batch, *_) = batches(training()[0])
    half = batch | {name: jnp.asarray(batch[name], jnp.bfloat16) for name in ("logits", "latents")}
    state = gwa_jax.signals.update(gwa_jax.signals.init(BY_EPOCH, N), **half)
    wide = batch | {name: np.asarray(half[name], np.float32) for name in ("logits", "latents")}
    tracked = TrackedSignals(BY_EPOCH, N)
    tracked.update(**wide)
    close(gwa_jax.signals.values(state), tracked.values)


def test_a_state_saved_in_mid_epoch_goes_on(tmp_path):
    first, second, *_ = training()
    half = functools.reduce(
        lambda state, batch: gwa_jax.signals.update(state, **batch),
        batches(first) + batches(second)[:1],
        gwa_jax.signals.init(ALL, N),
    )
    leaves, tree = jax.tree.flatten(half)
    np.savez(tmp_path / "state.npz", *leaves)
    with np.load(tmp_path / "state.npz") as saved:
        loaded = jax.tree.unflatten(tree, [jnp.asarray(saved[name]) for name in saved.files])
    ends = [
        gwa_jax.signals.end_epoch(gwa_jax.signals.update(state, **batches(second)[1]))
        for state in (half, loaded)
    ]
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_epoch_without_a_batch_adds_nothing():
    state, wanted = gwa_jax.signals.init(ALL, N), None
    for batch in batches(training()[0]):
        state = gwa_jax.signals.update(state, **batch)
    state, _ = gwa_jax.signals.end_epoch(state)
    wanted = gwa_jax.signals.over_epochs(state)
    state, means = gwa_jax.signals.end_epoch(state)
    assert np.isnan(means["margin"])
    for name, x in gwa_jax.signals.over_epochs(state).items():
        np.testing.assert_array_equal(x, wanted[name])


def test_ids_that_are_not_there_are_counted_and_harm_nobody():
    state = gwa_jax.signals.update(
        gwa_jax.signals.init("margin", 3), logits=jnp.asarray([[1.0, 0.0]] * 3),
        targets=jnp.zeros(3, jnp.int32), ids=jnp.asarray([-2, 3, 1]),
    )  # fmt: skip
    np.testing.assert_allclose(gwa_jax.signals.values(state)["margin"], [np.nan, 1.0, np.nan])
    assert int(state.omitted) == 2
    assert int(gwa_jax.signals.end_epoch(state)[0].omitted) == 2


def test_one_output_is_a_sigmoid():
    names, rng = ["margin", "sample_loss", "gradient_norm", "correct"], np.random.default_rng(4)
    names = [name for name in names if name in SIGNALS]
    logits = rng.standard_normal((ROWS, 1)).astype(np.float32)
    latents = rng.standard_normal((ROWS, D)).astype(np.float32)
    batch = {"logits": logits, "latents": latents, "targets": rng.integers(0, 2, ROWS)}
    state = jax.jit(lambda state, batch: gwa_jax.signals.update(state, **batch))(
        gwa_jax.signals.init([*names, "variability"], ROWS), batch | {"ids": np.arange(ROWS)}
    )
    found = gwa_jax.signals.values(state)
    wanted = sample_signals(names, **batch)
    loss = np.logaddexp(0.0, np.where(batch["targets"] == 1, -1, 1) * logits[:, 0])
    np.testing.assert_allclose(found["sample_loss"], loss, rtol=1e-5)
    close({name: found[name] for name in names}, wanted)


def test_padding_with_the_id_minus_one_is_left_out_silently():
    state = gwa_jax.signals.update(
        gwa_jax.signals.init("margin", np.int64(3)), logits=jnp.asarray([[1.0, 0.0]] * 3),
        targets=jnp.zeros(3, jnp.int32), ids=jnp.asarray([-1, -1, 1]),
    )  # fmt: skip
    np.testing.assert_allclose(gwa_jax.signals.values(state)["margin"], [np.nan, 1.0, np.nan])
    assert int(state.omitted) == 0


LOGITS, TARGETS, IDS = np.zeros((2, C), np.float32), np.zeros(2, int), np.arange(2)


def of_margin(samples=2, **given):
    return lambda: gwa_jax.signals.update(
        gwa_jax.signals.init("margin", samples),
        **{"logits": LOGITS, "targets": TARGETS, "ids": IDS} | given,
    )


CASES = [
    ("an unknown signal", lambda: gwa_jax.signals.init("margn"), ValueError, "near: 'margin'"),
    ("no signal", lambda: gwa_jax.signals.init([]), ValueError, "at least one"),
    ("a signal by id without ids", lambda: gwa_jax.signals.init("variability"),
     ValueError, "`num_samples` must be given for 'variability'"),
    ("a size that is none", lambda: gwa_jax.signals.init("margin", 0),
     ValueError, "`num_samples` must be an integer"),
    ("ids without num_samples", of_margin(None), ValueError, "num_samples=None"),
    ("num_samples without ids", of_margin(ids=None), ValueError, "no ids and num_samples=2"),
    ("ids out of range", of_margin(ids=IDS + 1), ValueError, r"in 0\.\.1, got 1\.\.2; .*padding"),
    ("ids of another batch", of_margin(ids=IDS[:1]), ValueError, "`ids` must have one entry"),
    ("soft targets", of_margin(targets=LOGITS), ValueError, "after mixup no class is the label"),
    ("floating targets", of_margin(targets=LOGITS[:, 0]), ValueError, "`targets` must be"),
    ("targets in half precision", of_margin(targets=jnp.zeros(2, jnp.bfloat16)),
     ValueError, r"`targets` must be class numbers .*, got bfloat16 .*\(2,\); cast"),
    ("boolean targets", of_margin(targets=TARGETS > 0),
     ValueError, r"`targets` must be class numbers .*, got bool .*\(2,\); cast"),
    ("latents of another batch", of_margin(latents=LOGITS[:1]), ValueError, "`latents` must be"),
    ("no samples", of_margin(logits=LOGITS[:0], targets=TARGETS[:0], ids=IDS[:0]),
     ValueError, "at least one sample"),
    ("no latents", lambda: gwa_jax.signals.update(
        gwa_jax.signals.init("gradient_norm"), logits=LOGITS, targets=TARGETS),
     ValueError, "`latents` must be given for 'gradient_norm'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_what_does_not_fit_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


# Eight host devices


@pytest.fixture(scope="module")
def apart():
    """Distances from one device, by the way the work was split."""
    script = Path(__file__).with_name("signal_devices.py")
    places = {str(Path(package.__file__).parent.parent) for package in (gwa_core, gwa_jax)}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", ["data parallel", "state by samples", "shard_map", "shard_map, without ids"]
)
def test_eight_devices_give_what_one_gives(apart, way):
    assert apart[way] < 1e-5
