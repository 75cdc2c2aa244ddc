"""`isoflop fit`: a law with intervals, a status and a held-out score from a table of runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli._common import JsonFlag, print_json, print_table, si
from isoflop.errors import InputError, RunError

if TYPE_CHECKING:
    from isoflop.laws import Fit, Holdout

_FLOPS = ("flops", "budget")
"""Columns that count FLOPs."""


def fit(
    runs: Annotated[
        Path,
        typer.Argument(
            help="Run table (.csv, .tsv, .jsonl, .parquet), or a directory: a study, W&B runs or TensorBoard events."
        ),
    ],
    law: Annotated[str, typer.Option(help="Law form; `isoflop laws` lists them.")] = "chinchilla",
    column: Annotated[
        list[str] | None,
        typer.Option(help="Standard column and its name in the file, as tokens=D. Repeatable."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help='Keep rows that fulfil this, as loss<2.9 or "router=dense|hash". Repeatable.'),
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help='Column from a number or other columns, as tokens=130B or "loss=log(ppl)". Repeatable.'
        ),
    ] = None,
    last_of: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Keep the last row of each run that this column names.")
    ] = None,
    best_of: Annotated[
        str | None,
        typer.Option(metavar="COLUMNS", help="Keep the lowest loss where these agree, as params_total,tokens."),
    ] = None,
    huber_delta: Annotated[
        str,
        typer.Option(help="Residual of ln loss from which on the objective is linear; l1, or l2 for least squares."),
    ] = "1e-3",
    bootstrap: Annotated[int, typer.Option(help="Resamples behind the intervals; 0: no intervals.")] = 0,
    level: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.9,
    groups: Annotated[str | None, typer.Option(help="Column whose values are resampled as wholes.")] = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="Parameter that is given, not fitted, as E=1.8. Repeatable.")
    ] = None,
    holdout: Annotated[
        float, typer.Option(help="Share of the largest runs to hold out for the held-out score; 0: none.")
    ] = 0.2,
    holdout_by: Annotated[str, typer.Option(help="Column that says which runs are large.")] = "flops",
    seed: Annotated[int, typer.Option(help="Of restarts and resamples.")] = 0,
    restarts: Annotated[int, typer.Option(help="Starting points; their agreement decides the status.")] = 16,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 unless the fit's status is converged.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the whole fit with its draws to this JSON file.")] = None,
    json: JsonFlag = False,
) -> None:
    """Fit a scaling law to training runs."""
    from isoflop import laws

    columns = dict(_assignment("--column", text) for text in column or ())
    table = laws.read_runs(runs, columns, dict(_assignment("--set", text) for text in assign or ()))
    n_read = len(table)
    for condition in where or ():
        table = laws.matching(table, condition)
    if last_of is not None:
        table = laws.last_of(table, last_of)
    if best_of is not None:
        table = laws.best_of(table, [name.strip() for name in best_of.split(",") if name.strip()])
    fitted = laws.fit(
        table,
        law,
        huber_delta=_delta(huber_delta),
        bootstrap=bootstrap,
        pinned={
            name: _number("--pin", name, text) for name, text in (_assignment("--pin", text) for text in pin or ())
        },
        seed=seed,
        restarts=restarts,
        groups=groups,
    )
    intervals = fitted.interval(level)
    score, without_score = _score(fitted, holdout_by, holdout)
    if out is not None:
        laws.save_fit(fitted, out)
    if json:
        document: dict[str, Any] = {
            "law": law,
            "equation": fitted.form.equation,
            "parameters": fitted.parameters,
            "intervals": intervals,
            "level": level,
            "standard_errors": {name: float(draws.std(ddof=1)) for name, draws in fitted.draws.items()},
            "pinned": fitted.pinned,
            "objective": fitted.objective,
            "huber_delta": fitted.huber_delta,
            "status": fitted.status,
            "message": fitted.message,
            "condition": fitted.condition,
            "noise": fitted.noise,
            "n_rows": fitted.n_rows,
            "n_left_out": fitted.n_left_out,
            "n_read": n_read,
            "holdout": None if score is None else score.to_dict(),
            "warnings": fitted.warnings + without_score,
            "notes": fitted.runs.notes,
        }
        print_json(document)
    else:
        _print(fitted, intervals, level, score, without_score, fitted.runs.notes, f"{runs} · {fitted.form.equation}")
    if strict and fitted.status != "converged":
        raise RunError(f"the fit of law {law} has status {fitted.status}: {fitted.message}.")
    if fitted.status == "failed":
        raise RunError(f"the fit of law {law} did not find a minimum: {fitted.message}.")


def _print(
    fitted: "Fit",
    intervals: dict[str, tuple[float, float]],
    level: float,
    score: "Holdout | None",
    without_score: list[str],
    notes: tuple[str, ...],
    title: str,
) -> None:
    from isoflop.laws import exponent

    rows = []
    for parameter in fitted.form.parameters:
        interval = intervals.get(parameter.name)
        between = "pinned" if parameter.name in fitted.pinned else "–"
        if interval is not None and parameter.name not in fitted.pinned:
            between = f"{interval[0]:.5g} … {interval[1]:.5g}"
        rows.append([parameter.name, f"{fitted.parameters[parameter.name]:.5g}", between, parameter.meaning])
    print_table(title, ["parameter", "value", f"{level:.0%} interval", "meaning"], rows)
    about = [
        ["status", fitted.status],
        ["", fitted.message],
        ["rows fitted", str(fitted.n_rows) + (f" ({fitted.n_left_out} not done)" if fitted.n_left_out else "")],
        ["objective (sum)", f"{fitted.objective:.8g}"],
        ["noise of ln loss", f"{fitted.noise:.2%}"],
    ]
    if score is not None:
        threshold = exponent(score.threshold) if score.by in _FLOPS else si(score.threshold)
        held_out = f"{score.rmse:.2%} RMSE of ln loss on {score.n_held_out} rows with {score.by} ≥ {threshold}"
        about.append(["held out", f"{held_out}, fitted on {score.n_fit}"])
        about.append(
            ["", f"measured lies {abs(score.bias):.2%} {'above' if score.bias > 0 else 'below'} predicted on average"]
        )
    about += [["warning", sentence] for sentence in (*fitted.warnings, *without_score)]
    about += [["note", sentence] for sentence in notes]
    print_table("", ["quantity", "value"], about)


def _score(fitted: "Fit", by: str, share: float) -> "tuple[Holdout | None, list[str]]":
    """The held-out score, or a sentence that says why there is none."""
    if share == 0:
        return None, []
    if not 0 < share < 1:
        raise InputError(f"--holdout is {share:g}; it must be at least 0 and below 1.")
    try:
        return fitted.holdout(by=by, largest=share), []
    except InputError as error:
        return None, [f"no held-out score: {error}"]


def _assignment(option: str, text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (sign and name.strip() and value.strip()):
        raise InputError(f"{option} is {text!r}; write it as NAME=VALUE.")
    return name.strip(), value.strip()


def _number(option: str, name: str, text: str) -> float:
    from isoflop.laws import parse_number

    value = parse_number(text)
    if value is None:
        raise InputError(f"{option} {name} is {text!r}; it must be a number.")
    return value


def _delta(text: str) -> float | None:
    """The delta that a word stands for: L1 is the limit of a small one, L2 that of a large one."""
    match text.strip().lower():
        case "none" | "l2":
            return None
        case "l1":
            return 1e-7
        case number:
            return _number("--huber-delta", "delta", number)
