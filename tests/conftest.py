"""Fixtures that all tests share, and how their processes are set up."""

from __future__ import annotations

import gc
import os
from importlib import metadata

# Before the libraries are imported, here and in the workers. The arrays are small: threads only
# wait for each other, and most compiled code runs once, so that optimising it takes three quarters
# of the time. Any value that is set already wins, also an empty one.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
try:
    # XLA ends the process at a flag that it does not know, and its flags change with the version.
    knows_flags = metadata.version("jax").split(".")[:2] == ["0", "10"]
except metadata.PackageNotFoundError:
    knows_flags = False
if knows_flags:
    flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    flags += "--xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", flags)

# Tracing and compiling make many objects and little garbage.
gc.set_threshold(200_000, 20, 20)

import pytest
from backends import CASES, open_case
from hypothesis import HealthCheck, settings

# The same examples in every run: a red test is a bug and not bad luck.
settings.register_profile(
    "gwa",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gwa")


USUAL = [case for case in CASES if case.values and not case.slow]


@pytest.fixture(params=USUAL, ids=[case.name for case in USUAL])
def backend(request):
    """The backend cases that have values and cost little, in turn and opened."""
    with open_case(request.param) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
def _others_are_no_garbage():
    """Keep what earlier files left, such as compiled code, out of the search for garbage.

    The Hugging Face Trainer searches at every end of a training, a second each at four gigabytes.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Let each worker of `-n` run files as a whole, as their tests share what they compile."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"
