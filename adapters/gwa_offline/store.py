"""The run folder: the files of a training run, written so that a killed run can resume.

An epoch exists once its line in ``epochs.jsonl`` is complete. Its files are written before that
line, each whole: under a temporary name, then renamed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from gwa_core import EpochSummary
from gwa_offline.files import records
from gwa_offline.files.arrays import read_all
from gwa_offline.files.checks import (
    check_features,
    check_predictions,
    check_run_labels,
    check_scores,
    index,
    number,
)
from gwa_offline.files.errors import FeaturesError, blame
from gwa_offline.files.formats import open_npy

__all__ = ["FeaturesError", "RunFolder", "begin_run", "end_run", "name_classes"]


class RunFolder:
    """A training run on disk: one summary per epoch, and scores and features where saved.

    `create` and `open` return one. One process writes at a time; any number may read.

    Attributes
    ----------
    path : Path
        The folder.
    num_samples, num_classes : int
        N and C.
    class_names : tuple of str or None
        C names.
    beta : float
        The constant of Eq. 2 in the summaries.
    adapter : str
        The writer: "torch", "jax", "sklearn", ...
    loss : {"cross_entropy", "binary_cross_entropy"}
        The loss that the training used.
    status : {"running", "ended"} or None
        Whether the training goes on, where it tells: see `begin_run` and `end_run`.
    planned : int or None
        How many epochs it is to have, where it tells.

    Notes
    -----
    A killed run loses at most the current epoch. An adapter that resumes from a checkpoint opens
    the folder, drops the later epochs with `truncate`, and continues to write.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from gwa_core import GWATracker
    >>> folder = tempfile.TemporaryDirectory()
    >>> run = RunFolder.create(folder.name, num_samples=3, num_classes=2, adapter="mine")
    >>> tracker = GWATracker(3)
    >>> tracker.update(np.array([0.1, 0.5, 0.9]), ids=np.arange(3))
    >>> found = {"scores": tracker.scores, "predictions": np.array([1, 0, 1])}
    >>> run.write_epoch(tracker.end_epoch(), **found, metrics={"accuracy": 0.93})
    >>> run.epochs()[0][1]
    {'accuracy': 0.93}
    >>> run.scores(0).shape, run.predictions(0).tolist()
    ((3,), [1, 0, 1])
    >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.num_samples: int = header["num_samples"]
        self.num_classes: int = header["num_classes"]
        names = header["class_names"]
        self.class_names: tuple[str, ...] | None = None if names is None else tuple(names)
        self.beta = float(header["beta"])
        self.adapter: str = header["adapter"]
        self.loss: str = header["loss"]
        self.status: str | None = header.get("status")
        self.planned: int | None = header.get("planned")

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r}, N={self.num_samples}, C={self.num_classes})"

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        num_samples: int,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        beta: float = 1.2,
        adapter: str,
        loss: str = "cross_entropy",
        targets: Any = None,
    ) -> Self:
        """Start a run in a new folder, or in one without epochs.

        Parameters
        ----------
        path : path
            The folder. It is created if it does not exist.
        num_samples, num_classes : int
            N and C.
        class_names : sequence of str, optional
            C names.
        beta : float, default 1.2
            The constant of Eq. 2.
        adapter : str
            The writer: "torch", "jax", "sklearn", ...
        loss : {"cross_entropy", "binary_cross_entropy"}
            The loss that the training used. Scores computed from saved features use it. If it is
            found during training, create the run then: before the first `write_epoch`.
        targets : integer array of shape (N,), optional
            Given labels by sample id. With them the report has classes without saved features.

        Returns
        -------
        RunFolder

        Raises
        ------
        FeaturesError
            If the folder already holds epochs, or an argument does not fit.
        """
        folder = Path(path)
        if done := records.read_lines(folder / "epochs.jsonl").records:
            raise FeaturesError(
                f"{folder} already holds a run of {len(done)} epochs; go on with it by "
                f"RunFolder.open({str(folder)!r}), or choose another name for a new run"
            )
        header = {
            "schema": records.SCHEMA,
            "kind": "gwa-run",
            "num_samples": index("num_samples", num_samples),
            "num_classes": index("num_classes", num_classes),
            "class_names": None if class_names is None else list(class_names),
            "beta": number("beta", beta),
            "adapter": adapter,
            "loss": loss,
        }
        records.check_header(header)
        run = cls(folder, header)
        labels = None if targets is None else check_run_labels(targets, run)
        folder.mkdir(parents=True, exist_ok=True)
        if labels is not None:
            records.write_whole(folder / "targets.npy", lambda file: np.save(file, labels))
        else:
            (folder / "targets.npy").unlink(missing_ok=True)
        records.write_header(folder, header)
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open an existing run, to read it or to continue it.

        Parameters
        ----------
        path : path
            A folder with a ``run.json``.

        Returns
        -------
        RunFolder

        Raises
        ------
        FeaturesError
            If there is no run, or one of another schema version.
        """
        return cls(path, records.read_header(Path(path)))

    def write_epoch(
        self,
        summary: EpochSummary,
        *,
        scores: Any = None,
        predictions: Any = None,
        features: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Append one epoch.

        Parameters
        ----------
        summary : gwa_core.EpochSummary
            From the tracker's `end_epoch`.
        scores : array of shape (N,), optional
            Alignment by sample id, nan where not seen; stored as float32.
        predictions : integer array of shape (N,), optional
            The class of the largest logit by sample id, -1 where not known; stored as int32. Reports
            then say what the model says of a label.
        features : mapping of str to array, optional
            ``latents`` (n, D), ``weight`` (C, D), ``targets`` (n,) or (n, C), and optionally
            ``logits`` (n, C), ``bias`` (C,), ``ids`` (n,).
        metrics : mapping of str to float, optional
            Further columns; their names must differ from the fields of the summary.

        Raises
        ------
        FeaturesError
            If the epoch is already stored, or an argument does not fit. Nothing is written then.

        Notes
        -----
        Numbers that are not finite are stored as null and read as nan.
        """
        if not isinstance(summary, EpochSummary):
            raise FeaturesError(
                f"`summary` must be a gwa_core.EpochSummary, got {type(summary).__name__}; "
                "it is what the tracker's end_epoch() returns"
            )
        file = self.path / "epochs.jsonl"
        done, ends, _ = records.read_lines(file)
        if done and summary.epoch <= (last := done[-1][0].epoch):
            raise FeaturesError(
                f"`summary` is of epoch {summary.epoch}, but {self.path} is already at epoch "
                f"{last}; when training went on from an older checkpoint, drop the later epochs "
                f"first: RunFolder.open({str(self.path)!r}).truncate({summary.epoch})"
            )
        line = records.format_line(summary, metrics or {})
        saved = None if scores is None else check_scores(scores, self.num_samples)
        classes = None if predictions is None else check_predictions(predictions, self)
        arrays = None if features is None else check_features(features, self)

        stem = records.stem(summary.epoch)
        # What a killed run left of this epoch must not pass for a part of it.
        records.drop_files(self.path, lambda epoch: epoch == summary.epoch)
        if arrays is not None:
            records.write_whole(
                self.path / "features" / f"{stem}.npz",
                lambda stream: np.savez(stream, **arrays),  # type: ignore[arg-type]
            )
        for kind, array in (("predictions", classes), ("scores", saved)):
            if array is not None:
                records.write_whole(self.path / kind / f"{stem}.npy", partial(_save, array))
        records.append_line(file, line, ends[-1] if ends else 0)

    def truncate(self, epoch: int) -> Self:
        """Drop all epochs from `epoch` on.

        Parameters
        ----------
        epoch : int
            The first epoch to drop; the next one to write.

        Returns
        -------
        RunFolder
            This run.
        """
        first = index("epoch", epoch)
        file = self.path / "epochs.jsonl"
        done, ends, _ = records.read_lines(file)
        kept = sum(record[0].epoch < first for record in done)
        if file.exists():
            # The lines go first: an epoch without a line does not exist, whatever files are left.
            head = file.read_bytes()[: ends[kept - 1] if kept else 0]
            records.write_whole(file, lambda stream: stream.write(head))
        records.drop_files(self.path, lambda epoch: epoch >= first)
        return self

    def epochs(self) -> list[records.Record]:
        """Read the summary and the metrics of each epoch.

        Returns
        -------
        list of (EpochSummary, dict)
            In order of epochs.

        Raises
        ------
        FeaturesError
            If a line is damaged. A half-written last line, as a killed run leaves it, is skipped with
            a UserWarning.
        """
        file = self.path / "epochs.jsonl"
        done, _, torn = records.read_lines(file)
        if torn:
            warnings.warn(
                f"{file}: the last line is incomplete and was skipped; the run was killed while "
                "writing it, or is still writing",
                stacklevel=2,
            )
        return done

    def scores(self, epoch: int) -> NDArray[np.float32] | None:
        """Map the scores of an epoch, (N,) by sample id; None if the run stored none.

        Raises
        ------
        FeaturesError
            If the file is damaged.
        """
        return records.map_samples(self.path, "scores", np.float32, epoch, self.num_samples)

    def predictions(self, epoch: int) -> NDArray[np.int32] | None:
        """Read the predicted classes of an epoch, (N,) by sample id; None if the run stored none.

        Raises
        ------
        FeaturesError
            If the file is damaged or does not fit the run.
        """
        found = records.map_samples(self.path, "predictions", np.int32, epoch, self.num_samples)
        if found is None:
            return None
        with blame(self.path / "predictions" / f"{records.stem(epoch)}.npy"):
            return check_predictions(found, self)

    def features_path(self, epoch: int) -> Path | None:
        """Find the features of an epoch; None if the run stored none."""
        names = (f"{records.stem(epoch)}.{suffix}" for suffix in ("npz", "safetensors"))
        files = (self.path / "features" / name for name in names)
        return next((file for file in files if file.exists()), None)

    def targets(self) -> NDArray[np.int64] | None:
        """Read the given labels, (N,) by sample id; None if the run stored none.

        Raises
        ------
        FeaturesError
            If the file is damaged or does not fit the run.
        """
        file = self.path / "targets.npy"
        if not file.exists():
            return None
        with blame(file):
            return check_run_labels(read_all(open_npy(file)), self)


