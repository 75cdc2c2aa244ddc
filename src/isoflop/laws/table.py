"""The run table: training runs in the standard columns, whoever trained them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.numbers import MISSING, parse_number

DONE: Final = "done"
"""The status of a run whose loss counts."""

TEXT: Final = frozenset(
    {"run_id", "study", "architecture", "router", "status", "flops_convention", "error", "version", "convention"}
)
"""Columns that stay text even if every value looks like a number."""


class RunTable:
    """Rows of training runs with typed access to their columns.

    `table["loss"]` is a float array [n] with NaN where a row has no value; a column that holds anything but numbers is
    an object array with None. `table.where(architecture="dense")` and `table.where(table["loss"] < 3)` select rows.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        notes: Sequence[str] = (),
        labels: Sequence[str] | None = None,
        source: str = "the run table",
        names: Mapping[str, str] | None = None,
        derived: Iterable[str] = (),
    ) -> None:
        """Make a table of plain rows.

        Args:
            rows: mappings from column to value; a row may lack columns.
            notes: sentences about values that were derived rather than read.
            labels: where each row stands in its file, for error messages; default: row 1, row 2, …
            source: name of the file, for error messages.
            names: column → its name in the file, where they differ, for error messages.
            derived: columns that were computed and that error messages need not list.
        """
        self.rows: list[dict[str, Any]] = [dict(row) for row in rows]
        """The rows as they were given."""
        self.notes = tuple(notes)
        """What was derived or assumed when the table was read."""
        self.labels = list(labels) if labels is not None else [f"row {i + 1}" for i in range(len(self.rows))]
        """Where each row stands in its file."""
        self.source = source
        """Name of the file."""
        self.names = dict(names or {})
        """Column → its name in the file, where they differ."""
        self.derived = frozenset(derived)
        """Columns that were computed from others."""
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"RunTable({len(self)} rows: {', '.join(self.columns)})"

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def __contains__(self, column: object) -> bool:
        return any(column in row for row in self.rows)

    def __getitem__(self, column: str) -> np.ndarray:
        """One column [n], float or object.

        Raises:
            InputError: if no row has it, listing the columns present.
        """
        if column not in self._columns:
            if column not in self:
                self._check_renamed(column)
                how = f"map one with --column {column}=NAME"
                if column == "budget" and "flops" in self:  # --column would take the flops away
                    how = "if flops are the same throughout each budget, use --set budget=flops"
                raise InputError(f"{self.source} has no column {column}; it has {self.listed()} ({how}).")
            self._columns[column] = _typed([row.get(column) for row in self.rows])
        return self._columns[column]

    def listed(self) -> str:
        """The columns that were not derived, for error messages."""
        return ", ".join(name for name in self.columns if name not in self.derived) or "none"

    def numeric(self, column: str) -> np.ndarray:
        """One column [n] as floats.

        Raises:
            InputError: if it is absent or a value is not a number, naming the row.
        """
        values = self[column]
        if values.dtype != object:
            return values
        numbers = np.empty(len(values))
        for index, value in enumerate(values):
            number = _number(value)
            if number is None:
                raise InputError(
                    f"{self.source} {self.labels[index]}: {self.in_file(column)} is {value!r}, which is not a number; "
                    "write it as 1e20, 100M or 4.37B, or leave the cell empty."
                )
            numbers[index] = number
        return numbers

    def in_file(self, column: str) -> str:
        """A column for people: its name, and the one that the file has for it."""
        name = self.names.get(column, column)
        return column if name == column else f"{column} (column {name} of the file)"

    def where(self, mask: np.ndarray | Sequence[bool] | None = None, **equal: Any) -> "RunTable":
        """The rows that a boolean mask [n] keeps and whose columns equal the given values.

        Raises:
            InputError: if the mask has another length or a column does not exist.
        """
        keep = np.ones(len(self), dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
        if keep.shape != (len(self),):
            raise InputError(f"mask has shape {keep.shape}; it must have one entry for each of the {len(self)} rows.")
        for column, value in equal.items():
            keep = keep & np.array([each == value for each in self[column]], dtype=bool)
        return self.take(np.flatnonzero(keep))

    def take(self, index: np.ndarray | Sequence[int]) -> "RunTable":
        """The rows at these positions, in this order."""
        return RunTable(
            [self.rows[i] for i in index],
            notes=self.notes,
            labels=[self.labels[i] for i in index],
            source=self.source,
            names=self.names,
            derived=self.derived,
        )

    def with_columns(self, columns: Mapping[str, Any], notes: Sequence[str] = ()) -> "RunTable":
        """The same rows with columns added or replaced; a value is an array [n] or one value for all rows."""
        if not columns and not notes:
            return self
        rows = [dict(row) for row in self.rows]
        for name, values in columns.items():
            each = values if isinstance(values, np.ndarray) else [values] * len(rows)
            for row, value in zip(rows, each, strict=True):
                row[name] = value.item() if isinstance(value, np.generic) else value
        return RunTable(
            rows,
            notes=(*self.notes, *notes),
            labels=self.labels,
            source=self.source,
            names=self.names,
            derived=self.derived,
        )

    def with_derived(self, columns: Mapping[str, Any], notes: Sequence[str]) -> "RunTable":
        """The same rows with columns added that follow from others."""
        table = self.with_columns(columns, notes)
        table.derived = self.derived | columns.keys()
        return table

    def _check_renamed(self, column: str) -> None:
        for standard, name in self.names.items():
            if name == column:
                raise InputError(f"{self.source} has no column {column} any more: it was read as {standard}; use that.")

    def usable(self) -> "RunTable":
        """The rows whose status is `done`, or all rows where there is no status."""
        if "status" not in self:
            return self
        return self.where(np.array([value in (DONE, None) for value in self["status"]], dtype=bool))


def joined(tables: Sequence[RunTable]) -> RunTable:
    """The rows of several tables in one.

    Raises:
        InputError: if there is none.
    """
    if not tables:
        raise InputError("there is no run table; give at least one.")
    if len(tables) == 1:
        return tables[0]
    return RunTable(
        [row for table in tables for row in table.rows],
        notes=tuple(dict.fromkeys(note for table in tables for note in table.notes)),
        labels=[f"{table.source} {label}" for table in tables for label in table.labels],
        source=", ".join(table.source for table in tables),
        names={name: there for table in tables for name, there in table.names.items()},
        derived=frozenset().union(*(table.derived for table in tables)),
    )


def as_columns(runs: "RunTable | Mapping[str, Any]", names: Iterable[str]) -> dict[str, np.ndarray]:
    """Named columns of a table or a mapping as float arrays [n]; one number stands for all rows.

    Raises:
        InputError: if a column is absent.
    """
    if isinstance(runs, RunTable):
        return {name: runs.numeric(name) for name in names}
    columns = {}
    for name in names:
        if name not in runs:
            raise InputError(f"column {name} is missing; the law needs it and got {', '.join(runs) or 'nothing'}.")
        columns[name] = np.atleast_1d(np.asarray(runs[name], dtype=float))
    return dict(zip(columns, np.broadcast_arrays(*columns.values()), strict=True)) if columns else {}


def _number(value: Any) -> float | None:
    """A cell as a number, NaN where it is empty; None if it is not a number."""
    if isinstance(value, str):
        return np.nan if value.strip().lower() in MISSING else parse_number(value)
    if value is None:
        return np.nan
    return float(value) if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else None


def _typed(values: list[Any]) -> np.ndarray:
    kinds = {type(value) for value in values} - {type(None)}
    if all(issubclass(kind, (int, float, np.number)) and kind is not bool for kind in kinds):
        return np.array([np.nan if value is None else float(value) for value in values], dtype=float)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
