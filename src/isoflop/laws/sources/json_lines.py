"""Runs as JSON objects, one a line, or as one array of them."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from isoflop.errors import InputError
from isoflop.laws.sources.opened import opened


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Line and object of every line that is not blank; of an array over the whole file, place and object.

    Raises:
        InputError: if the file cannot be read, or a line or an entry is not one object.
    """
    with opened(path) as file:
        try:
            if (entries := _array(file)) is not None:
                for number, row in enumerate(entries, start=1):
                    if not isinstance(row, dict):
                        raise InputError(
                            f"{path} entry {number} holds {type(row).__name__}; each entry must be one object."
                        )
                    yield f"entry {number}", row
                return
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(f"{path} line {number} is not JSON: {error.msg}.") from None
                if not isinstance(row, dict):
                    raise InputError(f"{path} line {number} holds {type(row).__name__}; each line must be one object.")
                yield f"line {number}", row
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not JSON lines in UTF-8: {error}.") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path} cannot be unpacked: {error}.") from None


def _array(file: TextIO) -> list[Any] | None:
    """The array that the file is, or None, and the file at its beginning."""
    start = file.read(4096).lstrip()[:1]
    file.seek(0)
    if start != "[":
        return None
    try:
        entries = json.loads(file.read())
    except ValueError:
        entries = None
    file.seek(0)
    return entries if isinstance(entries, list) else None
