"""Write the pages that are made from the tests: `python docs/generate.py`.

`backends.md` comes from the tables in tests/backends.py. `bad-input.md` comes from the tables called
CASES in tests/core and tests/adapters/offline, whose rows begin with a name and a function that
raises; the message shown is the one it raised. A test compares the committed pages with these.
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
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS, TESTS = ROOT / "docs", ROOT / "tests"
CASE_FOLDERS = (TESTS / "core", TESTS / "adapters" / "offline")

# What a library or the operating system adds in brackets differs between their versions.
FOREIGN = re.compile(r"(is it truncated or damaged\?|cannot be read:|is not JSON:).*$", re.DOTALL)

BACKENDS_HEAD = """\
# Backends

Arrays in are arrays out, of the same library and on the same device. This page is made from
`tests/backends.py`: every public function of `gwa_core` that takes arrays is tested on every case
below, against slow NumPy code that is obviously right. In the table of functions "yes" means that
the numbers are compared, "shapes" that only shapes and dtypes are, as there are no numbers.

## Cases

| case | what it is | floats in | results | moments |
| --- | --- | --- | --- | --- |
"""

BACKENDS_MIDDLE = """
Results are in the dtype of the inputs, but at least float32. Moments are float64 where the device
has it.

## Functions

"""

BACKENDS_TAIL = """
These see plain Python numbers only, so that backends mean nothing to them: {plain}.

## Known differences

- Target values (labels outside 0..C-1, soft targets that do not sum to one) raise on NumPy arrays.
  On other libraries looking would wait for the device: a label out of range gives nan instead, and
  soft targets are taken as they are.
- NumPy computes a float32 score again in float64 where its terms cancel; other libraries keep
  float32 accuracy there. See [Numerics](concepts/numerics.md#cancellation).
- Under `jax.jit` and `torch.compile` the options (`loss`, `label_smoothing`, `k`, a sketch) are
  constants.
- JAX without `jax_enable_x64` has no float64: moments are then pairs of float32.
- Dask and CuPy are not tested.
"""

BAD_INPUT_HEAD = """\
# Bad input

What a mistake is answered with: the argument, what was expected, what came, and the usual cause.
This page is made by the tests: each row was run, and the message is the one that was raised.
Everything raised on saved features and run folders is a `FeaturesError`, which is a `ValueError`;
the command line prints the message alone and exits with code 2.

On arrays of an accelerator, and on traced ones, only shapes, dtypes and options are checked.
"""

TITLES = {
    "core": "The core, `gwa_core`",
    "offline": "Saved features and run folders, `gwa_offline`",
}


def backends_page() -> str:
    """Return the page of backends."""
    sys.path[:0] = [str(ROOT), str(ROOT / "adapters"), str(TESTS)]
    import backends

    text = BACKENDS_HEAD
    for case in backends.CASES:
        text += (
            f"| {case.name} | {case.about} | {case.dtype} | {case.result_dtype} | "
            f"{case.accumulator_dtype} |\n"
        )
    text += BACKENDS_MIDDLE
    groups = {case.name: _group(case) for case in backends.CASES}
    names = list(dict.fromkeys(groups.values()))
    text += f"| function | {' | '.join(names)} |\n" + "| --- " * (len(names) + 1) + "|\n"
    notes: list[str] = []
    for function, rows in groupby(backends.capabilities(), key=lambda row: row[0]):
        claims: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
        for _, case, claim in rows:
            claims[groups[case.name]].append((case.name, claim))
        text += f"| `{function}` | {' | '.join(_cell(claims[name], notes) for name in names)} |\n"
    text += "\n" + "".join(f"{number}. {note}\n" for number, note in enumerate(notes, 1))
    return text + BACKENDS_TAIL.format(plain=", ".join(f"`{name}`" for name in backends.PLAIN))


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


def bad_input_page() -> str:
    """Return the page of bad input."""
    text = BAD_INPUT_HEAD
    for folder in CASE_FOLDERS:
        text += f"\n## {TITLES[folder.name]}\n\n| input | error |\n| --- | --- |\n"
        for label, function in _cases(folder):
            text += f"| {_plain(label)} | {raised(function)} |\n"
    return text


def _cases(folder: Path) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield name and function of each row of the tables of bad input in a folder."""
    sys.path[:0] = [str(ROOT), str(ROOT / "adapters"), str(TESTS)]
    for file in sorted(folder.glob("test_*.py")):
        if re.search(r"^CASES\b", file.read_text(encoding="utf-8"), re.MULTILINE):
            for row in _load(file).CASES:
                yield row[0], row[1]


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bad_input_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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
        except (ValueError, TypeError, OSError, ImportError) as error:
            text = str(error).replace(f"{folder}/", "").replace(folder, "folder")
            text = FOREIGN.sub(r"\1 …", text)
            return f"`{type(error).__name__}`: {_plain(text)}"
    raise RuntimeError(f"{function} raised nothing")


def _plain(text: str) -> str:
    """Escape what Markdown would take for markup, except code in backticks."""
    parts = re.split(r"(`[^`]*`)", text.replace("\n", " "))
    return "".join(
        part.replace("|", "\\|")
        if part.startswith("`")
        else re.sub(r"([\\*_\[\]|])", r"\\\1", html.escape(part, quote=False))
        for part in parts
    )


PAGES = {"backends.md": backends_page, "bad-input.md": bad_input_page}


def main() -> None:
    """Write both pages."""
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
