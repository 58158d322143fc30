"""The analysis of saved features on a cluster."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, NamedTuple

import numpy as np
from distributed import Client
from distributed.protocol.pickle import dumps
from numpy.typing import NDArray

from gwa_core import Moments, Rule, __version__
from gwa_dask.cluster import Batch, connected
from gwa_dask.staging import Staging
from gwa_dask.tasks import Task
from gwa_offline.analysis import EpochRecord, Report
from gwa_offline.analysis.analysis import conclude, record_of
from gwa_offline.analysis.parts import fingerprint_of, parts_of
from gwa_offline.analysis.scoring import check_class_weights
from gwa_offline.readers import Epoch, Features, Source, open_features
from gwa_offline.store import FeaturesError, RunFolder, name_classes

__all__ = ["analyse"]

# Tasks that wait at a time: enough for a large cluster, few enough for its scheduler.
WAITING = 1 << 12
# Bytes of a task, which holds places in files, and what each of its files may add.
LARGEST, EACH = 1 << 18, 1 << 12
# How often a temporary folder is emptied of what tasks that end leave in it.
SWEEPS = 10


def analyse(
    source: Any,
    *,
    client: Client | None = None,
    folder: str | os.PathLike[str] | None = None,
    rule: Rule | None = None,
    label_smoothing: float = 0.0,
    class_weights: NDArray[Any] | None = None,
    keep: Sequence[str] = (),
    index: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Analyse saved features or a run on a cluster: `gwa_offline.analyse`, with the parts as tasks.

    Parameters
    ----------
    source : Source, path or sequence of path
        What `open_features` returned or takes. All workers must see its files.
    client : distributed.Client, optional
        Of the cluster. Default the current one, or else a cluster of one process a core on this
        machine, until the analysis ends.
    folder : path, optional
        A run folder to write, on a file system that all workers share. If it has parts of this
        analysis, the analysis goes on from them, and replaces labels, class names and epochs that differ
        from the source. Default a temporary folder of this machine.
    rule : gwa_core.Rule, optional
        The stopping rule, default ``MaxSeparation()``.
    label_smoothing : float
        In [0, 1), as in the training; used for scores computed from features.
    class_weights : array of shape (C,), optional
        As in the training, for softmax cross-entropy; used like `label_smoothing`.
    keep, index
        See `open_features`; a source that is open has them already. This process reads them.
    progress : callable, optional
        Called as ``progress(done, total)`` with the number of rows scored.

    Returns
    -------
    Report
        The numbers of `gwa_offline.analyse`: the same scores to the last bit, moments to 1e-12.

    Raises
    ------
    FeaturesError
        If the source is damaged, its logits do not match its head, a worker does not see a file, or
        `folder` has another run. The message names the part.
    ConnectionError
        If the scheduler is lost. A call with the same `folder` then goes on.
    ImportError
        If a worker lacks gwa-core or has another version of it.
    ValueError
        If the source lacks the column that the rule reads, the class weights do not fit, or `keep` or
        `index` is given for a source that is open.

    Notes
    -----
    A task scores some ten thousand rows and leaves them in ``folder/parts``; only their moments go
    through the scheduler, and merge in a tree. This process reads headers, ids and labels, and writes
    the run in the order of the epochs. Workers that die are replaced by others. Cost: one matrix
    product of the latents with the weight per epoch, shared by the workers. Memory of this process:
    about 60 bytes a sample, whatever D, C and T.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from distributed import Client
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = folder.name + "/features.npz"
    >>> np.savez(file, latents=np.eye(4), weight=np.eye(2, 4), targets=np.arange(4) % 2)
    >>> with Client(n_workers=1, processes=False, dashboard_address=":0") as client:
    ...     report = analyse(file, client=client, folder=folder.name + "/run")
    >>> report.epochs[0].summary.count, report.scores.shape
    (4, (4,))
    >>> folder.cleanup()
    """
    if not isinstance(source, Source):
        source = open_features(_absolute(source), keep=keep, index=index)
    elif keep or index is not None:
        raise ValueError("`keep` and `index` must go to `open_features`, got a source that is open")
    weights = check_class_weights(class_weights, loss=source.loss, num_classes=source.num_classes)
    with ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(_scratch())
        writer = _Writer(source, Path(folder).absolute(), label_smoothing, weights)
        stack.callback(writer.staging.close)
        run = writer.measure(stack.enter_context(connected(client)), progress)
        report = conclude(
            source,
            writer.records,
            _Stored(run, source.epochs),
            lambda epoch: run.predictions(epoch.epoch),
            rule=rule,
        )
        writer.staging.clear()
    return report


