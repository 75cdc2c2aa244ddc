"""Run tables in files: CSV, JSON lines and Parquet, with mapped columns and derived values."""

import csv
import gzip
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.numbers import MISSING, parse_number
from isoflop.laws.table import RunTable

TEXT: Final = frozenset(
    {"run_id", "study", "architecture", "router", "status", "flops_convention", "error", "version", "convention"}
)
"""Columns that stay text even if every value looks like a number."""

_WHOLE = re.compile(r"[+-]?\d{1,15}")
_FORMATS = ".csv, .tsv, .jsonl (also .gz of these) and .parquet"


def read_runs(path: str | Path, columns: Mapping[str, str] | None = None) -> RunTable:
    """Read a run table from a .csv, .tsv, .jsonl or .parquet file; the text ones may be compressed (.csv.gz).

    Blank lines and lines that start with # are passed over in a CSV file.

    Numbers may be written 1e20, 100M, 4.37B, 2.1T or 3K. A column that the file lacks is derived where it can be, and
    `notes` of the table says so: tokens from flops / (6 · params), flops as 6 · params · tokens, and what makes a row
    dense (granularity 1, expansion_rate 1) where nothing speaks of experts.

    Args:
        path: the file.
        columns: standard column name → name in the file, where they differ.

    Raises:
        InputError: if the file cannot be read, a mapped column does not exist, or a line is malformed.
    """
    path = Path(path)
    match _suffix(path):
        case ".csv":
            pairs = list(_csv_rows(path, ","))
        case ".tsv":
            pairs = list(_csv_rows(path, "\t"))
        case ".jsonl" | ".ndjson":
            pairs = list(_json_rows(path))
        case ".parquet":
            pairs = _parquet_rows(path)
        case suffix:
            raise InputError(f"run table {path} ends in {suffix or 'no suffix'}; readable are {_FORMATS}.")
    if not pairs:
        raise InputError(f"run table {path} has no rows; it needs a header and one line for each run.")
    labels = [label for label, _ in pairs]
    rows = _mapped(path, [row for _, row in pairs], columns or {})
    return derive(RunTable(rows, labels=labels, source=str(path), names=columns))


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
            arrow, parquet = _pyarrow(path)
            parquet.write_table(
                arrow.table({name: _uniform([row.get(name) for row in table.rows]) for name in names}), path
            )
        case suffix:
            raise InputError(f"run table {path} ends in {suffix or 'no suffix'}; writable are .csv and .parquet.")


def derive(table: RunTable) -> RunTable:
    """The table with the standard columns added that follow from those present; `notes` says which and how."""
    added: dict[str, Any] = {}
    notes = []

    def have(name: str) -> bool:
        return name in table or name in added

    if not have("params_total") and have("params_active") and not _speaks_of_experts(table):
        added["params_total"] = table.numeric("params_active")
        notes.append("params_total is absent: taken equal to params_active (dense).")
    if not _speaks_of_experts(table):
        added |= {"granularity": 1, "expansion_rate": 1}
        notes.append("nothing speaks of experts: the runs are taken as dense.")
        if not have("params_active") and have("params_total"):
            added["params_active"] = table.numeric("params_total")
    elif not have("granularity"):
        added["granularity"] = 1
        notes.append("granularity is absent: taken as 1.")
    size = next((name for name in ("params_active", "params_total") if have(name)), None)
    if size is not None:
        params = np.asarray(added[size]) if size in added else table.numeric(size)
        with np.errstate(divide="ignore", invalid="ignore"):
            if not have("tokens") and have("flops"):
                added["tokens"] = table.numeric("flops") / (6 * params)
                notes.append(f"tokens is absent: derived as flops / (6 · {size}).")
            elif not have("flops") and have("tokens"):
                added["flops"] = 6 * params * table.numeric("tokens")
                added["flops_convention"] = "6ND"
                notes.append(f"flops is absent: derived as 6 · {size} · tokens.")
    return table.with_columns(added, notes) if added else table


