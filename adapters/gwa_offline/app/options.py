"""The options that commands share, each defined once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from gwa_core import (
    BestMetric,
    DipThenMax,
    GradientDisparity,
    LabelWave,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    Rule,
)
from gwa_offline.files.errors import FeaturesError
from gwa_offline.files.given import read_given, read_head, read_names
from gwa_offline.files.urls import Place, is_url, place_of
from gwa_offline.readers import Source, open_features

__all__ = [
    "FileArgument",
    "FileOption",
    "OnePath",
    "Paths",
    "RuleName",
    "RuleOptions",
    "SourceOptions",
    "expand",
]


def _place(text: str) -> Path:
    if not text:
        raise FileNotFoundError("a path is empty; is a variable of the shell unset?")
    return Path(text)


def _source(text: str) -> Place:
    if not is_url(text):
        return _place(text)
    try:
        return place_of(text)
    except FeaturesError as error:  # Typer shows a ValueError as a wrong call
        raise OSError(str(error)) from error


_FILE: dict[str, Any] = {"parser": _place, "metavar": "PATH"}
_SOURCE: dict[str, Any] = {
    "parser": _source,
    "metavar": "PATH",
    "help": "Run folder, .npz, .safetensors, .parquet, .arrow, .pt, .npy folder, snapshots, a pattern "
    "in quotes for the parts of one epoch, or an address such as s3://bucket/epoch_3.",
}
# A path, or what stands for one behind an address.
Paths = Annotated[list[Path], typer.Argument(**_SOURCE)]
OnePath = Annotated[Path, typer.Argument(**_SOURCE)]


def FileOption(text: str) -> Any:  # noqa: N802  (written as typer.Option is)
    """Return a `typer.Option` whose value is a path and may not be empty."""
    return typer.Option(help=text, **_FILE)


def FileArgument(text: str) -> Any:  # noqa: N802
    """Return a `typer.Argument` whose value is a path and may not be empty."""
    return typer.Argument(help=text, **_FILE)


class RuleName(StrEnum):
    """Names of the stopping rules on the command line."""

    separation = "separation"
    bimodality = "bimodality"
    gwa = "gwa"
    dip = "dip"
    labelwave = "labelwave"
    disparity = "disparity"
    metric = "metric"


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """Which rule keeps an epoch."""

    rule: Annotated[
        RuleName,
        typer.Option(
            help="separation: scores are high and in two groups; bimodality: in two groups; "
            "gwa: the paper's rule; dip: fine-tuning; "
            "metric: a stored column (with --metric).",
        ),
    ] = RuleName.separation
    metric: Annotated[
        str | None, typer.Option(help="A column of epochs.jsonl, such as test_accuracy.")
    ] = None
    mode: Annotated[str, typer.Option(help="max or min: which end of --metric is better.")] = "max"

    def make(self, *, shown: bool = False) -> Rule:
        """Return the rule; `shown` says that the command has a use of its own for the metric."""
        if self.rule is RuleName.metric:
            if self.metric is None:
                raise ValueError("`--rule metric` needs `--metric COLUMN`, such as test_accuracy")
            return BestMetric(metric=self.metric, mode=self.mode)  # type: ignore[arg-type]
        if self.metric is not None and not shown:
            raise ValueError(
                f"`--metric {self.metric}` needs `--rule metric`; the rule {self.rule} reads "
                "another column"
            )
        rules: dict[RuleName, Rule] = {
            RuleName.separation: MaxSeparation(),
            RuleName.bimodality: MaxBimodality(),
            RuleName.gwa: MaxGWA(),
            RuleName.dip: DipThenMax(),
            RuleName.labelwave: LabelWave(),
            RuleName.disparity: GradientDisparity(),
        }
        return rules[self.rule]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What a source does not say itself."""

    weight: Annotated[
        Path | None, FileOption("Head weight (C, D) as .npy, for files without it.")
    ] = None
    bias: Annotated[Path | None, FileOption("Head bias (C,) as .npy, for files without it.")] = None
    head: Annotated[
        str | None,
        typer.Option(help="Weight and bias of a checkpoint: model.safetensors:classifier."),
    ] = None
    targets: Annotated[
        Path | None,
        typer.Option(
            "--targets", "--labels", help="Labels as .npy, for files without them.", **_FILE
        ),
    ] = None
    loss: Annotated[
        str | None, typer.Option(help="cross_entropy (default) or binary_cross_entropy.")
    ] = None
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing of the training.")] = 0.0
    class_names: Annotated[
        str | None, typer.Option(help="C names: a text file with a name a line, or cat,dog.")
    ] = None
    columns: Annotated[
        str | None, typer.Option(help="Names in the files: latents=embedding,targets=y.")
    ] = None
    keep: Annotated[
        str | None, typer.Option(help="Columns of the files to show beside samples: path,url.")
    ] = None
    index: Annotated[
        Path | None, FileOption("Columns to show beside samples: .csv or .parquet with an id.")
    ] = None

    def open(self, path: Place | Sequence[Place]) -> Source:
        """Open a source with what the options add to it."""
        given: dict[str, Any] = {
            name: read_given(file, name)
            for name, file in {
                "weight": self.weight, "bias": self.bias, "targets": self.targets
            }.items()
            if file is not None
        }  # fmt: skip
        if self.head is not None:
            if given.keys() & {"weight", "bias"}:
                raise ValueError("`--head` reads weight and bias; drop `--weight` and `--bias`")
            given |= read_head(self.head)
        if self.class_names is not None:
            given["class_names"] = read_names(self.class_names)
        if self.keep is not None:
            given["keep"] = [name.strip() for name in self.keep.split(",")]
        return open_features(
            path, loss=self.loss, columns=self._columns(), index=self.index, **given
        )

    def _columns(self) -> dict[str, str] | None:
        if self.columns is None:
            return None
        pairs = [pair.partition("=") for pair in self.columns.split(",")]
        if not all(field and name for field, _, name in pairs):
            raise ValueError(
                f"`--columns` must be pairs such as latents=embedding,targets=y, got {self.columns!r}"
            )
        return {field.strip(): name.strip() for field, _, name in pairs}


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of the dataclasses among its parameters."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not is_dataclass(kind):
            parameters.append(
                parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)
            )
            continue
        groups[parameter.name] = kind
        types = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=types[field.name],
            )
            for field in fields(kind)
        ]

    @wraps(command)
    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return expanded
