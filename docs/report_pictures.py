"""Take the pictures of the page on the report: `python docs/report_pictures.py`.

They show the report of the demonstration of seed 0, in Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "adapters")]

from gwa_offline.app.demo import run_demo  # noqa: E402

IMAGES = ROOT / "docs" / "images"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]


def shoot(page: Path) -> None:
    """Take the first screen, and the contact sheet."""
    chromium = shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1160, "height": 800})
        tab.goto(page.as_uri())
        tab.wait_for_selector("#plot-decision .legend")
        save(tab, "report.png")
        sheet = tab.locator("section:has(#labels)")
        sheet.scroll_into_view_if_needed()
        save(sheet, "report-labels.png")
        browser.close()


def save(what: Any, name: str) -> None:
    """Save a picture in few colours, so that the page stays small."""
    path = IMAGES / name
    what.screenshot(path=path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(f"wrote {path.relative_to(ROOT)}")


def main() -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        result = run_demo(folder)
        page = result.report.to_html(Path(folder) / "report.html", images=result.images)
        shoot(page)


if __name__ == "__main__":
    main()
