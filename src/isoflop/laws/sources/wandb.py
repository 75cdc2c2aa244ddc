"""Runs that Weights & Biases logged: the directories that `wandb` leaves behind, and tables exported from it.

Columns are named as in the service: `config.x` and `summary.y`, with dots for what is nested.
"""

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from isoflop.errors import InputError

_SUMMARY = "wandb-summary.json"
_CONFIG = "config.yaml"
_SAME_RUN = ("latest-run",)  # a link to one of the others
_PARTS = ("config", "summary")  # columns that hold a whole dictionary
_UNQUOTED = re.compile(r"(?<![\w'\"])-?(?:nan|inf)(?![\w'\"])")
"""Not-a-number and infinity as Python prints them inside a dictionary."""


def run_directories(path: Path) -> list[Path]:
    """Directories of single runs at or below `path` that hold files/wandb-summary.json."""
    found = {summary.parent.parent for summary in path.rglob(f"files/{_SUMMARY}")}
    return sorted(directory for directory in found if directory.name not in _SAME_RUN)


def rows(path: Path, runs: Iterable[Path]) -> list[tuple[str, dict[str, Any]]]:
    """One row for each run directory: run_id, config.x from config.yaml and summary.y from wandb-summary.json.

    Raises:
        InputError: if one of the files is malformed.
    """
    found = []
    for directory in runs:
        files = directory / "files"
        row: dict[str, Any] = {"run_id": directory.name.rpartition("-")[2]}
        if (files / _CONFIG).exists():
            row |= _flat("config", _config(files / _CONFIG))
        row |= _flat("summary", _summary(files / _SUMMARY))
        found.append((str(directory.relative_to(path)), row))
    return found


def flattened(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows whose columns `config` and `summary` hold dictionaries, as `Api().runs()` in a table does, made flat.

    Other rows pass unchanged, the web page's own export among them, which is flat already.

    Raises:
        InputError: if a cell starts as a dictionary and cannot be read as one.
    """
    for label, row in rows:
        if any(_is_dictionary(row.get(part)) for part in _PARTS):
            flat: dict[str, Any] = {}
            for name, cell in row.items():
                if name in _PARTS and _is_dictionary(cell):
                    flat |= _flat(name, cell if isinstance(cell, Mapping) else _parsed(cell, f"{label}: {name}"))
                else:
                    flat[name] = cell
            row = flat
        yield label, row


def _is_dictionary(cell: Any) -> bool:
    return isinstance(cell, Mapping) or (isinstance(cell, str) and cell.lstrip().startswith("{"))


def _parsed(text: str, where: str) -> Mapping[str, Any]:
    """A dictionary in JSON or as Python prints it."""
    try:
        return dict(json.loads(text))
    except ValueError:
        pass
    try:
        return dict(ast.literal_eval(_UNQUOTED.sub("None", text)))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise InputError(f"{where} is {shown!r}, which is no dictionary; export it as JSON.") from None


def _config(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise InputError(f"{path} is not YAML in UTF-8; it must be what wandb wrote.") from None
    if not isinstance(values, Mapping):
        raise InputError(f"{path} holds {type(values).__name__}; it must map names to values, as wandb writes it.")
    return {
        name: value["value"] if isinstance(value, Mapping) and "value" in value else value
        for name, value in values.items()
        if name != "wandb_version"
    }


def _summary(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{path} is not JSON in UTF-8; it must be what wandb wrote.") from None
    if not isinstance(values, Mapping):
        raise InputError(f"{path} holds {type(values).__name__}; it must be one object, as wandb writes it.")
    return values


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries as one, with dots; what is no number, word or truth value is left out, as is _wandb."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == "_wandb":
            continue
        key = f"{prefix}.{name}"
        if isinstance(value, Mapping):
            found |= _flat(key, value)
        elif value is None or isinstance(value, (str, bool, int, float)):
            found[key] = None if isinstance(value, float) and math.isnan(value) else value
    return found
