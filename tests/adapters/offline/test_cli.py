"""The command line as a user meets it: output, exit codes, bad input; in two real processes too."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from gwa_core import (
    BestMetric,
    DipThenMax,
    GWATracker,
    MaxBimodality,
    MaxGWA,
    average_shares,
    select_epoch,
)
from gwa_offline import RunFolder
from gwa_offline.__main__ import main
from gwa_offline.analysis.view import average_sentence, pulling_words, ties_words
from gwa_offline.app import demo as demonstration

for library in ("typer", "sklearn"):
    pytest.importorskip(library)


def gwa(*args, cwd="."):
    """Run a command in this process, its output going into a pipe."""
    out, errors = io.StringIO(), io.StringIO()
    command = ["gwa", *map(str, args)]
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            main()
    return subprocess.CompletedProcess(
        command, end.value.code or 0, out.getvalue(), errors.getvalue()
    )


def process(*args):
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "gwa_offline", *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A short demonstration: what is printed does not depend on how far a training went."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demonstration, "EPOCHS", 6)
        return demonstration.run_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    rng = np.random.default_rng(0)
    targets = np.arange(60) % 3
    weight = rng.normal(size=(3, 5))
    path = tmp_path_factory.mktemp("features") / "f.npz"
    latents = rng.normal(size=(60, 5)) + weight[targets]
    np.savez(path, latents=latents, weight=weight, targets=targets)
    np.savez(path.with_name("bare.npz"), latents=latents)
    np.save(path.with_name("w.npy"), weight)
    np.save(path.with_name("t.npy"), targets)
    return path


def test_analyse_prints_plain_text_into_a_pipe(demo):
    done = process("analyse", demo.run)
    assert done.returncode == 0, done.stderr
    assert gwa("analyse", demo.run).stdout == done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].split("\t")[:2] == ["epoch", "GWA"]
    assert f"Keep epoch {demo.report.selection.step}: largest separation" in done.stdout
    assert average_sentence(demo.report) in done.stdout
    assert ties_words(demo.report) in done.stdout
    assert f"{pulling_words(demo.report)}; gwa samples lists them." in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_analyse_json_is_one_value_and_writes_files(features, tmp_path):
    done = gwa("analyse", features, "--json", "--out", tmp_path / "out", "--parquet")
    value = json.loads(done.stdout)
    assert value["num_samples"] == 60
    assert value["average_shares"] == [1.0]
    assert value["decision"]["signal"] == "separation"
    assert value["decision"]["tied"] == [True]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "report.json",
        "epochs.csv",
        "samples.csv",
        "epochs.parquet",
        "samples.parquet",
    }


def test_missing_arrays_come_from_options(features):
    bare = features.with_name("bare.npz")
    weight, targets = features.with_name("w.npy"), features.with_name("t.npy")
    whole = json.loads(gwa("analyse", features, "--json").stdout)
    parts = json.loads(
        gwa("analyse", bare, "--weight", weight, "--targets", targets, "--json").stdout
    )
    assert parts["scores"] == whole["scores"]


def test_stop_names_the_epoch_of_each_rule(demo):
    by_rule = {
        rule: json.loads(gwa("stop", demo.run, "--rule", rule, "--json").stdout)["best_epoch"]
        for rule in ("separation", "bimodality", "gwa", "dip")
    }
    best = json.loads(
        gwa("stop", demo.run, "--rule", "metric", "--metric", "test_accuracy", "--json").stdout
    )
    near = json.loads(gwa("stop", demo.run, "--json").stdout)["near_ties"]
    assert near == np.flatnonzero(demo.report.decision.tied).tolist()
    assert len(near) > 1
    assert f"; {ties_words(demo.report)}.\n" in gwa("stop", demo.run).stdout
    assert best["near_ties"] is None
    assert by_rule["separation"] == demo.report.selection.step
    history = [record.summary for record in demo.report.epochs]
    others = {"bimodality": MaxBimodality(), "gwa": MaxGWA(), "dip": DipThenMax()}
    for name, rule in others.items():
        assert by_rule[name] == select_epoch(history, rule).step
    assert best["best_epoch"] == demo.highest_epoch
    assert best["rule"] == repr(BestMetric(metric="test_accuracy"))


def test_average_writes_the_mean_of_the_checkpoints(demo, tmp_path):
    heads = []
    for epoch in range(6):
        with np.load(RunFolder.open(demo.run).features_path(epoch)) as saved:
            # The format has no order: what is not in C order would be written as if it were.
            weight = np.ascontiguousarray(saved["weight"])
            heads.append({"weight": weight, "bn.running_mean": saved["bias"]})
        save_file(heads[-1], tmp_path / f"{epoch:02d}.safetensors")
    paths = ["--checkpoints", tmp_path / "{epoch:02d}.safetensors", "--out"]
    done = gwa("average", demo.run, *paths, tmp_path / "mean.safetensors", "--warmup", 1)
    assert done.returncode == 0, done.stderr
    shares = average_shares([record.summary for record in demo.report.epochs], warmup=1)
    got = load_file(tmp_path / "mean.safetensors")
    want = np.tensordot(shares, np.stack([head["weight"] for head in heads]).astype(float), 1)
    np.testing.assert_allclose(got["weight"], want, rtol=1e-6, atol=1e-9)
    lines = done.stdout.splitlines()
    assert lines[0] == "epoch\tshare\tcheckpoint"
    assert lines[1] == f"1\t{100 * shares[1]:.2f} %\t{tmp_path / '01.safetensors'}"
    assert "torch.optim.swa_utils.update_bn" in lines[-2]
    assert lines[-1] == f"wrote {tmp_path / 'mean.safetensors'}"
    options = ["--power", 0, "--warmup", 0.5, "--signal", "margin", "--json"]
    value = json.loads(
        gwa("average", demo.run, *paths, tmp_path / "m.safetensors", *options).stdout
    )
    rows = [{"margin": record.metrics["margin"]} for record in demo.report.epochs]
    shares = average_shares(rows, power=0, warmup=0.5, signal="margin")
    assert [epoch["epoch"] for epoch in value["epochs"]] == np.flatnonzero(shares).tolist()
    assert [epoch["share"] for epoch in value["epochs"]] == pytest.approx(shares[shares > 0])
    assert value["batch_norm"] is True
    again = gwa("average", demo.run, *paths, tmp_path / "m.safetensors")
    assert again.returncode == 2
    assert again.stderr.startswith("gwa: `out` must be a new file")


def test_samples_lists_suspicious_labels_and_draws_them(demo, tmp_path):
    figure = tmp_path / "sheet.png"
    done = gwa("samples", demo.run, "--lowest", 5, "--images", demo.images, "--figure", figure)
    assert done.returncode == 0, done.stderr
    ids = [int(line.split("\t")[0]) for line in done.stdout.splitlines()[1:6]]
    assert ids == demo.report.rank(5).tolist()
    assert figure.read_bytes().startswith(b"\x89PNG")
    # The sheet is what is listed: one row of it is less high than five.
    many = ["--lowest", 45, "--highest", 5, "--images", demo.images, "--figure"]
    assert gwa("samples", demo.run, *many, tmp_path / "many.png").returncode == 0
    heights = []
    for path in (figure, tmp_path / "many.png"):
        with Image.open(path) as picture:
            heights.append(picture.height)
    assert heights[1] > 3 * heights[0]
    bad = gwa("samples", demo.run, "--images", demo.run / "targets.npy")
    assert (bad.returncode, bad.stdout) == (2, "")
    per_class = gwa("samples", demo.run, "--lowest", 2, "--per-class", "--json")
    assert len(json.loads(per_class.stdout)) == 20


def test_compare_and_report(demo, tmp_path):
    done = gwa("compare", demo.run, demo.run, "--metric", "test_accuracy", "--json")
    assert json.loads(done.stdout)["rows"][0]["best_epoch"] == demo.report.selection.step
    page, rule = tmp_path / "page.html", ["--metric", "el2n", "--mode", "min"]
    shown = ["--images", demo.images, "--figures", tmp_path]
    done = gwa("report", demo.run, "--out", page, *shown, *rule)
    assert done.returncode == 0, done.stderr
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "Correlations are with el2n" in page.read_text(encoding="utf-8")
    assert (tmp_path / "gwa.png").exists()
    assert (tmp_path / "signals.png").exists()


def test_demo_says_the_same_to_people_and_machines(tmp_path, monkeypatch):
    monkeypatch.setattr(demonstration, "EPOCHS", 2)
    short = demonstration.run_demo(tmp_path / "short")
    done = gwa("demo", "--out", tmp_path / "d", "--json")
    value = json.loads(done.stdout)
    assert value["found"] == short.found
    assert value["average_accuracy"] == short.average_accuracy
    assert value["best_epoch"] == value["selection"]["step"] == short.report.best_epoch
    text = gwa("demo", "--out", tmp_path / "d").stdout
    assert f"Best epoch: {short.report.best_epoch} (" in text
    assert f"highest, at epoch {short.highest_epoch} " in text
    assert f"average of the weights       {100 * short.average_accuracy:.1f} %" in text
    assert f"Of the 130 most suspicious labels {short.found}" in text


def test_an_epoch_cut_short_is_not_kept_and_said(tmp_path):
    run = RunFolder.create(tmp_path / "run", num_samples=60, num_classes=2, adapter="test")
    tracker = GWATracker(60)
    for scores in (np.linspace(-0.1, 0.3, 60), np.tile([-0.1, 0.9], 4)):
        tracker.update(scores, ids=np.arange(len(scores)))
        run.write_epoch(tracker.end_epoch())
    done = gwa("stop", run.path)
    assert done.stdout.startswith("Keep epoch 0: largest separation")
    assert "1 of 2 epochs was cut short (1)" in done.stdout


def test_a_stored_column_chooses_the_epoch_in_every_command(demo):
    rule = ["--rule", "metric", "--metric", "test_accuracy"]
    records = RunFolder.open(demo.run).epochs()
    accuracy = [metrics["test_accuracy"] for _, metrics in records]
    for mode, best in (("max", np.argmax(accuracy)), ("min", np.argmin(accuracy))):
        rows = json.loads(gwa("compare", demo.run, *rule, "--mode", mode, "--json").stdout)["rows"]
        assert rows[0]["best_epoch"] == best
        found = gwa("samples", demo.run, *rule, "--mode", mode, "--lowest", "3", "--json")
        assert len(json.loads(found.stdout)) > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["analyse", "nowhere.npz"], "no such file"),
        (["analyse", "text.npz"], "text.npz"),
        (["analyse", "text.xyz"], "supported are"),
        (["stop", "f.npz", "--rule", "metric"], "needs `--metric COLUMN`"),
        (["stop", "f.npz", "--rule", "metric", "--metric", "acc"], "'acc'"),
        (["stop", "f.npz", "--rule", "labelwave"], "prediction_changes"),
        (["analyse", "f.npz", "--loss", "hinge"], "`loss` must be one of"),
        (["analyse", "f.npz", "--label-smoothing", "2"], "`label_smoothing` must be in"),
        (["samples", "f.npz", "--images", "nowhere"], "nowhere"),
        (["report", "f.npz", "--metric", "acc"], "`metric` must be one of"),
        (["report", "f.npz", "--out", "text.npz/x.html"], "text.npz"),
        (["average", "f.npz", "--checkpoints", "x", "--out", "y"], "f.npz is no run folder"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(args, message, features):
    folder = features.parent
    for name in ("text.npz", "text.xyz"):
        (folder / name).write_text("not features")
    done = gwa(*args, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("gwa: ")
    assert done.stdout == ""


def test_unknown_option_and_missing_argument(features):
    assert gwa("analyse").returncode == 2
    assert gwa("analyse", features, "--nope").returncode == 2
    assert gwa("stop", features, "--rule", "nope").returncode == 2


def test_help_and_version():
    assert "demo" in gwa("--help").stdout
    assert "Usage" in gwa("analyse", "-h").stdout
    assert gwa("--version").stdout.startswith("gwa-core ")


def test_terminal_gets_a_table(demo):
    """On a terminal, and only there, the output is drawn."""
    main, side = pty.openpty()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "100"}
    env.update(TERM="xterm-256color")
    process = subprocess.Popen(
        [sys.executable, "-m", "gwa_offline", "analyse", str(demo.run)],
        stdout=side,
        stderr=side,
        env=env,
    )
    os.close(side)
    text = b""
    try:
        while chunk := os.read(main, 4096):
            text += chunk
    except OSError:
        pass
    assert process.wait() == 0
    os.close(main)
    assert "─" in text.decode()
    assert f"{demo.report.selection.step} *" in text.decode()
