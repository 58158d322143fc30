"""Saved features on one and on two processes of Dask, and the memory of the process that asks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.pairs import report

D, C, PARTS = 768, 1_000, 16
SPEED = 500_000
SIZES = (250_000, 500_000, 1_000_000)
REPEATS = 6

# Workers and the asking process with one thread each, as on a cluster that shares its cores.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def write(folder: Path, n: int, features: int = D, epochs: int = 1) -> None:
    """Write epochs of `PARTS` files in half precision, with ids in an order of their own."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((C, features), dtype=np.float32) / np.float32(features**0.5)
    for epoch in range(epochs):
        (folder / f"epoch_{epoch}").mkdir(parents=True)
        ids = rng.permutation(n)
        for part, rows in enumerate(np.array_split(ids, PARTS)):
            targets = rows % C
            noise = rng.standard_normal((len(rows), features), dtype=np.float32)
            np.savez(
                folder / f"epoch_{epoch}" / f"part-{part}.npz",
                latents=(noise + (epoch + 2) * weight[targets]).astype(np.float16),
                targets=targets,
                ids=rows,
                weight=weight,
            )


CODE = """
import sys, time
from benchmarks.pairs import peak_rss
from gwa_dask import analyse, open_cluster

if __name__ == "__main__":
    folder, workers = sys.argv[1], int(sys.argv[2])
    with open_cluster(workers=workers) as client:
        client.wait_for_workers(workers)
        client.run(lambda: __import__("gwa_dask"))
        before = peak_rss()
        begin = time.perf_counter()
        analyse(folder, client=client)
        print(time.perf_counter() - begin, before / 1e6, peak_rss() / 1e6)
"""

ALONE = """
import sys, time
from gwa_offline import analyse
begin = time.perf_counter()
analyse(sys.argv[1])
print(time.perf_counter() - begin)
"""


def _run(code: str, *arguments: object) -> list[float]:
    """Run code in a process of its own, and return the numbers that it prints."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(code)
        script.flush()
        places = {"PYTHONPATH": os.pathsep.join([".", "adapters"])}
        command = [sys.executable, script.name, *map(str, arguments)]
        done = subprocess.run(
            command,
            env=os.environ | ONE_THREAD | places,
            capture_output=True,
            text=True,
            check=True,
        )
    return [float(text) for text in done.stdout.split()]


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("GWA_BENCH_DIR")) as name:
        speed = Path(name) / "speed"
        write(speed, SPEED)
        pairs = [(_run(CODE, speed, 1)[0], _run(CODE, speed, 2)[0]) for _ in range(REPEATS)]
        one, two = (min(times) for times in zip(*pairs, strict=True))
        alone = min(_run(ALONE, speed)[0] for _ in range(REPEATS))
        memory = {}
        for features, epochs in ((64, 1), (256, 1), (64, 4)):
            for n in SIZES:
                folder = Path(name) / f"{n}-{features}-{epochs}"
                write(folder, n, features, epochs)
                _, before, peak = _run(CODE, folder, 2)
                memory[f"peak MB of the asking process, N={n}, D={features}, T={epochs}"] = peak
                memory.setdefault("MB before the analysis", before)
    sizes = [memory[f"peak MB of the asking process, N={n}, D=64, T=1"] for n in SIZES]
    report(
        "dask",
        {
            f"seconds, one worker, N={SPEED}, D={D}, C={C}": one,
            "seconds, two workers": two,
            "ratio (must be 1.6 or more)": one / two,
            "ratios of the pairs": [round(a / b, 3) for a, b in pairs],
            "seconds, gwa_offline.analyse on all cores": alone,
            **memory,
            "bytes a sample": (sizes[-1] - sizes[0]) * 1e6 / (SIZES[-1] - SIZES[0]),
        },
    )
