"""`isoflop prepare`: from text to a data directory."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from isoflop.cli._common import JsonFlag, print_json, print_table, si
from isoflop.errors import InputError

_SECONDS_BETWEEN_UPDATES: Final = 0.1
_SECONDS_BETWEEN_LINES: Final = 10.0
_MOST_IDS: Final = 2**24
_MOST_BYTES: Final = 2**40


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Plain text, .jsonl, .parquet, a Hugging Face dataset saved to disk, directories of such files, or "
            "the word python-stdlib (the Python standard library's own source).",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIRECTORY", help="Directory to make.")],
    tokenizer: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="bytes, bpe (trained on the training split), or a tokenizer.json or GPT-2 .tiktoken."
        ),
    ] = "bytes",
    vocab_size: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Number of token ids of the BPE to train.")
    ] = None,
    text_column: Annotated[
        str, typer.Option(metavar="NAME", help="Where JSON lines, Parquet and datasets keep the text.")
    ] = "text",
    validation_fraction: Annotated[
        float, typer.Option(metavar="NUMBER", help="Share of the documents that is held out.")
    ] = 0.05,
    document_bytes: Annotated[
        int, typer.Option(metavar="NUMBER", help="Longest document that plain text is cut into.")
    ] = 32768,
    seed: Annotated[
        int, typer.Option(metavar="NUMBER", help="Of the documents' order; the split does not depend on it.")
    ] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other prepared data in OUT.")] = False,
    json: JsonFlag = False,
) -> None:
    """Turn text into token shards of a training and a validation split."""
    from isoflop import data as room

    if tokenizer == "bpe" and vocab_size is None:
        raise InputError("vocab_size is missing; tokenizer bpe needs it, e.g. 8192.")
    for name, value, most in (("vocab_size", vocab_size, _MOST_IDS), ("document_bytes", document_bytes, _MOST_BYTES)):
        if value is not None and value > most:
            raise InputError(f"{name} is {value}; it must be at most {most}.")
    with _progress() as progress:
        manifest = room.prepare(
            sources,
            out,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            text_column=text_column,
            validation_fraction=validation_fraction,
            document_bytes=document_bytes,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    if manifest.warning:
        typer.echo(f"warning: {manifest.warning}", err=True)
    if json:
        print_json({"path": str(out), **manifest.to_dict()})
        return
    print_table(
        f"{out} · tokenizer {manifest.tokenizer} · vocabulary {manifest.vocab_size:,}",
        ["split", "documents", "bytes", "tokens", "bytes/token", "shards"],
        [
            [
                name,
                f"{split.documents:,}",
                f"{split.bytes:,}",
                f"{split.tokens:,}",
                f"{split.bytes / split.tokens:.3f}",
                f"{len(split.shards):,}",
            ]
            for name, split in manifest.splits.items()
        ],
    )
    skipped = sum(source.skipped for source in manifest.sources)
    files = sum(source.files for source in manifest.sources)
    print_table(
        "",
        ["quantity", "value"],
        [
            ["files read", f"{files - skipped:,} ({si(sum(source.bytes for source in manifest.sources))}B on disk)"],
            ["files skipped (not UTF-8)", f"{skipped:,}"],
            ["duplicate documents dropped", f"{manifest.duplicates_dropped:,}"],
        ],
    )


def _progress() -> AbstractContextManager[Callable[[str, int, int], None]]:
    """What shows the stage at hand on stderr: a bar on a terminal, else a line now and then."""
    return _bar() if sys.stderr.isatty() else _lines()


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        shown, shown_at = "", 0.0

        def update(stage: str, done: int, total: int) -> None:
            nonlocal shown, shown_at
            now = time.monotonic()
            if stage != shown:
                bar.reset(task, description=stage, total=total)
            elif now - shown_at < _SECONDS_BETWEEN_UPDATES:
                return
            bar.update(task, completed=done)
            shown, shown_at = stage, now

        yield update


@contextmanager
def _lines() -> Iterator[Callable[[str, int, int], None]]:
    """A line every few seconds; nothing of what takes less."""
    shown_at = time.monotonic()

    def update(stage: str, done: int, total: int) -> None:
        nonlocal shown_at
        now = time.monotonic()
        if now - shown_at >= _SECONDS_BETWEEN_LINES:
            shown_at = now
            of_all = f"{done / total:.0%} of {si(total)}B" if total else f"{si(done)}B"
            sys.stderr.write(f"{stage}  {of_all}\n")
            sys.stderr.flush()

    yield update
