"""A run that is watched while another process writes it, is killed, resumes and ends."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from gwa_core import (
    BestMetric,
    EarlyStopper,
    MaxSeparation,
    average_shares,
    select_epoch,
)
from gwa_offline import RunFolder, analyse, begin_run, end_run
from gwa_offline.analysis.progress import progress_of
from gwa_offline.store import FeaturesError

for library in ("typer", "rich"):
    pytest.importorskip(library)

from adapters.offline.runs import ABOUT, EPOCHS, N, scores_of, write
from adapters.offline.test_cli import gwa

from gwa_offline.app import follow
from gwa_offline.app.follow import Look, watch
from gwa_offline.app.screen import NewRows, columns_of, draw_bars, draw_look, quiet_sentence

WRITER = textwrap.dedent(
    """
    import os, sys, time
    sys.path[:0] = sys.argv[3:]
    from adapters.offline.runs import ABOUT, EPOCHS, write
    from gwa_offline.store import begin_run, end_run
    path, last = sys.argv[1], int(sys.argv[2])
    run = begin_run(path, planned=EPOCHS, **ABOUT)
    for epoch in range(last):
        time.sleep(0.15)
        write(run, [epoch])
    if last == EPOCHS:
        end_run(path)
    else:
        with open(path + "/epochs.jsonl", "a") as file:
            file.write('{"epoch": 9, "st')
        os.write(1, b"half a line\\n")
        time.sleep(60)
    """
)


@contextmanager
def started(*command, **options):
    """A process that is ended whatever happens."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    places = os.pathsep.join(sys.path)
    env = {**os.environ, "PYTHONPATH": places, "COLUMNS": "80", "TERM": "xterm", "LINES": "24"}
    # What a shell starts in the background ignores Ctrl-C, and hands that on.
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen([sys.executable, *map(str, command)], env=env, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def writing(path, last=EPOCHS):
    return started("-c", WRITER, path, last, *sys.path)


def following(path, *options, **pipes):
    return started("-m", "gwa_offline", "follow", path, *options, **pipes)


@pytest.fixture
def run(tmp_path):
    return begin_run(tmp_path / "run", planned=EPOCHS, **ABOUT)


def test_a_run_is_followed_from_before_it_exists_until_it_ends(tmp_path):
    path = tmp_path / "run"
    with following(path) as follower:
        # It waits by now, or it would have said what is wrong.
        assert follower.stderr.readline() == f"Waiting for {path}: there is no run yet.\n"
        with writing(path) as writer:
            first = [follower.stdout.readline(), follower.stdout.readline()]
            assert writer.poll() is None, "its line comes while the training still runs"
            # `communicate` would lose what `readline` has read ahead.
            out, errors = follower.stdout.read(), follower.stderr.read()
            follower.wait(timeout=60)
            assert writer.wait() == 0, writer.stderr.read()
    assert (follower.returncode, errors) == (0, "")
    lines = [*"".join(first).splitlines(), *out.splitlines()]
    assert lines[0] == "epoch\tseparation\tkeep\tnegative\thealthy"
    rows = [line.split("\t") for line in lines[1 : EPOCHS + 1]]
    assert [row[0] for row in rows] == [str(epoch) for epoch in range(EPOCHS)]
    history = [summary for summary, _ in RunFolder.open(path).epochs()]
    stopper = EarlyStopper(MaxSeparation(), total_steps=EPOCHS)
    for row, summary in zip(rows, history, strict=True):
        stopper.observe(summary)
        assert row[2] == ("-" if stopper.best_step is None else str(stopper.best_step))
        assert float(row[1]) == pytest.approx(summary.separation, rel=1e-2)
        assert row[3] == f"{100 * summary.negative_fraction:.1f} %"
    said = lines[EPOCHS + 1 :]
    stop = gwa("stop", path).stdout.splitlines()
    # It does not read the scores of earlier epochs, which say what is about as good.
    stop[0] = re.sub(r"; .*\.$", ".", stop[0])
    assert [line for line in said if "pull against" not in line] == stop
    assert "10 of 40 labels pull against the model (25.0 %)." in said


def test_a_killed_run_ends_the_waiting_and_half_a_line_is_no_epoch(tmp_path):
    path = tmp_path / "run"
    with writing(path, last=2) as writer:
        assert writer.stdout.readline() == "half a line\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    begin = time.monotonic()
    with following(path, "--wait", "0.02") as follower:
        out, errors = follower.communicate(timeout=60)
    assert time.monotonic() - begin > 1.2
    assert follower.returncode == 1
    lines = out.splitlines()
    assert [line.split("\t")[0] for line in lines[1:3]] == ["0", "1"]
    assert lines[3].startswith("Keep epoch ")
    assert " so far: " in lines[3]
    assert "nothing new for 0.02 minutes" in errors
    assert "--wait" in errors
    assert "Traceback" not in errors


def test_ctrl_c_leaves_what_is_known(run):
    write(run, range(2))
    with following(run.path) as follower:
        for _ in range(3):
            follower.stdout.readline()
        follower.send_signal(signal.SIGINT)
        out, errors = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert out.startswith("Keep epoch ")
    assert errors == ""


def test_a_terminal_shows_a_curve_that_grows(run):
    write(run, range(2))
    main, side = pty.openpty()
    seen = bytearray()

    def read():
        try:
            while chunk := os.read(main, 4096):
                seen.extend(chunk)
        except OSError:
            pass

    def wait_for(text):
        end = time.monotonic() + 60
        while text not in bytes(seen).decode(errors="ignore"):
            assert time.monotonic() < end, bytes(seen).decode(errors="ignore")
            time.sleep(0.02)

    with following(run.path, stdout=side, stderr=side) as follower:
        os.close(side)
        reader = threading.Thread(target=read)
        reader.start()
        wait_for("run: 2 of 6 epochs, running")
        write(run, range(2, EPOCHS))
        wait_for("run: 6 of 6 epochs, running")
        end_run(run.path)
        assert follower.wait(timeout=60) == 0
        reader.join()
    os.close(main)
    last = bytes(seen).decode().rpartition("run: 6 of 6 epochs, ended")[2]
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last)
    assert "separation │" in plain
    assert "█" in plain
    assert "10 of 40 labels pull against the model" in plain
    assert plain.count("Keep epoch") == 1


