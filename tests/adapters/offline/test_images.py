"""Images of the samples: arrays, files and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gwa_offline.figures.images import match_images, open_images
from gwa_offline.store import FeaturesError

RNG = np.random.default_rng(0)


def folder_of(folder: Path, names: list[str]) -> Path:
    """A folder with one grey image a name; image k in the list has the brightness 10 k."""
    for k, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 10 * k).save(path)
    return folder


@pytest.mark.parametrize(
    ("shape", "mode"),
    [((5, 8, 6), "L"), ((5, 8, 6, 1), "L"), ((5, 8, 6, 3), "RGB"), ((5, 8, 6, 4), "RGBA")],
)
@pytest.mark.parametrize("suffix", ["array", ".npy", ".npz"])
def test_bytes_come_back_unchanged(
    tmp_path: Path, shape: tuple[int, ...], mode: str, suffix: str
) -> None:
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    source: Any = pixels
    if suffix != "array":
        source = tmp_path / f"x{suffix}"
        save = np.save if suffix == ".npy" else np.savez
        save(source, pixels)
    images = open_images(source)
    assert len(images) == 5
    image = images.thumbnail(3)
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(image), pixels[3].squeeze())


def test_npz_prefers_the_array_named_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 3, 3)), images=np.ones((4, 3, 3)))
    assert len(open_images(tmp_path / "x.npz")) == 4


def test_npy_is_not_read_before_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "big.npy"
    # Sparse on disk: 16 GB that no memory here could hold twice.
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, (1_000_000, 128, 128))
    pixels[999_999] = 200
    del pixels
    image = open_images(path).thumbnail(999_999, size=16)
    assert (image.size, image.getpixel((0, 0))) == ((16, 16), 200)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_keep_their_brightness_inside_0_to_1(dtype: Any) -> None:
    pixels = np.array([[[0.0, 0.25], [0.5, 0.75]]], dtype=dtype)
    assert np.asarray(open_images(pixels).thumbnail(0)).tolist() == [[0, 64], [128, 191]]


def test_other_floats_are_stretched() -> None:
    pixels = np.array([[[-2.0, 0.0], [2.0, np.nan]], [[7.0, 7.0], [7.0, 7.0]]])
    images = open_images(pixels)
    assert np.asarray(images.thumbnail(0)).tolist() == [[0, 128], [255, 128]]
    assert np.asarray(images.thumbnail(1)).tolist() == [[128, 128], [128, 128]]


def test_thumbnail_keeps_the_sides_in_proportion() -> None:
    images = open_images(np.zeros((1, 300, 100, 3), dtype=np.uint8))
    assert images.thumbnail(0, size=60).size == (20, 60)
    assert images.thumbnail(0, size=1000).size == (100, 300)


def test_folder_named_by_id(tmp_path: Path) -> None:
    images = open_images(folder_of(tmp_path, ["10.png", "2.png", "000003.png"]))
    assert [i for i in range(20) if i in images] == [2, 3, 10]
    assert [images.thumbnail(i).getpixel((0, 0)) for i in (10, 2, 3)] == [0, 10, 20]


def test_folder_in_the_order_of_image_folder(tmp_path: Path) -> None:
    # By path text "a-b/..." would come before "a/...", as "-" < "/".
    names = ["a/1.png", "a/2.png", "a-b/1.png", "b/1.png"]
    folder_of(tmp_path, names)
    (tmp_path / "notes.txt").write_text("no image")
    images = open_images(tmp_path)
    assert [images.thumbnail(i).getpixel((0, 0)) for i in range(4)] == [0, 10, 20, 30]


def test_files_of_all_modes(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 30_000], [60_000, 0]], dtype=np.uint16)).save(tmp_path / "0.png")
    Image.new("P", (2, 2)).save(tmp_path / "1.png")
    Image.new("CMYK", (2, 2)).save(tmp_path / "2.jpg")
    turned = Image.new("RGB", (40, 20))
    exif = turned.getexif()
    exif[0x0112] = 6  # lying on its side
    turned.save(tmp_path / "3.jpg", exif=exif)
    images = open_images(tmp_path)
    assert np.asarray(images.thumbnail(0)).tolist() == [[0, 128], [255, 0]]
    assert {images.thumbnail(i).mode for i in (1, 2)} == {"RGB"}
    assert images.thumbnail(3).size == (20, 40)


def broken(tmp_path: Path, kind: str) -> Any:
    path = tmp_path / "x.npy"
    if kind == "pickled":
        np.save(path, np.array([{}, {}], dtype=object), allow_pickle=True)
    elif kind == "cut off":
        np.save(path, np.zeros((4, 8, 8), dtype=np.uint8))
        path.write_bytes(path.read_bytes()[:150])
    elif kind == "empty npz":
        path = tmp_path / "x.npz"
        np.savez(path)
    elif kind == "pickled npz":
        path = tmp_path / "x.npz"
        np.savez(path, images=np.array([{}, {}], dtype=object))
    elif kind == "damaged npz":
        path = tmp_path / "x.npz"
        path.write_bytes(b"PK\x03\x04 no archive")
    elif kind == "text":
        path = tmp_path / "x.csv"
        path.write_text("1,2")
    elif kind == "empty folder":
        path = tmp_path / "empty"
        path.mkdir()
    elif kind == "missing":
        path = tmp_path / "nowhere"
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pickled", "Python objects"),
        ("cut off", "truncated"),
        ("empty npz", "cannot be read"),
        ("pickled npz", "allow_pickle=False"),
        ("damaged npz", "cannot be read"),
        ("text", "must be a .npy file"),
        ("empty folder", "without any"),
        ("missing", "not there"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, kind: str, words: str) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(FeaturesError, match=words) as caught:
        open_images(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((5, 3, 8, 8)), "channels come last"),
        (np.zeros((5, 64)), "reshape"),
        (np.zeros((5, 8, 8), dtype=np.int64), "astype"),
        (np.zeros((0, 8, 8)), "not be empty"),
    ],
)
def test_bad_arrays_say_what_to_do(array: Any, words: str) -> None:
    with pytest.raises(FeaturesError, match=words):
        open_images(array)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, ["0.png"])
    (tmp_path / "1.jpg").write_bytes(b"no picture")
    images = open_images(tmp_path)
    with pytest.raises(FeaturesError, match=r"1\.jpg"):
        images.thumbnail(1)
    with pytest.raises(FeaturesError, match="`sample`"):
        images.thumbnail(2)


def test_images_must_fit_the_report(tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match="must be 4"):
        match_images(np.zeros((5, 8, 8)), 4)
    by_id = folder_of(tmp_path, ["1.png", "3.png"])
    assert len(match_images(by_id, 4)) == 2  # files named by id need not be complete
    with pytest.raises(FeaturesError, match="count from 1"):
        match_images(by_id, 3)
