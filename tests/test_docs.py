"""The documentation does what it says: its code runs, its output is real, its links lead somewhere."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from backends import require

import gwa_core
import gwa_dask
import gwa_jax
import gwa_offline
import gwa_sklearn
import gwa_torch
from gwa_core import signals
from gwa_offline import analysis, app, figures

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PACKAGES = [gwa_core, signals, gwa_dask, gwa_jax, gwa_offline, gwa_sklearn, gwa_torch]
WINGS = [analysis, figures, app]
FOLDERS = {"gwa_core": "", "gwa_core.signals": "signals"}
CHAPTER = sorted((DOCS / "results").glob("*.md"))
WRITTEN = {
    "backends.md",
    "bad-input.md",
    "formats.md",
    "torch/losses.md",
    "torch/situations.md",
    "torch/speed.md",
    *(path.relative_to(DOCS).as_posix() for path in CHAPTER),
}
NUMBER = re.compile(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?")
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")


def script(name):
    """Import a script or a package of the documentation."""
    file = DOCS / f"{name}.py" if (DOCS / f"{name}.py").exists() else DOCS / name / "__init__.py"
    spec = importlib.util.spec_from_file_location(f"docs_{name}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def name_of(path):
    return path.relative_to(ROOT).as_posix()


execute = script("execute")
quotes = script("quotes")
GENERATED = WRITTEN | set(quotes.TABLES)
PAGES = [path for path in execute.TEXTS if execute.blocks(path)]
STANDALONE = [
    pytest.param(block, id=f"{name_of(path)}-{block.framework}")
    for path in PAGES
    for block in execute.blocks(path)
    if block.framework
]
# What a page about a framework needs besides it.
NEEDS = {
    "lightning": ("lightning",),
    "transformers": ("transformers", "accelerate"),
    "torchmetrics": ("torchmetrics",),
    "ignite": ("ignite",),
    "skorch": ("skorch",),
    "digits": ("matplotlib",),
    "text": ("matplotlib",),
    "nnx": ("flax", "optax", "orbax"),
    "equinox": ("equinox", "haiku", "optax"),
    "cookbook": ("torch",),
    "from-early-stopping": ("torch",),
    "gallery": ("torch", "matplotlib"),
    "quickstart": ("torch", "jax", "lightning", "matplotlib"),
    "README": ("torch", "jax", "lightning", "transformers", "accelerate"),
}
# The packages under test, which may be installed ones.
PLACES = sorted({str(Path(p.__file__).parent.parent) for p in PACKAGES})


def words(text):
    """Return the lines of an output without what differs between machines: its numbers."""
    lines = []
    for raw in text.splitlines():
        line = re.sub("─+", "─", NUMBER.sub("#", raw).replace("*", ""))
        line = " ".join(line.split())
        if line and line not in lines[-1:]:
            lines.append(line)
    return lines


def numbers(text):
    return [float(number.strip(",.").replace(",", "")) for number in NUMBER.findall(text)]


def same_output(path, got, shown):
    assert words(got) == words(shown)
    # On these pages nothing is trained, so that the numbers are those of every machine.
    if path.parent.name == "concepts":
        assert numbers(got) == pytest.approx(numbers(shown), rel=0.02, abs=1e-6)


# Pages of several trainings, or of the whole demonstration.
LONG = {
    "README.md",
    "docs/command-line.md",
    "docs/quickstart.md",
    "docs/sklearn/digits.md",
    "docs/sklearn/text.md",
    "docs/torch/ignite.md",
    "docs/torch/language.md",
    "docs/torch/layers.md",
    "docs/torch/lightning.md",
    "docs/torch/transformers.md",
    "docs/tutorials/offline.md",
}


# PyTorch warns of what the libraries around it still call.
@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=name_of(path), marks=[pytest.mark.slow] * (name_of(path) in LONG))
        for path in PAGES
    ],
)
def test_code_of_a_page_runs_and_its_output_is_real(path, tmp_path, monkeypatch):
    for library in ("sklearn", "typer", "plotly", "PIL"):
        require(library)
    owner = (path.parent.name,) if path.parent.name in execute.OWNERS else ()
    for library in (*owner, *NEEDS.get(path.stem, ())):
        require(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])  # the checkout, for its `examples`
    if path.name == "README.md":
        warnings.simplefilter("ignore")  # Lightning's hints, which other pages turn off themselves
        execute.call(["demo"])  # what the page installs and runs before
    namespace = {}
    for block in execute.blocks(path):
        if block.framework is None:
            got = execute.run(block, namespace)
            if block.shown is not None:
                same_output(path, got, block.shown)


@pytest.mark.parametrize("block", STANDALONE)
def test_block_of_a_framework_runs(block):
    require(block.framework)
    got = execute.run(block, {})
    if block.shown is not None:
        assert words(got) == words(block.shown)


def test_the_readme_shows_what_the_demonstration_prints():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"/gwa demo\n```\n\n```text\n(.*?)```", text, re.DOTALL)[1]
    (demo,) = [b for b in execute.blocks(DOCS / "command-line.md") if b.commands == ["demo"]]
    assert shown.endswith("wrong.\n")
    assert demo.shown.startswith(shown)


def test_the_snippets_of_the_readme_find_wrong_labels(tmp_path, monkeypatch):
    for library in ("sklearn", "torch"):
        require(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    found = [block for block in execute.blocks(ROOT / "README.md") if block.kind == "python"]
    for block in (found[0], found[-1]):  # PyTorch and scikit-learn
        ids = re.findall(r"\d+", execute.run(block, {}))
        assert len(ids) == 8
        assert sum(number.endswith("0") for number in ids) > 6


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize("page", quotes.PAGES)
def test_a_number_in_a_sentence_is_the_one_that_was_measured(page):
    assert quotes.stale(page) == []


@pytest.mark.parametrize("page", quotes.CHECKED)
def test_each_number_of_a_page_was_measured_or_is_defined(page):
    # Quote it in docs/quotes/pages.py, or say in docs/quotes/definitions.py why nobody measures it.
    assert quotes.loose(page) == []


@pytest.mark.parametrize("page", quotes.DEFINED)
def test_a_page_has_the_numbers_that_are_defined_for_it(page):
    text = list(quotes.passages((ROOT / page).read_text(encoding="utf-8")))
    for pattern in quotes.DEFINED[page]:
        assert any(re.search(pattern, passage) for passage in text), pattern


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The average gains 1.4 points.", "1.4"),
        ("It costs\n12\nms.", "12"),
        ("Peak memory is 3 GB, **0.5 %** of all.", "3"),
        ("It is 8× faster.", "8"),
        ("It is three times as fast, or twice the speed.", "three"),
        ("An average precision of [0.83](labels.md).", "0.83"),
        ("AUROC 0.9 with `beta=1.2`", "0.9"),
        ("- a point: best in 16 of 16 runs", "16 of 16"),
        ("| rule | −2.4 |", "−2.4"),
        ("It takes half the time.", "half the time"),
    ],
)
def test_a_number_without_a_measurement_is_found(text, number):
    assert quotes.untied(text, [], [])[0].startswith(repr(number))
    assert quotes.untied(text, [quotes.plain(text.strip("|- "))], []) == []
    other = text.replace(number, "7.7 of 9")
    assert quotes.untied(other, [quotes.plain(text)], []) != []


@pytest.mark.parametrize(
    "text",
    [
        "Ten classes, 500 samples, Table 5 and epoch 12.",
        "`MaxGWA(warmup=0.1)` and $`\\beta = 1.2`$",
        "```text\naccuracy 0.962\n```\n",
        "<!-- measured: rules -->\n\n| 0.51 (2.42) |\n\n<!-- end -->\n",
        "## 1.4 points\n\n![2.5 %](images/3.5.png){ .half }",
        "A [link](v1.5/page.md#2.0)",
    ],
)
def test_a_number_that_nobody_measures_is_no_quantity(text):
    assert quotes.untied(text, [], []) == []


def test_a_share_of_wrong_labels_is_a_setting_and_a_result_is_none():
    assert quotes.untied("Under 20 and 40 % symmetric errors.", [], quotes.ANYWHERE) == []
    assert quotes.untied("Where 40 % of the labels are wrong.", [], quotes.ANYWHERE) == []
    for text in ("Of these 78 % are wrong.", "It finds 95.4 % of the labels are wrong."):
        assert len(quotes.untied(text, [], quotes.ANYWHERE)) == 1


def test_a_command_prints_the_same_in_a_process_of_its_own(tmp_path, monkeypatch):
    require("typer")
    monkeypatch.chdir(tmp_path)
    targets = np.arange(40) % 2
    latents = np.random.default_rng(0).normal(size=(40, 2)) + np.eye(2)[targets]
    np.savez("features.npz", latents=latents, weight=np.eye(2), targets=targets)
    command = [sys.executable, "-m", "gwa_offline", "analyse", "features.npz"]
    places = {"PYTHONPATH": os.pathsep.join(PLACES)}
    environment = os.environ | execute.TERMINAL | places
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before = dict(os.environ)
    assert execute.call(command[3:]) == execute.ESCAPE.sub("", done.stdout) != ""
    with pytest.raises(RuntimeError, match=r"gwa analyse nothing: gwa: .*nothing"):
        execute.call(["analyse", "nothing"])
    assert dict(os.environ) == before


def test_outputs_are_compared():
    assert words("Keep epoch 15 (0.7).\n a *  1\n b    2\n") == words("Keep epoch 3 (9).\na 4\nb 5")
    assert words("keep 15") != words("kept 15")
    with pytest.raises(AssertionError):
        same_output(DOCS / "concepts" / "x.md", "mean 0.5", "mean 0.4")


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_generated_page_is_up_to_date(name, monkeypatch):
    for library in ("array_api_strict", "ml_dtypes", "pyarrow", "safetensors", "torch"):
        require(library)
    monkeypatch.setattr(sys, "path", sys.path[:])
    pages = script("generate").PAGES
    assert set(pages) == GENERATED
    fresh, committed = pages[name](), (DOCS / name).read_text(encoding="utf-8")
    assert fresh == committed, "run `python docs/generate.py`"


def test_each_table_of_the_experiments_is_on_one_page_of_the_chapter(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from experiments.catalogue import TABLES

    text = "".join(page.read_text(encoding="utf-8") for page in CHAPTER)
    assert sorted(re.findall(r"<!-- measured: (.+?) -->", text)) == sorted(TABLES)


def prose(path):
    """Return the paragraphs and the points of a page: no code, tables, headings or pictures."""
    text = execute.FENCE.sub("", path.read_text(encoding="utf-8"))
    text = re.sub(r"<!--.*?-->|!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"^(?:#|\|).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    found = re.split(r"\n\s*\n|^\s*(?:-|\d+\.) ", text, flags=re.MULTILINE)
    return [" ".join(part.split()) for part in found if part.strip()]


def sentences(path):
    """Return the sentences of a page; a full stop before a figure may be of an abbreviation."""
    end = r"(?<=[.!?])\W*\s(?=\W*[A-Z]|`)"
    return [x for part in prose(path) for x in re.split(end, part)]


def tables(path):
    """Return the tables of a page, rows of cells as they are shown, without the line of dashes."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE):
        plain = re.sub(r"\]\([^)]*\)|\*\*|[\[`]", "", table.replace("\\|", "/"))
        rows = [line.strip("| ").split(" | ") for line in plain.splitlines()]
        found.append([rows[0], *rows[2:]])
    return found


