"""Fixtures that all tests share."""

from __future__ import annotations

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
