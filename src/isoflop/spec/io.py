"""Specs as YAML or JSON files."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from isoflop.errors import InputError
from isoflop.spec._problems import describe_validation_error, refuse_flags
from isoflop.spec.decoder import DecoderSpec

__all__ = ["describe_validation_error", "load_spec", "parse_spec", "read_fields", "save_spec", "spec_to_dict"]


def load_spec(path: str | Path) -> DecoderSpec:
    """Read a DecoderSpec from a .yaml, .yml or .json file.

    Raises:
        InputError: if the file is missing, is not YAML/JSON, or names a field or value that does not exist.
    """
    return parse_spec(read_fields(path, what="spec file", kind=DecoderSpec), source=str(path))


def parse_spec(values: Mapping[str, Any], *, source: str = "spec") -> DecoderSpec:
    """Build a DecoderSpec from nested mappings (numbers may be strings such as "1e-6").

    Raises:
        InputError: naming the field, the value and what is allowed.
    """
    from pydantic import TypeAdapter, ValidationError

    refuse_flags(values, source, DecoderSpec)
    try:
        return TypeAdapter(DecoderSpec).validate_python(dict(values))
    except ValidationError as error:
        raise InputError(describe_validation_error(error, source, DecoderSpec)) from None


def spec_to_dict(spec: DecoderSpec) -> dict[str, Any]:
    """The spec as nested plain dictionaries; `parse_spec` of it gives an equal spec."""
    return asdict(spec)


def save_spec(spec: DecoderSpec, path: str | Path) -> None:
    """Write the spec as JSON if the name ends in .json, else as YAML."""
    path = Path(path)
    values = spec_to_dict(spec)
    text = json.dumps(values, indent=2) + "\n" if path.suffix == ".json" else yaml.safe_dump(values, sort_keys=False)
    path.write_text(text, encoding="utf-8")


def read_fields(path: str | Path, *, what: str, kind: type) -> dict[str, Any]:
    """The fields in a YAML file, or in a JSON file if its name ends in .json.

    Args:
        path: the file.
        what: what to call it, e.g. "spec file".
        kind: the dataclass whose fields it should hold, for the message about a file without any.

    Raises:
        InputError: if it cannot be read, is not YAML or JSON, holds no mapping, or names a field twice.
    """
    path = Path(path)
    name = f"{what} {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{name} cannot be read: {reason}.") from None
    try:
        values = _json(text, name) if path.suffix == ".json" else _yaml(text, name)
    except RecursionError:
        raise InputError(f"{name} is nested too deeply; a mapping with a few levels is needed.") from None
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds {_KINDS.get(type(values), 'a single value')}"
        raise InputError(f"{name} {found}; a mapping with the fields {', '.join(_names(kind))} is needed.")
    return values


_KINDS = {list: "a list", str: "text", int: "a number", float: "a number"}


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _json(text: str, name: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{name} names the field {twice!r} twice; each may stand there once.")
        return values

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} is not valid JSON (line {error.lineno}, column {error.colno}).") from None
    except InputError:
        raise
    except ValueError:  # thousands of digits
        raise InputError(f"{name} is not valid JSON: it holds a number that is too long.") from None


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which by itself lets a later key replace an earlier one of the same name."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                line = key.start_mark.line + 1
                raise InputError(f"names the field {key.value!r} twice (line {line}); each may stand there once.")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


def _yaml(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)
    except InputError as error:
        raise InputError(f"{name} {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has, thousands of digits
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise InputError(f"{name} is not valid YAML{where}.") from None
