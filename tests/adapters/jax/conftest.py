"""JAX as careful users have it: nothing is promoted or broadcast silently."""

from __future__ import annotations

import pytest

# Scripts of processes of their own: to look for doctests would import them, and they set up JAX.
collect_ignore = ["devices.py", "signal_devices.py"]


@pytest.fixture(autouse=True)
def _strict():
    jax = pytest.importorskip("jax")
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
