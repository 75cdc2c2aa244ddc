"""`isoflop fit`: a law with intervals, a status and a held-out score from a table of runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli._common import JsonFlag, print_json, print_table
from isoflop.cli._fit_tables import (
    OPTIONS,
    about_fit,
    about_holdout,
    about_profiles,
    about_repeats,
    check_delta,
    once,
    print_left_out,
    print_parameters,
)
from isoflop.cli._tables import (
    BestOfOption,
    ColumnOption,
    DeltaOption,
    LastOfOption,
    RunsArgument,
    SetOption,
    WeightOption,
    WhereOption,
    number,
    prior,
    read_table,
)
from isoflop.cli._tables import assignment as _assignment
from isoflop.cli._tables import delta as _delta
from isoflop.cli._usage import options_as_typed
from isoflop.errors import InputError, RunError

if TYPE_CHECKING:
    from isoflop.laws import Fit, Holdout

_DELTA = "1e-3"


def fit(
    runs: RunsArgument,
    law: Annotated[
        str, typer.Option(help="Law form (see `isoflop laws`), or file.py:Class of your own.")
    ] = "chinchilla",
    column: ColumnOption = None,
    where: WhereOption = None,
    assign: SetOption = None,
    last_of: LastOfOption = None,
    best_of: BestOfOption = None,
    loss: Annotated[
        str, typer.Option(help="huber, l1 for absolute errors, or l2 for least squares, of ln loss.")
    ] = "huber",
    huber_delta: DeltaOption = _DELTA,
    weight: WeightOption = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples behind the intervals; 0: no intervals.")] = 0,
    posterior: Annotated[
        int, typer.Option(help="Draws from the Bayesian posterior, in place of the bootstrap's; 0: none.")
    ] = 0,
    level: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.9,
    groups: Annotated[str | None, typer.Option(help="Column whose values are resampled as wholes.")] = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="Parameter that is given, not fitted, as E=1.8. Repeatable.")
    ] = None,
    priors: Annotated[
        list[str] | None,
        typer.Option(
            "--prior", help="What is known of an exponent or the irreducible loss, as beta=0.3±0.02. Repeatable."
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(metavar="PARAMETER", help="Interval of a parameter by profile likelihood. Repeatable."),
    ] = None,
    holdout: Annotated[
        float, typer.Option(help="Share of the largest runs to hold out for the held-out score; 0: none.")
    ] = 0.2,
    holdout_by: Annotated[str, typer.Option(help="Column that says which runs are large.")] = "flops",
    leave_out: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Predict the rows of each value of a column from the others.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of restarts and resamples.")] = 0,
    restarts: Annotated[int, typer.Option(help="Starting points; their agreement decides the status.")] = 16,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 unless the fit's status is converged.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the whole fit with its draws to this JSON file.")] = None,
    json: JsonFlag = False,
) -> None:
    """Fit a scaling law to training runs."""
    from isoflop import laws
    from isoflop.laws.cautions import cautions

    table, n_read = read_table(runs, column, where, assign, last_of, best_of)
    delta = _objective(loss, huber_delta)
    pinned = once("--pin", [_assignment("--pin", text) for text in pin or ()])
    sampled = None
    with options_as_typed(OPTIONS):
        fitted = laws.fit(
            table,
            law,
            huber_delta=delta,
            weights=weight,
            bootstrap=bootstrap,
            pinned={name: number("--pin", name, text) for name, text in pinned.items()},
            priors=once("--prior", [prior(text) for text in priors or ()]),
            seed=seed,
            restarts=restarts,
            groups=groups,
        )
        if posterior:
            sampled = laws.posterior(fitted, draws=posterior, seed=seed)
            fitted = sampled.fit
        intervals = fitted.interval(level)
        score, doubts = _score(fitted, holdout_by, holdout)
        left_out = fitted.leave_out(leave_out) if leave_out is not None else {}
        profiles = [laws.profile(fitted, name, level=level) for name in profile or ()]
    floor = laws.noise_floor(fitted.runs, fitted.form.columns, target=fitted.form.target, level=level)
    lack = laws.lack_of_fit(fitted) if floor is not None else None
    doubts += cautions(fitted, intervals, score, floor)
    if out is not None:
        laws.save_fit(fitted, out)
    if json:
        document: dict[str, Any] = {
            "law": law,
            "equation": fitted.form.equation,
            "parameters": fitted.parameters,
            "intervals": intervals,
            "intervals_from": "posterior" if sampled else "bootstrap" if bootstrap else None,
            "level": level,
            "standard_errors": {name: float(draws.std(ddof=1)) for name, draws in fitted.draws.items()},
            "pinned": fitted.pinned,
            "priors": fitted.priors,
            "weights": fitted.weights,
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
            "leave_out": [each.to_dict() for each in left_out.values()],
            "profiles": {curve.parameter: curve.to_dict() for curve in profiles},
            "noise_floor": None if floor is None else floor.to_dict(),
            "lack_of_fit": None if lack is None else lack.to_dict(),
            "posterior": None if sampled is None else sampled.to_dict(),
            "warnings": fitted.warnings + doubts,
            "notes": fitted.runs.notes,
        }
        print_json(document)
    else:
        heading = f"{level:.0%} {'posterior' if sampled else 'interval'}"
        print_parameters(fitted, intervals, heading, f"{runs} · {fitted.form.equation}")
        about = about_fit(fitted) + about_holdout(score) + about_repeats(floor, lack) + about_profiles(profiles)
        if sampled is not None:
            length = f"{sampled.steps} steps of autocorrelation time {sampled.autocorrelation_time:.0f}"
            about.append(["posterior", f"{posterior} draws from {length}, R̂ ≤ {max(sampled.r_hat.values()):.3f}"])
        about += [["warning", sentence] for sentence in (*fitted.warnings, *doubts)]
        about += [["note", sentence] for sentence in fitted.runs.notes]
        print_table("", ["quantity", "value"], about)
        if leave_out is not None:
            print_left_out(leave_out, left_out)
    if strict and fitted.status != "converged":
        raise RunError(f"the fit of law {law} has status {fitted.status}: {fitted.message}.")
    if fitted.status == "failed":
        raise RunError(f"the fit of law {law} did not find a minimum: {fitted.message}.")


def _objective(loss: str, huber_delta: str) -> float | None:
    """The delta of the loss that is named."""
    word = loss.strip().lower()
    check_delta(huber_delta)
    if word == "huber":
        return _delta(huber_delta)
    if word not in ("l1", "l2"):
        raise InputError(f"--loss is {loss!r}; it must be huber, l1 or l2.")
    if huber_delta != _DELTA:
        raise InputError(f"--huber-delta is {huber_delta} and --loss {word}, which has no delta; give one of the two.")
    return _delta(word)


def _score(fitted: "Fit", by: str, share: float) -> "tuple[Holdout | None, list[str]]":
    """The held-out score, or a sentence that says why there is none."""
    if share == 0:
        return None, []
    if not 0 < share < 1:
        raise InputError(f"--holdout is {share:g}; it must be at least 0 and below 1.")
    if by != "flops":
        fitted.runs[by]  # says which columns there are; flops alone are not asked for
    try:
        return fitted.holdout(by=by, largest=share), []
    except InputError as error:
        return None, [f"no held-out score: {error}"]
