"""Images with the labels that are trained on and the true ones; from each layout that is about."""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["GROUPS", "HUMAN_LABELS", "Images", "corrupted", "load", "pack", "with_noise"]

#: The groups of corruptions in the paper's Table 2.
GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
#: Columns of CIFAR-10-N and what the authors' file calls them.
HUMAN_LABELS = {
    "label": "clean_label",
    "aggre": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "worse": "worse_label",
}


class Images(NamedTuple):
    """A data set in memory.

    Parameters
    ----------
    train, test : uint8 arrays of shape (N, channels, height, width), or int32 of shape (N, length)
        Images, or texts as tokens.
    labels : mapping of str to integer array of shape (N,)
        Sets of labels of the training images; ``"label"`` are the true ones.
    test_labels : integer array
        True labels.
    class_names : tuple of str
        C names.
    """

    train: NDArray[Any]
    test: NDArray[Any]
    labels: dict[str, NDArray[Any]]
    test_labels: NDArray[Any]
    class_names: tuple[str, ...]


def load(path: str | Path) -> Images:
    """Read a data set; what lies at `path` says how.

    Parameters
    ----------
    path : path
        A Parquet file with columns split, image, label and others of labels; what `pack` or
        `texts.prepare` wrote; a folder with ``cifar-10-batches-py`` (torchvision's CIFAR-10), beside
        it CIFAR-10-N's ``CIFAR-10_human.pt``; a folder of IDX files (MNIST, Fashion-MNIST); a folder
        with ``train/CLASS/*`` and ``test/CLASS/*`` of images of one size.

    Returns
    -------
    Images

    Raises
    ------
    FileNotFoundError
        If there is nothing of these.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix == ".npz":
        return _packed(path)
    if (path / "cifar-10-batches-py").is_dir():
        return _cifar(path / "cifar-10-batches-py")
    if list(path.glob("train-images-idx3-ubyte*")):
        return _idx(path)
    if (path / "train").is_dir() and (path / "test").is_dir():
        return _folder(path)
    raise FileNotFoundError(
        f"`--data` must be a .parquet or .npz file, or a folder with cifar-10-batches-py, with "
        f"train-images-idx3-ubyte, or with train/ and test/; got {str(path)!r} with none of these"
    )


def with_noise(images: Images, name: str, seed: int) -> NDArray[Any]:
    """Return a set of labels by name: one of the data's, or with errors drawn by chance.

    Parameters
    ----------
    images : Images
        The data.
    name : str
        A key of its labels, ``"symmetric-40"`` (per cent of labels moved to any other class),
        ``"asymmetric-20"`` (to the next class), or ``"random"`` (all drawn at random, Fig. 11).
    seed : int
        Of what is drawn.

    Returns
    -------
    integer array of shape (N,)
    """
    if name in images.labels:
        return images.labels[name].astype(np.int64)
    true, classes = images.labels["label"].astype(np.int64), len(images.class_names)
    kind, _, share = name.partition("-")
    # A stream of its own: the split is drawn from the seed too.
    rng = np.random.default_rng([seed, 1])
    if kind == "random" and not share:
        return rng.integers(0, classes, len(true))
    if kind not in ("symmetric", "asymmetric") or not share.isdigit():
        known = ", ".join(images.labels)
        raise ValueError(
            f"`labels` must be of {known}, random, symmetric-PERCENT or asymmetric-PERCENT, got "
            f"{name!r}"
        )
    moved = rng.permutation(len(true))[: round(len(true) * int(share) / 100)]
    step = rng.integers(1, classes, len(moved)) if kind == "symmetric" else 1
    labels = true.copy()
    labels[moved] = (labels[moved] + step) % classes
    return labels


def corrupted(path: str | Path) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Return images and labels of a folder of CIFAR-10-C's layout, by groups of corruptions.

    Each ``NAME.npy`` has one or more severities of the whole test set one after another, (S N,
    height, width, 3); ``labels.npy`` has their labels. A name of no group is a group of its own.
    """
    path = Path(path)
    labels = np.load(path / "labels.npy", allow_pickle=False).astype(np.int64)
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    parts: dict[str, list[NDArray[Any]]] = {}
    for file in sorted(path.glob("*.npy")):
        if file.stem != "labels":
            found = np.load(file, mmap_mode="r", allow_pickle=False)
            parts.setdefault(group_of.get(file.stem, file.stem), []).append(_first(found))
    return {
        group: (np.concatenate(x), np.resize(labels, sum(map(len, x))))
        for group, x in parts.items()
    }


