"""A trained model back from its run directory or from one of its checkpoints."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from isoflop.data.manifest import MANIFEST_FILE, TOKENIZER_FILE, Manifest, read_manifest
from isoflop.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
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
    manifest: Manifest
    """Of the data that it was trained on."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of that data; only a subword one needs the tokenizers library."""
        return ByteTokenizer() if self.manifest.tokenizer == "bytes" else load_tokenizer(self.run / TOKENIZER_FILE)


def load_model(path: str | Path, *, device: torch.device | str | None = None) -> LoadedModel:
    """Load a model from a run directory (its newest sound checkpoint) or from one checkpoint directory.

    Raises:
        InputError: if `path` is neither.
        RunError: if no checkpoint matches its checksums, or the weights are not those of the spec.
    """
    path = Path(path)
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    if not (run / "spec.yaml").is_file() or not (run / MANIFEST_FILE).is_file():
        raise InputError(f"run is {path}; it must be a run directory of `isoflop train` or one of its checkpoints.")
    if run == path:
        checkpoint = newest_checkpoint(run / "checkpoints")
        if checkpoint is None:
            reason = "the run has not saved one yet, or keep_checkpoints was 0"
            if any((run / "checkpoints").glob("step-*")):
                reason = "all that it saved are damaged"
            raise RunError(f"{run} has no sound checkpoint: {reason}.")
    elif not path.is_dir():
        raise InputError(f"run is {path}, which does not exist; {_checkpoints(run)}.")
    else:
        try:
            checkpoint = open_checkpoint(path)
        except ValueError as error:
            raise RunError(f"checkpoint {path} is damaged: {error}.") from None
    try:
        manifest = read_manifest(run)
    except InputError as error:
        raise RunError(
            f"the run's copy of its data's manifest is damaged, copy that of the data here: {error}"
        ) from None
    spec = load_spec(run / "spec.yaml")
    model = Decoder(spec, device=device)
    if missing := [name for name in checkpoint.missing(model) if "predictor" in name]:
        raise RunError(
            f"checkpoint {checkpoint.path} has no predictor ({missing[0]}), but depth_routing.sampled_by in "
            f"{run}/spec.yaml is predictor; a model samples by the rule that it was trained with."
        )
    if checkpoint.unknown(model):
        raise RunError(
            f"{run}/spec.yaml is not the spec of the weights in {checkpoint.path}; it was changed: they hold "
            f"{checkpoint.unknown(model)[0]}."
        )
    try:
        checkpoint.load_model(model)
    except (KeyError, RuntimeError):
        raise RunError(
            f"{run}/spec.yaml is not the spec of the weights in {checkpoint.path}; it was changed."
        ) from None
    model.eval()
    return LoadedModel(model=model, spec=spec, run=run, step=checkpoint.state["step"], manifest=manifest)


def _checkpoints(run: Path) -> str:
    names = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    return f"there are {', '.join(names)}" if names else "there is no checkpoint yet"
