"""Targets of any shape as rows, and what a loss module says about them."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
from torch import nn

from gwa_torch.heads import rows_last

__all__ = ["Flat", "LossOptions", "flatten"]


class LossOptions(NamedTuple):
    """The options of a loss that its gradient depends on."""

    loss: str
    label_smoothing: float
    class_weights: torch.Tensor | None
    ignore_index: int
    classes: int

    @classmethod
    def of(cls, criterion: nn.Module | None, **options: Any) -> Self:
        """Read the options from a loss module where it is a known one."""
        if isinstance(criterion, nn.CrossEntropyLoss):
            options["label_smoothing"] = criterion.label_smoothing
            options["class_weights"] = criterion.weight
            options["ignore_index"] = criterion.ignore_index
        elif isinstance(criterion, nn.BCEWithLogitsLoss):
            options["loss"] = "binary_cross_entropy"
            if criterion.weight is not None or criterion.pos_weight is not None:
                raise ValueError(
                    "`criterion` must be an unweighted BCEWithLogitsLoss, got one with `weight` or "
                    "`pos_weight`; its gradient is not the one measured"
                )
        made = cls(**options)
        if made.loss not in ("cross_entropy", "binary_cross_entropy"):
            raise ValueError(
                f"`loss` must be 'cross_entropy' or 'binary_cross_entropy', got {made.loss!r}"
            )
        if not 0.0 <= made.label_smoothing < 1.0:
            raise ValueError(f"`label_smoothing` must be in [0, 1), got {made.label_smoothing!r}")
        weights = made.class_weights
        if weights is not None and tuple(weights.shape) != (made.classes,):
            raise ValueError(
                f"`class_weights` must be (C,) = ({made.classes},), got {tuple(weights.shape)}"
            )
        if made.classes < 2 and made.loss == "cross_entropy":
            raise ValueError(
                "`head` must have C >= 2 outputs for loss='cross_entropy', got "
                f"C = {made.classes}; one output is trained with loss='binary_cross_entropy'"
            )
        return made

    def weights_on(self, device: torch.device) -> torch.Tensor | None:
        """Return the class weights on a device."""
        weights = self.class_weights
        return None if weights is None else weights.detach().to(device, non_blocking=True)


class Flat(NamedTuple):
    """Targets, ids and mask of the samples of a step, one row each."""

    targets: torch.Tensor
    ids: torch.Tensor | None
    where: torch.Tensor | None

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self.targets.shape[0]

    def part(self, start: int, stop: int) -> Flat:
        """Return some of the rows."""
        return Flat(*(None if x is None else x[start:stop] for x in self))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Flat:
        """Move to a device without waiting for it."""
        moved = (None if x is None else x.to(device, non_blocking=True) for x in self)
        return Flat(*moved)  # type: ignore[arg-type]

    def fitting(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the targets in a shape and dtype that the core takes."""
        targets = self.targets
        if targets.ndim == 2 and not targets.is_floating_point():
            targets = targets.to(torch.promote_types(logits.dtype, torch.float32))
        return targets


def flatten(
    targets: torch.Tensor,
    ids: torch.Tensor | None,
    where: torch.Tensor | None,
    options: LossOptions | None = None,
    head: nn.Module | None = None,
) -> Flat:
    """Lay targets out as rows, and mask those with the ignored class.

    As in PyTorch's losses, integers are class numbers and floating targets probabilities with the
    classes where the head has them; a sigmoid has one target for each output. Without options there
    is one number a sample, whatever it is.
    """
    for name, x in {"targets": targets, "ids": ids, "where": where}.items():
        if x is not None and not isinstance(x, torch.Tensor):
            raise TypeError(f"`{name}` must be a tensor, got {type(x).__name__}")
    targets = targets.detach()
    if head is not None and targets.is_floating_point():
        targets = rows_last(targets, head)
    shape = tuple(targets.shape)
    single = options is None or options.classes == 1
    sigmoid = options is not None and options.loss == "binary_cross_entropy"
    if not single and (targets.is_floating_point() or sigmoid):
        if not shape or shape[-1] != options.classes:  # type: ignore[union-attr]
            raise ValueError(
                "`targets` must have the classes last (second under a convolution), C = "
                f"{options.classes}, got shape {shape}; "  # type: ignore[union-attr]
                "class numbers must be of an integer dtype"
            )
        targets, shape = targets.reshape(-1, shape[-1]), shape[:-1]
    else:
        targets = targets.reshape(-1)
    rows = targets.shape[0]
    for name, x in {"ids": ids, "where": where}.items():
        if x is not None and tuple(x.shape) not in (shape, (rows,)):
            raise ValueError(
                f"`{name}` must have one entry a sample, {shape}, got shape {tuple(x.shape)}"
            )
    if where is not None and where.dtype != torch.bool:
        raise ValueError(
            f"`where` must be boolean, got {where.dtype}; True marks samples that count"
        )
    where = None if where is None else where.reshape(-1)
    if options is not None and targets.ndim == 1 and not targets.is_floating_point():
        counted = targets != options.ignore_index
        where = counted if where is None else counted & where.to(targets.device, non_blocking=True)
    return Flat(targets, None if ids is None else ids.reshape(-1), where)