@contextmanager
def _scratch() -> Iterator[str]:
    """Yield a folder that is gone at the end, though workers may write into it until it is."""
    folder = mkdtemp(prefix="gwa-")
    try:
        yield folder
    finally:
        for _ in range(SWEEPS):
            rmtree(folder, ignore_errors=True)
            if not Path(folder).exists():
                break


class _Stored(Sequence[NDArray[np.float32] | None]):
    """The scores of the epochs of a run, each mapped while it is looked at."""

    def __init__(self, run: RunFolder, epochs: Sequence[Epoch]) -> None:
        self._run, self._epochs = run, epochs

    def __len__(self) -> int:
        return len(self._epochs)

    def __getitem__(self, place: Any) -> Any:
        return self._run.scores(self._epochs[place].epoch)


def _absolute(source: Any) -> Any:
    """Return paths that mean the same in the folder of another process."""
    if isinstance(source, list | tuple):
        return [_absolute(part) for part in source]
    is_address = isinstance(source, str) and (not source or ":" in source)
    if isinstance(source, str | os.PathLike) and not is_address:
        return Path(source).absolute()
    return source


class _Job(NamedTuple):
    """An epoch whose parts are on the cluster, or have been in an earlier call."""

    epoch: Epoch
    rows: int | None  # of its features
    fingerprint: str
    tasks: Sequence[Task]
    batch: Batch | None
    moments: Moments | None


