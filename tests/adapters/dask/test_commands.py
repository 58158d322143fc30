"""`gwa analyse` with processes of its own and with a scheduler elsewhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from backends import require

pytest.importorskip("distributed")

from gwa_dask import FeaturesError, analyse, open_cluster
from gwa_offline.__main__ import main


@pytest.fixture
def gwa(monkeypatch, capsys):
    """Return a function that runs the command line and returns what it prints."""
    require("typer")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gwa", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    return run


def test_workers_change_nothing_that_is_printed(gwa, save_epochs, tmp_path):
    folder = save_epochs(2)
    code, alone = gwa("analyse", folder)
    assert not code
    code, shared = gwa("analyse", folder, "--workers", 2)
    assert (shared.err, shared.out) == (alone.err, alone.out)


def test_a_scheduler_and_relative_paths(gwa, client, save_epochs, tmp_path, monkeypatch):
    folder = save_epochs(2)
    monkeypatch.chdir(tmp_path)
    code, alone = gwa("analyse", folder.name, "--json")
    assert not code
    address = client.scheduler.address
    code, shared = gwa("analyse", folder.name, "--json", "--scheduler", address, "--out", "out")
    assert code == 0
    ours, theirs = json.loads(shared.out), json.loads(alone.out)
    assert (ours["name"], ours["selection"]["step"]) == (
        theirs["name"],
        theirs["selection"]["step"],
    )
    assert (tmp_path / "out" / "report.json").exists()
    # What was scored is a run of its own, which is read without the features.
    code, again = gwa("stop", "out/run")
    assert code == 0
    assert f"Keep epoch {ours['selection']['step']}" in again.out


def test_errors_are_a_sentence(gwa, save_epochs):
    folder = save_epochs()
    for arguments, sentence in {
        ("--workers", 1, "--scheduler", "tcp://127.0.0.1:1"): "names one; drop one",
        ("--scheduler", "nonsense://"): "no scheduler answers",
        ("--workers", 0): "greater than or equal to 1",
    }.items():
        code, printed = gwa("analyse", folder, *arguments)
        assert code == 2
        assert sentence in " ".join(printed.err.split())
        assert "Traceback" not in printed.err


def test_dask_that_is_missing_is_a_sentence(gwa, save_epochs, monkeypatch):
    monkeypatch.setitem(sys.modules, "gwa_dask", None)
    code, printed = gwa("analyse", save_epochs(), "--workers", 1)
    assert code == 2
    assert "pip install 'gwa-core[dask]'" in printed.err


def test_a_cluster_of_this_machine_ends_with_its_context():
    with open_cluster(workers=1) as client:
        assert len(client.nthreads()) == 1
        with pytest.raises(FeaturesError, match="no such file"):
            analyse("nowhere", client=client)
    assert client.status == "closed"


@pytest.fixture
def many_epochs(save_epochs, tmp_path):
    """Epochs for some seconds, which are one file."""
    file = save_epochs() / "epoch_0" / "part-0.npz"
    folder = tmp_path / "many"
    folder.mkdir()
    for epoch in range(100):
        os.link(file, folder / f"epoch_{epoch}.npz")
    return folder


def interrupted(folder, out, *arguments):
    """Press Ctrl-C in a terminal, when the analysis has begun."""
    command = [sys.executable, "-m", "gwa_offline", "analyse", folder, "--workers", "2", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(out)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [*map(str, command), "--quiet"],
        env=environment,
        start_new_session=True,
        # What a shell starts in the background ignores it, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **pipes,
    ) as process:
        while process.poll() is None and not any(
            file.stat().st_size for file in out.rglob("epochs.jsonl")
        ):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        printed = process.communicate(timeout=60)
    return process.returncode, *printed


class Unlucky:
    """Is interrupted where Python drops the exception."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ctrl_c_that_python_drops_is_not_forgotten(save_epochs, monkeypatch):
    folder = save_epochs(2)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with open_cluster(workers=1) as client:
            Unlucky()
            with pytest.raises(KeyboardInterrupt):
                analyse(folder, client=client)
        with open_cluster(workers=1) as client:
            assert len(analyse(folder, client=client).epochs) == 3
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("keeps", [True, False])
def test_ctrl_c_is_a_sentence_and_the_next_call_goes_on(gwa, many_epochs, tmp_path, keeps):
    place = tmp_path / "results"
    place.mkdir()
    options = ("--out", place / "out") if keeps else ()
    code, out, err = interrupted(many_epochs, place, *options)
    want = "the same call goes on from what is done, which --out keeps"
    if not keeps:
        want = "nothing is kept; with --out FOLDER a later call goes on from what is done"
    assert (code, out, err) == (130, "", f"gwa: interrupted; {want}\n")
    assert list(place.rglob("call-*")) == []
    assert list(place.glob("gwa-*")) == []
    if keeps:
        scores = place / "out" / "run" / "scores"
        first = scores / "000000.npy"
        written = first.stat().st_mtime_ns
        assert len(list(scores.iterdir())) < 100
        code, printed = gwa("analyse", many_epochs, "--workers", 2, "--json", *options)
        assert code == 0
        assert first.stat().st_mtime_ns == written
        assert len(json.loads(printed.out)["epochs"]) == 100


def test_what_a_worker_refuses_is_a_sentence_and_no_log(save_epochs, tmp_path):
    def squashed(arrays):
        return arrays | {"logits": np.full((len(arrays["latents"]), 4), [0.1, 0.2, 0.3, 0.4])}

    command = [sys.executable, "-m", "gwa_offline", "analyse", save_epochs(2, squashed)]
    command += ["--workers", "2", "--quiet", "--out", tmp_path / "out"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"gwa: .*part-\d\.npz: `logits` must be [^\n]*\n", done.stderr)
    assert list(tmp_path.rglob("call-*")) == []
