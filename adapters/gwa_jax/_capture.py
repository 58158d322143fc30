"""The call of a model's head: found by name, seen, and checked to be linear."""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from flax import nnx
from flax.nnx.tracers import TraceState

from gwa_jax.gradients import add_probe
from gwa_jax.scoring import Array

__all__ = ["Calls", "Head", "branches", "find", "unknown", "watched"]

UNSEEN = (
    "a call inside jax.checkpoint, nnx.remat, nnx.scan, jax.vmap or a jitted method of the model "
    "can't be seen from outside (use this function inside, and return the head from there), nor "
    "can a layer whose weight is used without a call"
)


class Head(NamedTuple):
    """One call of the head. Its fields are arguments of `update` and `head_scores`.

    Parameters
    ----------
    latents : array of shape (..., D)
        What went in.
    logits : array of shape (..., C)
        What came out.
    kernel : array of shape (D, C)
        The weight that made it.
    bias : array of shape (C,) or None
        The bias that made it, where the head has one.
    """

    latents: Array
    logits: Array
    kernel: Array
    bias: Array | None


class Calls:
    """The calls of one layer during one call of its model."""

    def __init__(self, name: str, probe: Array | None) -> None:
        self.name = name
        self._probe = probe
        self.layer: Any = None
        self._seen: list[Head] = []
        self._trace = TraceState()  # type: ignore[no-untyped-call]

    def watch(self, layer: Any, kinds: tuple[Any, ...]) -> None:
        """Take a layer; a subclass with a call of its own may do anything."""
        kind: Any = _kind(layer)
        if not any(issubclass(kind, base) and kind.__call__ is base.__call__ for base in kinds):
            raise self._not_linear(kind.__name__)
        self.layer = layer

    def see(
        self, args: Any, kwargs: Any, logits: Array, kernel: Array, bias: Array | None
    ) -> Array:
        """Take a call down, and return its output with the probe added."""
        if not self._trace.is_valid():
            raise ValueError(f"the call of {self.name!r} must be seen, but is not; {UNSEEN}")
        latents: Array = args[0] if args else kwargs["inputs"]
        features, classes = kernel.shape[-2:]
        rows = logits.shape[:-1]
        if (
            not set(kernel.shape[:-2]) <= {1}
            or getattr(self.layer, "axis", -1) not in (-1, (-1,))
            or getattr(self.layer, "mask", None) is not None
            or (latents.shape, logits.shape) != ((*rows, features), (*rows, classes))
        ):
            kind = _kind(self.layer).__name__
            raise self._not_linear(f"{kind} with kernel {tuple(kernel.shape)}")
        logits = add_probe(logits, self._probe)
        self._seen.append(Head(latents, logits, kernel.reshape(features, classes), bias))
        return logits

    def only(self) -> Head:
        """Return the one call that there should have been."""
        if len(self._seen) != 1:
            cause = (
                "give each call's latents to `gwa_jax.update` yourself" if self._seen else UNSEEN
            )
            raise ValueError(
                f"the model must call {self.name!r} once, got {len(self._seen)} calls; {cause}"
            )
        return self._seen[0]

    def _not_linear(self, kind: str) -> TypeError:
        return TypeError(
            f"{self.name!r} must be a linear layer over the last axis, or a convolution of size "
            f"one, got {kind}; of another layer give latents and kernel to `gwa_jax.update` "
            "yourself"
        )


_WATCHES: ContextVar[tuple[Calls, ...]] = ContextVar("_WATCHES", default=())


@contextlib.contextmanager
def watched(calls: Calls) -> Iterator[None]:
    """Let a layer tell of its calls, by its class: its attributes are what the model is made of."""
    layer = calls.layer
    kind = _kind(layer)
    token = _WATCHES.set((*_WATCHES.get(), calls))
    object.__setattr__(layer, "__class__", _telling(kind))
    try:
        yield
    finally:
        _WATCHES.reset(token)
        # A call of an outer model may still be watching.
        if all(outer.layer is not layer for outer in _WATCHES.get()):
            object.__setattr__(layer, "__class__", kind)


@functools.cache
def _telling(kind: type[nnx.Module]) -> type[nnx.Module]:
    """Return the subclass of a layer that tells of its calls."""

    class Watched(kind):  # type: ignore[misc, valid-type]
        _gwa_kind = kind

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output = super().__call__(*args, **kwargs)
            for calls in _WATCHES.get():
                if calls.layer is self:
                    bias = None if self.bias is None else self.bias[...]
                    output = calls.see(args, kwargs, output, self.kernel[...], bias)
            return output

    return Watched


def _kind(layer: Any) -> type:
    """Return the class of a layer, watched or not."""
    kind: type = getattr(type(layer), "_gwa_kind", type(layer))
    return kind


def find(root: nnx.Module, name: str | nnx.Module) -> tuple[str, Any]:
    """Return the name of a module of the root and the module, from one of them."""
    if isinstance(name, nnx.Module):
        path = next((path for path, module in nnx.iter_modules(root) if module is name), None)
        if path is None:
            raise unknown(f"a {_kind(name).__name__} that is no part of it", _modules(root))
        return ".".join(map(str, path)), name
    if not isinstance(name, str):
        raise TypeError(f"`name` must be a str or an nnx.Module, got {type(name).__name__}")
    node: Any = root
    for part in name.split("."):
        if isinstance(node, list | tuple):
            node = dict(enumerate(node)).get(int(part) if part.isdecimal() else -1)
        else:
            node = node.get(part) if isinstance(node, dict) else getattr(node, part, None)
    if not isinstance(node, nnx.Module):
        raise unknown(repr(name), _modules(root))
    return name, node


def _modules(root: nnx.Module) -> list[str]:
    """Return the dotted names of all modules below the root."""
    return [".".join(map(str, path)) for path, _ in nnx.iter_modules(root) if path]


def branches(params: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of all modules with parameters."""
    names = []
    for key, value in params.items():
        if isinstance(value, Mapping):
            names += [prefix + key, *branches(value, f"{prefix}{key}.")]
    return names


def unknown(got: str, names: Iterable[str]) -> ValueError:
    """Say which layers there are."""
    names = list(names)
    close = difflib.get_close_matches(got.strip("'"), names, cutoff=0.4) or names[:8]
    return ValueError(
        f"`name` must be that of a layer of the model, got {got}; the nearest are "
        f"{', '.join(map(repr, close)) or 'none'}"
    )
