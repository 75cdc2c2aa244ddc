"""Run tables from files and directories, with mapped columns and derived values."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._experts import derived_expansion, derived_granularity, idle_experts, speaks_of_experts
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
    `notes` of the table says so: tokens from flops / (6 · params), flops as 6 · params · tokens, what makes a row
    dense (granularity 1, expansion_rate 1) where nothing speaks of experts, and granularity and expansion_rate from
    n_experts, top_k or widths where something does. A header with a unit, as "tokens (B)", is
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
    """The table with the standard columns added that follow from those present; `notes` says which and how.

    Of rows with more experts than a token uses, neither flops nor tokens follow from params_total.
    """
    if not speaks_of_experts(table):
        dense: dict[str, Any] = {"granularity": 1, "expansion_rate": 1}
        notes = []
        if "params_total" not in table and "params_active" in table:
            dense["params_total"] = table.numeric("params_active")
            notes.append("params_total is absent: taken equal to params_active (dense).")
        notes.append("nothing speaks of experts: the runs are taken as dense.")
        if "params_active" not in table and "params_total" in table:
            dense["params_active"] = table.numeric("params_total")
        table = table.with_derived(dense, notes)
    elif "granularity" not in table:
        values, how = derived_granularity(table)
        table = table.with_derived({"granularity": values}, [how])
    if "expansion_rate" not in table and "n_experts" in table:
        note = "expansion_rate is absent: derived as n_experts / granularity."
        table = table.with_derived({"expansion_rate": derived_expansion(table)}, [note])
    return _with_budget(table)


def _with_budget(table: RunTable) -> RunTable:
    """The table with tokens from flops, or flops from tokens."""
    size = next((name for name in ("params_active", "params_total") if name in table), None)
    if size is None or ("tokens" in table) == ("flops" in table):
        return table
    have, lack = ("flops", "tokens") if "flops" in table else ("tokens", "flops")
    if size == "params_total" and idle_experts(table).any():
        why = f"{lack} is absent, and not derived from params_total, which counts experts that a token does not use"
        return table.with_columns({}, [f"{why}: give params_active."])
    params = table.numeric(size)
    with np.errstate(divide="ignore", invalid="ignore"):
        if lack == "tokens":
            values = {"tokens": table.numeric("flops") / (6 * params)}
            return table.with_derived(values, [f"tokens is absent: derived as flops / (6 · {size})."])
        flops = {"flops": 6 * params * table.numeric(have), "flops_convention": "6ND"}
        return table.with_derived(flops, [f"flops is absent: derived as 6 · {size} · tokens."])


def derive_sparsity(table: RunTable, columns: Iterable[str]) -> RunTable:
    """The table with sparsity, from numbers of experts, if it is absent and among `columns`; 0 where a row is dense."""
    if "sparsity" not in columns or "sparsity" in table:
        return table
    if "n_experts" in table and "top_k" in table:
        used, experts = (np.maximum(table.numeric(name), 1) for name in ("top_k", "n_experts"))
        values, how = 1 - used / experts, "1 - top_k / n_experts"
    elif "expansion_rate" in table:
        values, how = 1 - 1 / table.numeric("expansion_rate"), "1 - 1 / expansion_rate"
    else:
        return table
    return table.with_derived({"sparsity": values}, [f"sparsity is absent: derived as {how}."])


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
