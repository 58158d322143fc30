"""PyTorch alone is enough; what else is missing is named when it is asked for, and not before."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

OTHERS = ("lightning", "pytorch_lightning", "transformers", "torchmetrics", "triton")

BLOCKER = f"""
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OTHERS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def python(code):
    """Run code in a fresh process where the other libraries can't be imported."""
    paths = f"import sys; sys.path[:0] = {sys.path!r}\n"
    command = [sys.executable, "-c", BLOCKER + paths + code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_monitor_needs_pytorch_alone():
    done = python(
        "import torch, gwa_torch\n"
        "head = torch.nn.Linear(4, 3)\n"
        "monitor = gwa_torch.GWAMonitor(head)\n"
        "head(torch.randn(5, 4))\n"
        "monitor.update(torch.zeros(5, dtype=torch.int64))\n"
        "print(monitor.end_epoch().count)"
    )
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


def test_a_loop_needs_one_import():
    """What the pages import from `gwa_torch` is the core's own."""
    import gwa_core
    import gwa_torch

    names = ["BestMetric", "DipThenMax", "EarlyStopper", "GradientDisparity", "LabelWave"]
    names += ["MaxBimodality", "MaxGWA", "MaxSeparation", "rank_samples", "select_epoch"]
    assert set(names) < set(gwa_torch.__all__)
    for name in names:
        assert getattr(gwa_torch, name) is getattr(gwa_core, name)


def test_importing_costs_no_compiler_and_no_trainer():
    done = python(
        "import gwa_torch\n"
        "heavy = ('torch._dynamo', 'torch._inductor', *" + repr(OTHERS) + ")\n"
        "print(*(name for name in heavy if name in sys.modules))"
    )
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


@pytest.mark.parametrize("name", ["lightning", "transformers", "torchmetrics"])
def test_what_is_missing_is_named_when_asked_for(name):
    done = python(f"import gwa_torch.{name}")
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(f"ImportError: `gwa_torch.{name}` needs ")
    assert "pip install " in error
    assert name in error.partition("pip install ")[2]
