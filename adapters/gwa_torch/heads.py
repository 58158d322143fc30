"""The linear head of a model: find it, check it, and lay its arrays out as rows."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from gwa_core import JLSketch
from gwa_torch._checks import check_count
from gwa_torch._linear import (
    Head,
    adapts,
    check_weight,
    fits,
    join,
    kind,
    last_layer,
    layers,
    refusal,
    replaces,
    trained_copy,
)

__all__ = ["Head", "find_head", "resolve_head"]

# Where timm, torchvision and transformers keep the head of a classifier. Auxiliary classifiers of
# the same model have longer names, so that these come first.
NAMES = ("fc", "classifier", "head", "heads", "classification_head", "score", "lm_head")

# Words in the name of a layer that make it one more head. Bodies have layers called fc, too.
WORDS = {"classifier", "classifiers", "head", "heads", "logits", "score", "scores"}

# An error shows so many names.
MOST_NAMES = 8


def find_head(model: nn.Module) -> Head:
    """Return the linear head of a classifier from timm, torchvision, transformers, or of your own.

    Parameters
    ----------
    model : Module
        Also wrapped by DataParallel, DDP, PEFT or ``torch.compile``.

    Returns
    -------
    Linear or 1×1 convolution
        In this order: what ``model.get_classifier()`` (timm) or ``model.get_output_embeddings()``
        (transformers) answer; the module of a name in use (``fc``, ``classifier``, ``head``,
        ``score``, ...), or the last layer in it; else the last linear layer of the model. A model
        in an attribute of another, such as a LightningModule, is searched in the same way.

    Raises
    ------
    ValueError
        If there is none, or the model says that its head is something else: none at all (as timm's
        ``num_classes=0``), or a layer that is not linear. If several layers could be the head, such
        as two classifiers, or the leaves of a hierarchical softmax. If an adapter (LoRA) is on it.

    Notes
    -----
    Print what it found once: only you know which layer your loss is computed from.

    Examples
    --------
    >>> from torch import nn
    >>> from gwa_torch import find_head
    >>> find_head(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10)))
    Linear(in_features=16, out_features=10, bias=True)
    """
    return _find(unwrap(model), "")


def resolve_head(head: nn.Module | str | None, model: nn.Module | None = None) -> Head:
    """Return the head that a module, a dotted name in `model`, or `find_head` names.

    Parameters
    ----------
    head : Module or str, optional
        The head, its name in `model`, or None to search `model`. Of a head that PEFT trains by
        ``modules_to_save``, the copy that it trains.
    model : Module, optional
        Where to look.

    Returns
    -------
    Linear or 1×1 convolution

    Raises
    ------
    TypeError, ValueError
        If there is no such module, or it is not linear. If an adapter (LoRA) is on it, or its
        weight is quantised or another subclass of a tensor.
    """
    if head is None or isinstance(head, str):
        if model is None:
            raise ValueError(
                f"`model` must be given where `head` is a name or None, got head={head!r}; "
                "or pass the module itself, such as GWAMonitor(model.fc)"
            )
        head = find_head(model) if head is None else _named(head, model)
    if not isinstance(head, nn.Module):
        raise TypeError(f"`head` must be a module or its name, got {type(head).__name__}")
    head = trained_copy(head) or head
    if not fits(head):
        raise ValueError(refusal(head, ""))
    check_weight(head)
    return head  # type: ignore[return-value]


def _named(name: str, model: nn.Module) -> nn.Module:
    """Return the module of a name, which must not be a part of an adapter."""
    inner = unwrap(model)
    try:
        head = inner.get_submodule(name)
    except AttributeError as error:
        linear = [name for name, module in inner.named_modules() if fits(module)]
        near = difflib.get_close_matches(name, linear, n=3) or linear[-MOST_NAMES:]
        raise ValueError(
            f"`head` must be the name of a module of {type(inner).__name__}, got "
            f"{name!r}; linear layers in it: {', '.join(near) or 'none'}"
        ) from error
    parts = name.split(".")
    for stop in range(1, len(parts)):
        holder = inner.get_submodule(".".join(parts[:stop]))
        if adapts(holder):
            raise ValueError(refusal(holder, name))
    return head


def head_weight(head: nn.Module) -> torch.Tensor:
    """Return the weight as (C, D); spatial axes of a 1×1 convolution have length one."""
    # Of a module's dict: to ask for an attribute that is not there takes long.
    parts: Any = head._modules.get("parametrizations")
    if parts is None or not parts.training:
        weight: torch.Tensor = head.weight.detach()  # type: ignore[operator]
        return weight if weight.ndim == 2 else weight.flatten(1)
    # Spectral norm takes a step of its own whenever its weight is read in train mode.
    parts.eval()
    try:
        return head.weight.detach().flatten(1)  # type: ignore[operator]
    finally:
        parts.train()


def head_size(head: nn.Module) -> tuple[int, int]:
    """Return (C, D)."""
    if isinstance(head, nn.Linear):
        return head.out_features, head.in_features
    return head.out_channels, head.in_channels  # type: ignore[return-value]


def head_device(head: nn.Module) -> torch.device:
    """Return where the head is."""
    return next(head.parameters()).device


def rows_last(x: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """Return the input or output of a head with its channel axis last."""
    if isinstance(head, nn.Linear):
        return x
    batched = x.ndim == len(head.kernel_size) + 2  # type: ignore[arg-type]
    return x.movedim(1 if batched else 0, -1)


def head_sketch(sketch: JLSketch | int | None, head: Head) -> JLSketch | None:
    """Return the sketch for the latents of a head, made where only its size is given."""
    _, features = head_size(head)
    if sketch is not None and not isinstance(sketch, JLSketch):
        return JLSketch(features, check_count("sketch", sketch))
    if sketch is not None and sketch.in_features != features:
        raise ValueError(
            f"`sketch` must be made for D = {features} features, got "
            f"{sketch.in_features}; a sketch belongs to one width of latents"
        )
    return sketch


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled code as it was written: it does not call hooks that it has not seen."""
    # PyTorch before 2.6 can't be told.
    stance: Any = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DataParallel, DDP and ``torch.compile``."""
    while isinstance(
        inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None), nn.Module
    ) and type(model).__name__ in ("OptimizedModule", "DataParallel", "DistributedDataParallel"):
        model = inner
    return model


def _find(model: nn.Module, path: str) -> Head:
    """Return the head of a model, which is found at a path of the user's."""
    if type(model).__module__.startswith("peft.") and hasattr(model, "get_base_model"):
        inner = model.get_base_model()  # type: ignore[operator]
        return _find(inner, join(path, _name_of(inner, model)))
    if adapts(model) or isinstance(model, nn.AdaptiveLogSoftmaxWithLoss):
        raise ValueError(refusal(model, path))
    for method in ("get_classifier", "get_output_embeddings"):
        found = getattr(model, method, lambda: None)()
        if isinstance(found, (tuple, list)):
            names = [name for x in found for name, _ in [*layers(x, _name_of(x, model))][-1:]]
            if len(set(names)) > 1:
                raise ValueError(_several(model, (join(path, name) for name in names)))
            found = found[0] if found else None
        if isinstance(found, nn.Module):
            return _answered(found, model, path, f"{method}()")
    children = dict(model.named_children())
    for name in NAMES:
        if isinstance(children.get(name), nn.Identity):
            return _answered(children[name], model, path, name)
        if name in children and (last := last_layer(children[name], name, path)) is not None:
            break
    else:
        holding = [name for name, child in children.items() if any(layers(child))]
        if len(holding) == 1 and not fits(model) and not replaces(model):
            return _find(children[holding[0]], join(path, holding[0]))
        last = last_layer(model, "", path)
    if last is None:
        raise ValueError(
            f"`model` must have a linear layer or a 1×1 convolution, got {kind(model)} "
            "with none; pass the head itself to GWAMonitor"
        )
    name, head = last
    named = name.partition(".")[0] in NAMES
    if rivals := _rivals(name, head, model, named=named):
        found = [name, *rivals] if named else [*rivals, name]
        raise ValueError(_several(model, (join(path, name) for name in found)))
    return head


