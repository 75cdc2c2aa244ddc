"""`isoflop compare`: several laws on the same rows, the one that predicts best first."""

from typing import Annotated

import typer

from isoflop.cli._common import JsonFlag, print_json, print_table
from isoflop.cli._fit_tables import OPTIONS, check_delta
from isoflop.cli._tables import (
    BestOfOption,
    ColumnOption,
    DeltaOption,
    LastOfOption,
    RunsArgument,
    SetOption,
    WeightOption,
    WhereOption,
    delta,
    read_table,
)
from isoflop.cli._usage import options_as_typed


def compare(
    runs: RunsArgument,
    law: Annotated[
        list[str] | None, typer.Option(help="Law form, or file.py:Class of your own. Repeatable, at least twice.")
    ] = None,
    column: ColumnOption = None,
    where: WhereOption = None,
    assign: SetOption = None,
    last_of: LastOfOption = None,
    best_of: BestOfOption = None,
    huber_delta: DeltaOption = "1e-3",
    weight: WeightOption = None,
    holdout: Annotated[float, typer.Option(help="Share of the largest runs to hold out.")] = 0.2,
    holdout_by: Annotated[str, typer.Option(help="Column that says which runs are large.")] = "flops",
    seed: Annotated[int, typer.Option(help="Of the restarts.")] = 0,
    restarts: Annotated[int, typer.Option(help="Starting points of each fit.")] = 16,
    json: JsonFlag = False,
) -> None:
    """Compare scaling laws on the same runs: held-out error first, then AICc and BIC."""
    from isoflop import laws

    check_delta(huber_delta)
    table, _ = read_table(runs, column, where, assign, last_of, best_of)
    with options_as_typed(OPTIONS):
        found = laws.compare(
            table,
            law or [],
            huber_delta=delta(huber_delta),
            weights=weight,
            by=holdout_by,
            largest=holdout,
            seed=seed,
            restarts=restarts,
        )
    if json:
        print_json(found.to_dict())
        return
    documents = [each.to_dict() for each in found.laws]
    least = {
        name: min((values[name] for values in documents if values[name] is not None), default=0.0)
        for name in ("aicc", "bic")
    }
    rows = []
    for each, values in zip(found.laws, documents, strict=True):
        rows.append(
            [
                each.law,
                _percent(values["held_out_rmse"]),
                _percent(values["rmse"]),
                *(_above(values[name], least[name]) for name in ("aicc", "bic")),
                "–" if each.fit is None else str(each.n_parameters),
                "–" if each.fit is None else each.fit.status,
            ]
        )
    counts = dict.fromkeys(str(each.holdout.n_held_out) for each in found.laws if each.holdout is not None)
    held_out = f"the largest {' or '.join(counts)} by {holdout_by} held out" if counts else "none held out"
    title = f"{runs} · {found.n_rows} rows · {held_out}"
    print_table(title, ["law", "held out", "in sample", "ΔAICc", "ΔBIC", "parameters", "status"], rows)
    notes = [["errors", "root mean square of ln(measured / predicted)"], ["AICc, BIC", f"noise {found.likelihood}"]]
    notes += [[each.law, each.problem] for each in found.laws if each.problem]
    notes += [[each.law, each.fit.message] for each in found.laws if each.fit and each.fit.status != "converged"]
    print_table("", ["about", ""], notes)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _above(value: float | None, least: float) -> str:
    return "–" if value is None else f"{value - least:.1f}"
