"""`isoflop study`: run a study, and see where it stands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli._common import JsonFlag, print_json, print_table, si

if TYPE_CHECKING:
    from isoflop.study import Outcome

study_app = typer.Typer(no_args_is_help=True, help="Small runs at equal FLOPs, laws, a plan, and its check.")


@study_app.command("run")
def run(
    study: Annotated[Path, typer.Argument(help="Study file (YAML).")],
    out: Annotated[Path | None, typer.Option(help="Directory of the study; default: runs/<name>.")] = None,
    table: Annotated[Path | None, typer.Option(help="Run table (CSV) whose finished rows are not run again.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print runs, FLOPs and hours after timing a few steps of each model; results stay."
        ),
    ] = False,
    max_hours: Annotated[float | None, typer.Option(help="Stop after this time; start again to continue.")] = None,
    only_budget: Annotated[
        list[float] | None, typer.Option(help="Carry out the runs of this budget alone; may be repeated.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes; default: one per core or GPU.")] = None,
    json: JsonFlag = False,
) -> None:
    """Carry out a study, or what is left of it: kill it at any moment and start it again."""
    from isoflop.study import run_study

    try:
        outcome = run_study(
            study,
            out,
            table=table,
            workers=workers,
            max_hours=max_hours,
            only_budgets=only_budget or (),
            dry_run=dry_run,
        )
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues where it stopped", err=True)
        raise typer.Exit(130) from None
    if json:
        print_json(_document(outcome, dry_run))
    elif dry_run:
        _print_forecast(outcome)
    else:
        _print_result(outcome)


@study_app.command("status")
def status(
    study: Annotated[Path, typer.Argument(help="Directory of a study, or its YAML file.")],
    json: JsonFlag = False,
) -> None:
    """Show how many runs are done, what is running now, what failed and why, and the time left."""
    from isoflop.study.progress import duration
    from isoflop.study.run import default_directory
    from isoflop.study.spec import load_study
    from isoflop.study.status import study_status

    found = study_status(default_directory(load_study(study)) if study.is_file() else study)
    if json:
        print_json(found)
        return
    counts = ", ".join(f"{number} {state}" for state, number in sorted(found["counts"].items()))
    left = found["remaining_seconds"]
    typer.echo(f"{found['path']}: {found['runs']} runs{_later(found['to_come'])}: {counts}")
    typer.echo(
        f"{found['flops_done']:.3g} of {found['flops']:.3g} FLOPs done"
        + (f", about {duration(left)} left on {found['workers']} workers" if left else "")
    )
    if found["running"]:
        rows = [
            [run["run_id"], f"{run['step']:,} / {run['steps']:,}", "–" if run["loss"] is None else f"{run['loss']:.4f}"]
            for run in found["running"]
        ]
        print_table("running now", ["run", "step", "training loss"], rows)
    if found["failed"]:
        rows = [[run["run_id"], run["status"], run["error"] or ""] for run in found["failed"]]
        print_table("failed or diverged", ["run", "status", "error"], rows)


def _document(outcome: "Outcome", dry_run: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"path": str(outcome.path), "workers": outcome.workers}
    document["remaining_seconds"] = outcome.remaining_seconds
    document |= {"to_come": outcome.to_come, "warnings": outcome.warnings}
    if dry_run:
        document["runs"] = [
            {
                "run_id": run.run_id,
                **run.columns,
                "seed": run.seed,
                "d_model": run.spec.d_model,
                "n_layers": run.spec.n_layers,
                "params_active": run.resolved.count.params_active,
                "params_total": run.resolved.count.params_total,
                "tokens": run.resolved.tokens,
                "flops": run.resolved.flops,
                "seconds": outcome.seconds[run.run_id],
            }
            for run in outcome.runs
        ]
        return document
    return document | {
        "complete": outcome.complete,
        "runs": outcome.rows,
        "fits": outcome.fits,
        "verification": outcome.verification,
        "report": None if outcome.report is None else str(outcome.report),
        "notes": outcome.notes,
    }


def _later(number: int) -> str:
    """How many runs are not in the list yet."""
    return f" ({number} of them extra seeds or verification, once it is known of which models)" if number else ""


def _print_forecast(outcome: "Outcome") -> None:
    from isoflop.study.progress import duration

    ended = {row["run_id"] for row in outcome.rows}
    rows = []
    for run in outcome.runs:
        counted, seconds = run.resolved.count, outcome.seconds[run.run_id]
        rows.append(
            [
                run.architecture,
                f"{run.budget:.3g}",
                f"{run.spec.d_model}×{run.spec.n_layers}",
                str(run.seed),
                si(counted.params_active),
                si(counted.params_total),
                si(run.resolved.tokens),
                f"{run.resolved.tokens / outcome.train_tokens:.2f}",
                f"{run.resolved.steps:,}",
                "done" if run.run_id in ended else "–" if seconds is None else f"{seconds / 3600:.3f}",
            ]
        )
    print_table(
        "planned runs",
        ["architecture", "FLOPs", "d×L", "seed", "active", "total", "tokens", "epochs", "steps", "hours"],
        rows,
    )
    flops = sum(run.resolved.flops for run in outcome.runs if run.run_id not in ended) + outcome.to_come["flops"]
    number, later = len(outcome.runs) - len(ended) + outcome.to_come["runs"], outcome.to_come["runs"]
    typer.echo(
        f"about {number} runs to do{_later(later)}, {flops:.3g} FLOPs, about "
        f"{duration(outcome.remaining_seconds)} with {outcome.workers} workers"
    )


def _print_result(outcome: "Outcome") -> None:
    from isoflop.study.verification import multiplier_sentence, sentence

    sizes: dict[tuple[str, float], dict[tuple[int, int], list[dict[str, Any]]]] = {}
    for row in outcome.rows:
        if row.get("loss") is not None:
            group = sizes.setdefault((row["architecture"], row["budget"]), {})
            group.setdefault((row["d_model"], row["n_layers"]), []).append(row)
    rows = []
    for (name, budget), group in sorted(sizes.items(), key=lambda item: (item[0][1], _lowest(item[1])[0])):
        loss, best = _lowest(group)
        seeds = "" if len(best) == 1 else f" ({len(best)} seeds)"
        shape = f"{best[0]['d_model']}×{best[0]['n_layers']}"
        rows.append(
            [name, f"{budget:.3g}", shape, si(best[0]["params_active"]), si(best[0]["tokens"]), f"{loss:.4f}{seeds}"]
        )
    typer.echo(f"{outcome.path}: best size of each architecture and budget, loss in nats/token")
    print_table(
        "",
        ["architecture", "FLOPs", "d×L", "active", "tokens", "loss"],
        rows,
    )
    if outcome.fits is not None and outcome.fits["laws"]:
        print_table(
            "laws",
            ["family", "law", "rows", "status", "held-out RMSE of ln loss"],
            [
                [
                    law["name"],
                    law["law"],
                    str(law["n_rows"]),
                    law["status"],
                    "–" if law["holdout"] is None else f"{law['holdout']['rmse']:.4f}",
                ]
                for law in outcome.fits["laws"]
            ],
        )
    elif outcome.complete:
        typer.echo("no law was fitted, so there is nothing to plan from: the notes say why")
    bad = [row for row in outcome.rows if row.get("status") != "done"]
    for row in bad:
        typer.echo(f"{row['status']}: {row['run_id']}: {row.get('error')}")
    for note in outcome.notes:
        typer.echo(f"note: {note}")
    if not outcome.complete:
        ended = len(outcome.rows)
        typer.echo(f"{ended} of {len(outcome.runs)} runs have ended; the same command continues")
    if outcome.verification is not None:
        for run in outcome.verification["runs"]:
            typer.echo(sentence(run))
        if said := multiplier_sentence(outcome.verification):
            typer.echo(said)
    if outcome.report is not None:
        typer.echo(f"report: {outcome.report}")


def _lowest(group: dict[tuple[int, int], list[dict[str, Any]]]) -> tuple[float, list[dict[str, Any]]]:
    """Mean loss over seeds and rows of the size where that is lowest."""
    means = {size: sum(row["loss"] for row in rows) / len(rows) for size, rows in group.items()}
    best = min(means, key=lambda size: means[size])
    return means[best], group[best]
