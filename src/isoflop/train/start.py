"""Where a training starts from, if not from random weights: a run of ours or a Hugging Face Llama."""

from pathlib import Path

from isoflop.errors import InputError
from isoflop.nn import Decoder
from isoflop.nn.retrofit import copy_weights, obstacle
from isoflop.spec import DecoderSpec, load_spec
from isoflop.train.load import load_model


def refuse_other_weights(spec: DecoderSpec, init: str) -> None:
    """Raise InputError unless a model of `spec` can start from the weights at `init`; reads no weights."""
    run = _run(init)
    if run is not None:
        if not any((run / "checkpoints").glob("step-*")):
            raise InputError(
                f"init is {init}, a run without a checkpoint: none is saved yet, or keep_checkpoints was 0."
            )
        source = load_spec(run / "spec.yaml")
    else:
        from isoflop.interop.llama import llama_spec

        source = llama_spec(init)
    reason = obstacle(source, spec)
    if reason is not None:
        raise InputError(f"init is {init}, whose weights this model cannot take: {reason}.")


def start_from(model: Decoder, init: str) -> None:
    """Copy the weights at `init` into `model`; depth routing that they lack is added (see `isoflop.nn.retrofit`).

    Raises:
        InputError: if they are not there, or those of another spec (see `refuse_other_weights`).
        RunError: if no checkpoint is sound.
    """
    refuse_other_weights(model.spec, init)
    if _run(init) is not None:
        source = load_model(init).model
    else:
        from isoflop.interop import from_transformers

        source = from_transformers(init)
    copy_weights(source, model)


def _run(init: str) -> Path | None:
    """The run directory that `init` is, or that its checkpoint belongs to; None: a directory of transformers."""
    path = Path(init)
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    if (run / "spec.yaml").is_file() and path.is_dir():
        return run
    if (path / "config.json").is_file():
        return None
    raise InputError(
        f"init is {init}; it must be a run directory of `isoflop train`, one of its checkpoints, or the directory of a "
        "Hugging Face Llama."
    )
