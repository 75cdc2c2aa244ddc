"""Columns computed from others, as people write them: 8, 130B, D*1e9, 1-params_active/params_total, log(ppl)."""

import ast
import operator
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.numbers import parse_number
from isoflop.laws.table import TEXT, RunTable

_BINARY: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: np.true_divide,
    ast.Pow: np.float_power,
}
_FUNCTIONS: Final[dict[str, Callable[[Any], Any]]] = {
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "exp": np.exp,
    "sqrt": np.sqrt,
}


def with_values(table: RunTable, name: str, text: str) -> RunTable:
    """The table with one column set from a number, a quoted word, or arithmetic on its other columns.

    Known are + - * / **, brackets, log (natural), log2, log10, exp and sqrt; a column may be computed from itself.
    Where a column of the expression has no value, the result has none. `notes` of the table says what was set.

    Raises:
        InputError: if the expression is malformed or names a column that is absent or not numeric.
    """
    value: Any = text.strip() if name in TEXT else parse_number(text)
    if value is None:
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise _malformed(name, text, "it is no number and no arithmetic") from None
        with np.errstate(all="ignore"):
            value = _value(tree, table, name, text)
    return table.with_columns({name: value}, [f"{name} is set to {text.strip()}."])


def _value(node: ast.expr, table: RunTable, name: str, text: str) -> Any:
    match node:
        case ast.Constant(value=bool()):
            raise _malformed(name, text, "a truth value is no number")
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Constant(value=str() as word):
            return word
        case ast.Name() | ast.Attribute():
            column = ast.unparse(node)
            if column not in table:
                raise _malformed(name, text, f"{table.source} has no column {column}, it has {table.listed()}")
            return table.numeric(column)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            value = _number(operand, table, name, text)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_number(left, table, name, text), _number(right, table, name, text))
        case ast.Call(func=ast.Name(id=function), args=[argument], keywords=[]) if function in _FUNCTIONS:
            return _FUNCTIONS[function](_number(argument, table, name, text))
    raise _malformed(name, text, f"{ast.unparse(node)!r} is not known here")


def _number(node: ast.expr, table: RunTable, name: str, text: str) -> Any:
    value = _value(node, table, name, text)
    if isinstance(value, str):
        raise _malformed(name, text, f"{value!r} is text")
    return value


def _malformed(name: str, text: str, problem: str) -> InputError:
    return InputError(
        f"{name} is set to {text!r}, but {problem}; allowed are numbers such as 130B, a word in quotes, columns of the "
        f"table, + - * / ** and {', '.join(_FUNCTIONS)} (a column whose name is no word needs --column WORD=NAME)."
    )
