"""The run table on disk, written atomically."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from isoflop.errors import InputError

LEADING: Final = (
    "run_id", "study", "architecture", "budget", "stage", "seed", "status", "loss", "loss_std", "bits_per_byte",
    "params_total", "params_active", "params_embedding", "tokens", "flops", "flops_convention", "n_layers", "d_model",
    "granularity", "expansion_rate", "n_experts", "top_k", "sparsity", "expert_attention_ratio", "depth_capacity",
    "router",
)  # fmt: skip
"""Columns that come first; the others follow in the order of the rows."""


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a .csv or .parquet file, replacing it in one step."""
    names = list(dict.fromkeys([*LEADING, *(name for row in rows for name in row)]))
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        columns = {name: [row.get(name) for row in rows] for name in names}
        pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
    else:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    temporary.replace(path)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a .csv file, numbers as numbers; an empty cell is None.

    Raises:
        InputError: if the file cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"table {path} cannot be read: {reason}.") from None


def _value(text: str | None) -> Any:
    if not text:
        return None
    if text in ("True", "False"):
        return text == "True"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
