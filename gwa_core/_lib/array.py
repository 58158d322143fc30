"""The only door to array_api_compat: namespaces, dtypes, devices, and row blocks for NumPy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias, cast

import array_api_compat as compat
import numpy as np

__all__ = [
    "Array",
    "accumulator_dtype",
    "constant",
    "device_of",
    "index_dtype",
    "is_floating",
    "is_host",
    "map_rows",
    "namespace",
    "owned",
    "quiet",
    "recompute_rows",
    "result_dtype",
    "scalar",
    "to_numpy",
]

Array: TypeAlias = Any
"""An array of any namespace that follows the array API standard."""

# One MiB of float32 stays in the caches of one core together with a temporary, and is long
# enough for the calls to cost little.
BLOCK_BYTES = 1024 * 1024

device_of = compat.device


def namespace(**arrays: Array | None) -> Any:
    """Return the one namespace of the named arrays, or say which of them do not fit together."""
    given = {name: x for name, x in arrays.items() if x is not None}
    try:
        xp = compat.array_namespace(*given.values())
    except TypeError as error:
        _check_arrays(given)
        kinds = ", ".join(f"`{name}`: {type(x).__module__}" for name, x in given.items())
        raise TypeError(
            f"all arrays must come from one library, got {kinds}; convert them to one library first"
        ) from error
    if not all(hasattr(x, "ndim") for x in given.values()):
        _check_arrays(given)
    # JAX moves uncommitted arrays itself and says it where it can't.
    if not compat.is_jax_namespace(xp):
        devices = {name: compat.device(x) for name, x in given.items()}
        if len(set(devices.values())) > 1:
            where = ", ".join(f"`{name}` on {device}" for name, device in devices.items())
            raise ValueError(
                f"all arrays must be on one device, got {where}; move them with `.to(device)`"
            )
    return xp


def _check_arrays(given: dict[str, Any]) -> None:
    for name, x in given.items():
        if not compat.is_array_api_obj(x):
            raise TypeError(
                f"`{name}` must be an array (NumPy, PyTorch, JAX, ...), got {type(x).__name__}; "
                "convert lists with `numpy.asarray`"
            )


def is_floating(xp: Any, x: Array) -> bool:
    """Tell whether x holds real floating-point numbers (half precision included)."""
    return bool(xp.isdtype(x.dtype, "real floating"))


def result_dtype(xp: Any, *arrays: Array | None) -> Any:
    """Return the promoted floating dtype of the arrays, raised to float32 where it is narrower."""
    dtype = xp.float32
    for x in arrays:
        if x is not None and is_floating(xp, x) and xp.finfo(x.dtype).bits > 32:
            dtype = x.dtype
    return dtype


def accumulator_dtype(xp: Any, x: Array) -> Any:
    """Return float64 where the device of x has it, else float32 (JAX without x64, MPS)."""
    if compat.is_torch_namespace(xp):
        # The probe of array_api_compat allocates; torch lacks float64 on MPS alone.
        return xp.float32 if x.device.type == "mps" else xp.float64
    if compat.is_numpy_namespace(xp):
        return xp.float64
    # A traced JAX array has no device, and then the answer is the namespace's.
    known = xp.__array_namespace_info__().dtypes(device=compat.device(x), kind="real floating")
    return known.get("float64", xp.float32)


def index_dtype(xp: Any, like: Array) -> Any:
    """Return the integer dtype to index with (int32 in JAX without x64)."""
    if compat.is_torch_namespace(xp) or compat.is_numpy_namespace(xp):
        return xp.int64
    info = xp.__array_namespace_info__()
    return info.default_dtypes(device=compat.device(like))["indexing"]


def constant(xp: Any, value: Any, like: Array, dtype: Any = None) -> Array:
    """Return value as an array on the device of `like`, in its dtype or in the one given."""
    if compat.is_torch_namespace(xp) and like.device.type == "cuda":
        # PyTorch would wait for the GPU; it need not for a number, nor for a copy of its own.
        dtype = like.dtype if dtype is None else dtype
        if isinstance(value, float | int):
            return xp.full((), value, dtype=dtype, device=like.device)
        made = xp.asarray(value, dtype=dtype, device="cpu")
        return made.to(like.device, non_blocking=True)
    return xp.asarray(value, dtype=like.dtype if dtype is None else dtype, device=device_of(like))


def scalar(xp: Any, name: str, value: Any, like: Array, dtype: Any) -> Array:
    """Return a number, or a 0-D array from where `like` is, as a 0-D array."""
    if isinstance(value, float | int | np.generic):
        return constant(xp, float(value), like, dtype)
    if getattr(value, "ndim", None) != 0:
        got = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise ValueError(f"`{name}` must be one number, a float or a 0-D array, got {got}")
    namespace(**{name: value}, logits=like)
    return xp.astype(value, dtype)


def is_host(*arrays: Array | None) -> bool:
    """Tell whether the values can be looked at for free: every array given is NumPy's."""
    return all(x is None or compat.is_numpy_array(x) for x in arrays)


