"""Quantities in the prose of a page, and which of them no measurement is behind.

A quantity is a number with a decimal point, or a whole number with a unit: points, per cent, times,
seconds, bytes, runs. Digits in code, formulas, headings, addresses and generated tables are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

__all__ = ["passages", "plain", "untied"]

UNIT = (
    r"(?:points?|%|per cent|[mµn]?s|(?:milli|micro)?seconds?|minutes?|hours?|[KMG]i?B|times|×|runs?"
    r"|settings|pairs)"
)
WORD = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|twenty"
PART = "(?:a|one|two|three|four) (?:third|quarter|fifth|sixth|tenth)s?"
QUANTITY = re.compile(
    rf"(?<![\w.,/])[-+−±]?(?:\d[\d,]*\.\d+(?:e[-+]?\d+)?(?!\w)"
    rf"|\d[\d,]*(?:e[-+]?\d+)?(?=\s?{UNIT}(?!\w))"
    rf"|\d+ of (?:the )?\d+(?!\w)"
    rf"|(?:{WORD})(?= {UNIT}(?!\w))"
    rf"|twice(?= (?:the|as)(?!\w))|half a point|(?:half|{PART}) (?:the|of the|its|of its) (?:time|memory|cost))",
    re.IGNORECASE,
)
FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
DRAWN = re.compile(r"<!-- measured: .*?<!-- end -->", re.DOTALL)
FORMULA = re.compile(r"\$`.*?`\$", re.DOTALL)
TAG = re.compile(r"<!--.*?-->|<[^>]*>|!\[[^\]]*\]\([^)]*\)(?:\{[^}]*\})?", re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
# Digits of code, which a quote may have too.
HIDDEN = str.maketrans("0123456789", "".join(chr(0xE000 + digit) for digit in range(10)))


def plain(text: str) -> str:
    """Return text without line breaks and markup, and with the digits of its code hidden."""
    text = CODE.sub(lambda code: code[0].translate(HIDDEN), text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)(?:\{[^}]*\})?", r"\1", text)
    return " ".join(re.sub("[`*]", "", text).split())


def passages(text: str) -> Iterator[str]:
    """Yield the paragraphs, points and rows of tables of a page."""
    for hidden in (FRONT, FENCE, DRAWN, FORMULA, TAG):
        text = hidden.sub("\n\n" if hidden in (FENCE, DRAWN) else "", text)
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    rows = re.compile(r"^\|.*$", re.MULTILINE)
    parts = re.split(r"\n\s*\n|^\s*(?:-|\d+\.) ", rows.sub("\n\n", text), flags=re.MULTILINE)
    yield from filter(None, map(plain, [*parts, *rows.findall(text)]))


def untied(text: str, quoted: Iterable[str], defined: Iterable[str]) -> list[str]:
    """Return the quantities of a page that lie in no quote and no definition, with what is around.

    Parameters
    ----------
    text : str
        The page.
    quoted : iterable of str
        Sentences made from what was measured, as `plain` returns them.
    defined : iterable of str
        Patterns of numbers that nobody measures.
    """
    known = [re.compile(re.escape(x)) for x in quoted] + [re.compile(x) for x in defined]
    found = []
    for passage in passages(text):
        spans = [match.span() for pattern in known for match in pattern.finditer(passage)]
        for quantity in QUANTITY.finditer(passage):
            begin, end = quantity.span()
            if not any(first <= begin and end <= last for first, last in spans):
                found.append(f"{quantity[0]!r} in {passage[max(begin - 60, 0) : end + 40]!r}")
    return found
