"""What is hostile, odd or mistaken gets one sentence, in little time and memory."""

from __future__ import annotations

import csv
import json
import os
import pty
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from adapters.offline.runs import ABOUT, N, write
from adapters.offline.test_cli import gwa
from safetensors.numpy import save_file

from gwa_offline import RunFolder, analyse
from gwa_offline.files.given import read_given
from gwa_offline.files.places import distinct_names
from gwa_offline.store import FeaturesError

pytest.importorskip("typer")


def make_run(path, **about):
    run = RunFolder.create(path, **(ABOUT | about))
    write(run, range(4), **{"accuracy": 0.5, "=1+1": 0.25})
    return path


def on_terminal(*args, columns=100, **env):
    """Return what a command draws on a terminal of that width."""
    main, side = pty.openpty()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm-256color", **env}
    command = [sys.executable, "-m", "gwa_offline", *map(str, args)]
    process = subprocess.Popen(
        command, stdout=side, stderr=side, env=env | {"COLUMNS": str(columns)}
    )
    os.close(side)
    text = b""
    try:
        while chunk := os.read(main, 4096):
            text += chunk
    except OSError:
        pass
    os.close(main)
    return process.wait(), text.decode()


# --- names ----------------------------------------------------------------------------------------


def test_names_that_collide_grow_by_their_parents(tmp_path):
    runs = [make_run(tmp_path / place) for place in ("exp1/run", "exp2/run", "other")]
    assert distinct_names(runs) == ["exp1/run", "exp2/run", "other"]
    assert distinct_names([runs[0], runs[0]]) == ["run", "run"]
    done = gwa("analyse", *runs, "--out", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    for name in ("exp1/run", "exp2/run", "other"):
        report = json.loads((tmp_path / "both" / name / "report.json").read_text())
        assert report["name"] == name
    rows = json.loads(gwa("compare", *runs, "--json").stdout)["rows"]
    assert [row["name"] for row in rows] == ["exp1/run", "exp2/run", "other"]


def test_names_are_no_markup(tmp_path):
    run = make_run(
        tmp_path / "[/]", class_names=["[/]", "[red]\tx\x1b[2J"], targets=np.arange(N) % 2
    )
    code, text = on_terminal("samples", run, "--lowest", "4")
    assert code == 0, text
    assert "[/]" in text
    assert "[red]\\tx\\x1b" in text
    assert "\x1b[2J" not in text
    assert len(gwa("samples", run, "--lowest", 4).stdout.splitlines()) == 5


def test_a_name_that_the_terminal_has_no_letters_for(tmp_path):
    run = make_run(tmp_path / "run", class_names=["猫", "犬"], targets=np.arange(N) % 2)
    done = subprocess.run(
        [sys.executable, "-m", "gwa_offline", "samples", str(run), "--lowest", "2"],
        capture_output=True,
        text=True,
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\\u72ac" in done.stdout or "\\u732b" in done.stdout


def test_a_spreadsheet_takes_names_for_text(tmp_path):
    report = analyse(make_run(tmp_path / "run"))
    with report.to_csv(tmp_path)[0].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert "'=1+1" in rows[0]
    assert "=1+1" not in rows[0]
    assert float(rows[3]["mean"]) == report.epochs[3].summary.mean


def test_columns_go_whole_where_there_is_no_room(tmp_path):
    run = make_run(tmp_path / "run")
    wide, narrow = (on_terminal("analyse", run, columns=width)[1] for width in (100, 60))
    assert "kurtosis" in wide
    assert "Too narrow for SE" in narrow
    separation = analyse(run).epochs[3].summary.separation
    assert f"{separation:.3f}" in narrow
    assert all(len(line) <= 60 or "Keep" in line or "─" not in line for line in narrow.splitlines())


# --- sizes ----------------------------------------------------------------------------------------


def write_bomb(path, name="weight", rows=200_000):
    """An archive of little bytes that says truly that it holds many zeros."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 512), }}"
    text = header.ljust(117) + "\n"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(f"{name}.npy", "w", force_zip64=True) as member,
    ):
        member.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
        for _ in range(rows // 2000):
            member.write(bytes(2000 * 512 * 4))
    return path


def test_a_head_that_inflates_beyond_reason_is_not_read(tmp_path):
    bomb = write_bomb(tmp_path / "w.npz")
    assert bomb.stat().st_size < 1e6
    start = time.perf_counter()
    with pytest.raises(FeaturesError, match=r"inflates from 0\.\d+ MB to 0\.41 GB"):
        read_given(bomb, "weight")
    assert time.perf_counter() - start < 2.0


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("w.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
        (
            "w.npy",
            b"\x93NUMPY\x01\x00v\x00"
            + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000, 500), }".ljust(
                118
            ),
        ),
    ],
)
def test_a_header_of_exabytes_is_a_sentence(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FeaturesError, match="truncated"):
        read_given(tmp_path / name, "weight")


@pytest.mark.skipif(sys.platform != "linux", reason="a file with a hole")
def test_a_header_that_is_there_and_too_long_is_not_parsed(tmp_path):
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write((2**30).to_bytes(8, "little"))
        file.truncate(2**30 + 100)
    with pytest.raises(FeaturesError, match="has a header of 1073741824 bytes"):
        read_given(tmp_path / "w.safetensors", "weight")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 10**12}, "`num_samples` is 1000000000000, but no epoch has more than 40"),
        ({"num_classes": 10**10}, "`num_classes` must be at most 16777216, got 10000000000"),
        ({"num_samples": True}, "`num_samples` must be an integer, got bool"),
        ({"schema": True}, "`schema` is True"),
        ({"beta": True}, "`beta` must be one number, got True"),
    ],
)
def test_a_header_that_no_run_has(tmp_path, changes, message):
    file = make_run(tmp_path / "run") / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    done = gwa("analyse", tmp_path / "run")
    assert done.returncode == 2
    assert message in done.stderr


def test_the_lines_of_a_run_are_read_in_linear_time(tmp_path):
    make_run(tmp_path / "run")
    file = tmp_path / "run" / "epochs.jsonl"
    record = json.loads(file.read_text().splitlines()[0])
    seconds = []
    for count in (5_000, 20_000):
        lines = (json.dumps(record | {"epoch": i, "step": i}) for i in range(count))
        file.write_text("\n".join(lines) + "\n")
        start = time.process_time()
        assert len(RunFolder.open(tmp_path / "run").epochs()) == count
        seconds.append(time.process_time() - start)
    # Four times the lines; the quadratic reader took sixteen times as long, and 3 s for these.
    assert seconds[1] < max(8 * seconds[0], 1.0)


def test_a_summary_that_no_scores_have(tmp_path):
    run = make_run(tmp_path / "run")
    text = (run / "epochs.jsonl").read_text().splitlines()
    text[1] = json.dumps(json.loads(text[1]) | {"variance": 1e308})
    (run / "epochs.jsonl").write_text("\n".join(text) + "\n")
    done = gwa("analyse", run)
    assert done.returncode == 2
    assert "line 2: `variance` is 1e+308, which scores in [-1, 1] do not give" in done.stderr


def test_a_metric_that_overflows_is_shown_and_not_drawn(tmp_path):
    run = make_run(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):
        line["accuracy"] = -1.7e308 if i % 2 else 1.7e308
    (run / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = gwa("compare", run, run, run, "--metric", "accuracy", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pearson"] is None


# --- mistakes -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    make_run(tmp_path / "exp" / "run")
    rng = np.random.default_rng(0)
    arrays = {"latents": rng.normal(size=(30, 4)), "targets": np.arange(30) % 3}
    np.savez(tmp_path / "bare.npz", **arrays)
    layers = {"body.weight": np.ones((4, 4)), "fc.weight": np.ones((3, 4)), "fc.bias": np.ones(3)}
    save_file(layers, tmp_path / "model.safetensors")
    (tmp_path / "head.ckpt").write_bytes(b"PK")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["samples", "exp"], "exp: is no run folder, but exp/run is one; give its path"),
        (["stop", "exp/run", "--metric", "accuracy"], "`--metric accuracy` needs `--rule metric`"),
        (["analyse", "exp/run", "--metric", "accuracy"], "needs `--rule metric`"),
        (["analyse", ""], "a path is empty"),
        (["stop", ""], "a path is empty"),
        (["analyse", "bare.npz", "--weight", ""], "a path is empty"),
        (["analyse", "exp/run", "--out", ""], "a path is empty"),
        (["analyse", "bare.npz", "--weight", "head.ckpt"], "holds pickled objects; save it by"),
        (["analyse", "bare.npz", "--head", "head.ckpt:fc"], "holds pickled objects"),
        (["analyse", "bare.npz", "--weight", "exp"], "exp: is a folder; `weight` must be a .npy"),
        (["analyse", "bare.npz", "--weight", "model.safetensors"], "`--head FILE:LAYER` reads the head of a checkpoint"),
        (["analyse", "model.safetensors"], "this looks like a checkpoint: its head is read by `--head model.safetensors:LAYER`"),
        (["analyse", "bare.npz", "--head", "model.safetensors"], "has no layer '' with a weight; name one behind a colon: body, fc"),
        (["analyse", "bare.npz", "--head", "model.safetensors:cls"], "has no layer 'cls'"),
        (["analyse", "bare.npz", "--head", "model.safetensors:fc", "--bias", "b.npy"], "b.npy: there is no such file"),
        (["analyse", "bare.npz", "--head", "bare.npz:fc"], "a head is read from .safetensors"),
        (["analyse", "exp/run", "--head", "model.safetensors:fc"], "has no features to use it for"),
        (["analyse", "bare.npz", "--columns", "latents"], "`--columns` must be pairs such as"),
        (["analyse", "bare.npz", "--columns", "z=latents"], "`columns` must name latents, weight"),
        (["analyse", "bare.npz", "--columns", "latents=z"], "`columns` calls it 'z', there is latents"),
        (["analyse", "bare.npz", "--head", "model.safetensors:fc", "--class-names", "a,b"], "must have C = 3 names, got 2"),
        (["analyse", "part-*.npz"], "no file fits the pattern"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence(folder, args, message):
    done = gwa(*args, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("gwa: ")
    assert message in done.stderr
