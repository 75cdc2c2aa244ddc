"""`train`: from a spec, a configuration and data to a run record."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from isoflop.data import Batches, TokenData, evaluation_windows
from isoflop.errors import InputError, RunError
from isoflop.spec import DecoderSpec
from isoflop.train.config import TrainConfig
from isoflop.train.directory import RunDirectory
from isoflop.train.distributed import choose_device, join
from isoflop.train.resolve import resolve
from isoflop.train.run import Run


def train(
    spec: DecoderSpec,
    config: TrainConfig,
    *,
    data: str | Path | TokenData,
    out: str | Path,
    progress: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train the model of `spec` and return its run record in the standard columns.

    `out` becomes the run directory. Called again with the same arguments after an interruption, it continues from the
    newest sound checkpoint; on the CPU with the same number of threads, metrics and weights are then bit for bit those
    of an undisturbed run. A finished run returns its record at once. Under torchrun every process calls this.

    Args:
        spec: the model.
        config: how to train it.
        data: a data directory, or an open one.
        out: the run directory.
        progress: show a progress bar if stderr is a terminal.
        extra: further columns of the record, e.g. study and architecture.

    Returns:
        The record; `status` is `done`, or `diverged` with the step in `error`.

    Raises:
        InputError: if spec, configuration and data do not fit together, or `out` holds another run.
        RunError: if another process trains in `out`, the disk refuses, or memory runs out.
    """
    tokens = data if isinstance(data, TokenData) else TokenData(data)
    plan = resolve(spec, config)
    if spec.vocab_size < tokens.vocab_size:
        raise InputError(
            f"vocab_size is {spec.vocab_size}; the data at {tokens.path} has {tokens.vocab_size} token ids, so it must "
            f"be at least that."
        )
    batches = Batches(tokens, context=spec.context, batch_size=plan.sequences, seed=config.seed)
    windows_WT = evaluation_windows(tokens, context=spec.context, tokens=config.evaluation_tokens)
    directory = RunDirectory(Path(out))
    device = choose_device(config.device)
    ranks = join(device)
    if plan.sequences // plan.micro_batch % ranks.world:
        raise InputError(
            f"micro_batch is {plan.micro_batch}; the {plan.sequences // plan.micro_batch} micro-batches of a step must "
            f"divide evenly among {ranks.world} processes."
        )
    if ranks.rank == 0:
        directory.claim(spec, config, plan, tokens)
    ranks.barrier()
    record = directory.result()
    if record is not None:
        return record
    threads = torch.get_num_threads()
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        with directory.lock() if ranks.rank == 0 else nullcontext():
            record = directory.result()
            if record is None:
                run = Run(
                    spec,
                    config,
                    plan,
                    batches=batches,
                    windows_WT=windows_WT,
                    bytes_per_token=tokens.bytes_per_token,
                    directory=directory,
                    device=device,
                    ranks=ranks,
                )
                record = run.complete(progress, extra or {})
            ranks.barrier()
            return record
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror or error}.") from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise RunError(
                f"{device} has too little memory for micro_batch={plan.micro_batch}; give a smaller micro_batch, or "
                f"activation_checkpointing."
            ) from error
        if config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).strip().splitlines()[0]
            raise RunError(f"torch.compile failed ({reason}); train without compile.") from error
        raise
    finally:
        torch.set_num_threads(threads)
