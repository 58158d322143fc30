"""The analysis on a cluster against the analysis in one process."""

from __future__ import annotations

import re
from dataclasses import asdict, fields, replace
from functools import partial

import numpy as np
import pytest
from backends import require

distributed = pytest.importorskip("distributed")

import gwa_offline
from gwa_core import GWATracker
from gwa_dask import analyse
from gwa_offline import FeaturesError, RunFolder, open_features
from gwa_offline.analysis import parts, parts_of

pytestmark = pytest.mark.usefixtures("small_parts")
N, C, EPOCHS = 9000, 4, 3


def check_same(found, want):
    """Scores to the last bit, what is made of moments to 1e-9, and the same decisions."""
    for field in fields(want):
        ours, theirs = getattr(found, field.name), getattr(want, field.name)
        if field.name in ("label_quality", "average_shares", "class_gwa", "class_mean"):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
        elif isinstance(theirs, np.ndarray):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
        elif field.name == "decision":
            for name, value in asdict(theirs).items():
                same = np.testing.assert_equal
                if name in ("values", "standard_errors"):
                    same = partial(np.testing.assert_allclose, rtol=1e-9)
                same(getattr(ours, name), value)
        elif field.name not in ("epochs", "selection"):
            assert ours == theirs
    assert found.selection.step == want.selection.step
    assert found.selection.reason == want.selection.reason
    for ours, theirs in zip(found.epochs, want.epochs, strict=True):
        assert (ours.source, ours.metrics) == (theirs.source, theirs.metrics)
        if theirs.glass_delta is not None:
            assert ours.glass_delta == pytest.approx(theirs.glass_delta, rel=1e-9)
        for name, value in theirs.summary._asdict().items():
            same = value if value is None else pytest.approx(value, rel=1e-9, nan_ok=True)
            assert getattr(ours.summary, name) == same
    for by in ("label_quality", "scores"):
        np.testing.assert_array_equal(found.rank(200, by=by), want.rank(200, by=by))


def without(*names):
    return lambda arrays: {name: x for name, x in arrays.items() if name not in names}


def in_order(arrays):
    """Rows in the order of the samples, which need no ids."""
    order = np.argsort(arrays["ids"])
    heads = ("weight", "bias")
    kept = {name: x if name in heads else x[order] for name, x in arrays.items()}
    return without("ids")(kept)


def soft(arrays):
    classes = np.eye(C, dtype=np.float32)[arrays["targets"]]
    return arrays | {"targets": 0.9 * classes + 0.1 / C}


def with_logits(arrays):
    return arrays | {"logits": arrays["latents"] @ arrays["weight"].T + arrays["bias"]}


def some_missing(arrays):
    """A tenth of the samples, and latents that are not finite."""
    latents = arrays["latents"].copy()
    latents[::1000] = np.nan
    return {
        name: x if name in ("weight", "bias") else x[::10]
        for name, x in (arrays | {"latents": latents}).items()
    }


