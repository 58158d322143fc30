"""Paired timing, peak memory, and the file that results go to."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


def best_of(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the best time of each function, called in turn so that all meet the same weather."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def peak_rss() -> int:
    """Return the largest resident memory of this process so far, in bytes.

    Not getrusage: a child begins there with the peak of its parent.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def report(name: str, rows: dict[str, Any]) -> None:
    """Print the rows of a benchmark and keep them."""
    print(f"\n{name}")
    for key, value in rows.items():
        print(f"  {key:52s} {value:.4g}" if isinstance(value, float) else f"  {key:52s} {value}")
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **rows}, indent=1)
    # What lies deep stays on one line.
    text = re.sub(r"\n {3,}|\n  (?=[\]}])", " ", text)
    (RESULTS / f"{name}.json").write_text(text + "\n")
