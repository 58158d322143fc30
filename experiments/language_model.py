"""A decoder of texts, drawn at random."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """A GPT without head and without dropout, so that a pass in training is one in evaluation.

    What fills up stands at the end of a sequence, where no token that counts attends to it.

    Parameters
    ----------
    vocabulary, width, layers : int
        Of tokens, of latents, and of blocks. A head of attention has 64 of the width.
    length : int
        The most tokens of a sequence.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Each block adds to the stream twice, and the sum of all has the size of one.
                last = name.endswith(("mixed.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if last else 0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return latents (N, S, D) of tokens (N, S)."""
        places = self.places.weight[: tokens.shape[1]]
        x = self.tokens(tokens) + places
        for block in self.blocks:
            x = block(x)
        found: torch.Tensor = self.norm(x)
        return found


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.three = nn.Linear(width, 3 * width, bias=False)
        self.mixed = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.three(self.norm(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = three.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mixed(seen.transpose(1, 2).flatten(2))
        mlp: torch.Tensor = self.down(F.gelu(self.up(self.norm_mlp(x))))
        return x + mlp
