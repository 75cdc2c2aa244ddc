"""What the verbs that read run tables share: their options, and the table that those describe."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.errors import InputError

if TYPE_CHECKING:
    from isoflop.laws import RunTable

RunsArgument = Annotated[
    Path,
    typer.Argument(
        help="Run table (.csv, .tsv, .jsonl, .parquet), or a directory: a study, W&B runs or TensorBoard events."
    ),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(help="Standard column and its name in the file, as tokens=D. Repeatable."),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(help='Keep rows that fulfil this, as loss<2.9 or "router=dense|hash". Repeatable.'),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help='Column from a number or other columns, as tokens=130B or "loss=log(ppl)". Repeatable.'),
]
LastOfOption = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Keep the last row of each run that this column names.")
]
BestOfOption = Annotated[
    str | None,
    typer.Option(metavar="COLUMNS", help="Keep the lowest loss where these agree, as params_total,tokens."),
]
DeltaOption = Annotated[
    str,
    typer.Option(help="Residual of ln loss from which on the objective is linear; l1, or l2 for least squares."),
]
WeightOption = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="Column of the rows' weights, inversely as the variance of their ln loss."),
]

_PRIOR = re.compile(r"(.+?)\s*(?:±|\+-|\+/-|,)\s*(.+)")


def read_table(
    runs: Path,
    column: list[str] | None,
    where: list[str] | None,
    assign: list[str] | None,
    last_of: str | None,
    best_of: str | None,
) -> "tuple[RunTable, int]":
    """The rows that the options describe, and how many were read before any was left out."""
    from isoflop import laws

    columns = dict(assignment("--column", text) for text in column or ())
    table = laws.read_runs(runs, columns, dict(assignment("--set", text) for text in assign or ()))
    n_read = len(table)
    for condition in where or ():
        table = laws.matching(table, condition)
    if last_of is not None:
        table = laws.last_of(table, last_of)
    if best_of is not None:
        table = laws.best_of(table, [name.strip() for name in best_of.split(",") if name.strip()])
    return table, n_read


def assignment(option: str, text: str) -> tuple[str, str]:
    """Name and value of NAME=VALUE."""
    name, sign, value = text.partition("=")
    if not (sign and name.strip() and value.strip()):
        raise InputError(f"{option} is {text!r}; write it as NAME=VALUE.")
    return name.strip(), value.strip()


def number(option: str, name: str, text: str) -> float:
    """A number as people write it."""
    from isoflop.laws import parse_number

    value = parse_number(text)
    if value is None:
        raise InputError(f"{option} {name} is {text!r}; it must be a number.")
    return value


def prior(text: str) -> tuple[str, tuple[float, float]]:
    """Name, mean and standard deviation of NAME=MEAN±SD, MEAN+-SD or MEAN,SD."""
    name, value = assignment("--prior", text)
    match = _PRIOR.fullmatch(value)
    if not match:
        raise InputError(f"--prior is {text!r}; write it as NAME=MEAN±SD, NAME=MEAN+-SD or NAME=MEAN,SD.")
    return name, (number("--prior", name, match[1]), number("--prior", name, match[2]))


def delta(text: str) -> float | None:
    """The delta that a word stands for: L1 is the limit of a small one, L2 that of a large one."""
    from isoflop.laws.fitting import delta_named

    word = text.strip().lower()
    if word in ("l1", "l2"):
        return delta_named(word)
    return None if word == "none" else number("--huber-delta", "delta", word)
