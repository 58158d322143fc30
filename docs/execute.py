"""Run the code of the pages: `python docs/execute.py` updates the outputs shown there.

Python blocks of a page share one namespace and one empty folder, in order. A block that imports
PyTorch or JAX runs alone, except on the pages of that framework's adapter and on those whose blocks
go on from each other. Lines of bash blocks that
call `gwa` run in this process, as on a terminal of 100 columns. A block of `text` right after is the
output. The tests run the pages in the same way.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PLACES = [str(ROOT), str(ROOT / "adapters")]
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TERMINAL = {"TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^gwa (.*)$", re.MULTILINE)
FRAMEWORK = re.compile(r"^import (torch|jax)\b", re.MULTILINE)
# Folders of pages that are all about one framework.
OWNERS = {"jax", "sklearn", "torch"}
# Pages outside them whose blocks go on from each other.
TOGETHER = {"cookbook.md", "from-early-stopping.md", "gallery.md", "quickstart.md"}


class Block(NamedTuple):
    """Code of a page, and the place of the output below it, if one is shown."""

    kind: str
    code: str
    shown: str | None
    span: tuple[int, int]
    owned: bool = False

    @property
    def commands(self) -> list[str]:
        """The arguments of its calls of `gwa`."""
        return COMMAND.findall(self.code) if self.kind == "bash" else []

    @property
    def framework(self) -> str | None:
        """The framework that it needs, where its page does not."""
        alone = self.kind == "python" and not self.owned
        found = FRAMEWORK.search(self.code) if alone else None
        return None if found is None else found[1]

    @property
    def runs(self) -> bool:
        """Whether there is anything to run."""
        return self.kind == "python" or bool(self.commands)


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page that are run."""
    found = list(FENCE.finditer(path.read_text(encoding="utf-8")))
    out = []
    for fence, after in zip(found, [*found, None][1:], strict=True):
        has_output = after is not None and after[1] == "text"
        shown = after[2] if has_output else None
        span = after.span(2) if has_output else (0, 0)
        owned = path.parent.name in OWNERS or path.name in TOGETHER
        out.append(Block(fence[1], fence[2], shown, span, owned))
    return [block for block in out if block.runs]


def run(block: Block, namespace: dict[str, Any]) -> str:
    """Run a block in the current folder and return what it prints."""
    if block.owned and "torch" in sys.modules:
        # Threads only wait for each other on models as small as these.
        sys.modules["torch"].set_num_threads(1)
    if block.kind == "python":
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block.code, "<documentation>", "exec"), namespace)  # noqa: S102
        return out.getvalue()
    # What a quiet command prints is not shown.
    printed = [(line, call(shlex.split(line))) for line in block.commands]
    return "".join(text for line, text in printed if "--quiet" not in line)


def call(arguments: list[str]) -> str:
    """Run a command of `gwa` in this process and return what it prints on a terminal."""
    from gwa_offline.__main__ import main as gwa

    out, errors = io.StringIO(), io.StringIO()
    argv, environment = sys.argv, dict(os.environ)
    sys.argv = ["gwa", *arguments]
    os.environ.update(TERMINAL)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            gwa()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"gwa {shlex.join(arguments)}: {errors.getvalue()}") from None
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
    return ESCAPE.sub("", out.getvalue())


def rewrite(path: Path) -> None:
    """Put the real outputs into a page."""
    text, namespace = path.read_text(encoding="utf-8"), {}
    pieces, end = [], 0
    for block in blocks(path):
        got = run(block, {} if block.framework else namespace)
        if block.shown is not None:
            output = "\n".join(line.rstrip() for line in got.splitlines()).strip("\n")
            pieces += [text[end : block.span[0]], output, "\n"]
            end = block.span[1]
    path.write_text("".join([*pieces, text[end:]]), encoding="utf-8")


def main() -> None:
    """Rewrite the pages given, or all."""
    sys.path[:0] = PLACES
    for path in [Path(name).resolve() for name in sys.argv[1:]] or TEXTS:
        if any(block.shown is not None for block in blocks(path)):
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
                rewrite(path)
            print(f"ran {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