FIRST = [
    ROOT / "README.md",
    *(DOCS / f"{name}.md" for name in ("index", "quickstart", "which-rule", "cookbook", "faq")),
    *(DOCS / f"{name}.md" for name in ("from-early-stopping", "from-cleanlab")),
    *sorted((DOCS / "concepts").glob("*.md")),
]


@pytest.mark.parametrize("path", FIRST, ids=name_of)
def test_sentences_of_the_first_pages_are_short(path):
    assert [x for x in sentences(path) if len(x.split()) > 35] == []


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *FIRST[-8:]], ids=name_of
)
def test_words_are_plain(path):
    odd = re.compile(r"\b(?:stands|anew|of whose|by heart|what it has)\b")
    assert [x for part in prose(path) for x in odd.findall(part)] == []


@pytest.mark.parametrize("path", CHAPTER, ids=name_of)
def test_a_page_of_the_results_is_short_and_fits_a_laptop(path):
    # Tables are not counted.
    assert sum(len(part.split()) for part in prose(path)) < 2500
    assert [x for x in sentences(path) if len(x.split()) > 35] == []
    for head, *rows in tables(path):
        assert len(head) <= 7, head
        # Heads wrap, and so do cells of words; the padding of a cell is three characters wide.
        longest = [
            max(len(line) for cell in column for line in cell.split("<br>"))
            for column in zip(*rows, strict=True)
        ]
        assert sum(min(x, 34) + 3 for x in longest) <= 115, (head, longest)


