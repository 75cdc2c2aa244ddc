"""The text of a study: found, prepared once, and given a fingerprint."""

import glob
import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from isoflop.data import PYTHON_STDLIB, TokenData, prepare
from isoflop.errors import InputError
from isoflop.study.spec import DataSpec
from isoflop.study.store import StudyStore

_DECIDED = {"sources", "out", "tokenizer", "vocab_size", "overwrite", "progress"}


def open_corpus(data: DataSpec, store: StudyStore, *, beside: Path, say: Callable[[str], None]) -> TokenData:
    """Open the study's text; sources are prepared in the study's directory, unless that has been done.

    Args:
        data: what the study says.
        store: where prepared data lies.
        beside: directory of the YAML file; relative names are looked up there and then in the current directory.
        say: called with a sentence before anything that takes long.

    Raises:
        InputError: if a source is missing or cannot be read.
    """
    if data.path is not None:
        return TokenData(_locate(data.path, beside))
    allowed = set(inspect.signature(prepare).parameters) - _DECIDED
    for name in data.options:
        if name not in allowed:
            raise InputError(f"data.options.{name} is not an option; allowed: {', '.join(sorted(allowed))}.")
    digest = hashlib.sha256(json.dumps(asdict(data), sort_keys=True, default=list).encode()).hexdigest()[:8]
    out = store.path / f"data-{digest}"
    sources = [source if source == PYTHON_STDLIB else _locate(source, beside) for source in data.source_list]
    tokenizer = data.tokenizer if data.tokenizer in ("bytes", "bpe") else _locate(data.tokenizer, beside)
    with store.lock("data"):
        if not out.exists():
            say(f"preparing the text: {', '.join(data.source_list)}")
        prepare(sources, out, tokenizer=tokenizer, vocab_size=data.vocab_size, **data.options)
    return TokenData(out)


def fingerprint(data: TokenData) -> str:
    """SHA-256 of the tokens: of the shards' hashes, whatever their names and the sources' are."""
    shards = {name: [shard.sha256 for shard in split.shards] for name, split in data.manifest.splits.items()}
    return hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()


def _locate(name: str, beside: Path) -> str:
    """A file, directory or pattern beside the YAML file, or else relative to the current directory."""
    relative = str(beside / name)
    return relative if glob.glob(relative, recursive=True) else name
