"""Tasks of an epoch on a cluster: given to it, waited for, and told of when they fail."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from multiprocessing.resource_tracker import ensure_running
from types import FrameType
from uuid import uuid4

from distributed import Client, LocalCluster, as_completed
from distributed.comm.core import CommClosedError
from distributed.gc import disable_gc_diagnosis
from distributed.scheduler import KilledWorker

from gwa_core import Moments
from gwa_dask.tasks import Task, merge_moments, run_task
from gwa_offline.store import FeaturesError

__all__ = ["Batch", "connected", "open_cluster"]

# Moments that merge in one task.
FAN = 16

# Whether Ctrl-C was pressed while a cluster of this machine is open.
_PRESSED = threading.Event()


@contextmanager
def open_cluster(*, workers: int | None = None, scheduler: str | None = None) -> Iterator[Client]:
    """Start a cluster on this machine, or join one, for as long as the context lasts.

    Parameters
    ----------
    workers : int, optional
        Processes on this machine, each with one thread; default one for each core.
    scheduler : str, optional
        Address of a scheduler, ``tcp://address:port``. Its workers are used then.

    Yields
    ------
    distributed.Client
        What `analyse` takes. It does not become the current one.

    Raises
    ------
    ConnectionError
        If the scheduler does not answer.

    Notes
    -----
    A script that starts processes has its work behind ``if __name__ == "__main__":``, as they import
    it. Cost: about a second for a cluster on this machine. Its processes pass over Ctrl-C, which ends
    this one and then them, and their logs are silent: what fails is raised here.

    Examples
    --------
    >>> from gwa_dask import open_cluster
    >>> with open_cluster(workers=1) as client:  # doctest: +SKIP
    ...     report = analyse("features", client=client)
    """
    if scheduler is not None:
        try:
            client = Client(scheduler, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ConnectionError(
                f"{scheduler}: no scheduler answers ({error}); `dask scheduler` prints its address, "
                "tcp://address:port"
            ) from error
        with client:
            yield client
        return
    cores = os.cpu_count() or 1
    with _interrupts_held():
        own = LocalCluster(
            n_workers=workers or cores,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        )
    # Python drops a Ctrl-C that comes while the scheduler of this process watches the garbage collector.
    disable_gc_diagnosis()
    # A second Ctrl-C while they close would wait for them until each gives up.
    try:
        client = Client(own, set_as_default=False)
        try:
            with _interrupts_remembered():
                yield client
        finally:
            with _interrupts_held():
                client.close()
    finally:
        with _interrupts_held():
            own.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back from this thread, and for good from the threads and processes that it starts.

    A terminal sends it to all processes. The thread that begins here starts the workers, also those that
    take the place of dead ones, and each inherits what is held back.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # It would lift what is held back, were it started with the first worker.
    ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _interrupts_remembered() -> Iterator[None]:
    """Remember a Ctrl-C: Python drops its exception where it comes in a callback or a destructor."""
    usual = signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return

    def hear(number: int, frame: FrameType | None) -> None:
        _PRESSED.set()
        usual(number, frame)

    _PRESSED.clear()
    signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        _PRESSED.clear()


@contextmanager
def connected(client: Client | None) -> Iterator[Client]:
    """Yield the client given, the current one, or one of a cluster on this machine for a while."""
    if client is None:
        try:
            client = Client.current()
        except ValueError:
            with open_cluster() as own:
                yield own
            return
    yield client


class Batch:
    """The tasks of one epoch on a cluster.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    tasks : sequence of Task
        In the order of the rows.
    """

    def __init__(self, client: Client, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self._client = client
        name = uuid4().hex
        keys = [f"gwa-{name}-{number}" for number in range(len(tasks))]
        # A task repeats what may succeed by itself; a worker that dies does not count.
        self._parts = client.map(run_task, tasks, key=keys, pure=False)
        level = self._parts
        while len(level) > 1:
            groups = [level[i : i + FAN] for i in range(0, len(level), FAN)]
            level = [client.submit(merge_moments, group, pure=False) for group in groups]
        self._root = level[0]

    def wait(self, done: Callable[[int], object]) -> Moments:
        """Return the moments of the epoch.

        Parameters
        ----------
        done : callable
            Called with the number of rows of each part that is done.

        Returns
        -------
        gwa_core.Moments

        Raises
        ------
        FeaturesError
            If a part cannot be scored.
        ConnectionError
            If the scheduler is lost.
        """
        numbers = {future.key: number for number, future in enumerate(self._parts)}
        for future in as_completed(self._parts, loop=self._client.loop):
            if _PRESSED.is_set():
                raise KeyboardInterrupt
            part = self.tasks[numbers[future.key]].part
            with _telling(part):
                if future.status != "finished":
                    future.result()
            done(part.stop - part.start)
        with _telling(f"{self.tasks[0].part} and others"):
            return self._root.result()

    def cancel(self) -> None:
        """Drop what is not done."""
        if self._client.status == "running":
            self._client.cancel(self._parts)


@contextmanager
def _telling(what: object) -> Iterator[None]:
    """Turn what Dask raises into a sentence with the name of a part."""
    try:
        yield
    except KilledWorker as error:
        raise FeaturesError(
            f"{what}: each worker that had it died; the log of the workers says why, and their memory "
            "is the usual cause"
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise ConnectionError(
            f"{what}: the scheduler was lost; a call with the same `folder` goes on from the parts that "
            "are there"
        ) from error
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}, on a worker; pip install 'gwa-core[dask]' there") from error
    except (FeaturesError, ImportError, ConnectionError):
        raise
    except Exception as error:
        raise FeaturesError(f"{what}: {type(error).__name__}: {error}") from error