def begin_run(
    path: str | os.PathLike[str],
    *,
    planned: int | None = None,
    resumed: bool = False,
    **about: Any,
) -> RunFolder:
    """Say that a training runs, before its first epoch has ended.

    Parameters
    ----------
    path : path
        The folder. It is created if it does not exist.
    planned : int, optional
        How many epochs the training is to have, at least 1.
    resumed : bool
        Go on with the run in the folder, if there is one. Its epochs stay until `truncate` drops them.
    **about
        As for `RunFolder.create`. A run that is resumed has them already.

    Returns
    -------
    RunFolder
        Of status "running". Until its first epoch is written, `begin_run` may be called again, when
        more is known of the training.

    Raises
    ------
    FeaturesError
        If the folder already holds epochs and `resumed` is False, or an argument does not fit.

    Notes
    -----
    ``gwa follow`` shows a run from here on, and ends with `end_run`. A training that calls neither
    is a run like any other. Cost: one small file, written whole.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> run = begin_run(folder.name, planned=5, num_samples=3, num_classes=2, adapter="mine")
    >>> run.status, run.planned, end_run(folder.name).status
    ('running', 5, 'ended')
    >>> folder.cleanup()
    """
    if planned is not None and index("planned", planned) < 1:
        raise FeaturesError(f"`planned` must be at least 1, got {planned}; leave it out if unknown")
    if not (resumed and (Path(path) / "run.json").exists()):
        RunFolder.create(path, **about)
    return _change(path, status="running", planned=None if planned is None else int(planned))


