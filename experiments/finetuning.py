"""Pretrained networks to fine-tune (Sec. 4.4): EfficientNet-Lite0 for images, MiniLM for texts.

Both bodies stay as in evaluation, without dropout and with the batch statistics that they came with: then a
sample's latents depend on it alone, as in the paper's ViT, and are the same in training and in measuring.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from experiments.networks import Classifier

__all__ = ["enlarged", "lite0", "minilm"]

#: Of the numbers of a pixel in 0..255, as Lite0 was trained.
MEAN, DEVIATION = 127.0, 128.0


class _Still(nn.Module):
    """A body that is in evaluation at all times."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def train(self, mode: bool = True) -> _Still:
        """Stay as it is; weights are trained all the same."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return latents (N, D)."""
        latents: torch.Tensor = self.body(images)
        return latents


class _Texts(_Still):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the mean over the tokens of a text, (N, D); token 0 fills up."""
        there = tokens != 0
        found = self.body(input_ids=tokens, attention_mask=there.long()).last_hidden_state
        share = there.to(found.dtype)[:, :, None]
        mean: torch.Tensor = (found * share).sum(1) / share.sum(1).clamp_min(1)
        return mean


def enlarged(images: torch.Tensor, side: int) -> torch.Tensor:
    """Return bytes or numbers in [0, 1] at another size and on Lite0's scale."""
    x = images.float() / 255 if images.dtype == torch.uint8 else images
    x = (255 * x - MEAN) / DEVIATION
    x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False)
    return x.contiguous(memory_format=torch.channels_last)


def lite0(classes: int, weights: Path, side: int = 96) -> Classifier:
    """Return EfficientNet-Lite0 of timm with weights of ImageNet.

    Parameters
    ----------
    classes : int
        C.
    weights : path
        A PyTorch file of tensors in timm's order, whatever they are called.
    side : int
        What images are enlarged to.
    """
    import timm

    body = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    given = torch.load(weights, weights_only=True).values()
    # The two of ImageNet's own head come last and are left out.
    body.load_state_dict(dict(zip(body.state_dict(), given, strict=False)))
    width: int = body.num_features
    body = _Still(body.to(memory_format=torch.channels_last))
    return Classifier(
        body, lambda x: x, width, classes, scaled=functools.partial(enlarged, side=side)
    )


def minilm(classes: int, weights: Path) -> Classifier:
    """Return a BERT with weights that `texts.prepare` wrote.

    Parameters
    ----------
    classes : int
        C.
    weights : path
        The file.
    """
    from transformers import BertConfig, BertModel

    with np.load(weights, allow_pickle=False) as file:
        given: dict[str, Any] = dict(file)
    config = BertConfig(**json.loads(str(given.pop("config"))))
    body = BertModel(config, add_pooling_layer=False)
    body.load_state_dict({name: torch.from_numpy(x).float() for name, x in given.items()})
    return Classifier(
        _Texts(body), lambda x: x, config.hidden_size, classes, scaled=lambda tokens: tokens
    )
