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
from isoflop.train.device import choose_device, refuse_what_cannot_fit, reporting_lack_of_memory
from isoflop.train.directory import RunDirectory
from isoflop.train.distributed import Ranks, joined
from isoflop.train.evaluated_bytes import evaluated_bytes_per_token
from isoflop.train.resolve import resolve
from isoflop.train.run import Run
from isoflop.train.start import refuse_other_weights


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
        progress: show a progress bar if stderr is a terminal, else print a line now and then.
        extra: further columns of the record, e.g. study and architecture.

    Returns:
        The record; `status` is `done`, or `diverged` with the step in `error`.

    Raises:
        InputError: if spec, configuration and data do not fit together, or `out` holds another run.
        RunError: if another process trains in `out`, the disk refuses, or memory runs out.
    """
    tokens = data if isinstance(data, TokenData) else TokenData(data)
    if spec.vocab_size < tokens.vocab_size:
        raise InputError(
            f"vocab_size is {spec.vocab_size}; the data at {tokens.path} has {tokens.vocab_size} token ids, so it must "
            f"be at least that."
        )
    device = choose_device(config.device)
    threads = torch.get_num_threads()
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        with joined(device) as ranks:
            return _train(spec, config, tokens, Path(out), device, ranks, progress, extra or {})
    finally:
        torch.set_num_threads(threads)


def _train(
    spec: DecoderSpec,
    config: TrainConfig,
    data: TokenData,
    out: Path,
    device: torch.device,
    ranks: Ranks,
    progress: bool,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """As `train`, in a process that has its threads and knows its peers."""
    plan = resolve(spec, config, world=ranks.world)
    batches = Batches(data, context=spec.context, batch_size=plan.sequences, seed=config.seed)
    windows_WT = evaluation_windows(data, context=spec.context, tokens=config.evaluation_tokens)
    directory = RunDirectory(out)
    is_new = not directory.is_claimed
    if config.init is not None and is_new:
        refuse_other_weights(spec, config.init)
    if ranks.rank == 0:
        directory.claim(spec, config, plan, data)
    ranks.barrier()
    record = directory.result()
    if record is not None:
        return record
    refuse_what_cannot_fit(device, plan.count.params_total + plan.count.params_embedding)
    advice = f"micro_batch={plan.micro_batch} on {device}; give a smaller micro_batch, or activation_checkpointing"
    try:
        with directory.lock() if ranks.rank == 0 else nullcontext(), reporting_lack_of_memory(advice):
            record = directory.result()
            if record is None:
                try:
                    run = Run(
                        spec,
                        config,
                        plan,
                        batches=batches,
                        windows_WT=windows_WT,
                        bytes_per_token=evaluated_bytes_per_token(data, windows_WT),
                        directory=directory,
                        device=device,
                        ranks=ranks,
                    )
                except (InputError, RunError):
                    if is_new and config.init is not None and ranks.rank == 0:  # weights that cannot be read
                        directory.release()
                    raise
                record = run.complete(progress, extra)
            ranks.barrier()
            return record
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror or error}.") from error
    except RuntimeError as error:
        if config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).strip().splitlines()[0]
            raise RunError(f"torch.compile failed ({reason}); train without compile.") from error
        raise
