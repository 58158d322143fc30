"""The law: gwa_core computes, adapters connect; imports point one way."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from source import (
    ADAPTERS,
    CORE,
    ROOT,
    circles,
    import_graph,
    imports,
    module_name,
    name_of,
    parse,
    python_files,
)

from gwa_core import GWATracker
from gwa_core.signals import TrackedSignals

FOREIGN = ("torch", "jax", "sklearn", "scipy", "matplotlib", "pandas", "plotly", "distributed")
CORE_FILES = python_files(CORE)
ADAPTER_FILES = python_files(ADAPTERS)
PACKAGES = [CORE, *sorted(path.parent for path in ADAPTERS.glob("*/__init__.py"))]
DOOR = CORE / "_lib" / "array.py"


def loaded(code: str, *paths: Path) -> set[str]:
    """Which of the foreign packages a fresh process has imported after running the code."""
    lines = [
        "import sys",
        f"sys.path[:0] = {[str(path) for path in (*paths, ROOT, ADAPTERS)]!r}",
        code,
        f"print(*(name for name in {FOREIGN!r} if name in sys.modules))",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name, _ in imports(parse(path))}


def test_the_core_pulls_no_framework_in():
    assert loaded("import gwa_core") == set()


def test_the_check_can_fail(tmp_path):
    for name in ("torch", "pandas"):
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "careless.py").write_text("def f():\n    import pandas\n")
    code = "import gwa_core, torch, careless\ncareless.f()"
    assert loaded(code, tmp_path) == {"torch", "pandas"}


@pytest.mark.parametrize("path", CORE_FILES, ids=name_of)
def test_a_core_file_imports_numpy_and_the_core_alone(path):
    allowed = {"numpy", "gwa_core"} | ({"array_api_compat"} if path == DOOR else set())
    assert tops(path) <= allowed | sys.stdlib_module_names


def test_there_is_one_door_to_the_array_libraries():
    users = [path for path in CORE_FILES + ADAPTER_FILES if "array_api_compat" in tops(path)]
    assert users == [DOOR]


@pytest.mark.parametrize("path", python_files(CORE / "_lib"), ids=name_of)
def test_plumbing_does_not_know_the_house(path):
    used = {name for name, _ in imports(parse(path)) if name.partition(".")[0] == "gwa_core"}
    assert all(name.startswith("gwa_core._lib") for name in used)


# gwa_dask runs gwa_offline on a cluster. The command line of gwa_offline asks for it by name.
ABOVE = {"gwa_dask": re.compile(r"gwa_offline\.(analysis|readers|store)\b")}
COMMANDS = ADAPTERS / "gwa_offline" / "app" / "clusters.py"


def may_import(path, name):
    """Whether a file of an adapter may import a module of this house."""
    own, top = path.relative_to(ADAPTERS).parts[0], name.partition(".")[0]
    if not top.startswith("gwa_") or top in ("gwa_core", own):
        return True
    if own in ABOVE and ABOVE[own].match(name):
        return True
    # Anyone may write a run folder; its module needs NumPy alone.
    return name.startswith("gwa_offline.store") or (path == COMMANDS and name == "gwa_dask")


@pytest.mark.parametrize("path", ADAPTER_FILES, ids=name_of)
def test_an_adapter_knows_the_core_and_itself(path):
    for name, line in imports(parse(path)):
        top = name.partition(".")[0]
        assert may_import(path, name), f"{name_of(path)}:{line} imports {name}"
        if top == "gwa_core":
            private = "._" in name and name != "gwa_core.__version__"
            assert not private, f"{name_of(path)}:{line} imports {name}"


def test_who_may_import_whom():
    torch, dask = (ADAPTERS / name / "a.py" for name in ("gwa_torch", "gwa_dask"))
    offline = ADAPTERS / "gwa_offline" / "readers.py"
    assert may_import(torch, "gwa_offline.store")
    assert not may_import(torch, "gwa_offline.readers")
    assert may_import(dask, "gwa_offline.readers")
    assert not may_import(dask, "gwa_offline.files.arrays")
    assert not may_import(dask, "gwa_torch.monitor")
    assert not may_import(offline, "gwa_dask")
    assert may_import(COMMANDS, "gwa_dask")
    assert not may_import(COMMANDS, "gwa_dask.cluster")


def test_what_stands_on_another_adapter_is_imported_when_it_is_asked_for():
    top = [
        alias.name
        for node in parse(COMMANDS).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert "gwa_dask" not in top
    assert "gwa_dask" in {name for name, _ in imports(parse(COMMANDS))}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_no_import_circle(package):
    sources = {module_name(path): parse(path) for path in python_files(package)}
    assert package.name in sources
    assert circles(import_graph(sources)) == []


def test_the_search_for_circles_can_succeed():
    code = {
        "p": "from p.a import f",
        "p.a": "import p.b",
        "p.b": "def g():\n    from p import c",
        "p.c": "if TYPE_CHECKING:\n    from p.a import f",
        "p.d": "from p import f\nfrom p import e",
        "p.e": "import json",
    }
    graph = import_graph({name: ast.parse(text) for name, text in code.items()})
    assert graph["p.d"] == {"p", "p.e"}
    assert circles(graph) == [["p.a", "p.b", "p.c"]]
    assert circles({"x": {"y"}, "y": {"x"}, "z": {"z", "x"}}) == [["x", "y"], ["z"]]


ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.MatMult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
MATHS = re.compile(r"(exp|log|sqrt|softmax|sigmoid|expit|norm|sum|mean|dot|matmul|einsum)")


def computations(tree):
    """Lines that compute with numbers: arithmetic, or a function of the method's formulas."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ARITHMETIC):
            yield node.lineno
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if MATHS.search(name):
                yield node.lineno


