"""Where the epochs of a source are: files, folders and patterns, and the parts of an epoch."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gwa_offline.files.errors import FeaturesError, blame
from gwa_offline.files.folders import (
    SUPPORTED,
    in_order,
    is_features,
    is_npy_folder,
    partitions,
    refuse_foreign,
    saved_dataset,
    unknown,
)
from gwa_offline.files.formats import FORMATS, KEY
from gwa_offline.files.memory import InMemory, is_epochs, is_open
from gwa_offline.files.shards import PART, check_complete, check_names, refuse_copies, stem_of
from gwa_offline.files.tables import is_stream
from gwa_offline.files.urls import Place, Url, place_of

_MAX_DIGITS = 18  # of an epoch; a date with a time, or a hash, has more
# "epochs50" and "max_epoch50" say how many there are.
_EPOCH = re.compile("(?<!max)(?<!num)(?<!(?:max|num)[-_])epoch[^0-9a-z]?([0-9]+)", re.IGNORECASE)


class Snapshot(NamedTuple):
    """The files of one epoch.

    Parameters
    ----------
    epoch : int
        Its number.
    parts : tuple of Path, Url or InMemory
        One file or folder of .npy files, or several in the order of their rows.
    """

    epoch: int
    parts: tuple[Place | InMemory, ...]

    def __str__(self) -> str:
        more = len(self.parts) - 1
        return str(self.parts[0]) + (f" and {more} more" if more else "")


def find_snapshots(source: Any) -> list[Snapshot]:
    """Return the epochs of anything but a run folder, in order."""
    if is_epochs(source):
        return [_one_of(number, part) for number, part in sorted(source.items())]
    if is_open(source):
        return [Snapshot(0, (_in_memory(source),))]
    if not isinstance(source, Path | Url):
        items = as_source(source)
        return [_one_epoch([_in_memory(x) if is_open(x) else place_of(x) for x in items])]
    if is_pattern(source):
        return _by_epoch(expand_pattern(source))
    if source.is_file():
        if source.suffix not in FORMATS:
            raise FeaturesError(f"{source}: {unknown(source)}")
        return [Snapshot(0, (source,))]
    if is_npy_folder(source):
        return [Snapshot(0, (source,))]
    if not source.exists():
        raise FeaturesError(f"{source}: there is no such file or folder")
    return _in_folder(source)


def as_source(source: Any) -> Any:
    """Return what may be a source, a list for what is read once; refuse all else at once."""
    if isinstance(source, str | os.PathLike | Url) or is_open(source):
        return source
    if isinstance(source, np.ndarray) and source.ndim == 1 and source.dtype.kind in "UO":
        source = source.tolist()
    if isinstance(source, bytes) or not isinstance(source, Sequence | Iterator):
        raise FeaturesError(_no_source(source))
    items = list(source)
    for item in items:
        if not (isinstance(item, str | os.PathLike | Url) or is_open(item)):
            raise FeaturesError(_no_source(item, f" in a {type(source).__name__}"))
    return items


def _no_source(source: object, where: str = "") -> str:
    hint = ""
    if source is None:
        hint = "; is a variable unset?"
    elif is_stream(source):
        hint = (
            "; a stream has no number of rows: store it first, by Dataset.from_list(list(stream))"
        )
    elif hasattr(source, "__array__"):
        hint = "; give arrays their names"
    return (
        "`path` must be a path, an address, a mapping {'latents': ..., 'weight': ..., 'targets': "
        f"...}}, a table, or a list of such, got {type(source).__name__}{where}{hint}"
    )


def _in_memory(source: Any) -> InMemory:
    return source if isinstance(source, InMemory) else InMemory(source)


def _one_of(number: int, source: Any) -> Snapshot:
    """Return what a mapping of epochs has for one."""
    if number < 0:
        raise FeaturesError(f"the number of an epoch must be at least 0, got {number}")
    if isinstance(source, str | os.PathLike):
        source = place_of(source)
    with blame(f"epoch {number}"):
        found = find_snapshots(source)
    if len(found) > 1:
        raise FeaturesError(f"epoch {number} must be one epoch, got {len(found)}")
    return Snapshot(int(number), found[0].parts)


def is_pattern(place: Place) -> bool:
    """Return whether a path is a pattern such as ``epoch_3/part-*.parquet``."""
    text = str(place) if isinstance(place, Path) else place.pattern
    return glob.has_magic(text) and not place.exists()


def expand_pattern(pattern: Place) -> list[Place]:
    """Return the files and folders that fit a pattern, in the order of their names."""
    if isinstance(pattern, Path):
        found = in_order(Path(name) for name in glob.glob(str(pattern)))  # noqa: PTH207  (it may be absolute)
    else:
        found = in_order(pattern.expand())
    if not found:
        raise FeaturesError(f"{pattern}: no file fits the pattern")
    return found


def gather(paths: Sequence[Place]) -> list[list[Place]]:
    """Put files that a shell listed and whose names say that they are parts of one epoch together."""
    groups: dict[object, list[Place]] = {}
    for i, path in enumerate(paths):
        split = PART.search(path.name) if path.is_file() else None
        key: object = i if split is None else (path.parent, path.name[: split.start()])
        groups.setdefault(key, []).append(path)
    for parts in groups.values():
        if len(parts) > 1:
            check_complete(parts)
    return list(groups.values())


def name_of(paths: Sequence[Place]) -> Place:
    """Return the path that a source is called by: of parts, what their names have in common."""
    path = paths[0]
    if len(paths) > 1:
        path = path.with_name(prefix_of(path) or "*")
    while glob.has_magic(path.name) and not path.exists():
        path = path.parent
    return path.resolve()


def prefix_of(part: Place) -> str:
    """Return what the names of the parts of an epoch have in common; nothing where they have not."""
    split = PART.search(part.name)
    return part.name[: split.start()] if split else ""


def distinct_names(paths: Sequence[Place]) -> list[str]:
    """Return the last part of each path; equal names get their parents in front."""
    found = []
    for path in paths:
        same = {other for other in paths if other.name == path.name}
        size, longest = 1, max(len(other.parts) for other in same)
        while size < longest and len({other.parts[-size:] for other in same}) < len(same):
            size += 1
        parts = path.parts[1:] if path.anchor else path.parts
        found.append("/".join(parts[-size:]) or path.name)
    return found


def _one_epoch(files: list[Place | InMemory]) -> Snapshot:
    """Return the parts that a user listed."""
    if not files:
        raise FeaturesError(
            "`path` must be a path or a list of the parts of one epoch, got no part"
        )
    places = [file for file in files if not isinstance(file, InMemory)]
    for file in places:
        if not file.exists():
            raise FeaturesError(f"{file}: there is no such file or folder")
        if not is_features(file):
            raise FeaturesError(f"{file}: {unknown(file)}")
    check_complete(places, chosen=True)
    numbers = {_said(file) for file in places} or {None}
    return Snapshot(numbers.pop() or 0 if len(numbers) == 1 else 0, tuple(files))


def _by_epoch(files: list[Place]) -> list[Snapshot]:
    """Return the files of a pattern: one epoch, or several by file or folder name."""
    if len(files) == 1:
        return find_snapshots(files[0])
    groups: dict[int | None, list[Place]] = {}
    for file in files:
        parts = _parts_in(file)
        if not (parts or is_features(file)):
            raise FeaturesError(f"{file}: {unknown(file)}")
        groups.setdefault(_said(file), []).extend(parts or [file])
    if None in groups and len(groups) > 1:
        raise FeaturesError(
            f"{groups[None][0]}: its name has no number of an epoch, and others of the pattern have"
        )
    for parts in groups.values():
        check_complete(parts)
    return [
        Snapshot(0 if number is None else number, tuple(parts))
        for number, parts in sorted(groups.items(), key=lambda item: item[0] or 0)
    ]


def _said(file: Place) -> int | None:
    """Return the number behind "epoch" in the name of a file, or else of its folder."""
    for text in (file.name, file.parent.name):
        if (found := _EPOCH.search(text)) and len(found[1]) <= _MAX_DIGITS:
            return int(found[1])
    return None


def _parts_in(folder: Place) -> list[Place]:
    """Return the parts of the one epoch of a folder; none if it is not a folder of parts."""
    if not folder.is_dir() or is_npy_folder(folder) or (folder / "run.json").exists():
        return []
    if (saved := saved_dataset(folder)) is not None:
        return saved
    entries = in_order(folder.iterdir())
    if any(KEY.match(entry.name) for entry in entries):
        return [file for keys, file in partitions(folder) if "epoch" not in keys]
    files = [file for file in entries if is_features(file)]
    return [] if any(_EPOCH.search(file.name) for file in files) else files


def _in_folder(folder: Place) -> list[Snapshot]:
    """Return the snapshots in a folder, each a file, parts, or a folder of parts."""
    refuse_foreign(folder)
    entries = in_order(folder.iterdir())
    if any(KEY.match(entry.name) and entry.is_dir() for entry in entries):
        return _in_partitions(folder)
    named = _EPOCH.search(folder.resolve().name)
    if one := saved_dataset(folder) or (_parts_in(folder) if named else []):
        check_complete(one)
        return [Snapshot(_find_part_number(folder, "", ""), tuple(one))]
    refuse_copies([entry for entry in entries if entry.suffix in FORMATS])
    found: dict[int, list[Place]] = {}
    prefixes: dict[int, str | None] = {}
    for file in entries:
        inside: list[Place] = []
        if not is_features(file):
            inside = _parts_in(file)
            if not inside or not re.search("[0-9]", file.name):
                continue
        stem = stem_of(file)
        split = None if inside else PART.search(stem)
        prefix = None
        if split is None:
            number = _find_number(file, stem)
        else:
            prefix = stem[: split.start()]
            number = _find_part_number(folder, prefix, stem[split.end() :])
        if number in found and (prefix is None or prefixes[number] != prefix):
            raise FeaturesError(f"{file} and {found[number][0].name} are both of epoch {number}")
        prefixes[number] = prefix
        found.setdefault(number, []).extend(inside or [file])
    if not found:
        raise FeaturesError(f"{folder}: {_nothing_in(entries)}; {SUPPORTED}")
    for parts in found.values():
        check_complete(parts)
    return [Snapshot(number, tuple(parts)) for number, parts in sorted(found.items())]


def _in_partitions(folder: Place) -> list[Snapshot]:
    """Return the epochs of a folder of partitions; those of no key ``epoch`` are one."""
    found: dict[int, list[Place]] = {}
    for keys, file in partitions(folder):
        number = keys.get("epoch")
        if number is None:
            found.setdefault(_find_part_number(folder, "", ""), []).append(file)
            continue
        if not re.fullmatch(f"[0-9]{{1,{_MAX_DIGITS}}}", number):
            raise FeaturesError(f"{file}: epoch={number} must be the number of an epoch")
        found.setdefault(int(number), []).append(file)
    if not found:
        raise FeaturesError(f"{folder}: its partitions have no features; {SUPPORTED}")
    for parts in found.values():
        check_names(parts)
    return [Snapshot(number, tuple(parts)) for number, parts in sorted(found.items())]


def _nothing_in(entries: list[Place]) -> str:
    runs = [file for file in entries if (file / "run.json").is_file()]
    if runs:
        return (
            f"is no run folder, but {', '.join(map(str, runs[:8]))} "
            f"{'is one' if len(runs) == 1 else 'are some'}; give its path"
        )
    names = ", ".join(file.name for file in entries[:8]) or "nothing"
    return f"there are no features, there is {names}"


def _find_number(file: Place, stem: str) -> int:
    """Return the number behind "epoch" in a name, or else the last one."""
    numbers = _EPOCH.findall(stem) or re.findall("[0-9]+", stem)
    if not numbers or len(numbers[-1]) > _MAX_DIGITS:
        raise FeaturesError(
            f"{file}: its name has no number of an epoch, as epoch_3{file.suffix} has; "
            "to read it alone, open the file and not its folder"
        )
    return int(numbers[-1])


def _find_part_number(folder: Place, prefix: str, rest: str) -> int:
    """Return the epoch that a part says, or else the one that its folder says."""
    numbers = _EPOCH.findall(prefix) or _EPOCH.findall(rest) or re.findall("[0-9]+", prefix)
    numbers = numbers or _EPOCH.findall(folder.resolve().name)
    return int(numbers[-1]) if numbers and len(numbers[-1]) <= _MAX_DIGITS else 0