class _Writer:
    """Give out the parts of all epochs, and write a run folder in their order."""

    def __init__(
        self,
        source: Source,
        folder: Path,
        label_smoothing: float,
        class_weights: NDArray[np.float64] | None,
    ) -> None:
        self.source = source
        self.records: list[EpochRecord] = []
        with warnings.catch_warnings():
            # The half-written line of a call that was killed is no surprise.
            warnings.simplefilter("ignore", UserWarning)
            self.run = _open_run(folder, source)
            self.staging = Staging(folder)
            self._written = {record[0].epoch: record for record in self.run.epochs()}
        self._smoothing = label_smoothing
        self._weights = None
        if class_weights is not None:
            self._weights = self.staging.weights(class_weights)
        self._options = fingerprint_of(__version__, label_smoothing, class_weights)
        self._done = self._total = 0
        self._progress: Callable[[int, int], None] | None = None

    def measure(self, client: Client, progress: Callable[[int, int], None] | None) -> RunFolder:
        """Measure all epochs, and return the run that has them."""
        self._progress = progress
        jobs: deque[_Job] = deque()
        try:
            for epoch in self.source.epochs:
                jobs.append(self._begin(client, epoch))
                while len(jobs) > 1 and sum(len(job.tasks) for job in jobs) > WAITING:
                    self._end(client, jobs[0])
                    jobs.popleft()
            while jobs:
                self._end(client, jobs[0])
                jobs.popleft()
        except BaseException:
            for job in jobs:
                if job.batch is not None:
                    job.batch.cancel()
            raise
        return self.run

    def _begin(self, client: Client, epoch: Epoch) -> _Job:
        """Give the parts of an epoch to the cluster."""
        features = epoch.features
        if features is None:
            return _Job(epoch, None, "", (), None, None)
        rows = features.num_samples
        self._total = max(self._total, rows * len(self.source.epochs))
        tasks = self._tasks(epoch.epoch, features)
        fingerprint = fingerprint_of(*(task.file.fingerprint for task in tasks))
        moments = self.staging.noted(epoch.epoch, fingerprint)
        if moments is None or epoch.epoch not in self._written:
            return _Job(epoch, rows, fingerprint, tasks, Batch(client, tasks), None)
        self._report(rows)
        return _Job(epoch, rows, fingerprint, tasks, None, moments)

    def _tasks(self, epoch: int, features: Features) -> list[Task]:
        tasks = []
        for part in parts_of(
            features, num_samples=self.source.num_samples, folder=self.staging.folder
        ):
            fingerprint = fingerprint_of(self._options, part.fingerprint)
            file = self.staging.part(epoch, part.start, fingerprint)
            tasks.append(
                Task(part, file, self.staging.token, self._smoothing, self._weights, __version__)
            )
        if (size := len(dumps(tasks[0]))) > LARGEST + EACH * len(tasks[0].part.files):
            raise FeaturesError(
                f"{tasks[0].part}: a task is {size / 1e6:.3g} MB, as some of its rows are in memory; save "
                "them to files that the workers see"
            )
        return tasks

    def _report(self, rows: int) -> None:
        self._done += rows
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done))

    def _end(self, client: Client, job: _Job) -> None:
        """Wait for an epoch, and append it to the run."""
        epoch, batch, moments = job.epoch, job.batch, job.moments
        if batch is not None:
            moments = batch.wait(self._report)
        record = record_of(epoch, beta=self.source.beta, moments=moments, rows=job.rows)
        self.records.append(record)
        if batch is None and self._has(job, record):
            return
        # What was written of another source, and all after it.
        self.run.truncate(epoch.epoch)
        self._written = {n: found for n, found in self._written.items() if n < epoch.epoch}
        scores, predictions = epoch.scores, epoch.predictions
        if job.tasks:
            if batch is None:
                moments = Batch(client, job.tasks).wait(int)
            found, classes = self._gather(job.tasks)
            scores = found if scores is None else scores
            predictions = classes if predictions is None else predictions
            assert moments is not None  # noqa: S101  (of the parts)
            self.staging.note(epoch.epoch, job.fingerprint, moments)
        self.run.write_epoch(
            record.summary, scores=scores, predictions=predictions, metrics=epoch.metrics
        )

    def _has(self, job: _Job, record: EpochRecord) -> bool:
        """Return whether the run has this very epoch, from an earlier call."""
        epoch = job.epoch
        written = self._written.get(epoch.epoch)
        if written is None or repr(written) != repr((record.summary, dict(record.metrics))):
            return False
        pairs = (
            (epoch.scores, self.run.scores(epoch.epoch)),
            (epoch.predictions, self.run.predictions(epoch.epoch)),
        )
        # What the source does not have is of its features.
        return all((new is None and job.tasks) or _same(new, old) for new, old in pairs)

    def _gather(self, tasks: Sequence[Task]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Read what the workers left of an epoch."""
        scores = np.full(self.source.num_samples, np.nan, np.float32)
        predictions = np.full(self.source.num_samples, -1, np.int32)
        for task in tasks:
            found = task.file.read()
            if found is None:
                raise FeaturesError(
                    f"{task.part}: the scores that a worker left are not in {task.file.path}; "
                    "`folder` must be on a file system that all workers and this process share"
                )
            scores[found.ids] = found.scores
            predictions[found.ids] = found.predictions
        return scores, predictions


def _same(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other, equal_nan=True)


def _open_run(folder: Path, source: Source) -> RunFolder:
    """Open the run of an earlier call, or begin one."""
    about: dict[str, Any] = {
        "num_samples": source.num_samples,
        "num_classes": source.num_classes,
        "beta": source.beta,
        "loss": source.loss,
        "adapter": "dask",
    }
    names, targets = source.class_names, source.targets
    if targets is not None and (targets < 0).any():
        targets = None  # a run has a label for each sample
    about |= {"class_names": names, "targets": targets}
    if not (folder / "run.json").exists():
        return RunFolder.create(folder, **about)
    run = RunFolder.open(folder)
    for name in ("num_samples", "num_classes", "beta", "loss", "adapter"):
        if (found := getattr(run, name)) != (value := about[name]):
            raise FeaturesError(
                f"{folder} has the run of another source: `{name}` is {found!r} there and {value!r} "
                "here; choose another `folder`, or remove it"
            )
    if not _same(run.targets(), targets):
        # All scores are of the old labels.
        run.truncate(0)
        return RunFolder.create(folder, **about)
    if run.class_names != names:
        run = name_classes(folder, names)
    lacking = {record[0].epoch for record in run.epochs()} - {n.epoch for n in source.epochs}
    return run.truncate(min(lacking)) if lacking else run
