"""Workers and schedulers that die, and what the next call finds."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

distributed = pytest.importorskip("distributed")

import dask

import gwa_offline
from gwa_core import Moments
from gwa_dask import analyse, analysis
from gwa_dask.cluster import Batch
from gwa_dask.tasks import run_task
from gwa_offline import FeaturesError

pytestmark = pytest.mark.usefixtures("small_parts")
N, EPOCHS = 9000, 3


class StoppedError(Exception):
    """Raised by a test in the middle of an analysis."""


def after(rows, what):
    """A progress callback that does something once, when so many rows are done."""
    left = [what]

    def progress(done, total):
        if done >= rows and left:
            left.pop()()

    return progress


def stop():
    raise StoppedError


def part_files(run):
    return {path.name: path.stat().st_mtime_ns for path in (run / "parts").glob("*.npz")}


def check_same(found, want):
    np.testing.assert_array_equal(found.scores, want.scores)
    np.testing.assert_allclose(found.label_quality, want.label_quality, rtol=1e-9)
    np.testing.assert_array_equal(found.rank(200), want.rank(200))
    assert found.best_epoch == want.best_epoch


def test_a_worker_that_is_killed_is_replaced(save_epochs):
    folder = save_epochs(4)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        pids = sorted(client.run(os.getpid).values())
        progress = after(N // 2, lambda: os.kill(pids[0], signal.SIGKILL))
        found = analyse(folder, client=client, progress=progress)
        client.wait_for_workers(2, timeout=30)
        assert sorted(client.run(os.getpid).values()) != pids
    check_same(found, gwa_offline.analyse(folder))


def serve(folder):
    """Start a scheduler and two workers, each a process of its own, and return them."""
    path = os.pathsep.join(sys.path)
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    options = {"env": environment, "stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    file = folder / "scheduler.json"

    def start(module, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments]
        return subprocess.Popen([*command, "--scheduler-file", str(file)], **options)

    scheduler = start("dask_scheduler", "--no-dashboard", "--port", "0", "--host", "127.0.0.1")
    workers = [start("dask_worker", "--nthreads", "1", "--no-dashboard") for _ in range(2)]
    return file, scheduler, workers


def end(process):
    process.kill()
    process.wait()


@pytest.fixture
def served(tmp_path):
    file, scheduler, workers = serve(tmp_path)
    yield file, scheduler
    for process in (scheduler, *workers):
        end(process)


def wait_for(file):
    for _ in range(300):
        if file.exists():
            return str(file)
        time.sleep(0.1)
    raise TimeoutError(file)


def test_a_scheduler_that_is_killed_and_the_next_call(client, served, save_epochs, tmp_path):
    folder, run, (file, scheduler) = save_epochs(4), tmp_path / "run", served
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        distributed.Client(scheduler_file=wait_for(file), set_as_default=False) as other,
    ):
        other.wait_for_workers(2, timeout=60)
        progress = after(N + 1, lambda: end(scheduler))
        with pytest.raises(ConnectionError, match=r"part-\d\.npz.*the scheduler was lost"):
            analyse(folder, client=other, folder=run, progress=progress)
    left = part_files(run)
    assert len(left) >= 4
    assert len(gwa_offline.RunFolder.open(run).epochs()) < EPOCHS
    seen = []
    found = analyse(
        folder, client=client, folder=run, progress=after(1, lambda: seen.append(part_files(run)))
    )
    # What was there is as it was, and was not made again.
    assert left.items() <= seen[0].items()
    check_same(found, gwa_offline.analyse(folder))
    assert part_files(run) == {}


def test_a_process_that_is_killed_and_the_next_call(client, save_epochs, tmp_path):
    folder, run = save_epochs(4), tmp_path / "run"
    code = f"""
import os, signal
from gwa_offline.analysis import parts
parts.PART_ROWS = 2048
from gwa_dask import analyse
from distributed import Client
if __name__ == "__main__":
    def progress(done, total):
        if done > {N} + {N} // 2:
            os.kill(os.getpid(), signal.SIGKILL)
    with Client(n_workers=1, processes=False, dashboard_address=":0") as client:
        analyse({str(folder)!r}, client=client, folder={str(run)!r}, progress=progress)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [record[0].epoch for record in gwa_offline.RunFolder.open(run).epochs()] == [0]
    left = part_files(run)
    seen = []
    found = analyse(
        folder, client=client, folder=run, progress=after(1, lambda: seen.append(part_files(run)))
    )
    assert left.items() <= seen[0].items()
    check_same(found, gwa_offline.analyse(folder))


