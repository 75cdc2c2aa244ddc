"""Text files, compressed or not."""

import gzip
from pathlib import Path
from typing import TextIO, cast

from isoflop.errors import InputError


def opened(path: Path) -> TextIO:
    """The file as UTF-8 text, unpacked if its name ends in .gz.

    Raises:
        InputError: if it cannot be opened.
    """
    try:
        if path.suffix.lower() == ".gz":
            return cast("TextIO", gzip.open(path, "rt", newline="", encoding="utf-8-sig"))
        return path.open(newline="", encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"run table {path} cannot be read: {error.strerror}.") from None
