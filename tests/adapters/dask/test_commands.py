"""`gwa analyse` with processes of its own and with a scheduler elsewhere."""

from __future__ import annotations

import json
import sys

import pytest
from backends import require

pytest.importorskip("distributed")

from gwa_dask import FeaturesError, analyse, open_cluster
from gwa_offline.__main__ import main


@pytest.fixture
def gwa(monkeypatch, capsys):
    """Return a function that runs the command line and returns what it prints."""
    require("typer")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gwa", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    return run


def test_workers_change_nothing_that_is_printed(gwa, save_epochs, tmp_path):
    folder = save_epochs(2)
    code, alone = gwa("analyse", folder)
    assert not code
    code, shared = gwa("analyse", folder, "--workers", 2)
    assert (shared.err, shared.out) == (alone.err, alone.out)


def test_a_scheduler_and_relative_paths(gwa, client, save_epochs, tmp_path, monkeypatch):
    folder = save_epochs(2)
    monkeypatch.chdir(tmp_path)
    code, alone = gwa("analyse", folder.name, "--json")
    assert not code
    address = client.scheduler.address
    code, shared = gwa("analyse", folder.name, "--json", "--scheduler", address, "--out", "out")
    assert code == 0
    ours, theirs = json.loads(shared.out), json.loads(alone.out)
    assert (ours["name"], ours["selection"]["step"]) == (
        theirs["name"],
        theirs["selection"]["step"],
    )
    assert (tmp_path / "out" / "report.json").exists()
    # What was scored is a run of its own, which is read without the features.
    code, again = gwa("stop", "out/run")
    assert code == 0
    assert f"Keep epoch {ours['selection']['step']}" in again.out


def test_errors_are_a_sentence(gwa, save_epochs):
    folder = save_epochs()
    for arguments, sentence in {
        ("--workers", 1, "--scheduler", "tcp://127.0.0.1:1"): "names one; drop one",
        ("--scheduler", "nonsense://"): "no scheduler answers",
        ("--workers", 0): "greater than or equal to 1",
    }.items():
        code, printed = gwa("analyse", folder, *arguments)
        assert code == 2
        assert sentence in " ".join(printed.err.split())
        assert "Traceback" not in printed.err


def test_dask_that_is_missing_is_a_sentence(gwa, save_epochs, monkeypatch):
    monkeypatch.setitem(sys.modules, "gwa_dask", None)
    code, printed = gwa("analyse", save_epochs(), "--workers", 1)
    assert code == 2
    assert "pip install 'gwa-core[dask]'" in printed.err


def test_a_cluster_of_this_machine_ends_with_its_context():
    with open_cluster(workers=1) as client:
        assert len(client.nthreads()) == 1
        with pytest.raises(FeaturesError, match="no such file"):
            analyse("nowhere", client=client)
    assert client.status == "closed"
