"""What the displays share: colours, axes, and the images of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._optional_dependencies import check_matplotlib_support

__all__ = ["BAD", "CHOSEN", "GOOD", "MUTED", "limits", "new_axes", "plain", "show_images"]

# Blue, orange and purple stay apart in all colour vision.
GOOD, CHOSEN, BAD, MUTED = "#0b62a8", "#d55e00", "#a8337d", "#59646f"


def new_axes(display: object, ax: Any, size: tuple[float, float]) -> Any:
    """Return `ax`, or the axes of a new figure; say how to get Matplotlib where it is missing."""
    check_matplotlib_support(f"{type(display).__name__}.plot")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def plain(text: object) -> str:
    """Keep Matplotlib from reading a name as TeX."""
    return str(text).replace("$", r"\$")


def limits(values: NDArray[Any], half: NDArray[Any]) -> tuple[float, float]:
    """Return the range that shows the values, and their bands of +- half unless far wider."""
    if not len(values):
        return -1.0, 1.0
    half = np.nan_to_num(half)
    low, high = float(values.min()), float(values.max())
    span = (high - low) or max(float(half.max()), 1e-3)
    bottom = max(float((values - half).min()), low - span)
    top = min(float((values + half).max()), high + span)
    return bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom)


def show_images(ax: Any, images: Sequence[Any], titles: Sequence[str]) -> None:
    """Draw images side by side above `ax`."""
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        panel = ax.inset_axes((i / len(images), 1.03, 0.9 / len(images), 0.25))
        panel.imshow(np.asarray(image), cmap="gray_r" if np.ndim(image) == 2 else None)
        panel.set_title(title, fontsize="small", pad=3)
        panel.set_axis_off()
