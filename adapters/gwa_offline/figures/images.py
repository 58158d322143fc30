"""Images of the samples, read one at a time, for the reports to show."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import is_zipfile

import numpy as np

from gwa_offline.files.errors import FeaturesError, blame, reading

try:
    from PIL import Image, ImageOps
except ImportError as error:
    raise ImportError("images need pillow: pip install 'gwa-core[report]'") from error

__all__ = ["SUFFIXES", "ImageSource", "Images", "match_images", "open_images"]

# Of the files that are taken for images.
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)


class Images:
    """Images by sample id; nothing is read before `thumbnail` asks for it.

    Made by `open_images`.

    Parameters
    ----------
    items : array of shape (N, H, W) or (N, H, W, channels), or mapping of int to Path
        The pixels, or the image file of each sample id.
    """

    def __init__(self, items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, sample: object) -> bool:
        if isinstance(self._items, Mapping):
            return sample in self._items
        return isinstance(sample, int | np.integer) and 0 <= int(sample) < len(self._items)

    @property
    def last(self) -> int:
        """The largest sample id that has an image."""
        return max(self._items) if isinstance(self._items, Mapping) else len(self._items) - 1

    @property
    def partial(self) -> bool:
        """Whether ids may lack an image: files named by id need not be complete."""
        return isinstance(self._items, Mapping) and self.last != len(self._items) - 1

    def thumbnail(self, sample: int, size: int = 64) -> Image.Image:
        """Return the image of one sample, made to fit into `size` by `size` pixels.

        Parameters
        ----------
        sample : int
            Sample id.
        size : int
            Longest side in pixels; smaller images stay as they are.

        Returns
        -------
        PIL.Image.Image
            In mode "L", "RGB" or "RGBA".

        Raises
        ------
        FeaturesError
            No image has this id, or its file cannot be read.

        Notes
        -----
        Reads this one image: time and memory do not grow with N.

        Examples
        --------
        >>> import numpy as np
        >>> images = open_images(np.zeros((2, 100, 50, 3), dtype=np.uint8))
        >>> images.thumbnail(1, size=20).size
        (10, 20)
        """
        if sample not in self:
            raise FeaturesError(
                f"`sample` must be an id that has an image (largest: {self.last}), got {sample}; "
                "the images and the scores may come from different data sets"
            )
        item = self._items[int(sample)]
        image = _read(item, size) if isinstance(item, Path) else Image.fromarray(_to_bytes(item))
        image.thumbnail((size, size))
        return image


ImageSource: TypeAlias = "str | os.PathLike[str] | np.ndarray[Any, Any] | Images"


def open_images(source: ImageSource) -> Images:
    """Open the images of the training samples, without reading them.

    Parameters
    ----------
    source : str, path or array
        An array of shape (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, H, W, 4), uint8 or floating;
        a ``.npy`` file with one; a ``.npz`` file with one named ``images``, or else its first; or a
        folder of image files. Files whose names are all different numbers ("000012.png") are found
        by sample id; other files are sorted by path, subfolders too, and counted from 0.

    Returns
    -------
    Images
        With ``len(images)``, ``id in images`` and ``images.thumbnail(id)``.

    Raises
    ------
    FeaturesError
        The file or folder is missing, damaged, pickled, or does not hold images.

    Notes
    -----
    A ``.npy`` file is memory-mapped; a ``.npz`` file cannot be, and is read whole. Floating images
    inside [0, 1] keep their brightness; others are stretched from their own minimum to maximum.

    Examples
    --------
    >>> import numpy as np
    >>> images = open_images(np.random.default_rng(0).random((5, 8, 8)))
    >>> len(images), images.thumbnail(3).mode
    (5, 'L')
    """
    if isinstance(source, Images):
        return source
    if not isinstance(source, str | os.PathLike):
        return Images(_check_pixels(np.asarray(source), "the array"))
    path = Path(source)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise FeaturesError(f"`source` must be a file or folder of images, got {path}: not there")
    if path.suffix not in {".npy", ".npz"}:
        raise FeaturesError(
            f"`source` must be a .npy file, a .npz file or a folder of image files, got {path}"
        )
    return Images(_check_pixels(_open_array(path), str(path)))


def match_images(source: ImageSource, num_samples: int) -> Images:
    """Open images and check that they fit to a report of `num_samples` samples.

    Parameters
    ----------
    source : str, path, array or Images
        As in `open_images`.
    num_samples : int
        N of the report.

    Returns
    -------
    Images

    Raises
    ------
    FeaturesError
        As in `open_images`, or the images are more or fewer than the samples. Files named by id
        may be fewer.

    Examples
    --------
    >>> import numpy as np
    >>> match_images(np.zeros((2, 8, 8), dtype=np.uint8), 3)
    Traceback (most recent call last):
    ...
    gwa_offline.store.FeaturesError: `images` must be 3, one for each sample, got 2; the usual cause is another split or order of the data
    """
    images = open_images(source)
    if images.last >= num_samples and images.partial:
        raise FeaturesError(
            f"`images` must be named by sample ids below {num_samples}, got {images.last}; "
            "the usual cause is names that count from 1"
        )
    if len(images) != num_samples and not images.partial:
        raise FeaturesError(
            f"`images` must be {num_samples}, one for each sample, got {len(images)}; "
            "the usual cause is another split or order of the data"
        )
    return images


def _open_array(path: Path) -> np.ndarray[Any, Any]:
    with blame(path), reading():
        if not is_zipfile(path):
            # Not np.load: it would take a pickle, or a damaged archive, for what it may be.
            return np.lib.format.open_memmap(path, mode="r")
        with np.load(path, allow_pickle=False) as archive:
            name = "images" if "images" in archive.files else archive.files[0]
            array: np.ndarray[Any, Any] = archive[name]
            return array


def _check_pixels(array: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] not in (1, 3, 4)):
        channels_first = array.ndim == 4 and array.shape[1] in (1, 3, 4)
        cause = (
            "channels come last: use array.transpose(0, 2, 3, 1)"
            if channels_first
            else "reshape it"
        )
        raise FeaturesError(
            f"`images` must be (N, H, W) or (N, H, W, 1, 3 or 4), got {array.shape} in {where}; {cause}"
        )
    if 0 in array.shape:
        raise FeaturesError(f"`images` must not be empty, got {array.shape} in {where}")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise FeaturesError(
            f"`images` must be uint8 or floating, got {array.dtype} in {where}; "
            "convert whole numbers from 0 to 255 with astype(np.uint8)"
        )
    return array


def _open_folder(folder: Path) -> Images:
    files = sorted(
        (
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        ),
        # Part by part, so that classes in subfolders come in torchvision's ImageFolder order.
        key=lambda path: path.relative_to(folder).parts,
    )
    if not files:
        raise FeaturesError(
            f"`source` must be a folder of image files ({', '.join(sorted(SUFFIXES))}), "
            f"got {folder} without any"
        )
    stems = [path.stem for path in files]
    if all(stem.isascii() and stem.isdecimal() for stem in stems):
        by_id = {int(stem): path for stem, path in zip(stems, files, strict=True)}
        if len(by_id) == len(files):
            return Images(by_id)
    return Images(dict(enumerate(files)))


def _read(path: Path, size: int) -> Image.Image:
    with (
        blame(path),
        reading(SyntaxError, Image.DecompressionBombError),
        Image.open(path) as image,
    ):
        image.draft("RGB", (size, size))  # lets the JPEG decoder skip most of the work
        if image.mode in {"I", "I;16", "I;16B", "F"}:
            return Image.fromarray(_to_bytes(np.asarray(image, dtype=np.float64)))
        turned = ImageOps.exif_transpose(image)
        if turned.mode in {"L", "RGB", "RGBA"}:
            return turned
        return turned.convert("RGBA" if "transparency" in image.info else "RGB")


def _to_bytes(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return pixels of one image as uint8 (H, W) or (H, W, 3 or 4)."""
    pixels = np.asarray(pixels)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    pixels = np.nan_to_num(pixels.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0.0 or high > 1.0:
        pixels = (pixels - low) / (high - low) if high > low else np.full_like(pixels, 0.5)
    return np.rint(pixels * 255.0).astype(np.uint8)
