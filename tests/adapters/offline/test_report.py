"""The HTML report, opened in a real browser."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters.offline.reports import BEST, NAMES, SICK, UNSCORED, UNSEEN, N, make_report
from adapters.offline.test_curves import COLUMNS, run
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from gwa_core import Selection
from gwa_core.signals import SIGNALS
from gwa_offline.analysis.curves import signal_curves
from gwa_offline.analysis.findings import Decision
from gwa_offline.analysis.view import average_words, pulling, pulling_words
from gwa_offline.app.links import address_of
from gwa_offline.app.report import write_html
from gwa_offline.figures.interactive import BARS
from gwa_offline.store import FeaturesError

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
IMAGES = np.random.default_rng(0).integers(0, 255, (N, 12, 12, 3), dtype=np.uint8)
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("GWA_REQUIRE_ALL") == "1":
            pytest.fail("chromium is not installed")
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_html(make_report(), tmp_path_factory.mktemp("report") / "r.html", images=IMAGES)


@contextmanager
def opening(browser: Browser) -> Iterator[Open]:
    """Open pages; at the end, nothing may have gone wrong in them nor left the file."""
    trouble: list[str] = []
    contexts = []

    def stop(route: Any) -> None:
        trouble.append(f"request to {route.request.url}")
        route.abort()

    def open_page(path: Path, **options: Any) -> Page:
        options.setdefault("viewport", {"width": 1280, "height": 800})
        contexts.append(browser.new_context(accept_downloads=True, **options))
        page = contexts[-1].new_page()
        page.route(re.compile(r"^(?!file:|data:|blob:)"), stop)
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with opening(browser) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def page(browser: Browser, html: Path) -> Iterator[Page]:
    """One page for the tests that leave it as it was."""
    with opening(browser) as open_page:
        yield open_page(html)


def trace(page: Page, name: str, figure: str = "decision") -> dict[str, Any]:
    return page.evaluate(
        "([figure, name]) => document.getElementById('plot-' + figure).data"
        ".find(trace => trace.name === name)",
        [figure, name],
    )


def column(page: Page, key: str) -> list[str]:
    """The values of a column of the table, in the rows that are visible; unfolds the table."""
    return page.evaluate(
        """key => {
            const table = document.getElementById('suspicious');
            if (table.closest('details')) table.closest('details').open = true;
            const index = [...table.tHead.rows[0].cells].findIndex(head => head.dataset.key === key);
            return [...table.tBodies[0].rows].filter(row => row.offsetParent)
                .map(row => row.cells[index].dataset.value);
        }""",
        key,
    )


def lowest() -> list[int]:
    quality = make_report().label_quality
    return [int(i) for i in np.argsort(quality, kind="stable") if i != UNSEEN][:200]


def test_the_first_screen_has_both_answers_and_the_curve_that_decided(page: Page) -> None:
    report = make_report()
    weights, labels = page.locator(".answer").all()
    assert weights.locator(".big").inner_text() == "Keep the average of the run"
    near = f"{BEST - 2} to {BEST + 2} are about as good"
    assert weights.locator(".or").inner_text() == f"or epoch {BEST}; {near}."
    why = weights.locator(".why").inner_text()
    assert f"Epoch {BEST}: {report.selection.reason}, " in why
    assert "(one standard error)" in why
    assert labels.locator(".big").inner_text() == pulling_words(report)
    places = []
    for answer, section in ((weights, "decided"), (labels, "labels")):
        assert answer.locator(".big a").get_attribute("href") == f"#{section}"
        places.append(page.locator(f"section:has(> #{section}, > .head #{section})").bounding_box())
    # Labels come before the distributions, and both after the curve.
    curve, list_, distribution = (
        box["y"] for box in [*places, page.locator("#distribution").bounding_box()]
    )
    assert curve < list_ < distribution
    plot = page.locator("#plot-decision").bounding_box()
    assert plot["y"] + 0.8 * plot["height"] < 800


def test_the_curve_that_decided_shows_what_the_rule_saw(page: Page) -> None:
    report = make_report()
    assert page.locator("main").get_attribute("data-best-epoch") == str(BEST)
    assert page.locator("#decided").inner_text() == "The curve that decided: GWA"
    star, near = trace(page, "best epoch"), trace(page, "about as good")
    values = [record.summary.gwa for record in report.epochs]
    assert (star["x"], star["y"]) == ([BEST], [values[BEST]])
    others = [BEST - 2, BEST - 1, BEST + 1, BEST + 2]
    assert (near["x"], near["y"]) == (others, [values[i] for i in others])
    band = trace(page, "±2 standard errors")
    errors = [record.summary.gwa_standard_error for record in report.epochs]
    heights = [y for x, y in zip(band["x"], band["y"], strict=True) if x == BEST]
    assert np.ptp(heights) == pytest.approx(4 * errors[BEST])
    (shape,) = page.evaluate(
        "document.getElementById('plot-decision').layout.shapes.filter(shape => shape.type === 'rect')"
    )
    assert (shape["x0"], shape["x1"], shape["label"]["text"]) == (0, 1.5, "warm-up")
    assert report.messages[0] in page.locator(".note").first.inner_text()


def test_unhealthy_epochs_are_crosses_outside_the_line(page: Page) -> None:
    cross = trace(page, "unhealthy epoch", "curve")
    assert (cross["x"], cross["marker"]["symbol"]) == ([SICK], "x")
    low, high = page.evaluate("document.getElementById('plot-curve').layout.yaxis.range")
    assert low < cross["y"][0] < high
    for figure in ("curve", "decision"):
        line = trace(page, "GWA", figure)["y"]
        assert [epoch for epoch, value in enumerate(line) if value is None] == [SICK]


def test_a_rule_on_a_metric_has_no_near_ties(open_page: Open, tmp_path: Path) -> None:
    unknown = np.full(20, np.nan)
    values = np.array([record.metrics["<b>loss</b>"] for record in make_report().epochs])
    seen = Decision(signal="<b>loss</b>", values=values, standard_errors=unknown, tied=values < 0)
    report = make_report(decision=seen, rule="BestMetric(metric='<b>loss</b>')")
    page = open_page(write_html(report, tmp_path / "r.html"))
    assert page.locator(".answer .or").first.inner_text() == f"or epoch {BEST}."
    assert page.locator("#decided").inner_text() == "The curve that decided: <b>loss</b>"
    assert page.locator("#plot-decision .ytitle").text_content() == "<b>loss</b>"
    caption = page.locator("figure:has(#plot-decision) figcaption").inner_text()
    assert caption.startswith("The rule reads the column <b>loss</b> of the run.")
    assert trace(page, "about as good") is None
    assert trace(page, "±2 standard errors") is None
    # It is not compared with itself.
    assert page.locator("#metric option").all_inner_texts() == ["test_accuracy", "nothing"]


def test_where_no_epoch_is_as_good_there_are_no_dots(open_page: Open, tmp_path: Path) -> None:
    report = make_report()
    alone = replace(report.decision, tied=np.arange(20) == BEST)
    page = open_page(write_html(make_report(decision=alone), tmp_path / "r.html"))
    words = page.locator(".answer .or").first.inner_text()
    assert words == f"or epoch {BEST}; no other epoch is within its error."
    assert "Dots:" not in page.locator("figure:has(#plot-decision) figcaption").inner_text()
    page = open_page(write_html(report, tmp_path / "tied.html"))
    assert "Dots:" in page.locator("figure:has(#plot-decision) figcaption").inner_text()


def test_the_metric_of_the_run_is_beside_the_answer(open_page: Open, tmp_path: Path) -> None:
    records = make_report().epochs
    # A signal comes first in the run, and is not what a reader wants to see first.
    records = tuple(replace(x, metrics={"margin": 1.0, **x.metrics}) for x in records)
    report = make_report(epochs=records)
    page = open_page(write_html(report, tmp_path / "r.html"))
    assert page.locator("#metric").input_value() == "test_accuracy"
    here = report.epochs[BEST].metrics["test_accuracy"]
    words = f"test_accuracy is {here:.4f} there, and 0.4000 to 0.8500 in the run."
    assert page.locator(".answer .why").first.inner_text().endswith(words)
    signals = tuple(replace(x, metrics={"margin": 1.0}) for x in records)
    page = open_page(write_html(make_report(epochs=signals), tmp_path / "signals.html"))
    assert page.locator("#metric").input_value() == ""
    assert trace(page, "margin")["visible"] is False
    bare = tuple(replace(x, metrics={}) for x in records)
    page = open_page(write_html(make_report(epochs=bare), tmp_path / "bare.html"))
    assert "in the run" not in page.locator(".answer .why").first.inner_text()


def test_few_epochs_have_a_tick_each_and_whole_bars(open_page: Open, tmp_path: Path) -> None:
    page = open_page(write_html(make_report(4), tmp_path / "r.html"))
    ticks = page.locator("#plot-decision .xtick text, #plot-decision .xy3 ~ .xtick text")
    layout = page.evaluate("document.getElementById('plot-decision').layout")
    assert layout["xaxis"]["tickvals"] == [0, 1, 2, 3]
    assert layout["xaxis"]["range"] == [-0.5, 3.5]
    assert {"0", "1", "2", "3"} <= set(ticks.all_text_contents())
    assert layout["yaxis3"]["ticktext"][0] == "0 %"
    assert layout["yaxis3"]["tickvals"][1] <= max(
        trace(page, "share in the average of the weights")["y"]
    )


def test_without_an_average_the_epoch_is_the_answer(open_page: Open, tmp_path: Path) -> None:
    report = make_report(average_shares=np.zeros(20))
    page = open_page(write_html(report, tmp_path / "r.html"))
    assert page.locator(".big").first.inner_text() == f"Keep epoch {BEST}"
    words = page.locator(".answer .or").first.inner_text()
    assert words == f"{BEST - 2} to {BEST + 2} are about as good."
    assert trace(page, "share in the average of the weights") is None


def test_shares_in_the_average_are_bars_below_the_curve(page: Page) -> None:
    report = make_report()
    bars = trace(page, "share in the average of the weights")
    assert bars["y"] == pytest.approx(100 * report.average_shares)
    layout = page.evaluate("document.getElementById('plot-decision').layout")
    assert layout["yaxis3"]["domain"][1] < layout["yaxis"]["domain"][0]
    assert page.locator("#plot-decision .y3title").text_content() == "share"
    words = average_words(report)
    assert words is not None
    assert page.locator("#decided").locator("xpath=../..").get_by_text(words).count() == 1
    assert "Bars: the share" in page.locator("figure:has(#plot-decision) figcaption").inner_text()


def test_signals_stand_beside_gwa_and_the_metric(open_page: Open, tmp_path: Path) -> None:
    report = run(COLUMNS)
    page = open_page(write_html(report, tmp_path / "r.html", metric="test_loss", mode="min"))
    found = signal_curves(report, metric="test_loss", mode="min")
    for curve in found.signals:
        figure = f"signal-{curve.name}"
        assert trace(page, curve.name, figure)["y"] == pytest.approx(curve.values.tolist())
        assert trace(page, "test_loss", figure)["line"]["dash"] == "dot"
        caption = page.locator(f"figure:has(#plot-{figure}) figcaption").inner_text()
        known = SIGNALS.get(curve.name)
        source = "" if known is None else f". From {known.reference}."
        assert caption == f"best epoch {curve.best_index}, {curve.correlations}{source}"
    assert page.locator("#metric").input_value() == "test_loss"
    assert page.locator("nav a[href='#signals']").count() == 1
    boxes = [box.bounding_box() for box in page.locator(".three > div").all()]
    assert len({round(box["x"]) for box in boxes}) == 3
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function("() => document.documentElement.scrollWidth <= 390")
    with pytest.raises(ValueError, match="`metric` must be one of"):
        write_html(report, tmp_path / "r.html", metric="acc")


def test_metric_is_chosen_by_name(page: Page) -> None:
    assert trace(page, "test_accuracy")["visible"] is True
    page.locator("#metric").select_option("<b>loss</b>")
    assert trace(page, "test_accuracy")["visible"] is False
    assert page.locator("#plot-decision .y2title").text_content() == "<b>loss</b>"
    page.locator("#metric").select_option("nothing")
    assert page.locator("#plot-decision .y2title").count() == 0
    page.locator("#metric").select_option("test_accuracy")


def test_distribution_scales_each_epoch_and_shows_shares(page: Page) -> None:
    report = make_report()
    heat = page.evaluate("document.getElementById('plot-distribution').data[0]")
    assert np.max(heat["z"], axis=0) == pytest.approx(np.ones(len(report.epochs)))
    assert np.sum(heat["customdata"], axis=0) == pytest.approx(np.full(len(report.epochs), 100.0))


def test_sorting(open_page: Open, html: Path) -> None:
    page = open_page(html)
    assert column(page, "id")[0] == str(UNSCORED)
    for key in ("id", "label_quality"):  # as numbers: 9 before 10
        head = page.locator(f"th[data-key={key}]")
        values = sorted(map(float, column(page, key)))
        head.locator("button").click()
        assert list(map(float, column(page, key))) == values
        assert head.get_attribute("aria-sort") == "ascending"
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert list(map(float, column(page, key))) == values[::-1]
        assert head.get_attribute("aria-sort") == "descending"
        assert page.locator("th[data-key=rank]").get_attribute("aria-sort") == "none"
    for _ in range(2):  # what is unknown comes last both ways
        page.locator("th[data-key=alignment] button").click()
        assert column(page, "id")[-1] == str(UNSCORED)


def test_filters(open_page: Open, html: Path) -> None:
    page, report = open_page(html), make_report()
    assert column(page, "id") == [str(i) for i in lowest()]
    page.locator("#disagree").check()
    wrong = [i for i in lowest() if report.targets[i] != report.predictions[i]]
    assert column(page, "id") == [str(i) for i in wrong]
    page.locator("#filter").fill("CAT")
    cats = [i for i in wrong if 0 in (report.targets[i], report.predictions[i])]
    assert 0 < len(cats) < len(wrong)
    assert column(page, "id") == [str(i) for i in cats]
    assert page.locator("#count").inner_text() == f"{len(cats)} of 200"
    page.locator("#filter").fill("nobody")
    assert page.locator("#count").inner_text() == "none of the 200 listed"


def test_download_holds_the_rows_shown(open_page: Open, html: Path, tmp_path: Path) -> None:
    page, report = open_page(html), make_report()
    page.locator("details:has(#suspicious) > summary").click()
    page.locator("th[data-key=id] button").click()
    page.locator("#disagree").check()
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "demo_run-suspicious-labels.csv"
    download.value.save_as(tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wrong = [i for i in lowest() if report.targets[i] != report.predictions[i]]
    assert [int(row["id"]) for row in rows] == sorted(wrong)
    for row in rows:
        i = int(row["id"])
        assert int(row["rank"]) == lowest().index(i) + 1
        assert float(row["label_quality"]) == report.label_quality[i]
        assert row["alignment"] == "" or np.float32(row["alignment"]) == report.scores[i]
        # No spreadsheet may run a class name as a formula.
        assert row["given_label"].removeprefix("'") == NAMES[report.targets[i]]
        assert not row["given_label"].startswith("=")


HOSTILE = (
    "javascript:alert(1)",
    "JavaScript:alert(1)//x.png",
    "data:text/html,<script>alert(1)</script>",
    "//example.org/x.png",
    "\\\\example.org\\x.png",
    "/etc/x.png",
    "C:/x.png",
    "file:///etc/x.png",
    "vbscript:x.png",
    "http:x.png",
    "https://",
    "http://[/x",
    "https://example.org/\njavascript:alert(1)",
    "\tjavascript:alert(1)//x.png",
    '"><script>alert(1)</script>',
)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_address_is_no_link(text: str) -> None:
    assert address_of(text) is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://example.org/a?b=1&c=2#d", "https://example.org/a?b=1&c=2#d"),
        ("HTTP://example.org", "HTTP://example.org"),
        ("img/1.png", "img/1.png"),
        ("../a b/50%#1?.JPEG", "../a%20b/50%25%231%3F.JPEG"),
        (" javascript.png", "%20javascript.png"),
        ("a/b:c.png", "a/b%3Ac.png"),
        ("x.pdf", None),
        ("cat", None),
    ],
)
def test_addresses_and_paths_of_images_are_links(text: str, address: str | None) -> None:
    assert address_of(text) == address


def test_what_is_kept_is_shown_with_links_and_pictures(open_page: Open, tmp_path: Path) -> None:
    first, second, third = lowest()[:3]
    values = np.full(N, None, object)
    values[: len(HOSTILE)] = HOSTILE
    values[[first, second, third]] = ["img/a b.png", "https://example.org/?a=1&b=<2>", "../x.png"]
    places = tmp_path / "out" / "img"
    places.mkdir(parents=True)
    for file in (places / "a b.png", tmp_path / "x.png"):  # the second is outside of the folder
        Image.fromarray(IMAGES[0]).save(file)
    width = np.arange(N) * 10
    report = make_report(kept={"<b>place</b>, etc": values, "width": width})
    page = open_page(write_html(report, tmp_path / "out" / "r.html"))
    assert column(page, "width") == [str(10 * i) for i in lowest()]
    assert column(page, "<b>place</b>, etc")[:3] == list(values[[first, second, third]])
    links = page.locator("#suspicious td a")
    assert links.evaluate_all("links => links.map(a => a.getAttribute('href'))") == [
        "img/a%20b.png", "https://example.org/?a=1&b=<2>", "../x.png"
    ]  # fmt: skip
    pictures = page.locator("#suspicious td a img")
    assert pictures.count() == 1
    assert pictures.evaluate("image => [image.naturalWidth, image.clientWidth]") == [12, 44]
    assert links.first.evaluate("a => new URL(a.href).protocol") == "file:"
    head = page.locator("th[data-key=width] button")
    head.click()
    head.click()
    assert column(page, "width") == [str(10 * i) for i in sorted(lowest(), reverse=True)]
    page.locator("#filter").fill("EXAMPLE.org/?")
    assert column(page, "id") == [str(second)]
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["<b>place</b>, etc"], row["width"]) == (values[second], str(10 * second))
    assert row["given_label"]
    assert row["predicted_label"]


def test_names_of_rows_are_beside_the_images(html: Path, tmp_path: Path) -> None:
    assert 'class="id" title=' not in html.read_text(encoding="utf-8")
    names = np.array([f"<{i}>.png" for i in range(N)], object)
    page = write_html(make_report(kept={"name": names}), tmp_path / "r.html", images=IMAGES)
    assert 'class="id" title="&lt;' in page.read_text(encoding="utf-8")


def test_colours_follow_the_scheme_and_print_is_light(open_page: Open, html: Path) -> None:
    page = open_page(html, color_scheme="light")

    def colours() -> list[str]:
        return page.evaluate(
            """() => {
                const [curve, bars] = ['curve', 'classes'].map(
                    name => document.getElementById('plot-' + name));
                return [curve.layout.font.color, bars.data[0].marker.color,
                    getComputedStyle(document.body).backgroundColor];
            }"""
        )

    light = colours()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "old => document.getElementById('plot-curve').layout.font.color !== old", arg=light[0]
    )
    dark = colours()
    assert all(a != b for a, b in zip(light, dark, strict=True))
    variables = "name => getComputedStyle(document.documentElement).getPropertyValue(name)"
    assert dark[0] == page.evaluate(variables, "--text")
    assert trace(page, "GWA")["line"]["color"] == page.evaluate(variables, "--gwa")
    # Paper is light, and the screen dark again afterwards.
    page.evaluate(
        """() => addEventListener('beforeprint', () => {
            window.printed = document.getElementById('plot-curve').layout.font.color;
        })"""
    )
    page.pdf()
    assert page.evaluate("window.printed") == light[0]
    assert colours() == dark


def test_classes_come_lowest_mean_first(page: Page) -> None:
    report = make_report()
    mean, gwa = page.evaluate("document.getElementById('plot-classes').data")
    order = np.argsort(report.class_mean[BEST])
    assert mean["x"] == report.class_mean[BEST][order].tolist()
    unknown = np.isnan(report.class_gwa[BEST][order]).tolist()
    assert [value is None for value in gwa["x"]] == unknown
    assert any(unknown)


def test_no_colour_name_is_left_over(page: Page) -> None:
    left = page.evaluate(
        """[...document.querySelectorAll('.plot')].flatMap(
            plot => JSON.stringify([plot.data, plot.layout]).match(/"var\\(--\\w*\\)"/g) ?? [])"""
    )
    assert left == []


def test_phone_has_no_sideways_scroll(open_page: Open, html: Path) -> None:
    page = open_page(html, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    # A finger that moves over a chart must scroll the page.
    assert page.evaluate("document.getElementById('plot-curve').layout.dragmode") is False


def test_class_names_are_text(page: Page) -> None:
    headings = page.locator(".class h3").all_text_contents()
    assert sorted(text.split(" (")[0] for text in headings) == sorted(
        name.split(" (")[0] for name in NAMES
    )
    rows = page.locator("#class-table tbody th").all_text_contents()
    assert sorted(rows) == sorted(NAMES)
    ticks = page.locator("#plot-classes .ytick text").all_text_contents()
    assert sorted(ticks) == sorted(n if len(n) <= 18 else n[:17] + "…" for n in NAMES)


def test_samples_have_pictures_with_words(page: Page) -> None:
    report = make_report()
    images = page.locator("img")
    assert images.count() == 200 + 4 * 16
    assert page.evaluate("[...document.images].every(image => image.naturalWidth === 12)")
    cats = np.flatnonzero((report.targets == 0) & np.isfinite(report.scores))
    group = page.locator(".class", has=page.locator("h3", has_text="cat"))
    least = group.locator("ul").first.locator(".id").all_text_contents()
    assert least == [str(i) for i in cats[np.argsort(report.scores[cats])][:8]]
    assert group.locator("img").first.get_attribute("alt") == f"Sample {least[0]}, labelled cat"


def test_the_contact_sheet_is_the_list(open_page: Open, html: Path) -> None:
    page, report = open_page(html), make_report()

    def sheet() -> list[str]:
        return page.evaluate(
            """[...document.querySelectorAll('#sheet li')].filter(item => item.offsetParent)
                .map(item => item.querySelector('.id').textContent)"""
        )

    assert sheet() == [str(i) for i in lowest()]
    first = lowest()[0]
    given, said = (NAMES[labels[first]] for labels in (report.targets, report.predictions))
    words = page.locator("#sheet li").first.locator("span").all_text_contents()
    assert words == [str(first), f"label {given}", f"model {said}"]
    assert page.locator("#sheet li").first.locator("img").is_visible()
    # The table is folded, and both are filtered and sorted together.
    assert not page.locator("#suspicious").is_visible()
    page.locator("#disagree").check()
    assert sheet() == [str(i) for i in lowest() if report.targets[i] != report.predictions[i]]
    page.locator("details:has(#suspicious) > summary").click()
    page.locator("th[data-key=id] button").click()
    assert sheet() == column(page, "id")
    assert list(map(int, sheet())) == sorted(map(int, sheet()))


def test_a_thousand_classes_are_a_search_box(open_page: Open, tmp_path: Path) -> None:
    count = 1000
    names = tuple(f"<i>kind</i> {number}" for number in range(count))
    mean = np.tile(np.arange(count) / count, (20, 1))
    mean[:, 7] = np.nan
    targets = np.arange(N) % 4
    report = make_report(
        num_classes=count, class_names=names, class_mean=mean, class_gwa=mean, targets=targets
    )
    path = write_html(report, tmp_path / "r.html")
    page = open_page(path)
    assert page.locator(".strip, #sheet").count() == 0
    assert page.locator("#plot-classes .ytick").count() == BARS
    table = page.locator("#class-table")
    assert not table.is_visible()
    page.locator("details:has(#class-table) > summary").click()
    assert table.locator("tbody tr").count() == 100
    assert page.locator("#class-count").inner_text() == "100 of 999"
    first = table.locator("tbody tr").first.locator("th, td").all_inner_texts()
    low = pulling(report)[targets == 0]
    assert first == [names[0], str(len(low)), str(low.sum()), "0.000", "0.000"]
    page.locator("#find-class").fill("KIND</I> 99")
    found = ["99", *(str(n) for n in range(990, 1000))]
    assert table.locator("th[scope=row]").all_inner_texts() == [f"<i>kind</i> {n}" for n in found]
    assert page.locator("#class-count").inner_text() == "11 of 11"
    page.locator("#find-class").fill("nobody")
    assert page.locator("#class-count").inner_text() == "no such class"
    page.locator("#find-class").fill("")
    assert table.locator("tbody tr").first.locator("th, td").all_inner_texts() == first
    # All of what is not folded is a few screens.
    page.locator("details:has(#class-table) > summary").click()
    assert page.evaluate("document.documentElement.scrollHeight") < 6500


def test_nothing_covers_a_curve(open_page: Open, html: Path) -> None:
    for options in ({}, {"viewport": {"width": 390, "height": 800}, "has_touch": True}):
        page = open_page(html, **options)
        page.locator("#plot-decision").hover()
        assert page.locator(".modebar, .modebar-container *").count() == 0
        boxes = page.evaluate(
            """[...document.querySelectorAll('.plot')].filter(plot => plot.querySelector('.legend'))
                .map(plot => [plot.querySelector('.legend'), plot.querySelector('.nsewdrag')]
                    .map(part => part.getBoundingClientRect().toJSON()))"""
        )
        assert len(boxes) >= 3
        for legend, curve in boxes:
            assert legend["bottom"] <= curve["top"] + 1
            assert legend["right"] <= page.viewport_size["width"]


def test_on_paper_it_fits_and_is_short(open_page: Open, html: Path) -> None:
    page = open_page(html, viewport={"width": 688, "height": 1000})
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("() => document.documentElement.scrollWidth <= 688")
    assert page.locator("#sheet li:visible").count() == 70
    assert page.get_by_text("These are the first 70. The page has 200.").is_visible()
    for hidden in (".controls", "nav", "details", "#metric", "noscript"):
        assert page.locator(f"{hidden}:visible").count() == 0
    boxes = page.locator("figure").evaluate_all(
        "figures => figures.filter(f => f.offsetParent).map(f => f.getBoundingClientRect().right)"
    )
    assert max(boxes) <= 688
    pages = page.pdf(format="A4").count(b"/Type /Page\n")
    assert 0 < pages <= 8


CONTRAST = """() => {
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const luminance = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const color = parse(getComputedStyle(at).backgroundColor);
            if (color.length === 3 || color[3] === 1) return color;
        }
        return [255, 255, 255];
    };
    const poor = [];
    for (const node of document.querySelectorAll('main *')) {
        const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
        if (!own || !node.getClientRects().length || getComputedStyle(node).visibility === 'hidden') continue;
        const style = getComputedStyle(node);
        const color = parse(node.closest('svg') ? style.fill : style.color);
        const [a, b] = [luminance(color), luminance(behind(node))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) poor.push([ratio.toFixed(2), node.tagName, node.textContent.slice(0, 40)]);
    }
    return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(open_page: Open, html: Path, scheme: Any) -> None:
    page = open_page(html, color_scheme=scheme)
    page.locator("details").evaluate_all("all => all.forEach(details => { details.open = true; })")
    assert page.evaluate(CONTRAST) == []
    # The check itself finds what is pale.
    page.evaluate("document.getElementById('labels').style.color = 'rgb(128, 128, 128)'")
    assert len(page.evaluate(CONTRAST)) == 1