def quiet(xp: Any) -> AbstractContextManager[Any]:
    """Silence NumPy's floating-point warnings: what they warn of is answered by nan, as promised."""
    if compat.is_numpy_namespace(xp) or compat.is_array_api_strict_namespace(xp):
        return np.errstate(all="ignore")
    return nullcontext()


def map_rows(
    function: Callable[..., Any],
    xp: Any,
    *arrays: Array | None,
    row_bytes: int,
    block_bytes: int = BLOCK_BYTES,
) -> Any:
    """Apply a row-wise function; in NumPy by blocks of rows that stay in the cache.

    Without blocks every temporary of an (N, C) expression travels to memory and back, which is
    what NumPy spends its time on. Other libraries fuse or are fast at whole arrays, and a loop
    would be unrolled by their tracers, so they get the arrays as they are.
    """
    rows = next(x.shape[0] for x in arrays if x is not None)
    step = max(1, block_bytes // row_bytes)
    with quiet(xp):
        if not compat.is_numpy_namespace(xp) or rows <= step:
            return function(*arrays)
        blocks = [
            function(*(None if x is None else x[start : start + step] for x in arrays))
            for start in range(0, rows, step)
        ]
    if isinstance(blocks[0], tuple):
        return tuple(xp.concat(parts) for parts in zip(*blocks, strict=True))
    return xp.concat(blocks)


def recompute_rows(
    function: Callable[..., tuple[Array, Array]],
    xp: Any,
    value: Array,
    doubtful: Array,
    *arrays: Array | None,
    row_bytes: int,
) -> Array:
    """Compute the doubtful rows of a float32 result again in float64, where that costs little.

    Only NumPy can look which rows those are; elsewhere float32 results have float32 accuracy.
    """
    if not compat.is_numpy_namespace(xp) or value.dtype == xp.float64 or not doubtful.any():
        return value
    (rows,) = doubtful.nonzero()
    step = max(1, BLOCK_BYTES // (2 * row_bytes))
    value = value.copy()
    with quiet(xp):
        for start in range(0, rows.shape[0], step):
            block = rows[start : start + step]
            picked = (None if x is None else x[block] for x in arrays)
            value[block] = function(*picked, dtype=xp.float64)[0]
    return value


def owned(x: Array | None) -> Array | None:
    """Copy what lies on the host: a loop may write its next batch into the same buffer."""
    return x.copy() if x is not None and is_host(x) else x


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """Copy an array to NumPy (waits for its device); half precision arrives as float32."""
    if compat.is_torch_array(x):
        x = x.detach().cpu()
        # NumPy has no bfloat16.
        x = x.float() if x.dtype.itemsize < 4 and x.is_floating_point() else x
        return cast("np.ndarray[Any, Any]", x.numpy())
    if compat.is_array_api_strict_namespace(compat.array_namespace(x)):
        x = compat.to_device(x, compat.array_namespace(x).Device("CPU_DEVICE"))
    out: np.ndarray[Any, Any] = np.asarray(x)
    # ml_dtypes' bfloat16 is of kind "V" to NumPy.
    half = out.dtype == np.float16 or out.dtype.kind not in "biuf"
    return out.astype(np.float32) if half else out
