"""Saved features of any supported form, opened as one kind of source and read in blocks of rows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwa_core import EpochSummary
from gwa_offline.files.checks import FIELDS, LOSSES, likeliest_labels, to_numpy
from gwa_offline.files.errors import FeaturesError
from gwa_offline.files.features import Block, Features, open_snapshot
from gwa_offline.files.formats import FORMATS
from gwa_offline.store import RunFolder

__all__ = ["Block", "Epoch", "Features", "Source", "open_features"]

_SUPPORTED = (
    f"supported are {', '.join(FORMATS)}, a folder of .npy files (latents.npy, weight.npy, "
    "targets.npy), a folder of such snapshots (epoch_3.npz, ...) and a run folder"
)
_MAX_DIGITS = 18  # of an epoch; a date with a time, or a hash, has more


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of a source.

    Parameters
    ----------
    epoch, step : int
        Its number and training step; for plain files the number in the name.
    summary : gwa_core.EpochSummary or None
        Measured during training; None if the source is not a run folder.
    metrics : mapping of str to float
        Further columns of the run.
    """

    epoch: int
    step: int
    summary: EpochSummary | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    _scores: Callable[[], NDArray[np.float32] | None] | None = field(default=None, repr=False)
    _features: Callable[[], Features] | None = field(default=None, repr=False)

    @property
    def scores(self) -> NDArray[np.float32] | None:
        """Scores measured during training, (N,) by sample id; each access maps the file again."""
        return None if self._scores is None else self._scores()

    @property
    def features(self) -> Features | None:
        """Features of the epoch; each access opens them again, so many epochs need no memory."""
        return None if self._features is None else self._features()


@dataclass(frozen=True, kw_only=True)
class Source:
    """Saved features or a run, in any supported form.

    Parameters
    ----------
    name : str
        The last part of the path.
    num_samples, num_classes, class_names : int, int, tuple of str or None
        N, C and the C names.
    beta : float
        The constant of Eq. 2.
    loss : {"cross_entropy", "binary_cross_entropy"}
        Loss of the head.
    targets : array of shape (N,) or None
        Given labels by sample id, -1 where unknown; for soft targets the likeliest class.
    epochs : tuple of Epoch
        In order of epochs; one for a single file.
    """

    name: str
    num_samples: int
    num_classes: int
    class_names: tuple[str, ...] | None
    beta: float
    loss: str
    targets: NDArray[np.int64] | None
    epochs: tuple[Epoch, ...]


def open_features(
    path: str | os.PathLike[str],
    *,
    weight: Any = None,
    bias: Any = None,
    targets: Any = None,
    loss: str | None = None,
) -> Source:
    """Open saved features, or a run folder.

    Parameters
    ----------
    path : path
        A ``.npz``, ``.safetensors`` or ``.parquet`` file; a folder of ``.npy`` files
        (``latents.npy``, ``weight.npy``, ``targets.npy``); a folder of such snapshots whose names
        have the number of the epoch (``epoch_3.npz``); or a run folder. The arrays are ``latents``
        (n, D), ``weight`` (C, D), ``targets`` (n,) or (n, C), and optionally ``logits`` (n, C),
        ``bias`` (C,) and ``ids`` (n,).
    weight : array of shape (C, D), optional
        For files without it. Beside ``x.parquet`` a file ``x.weight.npy`` does the same.
    bias : array of shape (C,), optional
        For files without it, or ``x.bias.npy``.
    targets : array of shape (N,) or (N, C), optional
        Targets by sample id, for files without them.
    loss : {"cross_entropy", "binary_cross_entropy"}, optional
        Loss of the head; default the loss of the run folder, or else softmax cross-entropy.

    Returns
    -------
    Source

    Raises
    ------
    FeaturesError
        If something is missing, damaged or does not fit; the message says what and why. Latents
        that are not finite are no error; they give nan scores.

    Notes
    -----
    Reads the headers, targets and ids of all epochs; latents and logits are read by
    `Features.blocks`, in blocks. Compressed ``.npz`` files are inflated as they are read.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = folder.name + "/features.npz"
    >>> np.savez(file, latents=np.ones((5, 3)), weight=np.eye(2, 3), targets=[0, 1, 1, 0, 1])
    >>> source = open_features(file)
    >>> source.num_samples, source.num_classes
    (5, 2)
    >>> [block.latents.shape for block in source.epochs[0].features.blocks(rows=2)]
    [(2, 3), (2, 3), (1, 3)]
    >>> folder.cleanup()
    """
    given = {
        name: to_numpy(name, array)
        for name, array in {"weight": weight, "bias": bias, "targets": targets}.items()
        if array is not None
    }
    place = Path(path)
    if loss not in (None, *LOSSES):
        raise FeaturesError(f"`loss` must be one of {', '.join(LOSSES)}, got {loss!r}")
    try:
        if not place.exists():
            raise FeaturesError(f"{path}: there is no such file or folder")
        if (place / "run.json").exists():
            return _open_run(RunFolder.open(place), given, loss)
        return _open_files(place, given, loss or LOSSES[0])
    except OSError as error:
        raise FeaturesError(f"{path}: cannot be read: {error}") from error


