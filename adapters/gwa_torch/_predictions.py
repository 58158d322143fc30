"""The predicted class of each sample in an epoch, kept beside its score for a run folder."""

from __future__ import annotations

from typing import Any

import torch

from gwa_torch._epoch import NEVER, BySample
from gwa_torch._targets import Flat, LossOptions

__all__ = ["Predictions", "one_class"]


def one_class(flat: Flat, options: LossOptions) -> bool:
    """Tell whether a sample of a batch has one class: no tokens, and not several sigmoids."""
    several = options.loss == "binary_cross_entropy" and options.classes > 1
    return flat.ids is not None and not flat.tokens and not several


class Predictions(BySample):
    """A class number for each sample, of the pass in which its score was taken.

    The class has the place of the score's 32 bits, so that what holds for scores holds for it: the
    first of an epoch stays, one scatter a batch, one reduction over the ranks.
    """

    def add_logits(self, logits: torch.Tensor, flat: Flat, group: Any = None) -> None:
        """Add the outputs of the head for the rows of a batch, classes last."""
        logits = logits.reshape(-1, logits.shape[-1])
        one = logits.shape[1] == 1
        classes = (logits[:, 0] > 0) if one else logits.argmax(dim=1)
        flat = flat.to(logits.device)
        bits = classes.to(torch.int32).view(torch.float32)
        self.add(bits, flat.ids, flat.where, group)  # type: ignore[arg-type]

    def classes(self) -> torch.Tensor:
        """Return (N,) class numbers on the host, -1 where not seen; waits for the device."""
        first = self.first[:-1].cpu()
        return torch.where(first == NEVER, -1, first & 0xFFFFFFFF).to(torch.int32)
