"""What a data directory says about itself."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from isoflop.errors import InputError

FORMAT_VERSION: Final = 1
"""Raised whenever the same sources and options would give other files than before."""
SMALL_SHARE: Final = 0.5
"""A validation split with less than so much of the bytes that it should have is too small."""
SPLITS: Final = ("train", "validation")
"""The two parts of every data set."""
MANIFEST_FILE: Final = "manifest.json"
TOKENIZER_FILE: Final = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of the sources that a data set was made from."""

    name: str
    """Last part of its path, or the name of a built-in corpus with its version."""
    files: int
    """Number of files in it."""
    bytes: int
    """Size of those files."""
    sha256: str
    """Hash of the files' names and contents."""
    skipped: int = 0
    """Files of a built-in corpus that are not UTF-8 text and were left out."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of token ids."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """The training or the validation part."""

    tokens: int
    """Token ids, one end-of-document id per document included."""
    bytes: int
    """UTF-8 bytes of its text."""
    documents: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of manifest.json. The same sources and options always give the same manifest: no time, no full path."""

    format_version: int
    identity: str
    """SHA-256 of the sources' hashes and the options: two data sets with the same identity are the same."""
    tokenizer: str
    """"bytes", "bpe" (trained on the training split), or the name of the tokenizer's file."""
    tokenizer_sha256: str | None
    """Of tokenizer.json; none for bytes."""
    vocab_size: int
    """Number of token ids, end-of-document included."""
    end_of_document: int
    """Token id that follows every document."""
    dtype: str
    """"uint16" or "uint32", little-endian."""
    splits: Mapping[str, Split]
    """By name: "train" and "validation"."""
    sources: tuple[Source, ...]
    duplicates_dropped: int
    """Documents left out because an identical one is present."""
    options: Mapping[str, Any]
    """Arguments of `prepare` that shape the data."""

    @property
    def warning(self) -> str:
        """That the validation split is too small to trust its loss, in a sentence; empty if it is not."""
        held_out, wanted = self.splits["validation"].bytes, self.options.get("validation_fraction")
        total = sum(split.bytes for split in self.splits.values())
        if not isinstance(wanted, float) or held_out >= SMALL_SHARE * wanted * total:
            return ""
        return (
            f"the validation split has {held_out:,} of {total:,} bytes, less than half of validation_fraction "
            f"{wanted:g}: losses on it say little; give more text or a smaller document_bytes."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return asdict(self)


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write manifest.json into `directory`."""
    text = json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False) + "\n"
    (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """Read manifest.json of `directory`.

    Raises:
        InputError: if it is missing, is not JSON, lacks a field or comes from another format version.
    """
    from pydantic import TypeAdapter, ValidationError

    path = directory / MANIFEST_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{directory} is not a data directory: {MANIFEST_FILE} cannot be read ({error.strerror}); "
            "make one with `isoflop prepare`."
        ) from None
    except ValueError:
        raise InputError(f"{path} is not valid JSON; make the data again with --overwrite.") from None
    if not isinstance(values, dict) or "format_version" not in values:
        raise InputError(f"{path} is not the manifest of a data directory: it has no format_version.")
    if values["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version is {values['format_version']!r}; this isoflop reads {FORMAT_VERSION}: make the "
            "data again with --overwrite."
        )
    try:
        manifest = TypeAdapter(Manifest).validate_python(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"{path}: {field}: {problem['msg'].lower()}; make the data again with --overwrite.") from None
    if missing := [split for split in SPLITS if split not in manifest.splits]:
        raise InputError(f"{path}: splits lacks {missing[0]!r}; make the data again with --overwrite.")
    if manifest.dtype not in ("uint16", "uint32"):
        raise InputError(f"{path}: dtype is {manifest.dtype!r}; allowed: uint16, uint32.")
    return manifest
