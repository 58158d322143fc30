"""What a user hands over in files of their own: an array, a head, names of classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gwa_offline.files.arrays import LazyArray, read_all
from gwa_offline.files.checks import ALIASES
from gwa_offline.files.errors import FeaturesError, blame, reading
from gwa_offline.files.formats import FORMATS, open_npy

_PICKLED = (".bin", ".ckpt", ".pkl")


def read_given(file: Path, name: str) -> NDArray[Any]:
    """Read one array: of a .npy file, or of that name, or the only one, in another file."""
    with blame(file):
        return read_all(_open_given(file, name))


def _open_given(file: Path, name: str) -> LazyArray:
    if not file.is_file():
        wrong = "is a folder" if file.is_dir() else "there is no such file"
        raise FeaturesError(f"{wrong}; `{name}` must be a .npy file")
    refuse_pickles(file, name)
    if file.suffix not in FORMATS:
        return open_npy(file)
    openers = FORMATS[file.suffix](file)
    fitting = [key for key in openers if ALIASES.get(key, key) == name] or list(openers)
    if len(fitting) != 1:
        hint = "; `--head FILE:LAYER` reads the head of a checkpoint" if name != "targets" else ""
        raise FeaturesError(
            f"`{name}` is missing, there is {', '.join(list(openers)[:8]) or 'nothing'}{hint}"
        )
    with blame(f"`{fitting[0]}`"):
        return openers[fitting[0]]()


def refuse_pickles(file: Path, name: str) -> None:
    """Refuse pickled objects, which are read by running them."""
    if file.suffix in _PICKLED:
        raise FeaturesError(
            f"`{name}` is not read from {file.suffix}, which holds pickled objects; save it by "
            f"numpy.save('{name}.npy', tensor.detach().cpu().numpy()), or as .safetensors"
        )


def read_head(text: str) -> dict[str, NDArray[Any]]:
    """Read weight and bias of a layer, named as in ``model.safetensors:classifier``."""
    place, colon, layer = text.rpartition(":")
    if not colon or Path(text).exists():
        place, layer = text, ""
    file = Path(place)
    with blame(file):
        if not file.is_file():
            raise FeaturesError("there is no such file; a head is model.safetensors:classifier")
        refuse_pickles(file, "head")
        if file.suffix not in (".safetensors", ".pt", ".pth"):
            raise FeaturesError(
                "a head is read from .safetensors or .pt; other arrays by `--weight`"
            )
        openers = FORMATS[file.suffix](file)
        if f"{layer}.weight" not in openers:
            layers = [
                key.removesuffix(".weight")
                for key, opener in openers.items()
                if key.endswith(".weight") and len(opener().shape) == 2
            ]
            # The head of a network is one of its last layers.
            raise FeaturesError(
                f"has no layer {layer!r} with a weight; name one behind a colon: "
                f"{', '.join(layers[-8:]) or 'it has none'}"
            )
        found = {}
        for name in ("weight", "bias"):
            if f"{layer}.{name}" in openers:
                with blame(f"`{layer}.{name}`"):
                    found[name] = read_all(openers[f"{layer}.{name}"]())
    return found


def read_names(text: str) -> list[str]:
    """Read names of classes: the lines of a text file, or words with commas between."""
    if not os.path.isfile(text):  # noqa: PTH113  (of a long list Path raises)
        if text.endswith(".txt"):
            raise FeaturesError(f"{text}: there is no such file")
        return [name.strip() for name in text.split(",")]
    with blame(text), reading():
        return Path(text).read_text(encoding="utf-8").splitlines()