def _answered(found: nn.Module, model: nn.Module, path: str, source: str) -> Head:
    """Return the head in what a model calls its head; guessing past that would find a wrong one."""
    path = join(path, _name_of(found, model))
    last = last_layer(found, "", path)
    if last is None:
        raise ValueError(
            f"`model` must have a linear head, got {kind(found)} from {kind(model)}.{source}; a "
            "model made without a head (num_classes=0) gives features only, so pass the layer that "
            "the loss is computed from to GWAMonitor"
        )
    name, head = last
    if rivals := _rivals(name, head, found, named=True):
        raise ValueError(_several(model, (join(path, other) for other in [*rivals, name])))
    return head


def _rivals(name: str, head: Head, model: nn.Module, *, named: bool) -> list[str]:
    """Return the names of the layers that could be the head as well as this one.

    They stand beside it, or beside a module that holds it, and do not feed it. What has a name in
    use is the head, unless another layer of its size has one like it.
    """
    rivals: list[str] = []
    scope, path = model, ""
    for part in name.split(".") if name else ():
        scope = trained_copy(scope) or scope
        groups = {key: list(layers(child, key)) for key, child in scope.named_children()}
        # The order in a Sequential is known.
        for key in () if isinstance(scope, nn.Sequential) else groups:
            if key == part or not groups[key]:
                continue
            other, layer = groups[key][-1]
            same = [a == b for a, b in zip(head_size(head), _size(layer), strict=True)]
            titled = _titled(key)
            if isinstance(scope, (nn.ModuleList, nn.ModuleDict)):
                alike = any(same)
            elif named:
                # An auxiliary classifier beside a head that has a name in use is a known thing.
                titled = titled and "aux" not in key.lower()
                alike = all(same) and (titled or other == key)
            else:
                alike = same[1] and (same[0] or titled)
            if alike and layer is not head and (titled or not _chained(groups, key, part)):
                rivals.append(join(path, other))
        scope, path = scope.get_submodule(part), join(path, part)
    # Auxiliary classifiers elsewhere, of other widths.
    for other, layer in () if named else layers(model):
        called = _titled(other.rpartition(".")[2]) and other not in rivals
        if called and layer is not head and _size(layer)[0] == head_size(head)[0]:
            rivals.append(other)
    return rivals


