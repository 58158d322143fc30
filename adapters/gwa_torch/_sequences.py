"""Scores of sequences: an epoch of sums by sequence, and what a pass of the head adds to them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, cast

import torch

from gwa_core import Moments, loss_weights, residual, sequence_parts
from gwa_torch._distributed import minimum, position, total
from gwa_torch._epoch import BySample, placed, refuse_strays
from gwa_torch._forward import Forward
from gwa_torch._targets import Flat, LossOptions
from gwa_torch.scoring import as_soft, full_precision, refuse_class_weights

__all__ = ["BySequence", "check_reduce", "check_scores", "closed_parts", "gradient_parts"]

REDUCTIONS = ("mean", "min", "gradient")

# Float32 logits whose residuals are there at a time: a row at least.
ROW_BYTES = 16 * 1024 * 1024
ROW_BYTES_OF_GPU = 128 * 1024 * 1024


def check_reduce(reduce: str, *, num_samples: Any, sketch: Any) -> None:
    """Refuse what is no way to one score a sequence, or does not go with other options."""
    if reduce not in REDUCTIONS:
        raise ValueError(
            f"`reduce` must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduce!r}"
        )
    if reduce != "mean" and num_samples is None:
        raise ValueError(
            f"`reduce` must come with `num_samples`, got {reduce!r} alone; without ids nobody knows "
            "which tokens are one sequence"
        )
    if reduce == "gradient" and sketch is not None:
        raise ValueError(
            "`sketch` must be left out with reduce='gradient', got one; the gradient of a sequence "
            "is measured in all dimensions"
        )


def check_scores(scores: Any, reduce: str) -> None:
    """Refuse what are no scores of samples or tokens, or do not make those of sequences."""
    if not isinstance(scores, torch.Tensor) or not scores.is_floating_point():
        raise TypeError(
            f"`scores` must be a floating tensor, got {getattr(scores, 'dtype', type(scores).__name__)}"
        )
    if scores.ndim not in (1, 2):
        raise ValueError(f"`scores` must be (N,) or (B, S), got shape {tuple(scores.shape)}")
    if scores.ndim == 2 and reduce == "gradient":
        raise ValueError(
            "`reduce` must be 'mean' or 'min' for scores of tokens, got 'gradient', which they do "
            "not have; `gwa_core.sequence_scores` makes scores of sequences, (N,)"
        )


class BySequence:
    """Two sums a sequence, to which its tokens add up over batches and ranks.

    Parameters
    ----------
    num_samples : int
        N, how many sequences there are.
    device : device
        Where the scores will come from.
    reduce : {"mean", "min", "gradient"}
        "mean": sum and count of the tokens' scores. "min": the smallest and the count.
        "gradient": the sums of `gwa_core.sequence_parts`.
    """

    def __init__(self, num_samples: int, device: torch.device, reduce: str) -> None:
        self.reduce = reduce
        self._size = num_samples
        self._own = self._empty(device)
        # What all ranks have agreed on, where they have met.
        self._common: tuple[torch.Tensor, torch.Tensor] | None = None
        self.strays = torch.zeros((), dtype=torch.int64, device=device)

    def _empty(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        # One more place, for what does not count. Some devices have no float64.
        places = self._size + 1
        wide = torch.float32 if device.type == "mps" else torch.float64
        begin = torch.inf if self.reduce == "min" else 0.0
        sums = torch.full((places,), begin, dtype=wide, device=device)
        return sums, torch.zeros(places, dtype=torch.float32, device=device)

    @classmethod
    def of_samples(cls, samples: BySample, reduce: str) -> Self:
        """Take over an epoch of samples, each of one token so far."""
        scores = samples.scores(samples.device)
        made = cls(len(scores), samples.device, reduce)
        (sums, lengths), seen = made._own, ~torch.isnan(scores)
        sums[:-1] = torch.where(seen, scores.to(sums.dtype), sums[:-1])
        lengths[:-1] = seen.to(lengths.dtype)
        made.strays = samples.strays.clone()
        return made

    def own_all(self) -> None:
        """Count as one's own what all ranks had agreed on, of which the others know nothing now."""
        self._own, self._common = self._whole, None

    def add(
        self,
        scores: torch.Tensor,
        ids: torch.Tensor,
        where: torch.Tensor | None,
        group: Any = None,
    ) -> None:
        """Add tokens: scores (T,), or numerators and lengths (T, 2)."""
        sums, lengths = self._own
        counted, slots = placed(ids, where, self._size, self.strays)
        values, weights = scores.unbind(1) if scores.ndim == 2 else (scores, counted)
        lengths.index_add_(0, slots, torch.where(counted, weights, 0).to(lengths.dtype))
        values = values.to(sums.dtype)
        if self.reduce == "min":
            # Below any score: what is not finite is the smallest, whatever the device makes of nan.
            values = torch.where(torch.isfinite(values), values, -torch.inf)
            values = torch.where(counted, values, torch.inf)
            sums.scatter_reduce_(0, slots, values, "amin")
        else:
            sums.index_add_(0, slots, torch.where(counted, values, 0.0))

    @property
    def device(self) -> torch.device:
        """Where the sums are."""
        return self.strays.device

    @property
    def _whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._common is None:
            return self._own
        (own, lengths), (sums, others) = self._own, self._common
        joined = torch.minimum(own, sums) if self.reduce == "min" else own + sums
        return joined, lengths + others

    @property
    def empty(self) -> bool:
        """Whether no token was seen."""
        return not bool(self._whole[1][:-1].any())

    def synchronize(self, group: Any = None) -> None:
        """Take over what the other ranks saw."""
        if position(group)[1] == 1:
            return
        sums, lengths = self._own
        joined = minimum(sums, group) if self.reduce == "min" else total(sums, group)
        self._own = joined, total(lengths, group)
        self._common, self._own = self._whole, self._empty(self.device)

    def finish(self, group: Any = None) -> tuple[Moments, int]:
        """Return the moments of all ranks and how many scores were not finite."""
        self.synchronize(group)
        refuse_strays(self.strays, self._size, group)
        moments = Moments.from_batch(self.scores().numpy())
        # A length that is not a number is one that was seen.
        return moments, int((self._whole[1][:-1] != 0).sum()) - int(moments.count)

    def scores(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return (N,) scores on a device, nan where no token was seen."""
        sums, lengths = (x[:-1] for x in self._whole)
        if self.reduce == "min":
            found = torch.where(torch.isfinite(sums), sums, torch.nan)
        else:
            found = (sums / lengths).clamp(-1.0, 1.0)
        return torch.where(lengths != 0, found, torch.nan).float().to(device)

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        if device.type == "mps":
            self._own = self._own[0].float(), self._own[1]
        self._own = self._own[0].to(device), self._own[1].to(device)
        if self._common is not None:
            sums, lengths = self._common
            self._common = sums.to(self._own[0]), lengths.to(device)
        self.strays = self.strays.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors on the host and plain values."""
        common = self._common
        return {
            "reduce": self.reduce,
            "own": [x.cpu().clone() for x in self._own],
            "common": None if common is None else [x.cpu().clone() for x in common],
            "strays": int(self.strays),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of the same number of sequences."""
        if state["reduce"] != self.reduce:
            raise ValueError(
                f"`reduce` must be the one of the state, {state['reduce']!r}, got {self.reduce!r}; "
                "the sums of an epoch in progress are of one kind"
            )
        for mine, kept in zip(self._own, state["own"], strict=True):
            mine.copy_(kept)
        self._common = None
        if state["common"] is not None:
            sums, lengths = (
                kept.to(mine) for mine, kept in zip(self._own, state["common"], strict=True)
            )
            self._common = sums, lengths
        self.strays.fill_(state["strays"])


def closed_parts(forward: Forward, flat: Flat, options: LossOptions) -> torch.Tensor:
    """Return numerators and lengths (T, 2) of a pass, by the closed form of the loss.

    The residuals of some rows are there at a time.
    """
    logits = _rows(forward.logits)
    flat, weights = flat.to(logits.device), options.weights_on(logits.device)
    if weights is not None:
        refuse_class_weights(options.loss)
    fitting = flat.fitting(logits.reshape(-1, logits.shape[-1]))
    targets, smoothing = as_soft(fitting, weights, options.label_smoothing)
    counted = _counted(flat)
    if targets.ndim == 1 and not targets.is_floating_point():
        # One sigmoid has two labels.
        counted = counted & (targets >= 0) & (targets < max(2, options.classes))
        targets = torch.where(counted, targets, 0)
    scale = None
    if weights is not None:
        # Of one token a weight changes the length of its gradient, and of a sum the direction.
        known = torch.where(counted, fitting, 0) if fitting.ndim == 1 else fitting
        wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
        smoothed = options.label_smoothing
        scale = loss_weights(targets=known, class_weights=wide, label_smoothing=smoothed)

    def residuals(made: torch.Tensor, part: slice) -> torch.Tensor:
        r: torch.Tensor = residual(
            logits=made,
            targets=targets[part],
            loss=cast("Any", options.loss),
            label_smoothing=smoothing,
        )
        return r if scale is None else r * scale[part].to(r.dtype)[:, None]

    # Residuals of a softmax sum to zero.
    return _by_row(forward, flat, counted, residuals, centre=options.loss == "cross_entropy")


def gradient_parts(forward: Forward, gradient: torch.Tensor, flat: Flat) -> torch.Tensor:
    """Return numerators and lengths (T, 2) of a pass, from the gradient at its logits."""
    gradient = gradient.reshape(-1, gradient.shape[-1])
    flat = flat.to(gradient.device)
    return _by_row(
        forward,
        flat,
        _counted(flat),
        lambda made, part: -gradient[part].to(made.dtype),
        centre=False,
    )


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return (B, S, features); what has no row of its own is one."""
    return x[None] if x.ndim == 2 else x.reshape(x.shape[0], -1, x.shape[-1])


def _counted(flat: Flat) -> torch.Tensor:
    everywhere = torch.ones(flat.samples, dtype=torch.bool, device=flat.targets.device)
    return everywhere if flat.where is None else flat.where


@contextlib.contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Have products of float32 matrices as they are on a CPU: ten bits are too few for a length."""
    if device.type != "cuda":
        yield
        return
    products: Any = torch.backends.cuda.matmul
    name, exact = (
        ("fp32_precision", "ieee") if hasattr(products, "fp32_precision") else ("allow_tf32", False)
    )
    before = getattr(products, name)
    setattr(products, name, exact)
    try:
        yield
    finally:
        setattr(products, name, before)


def _by_row(
    forward: Forward,
    flat: Flat,
    counted: torch.Tensor,
    residuals: Callable[[torch.Tensor, slice], torch.Tensor],
    *,
    centre: bool,
) -> torch.Tensor:
    """Return numerators and lengths (T, 2) of the rows of a pass, some rows at a time.

    Parameters
    ----------
    forward : Forward
        The pass.
    flat : Flat
        Its tokens.
    counted : boolean tensor of shape (T,)
        Tokens that count.
    residuals : callable
        Of the (n, C) logits of some rows and their part of the tokens: (n, C) residuals.
    centre : bool
        Whether residuals sum to zero, so that a common offset of the logits only costs digits.
    """
    logits, latents, found = _rows(forward.logits), _rows(forward.latents), []
    rows, width, classes = logits.shape
    room = ROW_BYTES_OF_GPU if logits.is_cuda else ROW_BYTES
    step = max(1, room // (4 * width * classes))
    for start in range(0, rows, step):
        made = logits[start : start + step]
        made = made.to(torch.promote_types(made.dtype, torch.float32))
        part = slice(start * width, (start + len(made)) * width)
        r = residuals(made.reshape(-1, classes), part).reshape(made.shape)
        activations = made if forward.bias is None else made - forward.bias.to(made.dtype)
        if centre:
            activations = activations - activations.amax(-1, keepdim=True)
        own = counted[part]
        groups = torch.zeros_like(own, dtype=torch.int64) if flat.ids is None else flat.ids[part]
        with full_precision(logits.device), _exact_products(logits.device):
            numerators, lengths = sequence_parts(
                residuals=r,
                activations=activations,
                latents=latents[start : start + step].to(made.dtype),
                weight_norm=forward.weight_norm,
                groups=groups.reshape(-1, width),
                where=own.reshape(-1, width),
            )
        found.append(torch.stack([numerators, lengths], dim=2).reshape(-1, 2))
    return torch.cat(found)
