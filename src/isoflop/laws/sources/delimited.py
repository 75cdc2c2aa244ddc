"""Runs in comma- or tab-separated text."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from isoflop.errors import InputError
from isoflop.laws.sources.opened import opened


def rows(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Line and cells of every row below the header; blank lines and lines that start with # are passed over.

    Raises:
        InputError: if the file cannot be read, a line has not one cell for each column, or a column is there twice.
    """
    with opened(path) as file:
        try:
            reader = csv.reader(file, delimiter=delimiter)
            header: list[str] = []
            read = 0
            for cells in reader:
                first, read = read + 1, reader.line_num
                line = f"line {first}" if first == read else f"lines {first} to {read}"
                if not any(cell.strip() for cell in cells) or _is_comment(cells, header):
                    continue
                if not header:
                    header = [name.strip() for name in cells]
                    _check_separator(path, line, header, delimiter)
                    doubled = sorted(name for name in header if header.count(name) > 1)
                    if doubled:
                        raise InputError(f"{path} {line}: column {doubled[0]!r} appears twice; rename one.")
                    continue
                if len(cells) != len(header):
                    raise InputError(
                        f"{path} {line}: it has {len(cells)} cells and the header has {len(header)}; quote cells that "
                        "hold a comma, and close every quote."
                    )
                yield line, dict(zip(header, cells, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a table of text in UTF-8: {error}.") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path} cannot be unpacked: {error}.") from None


def _check_separator(path: Path, line: str, header: list[str], delimiter: str) -> None:
    """Raise InputError if a header is one cell that another separator would divide."""
    if len(header) > 1:
        return
    for other, name in (("\t", "tabs"), (";", "semicolons"), (",", "commas"), ("|", "bars")):
        if other in header[0] and other != delimiter:
            wanted = "tabs in a .tsv file" if delimiter == "\t" else "commas in a .csv file (tabs in a .tsv file)"
            raise InputError(
                f"{path} {line}: its header is the one cell {header[0][:60]!r}, which {name} seem to divide; a table "
                f"is read with {wanted}."
            )


def _is_comment(cells: list[str], header: list[str]) -> bool:
    """Whether a line starts with # and is no row: a name such as #7 may start one that has a cell for every column."""
    odd = len(cells) != len(header) if header else len(cells) == 1
    return cells[0].startswith("# ") or (cells[0].startswith("#") and odd)
