"""Shared field checks; each failure is one sentence with field, value and what is allowed."""

import math
from typing import Any, Final

from isoflop.errors import InputError

STRICT_FIELDS: Final[dict[str, Any]] = {"extra": "forbid"}
"""Read by pydantic when a spec is parsed: a field that does not exist is an error, not ignored."""


def require_positive(spec: object, *fields: str) -> None:
    """Raise InputError unless every named field of `spec` is finite and > 0."""
    for field in fields:
        value = getattr(spec, field)
        if not 0 < value < math.inf:
            raise InputError(f"{_label(spec)}{field} is {value}; it must be finite and greater than 0.")


def require_non_negative(spec: object, *fields: str) -> None:
    """Raise InputError unless every named field of `spec` is finite and >= 0."""
    for field in fields:
        value = getattr(spec, field)
        if not 0 <= value < math.inf:
            raise InputError(f"{_label(spec)}{field} is {value}; it must be finite and not negative.")


def require_whole(spec: object, *fields: str) -> None:
    """Raise InputError unless every named field of `spec` is an int."""
    for field in fields:
        value = getattr(spec, field)
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"{_label(spec)}{field} is {value!r}; it must be a whole number.")


def require_choice(spec: object, field: str, allowed: tuple[str, ...]) -> None:
    """Raise InputError unless the named field of `spec` is one of `allowed`."""
    value = getattr(spec, field)
    if value not in allowed:
        raise InputError(f"{_label(spec)}{field} is {value!r}; allowed: {', '.join(allowed)}.")


def _label(spec: object) -> str:
    """Where the fields of `spec` stand in a spec file."""
    return {
        "AttentionSpec": "attention.",
        "FeedForwardSpec": "feed_forward.",
        "ExpertsSpec": "experts.",
        "RouterSpec": "experts.router.",
        "DepthRoutingSpec": "depth_routing.",
    }.get(type(spec).__name__, "")
