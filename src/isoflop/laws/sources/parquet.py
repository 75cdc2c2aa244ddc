"""Runs in Parquet, through pyarrow."""

from pathlib import Path
from typing import Any

from isoflop.errors import InputError


def rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Number and cells of every row.

    Raises:
        InputError: if the file cannot be read or pyarrow is absent.
    """
    arrow, parquet = pyarrow(path)
    try:
        found = parquet.read_table(path).to_pylist()
    except (OSError, arrow.ArrowInvalid) as error:
        raise InputError(f"run table {path} cannot be read: {str(error).splitlines()[0]}.") from None
    return [(f"row {number}", row) for number, row in enumerate(found, start=1)]


def pyarrow(path: Path) -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        InputError: if pyarrow is absent.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise InputError(f"run table {path} is Parquet, which needs pyarrow: pip install 'isoflop[parquet]'.") from None
    return pyarrow, pyarrow.parquet
