"""From sources to a data directory."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from isoflop.data.directory import find_prepared, writing
from isoflop.data.manifest import FORMAT_VERSION, TOKENIZER_FILE, Manifest, Source, Split, write_manifest
from isoflop.data.readers import NotTextError, read_documents
from isoflop.data.shards import SHARD_TOKENS, write_shards
from isoflop.data.sources import SourceSet, resolve_sources
from isoflop.data.spool import Order, Spool
from isoflop.data.tokenizer import (
    SMALLEST_BPE,
    ByteTokenizer,
    SubwordTokenizer,
    Tokenizer,
    load_tokenizer,
    tokenizers_library,
    train_bpe,
)
from isoflop.errors import InputError

Progress = Callable[[str, int, int], None]
"""Called as (stage, bytes done, bytes in all)."""

_SMALLEST_DOCUMENT: Final = 64
_BPE_TRAINING_BYTES: Final = 256 * 2**20
"""A BPE learns from so much of the (shuffled) training split at most; more changes its merges little."""


def prepare(
    sources: Iterable[str | Path] | str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path = "bytes",
    vocab_size: int | None = None,
    text_column: str = "text",
    validation_fraction: float = 0.05,
    document_bytes: int = 32768,
    seed: int = 0,
    overwrite: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
) -> Manifest:
    """Turn text into a data directory: token shards of a training and a validation split, and a manifest.

    Exact duplicates are dropped; documents are split by their hash and shuffled by hash and seed, so neither the order
    nor the grouping of the sources matters. The corpus is never held in memory: it is spooled to a temporary file
    beside `out`. The directory appears whole or not at all. If `out` already holds exactly this data, it is kept.

    Args:
        sources: plain text, .jsonl, .parquet, Hugging Face datasets saved to disk, directories or patterns of such
            files (text and JSON lines may be .gz), or "python-stdlib", the Python standard library's own source.
        out: directory to make.
        tokenizer: "bytes"; "bpe", trained on the training split; or a tokenizer.json or GPT-2 .tiktoken file.
        vocab_size: number of token ids of the BPE to train; only with "bpe".
        text_column: where JSON lines, Parquet and datasets keep the text.
        validation_fraction: share of the documents that is held out.
        document_bytes: longest document that plain text is cut into, at blank lines where possible.
        seed: of the documents' order; the split does not depend on it.
        overwrite: replace other prepared data in `out`.
        shard_tokens: most tokens in one file.
        progress: called now and then with the stage, the bytes done and the bytes in all.

    Raises:
        InputError: if an argument or a source is wrong, or `out` holds something else.
        RunError: if the disk refuses.
    """
    out = Path(out)
    report = progress or _silent
    options = {
        "tokenizer": str(tokenizer) if tokenizer in ("bytes", "bpe") else Path(tokenizer).name,
        "vocab_size": vocab_size,
        "text_column": text_column,
        "validation_fraction": validation_fraction,
        "document_bytes": document_bytes,
        "seed": seed,
        "shard_tokens": shard_tokens,
    }
    _check(options)
    given = _given_tokenizer(tokenizer)
    found = resolve_sources(sources)
    recorded = _record(found, report)
    identity = _identity(recorded, options, tokenizer)
    if (present := find_prepared(out, identity, options, overwrite=overwrite)) is not None:
        return present

    with writing(out, identity) as directory, tempfile.TemporaryFile(dir=directory) as file:
        spool = Spool(file)
        skipped = _fill(spool, found, report, text_column=text_column, document_bytes=document_bytes)
        division = spool.divide(validation_fraction=validation_fraction, seed=seed)
        used = given or _trained_tokenizer(spool, division.train, vocab_size or 0, report)
        tokenizer_sha256 = None
        if isinstance(used, SubwordTokenizer):
            used.save(directory / TOKENIZER_FILE)
            tokenizer_sha256 = _sha256(directory / TOKENIZER_FILE)
        dtype = "uint16" if used.vocab_size <= 2**16 else "uint32"
        splits = {}
        for name, order in (("train", division.train), ("validation", division.validation)):
            size = int(spool.lengths[order].sum())
            documents = _reported(spool.read(order), f"tokenizing ({name})", size, report)
            shards = write_shards(used.encode_documents(documents), directory, name, dtype, shard_tokens=shard_tokens)
            tokens = sum(shard.tokens for shard in shards)
            splits[name] = Split(tokens=tokens, bytes=size, documents=len(order), shards=shards)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            identity=identity,
            tokenizer=str(options["tokenizer"]),
            tokenizer_sha256=tokenizer_sha256,
            vocab_size=used.vocab_size,
            end_of_document=used.end_of_document,
            dtype=dtype,
            splits=splits,
            sources=tuple(replace(source, skipped=skipped.get(source.name, 0)) for source in recorded),
            duplicates_dropped=division.duplicates,
            options=options,
        )
        write_manifest(manifest, directory)
    return manifest


def _check(options: Mapping[str, Any]) -> None:
    tokenizer, vocab_size = options["tokenizer"], options["vocab_size"]
    for name in ("document_bytes", "seed", "shard_tokens", *(["vocab_size"] if vocab_size is not None else [])):
        if not isinstance(options[name], int):
            raise InputError(f"{name} is {options[name]!r}; it must be a whole number.")
    if not isinstance(options["validation_fraction"], (int, float)):
        raise InputError(f"validation_fraction is {options['validation_fraction']!r}; it must be a number.")
    if not 0 < options["validation_fraction"] < 1:
        raise InputError(
            f"validation_fraction is {options['validation_fraction']}; it must be greater than 0 and less than 1."
        )
    if options["document_bytes"] < _SMALLEST_DOCUMENT:
        raise InputError(f"document_bytes is {options['document_bytes']}; it must be at least {_SMALLEST_DOCUMENT}.")
    if not 0 <= options["seed"] < 2**64:
        raise InputError(f"seed is {options['seed']}; it must be between 0 and 2**64 - 1.")
    if options["shard_tokens"] < 1:
        raise InputError(f"shard_tokens is {options['shard_tokens']}; it must be at least 1.")
    if tokenizer == "bpe" and (vocab_size is None or vocab_size < SMALLEST_BPE):
        raise InputError(
            f"vocab_size is {vocab_size}; tokenizer bpe needs at least {SMALLEST_BPE} (256 bytes and end-of-document)."
        )
    if tokenizer != "bpe" and vocab_size is not None:
        raise InputError(f"vocab_size is {vocab_size}; it goes with tokenizer bpe alone, and tokenizer is {tokenizer}.")


def _given_tokenizer(tokenizer: str | Path) -> Tokenizer | None:
    """The tokenizer that exists already; none if it is to be trained."""
    match tokenizer:
        case "bytes":
            return ByteTokenizer()
        case "bpe":
            tokenizers_library("tokenizer bpe")
            return None
        case _:
            return load_tokenizer(Path(tokenizer))


def _record(found: Sequence[SourceSet], report: Progress) -> list[Source]:
    """What the manifest says of each source, before reading it; sorted, so that their order does not matter."""
    total = sum(file.size for source in found for file in source.files)
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        report("hashing sources", done, total)

    recorded = [
        Source(
            name=source.name,
            files=sum(len(file.parts) for file in source.files),
            bytes=sum(file.size for file in source.files),
            sha256=source.sha256(advance),
        )
        for source in found
    ]
    return sorted(recorded, key=lambda source: (source.name, source.sha256))


def _identity(recorded: Sequence[Source], options: Mapping[str, Any], tokenizer: str | Path) -> str:
    described = {
        "format_version": FORMAT_VERSION,
        "sources": [source.sha256 for source in recorded],
        "options": options,
        "tokenizer": None if tokenizer in ("bytes", "bpe") else _sha256(Path(tokenizer)),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _fill(
    spool: Spool, found: Sequence[SourceSet], report: Progress, *, text_column: str, document_bytes: int
) -> dict[str, int]:
    """Read every document into the spool; gives the number of files skipped, by name of the built-in corpus.

    Raises:
        InputError: if a file is wrong, a file that was named itself is empty, or a source has no text at all.
    """
    skipped: dict[str, int] = {}
    total = sum(file.size for source in found for file in source.files)
    done = 0
    for source in found:
        before = len(spool)
        for file in source.files:
            start = spool.bytes
            documents = read_documents(file, text_column=text_column, document_bytes=document_bytes)
            if source.builtin:
                try:
                    documents = iter(list(documents))
                except NotTextError:
                    skipped[source.name] = skipped.get(source.name, 0) + 1
                    continue
            for document in documents:
                spool.append(document)
                report("reading", done + min(spool.bytes - start, file.size), total)
            done += file.size
        if len(spool) == before:
            what = "is empty" if sum(file.size for file in source.files) == 0 else "holds no text but white space"
            raise InputError(f"source {source.path} {what}; text is needed.")
    return skipped


def _trained_tokenizer(spool: Spool, order: Order, vocab_size: int, report: Progress) -> Tokenizer:
    before = np.cumsum(spool.lengths[order]) - spool.lengths[order]
    order = order[before < _BPE_TRAINING_BYTES]
    size = int(spool.lengths[order].sum())
    return train_bpe(_reported(spool.read(order), "training the tokenizer", size, report), vocab_size)


def _reported(documents: Iterable[bytes], stage: str, total: int, report: Progress) -> Iterator[bytes]:
    done = 0
    for document in documents:
        yield document
        done += len(document)
        report(stage, done, total)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
