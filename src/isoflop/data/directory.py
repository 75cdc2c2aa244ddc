"""A data directory appears whole or not at all, and is never replaced by accident."""

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from isoflop.data.manifest import MANIFEST_FILE, TOKENIZER_FILE, Manifest
from isoflop.data.tokens import TokenData
from isoflop.errors import InputError, RunError

_OURS: Final = re.compile(
    rf"(train|validation)-\d{{5}}\.bin|{re.escape(MANIFEST_FILE)}|{re.escape(TOKENIZER_FILE)}", re.ASCII
)


def find_prepared(out: Path, identity: str, options: Mapping[str, Any], *, overwrite: bool) -> Manifest | None:
    """The manifest of `out` if it holds the data of this identity; none if `out` is free to be written.

    Raises:
        InputError: if `out` holds other data and may not be overwritten, or holds anything that is not prepared data.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise InputError(f"out is {out}, which is a file; a directory is needed.")
    names = sorted(entry.name for entry in out.iterdir())
    if not names:
        return None
    present = None
    if MANIFEST_FILE in names:
        try:
            data = TokenData(out)
            if overwrite:
                data.verify()
            present = data.manifest
        except InputError:
            if not overwrite:
                raise
    if present is not None and present.identity == identity:
        return present
    if foreign := [name for name in names if not _OURS.fullmatch(name)]:
        raise InputError(
            f"out is {out}, which holds {foreign[0]!r}: not prepared data, never overwritten; choose another directory."
        )
    if overwrite:
        return None
    if present is None:
        raise InputError(f"out is {out}, which holds an incomplete data set; choose another or overwrite it.")
    raise InputError(
        f"out is {out}, which holds other data ({_difference(present, options)}); choose another or overwrite it."
    )


def _difference(present: Manifest, options: Mapping[str, Any]) -> str:
    for name, value in options.items():
        if (there := present.options.get(name)) != value:
            return f"{name} is {there!r} there and {value!r} here"
    return "made from other sources"


@contextmanager
def writing(out: Path, identity: str) -> Iterator[Path]:
    """A new directory beside `out` to write to; at the end it takes the place of `out`.

    If another process has made the same data meanwhile, that one stays.

    Raises:
        RunError: if the disk refuses.
    """
    out = out.resolve()
    token = uuid.uuid4().hex[:8]
    temporary, old = out.with_name(f".{out.name}.{token}.new"), out.with_name(f".{out.name}.{token}.old")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"out is {out}, which cannot be made: {error.strerror}.") from None
    try:
        yield temporary
        _flush(temporary / MANIFEST_FILE)
        try:
            temporary.rename(out)
        except OSError:
            if not _holds(out, identity):
                out.rename(old)
                temporary.rename(out)
        _flush(out.parent)
    except OSError as error:
        raise RunError(f"data directory {out} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _holds(out: Path, identity: str) -> bool:
    try:
        data = TokenData(out)
        data.verify()
    except InputError:
        return False
    return data.manifest.identity == identity


def _flush(path: Path) -> None:
    """Make a file or the entries of a directory outlast a power cut, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no directories
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
