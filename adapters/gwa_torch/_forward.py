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
        if type(output) is not torch.Tensor or output.dtype != torch.float32 or not output.is_cpu:
            return None
        if output.ndim != 2 or not 0 < 4 * output.numel() <= SMALL_BYTES or len(args) != 1:
            return None
        # Of these kinds they have the dtype and the device of the output.
        weight, bias = module._parameters.get("weight"), cast("Any", module.bias)
        if type(weight) is not nn.Parameter or type(args[0]) not in (torch.Tensor, nn.Parameter):
            return None
        latents = args[0].detach()
        return cls(
            output.detach(),
            latents,
            frobenius_norm(weight),
            # The optimiser's step writes into it.
            None if bias is None else bias.detach().clone(),
            output._version,
            # As `head_scores` takes them: rows that wait have the scores of rows that do not.
            torch.linalg.vector_norm(latents, dim=-1),
        )

    def forward_pass(self) -> Forward:
        """Return it as any other pass."""
        return Forward(*self[:4], None, self.version)