@pytest.mark.parametrize(
    ("package", "folder"),
    [
        (p, DOCS / "api" / FOLDERS.get(p.__name__, p.__name__.replace(".", "/")))
        for p in [*PACKAGES, *WINGS]
    ],
    ids=[p.__name__ for p in [*PACKAGES, *WINGS]],
)
def test_every_module_has_its_page(package, folder):
    modules = {path.stem for path in Path(package.__file__).parent.glob("[!_]*.py")}
    pages = {path.stem for path in folder.glob("*.md")} - {"index"}
    assert pages == modules
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    overview = (folder / "index.md").read_text(encoding="utf-8")
    for page in pages:
        directive = f"::: {package.__name__}.{page}\n"
        assert (folder / f"{page}.md").read_text(encoding="utf-8").startswith(directive)
        assert f" {(folder / page).relative_to(DOCS).as_posix()}.md\n" in navigation
        assert f"({page}.md)" in overview


def test_one_version_everywhere():
    version = gwa_core.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_command_and_option_is_described():
    require("typer")
    import typer.main

    from gwa_offline.app import cli

    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## gwa (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    found = typer.main.get_command(cli.app).commands
    assert set(sections) == set(found)
    for name, command in found.items():
        options = {option for parameter in command.params for option in parameter.opts}
        for option in options:
            if option.startswith("--") and option != "--help":
                assert option in sections[name], f"gwa {name} {option}"


