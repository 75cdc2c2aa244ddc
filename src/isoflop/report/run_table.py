"""The table of every run, as the page shows it: sortable cells, failed rows with their error."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from isoflop.report import view
from isoflop.report.style import flops, short

if TYPE_CHECKING:
    from isoflop.laws import RunTable


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table."""

    name: str
    title: str
    help: str
    write: Callable[[float], str] | None = None
    """How a number is shown; none: text."""
    neutral: frozenset[str] = frozenset()
    """Values that say nothing: where there are no others the column is left out."""

    @property
    def text(self) -> bool:
        """Whether it stands on the left."""
        return self.write is None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell: what is shown, and what it is sorted by."""

    shown: str
    sort: str | None = None
    text: bool = False


def _fixed(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


COLUMNS: Final = (
    Column(name="run_id", title="run", help="Directory of the run below runs/"),
    Column(name="architecture", title="architecture", help="Its name in the study"),
    Column(name="budget", title="budget", help="FLOPs of its isoFLOP group", write=flops),
    Column(name="stage", title="stage", help="Why it was run"),
    Column(name="status", title="status", help="done, diverged or failed"),
    Column(name="loss", title="loss", help="nats/token on held-out text", write=_fixed(4)),
    Column(name="loss_as_trained", title="as trained", help="Loss with the choices of training", write=_fixed(4)),
    Column(name="loss_std", title="± s.e.", help="Standard error of the loss over held-out windows", write=_fixed(4)),
    Column(name="bits_per_byte", title="bits/byte", help="The loss per byte of text", write=_fixed(4)),
    Column(name="params_active", title="active", help="Non-embedding parameters that a token uses", write=short),
    Column(name="params_total", title="total", help="Non-embedding parameters", write=short),
    Column(name="tokens", title="tokens", help="Tokens trained on", write=short),
    Column(name="flops", title="FLOPs", help="Training FLOPs really spent", write=flops),
    Column(name="d_model", title="d_model", help="Width of the residual stream", write=short),
    Column(name="n_layers", title="layers", help="Number of blocks", write=short),
    Column(name="granularity", title="G", help="Granularity: d_ff / width of an expert", write=short),
    Column(
        name="expansion_rate",
        title="E",
        help="Expansion rate: parameters of the experts / of a dense layer",
        write=short,
    ),
    Column(name="router", title="router", help="How tokens and experts find each other"),
    Column(
        name="depth_capacity",
        title="capacity",
        help="Share of the tokens that depth-routed blocks compute as trained",
        write=short,
        neutral=frozenset({"1", "1.0"}),
    ),
    Column(name="kept_share", title="kept", help="Share that they computed as sampled", write=_fixed(3)),
    Column(name="depth_router", title="depth router", help="How tokens are chosen", neutral=frozenset({"none"})),
    Column(name="depth_agreement", title="agreement", help="Of the rule of sampling with top-k", write=_fixed(3)),
    Column(name="learning_rate", title="learning rate", help="Peak learning rate", write=lambda value: f"{value:.3g}"),
    Column(name="seed", title="seed", help="Seed of weights and data order", write=short),
    Column(name="epochs", title="epochs", help="Passes over the training text", write=_fixed(2)),
    Column(name="load_max", title="busiest expert", help="Largest load of an expert / even share", write=_fixed(2)),
    Column(name="dropped_share", title="dropped", help="Share of tokens that no expert took", write=_fixed(3)),
    Column(name="tokens_per_second", title="tokens/s", help="Training speed", write=short),
    Column(name="wall_seconds", title="time", help="Training time", write=_seconds),
    Column(name="error", title="error", help="Why it has no loss"),
)
"""What is shown, where the run table has it."""


def run_table(runs: "RunTable") -> dict[str, Any]:
    """Columns, rows and a sentence for the template; columns that are empty throughout are left out."""
    columns = [column for column in COLUMNS if set(view.texts(runs, column.name)) - column.neutral - {""}]
    values = {column.name: view.texts(runs, column.name) for column in columns}
    if not any(column.name == "run_id" for column in columns):
        columns.insert(0, COLUMNS[0])
        values["run_id"] = [f"row {number + 1}" for number in range(len(runs))]
    status = view.texts(runs, "status")
    done = int(view.finished(runs).sum())
    rest = len(runs) - done
    rows = []
    for row in range(len(runs)):
        cells = [_cell(column, values[column.name][row]) for column in columns]
        rows.append({"cells": cells, "bad": status[row] not in ("done", "")})
    summary = f"{len(runs)} runs: {done} with a loss" + (
        f", {rest} without (in colour, with their error)." if rest else "."
    )
    return {"columns": columns, "rows": rows, "summary": summary}


def _cell(column: Column, text: str) -> Cell:
    if column.write is None:
        return Cell(shown=text or "–", text=True)
    try:
        number = float(text)
    except ValueError:
        return Cell(shown=text or "–")
    return Cell(shown=column.write(number), sort=repr(number)) if math.isfinite(number) else Cell(shown="–")
