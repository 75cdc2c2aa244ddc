"""Conditions on rows as people write them: loss<2.9, architecture=dense."""

import operator
import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.numbers import parse_number
from isoflop.laws.table import RunTable

_OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"\s*([^<>=!]+?)\s*([<>=!]+)\s*(.*?)\s*")


def matching(table: RunTable, condition: str) -> RunTable:
    """The rows that fulfil a condition COLUMN OPERATOR VALUE, with the operators = != < <= > >=.

    Numbers may be written 1e20 or 4.37B; a row without a value fulfils nothing but !=. After = and != alternatives may
    stand, divided by |: router=Hash|Dense.

    Raises:
        InputError: if the condition is malformed, its column is absent, or no row is left.
    """
    match = _CONDITION.fullmatch(condition)
    if not match:
        raise InputError(f"condition is {condition!r}; write it as COLUMN=VALUE, or with !=, <, <=, > or >=.")
    column, sign, text = match.groups()
    if sign not in _OPERATORS:
        raise InputError(f"condition is {condition!r}; {sign!r} is no comparison, allowed are = != < <= > and >=.")
    if column not in table and column not in table.names.values():
        raise InputError(f"condition is {condition!r}; {table.source} has no column {column}, it has {table.listed()}.")
    if "|" in text and sign in ("=", "==", "!="):
        each = [_mask(table, condition, column, sign, part.strip()) for part in text.split("|")]
        keep = np.logical_and.reduce(each) if sign == "!=" else np.logical_or.reduce(each)
    else:
        keep = _mask(table, condition, column, sign, text)
    rows = table.where(keep)
    if not len(rows):
        raise InputError(f"condition is {condition!r}; none of the {len(table)} rows of {table.source} fulfils it.")
    return rows


def _mask(table: RunTable, condition: str, column: str, sign: str, text: str) -> np.ndarray:
    """Which rows fulfil one comparison."""
    compare, values, number = _OPERATORS[sign], table[column], parse_number(text)
    ordered = compare not in (operator.eq, operator.ne)
    if values.dtype != object or (ordered and any(_is_number(value) for value in values)):
        if number is None:
            raise InputError(f"condition is {condition!r}; column {column} holds numbers, so its value must be one.")
        return np.asarray(compare(table.numeric(column), number))
    if ordered:
        raise InputError(f"condition is {condition!r}; column {column} holds text, which knows only = and !=.")
    return np.array([compare(_text(value), text.lower()) for value in values], dtype=bool)


def _text(value: Any) -> str | None:
    return None if value is None else str(value).lower()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, str) and parse_number(value) is not None)
