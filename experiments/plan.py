"""Which runs there are: a configuration file a study, each naming a grid of runs."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CONFIGS", "Settings", "plan", "studies"]

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run.

    Parameters
    ----------
    study : str
        Name of its configuration file.
    data : str
        Name of the data in the folder of `--data`.
    network : str
        A key of ``networks.NETWORKS``.
    labels : str
        Which labels to train on, see ``data.with_noise``; of a language model which answers, see
        ``language_data.given_answers``.
    percent : int
        Share of the training images that is trained on; the rest validates, with its labels.
    seed : int
        Of weights, order and split.
    steps, batch_size : int
        Of the optimiser.
    optimizer : {"adam", "sgd"}
        SGD has momentum 0.9.
    learning_rate, weight_decay : float
        Of the optimiser; a decay makes Adam AdamW.
    schedule : {"cosine", "constant"}
        Of the learning rate.
    warmup : int
        Steps over which the rate rises to its full size, before its schedule.
    augmentation : str
        A key of ``augmentation.AUGMENTATIONS``.
    mixup : float
        Strength, 0 for none.
    corrupted : str
        Name of a folder of corrupted test sets in the folder of `--data`; none by default.
    offline : bool
        Whether to measure all training images again at the end of each epoch (Fig. 6).
    layers : bool
        Whether to measure ever more stages before the head at the end of each epoch (Fig. 7).
    sketch : int
        Measure behind a sketch of so many features too (Fig. 8), 0 for no; needs a wider head.
    averages : bool
        Whether to keep the weights of all epochs and to judge means of them at the end, instead of
        measuring what needs passes of its own.
    neighbours : bool
        Whether to judge label quality with the labels of nearest neighbours at the end, instead of
        measuring what needs passes of its own.
    loss : str
        Makes the run one of a language model: ``"answer"`` for the loss of the answer's tokens,
        ``"all"`` for that of the document's, too.
    fold : int
        Hold the k-th of ``folds.FOLDS`` out and score its labels at the end; 0 for none.
    windows : int
        Records an epoch, each of as many steps as the others; 0 for one of the whole epoch.
    variant : str
        End of the name: what else the grid of the study varies.
    """

    study: str
    data: str = "cifar10n"
    network: str = "convnext"
    labels: str = "label"
    percent: int = 100
    seed: int = 0
    steps: int = 6000
    batch_size: int = 512
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: int = 0
    augmentation: str = "crop"
    mixup: float = 0.0
    corrupted: str = ""
    offline: bool = False
    layers: bool = False
    sketch: int = 0
    averages: bool = False
    neighbours: bool = False
    loss: str = ""
    fold: int = 0
    windows: int = 0
    variant: str = ""

    @property
    def name(self) -> str:
        """The run's folder."""
        return f"{self.study}-{self.labels}-{self.percent}-s{self.seed}{self.variant}"


def studies() -> list[str]:
    """Return the names of the configuration files, the most important first."""
    found = {path.stem: tomllib.loads(path.read_text()) for path in CONFIGS.glob("*.toml")}
    return sorted(found, key=lambda name: (found[name]["priority"], name))


def plan(study: str, **only: Any) -> list[Settings]:
    """Return the runs of a study, those first that complete a table earliest.

    Parameters
    ----------
    study : str
        Name of a configuration file, or a path of one.
    **only
        Fields of `Settings` that runs must have, as numbers or words.

    Returns
    -------
    list of Settings
    """
    path = Path(study) if study.endswith(".toml") else CONFIGS / f"{study}.toml"
    if not path.exists():
        raise ValueError(f"`study` must be one of {', '.join(studies())}, got {study!r}")
    values = tomllib.loads(path.read_text())
    values.pop("priority", None)
    known = {field.name for field in dataclasses.fields(Settings)} - {"study", "variant"}
    grid = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{path.name} must have fields of Settings, got {name!r}")
        grid[name] = value if isinstance(value, list) else [value]
    # The last of these varies fastest: all labels of one seed come first.
    places = {"seed": 0, "percent": 1, "labels": 2, "fold": 3}
    order = sorted(grid, key=lambda name: places.get(name, -1))
    further = [
        name
        for name, value in values.items()
        if isinstance(value, list) and name not in ("seed", "percent", "labels")
    ]
    runs = []
    for chosen in itertools.product(*(grid[name] for name in order)):
        fields = dict(zip(order, chosen, strict=True))
        variant = "".join(f"-{name}-{fields[name]}" for name in further)
        runs.append(Settings(study=path.stem, variant=variant, **fields))
    return [run for run in runs if all(str(getattr(run, k)) == str(v) for k, v in only.items())]
