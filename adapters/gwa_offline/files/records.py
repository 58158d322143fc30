"""The text files of a run folder, run.json and epochs.jsonl, and how files reach the disk."""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gwa_core import EpochSummary
from gwa_offline.files.checks import LOSSES, check_class_names, check_num_classes, index, number
from gwa_offline.files.errors import FeaturesError, blame, reading
from gwa_offline.files.formats import open_npy

SCHEMA = 1
SUFFIXES = ("npz", "safetensors", "npy")
# More than any head has; arrays of length C are made.
MAX_CLASSES = 2**24
Record = tuple[EpochSummary, dict[str, float]]

# What a training that tells when it ends says in run.json; others leave it out.
STATUSES = ("running", "ended")

# None where nobody knows, else a whole number.
_OPTIONAL = frozenset(EpochSummary._field_defaults)
_COUNTS = {"epoch", "step", "count", "omitted", *_OPTIONAL}
# gwa-core 0.1.0 did not write these: the first follows from two others, the second is unknown.
_LATER = {"separation", "expected"}
_KINDS = {
    name: "optional" if name in _OPTIONAL else "count" if name in _COUNTS else "number"
    for name in EpochSummary._fields
}
# Sums and squares of summaries must not overflow.
_LARGEST = 1e100
_OLD_KINDS = {name: kind for name, kind in _KINDS.items() if name not in _LATER | _OPTIONAL}


def check_header(header: Any) -> None:
    """Check the contents of run.json."""
    if not isinstance(header, dict) or header.get("kind") != "gwa-run":
        raise FeaturesError('`kind` is not "gwa-run"; this is the run.json of another program')
    if header.get("schema") is True or header.get("schema") != SCHEMA:
        raise FeaturesError(
            f"`schema` is {header.get('schema')!r}, this gwa-core reads version {SCHEMA}; "
            "the run was written by a newer gwa-core: pip install --upgrade gwa-core"
        )
    needed = ("num_samples", "num_classes", "class_names", "beta", "adapter", "loss")
    if missing := [key for key in needed if key not in header]:
        raise FeaturesError(f"`{missing[0]}` is missing; there are {', '.join(header)}")
    if header["loss"] not in LOSSES:
        raise FeaturesError(f"`loss` must be one of {', '.join(LOSSES)}, got {header['loss']!r}")
    if index("num_samples", header["num_samples"]) < 1:
        raise FeaturesError("`num_samples` must be at least 1, got 0")
    classes = index("num_classes", header["num_classes"])
    if classes > MAX_CLASSES:
        raise FeaturesError(f"`num_classes` must be at most {MAX_CLASSES}, got {classes}")
    check_num_classes(classes, header["loss"])
    names = header["class_names"]
    if names is not None:
        if not isinstance(names, list):
            raise FeaturesError(f"`class_names` must be a list of strings, got {str(names)[:80]}")
        check_class_names(names, classes)
    if isinstance(header["beta"], bool):
        raise FeaturesError(f"`beta` must be one number, got {header['beta']}")
    if not math.isfinite(number("beta", header["beta"])):
        raise FeaturesError(f"`beta` must be finite, got {header['beta']}")
    if not isinstance(header["adapter"], str):
        raise FeaturesError(f"`adapter` must be a string, got {header['adapter']!r}")
    status, planned = header.get("status"), header.get("planned")
    if status is not None and status not in STATUSES:
        raise FeaturesError(f"`status` must be one of {', '.join(STATUSES)}, got {status!r}")
    if planned is not None and index("planned", planned) < 1:
        raise FeaturesError("`planned` must be at least 1, got 0; leave it out where unknown")


def read_header(run: Path) -> dict[str, Any]:
    """Read and check run.json."""
    file = run / "run.json"
    try:
        header = json.loads(file.read_bytes())
    except OSError as error:
        raise FeaturesError(f"{run} is no run folder: it has no readable run.json") from error
    except (ValueError, RecursionError) as error:
        raise FeaturesError(f"{file} is damaged, it is not JSON: {error}") from error
    with blame(file):
        check_header(header)
    found: dict[str, Any] = header
    return found


def write_header(run: Path, header: Mapping[str, Any]) -> None:
    """Write run.json whole."""
    text = json.dumps(header, indent=1) + "\n"
    write_whole(run / "run.json", lambda file: file.write(text.encode()))


def format_line(summary: EpochSummary, metrics: Mapping[str, Any]) -> bytes:
    """Return one epoch as a line of JSON."""
    fields: dict[str, int | float | None] = {}
    for name, value in summary._asdict().items():
        if name in _OPTIONAL and value is None:
            fields[name] = None
        else:
            fields[name] = index(name, value) if name in _COUNTS else _finite(name, value)
    for name in metrics:
        if not isinstance(name, str) or name in fields:
            raise FeaturesError(
                f"`metrics` may not have a {name!r}: names are strings, and not those of the "
                f"summary ({', '.join(EpochSummary._fields)})"
            )
    fields |= {name: _finite(f"metrics[{name!r}]", value) for name, value in metrics.items()}
    return (json.dumps(fields, allow_nan=False) + "\n").encode()


