"""Fill the tables of the pages that have some: `python docs/generate.py`.

A page holds its own prose, and a place for each table:

    <!-- measured: NAME -->
    <!-- end -->

The tables of `backends.md` come from tests/backends.py. Those of `bad-input.md` come from the tables
called CASES in tests/core and tests/adapters, whose rows begin with a name and a function that raises;
the message shown is the one it raised. That of `formats.md` is in
tests/adapters/offline/sources.py. Those of `torch/situations.md` and `torch/losses.md` are what
their tests run. What was measured is in measured.py, and of the concepts and guides in quotes/tables.py.
A test compares the committed pages with these.
"""

from __future__ import annotations

import html
import importlib.util
import inspect
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS, TESTS = ROOT / "docs", ROOT / "tests"
CASE_FOLDERS = (TESTS / "core", TESTS / "adapters" / "offline", TESTS / "adapters" / "torch")
sys.path[:0] = [str(x) for x in (ROOT, ROOT / "adapters", TESTS, TESTS / "adapters" / "torch")]

# What a library or the operating system adds in brackets differs between their versions.
FOREIGN = re.compile(r"(is it truncated or damaged\?|cannot be read:|is not JSON:).*$", re.DOTALL)

PLACE = re.compile(r"(<!-- measured: (.+?) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bad_input_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


measured = _load(DOCS / "measured.py")
quotes = _load(DOCS / "quotes" / "__init__.py")
table = measured.table


def fill(page: str, tables: dict[str, str]) -> str:
    """Return a page with its tables; a place without a table, or a table without a place, raises."""
    places = [place[2] for place in PLACE.finditer(page)]
    if sorted(places) != sorted(tables):
        raise ValueError(
            f"a page must have a place for each of {', '.join(tables)}, got {', '.join(places)}"
        )
    return PLACE.sub(lambda place: f"{place[1]}\n{tables[place[2]]}\n{place[3]}", page)


def backends_tables() -> dict[str, str]:
    """Return the cases, the functions on each, and what sees plain numbers only."""
    import backends

    head = ["case", "what it is", "floats in", "results", "moments"]
    cases = [
        [case.name, case.about, case.dtype, case.result_dtype, case.accumulator_dtype]
        for case in backends.CASES
    ]
    groups = {case.name: _group(case) for case in backends.CASES}
    names = list(dict.fromkeys(groups.values()))
    notes: list[str] = []
    functions = []
    for function, rows in groupby(backends.capabilities(), key=lambda row: row[0]):
        claims: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
        for _, case, claim in rows:
            claims[groups[case.name]].append((case.name, claim))
        functions.append([f"`{function}`", *(_cell(claims[name], notes) for name in names)])
    numbered = "".join(f"{number}. {note}\n" for number, note in enumerate(notes, 1))
    return {
        "cases": table(head, cases),
        "functions": f"{table(['function', *names], functions)}\n{numbered}",
        "plain numbers": ", ".join(f"`{name}`" for name in backends.PLAIN) + ".\n",
    }


def _group(case: Any) -> str:
    library = {"numpy": "NumPy", "array_api_strict": "strict", "torch": "PyTorch", "jax": "JAX"}
    kind = case.transform or ("meta" if case.device == "meta" else "")
    return f"{library.get(case.library, case.library)} {kind}".strip()


def _cell(claims: list[tuple[str, str]], notes: list[str]) -> str:
    kinds = {claim for _, claim in claims}
    good = sorted(kind for kind in kinds if not kind.startswith("skipped: "))
    marks = ["yes" if kind == "values" else "shapes" for kind in good] or ["no"]
    for name, claim in claims:
        if claim.startswith("skipped: "):
            where = "" if not good else f"not on {name}: "
            note = where + claim.removeprefix("skipped: ") + "."
            if note not in notes:
                notes.append(note)
            mark = f"({notes.index(note) + 1})"
            if mark not in marks:
                marks.append(mark)
    return " ".join(marks)


def bad_input_tables() -> dict[str, str]:
    """Return what each case raises, by the folder of its test."""
    return {
        folder.name: table(
            ["input", "error"],
            ([_plain(label), raised(function)] for label, function in _cases(folder)),
        )
        for folder in CASE_FOLDERS
    }


def _cases(folder: Path) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield name and function of each row of the tables of bad input in a folder."""
    for file in sorted(folder.glob("test_*.py")):
        if re.search(r"^CASES = [\[(]", file.read_text(encoding="utf-8"), re.MULTILINE):
            for row in _load(file).CASES:
                yield row[0], row[1]


def raised(function: Callable[..., Any]) -> str:
    """Run a case in an empty folder and return its error, ready for a table."""
    needed = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*([Path(folder)] * len(needed)))
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            text = str(error).replace(f"{folder}/", "").replace(folder, "folder")
            text = FOREIGN.sub(r"\1 …", text)
            return f"`{type(error).__name__}`: {_plain(text)}"
    raise AssertionError(f"{function} raised nothing")


def _plain(text: str) -> str:
    """Escape what Markdown would take for markup, except code in backticks."""
    parts = re.split(r"(`[^`]*`)", text.replace("\n", " "))
    return "".join(
        part.replace("|", "\\|")
        if part.startswith("`")
        else re.sub(r"([\\*_\[\]|])", r"\\\1", html.escape(part, quote=False))
        for part in parts
    )


def situations_tables() -> dict[str, str]:
    """Return the ways to train, and those in several processes."""
    import ranks
    import situations

    cases = (
        [case.name, case.about, f"{case.tolerance:g}", case.without or f"{case.tolerance:g}"]
        for case in situations.SITUATIONS
    )
    head = ["you train with", "how it is done", "differs at most by", 'with `residual="backward"`']
    works = ([name, " ".join((work.__doc__ or "").split())] for name, work in ranks.WORKS.items())
    return {
        "situations": table(head, cases),
        "processes": table(["you train with", "what is tested"], works),
    }


def losses_tables() -> dict[str, str]:
    """Return the losses that have scores, and those that are refused."""
    import losses

    words = {"formula": "the closed form", "gradient": "the gradient"}
    scored = (
        [case.name, case.about, words[case.found], f"{case.tolerance:g}"]
        for case in losses.LOSSES
        if case.found in words
    )
    refused = (
        [case.name, case.about, raised(case.run)]
        for case in losses.LOSSES
        if case.found not in words
    )
    head = ["loss or head", "how it is done"]
    return {
        "losses": table([*head, "the scores are from", "differs at most by"], scored),
        "refused": table([*head, "error"], refused),
    }


def sources_tables() -> dict[str, str]:
    """Return the kinds of source that are tested."""
    from adapters.offline import sources

    head = ["source", "written by", "rows", "its head", "behind an address"]
    kinds = (
        [kind.name, kind.written, kind.about, kind.head, "yes" if kind.remote else "no"]
        for kind in sources.KINDS
    )
    return {"sources": table(head, kinds)}


def chapter_tables(page: str) -> dict[str, str]:
    """Return the tables that a page of the results has places for."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return measured.results_tables(place[2] for place in PLACE.finditer(text))


#: The pages of the results.
CHAPTER = sorted(path.relative_to(DOCS).as_posix() for path in (DOCS / "results").glob("*.md"))

TABLES: dict[str, Callable[[], dict[str, str]]] = {
    **quotes.TABLES,
    "backends.md": backends_tables,
    "bad-input.md": bad_input_tables,
    "formats.md": sources_tables,
    **{page: partial(chapter_tables, page) for page in CHAPTER},
    "sklearn/cleanlab.md": lambda: (
        measured.labels_tables() | quotes.TABLES["sklearn/cleanlab.md"]()
    ),
    "torch/losses.md": losses_tables,
    "torch/situations.md": situations_tables,
    "torch/speed.md": measured.speed_tables,
}


def filled(name: str) -> str:
    """Return a page with its tables made from what is there now."""
    return fill((DOCS / name).read_text(encoding="utf-8"), TABLES[name]())


#: By name: what returns the page.
PAGES = {name: partial(filled, name) for name in TABLES}


def main() -> None:
    """Write the pages."""
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
