"""Specs as YAML or JSON files."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from isoflop.errors import InputError
from isoflop.spec.decoder import DecoderSpec


def load_spec(path: str | Path) -> DecoderSpec:
    """Read a DecoderSpec from a .yaml, .yml or .json file.

    Raises:
        InputError: if the file is missing, is not YAML/JSON, or names a field or value that does not exist.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"spec file {path} cannot be read: {reason}.") from None
    try:
        values = yaml.safe_load(text)  # JSON is a subset of YAML
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise InputError(f"spec file {path} is not valid YAML{where}.") from None
    if not isinstance(values, Mapping):
        raise InputError(f"spec file {path} holds {type(values).__name__}; a mapping of fields is needed.")
    return parse_spec(values, source=str(path))


def parse_spec(values: Mapping[str, Any], *, source: str = "spec") -> DecoderSpec:
    """Build a DecoderSpec from nested mappings (numbers may be strings such as "1e-6").

    Raises:
        InputError: naming the field, the value and what is allowed.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(DecoderSpec).validate_python(dict(values))
    except ValidationError as error:
        raise InputError(describe_validation_error(error, source)) from None


def spec_to_dict(spec: DecoderSpec) -> dict[str, Any]:
    """The spec as nested plain dictionaries; `parse_spec` of it gives an equal spec."""
    return asdict(spec)


def save_spec(spec: DecoderSpec, path: str | Path) -> None:
    """Write the spec as JSON if the name ends in .json, else as YAML."""
    path = Path(path)
    values = spec_to_dict(spec)
    text = json.dumps(values, indent=2) + "\n" if path.suffix == ".json" else yaml.safe_dump(values, sort_keys=False)
    path.write_text(text, encoding="utf-8")


def describe_validation_error(error: Any, source: str) -> str:
    """The first problem of a pydantic ValidationError as one sentence: source, field, value, what is allowed."""
    problem = error.errors(include_url=False)[0]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return f"{source}: {cause}"
    field = ".".join(str(part) for part in problem["loc"]) or "the document"
    match problem["type"]:
        case "missing" | "missing_keyword_only_argument" | "missing_argument":
            return f"{source}: {field} is missing; it is required."
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"{source}: {field} is not a field; check its spelling and its place."
    allowed = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{source}: {field} is {problem['input']!r}; {allowed}."