def _finite(name: str, value: Any) -> float | None:
    # JSON has no nan and no infinity.
    real = number(name, value)
    return real if math.isfinite(real) else None


class Lines(NamedTuple):
    """The contents of epochs.jsonl."""

    records: list[Record]
    ends: list[int]  # the byte after each record
    torn: bool  # whether an incomplete last line follows


def read_lines(path: Path) -> Lines:
    """Read epochs.jsonl; a file that is not there has no lines."""
    with blame(path), reading():
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        # Records are in no cycle, and the collector would look at all of them again and again.
        collects = gc.isenabled()
        gc.disable()
        try:
            return _parse_lines(data)
        finally:
            if collects:
                gc.enable()


def _parse_lines(data: bytes) -> Lines:
    records: list[Record] = []
    ends: list[int] = []
    start, end = 0, len(data.rstrip())
    for row, line in enumerate(data.split(b"\n"), start=1):
        stop = min(start + len(line) + 1, len(data))
        if line.strip():
            record = _parse_line(line, row, is_last=stop >= end)
            if record is None:
                return Lines(records, ends, torn=True)
            if records and record[0].epoch <= records[-1][0].epoch:
                raise FeaturesError(
                    f"line {row}: epoch {record[0].epoch} comes after epoch "
                    f"{records[-1][0].epoch}; did two processes write one run?"
                )
            records.append(record)
            ends.append(stop)
        start = stop
    return Lines(records, ends, torn=False)


def _parse_line(line: bytes, row: int, *, is_last: bool) -> Record | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        if is_last:
            return None
        raise FeaturesError(f"line {row} is damaged, it is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise FeaturesError(f"line {row} must be a table of numbers, got {str(fields)[:80]}")
    # A line of gwa-core 0.1.0 has other fields; then these were names for metrics.
    kinds = _KINDS if fields.keys() >= _LATER else _OLD_KINDS
    summary: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    with blame(f"line {row}"):
        for name, value in fields.items():
            kind = kinds.get(name)
            if value is None:
                if kind == "optional":
                    continue
                value = math.nan
            elif kind == "number" and type(value) is float and -_LARGEST < value < _LARGEST:
                summary[name] = value
                continue
            elif type(value) is not float and type(value) is not int:
                continue  # other things are not for us
            if kind is None:  # what else is there and is a number is a metric
                metrics[name] = number(name, value)
            else:
                summary[name] = _plausible(name, value) if kind == "number" else index(name, value)
        if len(summary) < len(kinds):
            for name, kind in kinds.items():
                if name not in summary and kind != "optional":
                    raise FeaturesError(f"there is no number `{name}`; it has {str(fields)[:80]}")
    if kinds is _OLD_KINDS:
        return EpochSummary.from_mapping(summary), metrics
    return EpochSummary(**summary), metrics


def _plausible(name: str, value: Any) -> float:
    real = number(name, value)
    if abs(real) > _LARGEST:
        raise FeaturesError(
            f"`{name}` is {real:.3g}, which scores in [-1, 1] do not give; the file is damaged"
        )
    return real


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One process writes a run, so what a killed one left under this name is overwritten.
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: bytes, good: int) -> None:
    """Append a line in one write, after cutting the file to its first `good` bytes."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
    try:
        os.ftruncate(fd, good)
        if good:
            os.lseek(fd, good - 1, os.SEEK_SET)
            if os.read(fd, 1) != b"\n":  # as editors leave a last line
                line = b"\n" + line
        if os.write(fd, line) != len(line):
            raise OSError(f"{path}: the disk is full")
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    if os.name == "posix":
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def stem(epoch: int) -> str:
    """Return the name of an epoch's files without their suffix."""
    return f"{index('epoch', epoch):06d}"


def drop_files(run: Path, condition: Callable[[int], bool]) -> None:
    """Remove the files of the epochs that meet the condition."""
    for folder in ("scores", "predictions", "features"):
        for file in (run / folder).glob("[0-9]*"):
            number, _, suffix = file.name.partition(".")
            is_ours = number.isdecimal() and suffix.removesuffix(".tmp") in SUFFIXES
            if is_ours and condition(int(number)):
                file.unlink()


def map_samples(
    run: Path, kind: str, dtype: type[np.generic], epoch: int, num_samples: int
) -> NDArray[Any] | None:
    """Map the scores or the predictions of an epoch, or return None where the run kept none."""
    file = run / kind / f"{stem(epoch)}.npy"
    if not file.exists():
        return None
    with blame(file), reading():
        array = open_npy(file)
        if array.shape != (num_samples,) or array.stored != dtype:
            raise FeaturesError(
                f"{kind} must be {np.dtype(dtype)} of shape (N,) = ({num_samples},), "
                f"got {array.stored} of shape {array.shape}"
            )
        offset = file.stat().st_size - 4 * num_samples
        return np.memmap(file, dtype, "r", offset, array.shape)
