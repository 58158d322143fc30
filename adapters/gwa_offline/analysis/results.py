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

    def to_frame(self) -> Any:
        """Return the samples as a data frame of pandas, one row a sample.

        Returns
        -------
        pandas.DataFrame
            With the columns ``id``, ``label`` and ``prediction`` (categories of class names, where they
            are known), ``alignment`` and ``label_quality``, and those that were kept.

        Raises
        ------
        ImportError
            If pandas is not installed; no other method needs it.

        Notes
        -----
        Cost: O(N).

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> from gwa_offline import analyse
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = folder.name + "/features.npz"
        >>> arrays = {"latents": np.eye(3), "weight": np.eye(2, 3), "targets": ["cat", "dog", "dog"]}
        >>> np.savez(file, **arrays, path=["a.png", "b.png", "c.png"])
        >>> frame = analyse(file, keep=["path"]).to_frame()
        >>> frame[["id", "label", "prediction", "path"]].values.tolist()
        [[0, 'cat', 'cat', 'a.png'], [1, 'dog', 'dog', 'b.png'], [2, 'dog', 'cat', 'c.png']]
        >>> folder.cleanup()
        """
        return export.to_frame(self)

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
