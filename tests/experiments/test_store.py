"""The files of results: a line a run, added by several processes, small."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from experiments import store
from experiments.catalogue import TABLES
from experiments.plan import Settings


def made(study="coarse", epochs=4, **settings):
    columns = {name: [0.25 * k for k in range(epochs)] for name in store.COLUMNS}
    columns |= {"epoch": list(range(epochs)), "count": [7] * epochs, "weight_norm": [1.0] * epochs}
    return {
        "settings": asdict(Settings(study=study, **settings)),
        "device": "cpu",
        "seconds": 1.5,
        "wrong": 0.0,
        "epochs": columns,
        "detection": {},
    }


def test_a_run_comes_back_as_it_was_but_for_columns_that_nothing_reads(tmp_path):
    runs = [made(seed=1, labels="worse", learning_rate=0.5), made(), made("vit")]
    for run in runs:
        store.append(tmp_path / "results", run)
        del run["epochs"]["weight_norm"]
        run["epochs"]["separation"] = [s.separation for s in store.history(run)]
    found = store.read(tmp_path / "results")
    assert found == [runs[1], runs[0], runs[2]]
    assert [store.name_of(run) for run in found] == [
        "coarse-label-100-s0", "coarse-worse-100-s1", "vit-label-100-s0",
    ]  # fmt: skip
    assert store.names(tmp_path / "results", "coarse") == {
        "coarse-label-100-s0", "coarse-worse-100-s1",
    }  # fmt: skip
    assert store.names(tmp_path / "results", "convnext") == set()
    # Defaults are left out, and what is the same in all epochs is one number.
    line = json.loads((tmp_path / "results" / "vit.jsonl").read_text())
    assert line["settings"] == {"study": "vit"}
    assert line["epochs"]["count"] == 7


def test_a_run_of_one_epoch_comes_back(tmp_path):
    run = made(epochs=1)
    store.append(tmp_path, run)
    [found] = store.read(tmp_path)
    assert found["epochs"]["epoch"] == [0]
    assert found["epochs"]["mean"] == run["epochs"]["mean"]


def test_a_run_that_is_repeated_replaces_the_first(tmp_path):
    for seconds in (1.0, 2.0):
        store.append(tmp_path, made() | {"seconds": seconds})
    assert [run["seconds"] for run in store.read(tmp_path)] == [2.0]


def test_half_a_line_is_left_out_and_the_next_run_begins_a_new_one(tmp_path):
    store.append(tmp_path, made())
    with (tmp_path / "coarse.jsonl").open("a") as file:
        file.write('{"settings": {"study": "coarse", "seed": 1}, "epo')
    with pytest.warns(UserWarning, match=r"coarse\.jsonl: line 2 is not whole"):
        assert store.names(tmp_path, "coarse") == {"coarse-label-100-s0"}
    store.append(tmp_path, made(seed=2))
    with pytest.warns(UserWarning, match="line 2"):
        assert [run["settings"]["seed"] for run in store.read(tmp_path)] == [0, 2]


WRITER = """
import sys
from pathlib import Path
from experiments import store
first, columns = int(sys.argv[1]), {name: [0.25] * 99 + [0.5] for name in sorted(store.COLUMNS)}
for seed in range(first, first + 20):
    store.append(Path(sys.argv[2]), {"settings": {"study": "coarse", "seed": seed}, "epochs": columns})
"""


def test_two_processes_add_their_runs_at_the_same_time(tmp_path):
    paths = os.pathsep.join(sys.path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(first), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": paths},
        )
        for first in (0, 20)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert [run["settings"]["seed"] for run in store.read(tmp_path)] == sorted(range(40), key=str)


class Watched(dict):
    """Columns that remember which of them were asked for."""

    def __init__(self, columns, asked):
        super().__init__(columns)
        self.asked = asked

    def __getitem__(self, name):
        self.asked.add(name)
        return super().__getitem__(name)


def test_committed_results_are_small_and_draw_every_table():
    results = store.read(store.RESULTS)
    assert len(results) >= 225
    assert sum(path.stat().st_size for path in store.RESULTS.iterdir()) <= 3e6
    found = {name for run in results for name in run["epochs"]}
    assert found - store.OF_LANGUAGE == store.COLUMNS - store.OF_LANGUAGE | {"separation"}
    asked = set()
    for run in results:
        run["epochs"] = Watched(run["epochs"], asked)
    # A study without runs has no table yet.
    waiting = set() if any(run["settings"]["loss"] for run in results) else {"language"}
    for name, make in TABLES.items():
        assert make(results) or name.partition("-")[0] in waiting, name
    # The others are for figures.
    sides = {f"{side}_{at}" for side in ("right", "wrong") for at in ("low", "middle", "high")}
    assert store.COLUMNS - asked == {"label_probability", *sides}
    assert all(np.isfinite(store.column(run, "test_accuracy")).all() for run in results)
