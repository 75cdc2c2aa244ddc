"""Run tables into files."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.sources.parquet import pyarrow
from isoflop.laws.table import RunTable


def write_runs(table: RunTable, path: str | Path) -> None:
    """Write a table as .csv or .parquet; `read_runs` gives the same values back.

    Raises:
        InputError: if the name ends otherwise, or pyarrow is needed and absent.
    """
    path = Path(path)
    names = table.columns
    match path.suffix.lower():
        case ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(names)
                writer.writerows([_cell(row.get(name)) for name in names] for row in table.rows)
        case ".parquet":
            arrow, parquet = pyarrow(path)
            parquet.write_table(
                arrow.table({name: _uniform([row.get(name) for row in table.rows]) for name in names}), path
            )
        case suffix:
            raise InputError(f"run table {path} ends in {suffix or 'no suffix'}; writable are .csv and .parquet.")


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        return repr(float(value))
    return str(value)


def _uniform(values: list[Any]) -> list[Any]:
    """Values of one Arrow type: numbers, booleans, or else text."""
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and len(kinds) == 2:
        return [None if value is None else float(value) for value in values]
    if len(kinds) > 1 or not kinds <= {int, float, bool, str}:
        return [None if value is None else str(value) for value in values]
    return values
