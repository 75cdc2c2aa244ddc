"""Where runs are read from: one module for each kind of file or directory that people keep them in.

Every source gives the same: for each run, where it stands (for error messages) and its cells by column name, as they
were written. What the cells mean is decided in isoflop.laws.reading.
"""

from pathlib import Path
from typing import Any

from isoflop.errors import InputError
from isoflop.laws.sources import delimited, json_lines, parquet, tensorboard, wandb

Labelled = list[tuple[str, dict[str, Any]]]
"""Each row's place in its source, and its cells by column."""

_FILES = ".csv, .tsv, .jsonl, .json (also .gz of these) and .parquet"
_DIRECTORIES = "a study (runs.csv), Weights & Biases runs (files/wandb-summary.json) or TensorBoard event files"


def source_rows(path: Path) -> Labelled:
    """The rows of a file, by its suffix, or of a directory, by what lies in it.

    Raises:
        InputError: if the kind is not known or a line is malformed.
    """
    if path.is_dir():
        return _directory(path)
    name = path.name.lower().removesuffix(".gz")
    match Path(name).suffix:
        case ".csv":
            return list(wandb.flattened(delimited.rows(path, ",")))
        case ".tsv":
            return list(delimited.rows(path, "\t"))
        case ".jsonl" | ".ndjson" | ".json":
            return list(wandb.flattened(json_lines.rows(path)))
        case ".parquet" if name == path.name.lower():
            return parquet.rows(path)
        case suffix:
            raise InputError(f"run table {path} ends in {suffix or 'no suffix'}; readable are {_FILES}.")


def _directory(path: Path) -> Labelled:
    if (path / "runs.csv").exists():
        return list(delimited.rows(path / "runs.csv", ","))
    if runs := wandb.run_directories(path):
        return wandb.rows(path, runs)
    if runs := tensorboard.run_directories(path):
        return tensorboard.rows(path, runs)
    raise InputError(f"{path} is a directory without runs.csv or other runs; readable is {_DIRECTORIES}.")
