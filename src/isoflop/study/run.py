"""The loop: grid, runs, laws, plan, verification, report."""

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.errors import InputError
from isoflop.study.corpus import fingerprint, open_corpus
from isoflop.study.finish import Finished, finish
from isoflop.study.grid import Grid, PlannedRun
from isoflop.study.pool import Pool
from isoflop.study.progress import StudyProgress, duration
from isoflop.study.session import Session
from isoflop.study.spec import StudySpec, load_study
from isoflop.study.store import StudyStore
from isoflop.study.verification import planned_runs


@dataclass(kw_only=True)
class Outcome:
    """What came of a study so far."""

    path: Path
    """The study's directory."""
    runs: list[PlannedRun]
    """Every run that is known, the verification included once it is planned."""
    rows: list[dict[str, Any]]
    """The rows of those that have ended."""
    seconds: dict[str, float | None]
    """Predicted duration of each run, by run_id."""
    remaining_seconds: float | None
    """Predicted time until all runs have ended, those to come included."""
    workers: int
    """Worker processes."""
    train_tokens: int
    """Tokens of the training split: a run on more repeats data."""
    to_come: dict[str, Any] = field(default_factory=dict)
    """Number, flops and seconds of runs that are certain but not known yet: extra seeds, verification."""
    warnings: list[str] = field(default_factory=list)
    """What about the study's numbers cannot turn out as meant."""
    complete: bool = False
    """Whether every run has ended, the verification included."""
    fits: dict[str, Any] | None = None
    """fits.json."""
    verification: dict[str, Any] | None = None
    """verification.json."""
    report: Path | None = None
    """The report."""
    notes: list[str] = field(default_factory=list)
    """Sentences about what could not be done, and why."""


def run_study(
    path: str | Path,
    out: str | Path | None = None,
    *,
    table: str | Path | None = None,
    workers: int | None = None,
    max_hours: float | None = None,
    only_budgets: Collection[float] = (),
    dry_run: bool = False,
    progress: bool = True,
) -> Outcome:
    """Carry out a study, or what is left of it.

    It may be killed at any moment and started again, and several processes may work on it at the same time.

    Args:
        path: the YAML file.
        out: the study's directory; default runs/<name>.
        table: a run table whose finished rows are not run again; default: the study's own `table`.
        workers: worker processes; default: the study's, else one per core (per GPU where there is one).
        max_hours: stop after this time; what is unfinished continues at the next start.
        only_budgets: carry out the runs of these budgets alone.
        dry_run: prepare the text and time the models where that has not been done, and stop; a study that
            has begun stays as it is.
        progress: show progress on stderr.

    Raises:
        InputError: if the study, its data or an argument is wrong.
        RunError: if it cannot be carried out.
    """
    path = Path(path)
    study = load_study(path)
    for budget in only_budgets:
        if budget not in study.budgets:
            allowed = ", ".join(f"{each:g}" for each in study.budgets)
            raise InputError(f"only_budgets holds {budget:g}; allowed are the study's budgets: {allowed}.")
    for name, value in (("workers", workers), ("max_hours", max_hours)):
        if value is not None and not value > 0:
            raise InputError(f"{name} is {value}; it must be greater than 0.")
    deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
    store = StudyStore(default_directory(study) if out is None else out)
    changes_nothing = dry_run and (store.path / "plan.json").exists()
    store.create(None if changes_nothing else path.read_text(encoding="utf-8"))
    gpus = _gpus(study)
    workers = workers or study.workers or gpus or os.cpu_count() or 1
    with (
        StudyProgress(enabled=progress) as shown,
        Pool(workers, threads=study.threads_per_run, logs=store.path / "logs", gpus=gpus) as pool,
    ):
        committed = Path(table) if table is not None else path.parent / study.table if study.table else None
        if committed is not None:
            store.import_table(committed, keep=not changes_nothing)
        data = open_corpus(study.data, store, beside=path.parent, say=shown.say)
        grid = Grid(study, vocab_size=data.vocab_size, fingerprint=fingerprint(data))
        warnings = [*([data.manifest.warning] if data.manifest.warning else []), *grid.warnings()]
        for sentence in warnings:
            shown.say(f"warning: {sentence}")
        session = Session(
            study,
            store,
            grid,
            data=data.path,
            pool=pool,
            progress=shown,
            study_file=str(path),
            deadline=deadline,
        )
        stored = store.read_json("verification.json")
        if stored is not None:
            session.verification = planned_runs(study, grid, stored)
        runs = session.planned()
        if committed is not None:
            shown.say(_taken_over(committed, store, runs))
        wanted = [run for run in runs if not only_budgets or run.budget in only_budgets]
        session.time_models(wanted)
        if any(store.row(run.run_id) is None for run in wanted):
            shown.say(_forecast(session, wanted, session.to_come(only_budgets), workers))
        if dry_run and not changes_nothing:
            session.keep()
        ended = not dry_run and session.execute(session.planned, only=only_budgets)
        result = Finished(ended=False)
        if ended and not only_budgets:
            result = finish(session, train_tokens=len(data.tokens("train")))
        runs = session.everything()
        rows = store.rows(runs)
        to_come = session.to_come()
        remaining = session.remaining_seconds(runs)
        return Outcome(
            path=store.path,
            runs=runs,
            rows=list(rows.values()),
            seconds={run.run_id: session.timing.seconds(run) for run in runs},
            remaining_seconds=None if remaining is None else remaining + (to_come["seconds"] or 0.0),
            to_come=to_come,
            warnings=warnings,
            workers=workers,
            train_tokens=len(data.tokens("train")),
            complete=result.ended,
            fits=result.fits,
            verification=result.verification,
            report=result.report,
            notes=result.notes,
        )


def default_directory(study: StudySpec) -> Path:
    """Where a study lives unless told otherwise."""
    return Path("runs") / study.name


def _taken_over(table: Path, store: StudyStore, runs: Sequence[PlannedRun]) -> str:
    """How many runs a committed table spares; why it may be none."""
    spared = sum(run.run_id in store.imported for run in runs)
    if spared or not store.imported:
        return f"{spared} of {len(runs)} runs are finished in {table}"
    return (
        f"none of the {len(store.imported)} finished rows of {table} is a run of this study: its text, models or "
        f"training differ (a run_id ends in a hash of them)"
    )


def _forecast(session: Session, runs: Sequence[PlannedRun], to_come: dict[str, Any], workers: int) -> str:
    left = [run for run in runs if session.store.row(run.run_id) is None]
    flops = sum(run.resolved.flops for run in left) + to_come["flops"]
    seconds = session.remaining_seconds(runs)
    took = duration(None if seconds is None else seconds + (to_come["seconds"] or 0.0))
    number, total = len(left) + to_come["runs"], len(runs) + to_come["runs"]
    return f"about {number} of {total} runs to do: {flops:.3g} FLOPs, about {took} with {workers} workers"


def _gpus(study: StudySpec) -> int:
    """GPUs that the runs may use; 0 if they run on the CPU."""
    device = study.train_config(study.budgets[0], seed=0).device
    if device is not None and not device.startswith("cuda"):
        return 0
    import torch

    return torch.cuda.device_count()
