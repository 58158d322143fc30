"""Formulas as MathML, so that a page needs neither a script nor the network.

Read are ``.. math::`` blocks and ``:math:`...` `` as the docstrings have them, and in pages the
forms that GitHub shows as well: a fence of ``math`` and $`...`$ in a line.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from mkdocs.plugins import event_priority

DIRECTIVE = re.compile(r"^( *)\.\. math::(.*)$")
FENCE = re.compile(r"^( *)```math *$")


class MathBlocks(Preprocessor):
    """Replace blocks before anything else reads them."""

    def run(self, lines: list[str]) -> list[str]:
        out: list[str] = []
        rest = list(lines)
        while rest:
            line = rest.pop(0)
            if found := DIRECTIVE.match(line):
                formula, depth = [found[2]], len(found[1])
                while rest and (not rest[0].strip() or _indent(rest[0]) > depth):
                    formula.append(rest.pop(0))
            elif found := FENCE.match(line):
                formula = []
                while (inner := rest.pop(0)).strip() != "```":
                    formula.append(inner)
            else:
                out.append(line)
                continue
            html = (
                f'<div class="formula">{convert(" ".join(formula).strip(), display="block")}</div>'
            )
            out += ["", found[1] + self.md.htmlStash.store(html), ""]
        return out


class MathInline(InlineProcessor):
    """Replace formulas in a line before backticks make code of them."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Any, int, int]:  # noqa: N802
        formula = f'<span class="inline-formula">{convert(m[1])}{m[2]}</span>'
        return self.md.htmlStash.store(formula), m.start(0), m.end(0)


class MathExtension(Extension):
    """Both of them."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.preprocessors.register(MathBlocks(md), "math-blocks", 27)
        for number, pattern in enumerate(
            (r":math:`([^`]+)`([,.;:)]*)", r"\$`([^`]+)`\$([,.;:)]*)")
        ):
            md.inlinePatterns.register(MathInline(pattern, md), f"math-{number}", 195)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


@event_priority(100)  # before mkdocstrings takes the list of extensions
def on_config(config: Any) -> Any:
    """Add the extension for pages and docstrings alike."""
    config.markdown_extensions.append(MathExtension())
    return config
