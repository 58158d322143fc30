"""Fill the tables of the gallery, and say what its sentences must be: `python docs/gallery_page.py`.

The numbers come from `gallery.py`. What is wrong by eye was written down by hand, a verdict and a
reason for each sample: benchmarks/results/gallery_by_eye.json.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "gallery.md"
RESULTS = DOCS.parent / "benchmarks" / "results" / "gallery.json"
SEEN = RESULTS.with_name("gallery_by_eye.json")

PLACE = re.compile(r"(<!-- gallery: (.+?) -->\n).*?(<!-- end -->\n)", re.DOTALL)
VERDICTS = ("wrong", "unclear", "right")

#: With places for the numbers. The page has each of them, line breaks and markup aside.
SENTENCES = (
    "{fashion_wrong} of 20 are wrong in Fashion-MNIST (by eye), and {aggre_100} of 100 in CIFAR-10-N",
    "Fashion-MNIST, {fashion_samples} pictures",
    "Digits of scikit-learn, {digits_samples} pictures",
    "By eye {fashion_wrong} of the 20 labels are wrong, {fashion_unclear} are unclear",
    "unclear, and {fashion_right} are right",
    "Of 20 drawn at random {random_wrong} are wrong and {random_unclear} unclear",
    "of the first 100 labels of aggre {aggre_100} are wrong, where {aggre_share} % of all are",
    "By eye {newsgroups_wrong} of the 20 texts belong in another group",
    "By eye {digits_wrong} of the 20 are wrong, and {digits_unclear} cannot be read",
    "{rare_found} of the first 20 are eights",
    "they are {rare_share} % of the data",
    "Of the first {count} labels {one_way} are wrong",
    "finds {by_chance} of {count}",
    "{tops} of the first 100",
)


def read(path: Path) -> Any:
    """Return what a file of JSON has."""
    return json.loads(path.read_text(encoding="utf-8"))


def by_eye(name: str) -> dict[int, tuple[str, str]]:
    """Return verdict and reason of each sample of a sheet that was looked at."""
    return {int(i): (verdict, what) for i, (verdict, what) in read(SEEN).get(name, {}).items()}


def counts(name: str, ids: list[int]) -> dict[str, str]:
    """Return how many of the samples have each verdict; all must have been looked at."""
    seen = by_eye(name)
    if missing := [i for i in ids if i not in seen]:
        raise ValueError(f"look at {missing} of {name}, and write what is there into {SEEN.name}")
    found = Counter(seen[i][0] for i in ids)
    return {f"{name}_{verdict}": f"{found[verdict]}" for verdict in VERDICTS}


def numbers() -> dict[str, str]:
    """Return the numbers of the sentences."""
    found = read(RESULTS)
    people, rare, same = found["people"]["aggre"], found["rare"], found["one way"]
    count = f"{same['wrong']}"
    verdicts = {
        key: value
        for name in ("fashion", "digits", "newsgroups")
        for key, value in counts(name, [x["id"] for x in found[name]["first"]]).items()
    }
    return {
        **verdicts,
        **{f"{name}_samples": f"{found[name]['samples']:,}" for name in ("fashion", "digits")},
        **counts("random", found["fashion"]["at random"]),
        "aggre_100": f"{people['100']}",
        "aggre_share": f"{100 * people['wrong'] / people['samples']:.0f}",
        "rare_found": f"{rare['rare among first']}",
        "rare_share": f"{100 * rare['rare'] / rare['samples']:.1f}",
        "count": count,
        "one_way": f"{same[count]}",
        "by_chance": f"{found['by chance'][count]}",
        "tops": f"{found['fashion']['tops among 100']}",
    }


def sentences() -> list[str]:
    """Return the sentences with their numbers."""
    return [sentence.format(**numbers()) for sentence in SENTENCES]


def tables() -> dict[str, str]:
    """Return the tables of the page by name."""
    found = read(RESULTS)
    people = [
        [f"`{name}`", *(f"{x[k]:,}" for k in ("wrong", "100", "1000")), f"{x[str(x['wrong'])]:,}"]
        for name, x in found["people"].items()
    ]
    seen = by_eye("newsgroups")
    texts = [
        [f"{x['id']}", x["label"], x["model"], *reversed(seen[x["id"]])]
        for x in found["newsgroups"]["first"]
    ]
    head = [
        "labels",
        "wrong of 50,000",
        "among the first 100",
        "first 1,000",
        "as many as are wrong",
    ]
    return {
        "people": _table(head, people),
        "newsgroups": _table(
            ["id", "posted in", "the model says", "what it is", "the group is"], texts
        ),
    }


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill(page: str) -> str:
    """Return the page with its tables."""
    made = tables()
    return PLACE.sub(lambda place: f"{place[1]}\n{made[place[2]]}\n{place[3]}", page)


def plain(text: str) -> str:
    """Return text without line breaks and markup."""
    return " ".join(re.sub("[`*]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)).split())


def main() -> None:
    """Fill the page, and say which sentences are stale."""
    page = fill(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page, encoding="utf-8")
    if stale := [x for x in sentences() if x not in plain(page)]:
        sys.exit("\n".join(["the page lacks:", *stale]))


if __name__ == "__main__":
    main()