def test_a_look_at_a_finished_run_says_what_analyse_says(run):
    write(run, range(EPOCHS))
    done = gwa("follow", run.path, "--wait", 0)
    assert done.returncode == 0, done.stderr
    assert "running" not in done.stdout
    assert done.stderr == ""
    report = analyse(run.path)
    assert f"Keep epoch {report.best_epoch} so far: {report.selection.reason}" in done.stdout
    end_run(run.path)
    assert f"Keep epoch {report.best_epoch}: " in gwa("follow", run.path).stdout


def test_a_metric_is_waited_for_while_the_training_goes_on(run):
    write(run, [0, 1])
    args = ["follow", run.path, "--rule", "metric", "--metric", "acc"]
    waiting = gwa(*args, "--wait", "0")
    assert (waiting.returncode, waiting.stderr) == (0, "")
    assert "Nothing to keep so far" in waiting.stdout
    end_run(run.path)
    ended = gwa(*args)
    assert ended.returncode == 2
    assert "the column 'acc'" in " ".join(ended.stderr.split())


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["file.npz"], 2, "gwa: file.npz is a file; what can be watched is the folder of a run"),
        (["run", "--rule", "metric"], 2, "needs `--metric COLUMN`"),
        (["run", "--wait", "-1"], 2, "--wait"),
        (["nowhere", "--wait", "0.001"], 1, "there is no run after 0.001 minutes"),
        (["broken"], 2, "run.json is damaged"),
    ],
)
def test_bad_input_is_one_sentence(run, args, code, message):
    write(run, [0])
    folder = run.path.parent
    (folder / "file.npz").write_text("x")
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text("{")
    done = gwa("follow", *args, cwd=folder)
    assert done.returncode == code
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_progress_is_that_of_a_live_training_with_its_plan(run):
    begin_run(run.path, planned=40, **ABOUT)
    run = RunFolder.open(run.path)
    write(run, range(EPOCHS), acc=0.5)
    progress = progress_of(run)
    history = [summary for summary, _ in run.epochs()]
    # Four of forty planned epochs are the warm-up, and not a tenth of the six so far.
    want = select_epoch(history, total_steps=40)
    assert progress.selection == want
    assert want.step == 4
    assert progress.kept == (None, None, None, None, 4, 4)
    np.testing.assert_allclose(progress.average_shares, average_shares(history, total_steps=40))
    assert (progress.negative, progress.labels) == (10, N)
    assert not any("No epoch qualifies" in text for text in progress.messages)
    assert progress_of(run, BestMetric(metric="acc")).values.tolist() == [0.5] * EPOCHS
    run.truncate(2)
    early = progress_of(run)
    assert early.kept == (None, None)
    text = str(draw_look(look(run), 80, 24))
    assert "Nothing to keep so far: no step qualifies after the warm-up." in text


def test_labels_come_from_the_newest_scores_or_else_the_summary(run):
    write(run, range(3))
    (run.path / "scores" / "000002.npy").unlink()
    assert (progress_of(run).negative, progress_of(run).labels) == (
        np.count_nonzero(np.float32(scores_of(1)) < 0),
        N,
    )
    for epoch in (0, 1):
        (run.path / "scores" / f"{epoch:06d}.npy").unlink()
    summary = run.epochs()[2][0]
    assert progress_of(run).negative == round(summary.negative_fraction * N) == 10


def look(run, quiet=0.0, since=None):
    since = time.time() if since is None else since
    return Look(path=run.path, progress=progress_of(run), since=since, quiet=quiet)