CHANGES = {
    "one file": (1, dict),
    "parts": (5, dict),
    "many small parts": (40, dict),
    "no ids": (5, in_order),
    "no bias": (3, without("bias")),
    "soft targets": (3, soft),
    "saved logits": (3, with_logits),
    "half precision": (3, lambda arrays: arrays | {"latents": arrays["latents"].astype("f2")}),
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_numbers_are_those_of_one_process(client, save_epochs, tmp_path, case):
    parts, change = CHANGES[case]
    folder = save_epochs(parts, change)
    done = []
    found = analyse(
        folder, client=client, folder=tmp_path / "run", progress=lambda *x: done.append(x)
    )
    check_same(found, gwa_offline.analyse(folder))
    assert len(done) > EPOCHS
    assert done[-1] == (EPOCHS * N, EPOCHS * N)
    left = sorted(path.name for path in (tmp_path / "run" / "parts").iterdir())
    assert left == ["000000.json", "000001.json", "000002.json"]


def test_many_files_in_one_task(client, save_epochs, monkeypatch):
    monkeypatch.setattr(parts, "PART_ROWS", N)
    monkeypatch.setattr("gwa_dask.analysis.LARGEST", 1 << 14)
    folder = save_epochs(80)
    check_same(analyse(folder, client=client), gwa_offline.analyse(folder))


def test_compressed_files(client, save_epochs):
    folder = save_epochs(3, write=np.savez_compressed)
    check_same(analyse(folder, client=client), gwa_offline.analyse(folder))


def test_samples_that_are_missing_or_not_finite(client, save_epochs):
    folder = save_epochs(1, some_missing)
    found = analyse(folder, client=client)
    assert found.epochs[0].summary.omitted > 0
    check_same(found, gwa_offline.analyse(folder))


def test_parquet(client, tmp_path):
    pa = require("pyarrow")
    parquet = require("pyarrow.parquet")
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(N, 3)).astype(np.float32)
    (tmp_path / "epoch_0").mkdir()
    for part, rows in enumerate(np.array_split(np.arange(N), 3)):
        table = {"latents": pa.array(list(latents[rows])), "targets": rows % 2}
        parquet.write_table(pa.table(table), tmp_path / "epoch_0" / f"part-{part}.parquet")
    source = open_features(tmp_path, weight=rng.normal(size=(2, 3)))
    check_same(analyse(source, client=client), gwa_offline.analyse(source))
    table = {"latents": pa.array(list(latents)), "targets": np.arange(N) % 2}
    for rows in (1000, None):
        parquet.write_table(pa.table(table), tmp_path / "one.parquet", row_group_size=rows)
        source = open_features(tmp_path / "one.parquet", weight=rng.normal(size=(2, 3)))
        made = parts_of(source.epochs[0].features, num_samples=N, rows=2048)
        assert len(made) == 5
        check_same(analyse(source, client=client), gwa_offline.analyse(source))


def test_options_and_what_is_given_beside_the_files(client, save_epochs):
    folder = save_epochs(2, without("targets", "weight", "bias"))
    rng = np.random.default_rng(0)
    given = {"weight": rng.normal(size=(C, 6)), "targets": rng.integers(0, C, N)}
    source = open_features(folder, **given)
    options = {"label_smoothing": 0.1, "class_weights": np.arange(1.0, C + 1)}
    found = analyse(source, client=client, **options)
    check_same(found, gwa_offline.analyse(source, **options))
    plain = gwa_offline.analyse(source)
    assert not np.array_equal(found.scores, plain.scores)


def test_one_output_with_a_sigmoid(client, save_epochs):
    def binary(arrays):
        changed = {"weight": arrays["weight"][:1], "targets": arrays["targets"] % 2}
        return without("bias")(arrays | changed)

    folder = save_epochs(2, binary)
    source = open_features(folder, loss="binary_cross_entropy")
    check_same(analyse(source, client=client), gwa_offline.analyse(source))


def test_a_run_with_scores_of_its_training(client, tmp_path):
    rng = np.random.default_rng(0)
    weight, targets = rng.normal(size=(C, 6)), np.arange(N) % C
    run = RunFolder.create(
        tmp_path / "run", num_samples=N, num_classes=C, adapter="test", targets=targets
    )
    tracker = GWATracker(N)
    for epoch in range(4):
        latents = rng.normal(size=(N, 6)) + 0.3 * epoch * weight[targets]
        tracker.update(np.tanh(rng.normal(size=N) + 0.1 * epoch), ids=np.arange(N))
        # Not every epoch keeps its features.
        kept = {"latents": latents, "weight": weight, "targets": targets} if epoch % 2 else None
        run.write_epoch(
            tracker.end_epoch(), scores=tracker.scores, features=kept, metrics={"acc": epoch}
        )
    want = gwa_offline.analyse(tmp_path / "run")
    assert [record.glass_delta is None for record in want.epochs] == [True, False, True, False]
    for _ in range(2):  # the second call finds all there
        check_same(analyse(tmp_path / "run", client=client, folder=tmp_path / "out"), want)
    run.truncate(3)
    tracker.update(np.tanh(rng.normal(size=N)), ids=np.arange(N))
    run.write_epoch(tracker.end_epoch()._replace(epoch=3), scores=tracker.scores)
    want = gwa_offline.analyse(tmp_path / "run")
    check_same(analyse(tmp_path / "run", client=client, folder=tmp_path / "out"), want)


