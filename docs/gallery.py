"""Train the networks of the gallery, and draw its pictures: `python docs/gallery.py --data FOLDER`.

The folder has `fashion-mnist/`, the files of Debian's dataset-fashion-mnist; `cifar10n.npz` or
`cifar10n.parquet`; and `newsgroups.npz`, see experiments/README.md. About six minutes of one core.
The numbers go to benchmarks/results/gallery.json. What a person saw in the first samples is in
gallery_by_eye.json beside it, by hand. The page takes both from gallery_page.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(ROOT / "adapters")]

from experiments.data import load  # noqa: E402
from gwa_offline import analyse  # noqa: E402
from gwa_offline.figures.style import BAD, MUTED, STYLE  # noqa: E402
from gwa_torch import GWAMonitor  # noqa: E402

FIRST, COLUMNS = 20, 4
CLOTHES = [
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]
DIGITS = [str(digit) for digit in range(10)]
#: How many eights the data with a rare class keep.
RARE = 10


class Ranking(NamedTuple):
    """The ids from the most suspicious one, the given labels, and what the model says, by id."""

    order: Any
    labels: Any
    predictions: Any


def rank(
    model: nn.Sequential, x: Any, labels: Any, *, epochs: int, batch: int, rate: float
) -> Ranking:
    """Train a network as one trains any, and rank its labels from the scores of all epochs.

    What the model says is from the epoch of the largest separation: later it repeats the labels.
    """
    targets = torch.as_tensor(labels).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    with tempfile.TemporaryDirectory() as run, GWAMonitor(model[-1], len(x)) as monitor:
        for epoch in range(epochs):
            for ids in torch.randperm(len(x)).split(batch):
                loss = nn.functional.cross_entropy(model(x[ids]), targets[ids])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                monitor.update(targets[ids], ids=ids)
            summary = monitor.end_epoch()
            monitor.save(run, targets=targets)
            print(f"epoch {epoch}: separation {summary.separation:.3f}", flush=True)
        report = analyse(run)
    return Ranking(np.asarray(report.rank(len(x))), np.asarray(labels), report.predictions)


def rank_digits(labels: Any = None, rows: Any = None) -> Ranking:
    """Rank the labels of scikit-learn's digits, or others in their place, or of some rows."""
    images, given = load_digits(return_X_y=True)
    labels, rows = given if labels is None else labels, slice(None) if rows is None else rows
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    x = torch.as_tensor(images[rows] / 16).float()
    return rank(model, x, labels[rows], epochs=20, batch=64, rate=3e-3)


def rank_images(images: Any, labels: Any) -> Ranking:
    """Rank the labels of images of 32 by 32 by a small convolutional network."""
    torch.manual_seed(0)
    x = torch.as_tensor(images).float() / 255
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    body: list[nn.Module] = []
    for before, after in ((x.shape[1], 32), (32, 64), (64, 128)):
        body += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    body += [nn.Flatten(), nn.Linear(2048, 128), nn.ReLU()]
    return rank(
        nn.Sequential(*body, nn.Linear(128, 10)), x, labels, epochs=10, batch=128, rate=1e-3
    )


def rank_texts(tokens: Any, labels: Any) -> Ranking:
    """Rank the labels of texts by the mean of the embeddings of their words."""
    torch.manual_seed(0)
    x = torch.as_tensor(tokens).long()
    words = nn.EmbeddingBag(int(x.max()) + 1, 64, padding_idx=0)
    model = nn.Sequential(words, nn.ReLU(), nn.Linear(64, 20))
    return rank(model, x, labels, epochs=10, batch=64, rate=3e-3)


def first(found: Ranking, names: Any) -> list[dict[str, Any]]:
    """Return the samples of a sheet, in the order of rank."""
    return [
        {
            "id": int(i),
            "label": str(names[found.labels[i]]),
            "model": str(names[found.predictions[i]]),
        }
        for i in found.order[:FIRST]
    ]


def hits(found: Ranking, wrong: Any) -> dict[str, int]:
    """Return how many labels are wrong among the first ones, and of all."""
    count = int(wrong.sum())
    among = {
        str(k): int(wrong[found.order[:k]].sum()) for k in (100, 1000, count) if k <= len(wrong)
    }
    return {"samples": len(wrong), "wrong": count, **among}


