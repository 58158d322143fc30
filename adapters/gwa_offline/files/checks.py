"""What a set of saved arrays must look like, whoever wrote it; shared by the store and the readers."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gwa_offline.files.arrays import Held, LazyArray, read_all
from gwa_offline.files.errors import FeaturesError, blame

FIELDS = ("latents", "weight", "targets", "logits", "bias", "ids")
# Names that data sets commonly use for the same thing.
ALIASES = {"target": "targets", "label": "targets", "labels": "targets", "id": "ids"}
LOSSES = ("cross_entropy", "binary_cross_entropy")

# Soft targets kept in bfloat16 sum to one within 2^-8; a wrong normalisation is off by far more.
_SUM_TOLERANCE = 1e-2
_CHECK_BYTES = 2**24


def index(name: str, value: Any) -> int:
    """Return a whole number of any integer type; a bool is none."""
    if type(value) is int and 0 <= value < 2**63:  # a history has many
        return value
    wrong = f"`{name}` must be an integer, got {type(value).__name__} {value!r}"
    if isinstance(value, bool | np.bool_):
        raise FeaturesError(wrong)
    try:
        whole = operator.index(value)
    except TypeError as error:
        raise FeaturesError(wrong) from error
    if not 0 <= whole < 2**63:
        raise FeaturesError(f"`{name}` must be from 0 to 2**63 - 1, got {whole}")
    return whole


def number(name: str, value: Any) -> float:
    """Return a number of any type that has a float in it."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise FeaturesError(
            f"`{name}` must be one number, got {type(value).__name__}: {str(value)[:80]}"
        ) from error


