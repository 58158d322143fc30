"""Run benchmarks by name, or all of them."""

from __future__ import annotations

import sys

from benchmarks import bench_import, bench_numpy, bench_offline

BENCHMARKS = {
    "numpy": bench_numpy.main,
    "import": bench_import.main,
    "offline": bench_offline.main,
}

for name in sys.argv[1:] or BENCHMARKS:
    BENCHMARKS[name]()