def clothes(data: Path) -> dict[str, Any]:
    """Rank Fashion-MNIST; draw the first labels."""
    images = load(data / "fashion-mnist")
    labels = images.labels["label"]
    found = rank_images(images.train[:, :1], labels)
    shown, pictures = first(found, CLOTHES), images.train[:, 0, 2:30, 2:30]
    draw(shown, pictures, "fashion", "Fashion-MNIST")
    tops = np.isin(
        labels, [CLOTHES.index(x) for x in ("T-shirt", "pullover", "dress", "coat", "shirt")]
    )
    return {
        "samples": len(labels),
        "first": shown,
        "tops among 100": int(tops[found.order[:100]].sum()),
        "at random": np.random.default_rng(0).choice(len(labels), FIRST, replace=False).tolist(),
    }


def digits() -> dict[str, Any]:
    """Rank the digits as they are, with a rare class, and with two kinds of errors."""
    bunch = load_digits()
    pictures, labels = bunch.images, bunch.target
    found = rank_digits()
    shown = first(found, DIGITS)
    draw(shown, pictures, "digits", "Digits")

    eights = np.flatnonzero(labels == 8)
    rows = np.setdiff1d(np.arange(len(labels)), eights[RARE:])
    rare = rank_digits(rows=rows)
    named = [x | {"id": int(rows[x["id"]])} for x in first(rare, DIGITS)]
    draw(named, pictures, "rare", f"Digits with {RARE} eights")

    rng, fours = np.random.default_rng(0), np.flatnonzero(labels == 4)
    count = len(fours) // 2
    same, chance = labels.copy(), labels.copy()
    same[rng.choice(fours, count, replace=False)] = 9
    moved = rng.choice(len(labels), count, replace=False)
    chance[moved] = (chance[moved] + rng.integers(1, 10, count)) % 10
    return {
        "digits": {"samples": len(labels), "first": shown},
        "rare": {
            "samples": len(rows),
            "rare": RARE,
            "first": named,
            "rare among first": sum(x["label"] == "8" for x in named),
        },
        "one way": hits(rank_digits(labels=same), same != labels),
        "by chance": hits(rank_digits(labels=chance), chance != labels),
    }


def people(data: Path) -> dict[str, Any]:
    """Rank the labels that people gave CIFAR-10, and count the wrong ones."""
    npz = data / "cifar10n.npz"
    images = load(npz if npz.exists() else npz.with_suffix(".parquet"))
    return {
        name: hits(
            rank_images(images.train, images.labels[name]),
            images.labels[name] != images.labels["label"],
        )
        for name in ("aggre", "random1", "worse")
    }


def texts(data: Path) -> dict[str, Any]:
    """Rank the texts of 20 newsgroups."""
    found = np.load(data / "newsgroups.npz", allow_pickle=False)
    tokens, labels = (found[name][found["train"]] for name in ("tokens", "label"))
    ranking = rank_texts(tokens, labels)
    return {"samples": len(labels), "first": first(ranking, found["class_names"])}


def draw(shown: list[dict[str, Any]], pictures: Any, name: str, title: str) -> None:
    """Draw a contact sheet: the given label above, what the model says and the id below."""
    wrong = {id_ for id_, (verdict, _) in page.by_eye(name).items() if verdict == "wrong"}
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            -(-FIRST // COLUMNS), COLUMNS, figsize=(5.4, 9.1), layout="constrained"
        )
        figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
        figure.suptitle(
            f"{title}: the first {FIRST}", x=0.01, ha="left", fontsize=13, weight="bold"
        )
        for panel, sample in zip(grid.ravel(), shown, strict=True):
            panel.imshow(pictures[sample["id"]], cmap="gray_r", interpolation="bicubic")
            seen = sample["id"] in wrong
            label = f"{sample['label']} ✗" if seen else sample["label"]
            panel.set_title(
                label,
                fontsize=12.5,
                color=BAD if seen else "black",
                weight="bold",
                loc="center",
                pad=3,
            )
            below = f"model: {sample['model']}\nid {sample['id']}"
            panel.set_xlabel(below, fontsize=10.5, color=MUTED, labelpad=2)
            panel.set(xticks=[], yticks=[])
            panel.grid(visible=False)
            panel.spines[:].set_visible(False)
        path = DOCS / "images" / f"gallery-{name}.png"
        figure.savefig(path, dpi=110, metadata={"Software": None})
        plt.close(figure)
    # In few shades of grey, and the red of the wrong labels: half the size.
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(48, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


page = _load("gallery_page")


def main() -> None:
    """Train, draw and count; then bring the page up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    data = parser.parse_args().data
    mpl.use("Agg")
    torch.set_num_threads(1)  # the same numbers whatever the number of cores
    found = {
        "fashion": clothes(data),
        **digits(),
        "people": people(data),
        "newsgroups": texts(data),
    }
    page.RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page.main()


if __name__ == "__main__":
    main()
