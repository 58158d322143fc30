"""Analysis of saved features, N = 1.28 M, D = 768, C = 1,000, beside a bare blocked product."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.pairs import report

N, D, C = 1_280_000, 768, 1_000
ROWS = 4096
SHARDS = 40


def write(folder: Path) -> None:
    """Write the features as a folder of .npy files, a block at a time."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((C, D), dtype=np.float32) / np.float32(D**0.5)
    targets = rng.integers(0, C, N)
    np.save(folder / "weight.npy", weight)
    np.save(folder / "targets.npy", targets)
    latents = np.lib.format.open_memmap(
        folder / "latents.npy", "w+", dtype=np.float32, shape=(N, D)
    )
    for start in range(0, N, 1 << 16):
        rows = slice(start, min(start + (1 << 16), N))
        noise = rng.standard_normal((rows.stop - rows.start, D), dtype=np.float32)
        latents[rows] = noise + 3 * weight[targets[rows]]
    latents.flush()


def cut(folder: Path) -> None:
    """Write the same rows once more, as the parts of one epoch."""
    latents, targets, weight = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("latents", "targets", "weight")
    )
    parts = folder / "epoch_0"
    parts.mkdir()
    for k, rows in enumerate(np.array_split(np.arange(N), SHARDS)):
        part = slice(rows[0], rows[-1] + 1)
        name = f"part-{k:05}-of-{SHARDS:05}.npz"
        np.savez(parts / name, latents=latents[part], targets=targets[part], weight=weight)


PRODUCT = f"""
import numpy as np
weight = np.load(folder + "/weight.npy")
latents = np.load(folder + "/latents.npy", mmap_mode="r")
for start in range(0, len(latents), {ROWS}):
    latents[start : start + {ROWS}] @ weight.T
"""

ANALYSIS = """
from gwa_offline import analyse
analyse(folder)
"""

OF_SHARDS = ANALYSIS.replace("folder)", "folder + '/epoch_0')")


def _run(code: str, folder: Path) -> tuple[float, float]:
    """Return seconds and peak MB of code in a process of its own."""
    text = (
        f"import time; from benchmarks.pairs import peak_rss; folder = {str(folder)!r}\n"
        f"import numpy, gwa_offline\nbegin = time.perf_counter()\n{code}\n"
        "print(time.perf_counter() - begin, peak_rss() / 1e6)"
    )
    out = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True
    ).stdout.split()
    return float(out[0]), float(out[1])


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("GWA_BENCH_DIR")) as name:
        folder = Path(name)
        write(folder)
        cut(folder)
        product, ours, shards = [], [], []
        for _ in range(3):
            product.append(_run(PRODUCT, folder))
            ours.append(_run(ANALYSIS, folder))
            shards.append(_run(OF_SHARDS, folder))
    report(
        "offline",
        {
            "seconds, bare blocked product": min(seconds for seconds, _ in product),
            "seconds, gwa_offline.analyse": min(seconds for seconds, _ in ours),
            "ratio (must be 1.2 or less)": min(s for s, _ in ours) / min(s for s, _ in product),
            "peak MB, gwa_offline.analyse (must be 1000 or less)": max(mb for _, mb in ours),
            f"seconds, {SHARDS} shards": min(seconds for seconds, _ in shards),
            f"ratio, {SHARDS} shards (must be 1.25 or less)": min(s for s, _ in shards)
            / min(s for s, _ in product),
            f"peak MB, {SHARDS} shards": max(mb for _, mb in shards),
        },
    )
