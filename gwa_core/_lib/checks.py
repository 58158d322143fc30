"""Validation and its error texts: argument, expected, got, usual cause.

Shapes, dtypes and options are checked always, so also under jit. Values are checked where looking
costs nothing, on NumPy arrays; adapters check them on their own concrete arrays.
"""

from __future__ import annotations

import operator
from typing import Any, Literal, TypeAlias, get_args

from gwa_core._lib.array import Array, is_floating, is_host

__all__ = [
    "Loss",
    "check_bias",
    "check_choice",
    "check_fraction",
    "check_integer",
    "check_labels",
    "check_loss",
    "check_matrix",
    "check_positive_int",
    "check_scores",
    "check_sketch",
    "check_vector",
    "check_weight",
    "check_where",
]

Loss: TypeAlias = Literal["cross_entropy", "binary_cross_entropy"]

# Soft targets written as float16 sum to one within C roundings of 2^-11.
SUM_TOLERANCE = 1e-2


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_fraction(name: str, value: float) -> None:
    """Raise unless 0 <= value < 1."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"`{name}` must be in [0, 1), got {value!r}; it is a fraction")


def check_integer(name: str, value: Any, *, least: int | None = None) -> int:
    """Return an integer of any library, such as NumPy's, as a Python one; raise where it is none.

    A bool is no integer here: it is a comparison that somebody forgot to sum.
    """
    try:
        whole = operator.index(value)
    except TypeError:
        whole = None
    # A bool of PyTorch, or of an older NumPy, passes for an index.
    flag = "bool" in str(getattr(value, "dtype", type(value)))
    if whole is None or flag or (least is not None and whole < least):
        at_least = "" if least is None else f" of at least {least}"
        raise ValueError(f"`{name}` must be an integer{at_least}, got {value!r}")
    return whole


def check_positive_int(name: str, value: Any) -> int:
    """Return an integer of at least one as a Python one; raise where it is none."""
    return check_integer(name, value, least=1)


def _check_floating(xp: Any, name: str, x: Array) -> None:
    if not is_floating(xp, x):
        raise TypeError(
            f"`{name}` must be floating point, got {x.dtype}; "
            f"cast it first, and check that `{name}` and `targets` are not swapped"
        )


def check_matrix(xp: Any, name: str, x: Array, *, shape: str, rows: int | None = None) -> None:
    """Check a floating (N, something) array, N >= 1."""
    if x.ndim != 2:
        raise ValueError(
            f"`{name}` must be {shape}, got shape {tuple(x.shape)}; "
            "flatten spatial or token axes into the first one"
        )
    _check_floating(xp, name, x)
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(
            f"`{name}` must be {shape} and not empty, got shape {tuple(x.shape)}; "
            "skip empty batches before the call"
        )
    if rows is not None and x.shape[0] != rows:
        raise ValueError(
            f"`{name}` must be {shape} with N = {rows} rows, got shape {tuple(x.shape)}; "
            "all arrays of a call describe the same samples"
        )


def check_vector(xp: Any, name: str, x: Array, size: int, *, letter: str = "N") -> None:
    """Check a floating (N,) array."""
    _check_floating(xp, name, x)
    if tuple(x.shape) != (size,):
        raise ValueError(f"`{name}` must be ({letter},) = ({size},), got shape {tuple(x.shape)}")


def check_sketch(features: int, sketched: int) -> None:
    """Check that a sketch is made for latents of this width."""
    if sketched != features:
        raise ValueError(
            f"`sketch` must have in_features = D = {features}, got {sketched}; "
            "a sketch belongs to one width of latents"
        )


def check_scores(xp: Any, name: str, x: Array) -> None:
    """Check a floating (N,) array that may be empty."""
    if x.ndim != 1 or not is_floating(xp, x):
        raise ValueError(
            f"`{name}` must be floating point (N,), got {x.dtype} of shape {tuple(x.shape)}"
        )


def check_weight(xp: Any, weight: Array, *, features: int, classes: int | None) -> None:
    """Check a (C, D) head, and say when it looks like its transpose."""
    _check_floating(xp, "weight", weight)
    shape = tuple(weight.shape)
    expected = ("C" if classes is None else classes, features)
    text = f"`weight` must be (C, D) = ({expected[0]}, {expected[1]}), got {shape}"
    if len(shape) != 2:
        raise ValueError(f"{text}; take the weight of the linear head alone, without its bias")
    if shape[1] != features or (classes is not None and shape[0] != classes):
        if shape[0] == features and (classes is None or shape[1] == classes):
            raise ValueError(f"{text}; a Flax kernel must be transposed")
        raise ValueError(f"{text}; `latents` must be the input of this head, not of another layer")


def _check_classes(classes: int, loss: str) -> None:
    """Check that the loss has a gradient with this many classes."""
    if classes < 2 and loss == "cross_entropy":
        raise ValueError(
            f"`loss` 'cross_entropy' needs C >= 2 classes, got C = {classes}: its gradient would "
            "be zero; a head with one output is trained with loss='binary_cross_entropy'"
        )


def check_bias(xp: Any, bias: Array | None, classes: int, rows: int | None = None) -> None:
    """Check a (C,) bias, or where `rows` is given an (N, C) one."""
    if bias is None:
        return
    _check_floating(xp, "bias", bias)
    shape = tuple(bias.shape)
    if shape != (classes,) and (rows is None or shape != (rows, classes)):
        per_row = "" if rows is None else f" or (N, C) = ({rows}, {classes})"
        raise ValueError(f"`bias` must be (C,) = ({classes},){per_row}, got shape {shape}")


def check_where(xp: Any, where: Array | None, rows: int) -> None:
    """Check an (N,) boolean mask."""
    if where is None:
        return
    if not xp.isdtype(where.dtype, "bool") or tuple(where.shape) != (rows,):
        raise ValueError(
            f"`where` must be boolean (N,) = ({rows},), got {where.dtype} of shape "
            f"{tuple(where.shape)}; True marks the samples that count"
        )


def check_loss(
    xp: Any,
    targets: Array,
    rows: int,
    classes: int,
    loss: str,
    label_smoothing: float,
    where: Array | None = None,
) -> None:
    """Check all that belongs to a loss: its options, the targets and their mask."""
    check_choice("loss", loss, get_args(Loss))
    check_fraction("label_smoothing", label_smoothing)
    _check_classes(classes, loss)
    check_where(xp, where, rows)
    shape = tuple(targets.shape)
    whole = bool(xp.isdtype(targets.dtype, "integral"))
    if shape not in ((rows,), (rows, classes)) or (len(shape) == 1 and not whole and classes > 1):
        raise ValueError(
            f"`targets` must be (N,) = ({rows},) integers or (N, C) = ({rows}, {classes}) "
            f"probabilities, got {targets.dtype} of shape {shape}; "
            "cast class numbers to an integer dtype"
        )
    if is_host(targets, where):
        counted = targets if where is None else targets[where]
        if counted.shape[0] > 0:
            _check_target_values(xp, counted, classes, loss)


def check_labels(xp: Any, targets: Array, rows: int, classes: int) -> None:
    """Check class numbers (N,), where soft targets have no meaning."""
    if targets.ndim != 1:
        raise ValueError(
            f"`targets` must be (N,) class numbers, got shape {tuple(targets.shape)}; with soft "
            "targets no class is the label"
        )
    check_loss(xp, targets, rows, classes, "cross_entropy", 0.0)


def _check_target_values(xp: Any, targets: Array, classes: int, loss: str) -> None:
    low, high = xp.min(targets), xp.max(targets)
    # One output knows two classes, 0 and 1; so does each output of a multi-label target.
    last = max(classes - 1, 1) if targets.ndim == 1 else 1
    if low < 0 or high > last:
        kind = f"class numbers in 0..{last}" if targets.ndim == 1 else "in [0, 1]"
        raise ValueError(
            f"`targets` must be {kind}, got {low if low < 0 else high}; labels are counted from 0, "
            "and ignored samples are left out by `where`"
        )
    if targets.ndim == 2 and loss == "cross_entropy":
        sums = xp.sum(xp.astype(targets, xp.float64), axis=1)
        worst = float(sums[xp.argmax(xp.abs(sums - 1.0))])
        if abs(worst - 1.0) > SUM_TOLERANCE:
            raise ValueError(
                f"each row of soft `targets` must sum to 1, got {worst:.6g}; "
                "use `loss='binary_cross_entropy'` for several independent labels"
            )
