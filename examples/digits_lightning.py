"""A LightningModule for the digits, and its loader."""

from typing import Any

import lightning
import torch
from torch import nn

from examples.digits_torch import loader

__all__ = ["Digits", "loader"]


class Digits(lightning.LightningModule):
    """Two layers; the second one is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch; its third item, the ids, is for GWA alone."""
        inputs, labels, *_ = batch
        return nn.functional.cross_entropy(self.head(self.body(inputs)), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)
