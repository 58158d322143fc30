"""What the names of the parts of an epoch say: whether all are there, and none twice."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gwa_offline.files.errors import FeaturesError
from gwa_offline.files.formats import FORMATS
from gwa_offline.files.urls import Place

PART = re.compile(
    r"(?:^|[-_.])(?:([0-9]{1,9})-of-([0-9]{1,9})(?=$|[-_.])|(?:part|shard|chunk)[-_.]?([0-9]+))",
    re.IGNORECASE,
)
# What file managers and browsers put behind the name of a copy.
_COPY = re.compile(r" ?(?:\([0-9]+\)|\(copy.*\)|- copy.*|copy.*)$", re.IGNORECASE)
# Spark numbers its tasks, of which some write nothing and some several files.
_SPARK = re.compile("-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def stem_of(file: Place) -> str:
    """Return the name of a file without its suffix, and of a folder the whole name."""
    return file.stem if file.suffix in FORMATS else file.name


def check_complete(parts: Sequence[Place], *, chosen: bool = False) -> None:
    """Refuse parts of which one is missing, or is there in two files.

    Of parts that the user has `chosen` in a list some may be left out, and formats may differ.
    """
    _check_total(parts)
    check_names(parts, chosen=chosen)


def check_names(parts: Sequence[Place], *, chosen: bool = False) -> None:
    """Refuse files whose names say that one is missing, or that rows are in two of them."""
    folders: dict[Place, list[Place]] = {}
    for part in parts:
        folders.setdefault(part.parent, []).append(part)
    for files in folders.values():
        refuse_copies(files)
        _check_numbers(files, chosen=chosen)
    formats = {part.suffix: part for part in parts}
    if len(formats) > 1 and not chosen:
        one, other = list(formats.values())[:2]
        raise FeaturesError(
            f"{one} and {other.name} are of two formats; an epoch that is in both counts twice. "
            "Move one away, or list the parts in Python"
        )


def refuse_copies(files: Sequence[Place]) -> None:
    """Refuse a file that is there twice, and what a file manager calls a copy of another one."""
    stems: dict[tuple[str, str], Place] = {}
    for file in files:
        if stems.setdefault((stem_of(file), file.suffix), file) is not file:
            raise FeaturesError(f"{file}: is there twice")
    for (stem, suffix), file in stems.items():
        first = _COPY.sub("", stem)
        if first != stem and (first, suffix) in stems:
            raise FeaturesError(f"{file}: is a copy of {first}{suffix} by its name; move it away")


def _check_numbers(files: Sequence[Place], *, chosen: bool) -> None:
    """Refuse two parts of one number, a number that is missing, and what is no part beside parts."""
    splits = {file: PART.search(stem_of(file)) for file in files}
    first = next((file for file, split in splits.items() if split), None)
    same: dict[object, Place] = {}
    names: dict[str, Place] = {}
    runs: dict[str, dict[int, Place]] = {}
    for file, split in splits.items():
        stem = stem_of(file)
        if first is not None and split is None:
            raise FeaturesError(
                f"{file}: is no part, and {first.name} beside it is one; an epoch is in parts or "
                "in one file. Move one away"
            )
        key: object = _plain(stem)
        if split is not None:
            number = int(split[1] or split[3])
            name, rest = _plain(stem[: split.start()]), _plain(stem[split.end() :])
            key = name, rest, number
            if not _SPARK.match(rest):
                names.setdefault(re.sub("[0-9]+", "", name + "\0" + rest), file)
            if not split[2] and not _SPARK.match(rest):
                runs.setdefault(name + "\0" + rest, {})[number] = file
        other = same.setdefault(key, file)
        if other is not file:
            raise FeaturesError(f"{other} and {file.name} are the same part by their names")
    if len(names) > 1:
        one, other = list(names.values())[:2]
        raise FeaturesError(
            f"{one} and {other.name} are parts of different names, and an epoch has parts of one"
        )
    for found in runs.values():
        missing = next((i for i in sorted(found) if i + 1 not in found), None)
        if not chosen and missing != max(found):
            assert missing is not None  # noqa: S101  (there is a part)
            raise FeaturesError(
                f"{found[missing]}: part {missing + 1} is missing, and part {max(found)} is there; "
                "to leave it out, list the parts in Python"
            )


def _plain(text: str) -> str:
    """Write numbers without zeros before them."""
    return re.sub("0*([0-9]+)", r"\1", text)


def _check_total(parts: Sequence[Place]) -> None:
    """Refuse parts that say how many they are and are not all there."""
    said = [(file, found) for file in parts if (found := PART.search(file.name)) and found[2]]
    if not said:
        return
    totals = sorted({int(found[2]) for _, found in said})
    numbers = {int(found[1]) for _, found in said}
    first = 0 if 0 in numbers else 1
    last = str(said[0][1][2])
    if len(totals) > 1 or len(said) < len(parts):
        raise FeaturesError(f"{said[0][0]}: others of its epoch do not say that they are of {last}")
    if len(numbers) < len(parts):
        raise FeaturesError(f"{said[0][0]}: two files of its epoch have the same number of a part")
    # The names may claim any total, so nothing as long as it is made.
    if len(numbers) != totals[0] or max(numbers) - first + 1 != totals[0]:
        missing = next(i for i in range(first, first + totals[0] + 1) if i not in numbers)
        raise FeaturesError(
            f"{said[0][0]}: part {missing} of {totals[0]} is missing, {len(numbers)} are there"
        )
