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


@pytest.fixture(params=CASES, ids=[case.name for case in CASES])
def backend(request):
    """Every backend case in turn, opened."""
    with open_case(request.param) as opened:
        yield opened