def test_a_source_that_has_changed_is_scored_again(client, save_epochs, tmp_path):
    folder, run = save_epochs(2), tmp_path / "run"
    analyse(folder, client=client, folder=run)
    for epoch in (1, 2):
        file = folder / f"epoch_{epoch}" / "part-1.npz"
        with np.load(file) as loaded:
            arrays = dict(loaded)
        arrays["latents"][:] = arrays["latents"][::-1].copy()
        np.savez(file, **arrays)
        want = gwa_offline.analyse(folder)
        first = (run / "scores" / "000000.npy").stat().st_mtime_ns
        check_same(analyse(folder, client=client, folder=run), want)
        assert (run / "scores" / "000000.npy").stat().st_mtime_ns == first
    with pytest.raises(StoppedError):
        analyse(folder, client=client, folder=run, label_smoothing=0.1, progress=after(N, stop))
    # Other options: nothing that is there counts.
    check_same(analyse(folder, client=client, folder=run), want)


@pytest.fixture
def tasks(client, save_epochs, tmp_path, monkeypatch):
    """The tasks of an epoch, which are never given to a cluster."""
    folder = save_epochs(3)
    made = []

    def take(_, tasks):
        made.extend(tasks)
        stop()

    monkeypatch.setattr(analysis, "Batch", take)
    with pytest.raises(StoppedError):
        analyse(folder, client=client, folder=tmp_path / "run")
    made[0].token.touch()  # as while the call lasts
    return made


def test_nothing_as_long_as_the_rows_goes_through_the_scheduler(tasks):
    from distributed.protocol.pickle import dumps

    assert len(tasks) > 2
    for task in tasks:
        found = run_task(task)
        assert isinstance(found, Moments)
        assert len(dumps(task)) < 8000
        assert len(dumps(found)) < 8000


def test_a_part_file_counts_only_if_it_is_whole_and_of_this_source(tasks):
    task = tasks[0]
    path = task.file.path
    want = run_task(task)
    scores = task.file.read()
    first = path.stat().st_mtime_ns
    assert float(run_task(task).m8) == float(want.m8)
    assert path.stat().st_mtime_ns == first
    for damaged in (path.read_bytes()[:-100], b"", b"PK\x03\x04 nothing"):
        path.write_bytes(damaged)
        assert task.file.read() is None
        assert float(run_task(task).mean) == float(want.mean)
        np.testing.assert_array_equal(task.file.read().scores, scores.scores)
    stale = task._replace(file=task.file._replace(fingerprint="0" * 32))
    assert stale.file.read() is None
    run_task(stale)
    assert task.file.read() is None
    assert list(path.parent.glob(".*")) == []


def test_a_worker_that_does_not_see_a_file(client, tasks):
    file = Path(tasks[0].part.files[0])
    file.rename(file.with_name("elsewhere.npz"))
    message = r"part-0\.npz: it cannot be seen from here; on worker tcp://"
    with pytest.raises(FeaturesError, match=message):
        client.submit(run_task, tasks[0], pure=False).result()
    file.write_bytes(b"another")
    with pytest.raises(FeaturesError, match="it has changed since it was opened"):
        client.submit(run_task, tasks[0], pure=False).result()


def test_a_worker_that_does_not_see_the_folder(client, tasks, tmp_path):
    lost = tasks[0]._replace(token=tmp_path / "nowhere" / "parts" / "call-0")
    with pytest.raises(FeaturesError, match=r"worker tcp://.* cannot see it; `folder` must be on"):
        client.submit(run_task, lost, pure=False).result()


def test_a_worker_with_another_version(client, tasks):
    other = tasks[0]._replace(version="0.0.1")
    with pytest.raises(ImportError, match=re.escape("pip install 'gwa-core[dask]==0.0.1' there")):
        client.submit(run_task, other, pure=False).result()


class Failing:
    """A path that cannot be opened, and notes each time that somebody tries."""

    def __init__(self, notes, error):
        self.notes, self.error = notes, error

    def __fspath__(self):
        with self.notes.open("a") as file:
            file.write("x")
        raise self.error


@pytest.mark.parametrize(
    ("error", "times", "said"),
    [
        (FeaturesError("it is damaged"), 1, "^it is damaged"),
        (ImportError("it lacks Dask"), 1, "^it lacks Dask"),
        (ValueError("it does not fit"), 1, r"part-0\.npz.*: ValueError: it does not fit"),
        (OSError("the disk is full"), 3, r"part-0\.npz.*: OSError: the disk is full"),
    ],
)
def test_what_another_try_cannot_change_is_tried_once(client, tasks, tmp_path, error, times, said):
    notes = tmp_path / "notes"
    task = tasks[0]._replace(class_weights=Failing(notes, error))
    with pytest.raises((FeaturesError, ImportError), match=said):
        Batch(client, [task]).wait(int)
    assert len(notes.read_text()) == times


def test_nothing_of_a_call_that_fails_is_left(client, save_epochs, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        analyse(save_epochs(4), client=client, folder=run, progress=after(1, stop))
    assert list((run / "parts").glob("call-*")) == []


class Deadly:
    """A path that ends the process that opens it."""

    def __fspath__(self):
        os._exit(1)


def test_a_part_of_which_every_worker_dies(tasks):
    task = tasks[0]._replace(class_weights=Deadly())
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster, set_as_default=False) as other,
        pytest.raises(FeaturesError, match=r"part-0\.npz.*: each worker that had it died"),
    ):
        Batch(other, [task]).wait(int)