def end_run(path: str | os.PathLike[str]) -> RunFolder:
    """Say that the training of a run has ended, whether as planned or early.

    Parameters
    ----------
    path : path
        The folder of a run.

    Returns
    -------
    RunFolder
        Of status "ended".

    Raises
    ------
    FeaturesError
        If there is no run.
    """
    return _change(path, status="ended")


def name_classes(path: str | os.PathLike[str], class_names: Sequence[str] | None) -> RunFolder:
    """Give the classes of a run other names; its epochs stay.

    Parameters
    ----------
    path : path
        The folder of a run.
    class_names : sequence of str or None
        C names, or none.

    Returns
    -------
    RunFolder
        With these names.

    Raises
    ------
    FeaturesError
        If there is no run, or the names do not fit.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> run = RunFolder.create(folder.name, num_samples=3, num_classes=2, adapter="mine")
    >>> name_classes(folder.name, ["cat", "dog"]).class_names
    ('cat', 'dog')
    >>> folder.cleanup()
    """
    return _change(path, class_names=None if class_names is None else list(class_names))


def _save(array: NDArray[Any], stream: IO[bytes]) -> None:
    np.save(stream, array)


def _change(path: str | os.PathLike[str], **fields: Any) -> RunFolder:
    """Write fields of run.json anew and leave the others, known or not, as they are."""
    header = records.read_header(Path(path)) | fields
    records.check_header(header)
    records.write_header(Path(path), header)
    return RunFolder(path, header)