def _open_run(run: RunFolder, given: Mapping[str, NDArray[Any]], loss: str | None) -> Source:
    loss = loss or run.loss
    rows = run.epochs()
    if not rows:
        raise FeaturesError(f"{run.path}: the run has no finished epoch yet")
    labels = run.targets()
    if "targets" in given:
        if labels is not None:
            raise FeaturesError(f"`targets` was given, but {run.path} has its own; drop one")
        targets, n = given["targets"], run.num_samples
        labels = likeliest_labels(targets, n, run.num_classes, loss)
    opener = partial(
        open_snapshot,
        given=given,
        labels=labels,
        loss=loss,
        num_samples=run.num_samples,
        num_classes=run.num_classes,
    )
    epochs: list[Epoch] = []
    openers: dict[Path, Callable[[], Features]] = {}
    for summary, metrics in rows:
        run.scores(summary.epoch)  # what is wrong with them should be known now
        file = run.features_path(summary.epoch)
        if file is not None:
            openers[file] = partial(opener, file)
        epochs.append(
            Epoch(
                epoch=summary.epoch,
                step=summary.step,
                summary=summary,
                metrics=metrics,
                _scores=partial(run.scores, summary.epoch),
                _features=None if file is None else openers[file],
            )
        )
    _, labels = _survey(openers, labels)
    return Source(
        name=run.path.resolve().name,
        num_samples=run.num_samples,
        num_classes=run.num_classes,
        class_names=run.class_names,
        beta=run.beta,
        loss=loss,
        targets=labels,
        epochs=tuple(epochs),
    )


def _open_files(place: Path, given: Mapping[str, NDArray[Any]], loss: str) -> Source:
    files = _find_snapshots(place)
    targets = given.get("targets")
    n = None if targets is None or targets.ndim == 0 else len(targets)
    opener = partial(open_snapshot, given=given, loss=loss, num_samples=n)
    # The first one says how many classes the others must have.
    num_classes = opener(files[0][1]).num_classes
    openers = {file: partial(opener, file, num_classes=num_classes) for _, file in files}
    labels = None
    if targets is not None:
        labels = likeliest_labels(targets, len(targets), num_classes, loss)
    num_samples, labels = _survey(openers, labels)
    return Source(
        name=place.resolve().name,
        num_samples=num_samples,
        num_classes=num_classes,
        class_names=None,
        beta=1.2,
        loss=loss,
        targets=labels,
        epochs=tuple(
            Epoch(epoch=number, step=number, _features=openers[file]) for number, file in files
        ),
    )


def _find_snapshots(place: Path) -> list[tuple[int, Path]]:
    """Return the numbers and places of the epochs."""
    if place.is_file():
        if place.suffix not in FORMATS:
            raise FeaturesError(f"{place}: {place.suffix or 'no suffix'} is unknown; {_SUPPORTED}")
        return [(0, place)]
    if _is_npy_folder(place):
        return [(0, place)]
    found: dict[int, Path] = {}
    for file in sorted(place.iterdir()):
        if file.suffix not in FORMATS and not _is_npy_folder(file):
            continue
        number = _find_number(file)
        if number in found:
            raise FeaturesError(f"{file} and {found[number].name} are both of epoch {number}")
        found[number] = file
    if not found:
        names = ", ".join(sorted(file.name for file in place.iterdir())[:8]) or "nothing"
        raise FeaturesError(f"{place}: there are no features, there is {names}; {_SUPPORTED}")
    return sorted(found.items())


def _is_npy_folder(place: Path) -> bool:
    return any((place / f"{name}.npy").exists() for name in FIELDS)


def _find_number(file: Path) -> int:
    """Return the number behind "epoch" in a name, or else the last one."""
    stem = file.stem if file.suffix in FORMATS else file.name
    numbers = re.findall("epoch[^0-9]?([0-9]+)", stem, re.IGNORECASE) or re.findall("[0-9]+", stem)
    if not numbers or len(numbers[-1]) > _MAX_DIGITS:
        raise FeaturesError(
            f"{file}: its name has no number of an epoch, as epoch_3{file.suffix} has; "
            "to read it alone, open the file and not its folder"
        )
    return int(numbers[-1])


def _survey(
    openers: Mapping[Path, Callable[[], Features]], labels: NDArray[np.int64] | None
) -> tuple[int, NDArray[np.int64] | None]:
    """Open every epoch once, so that errors come now; return N and the labels by sample id."""
    num_samples, without_ids = 0 if labels is None else len(labels), {}
    for file, opener in openers.items():
        features = opener()
        if features.ids is None:
            without_ids[file] = size = features.num_samples
        else:
            size = int(features.ids.max()) + 1
        num_samples = max(num_samples, size)
        if features.targets is not None:
            labels = _merge_labels(labels, features, features.targets, file)
    for file, size in without_ids.items():
        if size != num_samples:
            raise FeaturesError(
                f"{file}: `ids` is missing: the file has {size} samples, another epoch has "
                f"{num_samples}, and which ones they are must be saved"
            )
    return num_samples, labels


def _merge_labels(
    labels: NDArray[np.int64] | None, features: Features, new: NDArray[np.int64], file: Path
) -> NDArray[np.int64]:
    rows = np.arange(len(new)) if features.ids is None else features.ids
    known = np.empty(0, dtype=np.int64) if labels is None else labels
    merged = np.full(max(len(known), int(rows.max()) + 1), -1, dtype=np.int64)
    merged[: len(known)] = known
    old = merged[rows]
    clash = (old >= 0) & (old != new)
    if features.ids is None and not features.soft and clash.any():
        raise FeaturesError(
            f"{file}: `targets` has another label in row {int(clash.argmax())} than the other "
            "epochs or targets.npy, so the rows are not in the order of the samples; "
            "was the loader shuffled? Then `ids` must be saved"
        )
    merged[rows] = np.where(old < 0, new, old)
    return merged
