"""What every verb shares: the JSON option, tables and number formats."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def print_json(document: Mapping[str, Any]) -> None:
    """Write `document` to stdout as strict JSON: NaN and infinities become null."""
    sys.stdout.write(json.dumps(_finite(document), indent=2, default=_plain) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; every column but the first is right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    console = Console(width=None if console.is_terminal else 100)
    console.print(table)


def si(value: float | None, digits: int = 3) -> str:
    """A number with an SI-like suffix as the field writes them: 1.23M, 4.37B, 2.95e+18; '–' if missing."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1e15:
        return f"{value:.{digits - 1}e}"
    rounded = float(f"{value:.{digits}g}")  # 999,999,999 is 1B, not 1e+03M
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(rounded) >= factor:
            return f"{rounded / factor:.{digits}g}{suffix}"
    return f"{value:.{digits}g}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    return str(value)