def check_class_names(names: Any, num_classes: int) -> tuple[str, ...]:
    """Return the names of all classes."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise FeaturesError(f"`class_names` must be a list of strings, got {str(names)[:80]}")
    # One output with a sigmoid has two classes.
    if len(names) not in (num_classes, max(num_classes, 2)):
        raise FeaturesError(f"`class_names` must have C = {num_classes} names, got {len(names)}")
    return tuple(names)


class ArrayLike(Protocol):
    """Anything of known shape and dtype, read or not."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements along each dimension."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements."""


class Layout(NamedTuple):
    """Sizes that the arrays of one snapshot agree on."""

    num_samples: int
    num_classes: int
    num_features: int


class Checked(NamedTuple):
    """What is known of a snapshot once it is checked."""

    layout: Layout
    labels: NDArray[np.int64] | None  # (n,); the likeliest class of soft targets
    ids: NDArray[np.int64] | None  # (n,)


def _got(array: ArrayLike) -> str:
    return f"got {array.dtype} of shape {tuple(array.shape)}"


def _check_floating(name: str, array: ArrayLike, cause: str) -> None:
    if array.dtype.kind != "f":
        raise FeaturesError(f"`{name}` must be floating, {_got(array)}; {cause}")


def check_layout(
    arrays: Mapping[str, ArrayLike], *, loss: str, num_classes: int | None = None
) -> Layout:
    """Check shapes and dtypes of a snapshot that has latents, weight and targets."""
    latents, weight, targets = arrays["latents"], arrays["weight"], arrays["targets"]
    if len(latents.shape) != 2:
        raise FeaturesError(
            f"`latents` must be (n, D), one row a sample, {_got(latents)}; "
            "maps of several dimensions must be pooled as the head sees them"
        )
    _check_floating("latents", latents, "save the input of the linear head, not images or codes")
    n, num_features = latents.shape
    if n == 0 or num_features == 0:
        raise FeaturesError(f"`latents` is empty, {_got(latents)}; was the loader exhausted?")

    if len(weight.shape) != 2:
        raise FeaturesError(f"`weight` must be (C, D) = (C, {num_features}), {_got(weight)}")
    if weight.shape[1] != num_features:
        transposed = weight.shape[0] == num_features
        raise FeaturesError(
            f"`weight` must be (C, D) = (C, {num_features}), got {tuple(weight.shape)}; "
            + (
                "a Flax kernel is (D, C) and must be transposed"
                if transposed
                else "`latents` and `weight` must come from the same linear layer"
            )
        )
    _check_floating("weight", weight, "a quantised head must be dequantised first")
    classes = weight.shape[0]
    check_num_classes(classes, loss)
    if num_classes is not None and classes != num_classes:
        raise FeaturesError(
            f"`weight` has C = {classes} rows, the rest of the run has {num_classes}"
        )

    check_targets_layout(targets, n, classes)
    for name, shape in {"logits": (n, classes), "bias": (classes,), "ids": (n,)}.items():
        if name not in arrays:
            continue
        array = arrays[name]
        if tuple(array.shape) != shape:
            letters = {"logits": "(n, C)", "bias": "(C,)", "ids": "(n,)"}[name]
            raise FeaturesError(f"`{name}` must be {letters} = {shape}, {_got(array)}")
        if name != "ids":
            _check_floating(name, array, "save it as the head computes it")
    return Layout(n, classes, num_features)


def check_num_classes(num_classes: int, loss: str) -> None:
    """Refuse a loss without a gradient."""
    if num_classes < 1 or (num_classes == 1 and loss == "cross_entropy"):
        raise FeaturesError(
            f"C = {num_classes} class with loss='cross_entropy': its gradient is zero everywhere; "
            "a head with one output is trained with loss='binary_cross_entropy'"
        )


def check_targets_layout(targets: ArrayLike, n: int, num_classes: int) -> None:
    """Check shape and dtype of targets."""
    if tuple(targets.shape) not in {(n,), (n, num_classes)}:
        raise FeaturesError(
            f"`targets` must be (n,) = ({n},) labels or (n, C) = ({n}, {num_classes}) "
            f"probabilities, {_got(targets)}; one target for each row of `latents`"
        )
    if targets.dtype.kind not in ("iub" if len(targets.shape) == 1 else "iubf"):
        raise FeaturesError(
            f"`targets` of shape ({n},) must be integer class labels, {_got(targets)}"
        )


def top_label(num_classes: int, loss: str) -> int:
    """Return the largest label; one output with a sigmoid has two classes."""
    return 1 if loss == "binary_cross_entropy" and num_classes == 1 else num_classes - 1


def check_labels(labels: NDArray[Any], num_classes: int, loss: str) -> NDArray[np.int64]:
    """Return (n,) labels as int64, or say which one is out of range."""
    top = top_label(num_classes, loss)
    wrong = (labels < 0) | (labels > top)
    if wrong.any():
        row = int(wrong.argmax())
        cause = (
            "leave unlabelled and ignored samples out"
            if labels[row] < 0
            else "do the labels start at 1, or belong to another head?"
        )
        raise FeaturesError(
            f"`targets` must be in 0..{top} (C = {num_classes}), "
            f"got {labels[row]} in row {row}; {cause}"
        )
    return labels.astype(np.int64)


def check_probabilities(targets: NDArray[Any], loss: str, start: int = 0) -> None:
    """Check (b, C) soft targets; `start` is the number of the first row."""
    with np.errstate(all="ignore"):
        wrong = ~((targets >= 0) & (targets <= 1 + _SUM_TOLERANCE)).all(axis=1)
        sums = targets.sum(axis=1, dtype=np.float64)
        if loss == "cross_entropy":
            wrong |= ~(np.abs(sums - 1) <= _SUM_TOLERANCE)
    if wrong.any():
        row = int(wrong.argmax())
        if loss == "binary_cross_entropy":
            raise FeaturesError(f"`targets` must be in [0, 1], row {start + row} is not")
        raise FeaturesError(
            f"`targets` of shape (n, C) must be probabilities that sum to one, row {start + row} "
            f"sums to {sums[row]:.4g} (smallest {targets[row].min():.4g}); are these logits, or "
            "labels of a multi-label problem, which is trained with loss='binary_cross_entropy'?"
        )


def check_ids(ids: NDArray[Any], num_samples: int | None) -> NDArray[np.int64]:
    """Return (n,) ids as int64; unique and in 0..N-1, or in a plausible range where N is unknown."""
    if ids.dtype.kind not in "iu":
        raise FeaturesError(f"`ids` must be integers, {_got(ids)}; number the samples 0..N-1")
    # Arrays of length N are made from ids: a hash taken for an id must not ask for terabytes.
    limit = num_samples if num_samples is not None else max(2**26, 16 * ids.size)
    wrong = (ids < 0) | (ids >= limit)
    if wrong.any():
        row = int(wrong.argmax())
        known = f"N = {num_samples}" if num_samples is not None else f"{ids.size} samples"
        raise FeaturesError(
            f"`ids` must be in 0..N-1, got {ids[row]} in row {row} with {known}; an id is the "
            "position in the training set, not a hash or a file number"
        )
    positions = ids.astype(np.int64)
    seen = np.zeros(positions.max() + 1, dtype=np.bool_)
    seen[positions] = True
    if np.count_nonzero(seen) != ids.size:
        values, counts = np.unique(positions, return_counts=True)
        twice = int((counts > 1).argmax())
        raise FeaturesError(
            f"`ids` must be unique, {values[twice]} is there {counts[twice]} times; "
            "a distributed sampler pads the last batch: save each sample once"
        )
    return positions


def check_snapshot(
    arrays: Mapping[str, LazyArray],
    *,
    loss: str,
    num_samples: int | None = None,
    num_classes: int | None = None,
) -> Checked:
    """Check all but the values of latents, weight, logits and bias, which need not be finite."""
    if missing := [name for name in ("latents", "weight", "targets") if name not in arrays]:
        raise FeaturesError(f"`{missing[0]}` is missing")
    layout = check_layout(arrays, loss=loss, num_classes=num_classes)
    n, classes, _ = layout
    for name, array in arrays.items():
        if name != "weight" and not array.streams:
            raise FeaturesError(
                f"`{name}` is compressed and in Fortran order, which cannot be read in blocks; "
                "save numpy.ascontiguousarray of it"
            )
    ids = check_ids(read_all(arrays["ids"]), num_samples) if "ids" in arrays else None
    if ids is None and num_samples not in (None, n):
        raise FeaturesError(
            f"`ids` is missing: the file has {n} samples of N = {num_samples}, "
            "and which ones they are must be saved"
        )
    targets = arrays["targets"]
    if len(targets.shape) == 1:
        return Checked(layout, check_labels(read_all(targets), classes, loss), ids)
    labels, start = np.empty(n, dtype=np.int64), 0
    for block in targets.chunks(max(1, _CHECK_BYTES // (8 * classes))):
        check_probabilities(block, loss, start)
        labels[start : start + len(block)] = block.argmax(axis=1)
        start += len(block)
    return Checked(layout, labels if loss == "cross_entropy" else None, ids)


def likeliest_labels(targets: NDArray[Any], n: int, num_classes: int, loss: str) -> Any:
    """Return the (n,) labels of targets in memory, of soft ones the likeliest class."""
    check_targets_layout(targets, n, num_classes)
    if targets.ndim == 1:
        return check_labels(targets, num_classes, loss)
    check_probabilities(targets, loss)
    return targets.argmax(axis=1) if loss == "cross_entropy" else None


# --- what is handed over to be written ----------------------------------------------------------


class Sizes(Protocol):
    """What a run says of its samples."""

    num_samples: int
    num_classes: int
    loss: str


def check_run_labels(targets: Any, run: Sizes) -> NDArray[np.int64]:
    """Return the labels of all samples as int64."""
    labels = to_numpy("targets", targets)
    if labels.shape != (run.num_samples,) or labels.dtype.kind not in "iu":
        raise FeaturesError(
            f"`targets` must be integer labels of shape (N,) = ({run.num_samples},), {_got(labels)}"
        )
    return check_labels(labels, run.num_classes, run.loss)


def check_scores(scores: Any, num_samples: int) -> NDArray[np.float32]:
    """Return the scores of all samples as float32."""
    array = to_numpy("scores", scores)
    if array.shape != (num_samples,) or array.dtype.kind != "f":
        raise FeaturesError(
            f"`scores` must be floats of shape (N,) = ({num_samples},), by sample id and nan "
            f"where not seen, {_got(array)}"
        )
    return array.astype(np.float32)


def check_predictions(predictions: Any, run: Sizes) -> NDArray[np.int32]:
    """Return the predicted classes of all samples as int32."""
    array = to_numpy("predictions", predictions)
    if array.shape != (run.num_samples,) or array.dtype.kind not in "iu":
        raise FeaturesError(
            f"`predictions` must be class numbers of shape (N,) = ({run.num_samples},), by sample id "
            f"and -1 where not known, {_got(array)}"
        )
    top = top_label(run.num_classes, run.loss)
    if ((array < -1) | (array > top)).any():
        raise FeaturesError(
            f"`predictions` must be in -1..{top} (C = {run.num_classes}), got {array.min()} to "
            f"{array.max()}; a prediction is the class of the largest logit"
        )
    return array.astype(np.int32)


def check_features(features: Mapping[str, Any], run: Sizes) -> dict[str, NDArray[Any]]:
    """Return the arrays of a snapshot."""
    if unknown := [name for name in features if name not in FIELDS]:
        raise FeaturesError(
            f"`features` has an unknown array {unknown[0]!r}; known are {', '.join(FIELDS)}"
        )
    arrays = {name: to_numpy(name, array) for name, array in features.items()}
    with blame("`features`"):
        check_snapshot(
            {name: Held(array) for name, array in arrays.items()},
            loss=run.loss,
            num_samples=run.num_samples,
            num_classes=run.num_classes,
        )
    return arrays


def to_numpy(name: str, array: Any) -> NDArray[Any]:
    """Return an array of any library and device as NumPy's; bfloat16 becomes float32, bytes text."""
    try:
        if hasattr(array, "detach"):  # of PyTorch
            array = array.detach().cpu()
            array = array.float() if str(array.dtype) == "torch.bfloat16" else array
        elif hasattr(array, "__dlpack__") and not hasattr(array, "__array__"):
            array = np.from_dlpack(array)
        found: NDArray[Any] = np.asarray(array)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise FeaturesError(f"`{name}` cannot become a NumPy array: {error}") from error
    if found.dtype.kind in "SO":
        return _text(name, found)
    # JAX hands bfloat16 over as a type that NumPy can save but not load.
    return found.astype(np.float32) if found.dtype.name == "bfloat16" else found


def _text(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return an array whose bytes, as HDF5 has them for strings, are strings."""
    flat = array.astype(object).reshape(-1)
    try:
        for i, value in enumerate(flat):
            if isinstance(value, bytes):
                flat[i] = value.decode()
    except UnicodeDecodeError as error:
        raise FeaturesError(f"`{name}` has bytes that are no text in UTF-8: {flat[i]!r}") from error
    return flat.reshape(array.shape)
