"""One demonstration run for all tests that want a real run."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn")

from gwa_offline.app.demo import DemoResult, run_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(tmp_path_factory.mktemp("demo"))