def test_headings_names_and_landmarks(page: Page) -> None:
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    ids = page.locator("[id]").evaluate_all("all => all.map(node => node.id)")
    assert len(ids) == len(set(ids))
    for links in ("nav a", ".answer a"):
        targets = page.locator(links).evaluate_all("all => all.map(a => a.hash.slice(1))")
        assert targets
        assert set(targets) <= set(ids)
    nameless = page.evaluate(
        """[...document.querySelectorAll('main input, main select, main button, main summary, main a')]
            .filter(node => !(node.textContent.trim() || node.labels?.[0]?.textContent.trim()
                || node.getAttribute('aria-label'))).map(node => node.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("img:not([alt])").count() == 0
    assert (
        page.locator("[role=img]:not([aria-label]), [role=region]:not([aria-label])").count() == 0
    )
    sections = page.locator("section").evaluate_all(
        "all => all.map(s => document.getElementById(s.getAttribute('aria-labelledby'))?.tagName)"
    )
    assert set(sections) == {"H2"}
    assert page.locator("html").get_attribute("lang") == "en"


def test_everything_works_from_the_keyboard(open_page: Open, html: Path) -> None:
    page = open_page(html)
    stops: list[dict[str, Any]] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => {
                const node = document.activeElement;
                return {what: node.id || node.hash || node.getAttribute('aria-label') || node.textContent.trim(),
                    outline: getComputedStyle(node).outlineStyle, inside: document.body !== node};
            }"""
        )
        if not stop["inside"]:
            break
        stops.append(stop)
    names = [stop["what"] for stop in stops]
    assert names[:2] == ["#decided", "#labels"]
    assert {"metric", "filter", "disagree", "download", "Images of suspicious labels"} <= set(names)
    assert all(stop["outline"] != "none" for stop in stops)
    summary = page.locator("details:has(#suspicious) > summary")
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("#suspicious").is_visible()
    page.locator(".answer a").nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.getElementById('labels').getBoundingClientRect().top < 100"
    )


