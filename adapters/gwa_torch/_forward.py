"""A forward pass of the head, as far as its scores need it."""

from __future__ import annotations

from typing import Any, NamedTuple, Self, cast

import torch
from torch import nn

from gwa_torch._gradients import Picked, SlotTap, Tap
from gwa_torch.scoring import frobenius_norm

__all__ = ["Forward", "SmallForward"]

# Logits of a small pass.
SMALL_BYTES = 1 << 21


class Forward(NamedTuple):
    """One forward pass of the head, detached: channels last, the weight of that moment."""

    logits: torch.Tensor
    latents: torch.Tensor
    weight_norm: torch.Tensor
    bias: torch.Tensor | None
    weight: torch.Tensor | None
    version: int | None
    tap: Tap | SlotTap | Picked | None = None

    @property
    def samples(self) -> int:
        """How many samples, tokens or pixels there are."""
        return self.logits.numel() // self.logits.shape[-1]

    def pick(self, rows: torch.Tensor, logits: torch.Tensor) -> Forward:
        """Return the pass with some of its rows alone, whose logits these are.

        Parameters
        ----------
        rows : integer tensor of shape (N,)
            Which rows of the pass, its leading axes flattened.
        logits : tensor of shape (N, C)
            Their logits.
        """
        latents = self.latents.reshape(-1, self.latents.shape[-1])[rows]
        tap = None if self.tap is None else Picked(self.tap, rows)  # type: ignore[arg-type]
        return self._replace(logits=logits, latents=latents, version=None, tap=tap)


class SmallForward(NamedTuple):
    """A small pass on the host in float32, whose batch may be scored together with others.

    Its norms are taken while its tensors are in the cache, by PyTorch: an array of NumPy that shares
    a user's tensor would keep its memory from being resized, as FSDP does.
    """

    logits: torch.Tensor
    latents: torch.Tensor
    weight_norm: torch.Tensor
    bias: torch.Tensor | None
    version: int
    # ‖z‖ of the rows.
    latent_norms: torch.Tensor

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> Self | None:
        """Return the pass of a linear layer, or None where it is of another kind."""
        if not 0 < 4 * output.numel() <= SMALL_BYTES or len(args) != 1:
            return None
        latents, weight, bias = args[0], module._parameters.get("weight"), cast("Any", module.bias)
        if not (_is_plain(output) and _is_plain(latents) and _is_plain(weight)):
            return None
        if not (bias is None or bias.dtype == torch.float32):
            return None
        latents = latents.detach()
        return cls(
            output.detach(),
            latents,
            frobenius_norm(cast("torch.Tensor", weight)),
            # The optimiser's step writes into it.
            None if bias is None else bias.detach().clone(),
            output._version,
            # As `head_scores` takes them: rows that wait have the scores of rows that do not.
            torch.linalg.vector_norm(latents, dim=-1),
        )

    def forward_pass(self) -> Forward:
        """Return it as any other pass."""
        return Forward(*self[:4], None, self.version)


def _is_plain(x: Any) -> bool:
    """Tell whether something is a matrix in float32 on the host, and of no class of its own."""
    usual = type(x) is torch.Tensor or type(x) is nn.Parameter
    return usual and x.dtype == torch.float32 and x.is_cpu and x.ndim == 2