def test_epochs_that_are_written_anew_come_anew(run):
    rows = NewRows()
    assert rows.take(look(run)) == []
    write(run, range(3))
    assert [row[0] for row in rows.take(look(run))] == ["epoch", "0", "1", "2"]
    assert rows.take(look(run)) == []
    run.truncate(1)
    assert rows.take(look(run)) == []
    write(run, range(1, 4))
    assert [row[0] for row in rows.take(look(run))] == ["1", "2", "3"]


def test_what_is_quiet_is_said_once_with_its_time(run):
    write(run, [0])
    then = time.time() - 3 * 86400
    assert quiet_sentence(look(run, quiet=59.0)) is None
    text = quiet_sentence(look(run, quiet=61.0, since=then))
    assert time.strftime("since %Y-%m-%d %H:%M:%S:", time.localtime(then)) in text
    drawn = str(draw_look(look(run, quiet=61.0, since=then), 50, 24))
    assert text in " ".join(drawn.split())
    # A live display crops what is wider.
    assert max(map(len, drawn.splitlines())) <= 50
    rows = NewRows()
    # What was dead before the command began is said at its first look.
    moments = (None, then, then, None, then)
    said = [rows.note(look(run, 0.0, since)) for since in moments]
    assert said == [None, text, None, None, text]
    end_run(run.path)
    ended = Look(
        path=run.path, progress=progress_of(RunFolder.open(run.path)), since=then, quiet=99
    )
    assert quiet_sentence(ended) is None


def test_a_training_that_writes_and_drops_epochs_is_no_trouble(run, monkeypatch):
    monkeypatch.setattr(follow, "INTERVAL", 0.0)
    write(run, range(EPOCHS))
    stop = threading.Event()

    def training():
        while not stop.is_set():
            run.truncate(1)
            write(run, range(1, EPOCHS))
        end_run(run.path)

    thread = threading.Thread(target=training)
    thread.start()
    seen = set()
    try:
        for number, found in enumerate(watch(run.path, wait=30.0)):
            seen.add(len(found.progress.epochs))
            if number == 500:
                stop.set()
    finally:
        stop.set()
        thread.join()
    assert found.ended
    assert len(seen) > 1
    assert len(found.progress.epochs) == EPOCHS


def test_watching_sees_a_run_that_begins_anew_and_one_that_goes(run):
    write(run, range(2))
    looks = watch(run.path, wait=30.0)
    assert len(next(looks).progress.epochs) == 2
    run.truncate(0)
    begin_run(run.path, planned=9, **ABOUT)
    fresh = next(looks).progress
    assert (fresh.epochs, fresh.planned) == ((), 9)
    assert "No epoch has ended yet." in str(draw_look(look(RunFolder.open(run.path)), 80, 24))
    (run.path / "run.json").unlink()
    assert next(looks).progress is None
    for wait in (-1.0, np.nan):
        with pytest.raises(ValueError, match="`wait` must be at least 0"):
            next(watch(run.path, wait=wait))
    with pytest.raises(FeaturesError, match="is a file"):
        next(watch(Path(__file__)))


@pytest.mark.parametrize("width", [20, 80, 200])
@pytest.mark.parametrize("height", [3, 24])
def test_the_picture_fits_the_terminal(run, width, height):
    write(run, range(EPOCHS))
    run = RunFolder.open(run.path)
    for planned in (EPOCHS, 5000):
        run.planned = planned
        lines = str(draw_look(look(run), width, height)).splitlines()
        drawn = [line for line in lines if "│" in line]
        assert max(map(len, drawn)) <= max(width, 22)
        assert len(drawn) <= 12
        (keep,) = [line for line in drawn if line.lstrip().startswith("keep")]
        # Of 5000 planned epochs the first 500 are the warm-up.
        assert keep.endswith("▲") == (planned == EPOCHS)


def test_bars_are_as_high_as_their_values():
    rows = draw_bars(np.array([0.0, 1.0, np.nan, 4.0]), columns_of(4, 4), 2, low=0.0)
    assert rows == ["   █", " ▄ █"]
    # The smallest is seen, of equal values each is full, and none is nothing.
    assert draw_bars(np.array([2.0, 3.0]), columns_of(2, 2), 1) == ["▁█"]
    assert draw_bars(np.array([2.0, 2.0]), columns_of(2, 2), 1) == ["██"]
    assert draw_bars(np.array([np.nan]), columns_of(1, 4), 1) == ["    "]
    # Many values share a column, few take several, and what is planned is empty.
    assert draw_bars(np.arange(400.0), columns_of(400, 8), 1, low=0.0) == ["▁▂▃▄▅▆▇█"]
    assert draw_bars(np.array([1.0]), columns_of(3, 6), 1) == ["██    "]
    assert columns_of(1, 80).tolist() == [0, 4]
