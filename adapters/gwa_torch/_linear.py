"""Linear layers, and what stands in the place of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import nn

__all__ = [
    "Head",
    "adapts",
    "check_weight",
    "fits",
    "join",
    "kind",
    "last_layer",
    "layers",
    "refusal",
    "replaces",
    "trained_copy",
]

Head: TypeAlias = "nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d"

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Subclasses of nn.Linear with a forward of their own that computes the same.
SAME_FORWARD = ("timm.layers.linear",)


def fits(module: Any) -> bool:
    """Tell whether a module is a linear layer or a 1×1 convolution that computes as PyTorch's."""
    forward = type(module).forward
    if isinstance(module, nn.Linear):
        return forward is nn.Linear.forward or forward.__module__ in SAME_FORWARD
    if not isinstance(module, CONVOLUTIONS):
        return False
    kinds = tuple(kind.forward for kind in CONVOLUTIONS)
    ones = all(set(x) == {1} for x in (module.kernel_size, module.stride))
    bare = isinstance(module.padding, str) or set(module.padding) <= {0}
    return forward in kinds and ones and module.groups == 1 and bare


def layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield names and modules of what could be a head, or stands in the place of one."""
    module = trained_copy(module) or module
    if fits(module) or replaces(module):
        yield name, module
        return
    for key, child in module.named_children():
        yield from layers(child, join(name, key))


def last_layer(module: nn.Module, name: str, path: str) -> tuple[str, Head] | None:
    """Return name and module of the last linear layer; raise if another kind is in its place."""
    last = None
    for last in layers(module, name):  # noqa: B007
        pass
    if last is not None and not fits(last[1]):
        raise ValueError(refusal(last[1], join(path, last[0])))
    return last  # type: ignore[return-value]


def trained_copy(module: nn.Module) -> nn.Module | None:
    """Return what PEFT trains instead of a module of ``modules_to_save``."""
    copies: Any = getattr(module, "modules_to_save", None)
    if not isinstance(copies, nn.ModuleDict) or not hasattr(module, "original_module"):
        return None
    active: Any = module.active_adapters
    if not active or active[0] not in copies:
        return module.original_module  # type: ignore[return-value]
    return copies[active[0]]


def adapts(module: nn.Module) -> bool:
    """Tell whether a module adds an adapter to a layer: PEFT's, or one with LoRA's usual names."""
    own = {key.lower() for key in (*module._modules, *module._parameters)}
    return isinstance(getattr(module, "base_layer", None), nn.Module) or "lora_a" in own


def replaces(module: nn.Module) -> bool:
    """Tell whether a module that is no plain linear layer stands in the place of one."""
    if adapts(module) or isinstance(module, (nn.Linear, nn.AdaptiveLogSoftmaxWithLoss)):
        return True
    if "linear" in type(module).__name__.lower():
        return not any(fits(inner) for inner in module.modules())
    weight = module._parameters.get("weight")
    own = not type(module).__module__.startswith("torch.nn.") and not isinstance(
        module, (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)
    )
    lazy = isinstance(weight, nn.parameter.UninitializedParameter)
    return own and weight is not None and not lazy and weight.ndim == 2


def refusal(module: nn.Module, name: str) -> str:
    """Return why a module is no head."""
    what = f"{name} ({kind(module)})" if name else kind(module)
    if adapts(module):
        return (
            f"`head` must be a layer without an adapter, got {what}: its weight is the base "
            "layer's plus the adapter's, and no parameter; leave it out of `target_modules` and "
            "train it by `modules_to_save`, or merge the adapter (`merge_and_unload`)"
        )
    if isinstance(module, nn.AdaptiveLogSoftmaxWithLoss):
        return (
            f"`head` must give logits of all classes, got {what}, whose classes are split over "
            "several layers; its first layer, `head`, can be named with residual='backward'"
        )
    arrays = (*module.parameters(), *module.buffers())
    path = f"{type(module).__module__}.{type(module).__name__}".lower()
    if "quant" in path or not all(x.is_floating_point() for x in arrays):
        return (
            f"`head` must have a floating weight, got {what}, which is quantised; leave the head "
            "out of the quantisation"
        )
    return (
        "`head` must be an nn.Linear or a 1×1 convolution with its own forward, got "
        f"{what}; the alignment is defined for the last linear "
        "layer before the loss, so pass that one (`find_head(model)` looks for it)"
    )


def check_weight(head: nn.Module) -> None:
    """Refuse a weight that cannot be measured, before the model runs."""
    # A parametrised layer has no such parameter, and to read its weight may change it.
    weight: Any = head._parameters.get("weight")
    if weight is None:
        return
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(  # noqa: TRY004
            f"`head` must have its weight, got a {type(head).__name__} that has none yet; run the "
            "model once before"
        )
    if weight.ndim < 2:
        raise ValueError(
            f"`head` must have its weight (C, D), got one of shape {tuple(weight.shape)}; FSDP1 "
            "flattens parameters, FSDP2 (`fully_shard`) keeps them"
        )
    # A DTensor is its local parts.
    weight = getattr(weight, "_local_tensor", weight)
    usual = type(weight).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    if not usual and not type(weight).__module__.startswith("torch._subclasses"):
        raise ValueError(
            f"`head` must have a weight that is a plain tensor, got a {type(weight).__name__}; "
            "quantised weights are rounded as they are read, so leave the head out of the "
            "quantisation"
        )
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        raise ValueError(
            f"`head` must have a floating weight of 16 bits or more, got {weight.dtype}; leave the "
            "head out of the quantisation"
        )


def kind(module: nn.Module) -> str:
    """Return the name of a class."""
    return type(module).__name__


def join(*parts: str) -> str:
    """Return the dotted name of these parts."""
    return ".".join(part for part in parts if part)
