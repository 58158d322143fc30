"""One cluster of two processes for all tests that do it no harm, and features for it."""

from __future__ import annotations

import numpy as np
import pytest

N, C, D, EPOCHS = 9000, 4, 6, 3


@pytest.fixture(scope="session")
def client():
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as found:
        yield found


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of few rows, so that small features have several."""
    from gwa_offline.analysis import parts

    monkeypatch.setattr(parts, "PART_ROWS", 2048)


def arrays_of(epoch):
    """The features of an epoch, in an order of their own; every tenth label is wrong."""
    rng = np.random.default_rng(epoch)
    weight = rng.normal(size=(C, D)).astype(np.float32)
    classes = np.arange(N) % C
    latents = (rng.normal(size=(N, D)) + 0.5 * epoch * weight[classes]).astype(np.float32)
    targets = np.where(np.arange(N) % 10, classes, (classes + 1) % C)
    ids = rng.permutation(N)
    return {
        "latents": latents[ids], "targets": targets[ids], "ids": ids, "weight": weight,
        "bias": np.linspace(-1, 1, C).astype(np.float32),
    }  # fmt: skip


@pytest.fixture
def save_epochs(tmp_path):
    """Return a function that writes epochs, each of so many parts, and returns their folder."""

    def save(parts=1, change=dict, write=np.savez, name="features"):
        folder = tmp_path / name
        for epoch in range(EPOCHS):
            arrays = change(arrays_of(epoch))
            rows = np.array_split(np.arange(len(arrays["latents"])), parts)
            place = folder / f"epoch_{epoch}"
            place.mkdir(parents=True)
            for part, chosen in enumerate(rows):
                cut = {
                    key: array if key in ("weight", "bias") else array[chosen]
                    for key, array in arrays.items()
                }
                write(place / f"part-{part}.npz", **cut)
        return folder

    return save
