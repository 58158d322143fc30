"""PyTorch alone is enough; what else is missing is named when it is asked for, and not before."""

from __future__ import annotations

import json
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


# Where something is missing, and what is asked for.
MISSING = {
    "lightning": "`gwa_torch.lightning` needs Lightning; pip install lightning",
    "transformers": "`gwa_torch.transformers` needs Transformers; pip install "
    "'transformers[torch]>=4.46'",
    "torchmetrics": "`gwa_torch.torchmetrics` needs torchmetrics; pip install torchmetrics",
}

WORK = f"""
import importlib, json
import gwa_torch

heavy = ("torch._dynamo", "torch._inductor", *{OTHERS!r})
found = {{"heavy": [name for name in heavy if name in sys.modules]}}
import torch

head = torch.nn.Linear(4, 3)
monitor = gwa_torch.GWAMonitor(head)
head(torch.randn(5, 4))
monitor.update(torch.zeros(5, dtype=torch.int64))
found["count"] = monitor.end_epoch().count
for name in {list(MISSING)!r}:
    try:
        importlib.import_module("gwa_torch." + name)
    except ImportError as error:
        found[name] = [type(error).__name__, str(error), isinstance(error.__cause__, ImportError)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def fresh():
    """What happens in a fresh process where the other libraries can't be imported."""
    paths = f"import sys; sys.path[:0] = {sys.path!r}\n"
    command = [sys.executable, "-c", BLOCKER + paths + WORK]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_monitor_needs_pytorch_alone(fresh):
    assert fresh["count"] == 5


def test_a_loop_needs_one_import():
    """What the pages import from `gwa_torch` is the core's own."""
    import gwa_core
    import gwa_torch

    names = ["BestMetric", "DipThenMax", "EarlyStopper", "GradientDisparity", "LabelWave"]
    names += ["MaxBimodality", "MaxGWA", "MaxSeparation", "rank_samples", "select_epoch"]
    assert set(names) < set(gwa_torch.__all__)
    for name in names:
        assert getattr(gwa_torch, name) is getattr(gwa_core, name)


def test_importing_costs_no_compiler_and_no_trainer(fresh):
    assert fresh["heavy"] == []


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_named_when_asked_for(fresh, name):
    kind, error, caused = fresh[name]
    assert kind == "ImportError"
    assert error == MISSING[name]
    assert error.startswith(f"`gwa_torch.{name}` needs ")
    assert "pip install " in error
    assert name in error.partition("pip install ")[2]
    assert caused