def test_scikit_learn_leaves_the_softmax_to_the_core():
    path = ADAPTERS / "gwa_sklearn" / "_softmax.py"
    assert not path.exists() or sorted(computations(parse(path))) == []


def test_the_search_for_computations_can_succeed():
    source = "a = f(x)\nb = a * 2\nb += 1\nc = np.sqrt(a)\nd: int | None = None\nlog_softmax(x)"
    assert sorted(computations(ast.parse(source))) == [2, 3, 4, 6]


# How the core's states are built inside; an adapter moves them as a whole.
STATE_KEYS = {"by_id", "by_sample", "seen_in", "trackers"}


def words(tree):
    """Every name that a file gives to a string or to a keyword of a call, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node.lineno
        elif isinstance(node, ast.Call):
            yield from ((key.arg, node.lineno) for key in node.keywords if key.arg)


@pytest.mark.parametrize("path", ADAPTER_FILES, ids=name_of)
def test_nobody_writes_the_state_of_another_class(path):
    assert [place for place in words(parse(path)) if place[0] in STATE_KEYS] == []


def test_the_keys_of_states_are_those_of_the_core():
    tracker = GWATracker(2)
    tracker.update(np.zeros(2), ids=np.arange(2))
    state = tracker.state_dict()
    tracked = TrackedSignals(["margin"], 2).state_dict()
    assert {*state, *state["by_sample"], *tracked} >= STATE_KEYS
    source = 'state.update(by_sample=1)\nstate["trackers"]'
    assert list(words(ast.parse(source))) == [("by_sample", 1), ("trackers", 2)]


def test_the_run_folder_needs_no_framework():
    assert loaded("import gwa_offline.store") == set()


@pytest.mark.parametrize("path", CORE_FILES, ids=name_of)
def test_the_core_neither_prints_nor_logs_nor_warns(path):
    assert not tops(path) & {"logging", "warnings", "os", "pathlib", "io", "random"}
    calls = [node.func for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    assert not names & {"print", "open", "input", "exec", "eval"}


@pytest.mark.parametrize("path", CORE_FILES, ids=name_of)
def test_no_random_number_without_a_seed(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(".random"):
            assert node.attr == "Philox", f"{name_of(path)}:{node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".Philox"):
            assert len(node.args) == 1, f"{name_of(path)}:{node.lineno} has no seed"