def test_one_epoch(open_page: Open, tmp_path: Path) -> None:
    page = open_page(write_html(make_report(1), tmp_path / "one.html"))
    assert page.locator(".big").first.inner_text() == "One epoch: nothing to choose"
    assert "GWA at epoch 0 is " in page.locator(".answer").first.inner_text()
    assert page.locator("nav a[href='#decided']").count() == 0
    plots = page.locator(".plot").evaluate_all("plots => plots.map(plot => plot.id)")
    assert plots == ["plot-classes", "plot-histogram"]
    words = page.locator("main").inner_text().lower().split()
    assert not {"nan", "none", "undefined"} & set(words)


def test_no_best_epoch_and_nothing_known(open_page: Open, tmp_path: Path) -> None:
    unknown = np.full((20, 4), np.nan)
    report = make_report(
        best_index=None, targets=None, predictions=None, class_gwa=unknown, class_mean=unknown,
        selection=Selection(None, float("nan"), "no epoch is healthy"),
    )  # fmt: skip
    page = open_page(write_html(report, tmp_path / "r.html"))
    assert page.locator(".big").first.inner_text() == "No epoch can be recommended"
    assert page.locator(".why").first.inner_text() == "MaxGWA: no epoch is healthy."
    assert page.locator("main").get_attribute("data-best-epoch") == ""
    assert trace(page, "best epoch") is None
    assert page.locator("#labels").inner_text() == "Suspicious samples"
    assert page.locator(".class").count() == 0


def test_a_run_without_scores_says_so(open_page: Open, tmp_path: Path) -> None:
    report = make_report(label_quality=np.full(N, np.nan), scores=np.full(N, np.nan, np.float32))
    page = open_page(write_html(report, tmp_path / "r.html"))
    assert page.locator(".big").nth(1).inner_text() == "No sample has a score"
    assert page.locator("#labels, #suspicious, nav a[href='#labels']").count() == 0


def test_same_report_same_bytes_and_no_litter(tmp_path: Path) -> None:
    first = write_html(make_report(), tmp_path / "new" / "a.html", images=IMAGES)
    second = write_html(make_report(), tmp_path / "new" / "b.html", images=IMAGES)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in first.parent.iterdir()) == ["a.html", "b.html"]


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")
    with pytest.raises(FeaturesError, match="`images` must be 300"):
        write_html(make_report(), path, images=IMAGES[:5])
    with pytest.raises(ValueError, match="at least one epoch"):
        write_html(make_report(epochs=()), path)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]
