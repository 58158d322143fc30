"""The options of commands whose work may be shared by several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gwa_offline.analysis import analyse
from gwa_offline.analysis.results import Report

__all__ = ["ClusterOptions"]


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where the work is done: here, or by the workers of Dask."""

    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Share the work with so many processes (gwa-core[dask])."),
    ] = None
    scheduler: Annotated[
        str | None,
        typer.Option(help="Give the work to a Dask cluster: tcp://ADDRESS:PORT (gwa-core[dask])."),
    ] = None

    def places(self, paths: Sequence[Path]) -> list[Path]:
        """Return paths that mean the same in the folder of another process."""
        if self.scheduler is None:
            return list(paths)
        return [path.absolute() if isinstance(path, Path) else path for path in paths]

    @contextmanager
    def connect(self) -> Iterator[Callable[[Path | None], Callable[..., Report]]]:
        """Yield what returns the function that analyses, given a folder for the results."""
        if self.workers is None and self.scheduler is None:
            yield lambda _: analyse
            return
        if self.workers is not None and self.scheduler is not None:
            raise ValueError("`--workers` starts a cluster and `--scheduler` names one; drop one")
        try:
            # Nothing else in this package knows what stands on it.
            import gwa_dask
        except ImportError as error:
            raise ImportError(
                f"`--workers` and `--scheduler` need Dask ({error}): pip install 'gwa-core[dask]'"
            ) from error
        with gwa_dask.open_cluster(workers=self.workers, scheduler=self.scheduler) as client:
            folder: Path | None = None

            def analysis(out: Path | None) -> Callable[..., Any]:
                nonlocal folder
                folder = None if out is None else out / "run"
                return partial(gwa_dask.analyse, client=client, folder=folder)

            try:
                yield analysis
            except KeyboardInterrupt:
                what = "the same call goes on from what is done, which --out keeps"
                if folder is None:
                    what = (
                        "nothing is kept; with --out FOLDER a later call goes on from what is done"
                    )
                typer.echo(f"gwa: interrupted; {what}", err=True)
                raise