def anchors(path):
    """Return what a heading of a page can be linked as."""
    text = execute.FENCE.sub("", path.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles]
    return {re.sub(r"[\s-]+", "-", title) for title in plain}


@pytest.mark.parametrize("path", execute.TEXTS, ids=name_of)
def test_links_lead_somewhere(path):
    if path.name in ("backends.md", "bad-input.md"):
        text = re.sub(r"^\|.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    else:
        text = execute.FENCE.sub("", path.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if link.startswith("https://"):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_pictures_are_small():
    pictures = list((DOCS / "images").glob("*"))
    assert pictures
    assert max(picture.stat().st_size for picture in pictures) < 150_000


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for library in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        require(library)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_need_no_network(site):
    remote = re.compile(r"<(?:link|script|img|iframe)[^>]*(?:href|src)=\"?(?:https?:)?//[^>]*>")
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    found = [tag for page in pages for tag in remote.findall(page.read_text(encoding="utf-8"))]
    assert [tag for tag in found if "canonical" not in tag] == []


def test_formulas_are_formulas(site):
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    for page, text in pages.items():
        assert ".. math::" not in text, page
        assert ":math:" not in text, page
        assert "$`" not in text.replace("$</code>", ""), page
    core = Path(gwa_core.__file__).parent.glob("*.py")
    written = sum(path.read_text(encoding="utf-8").count(".. math::") for path in core)
    reference = [text for page, text in pages.items() if page.parent == site / "api"]
    assert sum(text.count('display="block"') for text in reference) == written > 5
    assert not any("\\frac" in text for text in reference)


# What a reader types, and the page that must be among the first three.
SEARCHES = {
    "LLM": "torch/language.html",
    "find wrong labels": "concepts/label-quality.html",
    "early stopping": "from-early-stopping.html",
    "EarlyStopper": "api/stopping.html",
    "validation set": "from-early-stopping.html",
    "cleanlab": "from-cleanlab.html",
    "resume": "cookbook.html",
}


@pytest.mark.parametrize("query", SEARCHES)
def test_search_finds(site, query):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    separator = re.compile(index["config"]["separator"])

    def words_of(text):
        return {word.lower() for word in separator.split(text) if word}

    wanted, ranks = words_of(query), {}
    for entry in index["docs"]:
        # As the search in the browser does: a word of a title counts far more than one of the text.
        page, in_title = entry["location"].partition("#")[0], wanted & words_of(entry["title"])
        ranks[page] = max(ranks.get(page, 0.0), len(in_title) / (1 + len(words_of(entry["title"]))))
    assert ranks[SEARCHES[query]] > 0.0
    first = sorted(ranks, key=ranks.get, reverse=True)
    assert SEARCHES[query] in first[:8], first[:8]


def test_llms_txt_lists_the_pages(site):
    text = (site / "llms.txt").read_text(encoding="utf-8")
    links = re.findall(r"^- \[.+?\]\((.+?)\)", text, re.MULTILINE)
    assert sorted(links) == sorted(
        path.relative_to(site).as_posix()
        for path in site.rglob("*.html")
        if path.name != "404.html"
    )
    assert "(quickstart.html): " in text
