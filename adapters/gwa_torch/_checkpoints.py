"""Files in a checkpoint of the Trainer: the state of the callback, and the model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

__all__ = [
    "best_step",
    "checkpoint_beside",
    "checkpoint_of",
    "load_renamed",
    "read_state",
    "state_of",
    "write_state",
]

STATE_NAME = "gwa_state.pt"


def write_state(state: dict[str, Any], folder: Path) -> None:
    """Write the state of the callback into a checkpoint."""
    torch.save(state, folder / STATE_NAME)


def read_state(folder: Path) -> dict[str, Any]:
    """Read the state that `write_state` wrote."""
    path = folder / STATE_NAME
    if not path.is_file():
        raise ValueError(
            f"`resume_from_checkpoint` must have the file {STATE_NAME}, got none in {folder}; "
            "it was saved without GWACallback, or the run was killed while saving it: resume "
            "from an earlier checkpoint, or without the callback"
        )
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def state_of(monitor: Any, stopper: Any, average: Any, labels: Any) -> dict[str, Any]:
    """Return what a checkpoint has of the callback, None where there is none of a kind."""
    return {
        "monitor": monitor.state_dict(),
        "stopper": None if stopper is None else stopper.state_dict(),
        "average": None if average is None else average.state_dict(),
        "labels": None if labels is None else labels.value.cpu(),
    }


def best_step(state: Any, monitor: Any, stopper: Any, window: int | None) -> int:
    """Return the step of the checkpoint of the best epoch or window.

    That of a window may be of a later step, at which the metric of the rule came.
    """
    number = Path(state.best_model_checkpoint or "").name.rpartition("-")[2]
    step: int = monitor.history[stopper.best_step].step
    return int(number) if window is not None and number.isdigit() else step


def checkpoint_of(trainer: Any, state: Any) -> Path:
    """Return where the trainer saves at this step."""
    run = trainer._get_output_dir(trainer._trial)
    return Path(run) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def checkpoint_beside(folder: Path, step: int) -> Path:
    """Return the checkpoint of another step of this run, whose folder may have been moved."""
    found = folder.parent / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    if not found.is_dir():
        raise ValueError(
            f"`resume_from_checkpoint` must lie beside the checkpoint of the best epoch, "
            f'{found.name}, got none in {folder.parent}; copy both, or say keep="last"'
        )
    return found


def load_renamed(trainer: Any, model: Any, folder: str | Path) -> None:
    """Load the weights of a checkpoint whose names are not the model's own.

    Transformers 5 saves a ViT, a mixture of experts and others under the names of old. Its trainer
    does not translate them when it resumes or loads the best model, and goes on with a warning
    (huggingface/transformers#43701).
    """
    # Sharded models have ways of their own.
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if sharded or not isinstance(model, PreTrainedModel):
        return
    one, index = Path(folder) / SAFE_WEIGHTS_NAME, Path(folder) / SAFE_WEIGHTS_INDEX_NAME
    saved: set[str] = set()
    if one.exists():
        with safe_open(one, "pt") as file:
            saved = set(file.keys())
    elif index.exists():
        saved = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if saved - model.state_dict().keys():
        model.load_state_dict(type(model).from_pretrained(folder).state_dict())