def pack(path: str | Path, out: str | Path) -> None:
    """Write a Parquet file's images as they are, JPEG or PNG, to one ``.npz``.

    For machines without pyarrow; as small as the source.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    images = [np.frombuffer(x, np.uint8) for x in table["image"].to_pylist()]
    names = [x for x in table.column_names if x not in ("image", "split", "index")]
    np.savez_compressed(
        out,
        bytes=np.concatenate(images),
        lengths=np.asarray([len(x) for x in images], np.int32),
        train=np.asarray(table["split"].to_pylist()) == "train",
        class_names=np.asarray(_names(table.schema.metadata, table["label"])),
        **{name: table[name].to_numpy() for name in names},
    )


def _names(metadata: Any, labels: Any) -> list[str]:
    given = (metadata or {}).get(b"class_names", b"").decode()
    names = [x.strip(' "[]') for x in given.split(",") if x.strip(' "[]')]
    return names or [str(c) for c in range(int(np.max(labels.to_numpy())) + 1)]


def _decoded(blobs: Any) -> NDArray[Any]:
    from PIL import Image

    def read(blob: Any) -> NDArray[Any]:
        source = blob if isinstance(blob, Path) else io.BytesIO(blob)
        return np.asarray(Image.open(source).convert("RGB"))

    return _first(np.stack([read(blob) for blob in blobs]))


def _first(images: NDArray[Any]) -> NDArray[Any]:
    """Put the channels before height and width."""
    return np.ascontiguousarray(np.moveaxis(images, -1, 1))


def _parquet(path: Path) -> Images:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    train = np.asarray(table["split"].to_pylist()) == "train"
    columns = {x: table[x].to_numpy() for x in table.column_names if x != "image"}
    names = _names(table.schema.metadata, table["label"])
    return _assembled(_decoded(table["image"].to_pylist()), train, columns, names)


def _packed(path: Path) -> Images:
    with np.load(path, allow_pickle=False) as file:
        columns = dict(file)
    train, names = columns.pop("train"), columns.pop("class_names")
    if "tokens" in columns:
        return _assembled(columns.pop("tokens"), train, columns, names)
    blobs = np.split(columns.pop("bytes"), np.cumsum(columns.pop("lengths"))[:-1])
    return _assembled(_decoded([x.tobytes() for x in blobs]), train, columns, names)


def _assembled(images: Any, train: NDArray[Any], columns: Any, names: Any) -> Images:
    labels = {
        name: column[train].astype(np.int64)
        for name, column in columns.items()
        if name not in ("split", "index")
    }
    test = columns["label"][~train].astype(np.int64)
    return Images(images[train], images[~train], labels, test, tuple(map(str, names)))


class _ArraysOnly(pickle.Unpickler):
    """Read the pickles of CIFAR-10, which hold byte strings, lists and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not of a CIFAR-10 file")


def _cifar(path: Path) -> Images:
    def read(name: str) -> dict[bytes, Any]:
        with (path / name).open("rb") as file:
            found: dict[bytes, Any] = _ArraysOnly(file, encoding="bytes").load()
        return found

    parts = [read(f"data_batch_{k}") for k in range(1, 6)]
    test = read("test_batch")
    true = np.concatenate([part[b"labels"] for part in parts])
    labels = {"label": true}
    human = path.parent / "CIFAR-10_human.pt"
    if human.exists():
        labels |= _human(human)
        if not np.array_equal(labels["label"], true):
            raise ValueError(f"{human.name} must be in the order of the images, got another")
    names = read("batches.meta")[b"label_names"]
    return Images(
        np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 32, 32),
        test[b"data"].reshape(-1, 3, 32, 32),
        labels,
        np.asarray(test[b"labels"]),
        tuple(name.decode() for name in names),
    )


def _human(path: Path) -> dict[str, NDArray[Any]]:
    import torch

    core = np._core.multiarray
    allowed = [core._reconstruct, np.ndarray, np.dtype, *map(type, map(np.dtype, "bhilqBHILQ"))]
    with torch.serialization.safe_globals(allowed):
        found = torch.load(path, weights_only=True)
    return {ours: np.asarray(found[theirs]) for ours, theirs in HUMAN_LABELS.items()}


def _idx(path: Path) -> Images:
    def read(name: str) -> NDArray[Any]:
        file = next(iter(sorted(path.glob(f"{name}*"))))
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        shape = np.frombuffer(raw, ">i4", raw[3], 4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)

    def images(name: str) -> NDArray[Any]:
        grey = np.pad(read(f"{name}-images-idx3-ubyte"), ((0, 0), (2, 2), (2, 2)))
        return np.ascontiguousarray(np.repeat(grey[:, None], 3, axis=1))

    labels = read("train-labels-idx1-ubyte").astype(np.int64)
    test = read("t10k-labels-idx1-ubyte").astype(np.int64)
    names = tuple(str(c) for c in range(int(labels.max()) + 1))
    return Images(images("train"), images("t10k"), {"label": labels}, test, names)


def _folder(path: Path) -> Images:
    names = tuple(sorted(x.name for x in (path / "train").iterdir() if x.is_dir()))

    def read(part: str) -> tuple[NDArray[Any], NDArray[Any]]:
        files = [sorted((path / part / name).iterdir()) for name in names]
        labels = np.repeat(np.arange(len(names)), [len(x) for x in files])
        return _decoded([file for some in files for file in some]), labels

    train, labels = read("train")
    test, test_labels = read("test")
    return Images(train, test, {"label": labels}, test_labels, names)
