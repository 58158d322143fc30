"""Saved features of any supported form, opened as one kind of source and read in blocks of rows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gwa_core import EpochSummary
from gwa_offline.files.arrays import Held
from gwa_offline.files.checks import (
    FIELDS,
    LOSSES,
    check_class_names,
    likeliest_labels,
)
from gwa_offline.files.errors import FeaturesError
from gwa_offline.files.features import Block, Features, open_snapshot
from gwa_offline.files.memory import is_open, read_array
from gwa_offline.files.places import (
    Snapshot,
    as_source,
    expand_pattern,
    find_snapshots,
    is_pattern,
    name_of,
)
from gwa_offline.files.rows import carried, check_keep
from gwa_offline.files.strings import Strings, is_text
from gwa_offline.files.urls import Url, place_of
from gwa_offline.store import RunFolder

__all__ = ["Block", "Epoch", "Features", "Source", "open_features"]

# Samples that a run may have beyond those of its epochs, whose arrays have a place for each.
_UNSEEN = 2**26


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
    _predictions: Callable[[], NDArray[np.int32] | None] | None = field(default=None, repr=False)

    @property
    def scores(self) -> NDArray[np.float32] | None:
        """Scores measured during training, (N,) by sample id; each access maps the file again."""
        return None if self._scores is None else self._scores()

    @property
    def predictions(self) -> NDArray[np.int32] | None:
        """Classes predicted during training, (N,) by sample id, -1 where not known."""
        return None if self._predictions is None else self._predictions()

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
    kept : mapping of str to array of shape (N,)
        What is carried along by sample id: ``name`` where the ids are strings, and the columns of `keep`
        and `index`. Objects, None where unknown; numbers where none is missing.
    """

    name: str
    num_samples: int
    num_classes: int
    class_names: tuple[str, ...] | None
    beta: float
    loss: str
    targets: NDArray[np.int64] | None
    epochs: tuple[Epoch, ...]
    kept: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def open_features(
    path: Any,
    *,
    weight: Any = None,
    bias: Any = None,
    targets: Any = None,
    loss: str | None = None,
    class_names: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    index: str | os.PathLike[str] | None = None,
) -> Source:
    """Open saved features, or a run folder.

    Parameters
    ----------
    path : path, address, mapping, table, or sequence of them
        A ``.npz``, ``.safetensors``, ``.parquet``, ``.arrow``, ``.feather`` or ``.pt`` file; a folder of
        ``.npy`` files (``latents.npy``, ``weight.npy``, ``targets.npy``), or one that Hugging Face
        saved; a folder of such snapshots whose names have the number of the epoch (``epoch_3.npz``), or
        of partitions; or a run folder. A list, a pattern (``"epoch_3/part-*.parquet"``) and a folder of
        parts are one epoch in several files. An address such as ``"s3://bucket/epoch_3"`` stands for a
        path. A mapping has arrays of any library by name, or epochs by number; a table is of Arrow,
        pandas, Polars or Hugging Face. The arrays are ``latents`` (n, D), ``weight`` (C, D),
        ``targets`` (n,) or (n, C), and optionally
        ``logits`` (n, C), ``bias`` (C,) and ``ids`` (n,).
    weight : array of shape (C, D), optional
        For files without it. Beside ``x.parquet`` a file ``x.weight.npy`` does the same.
    bias : array of shape (C,), optional
        For files without it, or ``x.bias.npy``.
    targets : array of shape (N,) or (N, C), optional
        Targets by sample id, for files without them.
    loss : {"cross_entropy", "binary_cross_entropy"}, optional
        Loss of the head; default the loss of the run folder, or else softmax cross-entropy.
    class_names : sequence of str, optional
        C names, for sources without them.
    columns : mapping of str to str, optional
        What the files call an array: ``{"latents": "embedding", "targets": "y"}``.
    keep : sequence of str
        Further columns of the files, one number or string a row, that tables of samples show:
        ``["path", "url"]``.
    index : path, optional
        A ``.csv`` file or a table with the column ``id``, whose other columns are kept.

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
    `Features.blocks`, in blocks. Compressed ``.npz`` files are inflated as they are read. Files behind
    an address are fetched by ranges.

    Parts are joined by their ``ids``. Without them the rows count from the first part to the last, in
    the order of the names, where ``part-2`` is before ``part-10``, or in that of the list.

    Labels may be strings: the classes are then `class_names`, or else the labels of the first epoch in
    sorted order, which must be as many as the head has outputs. Ids may be strings, such as names of
    files: rows are numbered in the order in which they come first, epochs join by the strings, and
    `Source.kept` has them as ``name``.

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
        name: read_array(name, array)
        for name, array in {"weight": weight, "bias": bias, "targets": targets}.items()
        if array is not None
    }
    if loss not in (None, *LOSSES):
        raise FeaturesError(f"`loss` must be one of {', '.join(LOSSES)}, got {loss!r}")
    if wrong := [name for name in columns or {} if name not in FIELDS]:
        raise FeaturesError(f"`columns` must name {', '.join(FIELDS)}, got {wrong[0]!r}")
    names = None if class_names is None else check_class_names(class_names, len(class_names))
    told = _Told(given, columns, names, loss, check_keep(keep), index)
    place = as_source(path)
    try:
        if isinstance(path, str | os.PathLike | Url):
            if path == "":
                raise FeaturesError("`path` is empty; is a variable unset?")
            place = place_of(path)
            if is_pattern(place) and len(found := expand_pattern(place)) == 1:
                place = found[0]
            if not place.exists() and not is_pattern(place):
                raise FeaturesError(f"{place}: there is no such file or folder{_address(place)}")
            if place.is_dir() and (place / "run.json").exists():
                if isinstance(place, Url):
                    raise FeaturesError(f"{place}: a run folder is read from a disk; download it")
                return _open_run(RunFolder.open(place), told)
        return _open_files(place, _name(place), told)
    except OSError as error:
        where = place if isinstance(place, Path | Url) else "`path`"
        raise FeaturesError(f"{where}: cannot be read: {error}") from error


def _name(source: Any) -> str:
    """Return what a source is called."""
    if isinstance(source, Path | Url):
        return name_of([source]).name
    places = [] if is_open(source) else [place_of(part) for part in source if not is_open(part)]
    return name_of(places).name if places else "features"


def _address(place: object) -> str:
    """Say what `pathlib.Path` does to an address."""
    found = re.match("[a-z][a-z0-9+.-]+:/", str(place)) if isinstance(place, Path) else None
    return "" if found is None else "; an address is given as a string, which keeps both slashes"


class _Told(NamedTuple):
    """What the user says of a source."""

    arrays: Mapping[str, NDArray[Any]]
    columns: Mapping[str, str] | None
    class_names: tuple[str, ...] | None
    loss: str | None
    keep: tuple[str, ...]
    table: str | os.PathLike[str] | None  # by id

    def names(self, num_classes: int) -> tuple[str, ...] | None:
        return (
            None if self.class_names is None else check_class_names(self.class_names, num_classes)
        )


def _open_run(run: RunFolder, told: _Told) -> Source:
    loss, given = told.loss or run.loss, told.arrays
    rows = run.epochs()
    if not rows:
        raise FeaturesError(f"{run.path}: the run has no finished epoch yet")
    most = max(summary.count + summary.omitted for summary, _ in rows)
    if run.num_samples > max(_UNSEEN, 16 * most):
        raise FeaturesError(
            f"{run.path}: `num_samples` is {run.num_samples}, but no epoch has more than {most} "
            "samples; run.json is damaged, or of another run"
        )
    labels = run.targets()
    if "targets" in given:
        if labels is not None:
            raise FeaturesError(f"`targets` was given, but {run.path} has its own; drop one")
        targets, n = given["targets"], run.num_samples
        if is_text(targets):
            strings = Strings(run.class_names or told.class_names)
            targets = strings.targets(Held(targets), run.num_classes)
            if run.class_names is None:
                told = told._replace(class_names=strings.class_names)
        labels = likeliest_labels(targets, n, run.num_classes, loss)
    if told.class_names is not None and run.class_names is not None:
        raise FeaturesError(f"`class_names` was given, but {run.path} has its own; drop one")
    opener = partial(
        open_snapshot,
        given=given,
        columns=told.columns,
        labels=labels,
        loss=loss,
        num_samples=run.num_samples,
        num_classes=run.num_classes,
        keep=told.keep,
    )
    epochs: list[Epoch] = []
    openers: dict[Snapshot, Callable[[], Features]] = {}
    # A long run of summaries alone should not ask the disk for each.
    scored, said, kept = (
        (run.path / name).is_dir() for name in ("scores", "predictions", "features")
    )
    for summary, metrics in rows:
        if scored:
            run.scores(summary.epoch)  # what is wrong with them should be known now
        file = run.features_path(summary.epoch) if kept else None
        features = None
        if file is not None:
            snapshot = Snapshot(summary.epoch, (file,))
            features = openers[snapshot] = partial(opener, snapshot)
        epochs.append(
            Epoch(
                epoch=summary.epoch,
                step=summary.step,
                summary=summary,
                metrics=metrics,
                _scores=partial(run.scores, summary.epoch) if scored else None,
                _predictions=partial(run.predictions, summary.epoch) if said else None,
                _features=features,
            )
        )
    if not openers and (unused := [name for name in given if name != "targets"]):
        raise FeaturesError(
            f"`{unused[0]}` was given, but {run.path} has no features to use it for"
        )
    if not openers and told.keep:
        raise FeaturesError(
            f"`keep` was given, but {run.path} has no features with columns; give a table by `index`"
        )
    _, labels = _survey(openers, labels)
    return Source(
        name=run.path.resolve().name,
        num_samples=run.num_samples,
        num_classes=run.num_classes,
        class_names=run.class_names or told.names(run.num_classes),
        beta=run.beta,
        loss=loss,
        targets=labels,
        epochs=tuple(epochs),
        kept=carried(openers.values(), told.keep, told.table, Strings(), run.num_samples),
    )


def _open_files(path: Any, name: str, told: _Told) -> Source:
    snapshots = find_snapshots(path)
    targets, loss = told.arrays.get("targets"), told.loss or LOSSES[0]
    n = None if targets is None or targets.ndim == 0 else len(targets)
    given, strings = dict(told.arrays), Strings(told.class_names)
    if targets is not None and is_text(targets):
        given["targets"] = targets = strings.targets(Held(targets))
    opener = partial(
        open_snapshot,
        given=given,
        columns=told.columns,
        loss=loss,
        num_samples=n,
        strings=strings,
        keep=told.keep,
    )
    # The first one says how many classes the others must have.
    num_classes = opener(snapshots[0]).num_classes
    openers = {found: partial(opener, found, num_classes=num_classes) for found in snapshots}
    class_names, labels = told.names(num_classes), None
    strings.check_outputs(num_classes)
    if targets is not None:
        labels = likeliest_labels(targets, len(targets), num_classes, loss)
    _refuse_shards(openers)
    num_samples, labels = _survey(openers, labels)
    return Source(
        name=name,
        num_samples=num_samples,
        num_classes=num_classes,
        class_names=class_names or strings.class_names or strings.told(num_classes),
        beta=1.2,
        loss=loss,
        targets=labels,
        epochs=tuple(
            Epoch(epoch=found.epoch, step=found.epoch, _features=openers[found])
            for found in snapshots
        ),
        kept=carried(openers.values(), told.keep, told.table, strings, num_samples),
    )


def _refuse_shards(openers: Mapping[Snapshot, Callable[[], Features]]) -> None:
    """Refuse epochs that have no sample in common."""
    seen: NDArray[np.bool_] = np.zeros(0, np.bool_)
    for opener in openers.values():
        ids = opener().ids
        if ids is None:
            return
        more = max(int(ids.max()) + 1 - len(seen), 0)
        seen = np.append(seen, np.zeros(more, np.bool_))
        if seen[ids].any():
            return
        seen[ids] = True
    if len(openers) > 1:
        first, second = list(openers)[:2]
        raise FeaturesError(
            f"{first} and {second.parts[0].name}: the epochs have no sample in common; these look like "
            "shards of one epoch; say so by their names, epoch_0-part-0, epoch_0-part-1, by a pattern "
            "in quotes, 'folder/*.npz', or by a list in Python"
        )


def _survey(
    openers: Mapping[Snapshot, Callable[[], Features]], labels: NDArray[np.int64] | None
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
    labels: NDArray[np.int64] | None, features: Features, new: NDArray[np.int64], file: Snapshot
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
            "was the loader shuffled? Then `ids` must be saved; parts of one epoch are named as "
            "epoch_0-part-1"
        )
    merged[rows] = np.where(old < 0, new, old)
    return merged
