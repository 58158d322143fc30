"""Random changes of images on their own device, each image by its own draw."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F  # noqa: N812

__all__ = ["AUGMENTATIONS", "crop_and_flip", "mixed", "rand_augment", "scaled"]

#: The mean and deviation of CIFAR-10's channels; near enough for other natural images.
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# RandAugment's operations and doing nothing; the numbers are their places.
(
    AUTOCONTRAST, EQUALISE, INVERT, TURN, POSTERISE, SOLARISE, SOLARISE_ADD, COLOUR, CONTRAST,
    BRIGHTNESS, SHARPNESS, SHEAR_X, SHEAR_Y, MOVE_X, MOVE_Y, CUT, NOTHING,
) = range(17)  # fmt: skip
#: What comes in from outside, and under what is cut.
GREY = 128 / 255


def scaled(images: torch.Tensor) -> torch.Tensor:
    """Return bytes or numbers in [0, 1] with mean 0 and deviation 1 a channel."""
    x = images.float() / 255 if images.dtype == torch.uint8 else images
    mean, deviation = (x.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return (x - mean) / deviation


def crop_and_flip(images: torch.Tensor, pad: int = 4) -> torch.Tensor:
    """Move each image by up to `pad` pixels, black outside, and mirror half of them."""
    return _cropped(F.pad(images.float() / 255, (pad, pad, pad, pad)), images.shape[2:])


def _cropped(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    n, device = len(x), x.device
    places = []
    for side, larger in zip(size, x.shape[2:], strict=True):
        first = torch.randint(larger - side + 1, (n, 1), device=device)
        places.append(torch.arange(side, device=device) + first)
    rows, columns = places
    columns = torch.where(torch.rand(n, 1, device=device) < 0.5, columns.flip(1), columns)
    where = torch.arange(n, device=device)[:, None, None]
    return x.permute(0, 2, 3, 1)[where, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def rand_augment(images: torch.Tensor, magnitude: float = 1.0, layers: int = 2) -> torch.Tensor:
    """Enlarge by four pixels, apply `layers` operations an image, crop and flip.

    Parameters
    ----------
    images : bytes (N, 3, height, width)
        Images.
    magnitude : float
        In 0..10, by TensorFlow's scale, which the paper's authors use. There 1 is not weak: a factor
        of 0.28 for colour, contrast, brightness and sharpness, a move by 10 pixels, 1 bit a channel.
    layers : int
        How many of sixteen operations and doing nothing, one after another.
    """
    height, width = images.shape[2:]
    x = F.interpolate(images.float() / 255, (height + 4, width + 4), mode="bilinear")
    for _ in range(layers):
        x = _one_operation(x, magnitude / 10)
    return _cropped(x, images.shape[2:])


def _one_operation(x: torch.Tensor, level: float) -> torch.Tensor:
    n, _, height, width = x.shape
    chosen = torch.randint(NOTHING + 1, (n,), device=x.device)
    sign = torch.where(torch.rand(n, device=x.device) < 0.5, -1.0, 1.0)

    def amount(operation: int, largest: float) -> torch.Tensor:
        return torch.where(chosen == operation, sign * largest * level, 0.0)

    def pick(operation: int, other: torch.Tensor) -> None:
        nonlocal x
        x = torch.where((chosen == operation)[:, None, None, None], other, x)

    turn = amount(TURN, math.radians(30))
    cosine, sine = torch.cos(turn), torch.sin(turn)
    # By up to 100 pixels; the image's own size is 2 here.
    right, down = amount(MOVE_X, 200 / width), amount(MOVE_Y, 200 / height)
    first = torch.stack([cosine, amount(SHEAR_X, 0.3) - sine, right], dim=1)
    second = torch.stack([sine + amount(SHEAR_Y, 0.3), cosine, down], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(x.shape), align_corners=False)
    moved = (chosen == TURN) | ((chosen >= SHEAR_X) & (chosen <= MOVE_Y))
    x = torch.where(
        moved[:, None, None, None],
        F.grid_sample(x - GREY, grid, mode="nearest", align_corners=False) + GREY,
        x,
    )
    # Half of a square's side, around any pixel.
    half = int(40 * level)
    row = torch.arange(height, device=x.device)[:, None]
    column = torch.arange(width, device=x.device)
    centres = torch.rand(2, n, 1, 1, device=x.device)
    inside = ((row - centres[0] * height).abs() < half) & (
        (column - centres[1] * width).abs() < half
    )
    pick(CUT, torch.where(inside[:, None], GREY, x))
    grey = (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    factor = 1.8 * level + 0.1
    for operation, other in (
        (BRIGHTNESS, torch.zeros_like(x)),
        (COLOUR, grey),
        (CONTRAST, grey.mean((2, 3), keepdim=True)),
        (SHARPNESS, smooth),
    ):
        pick(operation, (other + factor * (x - other)).clamp(0, 1))
    step = 2.0 ** (8 - max(1, int(4 * level))) / 255
    pick(POSTERISE, torch.floor(x / step) * step)
    pick(INVERT, 1 - x)
    pick(SOLARISE, torch.where(x * 255 < int(256 * level), x, 1 - x))
    pick(SOLARISE_ADD, torch.where(x < GREY, (x + int(110 * level) / 255).clamp(max=1), x))
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    pick(AUTOCONTRAST, torch.where(high > low, (x - low) / (high - low).clamp_min(1e-6), x))
    pick(EQUALISE, _equalised(x))
    return x


def _equalised(x: torch.Tensor) -> torch.Tensor:
    """Give each channel's values equal shares."""
    rows = (x * 255).round().long().clamp(0, 255).flatten(2).flatten(0, 1)
    counts = torch.zeros(len(rows), 256, device=x.device)
    counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=counts.dtype))
    below = counts.cumsum(1) - counts / 2
    return (below / rows.shape[1]).gather(1, rows).view_as(x)


def mixed(
    images: torch.Tensor, targets: torch.Tensor, strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mixup of a batch with itself turned round; soft targets (N, C) in and out."""
    beta = torch.distributions.Beta(strength, strength).sample((len(images),)).to(images.device)
    share = beta[:, None]
    return (
        share[:, :, None, None] * images + (1 - share[:, :, None, None]) * images.flip(0),
        share * targets + (1 - share) * targets.flip(0),
    )


AUGMENTATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    # Tokens are not bytes.
    "none": lambda x: x.float() / 255 if x.dtype == torch.uint8 else x,
    "crop": crop_and_flip,
    "rand-augment": rand_augment,
}
