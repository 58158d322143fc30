"""What is carried along of a sample as the page shows it: text, a link, a small picture."""

from __future__ import annotations

import base64
import io
from pathlib import Path, PurePath
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from gwa_offline.analysis.view import significant
from gwa_offline.figures.images import SUFFIXES, Images
from gwa_offline.store import FeaturesError

__all__ = ["Shown", "address_of", "data_uri", "shown"]


class Shown(NamedTuple):
    """One value of a table.

    Parameters
    ----------
    value : str
        To sort by and to download; empty where unknown.
    text : str
        To read.
    address : str or None
        Where a click leads.
    picture : str or None
        A ``data:`` address of a small picture.
    """

    value: str
    text: str
    address: str | None = None
    picture: str | None = None


def shown(value: Any, folder: Path) -> Shown:
    """Return how a value is shown on a page in a folder.

    A web address and the relative path of an image are links; the image is shown where it lies under the
    folder.
    """
    if value is None or value != value:
        return Shown("", "–")
    if isinstance(value, float):
        return Shown(str(value), significant(value))
    text = str(value)
    address = address_of(text)
    return Shown(text, text, address, None if address is None else _picture(text, folder))


def address_of(text: str) -> str | None:
    """Return what a link to a text may be, or None where it is no web address and no path of an image."""
    if not text.isprintable():
        return None
    try:
        found = urlsplit(text)
    except ValueError:
        return None
    if found.scheme in ("http", "https"):
        return text if found.netloc and " " not in text else None
    if PurePath(text).suffix.lower() not in SUFFIXES or text.startswith(("/", "\\")):
        return None
    # With a colon it would be an address of another kind, or a drive.
    return None if ":" in text.split("/")[0] else quote(text)


def _picture(text: str, folder: Path) -> str | None:
    if urlsplit(text).scheme:
        return None
    try:
        around = folder.resolve()
        file = (around / text).resolve()
        # A table of another person must not bring other files of the machine into the page.
        if not (file.is_relative_to(around) and file.is_file()):
            return None
        return data_uri(Images({0: file}), 0)
    except (OSError, FeaturesError):
        return None


def data_uri(images: Images, sample: int) -> str:
    """Return a small picture as an address that holds it."""
    data = io.BytesIO()
    images.thumbnail(sample).save(data, format="PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
