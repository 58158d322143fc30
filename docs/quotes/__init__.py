"""Numbers that pages quote: each sentence is made from what was measured.

A test looks for each sentence in its page, line breaks and markup aside. After a new measurement it
shows the sentences that are stale. Another one looks for numbers that no sentence is behind.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from . import chapter_epochs, chapter_keep, chapter_labels, pages
from .definitions import ANYWHERE, DEFINED
from .pages import Figures
from .quantities import passages, plain, untied
from .tables import TABLES

__all__ = [
    "ANYWHERE",
    "CHECKED",
    "DEFINED",
    "PAGES",
    "TABLES",
    "loose",
    "passages",
    "plain",
    "stale",
    "untied",
]

CHAPTER = (chapter_keep, chapter_labels, chapter_epochs)
QUOTES = (*pages.QUOTES, *(quote for part in CHAPTER for quote in part.QUOTES))
ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
#: The pages that quote something.
PAGES = tuple(dict.fromkeys(page for page, *_ in QUOTES))
#: Pages with numbers that are tied to something else, or to nothing yet.
ELSEWHERE = {
    "docs/bad-input.md": "messages that tests compare",
    "docs/clusters.md": "an estimate, whose table says what it is from",
    "docs/gallery.md": "its own sentences",
    "docs/jax/losses.md": "rounding that no committed file has",
    "docs/torch/language.md": "its code with another reduction",
}
#: The pages on which each number must be quoted or defined.
CHECKED = (
    "README.md",
    *(
        page
        for folder in (".", "concepts", "jax", "signals", "sklearn", "torch", "tutorials")
        for path in sorted((DOCS / folder).glob("*.md"))
        if (page := path.relative_to(ROOT).as_posix()) not in ELSEWHERE
    ),
    *(page for part in CHAPTER for page in part.CHECKED),
)

_figures = cache(lambda numbers: numbers())


def stale(page: str) -> list[str]:
    """Return the sentences that a page should have and has not, each with what it has."""
    text = list(passages((ROOT / page).read_text(encoding="utf-8")))
    found = []
    for numbers, words in _quotes(page):
        sentence = _sentence(numbers, words)
        if not any(sentence in passage for passage in text):
            # Any numbers in the places.
            pattern = re.sub(r"\\\{\w+\\\}", r".{1,20}?", re.escape(plain(words)))
            have = next(filter(None, (re.search(pattern, passage) for passage in text)), None)
            found.append(f"{sentence!r}, got {have and have[0]!r}")
    return found


def loose(page: str) -> list[str]:
    """Return the numbers of a page that are neither quoted nor defined, with what is around."""
    text = (ROOT / page).read_text(encoding="utf-8")
    quoted = [_sentence(numbers, words) for numbers, words in _quotes(page)]
    return untied(text, quoted, [*ANYWHERE, *DEFINED.get(page, ())])


def _quotes(page: str) -> list[tuple[Figures, str]]:
    return [(numbers, words) for of, numbers, words in QUOTES if of == page]


def _sentence(numbers: Figures, words: str) -> str:
    return plain(words.format(**_figures(numbers)))
