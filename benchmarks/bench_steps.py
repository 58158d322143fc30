"""A training step on a CPU with the monitor, beside one without; needs PyTorch."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.pairs import report
from gwa_torch import GWAMonitor

THREADS = 2
SAMPLES = 50_000

# Steps before another way has its turn: a training has the caches to itself.
TOGETHER = 20

# Inputs, hidden units, classes, batch, and steps of each way.
NETWORKS = {
    "784-256-10, batch 128": (784, 256, 10, 128, 4000),
    "3072-512-100, batch 256": (3072, 512, 100, 256, 2000),
}


# Of glibc's mallopt.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Have glibc keep the memory that is freed.

    Four trainings share a process here, which no user does. One would give back the pages of
    another, which then pays for new ones.
    """
    if sys.platform == "linux":
        for option in (TRIM_THRESHOLD, MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(option, 1 << 30)


class Training:
    """Two layers, SGD, a batch that is there already."""

    def __init__(
        self, inputs: int, hidden: int, classes: int, batch: int, residual: str | None
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.x, self.y = torch.randn(batch, inputs), torch.randint(classes, (batch,))
        self.ids = torch.arange(batch)
        self.monitor = (
            None if residual is None else GWAMonitor(self.model[2], SAMPLES, residual=residual)
        )

    def step(self) -> float:
        """Train once, and return the seconds."""
        begin = time.perf_counter()
        loss = F.cross_entropy(self.model(self.x), self.y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.monitor is not None:
            self.monitor.update(self.y, self.ids)
        return time.perf_counter() - begin


def steps_rows() -> dict[str, Any]:
    """Time steps in turn: alone, and with each way to the residual."""
    rows: dict[str, Any] = {}
    for name, (*sizes, steps) in NETWORKS.items():
        ways = {
            "alone": None,
            "with the monitor": "auto",
            "residual='formula'": "formula",
            "residual='backward'": "backward",
        }
        runs = {way: Training(*sizes, residual) for way, residual in ways.items()}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(steps // TOGETHER):
            # Each goes first equally often.
            for way in sorted(runs, reverse=bool(turn % 2)):
                times[way].extend(runs[way].step() for _ in range(TOGETHER))
        # The first steps allocate. A mean has the steps in which rows are scored, which a median
        # hides; the slowest hundredth is the operating system's.
        kept = {way: sorted(all_of[100:])[: -steps // 100] for way, all_of in times.items()}
        alone = statistics.fmean(kept["alone"])
        rows[f"{name}: microseconds, alone"] = 1e6 * alone
        for way in list(ways)[1:]:
            rows[f"{name}: time, {way} / alone"] = statistics.fmean(kept[way]) / alone
            rows[f"{name}: median time, {way} / alone"] = statistics.median(
                times[way]
            ) / statistics.median(times["alone"])
    return rows


def main() -> None:
    """Measure and report."""
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    report("steps", {"torch": torch.__version__, "threads": THREADS, **steps_rows()})


if __name__ == "__main__":
    main()
