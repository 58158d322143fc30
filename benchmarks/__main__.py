"""Run benchmarks by name, or all that need no GPU."""

from __future__ import annotations

import importlib
import sys

HERE = ("numpy", "import", "offline")

# Each benchmark is imported alone: one of them measures what an import costs.
for name in sys.argv[1:] or HERE:
    importlib.import_module(f"benchmarks.bench_{name}").main()
