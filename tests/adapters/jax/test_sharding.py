"""Eight host devices against one, however the arrays are split."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")

import gwa_core
import gwa_jax

# A program is compiled for each way to split the work.
pytestmark = pytest.mark.slow

PLACES = {str(Path(package.__file__).parent.parent) for package in (gwa_core, gwa_jax)}


@pytest.fixture(scope="module")
def apart():
    """Distances from one device, by the way the work was split."""
    script = Path(__file__).with_name("devices.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(PLACES), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("ids", ["with ids", "without ids", "sequences"])
@pytest.mark.parametrize(
    "way",
    [
        "data parallel",
        "class-sharded head",
        "both",
        "state sharded by samples",
        "data parallel, explicit",
        "class-sharded head, explicit",
        "state sharded by samples, explicit",
        "shard_map",
        "shard_map over two axes",
        "pmap",
    ],
)
def test_eight_devices_give_what_one_gives(apart, way, ids):
    assert apart[f"{way}, {ids}"] < 1e-5
