"""A network on its device: compiled on a GPU, as it is on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from experiments.augmentation import AUGMENTATIONS
from experiments.networks import Classifier, ConvNextByProducts, build

__all__ = ["Engine"]


class Engine:
    """A network that is compiled once and serves one run after another.

    Parameters
    ----------
    network : str
        A key of ``networks.NETWORKS``.
    classes : int
        C.
    device : str
        Where it runs; on a GPU in bfloat16 and compiled.
    side : int
        Of the images.
    folder : path, optional
        With the weights of pretrained networks.
    """

    def __init__(
        self,
        network: str,
        classes: int,
        device: str,
        side: int = 32,
        folder: Path | None = None,
    ) -> None:
        self.network, self.classes, self.device, self.folder = network, classes, device, folder
        self.fast = device != "cpu"
        torch.set_float32_matmul_precision("high")
        self.model: Classifier = build(network, classes, 0, folder).to(device)
        self.latents = self.model.latents
        # Whether a pass in training differs from one in evaluation.
        self._modes = any(isinstance(m, nn.BatchNorm2d) for m in self.model.modules())
        self.augmentations = AUGMENTATIONS
        if self.fast:
            if network.startswith("convnext"):
                self.latents = ConvNextByProducts(self.model.body, side, self.model.sketch)
            self.latents = torch.compile(self.latents, dynamic=False)
            self.augmentations = {
                name: torch.compile(made, dynamic=False) for name, made in AUGMENTATIONS.items()
            }

    def begin(self, seed: int) -> None:
        """Take the weights that a seed draws."""
        drawn = build(self.network, self.classes, seed, self.folder)
        self.model.load_state_dict(drawn.state_dict())
        self.model.train()

    def precision(self) -> torch.autocast:
        """Return the context of a forward pass."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.fast)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images or tokens, by way of the head that the monitor watches."""
        images = self.model.scaled(images)
        with self.precision():
            logits: torch.Tensor = self.model.head(self.latents(images))
        return logits

    @torch.no_grad()
    def evaluate(self, images: torch.Tensor, size: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents and logits of images or tokens, in float32, unseen by the monitor."""
        found, training = [], self.model.training
        self.model.train(training and not self._modes)
        for part in images.split(size):
            rows = len(part)
            if self.fast and rows < size:
                # One shape for all, so that nothing is compiled twice.
                part = F.pad(part, (0, 0) * (part.ndim - 1) + (0, size - rows))
            x = self.model.scaled(part)
            with self.precision():
                found.append(self.latents(x)[:rows].float())
        self.model.train(training)
        latents = torch.cat(found)
        return latents, F.linear(latents, self.model.head.weight, self.model.head.bias)
