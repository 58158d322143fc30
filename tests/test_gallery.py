"""The gallery says what was measured and seen, and each of its labels has a verdict."""

import importlib.util
import re
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).resolve().parent.parent / "docs"


def script():
    spec = importlib.util.spec_from_file_location("gallery_page", DOCS / "gallery_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gallery = script()
TEXT = gallery.PAGE.read_text(encoding="utf-8")
SHEETS = ("fashion", "digits", "newsgroups", "rare")


def test_the_tables_are_those_of_the_results():
    assert gallery.PLACE.findall(TEXT)
    assert gallery.fill(TEXT) == TEXT, "run `python docs/gallery_page.py`"


@pytest.mark.parametrize("sentence", gallery.sentences())
def test_a_number_in_a_sentence_is_the_one_that_was_measured(sentence):
    assert sentence in gallery.plain(TEXT)


def test_each_number_of_the_results_has_a_sentence():
    places = set(re.findall(r"{(\w+)}", " ".join(gallery.SENTENCES)))
    # Of the texts and digits the page gives one or two verdicts; the others are what is left.
    left = {"digits_right", "newsgroups_right", "newsgroups_unclear", "random_right"}
    assert places == set(gallery.numbers()) - left


@pytest.mark.parametrize("name", SHEETS)
def test_a_sheet_is_whole_and_in_the_order_of_rank(name):
    shown = gallery.read(gallery.RESULTS)[name]["first"]
    assert len({sample["id"] for sample in shown}) == len(shown) == 20


def test_each_verdict_is_one_of_three_and_has_a_reason():
    for name in gallery.read(gallery.SEEN):
        for verdict, reason in gallery.by_eye(name).values():
            assert verdict in gallery.VERDICTS
            assert reason


def test_a_sample_that_nobody_looked_at_is_an_error():
    with pytest.raises(ValueError, match=r"look at \[59999\] of fashion"):
        gallery.counts("fashion", [27350, 59999])


@pytest.mark.parametrize("name", ["fashion", "digits", "rare"])
def test_a_picture_fits_a_phone(name):
    path = DOCS / "images" / f"gallery-{name}.png"
    assert f"images/{path.name}" in TEXT
    with Image.open(path) as picture:
        # 364 of the 390 pixels of a phone: letters shrink by less than half.
        assert picture.width <= 2 * 364


def test_the_page_is_short():
    text = re.sub(r"^```.*?^```$|<details.*?</details>", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert len(text.split()) <= 900
    paragraphs = re.split(r"\n\s*\n", re.sub(r"^[|#].*$", "", text, flags=re.MULTILINE))
    sentences = [x for part in paragraphs for x in re.split(r"(?<=[.!?:])\s", gallery.plain(part))]
    assert [x for x in sentences if len(x.split()) > 30] == []
