"""What PyTorch saved: a dictionary of tensors in a .pt file. PyTorch is imported here only, when asked."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gwa_offline.files.arrays import LazyArray, Openers
from gwa_offline.files.errors import FeaturesError
from gwa_offline.files.memory import open_array
from gwa_offline.files.urls import Place

# A tensor may repeat what its file has once; beyond so many bytes no head and no label does.
_REPEATED = 2**28
_DEEPEST = 8  # dictionaries within each other


def open_checkpoint(path: Place) -> Openers:
    """Return what opens each tensor of a .pt file; those of inner dictionaries are named with dots."""
    if not isinstance(path, Path):
        raise FeaturesError(
            f"a {path.suffix} file is mapped into memory, which takes a file of this machine; "
            "download it, or save its tensors as .safetensors"
        )
    try:
        import torch
    except ImportError as error:
        raise FeaturesError(
            f"a {path.suffix} file is read with PyTorch: pip install 'gwa-core[torch]', or save its "
            "tensors as .safetensors"
        ) from error
    load = partial(torch.load, path, map_location="cpu", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with path.open("rb") as stream:  # what has no zip's beginning is of before 1.6
                mapped = stream.read(4) == b"PK\x03\x04"
            data = load(mmap=mapped)
        except MemoryError as error:
            raise FeaturesError(f"does not fit into memory ({error})") from error
        except Exception as error:  # a damaged pickle may stop anywhere
            raise FeaturesError(_reason(error)) from error
    named = dict(_flatten("", data, 0)) if isinstance(data, Mapping) else {"tensor": data}
    return {name: partial(_open_tensor, name, value) for name, value in named.items()}


def _reason(error: Exception) -> str:
    """Say why PyTorch did not read a file; its own words are about `weights_only`."""
    text = str(error).strip() or type(error).__name__
    if (found := re.search(r"GLOBAL ([\w.]+)", text)) is not None:
        return (
            f"holds pickled objects ({found[1][:80]}), which are read by running them; save a dictionary "
            "of tensors: torch.save({'latents': ..., 'targets': ..., 'weight': ...}, file)"
        )
    if isinstance(error, pickle.UnpicklingError):
        text = "it is nothing that PyTorch saved"
    return f"cannot be read, is it truncated or damaged? ({text.splitlines()[0][:200]})"


def _flatten(prefix: str, data: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _flatten(f"{prefix}{key}.", value, depth + 1)
        else:
            yield f"{prefix}{key}", value


def _open_tensor(name: str, value: Any) -> LazyArray:
    import torch

    if not isinstance(value, torch.Tensor):
        raise FeaturesError(f"is a {type(value).__name__} and no tensor")
    plain = value.layout == torch.strided and not value.is_nested
    if not plain or value.is_quantized or value.is_meta:
        kind = "nested" if value.is_nested else value.layout
        raise FeaturesError(f"is {kind} {value.dtype}; a plain dense tensor is read")
    needed = value.numel() * value.element_size()
    if needed > max(_REPEATED, value.untyped_storage().nbytes()):
        raise FeaturesError(
            f"has {value.untyped_storage().nbytes()} bytes that are repeated to {needed}; "
            "save a contiguous tensor"
        )
    return open_array(name, value)
