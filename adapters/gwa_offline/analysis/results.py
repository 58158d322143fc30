"""The report of an analysis: its findings, and the ways to write them down."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from gwa_offline.analysis import export
from gwa_offline.analysis.findings import EpochRecord, Findings

__all__ = ["EpochRecord", "Report"]


class Report(Findings):
    """What `analyse` returns: the fields of `Findings`, and methods that write them to files.

    The figures and the page are imported where they are asked for, so that an analysis needs
    NumPy only.
    """

    def to_json(self) -> str:
        """Return the whole report as JSON text, nan as null."""
        return export.to_json(self)

    def to_csv(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ``epochs.csv`` and ``samples.csv`` into a folder and return their paths."""
        return export.write_csv(self, folder)

    def to_parquet(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ``epochs.parquet`` and ``samples.parquet`` (``gwa-core[formats]``)."""
        return export.write_parquet(self, folder)

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        images: Any = None,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
    ) -> Path:
        """Write one self-contained HTML file (``gwa-core[report]``); see `write_html`."""
        from gwa_offline.app.report import write_html

        return write_html(self, path, images=images, metric=metric, mode=mode)

    def to_figures(
        self,
        folder: str | os.PathLike[str],
        *,
        images: Any = None,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
        format: Literal["png", "svg"] = "png",  # noqa: A002  (Matplotlib's word)
    ) -> list[Path]:
        """Write one picture a figure (``gwa-core[report]``); see `save_figures`."""
        from gwa_offline.figures.displays import save_figures

        return save_figures(self, folder, images=images, metric=metric, mode=mode, format=format)
