"""`llms.txt` of the site: each page with its first sentence, for programs that read rather than look."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# A paragraph: no heading, table, picture or code.
FIRST = re.compile(r"^(?![#|<!]|```|:::).+(?:\n.+)*", re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def about(markdown: str) -> str:
    """Return the first sentence of a page; one of the reference alone has none."""
    found = None if markdown.startswith(":::") else FIRST.search(markdown)
    text = LINK.sub(r"\1", " ".join(found[0].split())) if found else ""
    return re.split(r"(?<=[.?!])\s", text.replace("**", ""), maxsplit=1)[0]


def entries(items: Any, heading: str = "Pages") -> list[str]:
    """Return the lines of a part of the navigation, its sections as headings."""
    pages = [item for item in items if item.is_page]
    lines = [f"\n## {heading}\n"] if pages else []
    for page in pages:
        said = about(page.markdown or "")
        lines.append(f"- [{page.title}]({page.url}){': ' if said else ''}{said}")
    for section in (item for item in items if item.is_section):
        lines += entries(section.children, section.title)
    return lines


def on_nav(nav: Any, config: Any, **_: Any) -> Any:
    """Remember the navigation."""
    config.extra["navigation"] = nav
    return nav


def on_post_build(config: Any) -> None:
    """Write the file."""
    lines = [f"# {config.site_name}\n", f"> {config.site_description}"]
    lines += entries(config.extra["navigation"].items)
    Path(config.site_dir, "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
