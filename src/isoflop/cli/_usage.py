"""What is wrong with a command line, in the words that were typed."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import typer

from isoflop.errors import InputError

UsageError: Final[type[Exception]] = typer.BadParameter.__bases__[0]
"""What the parser raises for every wrong command line; typer gives it no public name of its own."""

_WORDS: Final = {"int": "a whole number", "float": "a number", "bool": "true or false"}


@contextmanager
def options_as_typed(options: Mapping[str, str]) -> Iterator[None]:
    """Errors that begin with an argument of the library begin with the option that was typed.

    Args:
        options: argument → option.
    """
    try:
        yield
    except InputError as error:
        first, _, rest = str(error).partition(" ")
        if first not in options or (first == "law" and not rest.startswith("is ")):
            raise
        raise InputError(f"{options[first]} {rest}") from None


def explanation(error: Any) -> str:
    """The help where a verb is missing, else one sentence: option, value where the parser tells it, what is allowed.

    Args:
        error: a UsageError.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error.ctx.get_help())
    command = error.ctx.command_path if error.ctx is not None else "isoflop"
    value = _rejected(error)
    if value is not None:
        option = max(error.param.opts, key=len)
        text, kind = value
        return f"error: {option} is {text!r}; it must be {_WORDS.get(kind, 'of another kind')}."
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message.replace("a valid integer", "a whole number").replace("a valid float", "a number")
    return f"error: {message[:1].lower()}{message[1:]}; see `{command} --help`."


def _rejected(error: Any) -> tuple[str, str] | None:
    """The value of an option that is not of the option's kind, and that kind, if the parser used pydantic."""
    cause = error.__cause__
    if getattr(error, "param", None) is None or not hasattr(cause, "errors"):
        return None
    problem = cause.errors()[0]
    kind = re.match(r"int|float|bool", problem["type"])
    return (str(problem["input"]), kind[0]) if kind else None
