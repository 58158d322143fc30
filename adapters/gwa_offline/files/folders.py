"""What a folder holds: features, a saved data set, partitions, or something else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from gwa_offline.files.checks import FIELDS
from gwa_offline.files.errors import FeaturesError, blame, reading
from gwa_offline.files.formats import FORMATS, KEY
from gwa_offline.files.urls import Place

SUPPORTED = (
    f"supported are {', '.join(FORMATS)}, a folder of .npy files (latents.npy, weight.npy, "
    "targets.npy), a folder of such snapshots (epoch_3.npz, ...) and a run folder"
)

# What other libraries read, and how it comes here.
_FOREIGN = {
    ".h5": "HDF5 is opened by h5py, in Python: analyse(h5py.File({name!r}))",
    ".hdf5": "HDF5 is opened by h5py, in Python: analyse(h5py.File({name!r}))",
    ".zarr": "Zarr is opened by zarr, in Python: analyse(dict(zarr.open_group({name!r}).arrays()))",
    ".tar": "WebDataset has a file for each sample; put them together, in Python: "
    "numpy.savez('features.npz', latents=..., targets=..., weight=...)",
}
_LARGEST_STATE = 10_000_000
_DEEPEST = 8  # partitions within each other


def in_order(files: Iterable[Place]) -> list[Place]:
    """Sort by name, numbers by their value; leave out what is hidden or half-written."""
    kept = [file for file in files if not file.name.startswith(".") and ".tmp" not in file.name]

    def key(file: Place) -> list[tuple[int, str]]:
        pieces = re.split("([0-9]+)", str(file))
        return [(int(x), "") if x.isdecimal() and len(x) < 4300 else (-1, x) for x in pieces]

    return sorted(kept, key=key)


def is_features(place: Place) -> bool:
    """Return whether a place is one file of features or a folder of .npy files."""
    return (place.suffix in FORMATS and place.is_file()) or is_npy_folder(place)


def is_npy_folder(place: Place) -> bool:
    """Return whether a place is a folder of .npy files of one snapshot."""
    if not place.is_dir():
        return False
    files: list[Place] = list(place.iterdir())
    names = {file.name for file in files}
    if "run.json" in names:  # a run has a targets.npy
        return False
    if "latents.npy" in names:
        return True
    known = any(f"{name}.npy" in names for name in FIELDS)
    # A weight.npy among parts is for all of them.
    return known and not any(file.suffix in FORMATS or KEY.match(file.name) for file in files)


def unknown(place: Place) -> str:
    """Say that a format is not read, and how it can be."""
    if (hint := _FOREIGN.get(place.suffix)) is not None:
        return hint.format(name=place.name)
    return f"{place.suffix or 'no suffix'} is unknown; {SUPPORTED}"


def refuse_foreign(folder: Place) -> None:
    """Refuse a folder that another library reads, and a folder of splits."""
    if folder.suffix in _FOREIGN:
        raise FeaturesError(f"{folder}: {unknown(folder)}")
    file = folder / "dataset_dict.json"
    if file.exists():
        splits = _read(file).get("splits")
        names = [str(name) for name in splits] if isinstance(splits, list) else []
        raise FeaturesError(
            f"{folder}: holds the splits {', '.join(names[:8]) or 'of no name'}; give the folder of "
            f"one: {folder / (names[0] if names else 'train')}"
        )


def saved_dataset(folder: Place) -> list[Place] | None:
    """Return the files of a data set that Hugging Face saved, in order; None if it is none."""
    file = folder / "state.json"
    if not file.exists():
        return None
    listed = _read(file).get("_data_files")
    names = (
        [entry.get("filename") for entry in listed if isinstance(entry, dict)]
        if isinstance(listed, list)
        else []
    )
    parts = []
    for name in names:
        # Beside them lie files of a cache, which are not of the data set.
        if not isinstance(name, str) or PurePosixPath(name).name != name:
            raise FeaturesError(f"{file}: has no names of files in `_data_files`")
        part = folder / name
        if not part.exists():
            raise FeaturesError(f"{part}: is missing, and state.json names it")
        parts.append(part)
    return parts


def partitions(folder: Place, depth: int = 0) -> Iterator[tuple[dict[str, str], Place]]:
    """Yield the files of a folder of partitions, such as ``epoch=3/label=1/part-0.parquet``."""
    for entry in in_order(folder.iterdir()):
        found = KEY.match(entry.name)
        if found and depth < _DEEPEST and entry.is_dir():
            for keys, file in partitions(entry, depth + 1):
                yield {found[1]: found[2]} | keys, file
        elif depth and is_features(entry):
            yield {}, entry


def _read(file: Place) -> dict[str, object]:
    with blame(file), reading():
        with file.open("rb") as stream:
            data = json.loads(stream.read(_LARGEST_STATE))
        if not isinstance(data, dict):
            raise FeaturesError("is not what Hugging Face writes")
    return data
