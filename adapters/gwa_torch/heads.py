"""The linear head of a model: find it, check it, and lay its arrays out as rows."""

from __future__ import annotations

import difflib
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn

from gwa_core import JLSketch
from gwa_torch._checks import check_count

__all__ = ["Head", "find_head", "resolve_head"]

Head: TypeAlias = "nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d"

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Where timm, torchvision and transformers keep the head of a classifier. Auxiliary classifiers of
# the same model have longer names, so that these come first.
NAMES = ("fc", "classifier", "head", "heads", "classification_head", "score", "lm_head")

# Subclasses of nn.Linear with a forward of their own that computes the same.
SAME_FORWARD = ("timm.layers.linear",)


def find_head(model: nn.Module) -> Head:
    """Return the linear head of a classifier from timm, torchvision, transformers, or of your own.

    Parameters
    ----------
    model : Module
        Also wrapped by DataParallel, DDP or ``torch.compile``.

    Returns
    -------
    Linear or 1×1 convolution
        In this order: what ``model.get_classifier()`` (timm) or ``model.get_output_embeddings()``
        (transformers) answer; the module of a name in use (``fc``, ``classifier``, ``head``,
        ``score``, ...), or the last layer in it; else the last linear layer of the model.

    Raises
    ------
    ValueError
        If there is none, or the model says that its head is something else: none at all (as timm's
        ``num_classes=0``), or a layer that is not linear.

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
    bare = unwrap(model)
    for method in ("get_classifier", "get_output_embeddings"):
        found = getattr(bare, method, lambda: None)()
        # Some models of timm answer with several heads.
        if isinstance(found, nn.Module):
            return _answered(found, f"{type(bare).__name__}.{method}()")
    modules = dict(bare.named_modules())
    for name in NAMES:
        if name in modules and (last := _last_linear(modules[name])) is not None:
            return last
        if isinstance(modules.get(name), nn.Identity):
            return _answered(modules[name], f"{type(bare).__name__}.{name}")
    last = _last_linear(bare)
    if last is None:
        raise ValueError(
            f"`model` must have a linear layer or a 1×1 convolution, got {type(model).__name__} "
            "with none; pass the head itself to GWAMonitor"
        )
    return last


def resolve_head(head: nn.Module | str | None, model: nn.Module | None = None) -> Head:
    """Return the head that a module, a dotted name in `model`, or `find_head` names.

    Parameters
    ----------
    head : Module or str, optional
        The head, its name in `model`, or None to search `model`.
    model : Module, optional
        Where to look.

    Returns
    -------
    Linear or 1×1 convolution

    Raises
    ------
    TypeError, ValueError
        If there is no such module, or it is not linear.
    """
    if head is None or isinstance(head, str):
        if model is None:
            raise ValueError(
                f"`model` must be given where `head` is a name or None, got head={head!r}; "
                "or pass the module itself, such as GWAMonitor(model.fc)"
            )
        if head is None:
            return find_head(model)
        try:
            head = unwrap(model).get_submodule(head)
        except AttributeError as error:
            linear = [name for name, module in unwrap(model).named_modules() if _fits(module)]
            near = difflib.get_close_matches(head, linear, n=3) or linear[-8:]
            raise ValueError(
                f"`head` must be the name of a module of {type(unwrap(model)).__name__}, got "
                f"{head!r}; linear layers in it: {', '.join(near) or 'none'}"
            ) from error
    if not isinstance(head, nn.Module):
        raise TypeError(f"`head` must be a module or its name, got {type(head).__name__}")
    if not _fits(head):
        raise ValueError(
            "`head` must be an nn.Linear or a 1×1 convolution with its own forward, got "
            f"{type(head).__name__}; the alignment is defined for the last linear layer before "
            "the loss, so pass that one (`find_head(model)` looks for it)"
        )
    # A parametrised layer has no such parameter, and to read its weight may change it.
    weight: Any = head._parameters.get("weight")
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(  # noqa: TRY004
            f"`head` must have its weight, got a {type(head).__name__} that has none yet; run the "
            "model once before"
        )
    if weight is not None and weight.ndim < 2:
        raise ValueError(
            f"`head` must have its weight (C, D), got one of shape {tuple(weight.shape)}; FSDP1 "
            "flattens parameters, FSDP2 (`fully_shard`) keeps them"
        )
    return head  # type: ignore[return-value]


def head_weight(head: nn.Module) -> torch.Tensor:
    """Return the weight as (C, D); spatial axes of a 1×1 convolution have length one."""
    parts: Any = getattr(head, "parametrizations", None)
    if parts is None or not parts.training:
        return head.weight.detach().flatten(1)  # type: ignore[operator]
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


def _fits(module: Any) -> bool:
    forward = type(module).forward
    if isinstance(module, nn.Linear):
        return forward is nn.Linear.forward or forward.__module__ in SAME_FORWARD
    if not isinstance(module, CONVOLUTIONS):
        return False
    kinds = tuple(kind.forward for kind in CONVOLUTIONS)
    ones = all(set(x) == {1} for x in (module.kernel_size, module.stride))
    bare = isinstance(module.padding, str) or set(module.padding) <= {0}
    return forward in kinds and ones and module.groups == 1 and bare


def _answered(found: nn.Module, source: str) -> Head:
    """Return the head in what a model calls its head; guessing past that would find a wrong one."""
    last = _last_linear(found)
    if last is None:
        raise ValueError(
            f"`model` must have a linear head, got {type(found).__name__} from {source}; a model "
            "made without a head (num_classes=0) gives features only, so pass the layer that the "
            "loss is computed from to GWAMonitor"
        )
    return last


def _last_linear(module: nn.Module) -> Head | None:
    for inner in reversed(list(module.modules())):
        if _fits(inner):
            return inner  # type: ignore[return-value]
    return None
