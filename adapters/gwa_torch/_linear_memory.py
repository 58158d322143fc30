"""Where the logits of a block lie: a buffer, and the gradients that are not made yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

__all__ = ["Block", "Memory"]

# Logits of the buffer: of 512 tokens and 118,272 classes in half precision. Each block reads and
# writes the gradient of the weight once: fewer tokens keep a GPU's memory busier than its cores.
BLOCK_BYTES = 231 * 2**19

# How much larger a block may be, with memory that is borrowed.
BORROWED = 1 / 8

# Tokens of a whole tile of a matrix product.
TILE = 64

# Classes of one.
CLASSES = 256


class Block(NamedTuple):
    """The logits of n tokens, a column a token: of the first classes, and of the rest."""

    first: torch.Tensor
    rest: torch.Tensor

    def pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the classes of each part that is not empty, and their logits."""
        split = len(self.first)
        for start, piece in ((split, self.rest), (0, self.first)):
            if len(piece):
                yield slice(start, start + len(piece)), piece


class Memory:
    """A buffer, and the memory of both gradients as long as they are not there.

    The gradient of the weight (C, D) holds the logits of up to D tokens, the first ones, whose last
    classes are in the buffer. The gradients of later latents hold the last classes of a block that
    is a little larger than the buffer.

    Parameters
    ----------
    like : tensor
        Has the dtype and the device.
    rows : int
        Tokens in all.
    classes : int
        Their logits.
    of_latents, of_weight : tensor, optional
        Contiguous gradients (N, D) and (C, D), to be filled block by block. None: leave alone.
    """

    def __init__(
        self,
        like: torch.Tensor,
        rows: int,
        classes: int,
        of_latents: torch.Tensor | None,
        of_weight: torch.Tensor | None,
    ) -> None:
        self.rows, self.classes = rows, classes
        self.of_latents: Any = of_latents
        self.of_weight: Any = of_weight
        # What a later token lends.
        self.features = 0 if of_latents is None else of_latents.shape[1]
        room = max(BLOCK_BYTES // like.dtype.itemsize, classes)
        self.buffer = like.new_empty(min(room, rows * classes))
        self.early = 0
        if of_weight is not None and rows * classes > len(self.buffer):
            early = min(rows, of_weight.shape[1]) // TILE * TILE
            self.early = early if early * classes > len(self.buffer) >= early else 0

    def next(self, start: int) -> tuple[slice, Block]:
        """Return the tokens of the block that begins at one, and where their logits lie."""
        if start == 0 and self.early:
            count = len(self.buffer) // self.early
            rest = self.buffer[: count * self.early].view(count, self.early)
            room = self.of_weight.view(-1)[(count - self.classes) * self.early :]
            return slice(0, self.early), Block(room.view(-1, self.early), rest)
        tokens = self._tokens(self.rows - start)
        here = slice(start, start + tokens)
        split = self._split(tokens)
        first = self.buffer[: split * tokens].view(split, tokens)
        count = self.classes - split
        if not count:
            return here, Block(first, first[:0])
        later = self.of_latents[here.stop :].view(-1)
        return here, Block(first, later[: count * tokens].view(count, tokens))

    def _tokens(self, left: int) -> int:
        """Return the tokens of the next block: of blocks of about equal size, in whole tiles."""
        tokens = 0
        for share in (1 + BORROWED, 1):
            most = max(1, int(share * len(self.buffer)) // self.classes)
            most = min(left, most // TILE * TILE or most)
            even = -(-left // -(-left // most))
            tokens = min(most, -(-even // TILE) * TILE)
            if (self.classes - self._split(tokens)) * tokens <= (left - tokens) * self.features:
                break
        return tokens

    def _split(self, tokens: int) -> int:
        """Return how many classes of a block the buffer holds: all, or whole tiles."""
        split = len(self.buffer) // tokens
        return self.classes if split >= self.classes else split // CLASSES * CLASSES or split
