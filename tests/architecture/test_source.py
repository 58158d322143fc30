"""Rules that the source itself must keep."""

import ast
import re

import pytest
from source import ADAPTERS, CORE, ROOT, lines_of_code, name_of, parse, python_files

TESTS = ROOT / "tests"
LONGEST = 300
CREATORS = {"arange", "asarray", "empty", "eye", "full", "linspace", "ones", "zeros"}
# For a line whose arrays are known to be NumPy's, which have one device.
PRAGMA = "# on the host"
PROOFS = re.compile(r"^(raises|warns|fail|(assert|same|close|check|expect|compare)(_\w+)?)$")


def creations_without_device(source):
    """Lines with `xp.zeros(...)` and its like that leave dtype or device to the library."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if ast.unparse(node.func.value) != "xp" or node.func.attr not in CREATORS:
            continue
        given = {keyword.arg for keyword in node.keywords}
        if not {"dtype", "device"} <= given and PRAGMA not in lines[node.lineno - 1]:
            yield node.lineno


@pytest.mark.parametrize("path", python_files(CORE), ids=name_of)
def test_new_arrays_say_their_dtype_and_device(path):
    assert list(creations_without_device(path.read_text(encoding="utf-8"))) == []


def test_the_lint_of_devices_can_fail():
    source = "\n".join(
        [
            "a = xp.zeros(3, dtype=d, device=v)",
            "b = xp.zeros(3, dtype=d)",
            f"c = xp.ones(3)  {PRAGMA}",
            "e = np.zeros(3)",
            "f = xp.asarray([xp.arange(2, dtype=d, device=v)], device=v)",
        ]
    )
    assert list(creations_without_device(source)) == [2, 5]


@pytest.mark.parametrize("path", python_files(CORE, ADAPTERS), ids=name_of)
def test_a_file_can_be_read_in_one_sitting(path):
    assert lines_of_code(path.read_text(encoding="utf-8")) <= LONGEST


def test_docstrings_and_blank_lines_are_not_code():
    source = '"""One.\n\nTwo.\n"""\n\nx = """\ntext\n"""\n\n\ndef f():\n    """It."""\n    return x  # why\n'
    assert lines_of_code(source) == 5


def test_every_core_module_has_its_tests():
    modules = {path.stem for path in CORE.glob("*.py")} - {"__init__"}
    assert modules <= {path.stem.removeprefix("test_") for path in (TESTS / "core").glob("*.py")}


def proves(node):
    """Whether a test states anything: an assertion, an expected error, or a helper that asserts."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assert):
            return True
        if isinstance(inner, ast.Call):
            name = inner.func.attr if isinstance(inner.func, ast.Attribute) else None
            name = inner.func.id if isinstance(inner.func, ast.Name) else name
            # A subprocess that must succeed is a statement too.
            checked = any(
                k.arg == "check" and ast.unparse(k.value) == "True" for k in inner.keywords
            )
            if checked or (name is not None and PROOFS.match(name)):
                return True
    return False


def find_tests(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=name_of)
def test_no_test_is_empty(path):
    tests = list(find_tests(parse(path)))
    assert tests
    assert [node.name for node in tests if not proves(node)] == []
    names = [node.name for node in tests]
    assert len(set(names)) == len(names), "a test of the same name hides another"


def test_the_search_for_empty_tests_can_succeed():
    tree = ast.parse(
        "def test_a():\n    f()\n"
        "def test_b():\n    assert f()\n"
        "def test_c():\n    with pytest.raises(E):\n        f()\n"
        "def test_d():\n    pass\n"
    )
    assert [node.name for node in find_tests(tree) if not proves(node)] == ["test_a", "test_d"]
