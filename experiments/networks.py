"""The networks of the paper: a body that gives latents, and a linear head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["NETWORKS", "Classifier", "build"]


class Classifier(nn.Module):
    """A body and a head.

    Parameters
    ----------
    body : Module
        A Transformers model.
    latents : callable
        Latents (N, D) from its output.
    width, classes : int
        D and C.
    """

    def __init__(
        self, body: nn.Module, latents: Callable[[Any], torch.Tensor], width: int, classes: int
    ) -> None:
        super().__init__()
        self.body, self._latents = body, latents
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Return the input of the head, (N, D)."""
        return self._latents(self.body(images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, C)."""
        logits: torch.Tensor = self.head(self.latents(images))
        return logits


def _convnext(classes: int, **options: Any) -> Classifier:
    from transformers import ConvNextV2Config, ConvNextV2Model

    widths = options["hidden_sizes"]
    body = ConvNextV2Model(ConvNextV2Config(**options))
    return Classifier(body, lambda out: out.pooler_output, widths[-1], classes)


def _vit(classes: int, **options: Any) -> Classifier:
    from transformers import ViTConfig, ViTModel

    body = ViTModel(ViTConfig(**options), add_pooling_layer=False)
    width = options["hidden_size"]
    return Classifier(body, lambda out: out.last_hidden_state[:, 0], width, classes)


PICO = {"depths": [2, 2, 6, 2], "hidden_sizes": [64, 128, 256, 512], "patch_size": 2}
#: By name: the maker and its options.
NETWORKS: dict[str, tuple[Callable[..., Classifier], dict[str, Any]]] = {
    # ConvNeXt-V2 pico; a stem of 2 x 2 instead of 4 x 4, for images of 32 pixels.
    "convnext": (_convnext, PICO),
    # Six layers with patches of 4 x 4.
    "vit": (
        _vit,
        {
            "image_size": 32,
            "patch_size": 4,
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "intermediate_size": 1536,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    ),
    # For tests.
    "tiny": (
        _convnext,
        {"depths": [1, 1], "hidden_sizes": [8, 16], "patch_size": 4, "num_stages": 2},
    ),
}


def build(name: str, classes: int, seed: int) -> Classifier:
    """Return a network with weights drawn from a seed, the same on every machine."""
    if name not in NETWORKS:
        raise ValueError(f"`network` must be one of {', '.join(NETWORKS)}, got {name!r}")
    make, options = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(classes, **options)
