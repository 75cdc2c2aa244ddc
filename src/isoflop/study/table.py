"""The run table on disk, replaced in one step."""

import filecmp
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from isoflop.laws import RunTable, read_runs, write_runs

LEADING: Final = (
    "run_id", "study", "architecture", "budget", "stage", "seed", "status", "loss", "loss_std", "bits_per_byte",
    "params_total", "params_active", "params_embedding", "tokens", "flops", "flops_convention", "n_layers", "d_model",
    "granularity", "expansion_rate", "n_experts", "top_k", "sparsity", "expert_attention_ratio", "depth_capacity",
    "router",
)  # fmt: skip
"""Columns that come first; the others follow in the order of the rows."""


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a .csv or .parquet file, replacing it in one step; a file that says the same is left alone."""
    ordered = [{**{name: row.get(name) for name in LEADING}, **row} for row in rows]
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    write_runs(RunTable(ordered), temporary)
    if path.exists() and filecmp.cmp(path, temporary, shallow=False):
        temporary.unlink()
    else:
        temporary.replace(path)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a run table.

    Raises:
        InputError: if the file cannot be read or has no rows.
    """
    return read_runs(path).rows
