"""A trained model back from its run directory or from one of its checkpoints."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isoflop.errors import InputError, RunError
from isoflop.nn import Decoder
from isoflop.spec import DecoderSpec, load_spec
from isoflop.train.checkpoint import newest_checkpoint, open_checkpoint


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A trained model and what belongs to it."""

    model: Decoder
    """The model, in evaluation mode."""
    spec: DecoderSpec
    """What it is."""
    run: Path
    """Its run directory."""
    step: int
    """Optimiser steps that it has been trained for."""
    data: Mapping[str, Any]
    """`path` of the data directory that it was trained on, and `bytes_per_token` of its validation split."""


def load_model(path: str | Path, *, device: torch.device | str | None = None) -> LoadedModel:
    """Load a model from a run directory (its newest sound checkpoint) or from one checkpoint directory.

    Raises:
        InputError: if `path` is neither.
        RunError: if no checkpoint matches its checksums.
    """
    path = Path(path)
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    if not (run / "spec.yaml").is_file() or not (run / "data.json").is_file():
        raise InputError(f"run is {path}; it must be a run directory of `isoflop train` or one of its checkpoints.")
    if run == path:
        checkpoint = newest_checkpoint(run / "checkpoints")
        if checkpoint is None:
            raise RunError(f"{run} has no sound checkpoint: the run has not saved one yet, or keep_checkpoints was 0.")
    else:
        try:
            checkpoint = open_checkpoint(path)
        except ValueError as error:
            raise RunError(f"checkpoint {path} is damaged: {error}.") from None
    spec = load_spec(run / "spec.yaml")
    model = Decoder(spec, device=device)
    checkpoint.load_model(model)
    model.eval()
    data = json.loads((run / "data.json").read_text(encoding="utf-8"))
    return LoadedModel(model=model, spec=spec, run=run, step=checkpoint.state["step"], data=data)
