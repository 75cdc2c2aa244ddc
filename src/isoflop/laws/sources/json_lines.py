"""Runs as JSON objects, one a line."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.errors import InputError
from isoflop.laws.sources.opened import opened


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Line and object of every line that is not blank.

    Raises:
        InputError: if the file cannot be read or a line is not one object.
    """
    with opened(path) as file:
        try:
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