def test_the_folder_is_a_run_that_other_tools_read(client, save_epochs, tmp_path):
    folder = save_epochs(2)
    found = analyse(folder, client=client, folder=tmp_path / "run")
    again = gwa_offline.analyse(tmp_path / "run")
    check_same(
        replace(
            again,
            name=found.name,
            epochs=tuple(replace(record, source="offline") for record in again.epochs),
        ),
        found,
    )


def test_the_current_client_is_the_default(client, save_epochs):
    folder = save_epochs()
    assert distributed.Client.current() is client
    check_same(analyse(folder), gwa_offline.analyse(folder))


def test_a_folder_of_another_source_is_refused(client, save_epochs, tmp_path):
    analyse(save_epochs(1), client=client, folder=tmp_path / "run")
    other = save_epochs(1, lambda arrays: some_missing(in_order(arrays)), name="other")
    with pytest.raises(FeaturesError, match="has the run of another source: `num_samples` is 9000"):
        analyse(other, client=client, folder=tmp_path / "run")
    RunFolder.create(tmp_path / "mine", num_samples=N, num_classes=C, adapter="test")
    with pytest.raises(FeaturesError, match="`adapter` is 'test' there and 'dask' here"):
        analyse(tmp_path / "features", client=client, folder=tmp_path / "mine")


def check_run(folder, report):
    """The run in a folder is that of the report, as the tools that read it see it."""
    again = gwa_offline.analyse(folder)
    records = tuple(replace(record, source="offline") for record in again.epochs)
    check_same(replace(again, name=report.name, epochs=records), report)


def test_a_folder_has_the_labels_and_names_of_the_last_call(client, save_epochs, tmp_path):
    folder, run = save_epochs(2, without("targets")), tmp_path / "run"
    labels = np.arange(N) % C
    others = np.where(np.arange(N) < 600, (labels + 1) % C, labels)
    partly = np.where(np.arange(N) < 5, -1, labels)  # a run has labels for all or for none
    names = ["a", "b", "c", "d"]
    written = {}
    for told in (
        {"targets": labels},
        {"targets": others},
        {"targets": others, "class_names": names},
        {"targets": others, "class_names": names[::-1]},
        {"targets": others},
        {"targets": labels, "class_names": names},
    ):
        source = open_features(folder, **told)
        report = analyse(source, client=client, folder=run)
        check_same(report, gwa_offline.analyse(source))
        check_run(run, report)
        found = (run / "scores" / "000000.npy").stat().st_mtime_ns
        key = told["targets"] is labels, "class_names" in told
        if key == (False, True):  # names alone are no reason to score again
            assert found == written[False, False]
        written[key] = found
    source = replace(source, targets=partly)
    analyse(source, client=client, folder=run)
    assert RunFolder.open(run).targets() is None


@pytest.mark.parametrize("gone", range(EPOCHS))
def test_a_folder_has_the_epochs_of_the_last_call(client, save_epochs, tmp_path, gone):
    folder, run = save_epochs(2), tmp_path / "run"
    analyse(folder, client=client, folder=run)
    (folder / f"epoch_{gone}").rename(tmp_path / "elsewhere")
    report = analyse(folder, client=client, folder=run)
    check_same(report, gwa_offline.analyse(folder))
    check_run(run, report)
    (tmp_path / "elsewhere").rename(folder / f"epoch_{gone}")
    report = analyse(folder, client=client, folder=run)
    check_run(run, report)


