"""The parts of one epoch as one set of arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gwa_offline.files.arrays import Joined, LazyArray
from gwa_offline.files.checks import FIELDS
from gwa_offline.files.errors import FeaturesError, blame
from gwa_offline.files.memory import InMemory
from gwa_offline.files.strings import is_text
from gwa_offline.files.urls import Place

# Elements of a head that are compared between parts; one step of an optimiser changes all rows.
_COMPARED = 2**20

_HEAD = ("weight", "bias")


def join(parts: Sequence[tuple[Place | InMemory, dict[str, LazyArray]]]) -> dict[str, LazyArray]:
    """Join the rows of the parts; all parts have the weight and bias of one head.

    Parameters
    ----------
    parts : sequence of (place, dict of str to lazy array)
        The file and the arrays of each part, in the order of the rows.

    Returns
    -------
    dict of str to lazy array
        Row arrays have the sum of the rows; parts without rows are passed over.

    Raises
    ------
    FeaturesError
        If a part lacks an array that others have, or has another head or other shapes.
    """
    if len(parts) == 1:
        return parts[0][1]
    joined: dict[str, LazyArray] = {}
    # The columns that are carried along are rows, too.
    kept = [name for name in parts[0][1] if name not in FIELDS]
    # What has no rows may have lists of no length, and numbers of no type.
    filled = [part for part in parts if not _is_empty(part[1])] or parts[:1]
    for field in [*FIELDS, *kept]:
        of = parts if field in _HEAD else filled
        found = [(path, arrays[field]) for path, arrays in of if field in arrays]
        if not found:
            continue
        if field in _HEAD:
            joined[field] = found[0][1]
            for path, array in found[1:]:
                _check_same_head(field, path, array, *found[0])
            continue
        if len(found) < len(filled):
            lacking = next(path for path, arrays in filled if field not in arrays)
            raise FeaturesError(
                f"`{field}` is missing in {lacking.name}, and {found[0][0].name} has it; all parts "
                "of an epoch must have the same arrays"
            )
        first = found[0][1]
        texts = {is_text(array): path.name for path, array in found}
        if len(texts) > 1:
            raise FeaturesError(
                f"`{field}` of {texts[True]} are strings, and those of {texts[False]} are numbers"
            )
        for path, array in found:
            if array.shape[1:] != first.shape[1:] or not array.shape:
                raise FeaturesError(
                    f"`{field}` of {path.name} has shape {array.shape}, that of {found[0][0].name} "
                    f"{first.shape}; parts of an epoch differ in their first dimension only"
                )
        for path, arrays in filled:
            if "latents" in arrays and len(arrays[field].shape) and arrays["latents"].shape:
                rows, latents = arrays[field].shape[0], arrays["latents"].shape[0]
                if rows != latents:
                    raise FeaturesError(
                        f"`{field}` of {path.name} has {rows} rows, and its `latents` {latents}"
                    )
        joined[field] = Joined(tuple((path.name, array) for path, array in found))
    return joined


def _is_empty(arrays: dict[str, LazyArray]) -> bool:
    rows = [x.shape[0] for name, x in arrays.items() if name not in _HEAD and x.shape]
    return bool(rows) and not any(rows)


def _check_same_head(
    field: str, path: Place | InMemory, array: LazyArray, other: Place | InMemory, first: LazyArray
) -> None:
    same = array.shape == first.shape
    if same and array.shape and array.shape[0]:
        width = max(1, array.shape[-1] if len(array.shape) > 1 else 1)
        rows = max(1, _COMPARED // width)
        with blame(path.name):
            same = np.array_equal(
                next(array.chunks(rows)), next(first.chunks(rows)), equal_nan=True
            )
    if not same:
        raise FeaturesError(
            f"`{field}` of {path.name} is another than that of {other.name}; the parts of an epoch "
            "have one head, as it was at the end of the epoch"
        )
