"""The networks of the paper: a body that gives latents, and a linear head."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from experiments.augmentation import scaled
from gwa_torch import JLHead

__all__ = ["NETWORKS", "Classifier", "ConvNextByProducts", "build"]


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
    sketch : int
        Latents behind a frozen sketch of the body (Fig. 8), 0 for none.
    scaled : callable
        What the body takes, from bytes or numbers in [0, 1], or from tokens.
    bias : bool
        Whether the head has one.
    """

    sketch: torch.Tensor | None

    def __init__(
        self,
        body: nn.Module,
        latents: Callable[[Any], torch.Tensor],
        width: int,
        classes: int,
        sketch: int = 0,
        scaled: Callable[[torch.Tensor], torch.Tensor] = scaled,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.body, self._latents, self.scaled = body, latents, scaled
        made = JLHead(width, classes, sketch) if sketch else None
        self.register_buffer("sketch", made and made.sketch)
        self.head = made.linear if made else nn.Linear(width, classes, bias)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        if bias:
            nn.init.zeros_(self.head.bias)

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Return the input of the head, (N, D)."""
        latents = self._latents(self.body(images))
        return latents if self.sketch is None else F.linear(latents, self.sketch)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, C)."""
        logits: torch.Tensor = self.head(self.latents(images))
        return logits


class _PatchTransformer(nn.Module):
    """Patches, fixed sines of their places, an encoder, and the mean of its outputs."""

    def __init__(
        self, width: int, patch: int, side: int, layers: int, heads: int, mlp: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(3, width, patch, patch)
        layer = nn.TransformerEncoderLayer(
            width, heads, mlp, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        for weight in self.encoder.parameters():
            if weight.ndim == 2:
                nn.init.xavier_uniform_(weight)
        at = torch.arange(side // patch).float()
        angles = at[:, None] * 10_000 ** -torch.linspace(0, 1, width // 4)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        n = len(at)
        both = torch.cat([waves.repeat(n, 1), waves.repeat_interleave(n, 0)], dim=1)
        self.register_buffer("places", both)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embedding(images).flatten(2).mT + self.places
        found: torch.Tensor = self.encoder(x).mean(1)
        return found


def _convnext(classes: int, kernel: int = 7, sketch: int = 0, **options: Any) -> Classifier:
    from transformers import ConvNextV2Config, ConvNextV2Model

    widths = options["hidden_sizes"]
    body = ConvNextV2Model(ConvNextV2Config(**options))
    for block in body.modules():
        if hasattr(block, "dwconv") and kernel != 7:
            width = block.dwconv.out_channels
            block.dwconv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
            nn.init.trunc_normal_(block.dwconv.weight, std=0.02)
            nn.init.zeros_(block.dwconv.bias)
    return Classifier(body, lambda out: out.pooler_output, widths[-1], classes, sketch)


def _vit(classes: int, **options: Any) -> Classifier:
    return Classifier(_PatchTransformer(**options), lambda x: x, options["width"], classes)


def _mlp(classes: int, pixels: int, hidden: int, width: int) -> Classifier:
    body = nn.Sequential(
        nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.ReLU(),
    )  # fmt: skip
    return Classifier(body, lambda x: x, width, classes)


def _conv(classes: int, widths: list[int], side: int, width: int) -> Classifier:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([3, *widths]):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    pixels = (side >> len(widths)) ** 2
    body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * pixels, width), nn.ReLU())
    return Classifier(body, lambda x: x, width, classes)


def _resnet(classes: int, depths: list[int], widths: list[int]) -> Classifier:
    """Return a ResNet with batch norm, its stem for small images: 3 x 3, and no pooling."""
    from transformers import ResNetConfig, ResNetModel

    body = ResNetModel(
        ResNetConfig(
            depths=depths, hidden_sizes=widths, embedding_size=widths[0], layer_type="basic"
        )
    )
    body.embedder.embedder.convolution = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
    body.embedder.pooler = nn.Identity()
    return Classifier(body, lambda out: out.pooler_output.flatten(1), widths[-1], classes)


def _bert(classes: int, vocabulary: int, width: int, layers: int) -> Classifier:
    """Return an encoder of texts without pretraining, and the mean of its outputs."""
    return Classifier(
        _Encoder(vocabulary, width, layers), lambda x: x, width, classes, scaled=lambda x: x
    )


class _Encoder(nn.Module):
    """A BERT without dropout, so that a pass in training is one in evaluation."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers,
            num_attention_heads=width // 64, intermediate_size=4 * width,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.encoder = BertModel(config, add_pooling_layer=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = tokens != 0
        out = self.encoder(tokens, attention_mask=mask).last_hidden_state
        count = mask.sum(1, keepdim=True).clamp_min(1)
        found: torch.Tensor = (out * mask[..., None]).sum(1) / count
        return found


class _Words(nn.Module):
    """The mean of the embeddings of a text's tokens, and a layer of its own; token 0 fills up."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.layer = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        count = (tokens != 0).sum(1, keepdim=True).clamp_min(1)
        return F.relu(self.layer(self.embedding(tokens).sum(1) / count))


def _words(classes: int, vocabulary: int, width: int) -> Classifier:
    body = _Words(vocabulary, width)
    return Classifier(body, lambda x: x, width, classes, scaled=lambda tokens: tokens)


def _gpt(classes: int, width: int, layers: int, length: int) -> Classifier:
    """Return a decoder of texts; its classes are the tokens."""
    from experiments.language_model import Decoder

    body = Decoder(classes, width, layers, length)
    return Classifier(body, lambda x: x, width, classes, scaled=lambda x: x, bias=False)


def _lite0(classes: int, weights: Path) -> Classifier:
    from experiments.finetuning import lite0

    return lite0(classes, weights)


def _minilm(classes: int, weights: Path) -> Classifier:
    from experiments.finetuning import minilm

    return minilm(classes, weights)


class ConvNextByProducts:
    """The latents of a ConvNeXt-V2, (N, D), by matrix products alone.

    The same numbers as the library's own pass. A depthwise convolution of few pixels leaves a GPU idle;
    as a product with the matrix that it is, (pixels, pixels) a channel, it costs more operations and a
    sixth of the time. Activations are (channels, N, pixels), so that nothing is transposed.

    Parameters
    ----------
    body : Module
        A ``ConvNextV2Model`` without stochastic depth.
    side : int
        Of the square images.
    sketch : tensor, optional
        Of the classifier.
    """

    def __init__(self, body: nn.Module, side: int, sketch: torch.Tensor | None = None) -> None:
        self.body, self.sketch, self.places = body, sketch, []
        self.stem = body.embeddings.patch_embeddings
        side //= self.stem.kernel_size[0]
        for k, stage in enumerate(body.encoder.stages):
            weight = stage.layers[0].dwconv.weight
            places = _places(side >> k, weight.shape[2]).to(weight.device)
            half = torch.bfloat16 if weight.device.type == "cuda" else weight.dtype
            self.places.append(places.to(half))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents of images (N, 3, side, side)."""
        x = _pointwise(self.stem, _patches(images.transpose(0, 1), self.stem.kernel_size[0]))
        x = _normed(self.body.embeddings.layernorm, x)
        for stage, places in zip(self.body.encoder.stages, self.places, strict=True):
            if len(stage.downsampling_layer):
                norm, halve = stage.downsampling_layer
                side = math.isqrt(x.shape[2])
                x = _pointwise(halve, _patches(_normed(norm, x).unflatten(2, (side, side)), 2))
            for block in stage.layers:
                x = x + self._block(block, x, places)
        norm = self.body.layernorm
        latents: torch.Tensor = norm(x.to(norm.weight.dtype).mean(2).T)
        return latents if self.sketch is None else F.linear(latents, self.sketch)

    def _block(self, block: Any, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        pixels = x.shape[2]
        matrix = (block.dwconv.weight.flatten(1) @ places).unflatten(1, (pixels, pixels))
        x = torch.bmm(x, matrix) + block.dwconv.bias[:, None, None]
        x = F.gelu(_pointwise(block.pwconv1, _normed(block.layernorm, x)))
        # Not the root of a sum: its gradient is not a number where a channel is nothing but zeros.
        size = torch.linalg.vector_norm(x, dim=2, keepdim=True, dtype=block.grn.weight.dtype)
        share = size / (size.mean(0, keepdim=True) + 1e-6)
        weight, bias = block.grn.weight.view(-1, 1, 1), block.grn.bias.view(-1, 1, 1)
        return _pointwise(block.pwconv2, x * (1 + weight * share) + bias)


def _patches(x: torch.Tensor, size: int) -> torch.Tensor:
    """Return (channels size size, N, pixels) of (channels, N, height, width)."""
    x = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    return x.permute(0, 3, 5, 1, 2, 4).flatten(4).flatten(0, 2)


def _pointwise(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = layer.weight.flatten(1) @ x.flatten(1)
    return y.unflatten(1, x.shape[1:]) + layer.bias[:, None, None]


def _normed(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.to(layer.weight.dtype)
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    x = (x - mean) * torch.rsqrt(variance + layer.eps)
    return x * layer.weight[:, None, None] + layer.bias[:, None, None]


def _places(side: int, size: int) -> torch.Tensor:
    """Return which entries of a convolution's matrix each weight fills, (size size, pixels pixels)."""
    at = torch.arange(side)
    shift = at[:, None] - at + size // 2  # of input from output, along one axis
    along = F.one_hot(shift.clamp(0, size - 1), size) * ((shift >= 0) & (shift < size))[..., None]
    return torch.einsum("abk,cdl->klacbd", along, along).flatten(2).flatten(0, 1)


PICO = {"depths": [2, 2, 6, 2], "hidden_sizes": [64, 128, 256, 512]}
#: By name: the maker and its options.
NETWORKS: dict[str, tuple[Callable[..., Classifier], dict[str, Any]]] = {
    # ConvNeXt-V2 pico as the paper's authors cut it for 32 pixels: all of them, and windows of three.
    "convnext": (_convnext, PICO | {"patch_size": 1, "kernel": 3}),
    # The original windows on a stem of 2 x 2: a third of the cost.
    "convnext-coarse": (_convnext, PICO | {"patch_size": 2}),
    # Six layers with patches of 4 x 4.
    "vit": (
        _vit,
        {"width": 512, "patch": 4, "side": 32, "layers": 6, "heads": 8, "mlp": 512},
    ),
    # With batch norm.
    "resnet": (_resnet, {"depths": [2, 2, 2, 2], "widths": [64, 128, 256, 512]}),
    # Four layers for texts, drawn at random.
    "bert": (_bert, {"vocabulary": 16_384, "width": 256, "layers": 4}),
    # Two hidden layers, for machines without a GPU.
    "mlp": (_mlp, {"pixels": 768, "hidden": 256, "width": 128}),
    # Three convolutions that halve an image, for the same machines.
    "conv": (_conv, {"widths": [16, 32, 64], "side": 32, "width": 128}),
    # For texts; more rows than the data have pieces of words.
    "words": (_words, {"vocabulary": 16_384, "width": 64}),
    # A language model of 34 million weights, with 8192 tokens.
    "gpt": (_gpt, {"width": 512, "layers": 8, "length": 256}),
    # Pretrained; the file is in the folder of `--data`.
    "lite0": (_lite0, {"weights": "efficientnet-lite0-57934424.pth"}),
    "minilm": (_minilm, {"weights": "minilm.npz"}),
    # For tests.
    "tiny-resnet": (_resnet, {"depths": [1, 1, 1, 1], "widths": [8, 8, 16, 16]}),
    "tiny-bert": (_bert, {"vocabulary": 64, "width": 64, "layers": 1}),
    "tiny-gpt": (_gpt, {"width": 64, "layers": 1, "length": 64}),
    "tiny": (
        _convnext,
        {"depths": [1, 1], "hidden_sizes": [8, 16], "patch_size": 4, "num_stages": 2},
    ),
}
#: The depths of ConvNeXt-V2 atto, femto, pico, nano and tiny by the width of their latents.
WIDTHS = {
    320: [2, 2, 6, 2],
    384: [2, 2, 6, 2],
    512: [2, 2, 6, 2],
    640: [2, 2, 8, 2],
    768: [3, 3, 9, 3],
}
# With the coarse stem; "convnext-512" is "convnext-coarse". Each also behind a frozen sketch.
for _width, _depths in WIDTHS.items():
    _widths = [_width // 8, _width // 4, _width // 2, _width]
    _options = {"depths": _depths, "hidden_sizes": _widths, "patch_size": 2}
    NETWORKS[f"convnext-{_width}"] = (_convnext, _options)
    NETWORKS[f"convnext-{_width}-sketch"] = (_convnext, _options | {"sketch": 192})


def build(name: str, classes: int, seed: int, folder: Path | None = None) -> Classifier:
    """Return a network with weights drawn from a seed, the same on every machine.

    Of a pretrained one the weights are read from `folder`, and the head is drawn.
    """
    if name not in NETWORKS:
        raise ValueError(f"`network` must be one of {', '.join(NETWORKS)}, got {name!r}")
    make, options = NETWORKS[name]
    if "weights" in options:
        path = (folder or Path()) / options["weights"]
        if not path.exists():
            raise FileNotFoundError(
                f"`--data` must be a folder with {path.name}, got {path.parent}; the README of the "
                f"experiments says where it is from"
            )
        options = options | {"weights": path}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(classes, **options)
