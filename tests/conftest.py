"""Fixtures that all tests share."""

from __future__ import annotations

import contextlib
import os

# Arrays are small here, and threads that wait for each other cost more than they bring. NumPy may
# be there already, by a plugin of pytest, and reads no variable any more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
with contextlib.suppress(ImportError):
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)

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