def test_a_folder_has_no_scores_that_its_source_lost(client, tmp_path):
    source = RunFolder.create(tmp_path / "source", num_samples=3, num_classes=2, adapter="test")
    tracker = GWATracker(3)
    tracker.update(np.array([0.1, 0.5, 0.9]), ids=np.arange(3))
    classes = np.array([0, 1, 1])
    source.write_epoch(tracker.end_epoch(), scores=tracker.scores, predictions=classes)
    for kind in ("predictions", "scores"):
        analyse(tmp_path / "source", client=client, folder=tmp_path / "run")
        assert getattr(RunFolder.open(tmp_path / "run"), kind)(0) is not None
        (tmp_path / "source" / kind / "000000.npy").unlink()
        analyse(tmp_path / "source", client=client, folder=tmp_path / "run")
        assert getattr(RunFolder.open(tmp_path / "run"), kind)(0) is None


def test_logits_of_one_file_that_are_not_those_of_the_head(client, save_epochs, tmp_path):
    folder = save_epochs(7, with_logits)
    file = folder / "epoch_1" / "part-5.npz"
    with np.load(file) as loaded:
        arrays = dict(loaded)
    np.savez(file, **arrays | {"logits": np.tanh(arrays["logits"]) ** 2})
    said = r"epoch_1/part-5\.npz: `logits` must be .*, got row 0 that .*before the softmax"
    with pytest.raises(FeaturesError, match=said):
        analyse(folder, client=client, folder=tmp_path / "run")
    # A file that is right where a task begins in its middle counts its own rows.

    def turned(arrays):
        arrays = with_logits(arrays)
        arrays["logits"][4096:] *= -1
        return arrays

    folder = save_epochs(1, turned, name="other")
    # Which of the refused parts fails first is left to the workers.
    said = r"part-0\.npz: `logits` must be .*, got row (\d+) that"
    with pytest.raises(FeaturesError, match=said) as caught:
        analyse(folder, client=client)
    row = int(re.search(said, str(caught.value))[1])
    assert row >= 4096
    assert row % 2048 == 0


def test_class_weights_that_do_not_fit(client, save_epochs):
    with pytest.raises(ValueError, match=r"`class_weights` must be \(C,\) = \(4,\)"):
        analyse(save_epochs(), client=client, class_weights=np.ones(3))


def test_what_to_keep_of_each_sample(client, save_epochs, tmp_path):
    folder = save_epochs(3, lambda arrays: arrays | {"width": 2 * arrays["ids"]})
    index = tmp_path / "rows.csv"
    index.write_text("id,place\n" + "".join(f"{i},p{i}\n" for i in range(N)))
    told = {"keep": ["width"], "index": index}
    found = analyse(folder, client=client, **told)
    want = gwa_offline.analyse(folder, **told)
    assert list(found.kept) == list(want.kept) == ["width", "place"]
    np.testing.assert_array_equal(found.kept["width"], 2 * np.arange(N))
    np.testing.assert_array_equal(found.kept["place"], want.kept["place"])
    check_same(replace(found, kept={}), replace(want, kept={}))
    for name, value in told.items():
        with pytest.raises(ValueError, match="`keep` and `index` must go to `open_features`"):
            analyse(open_features(folder), client=client, **{name: value})


def test_rows_in_memory_go_to_the_workers_by_a_file(client):
    rng = np.random.default_rng(0)
    data = {"latents": rng.normal(size=(N, 3)), "weight": np.eye(2, 3), "targets": np.arange(N) % 2}
    check_same(analyse(open_features(data), client=client), gwa_offline.analyse(data))


def test_rows_in_memory_beside_files_are_refused(client, save_epochs):
    folder = save_epochs()
    with np.load(folder / "epoch_0" / "part-0.npz") as loaded:
        arrays = dict(loaded)
    more = arrays | {"ids": arrays["ids"] + N}
    source = open_features([folder / "epoch_0" / "part-0.npz", more])
    assert source.num_samples == 2 * N
    with pytest.raises(
        FeaturesError, match=r"a task is 0\.\d+ MB, as some of its rows are in memory"
    ):
        analyse(source, client=client)