def _size(layer: nn.Module) -> tuple[int, int]:
    """Return (C, D), or zeros for what is no linear layer."""
    return head_size(layer) if fits(layer) else (0, 0)


def _chained(groups: dict[str, list[tuple[str, nn.Module]]], one: str, other: str) -> bool:
    """Tell whether the layers from one to the other can feed each other, as those of a body."""
    keys = [key for key in groups if groups[key]]
    start, stop = sorted((keys.index(one), keys.index(other)))
    between = [groups[key] for key in keys[start : stop + 1]]
    return all(
        _size(before[-1][1])[0] == _size(after[0][1])[1] > 0
        for before, after in itertools.pairwise(between)
    )


def _several(model: nn.Module, names: Iterable[str]) -> str:
    found = list(dict.fromkeys(names))
    more = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
    return (
        f"`model` must have one layer that can be the head, got {kind(model)} with "
        f"{', '.join(found[:MOST_NAMES])}{more}; pass the one that your loss is computed from, "
        f"such as GWAMonitor({found[0]!r}, model=model)"
    )


def _titled(name: str) -> bool:
    """Tell whether a layer is called a head."""
    return not WORDS.isdisjoint(re.findall("[a-z]+", name.lower()))


def _name_of(module: object, model: nn.Module) -> str:
    return next((name for name, inner in model.named_modules() if inner is module), "")
