"""What is wrong with a mapping that pydantic would not take for a dataclass, in the words of whoever wrote it."""

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from isoflop.errors import InputError


def describe_validation_error(error: Any, source: str, kind: type | None = None) -> str:
    """The first problem of a pydantic ValidationError as one sentence: source, field, value, what is allowed.

    A field that does not exist comes before one that is missing, since it is often the missing one misspelt.

    Args:
        error: the ValidationError.
        source: the file or mapping that was read.
        kind: the dataclass that it should have given; with it, the sentence lists the fields that exist.
    """
    problems = error.errors(include_url=False)
    problem = next((problem for problem in problems if problem["type"] in _UNKNOWN), problems[0])
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return f"{source}: {cause}"
    path, found = _locate(kind, problem["loc"])
    field = ".".join(path) or "the document"
    if problem["type"] in _UNKNOWN:
        around = problem["loc"][:-1]
        missing = [
            str(other["loc"][-1]) for other in problems if other["type"] in _MISSING and other["loc"][:-1] == around
        ]
        return f"{source}: {field} is not a field; {_instead(path[-1], missing, _locate(kind, around)[1])}."
    if problem["type"] in _MISSING:
        return f"{source}: {field} is missing; it is required."
    same = [other for other in problems if _locate(kind, other["loc"])[0] == path]
    allowed = dict.fromkeys(_allowed(other, found) for other in same)
    return f"{source}: {field} is {shown(problem['input'])}; it must be {' or '.join(allowed)}."


def refuse_flags(values: Mapping[str, Any], source: str, kind: Any, place: str = "") -> None:
    """Raise InputError where a number is given as true or false, which pydantic would read as 1 or 0."""
    hints = get_type_hints(kind)
    for name, value in values.items():
        members = _members(hints.get(name))
        holder = next((member for member in members if is_dataclass(member)), None)
        if isinstance(value, bool) and bool not in members and {int, float} & set(members):
            allowed = _WORDS["int" if int in members else "float"]
            raise InputError(f"{source}: {place}{name} is {shown(value)}; it must be {allowed}.")
        if isinstance(value, Mapping) and holder is not None:
            refuse_flags(value, source, holder, f"{place}{name}.")


def shown(value: Any) -> str:
    """A value as a file writes it, shortened where it is long."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    text = value.isoformat() if isinstance(value, date) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


_LONGEST: Final = 60
_UNKNOWN: Final = ("unexpected_keyword_argument", "extra_forbidden", "invalid_key")
_MISSING: Final = ("missing", "missing_keyword_only_argument", "missing_argument")
_WORDS: Final = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
}


def _instead(name: str, missing: Sequence[str], kind: type | None) -> str:
    """What to write in place of a field that does not exist."""
    allowed = [field.name for field in fields(kind)] if kind is not None else []
    near = difflib.get_close_matches(str(name), [*missing, *allowed], n=1)
    parts = [f"the nearest is {near[0]}"] if near else []
    parts += [f"allowed: {', '.join(allowed)}"] if allowed else []
    parts += [] if parts else ["check its spelling and its place"]
    return "; ".join(parts)


def _allowed(problem: Mapping[str, Any], kind: type | None) -> str:
    """What a value of the wrong type should have been."""
    code = problem["type"]
    if code.startswith("dataclass"):
        return f"a mapping with the fields {', '.join(field.name for field in fields(kind))}" if kind else "a mapping"
    if code == "literal_error":
        return str(problem["ctx"]["expected"])
    if code.endswith(("_type", "_parsing", "_from_float")) and code.split("_")[0] in _WORDS:
        return _WORDS[code.split("_")[0]]
    message = str(problem["msg"]).removeprefix("Input should ").removeprefix("be ")
    return message[0].lower() + message[1:]


def _locate(kind: Any, location: Sequence[Any]) -> tuple[list[str], type | None]:
    """The names along a location, and the dataclass that stands there (none if there is no dataclass)."""
    path: list[str] = []
    hint = kind
    for part in location:
        members = _members(hint)
        if len(members) > 1:  # pydantic puts the name of the member that it tried into the location
            hint = next((member for member in members if getattr(member, "__name__", None) == part), None)
            continue
        path.append(str(part))
        holder = members[0] if members else None
        if is_dataclass(holder):
            hint = get_type_hints(holder).get(part)
        else:
            elements = [argument for argument in get_args(holder) if argument is not ...]
            hint = elements[-1] if elements else None
    return path, next((member for member in _members(hint) if isinstance(member, type) and is_dataclass(member)), None)


def _members(hint: Any) -> list[Any]:
    """The types that a type hint allows, without None."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [option for option in options if option not in (None, types.NoneType)]
