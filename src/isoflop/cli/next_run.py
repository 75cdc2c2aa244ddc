"""`isoflop plan next-run`: which run tells most about a later decision, or that it is time to decide."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from isoflop.cli._common import JsonFlag, print_json, print_table, si
from isoflop.cli._fit_tables import OPTIONS
from isoflop.cli._tables import (
    BestOfOption,
    ColumnOption,
    DeltaOption,
    LastOfOption,
    RunsArgument,
    SetOption,
    WhereOption,
    delta,
    read_table,
)
from isoflop.cli._usage import options_as_typed
from isoflop.errors import InputError

if TYPE_CHECKING:
    from isoflop.planner import NextRun

_OPTIONS: Final = OPTIONS | {
    "budget": "--budget",
    "decide_at": "--decide-at",
    "granularities": "--granularity",
    "expansion_rates": "--expansion-rate",
    "about": "--about",
    "threshold": "--threshold",
    "least_cut": "--least-cut",
}


def next_run(
    runs: RunsArgument,
    budget: Annotated[str, typer.Option(metavar="NUMBER", help="FLOPs left for runs before the decision.")],
    decide_at: Annotated[str, typer.Option(metavar="NUMBER", help="FLOPs of the training run to decide on.")],
    law: Annotated[str, typer.Option(help="Law form that is fitted to the runs.")] = "fine-grained",
    about: Annotated[
        str | None,
        typer.Option(
            help="What runs are to tell: difference (of the two best architectures) or loss (of the best); "
            "default: difference, until one is the best with a probability of 0.95."
        ),
    ] = None,
    granularity: Annotated[
        list[float] | None,
        typer.Option(help="G that the decision is between and runs may have; repeatable; default: those of the runs."),
    ] = None,
    expansion_rate: Annotated[list[float] | None, typer.Option(help="E, likewise; repeatable.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Nats of expected regret below which to stop; default: 0.002, or the noise of one run where repeated "
            "runs say that it is more."
        ),
    ] = None,
    least_cut: Annotated[
        float, typer.Option(help="Share of the variance that a run must remove, and of the regret that all must.")
    ] = 0.05,
    column: ColumnOption = None,
    where: WhereOption = None,
    assign: SetOption = None,
    last_of: LastOfOption = None,
    best_of: BestOfOption = None,
    huber_delta: DeltaOption = "1e-3",
    bootstrap: Annotated[int, typer.Option(help="Resamples that stand for what is not known.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    top: Annotated[int, typer.Option(help="Rows of the table.")] = 12,
    json: JsonFlag = False,
) -> None:
    """Find the run that tells most, for its FLOPs, about a later choice of architecture, or say that it is settled."""
    from isoflop import planner
    from isoflop.cli.train import parse_number

    if about not in (None, "difference", "loss"):
        raise InputError(f"--about is {about!r}; allowed: difference, loss.")
    if top < 1:
        raise InputError(f"--top is {top}; it must be at least 1.")
    if seed < 0:
        raise InputError(f"--seed is {seed}; it must be 0 or more.")
    left, target = parse_number("--budget", budget), parse_number("--decide-at", decide_at)
    table, _ = read_table(runs, column, where, assign, last_of, best_of)
    with options_as_typed(_OPTIONS):
        fits = planner.laws_of_runs(table, law, huber_delta=delta(huber_delta), bootstrap=bootstrap, seed=seed)
        found = planner.next_run(
            fits,
            budget=left,
            decide_at=target,
            about=about,  # type: ignore[arg-type]
            granularities=granularity,
            expansion_rates=expansion_rate,
            threshold=threshold,
            least_cut=least_cut,
        )
    if json:
        print_json(found.to_dict() | {"law": law, "notes": list(table.notes)})
        return
    _print(found, top, f"{runs.name} · {law}", table.notes)


def _print(found: "NextRun", top: int, title: str, notes: Sequence[str]) -> None:
    from isoflop.laws import exponent

    for sentence in found.warnings:
        typer.echo(f"warning: {sentence}")
    rows = []
    for rank, candidate in enumerate(found.candidates[:top], start=1):
        after = candidate.loss_std_after if found.about == "loss" else candidate.gap_std_after
        rows.append(
            [
                f"{rank} {candidate.architecture}",
                si(candidate.params_active),
                si(candidate.tokens),
                f"{candidate.flops:.2g}",
                f"{candidate.loss:.3f}",
                f"{candidate.per_flop / found.candidates[0].per_flop:.2g}",
                f"{candidate.variance_cut:.0%}",
                "–" if after is None else f"{after:.2g}",
                f"{candidate.regret_after:.2g}",
            ]
        )
    spread = "gap ±" if found.about == "difference" else "loss ±"
    if rows:
        print_table(
            f"{title} · {exponent(found.budget)} FLOPs left, decision at {exponent(found.decide_at)}",
            ["run", "active", "tokens", "FLOPs", "loss", "per FLOP", "cut", spread, "regret"],
            rows,
        )
    now = found.choice
    lines = [
        f"now: {now.architecture} with {si(now.params_active)} active parameters on {si(now.tokens)} tokens, predicted "
        f"loss {now.loss:.4f} ± {now.loss_std:.2g}, expected regret {found.regret:.2g} nats."
    ]
    if found.runner_up is not None:
        lines.append(
            f"second: {found.runner_up.architecture}, {found.gap:.2g} ± {found.gap_std:.2g} nats behind; "
            f"{now.architecture} is the best with a probability of {found.probability_best:.0%}."
        )
    if rows:
        what = "that gap" if found.about == "difference" else "that loss"
        lines.append(
            f"per FLOP: variance of {what} removed for each FLOP, the first run's being 1; cut: share removed; "
            f"{spread} and regret: what is left after the run."
        )
    lines += [f"note: {sentence}" for sentence in notes]
    typer.echo("\n".join([*lines, found.reason]))
