"""`import gwa_core` beside `import numpy, array_api_compat`."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.pairs import report

BASE = "import numpy, array_api_compat, array_api_compat.numpy"
FRAMEWORKS = "torch", "jax", "sklearn", "scipy", "matplotlib", "pandas", "plotly"


def _milliseconds(extra: str) -> float:
    code = f"import time; b = time.perf_counter(); {BASE}{extra}; print(time.perf_counter() - b)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return 1e3 * float(out.stdout)


def main() -> None:
    """Measure and report."""
    base, ours = [], []
    for _ in range(15):
        base.append(_milliseconds(""))
        ours.append(_milliseconds(", gwa_core"))
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, gwa_core; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    report(
        "import",
        {
            "milliseconds, numpy and array_api_compat": statistics.median(base),
            "milliseconds more with gwa_core (must be 50 or less)": statistics.median(ours)
            - statistics.median(base),
            "frameworks loaded (must be none)": " ".join(set(FRAMEWORKS) & set(loaded)) or "none",
        },
    )
