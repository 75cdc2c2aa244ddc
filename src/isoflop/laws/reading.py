"""Run tables from files and directories, with mapped columns and derived values."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.expressions import with_values
from isoflop.laws.numbers import MISSING, parse_number
from isoflop.laws.sources import source_rows
from isoflop.laws.table import DONE, TEXT, RunTable

_WHOLE = re.compile(r"[+-]?\d{1,15}")
_QUANTITIES: Final = frozenset({"params_total", "params_active", "params_embedding", "tokens", "flops", "loss"})
_UNIT = re.compile(
    r"[(\[]\s*(K|M|B|T|thousands?|millions?|billions?|trillions?|[GTPEZ]?FLOPS?|1e\d+|10\^\d+|PF.?days?|bits?.*|log.*)\s*[)\]]$",
    re.IGNORECASE,
)
_FACTORS: Final = {"k": "1e3", "t": "1e12", "m": "1e6", "b": "1e9"}
_STATES: Final = frozenset({"finished", "crashed", "failed", "killed", "running", "preempted", "preempting", "pending"})
"""How Weights & Biases says that a run ended."""


def read_runs(
    path: str | Path, columns: Mapping[str, str] | None = None, values: Mapping[str, str] | None = None
) -> RunTable:
    """Read a run table from a file or a directory.

    Files are .csv, .tsv, .jsonl (each also with .gz) and .parquet. Directories are a study, runs of Weights & Biases,
    or event files of TensorBoard. Blank lines and lines that start with # are passed over in a CSV file.

    Numbers may be written 1e20, 100M, 4.37B, 2.1T or 3K. A column that the file lacks is derived where it can be, and
    `notes` of the table says so: tokens from flops / (6 · params), flops as 6 · params · tokens, and what makes a row
    dense (granularity 1, expansion_rate 1) where nothing speaks of experts. A header with a unit, as "tokens (B)", is
    never scaled by itself.

    Args:
        path: the file or directory.
        columns: standard column name → name in the file, where they differ.
        values: column → a number, a word in quotes, or arithmetic on columns (see `with_values`), in this order, before
            anything is derived.

    Raises:
        InputError: if it cannot be read, a mapped column does not exist, or a line is malformed.
    """
    path = Path(path)
    pairs = source_rows(path)
    if not pairs:
        raise InputError(f"run table {path} has no rows; it needs a header and one line for each run.")
    labels = [label for label, _ in pairs]
    rows = _mapped(path, [row for _, row in pairs], columns or {})
    table = _with_status(RunTable(rows, labels=labels, source=str(path), names=columns))
    for name, text in (values or {}).items():
        table = with_values(table, name, text)
    return derive(table)


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


def derive_experts(table: RunTable, columns: Iterable[str]) -> RunTable:
    """The table with expansion_rate and sparsity, from numbers of experts, if they are absent and among `columns`.

    A row with no experts or one is dense: expansion_rate 1, sparsity 0.
    """
    if "expansion_rate" in columns and "expansion_rate" not in table and "n_experts" in table:
        granularity = table.numeric("granularity") if "granularity" in table else np.ones(len(table))
        rates = np.maximum(table.numeric("n_experts") / granularity, 1)
        note = "expansion_rate is absent: derived as n_experts / granularity."
        table = table.with_columns({"expansion_rate": rates}, [note])
    if "sparsity" not in columns or "sparsity" in table:
        return table
    if "n_experts" in table and "top_k" in table:
        used, experts = (np.maximum(table.numeric(name), 1) for name in ("top_k", "n_experts"))
        values, how = 1 - used / experts, "1 - top_k / n_experts"
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
        if standard in _QUANTITIES and (unit := _UNIT.search(name)):
            factor = _FACTORS.get(unit[1][0].lower(), "FACTOR") if len(unit[1]) == 1 or "ion" in unit[1] else "FACTOR"
            raise InputError(
                f"{path} has {name!r} for {standard}, a header that names a unit, and units are not guessed; say it "
                f'with --column X={name!r} --set "{standard}=X*{factor}", or {standard}=X if the cells are in full.'
            )
    sources = dict(columns)
    for name in present:
        if name not in sources and name not in columns.values():
            sources[name] = name
    typed = {name: _typed_cells(name, [row.get(source) for row in rows]) for name, source in sources.items()}
    filled = [name for name, values in typed.items() if any(value is not None for value in values)]
    return [{name: typed[name][index] for name in filled} for index in range(len(rows))]


def _with_status(table: RunTable) -> RunTable:
    """The table with `finished`, as Weights & Biases says it, as status done."""
    column = next((name for name in ("status", "State", "state", "summary.state") if name in table), None)
    if column is None:
        return table
    states = [value.lower() if isinstance(value, str) else value for value in table[column].tolist()]
    if not {state for state in states if state is not None} <= _STATES:
        return table
    status = np.array([DONE if state == "finished" else state for state in states], dtype=object)
    return table.with_columns({"status": status}, [f"status is read from {column}: finished is done."])


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
