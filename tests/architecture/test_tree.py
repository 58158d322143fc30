"""The tree in ARCHITECTURE.md names every file that exists, and no other."""

import re

import pytest
from source import ADAPTERS, CORE, ROOT, name_of, python_files

PACKAGES = [CORE, *sorted(path.parent for path in ADAPTERS.glob("*/__init__.py"))]
FILE = re.compile(r"(?<![\w/.])[\w/]+\.py\b")


def named_files(text, exists):
    """The files that the tree in a text names, each as a path from the root.

    A line that begins with `folder/` opens that folder for the deeper lines below it. A file belongs
    to the folder that is open, or to one around it.
    """
    tree = re.search(r"^## The tree\n+```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    opened, files = [], set()
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        opened = [(other, folder) for other, folder in opened if other < depth]
        if found := re.match(r" *([\w/]+)/(?:\s|$)", line):
            around = opened[-1][1] + "/" if opened else ""
            opened.append((depth, around + found[1]))
        for name in FILE.findall(line):
            places = [f"{folder}/{name}" for _, folder in reversed(opened)] or [name]
            files.add(next((place for place in places if exists(place)), places[0]))
    return files


@pytest.fixture(scope="module")
def named():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    return named_files(text, lambda place: (ROOT / place).is_file())


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_the_tree_names_every_module(package, named):
    files = {name_of(path) for path in python_files(package)}
    plain = {name for name in files if not name.endswith("__init__.py")}
    assert plain
    assert sorted(plain - named) == []


def test_the_tree_names_nothing_else(named):
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []


def test_the_tree_is_read_as_a_person_reads_it():
    text = """
## The tree

```
core/            the maths
  a.py           one
  wing/          others
    b.py, c.py   two; wing/d.py
  e.py           a noun; f.py helps
adapters/door/   the rest, see x.pyc
  g.py
tests/           h.py
```

k.py
"""
    inside = {"core/wing/d.py"}
    assert named_files(text, inside.__contains__) == {
        "core/a.py",
        "core/wing/b.py",
        "core/wing/c.py",
        "core/wing/d.py",
        "core/e.py",
        "core/f.py",
        "adapters/door/g.py",
        "tests/h.py",
    }