def derive_sparsity(table: RunTable) -> RunTable:
    """The table with sparsity, from the numbers of experts or else the expansion rate, where it is absent."""
    if "sparsity" in table:
        return table
    if "n_experts" in table and "top_k" in table:
        values, how = 1 - table.numeric("top_k") / table.numeric("n_experts"), "1 - top_k / n_experts"
    elif "expansion_rate" in table:
        values, how = 1 - 1 / table.numeric("expansion_rate"), "1 - 1 / expansion_rate"
    else:
        return table
    return table.with_columns({"sparsity": values}, [f"sparsity is absent: derived as {how}."])


def _speaks_of_experts(table: RunTable) -> bool:
    """Whether any column tells dense from MoE; without one, a table is taken as dense."""
    if any(name in table for name in ("expansion_rate", "n_experts", "sparsity")):
        return True
    if "granularity" in table and np.nanmax(table.numeric("granularity"), initial=1) > 1:
        return True
    if "params_active" in table and "params_total" in table:
        return bool(np.any(table.numeric("params_active") < table.numeric("params_total")))
    return False


def _mapped(path: Path, rows: list[dict[str, Any]], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows in the standard names with typed values, without columns that are empty throughout."""
    present = list(dict.fromkeys(name for row in rows for name in row))
    for standard, name in columns.items():
        if name not in present:
            if standard in present:
                raise InputError(
                    f"{path} has a column {standard!r} and none called {name!r}; the standard name comes first: did "
                    f"you mean --column {name}={standard}?"
                )
            raise InputError(
                f"{path} has no column {name!r} to take {standard} from; it has {', '.join(present)}; give "
                f"--column {standard}=NAME with one of these."
            )
    sources = dict(columns)
    for name in present:
        if name not in sources and name not in columns.values():
            sources[name] = name
    typed = {name: _typed_cells(name, [row.get(source) for row in rows]) for name, source in sources.items()}
    filled = [name for name, values in typed.items() if any(value is not None for value in values)]
    return [{name: typed[name][index] for name in filled} for index in range(len(rows))]


def _typed_cells(name: str, cells: list[Any]) -> list[Any]:
    """Numbers if every cell is one or is missing, else booleans if every cell is one, else as they are."""
    cells = [None if cell == "" or (isinstance(cell, float) and math.isnan(cell)) else cell for cell in cells]
    if name in TEXT:
        return [None if cell is None else str(cell) for cell in cells]
    texts = [cell.strip() if isinstance(cell, str) else cell for cell in cells]
    known = [None if isinstance(text, str) and text.lower() in MISSING else text for text in texts]
    numbers = [_number(value) if isinstance(value, str) else value for value in known]
    if all(number is not None or value is None for number, value in zip(numbers, known, strict=True)):
        return numbers
    words = {value.lower() for value in known if isinstance(value, str)}
    if words <= {"true", "false"} and all(isinstance(value, (str, bool, type(None))) for value in known):
        return [value.lower() == "true" if isinstance(value, str) else value for value in known]
    return cells


def _number(text: str) -> int | float | None:
    if _WHOLE.fullmatch(text):
        return int(text)
    return parse_number(text)


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with _opened(path) as file:
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
        except (csv.Error, UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
            raise InputError(f"{path} is not a CSV file in UTF-8: {error}.") from None


def _is_comment(cells: list[str], header: list[str]) -> bool:
    """Whether a line starts with # and is no row: a name such as #7 may start one that has a cell for every column."""
    odd = len(cells) != len(header) if header else len(cells) == 1
    return cells[0].startswith("# ") or (cells[0].startswith("#") and odd)


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _opened(path) as file:
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


def _parquet_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    arrow, parquet = _pyarrow(path)
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, arrow.ArrowInvalid) as error:
        raise InputError(f"run table {path} cannot be read: {str(error).splitlines()[0]}.") from None
    return [(f"row {number}", row) for number, row in enumerate(rows, start=1)]


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise InputError(f"run table {path} is Parquet, which needs pyarrow: pip install 'isoflop[parquet]'.") from None
    return pyarrow, pyarrow.parquet


def _suffix(path: Path) -> str:
    """The ending that says the format; that before .gz for a compressed file."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _opened(path: Path) -> TextIO:
    try:
        if path.suffix.lower() == ".gz":
            return gzip.open(path, "rt", newline="", encoding="utf-8-sig")
        return path.open(newline="", encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"run table {path} cannot be read: {error.strerror}.") from None


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
