"""Targets of any shape as rows, and what a loss module says about them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from gwa_torch._checks import check_integer, check_real
from gwa_torch.heads import rows_last

__all__ = ["Flat", "LossOptions", "check_ids", "flatten"]


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
        if criterion is not None:
            _check_criterion(criterion, options)
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
        smoothing = check_real("label_smoothing", made.label_smoothing)
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"`label_smoothing` must be in [0, 1), got {made.label_smoothing!r}")
        weights = made.class_weights
        if weights is not None and not isinstance(weights, torch.Tensor):
            raise TypeError(f"`class_weights` must be a tensor, got {type(weights).__name__}")
        if weights is not None and tuple(weights.shape) != (made.classes,):
            raise ValueError(
                f"`class_weights` must be (C,) = ({made.classes},), got {tuple(weights.shape)}"
            )
        if weights is not None and not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise ValueError(
                f"`class_weights` must be finite and at least 0, got {weights.tolist()}; a negative "
                "weight turns gradients around"
            )
        if made.classes < 2 and made.loss == "cross_entropy":
            raise ValueError(
                "`head` must have C >= 2 outputs for loss='cross_entropy', got "
                f"C = {made.classes}; one output is trained with loss='binary_cross_entropy'"
            )
        ignored = check_integer("ignore_index", made.ignore_index)
        return made._replace(label_smoothing=smoothing, ignore_index=ignored)

    def weights_on(self, device: torch.device) -> torch.Tensor | None:
        """Return the class weights on a device."""
        weights = self.class_weights
        return None if weights is None else weights.detach().to(device, non_blocking=True)


def _check_criterion(criterion: Any, options: dict[str, Any]) -> None:
    """Refuse a loss whose gradient is not known, and options that are said twice."""
    known = (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss)
    own = [kind for kind in known if isinstance(criterion, kind)]
    if not own or type(criterion).forward is not own[0].forward:
        kind = getattr(criterion, "__name__", type(criterion).__name__)
        raise TypeError(
            "`criterion` must be a CrossEntropyLoss or BCEWithLogitsLoss, whose gradient is known, "
            f"got {kind}; call `update` with the targets instead, soft ones where the loss has them"
        )
    usual = {"label_smoothing": 0.0, "class_weights": None, "ignore_index": -100}
    twice = [
        name
        for name, value in usual.items()
        if (options[name] is not None if value is None else options[name] != value)
    ]
    if twice:
        raise ValueError(
            f"`{twice[0]}` must be said by `criterion` alone where there is one, got "
            f"{options[twice[0]]!r}; it is read from the loss module"
        )


class Flat(NamedTuple):
    """Targets, ids and mask of the samples of a step, one row each."""

    targets: torch.Tensor
    ids: torch.Tensor | None
    where: torch.Tensor | None
    # Of the targets as they came, one entry a sample.
    shape: tuple[int, ...] = ()
    # Whether they had further axes: tokens or pixels, several of which may have one id.
    tokens: bool = False

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self.targets.shape[0]

    def part(self, start: int, stop: int) -> Flat:
        """Return some of the rows."""
        return self._with(lambda x: x[start:stop])

    def to(self, device: torch.device) -> Flat:
        """Move to a device without waiting for it."""
        # What goes to the host is read there at once.
        later = device.type != "cpu"
        return self._with(lambda x: x.to(device, non_blocking=later))

    def owned(self, device: torch.device) -> Flat:
        """Move a copy to a device: the user may write into the tensors before it is needed."""
        return self.to(device)._with(torch.clone)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Flat:
        targets, ids, where = (None if x is None else change(x) for x in self[:3])
        assert targets is not None  # noqa: S101  # there always are
        return Flat(targets, ids, where, tokens=self.tokens)

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
    if not targets.is_floating_point():
        # Neither -100 nor a large number of classes fits into a byte.
        targets = targets.long()
    single = options is None or options.classes == 1
    sigmoid = options is not None and options.loss == "binary_cross_entropy"
    soft = not single and (targets.is_floating_point() or sigmoid)
    # (N, C) goes with logits that were flattened.
    if soft and head is not None and targets.ndim != 2:
        targets = rows_last(targets, head)
    shape = tuple(targets.shape)
    if soft:
        if not shape or shape[-1] != options.classes:  # type: ignore[union-attr]
            raise ValueError(
                "`targets` must have the classes last (second under a convolution), C = "
                f"{options.classes}, got shape {shape}; "  # type: ignore[union-attr]
                "class numbers must be of an integer dtype"
            )
        targets, shape = targets.reshape(-1, shape[-1]), shape[:-1]
    else:
        targets = targets.reshape(-1)
    # One target a row, as of a binary head (B, 1), is that of a sample.
    rows, tokens = targets.shape[0], math.prod(shape[1:]) > 1
    ids, where = (_of_tokens(x, shape) if tokens else x for x in (ids, where))
    for name, x in {"ids": ids, "where": where}.items():
        if x is not None and tuple(x.shape) not in (shape, (rows,)):
            by_row = f", or one a row, ({shape[0]},)" if tokens else ""
            raise ValueError(
                f"`{name}` must have one entry a sample, {shape}{by_row}, got shape "
                f"{tuple(x.shape)}"
            )
    if where is not None and where.dtype != torch.bool:
        raise ValueError(
            f"`where` must be boolean, got {where.dtype}; True marks samples that count"
        )
    where = None if where is None else where.reshape(-1)
    if options is not None and targets.ndim == 1 and not targets.is_floating_point():
        counted = targets != options.ignore_index
        if where is not None and where.device != counted.device:
            # To the one that is not the host, which would have to wait for the other.
            device = counted.device if where.device.type == "cpu" else where.device
            counted, where = (x.to(device, non_blocking=True) for x in (counted, where))
        where = counted if where is None else counted & where
    ids = None if ids is None else ids.reshape(-1).long()
    return Flat(targets, ids, where, shape, tokens)


def _of_tokens(x: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor | None:
    """Give each token what its row has."""
    if x is None or tuple(x.shape) != shape[:1]:
        return x
    return x.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def check_ids(
    ids: torch.Tensor | None, num_samples: int | None, where: torch.Tensor | None = None
) -> None:
    """Refuse ids that are missing, no integers, or on the host and out of range."""
    if (ids is None) != (num_samples is None):
        raise ValueError(
            "`ids` and `num_samples` must be given together, got "
            f"{'no ' if ids is None else ''}ids and num_samples={num_samples}; let the "
            "dataset return its index, and say GWAMonitor(head, num_samples=len(dataset))"
        )
    if ids is None:
        return
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"`ids` must be integers, got {ids.dtype}")
    size = num_samples or 0
    # Looking at ids on a GPU would wait for it; those are counted and refused at the end.
    if ids.device.type != "cpu" or not ids.numel():
        return
    low, high = (int(x) for x in torch.aminmax(ids))
    if (low < 0 or high >= size) and where is not None and where.device.type == "cpu":
        # Those of padding do not matter.
        kept = ids.reshape(-1)[where] if ids.numel() == where.numel() else ids
        low, high = (int(x) for x in torch.aminmax(kept)) if kept.numel() else (0, 0)
    if low < 0 or high >= size:
        raise ValueError(
            f"`ids` must be in 0..{size - 1}, got {low}..{high}; ids number the whole training "
            "set, not the batch"
        )
