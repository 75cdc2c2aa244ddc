"""One process that works on a study: gives runs to workers, keeps rows and tables, knows the time left."""

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.spec import spec_to_dict
from isoflop.study.grid import Grid, PlannedRun
from isoflop.study.pool import Pool
from isoflop.study.progress import StudyProgress, duration
from isoflop.study.spec import StudySpec
from isoflop.study.store import StudyStore
from isoflop.study.timing import Timing

POLL_SECONDS = 1.0
"""How often the bar moves, and other processes' runs are looked at."""
ATTEMPTS = 2
"""Times that a run is begun whose worker is killed, before it counts as failed."""

Planned = Callable[[], Sequence[PlannedRun]]


class Session:
    """The state of one process on a study.

    Args:
        study: the study.
        store: its directory.
        grid: its runs.
        data: the data directory.
        pool: the workers.
        progress: what is shown.
        study_file: the YAML file.
        deadline: when to stop (time.monotonic), if ever.
    """

    def __init__(
        self,
        study: StudySpec,
        store: StudyStore,
        grid: Grid,
        *,
        data: Path,
        pool: Pool,
        progress: StudyProgress,
        study_file: str,
        deadline: float | None = None,
    ) -> None:
        self.study, self.store, self.grid, self.data = study, store, grid, data
        self.pool, self.progress, self.deadline = pool, progress, deadline
        self.study_file = study_file
        self.timing = Timing(store, workers=pool.workers, threads=pool.threads)
        self.verification: list[PlannedRun] = []
        """The verification's runs, once they are planned."""
        self.verification_possible = True
        """False once it is known that the runs give no law to plan with."""
        self._killed: Counter[str] = Counter()
        self._begun: dict[str, float] = {}
        self._told: set[str] = set()

    def planned(self) -> list[PlannedRun]:
        """Every run but the verification that is known so far."""
        rows: dict[str, Mapping[str, Any]] = {}
        while True:
            runs = self.grid.expand(rows)
            found = self.store.rows(runs)
            if found.keys() == rows.keys():
                return runs
            rows = dict(found)

    def everything(self) -> list[PlannedRun]:
        """The same with the verification's runs."""
        return [*self.planned(), *self.verification]

    def time_models(self, runs: Sequence[PlannedRun]) -> None:
        """Time a few steps of every model that has not been timed yet."""
        trials = self.timing.trials([run for run in runs if self.store.row(run.run_id) is None])
        if not trials:
            return
        self.progress.say(f"timing {len(trials)} models with a few steps each")
        waiting = list(trials)
        running: dict[str, PlannedRun] = {}
        while waiting or running:
            while waiting and self.pool.idle:
                key, run, config = waiting.pop(0)
                running[key] = run
                self.pool.start(
                    {
                        "kind": "trial",
                        "run_id": key,
                        "directory": str(self.store.timing / f"{key}-{os.getpid()}"),
                        "spec": spec_to_dict(run.spec),
                        "config": config.to_dict(),
                        "data": str(self.data),
                    }
                )
            ended = self.pool.wait(POLL_SECONDS)
            if ended is not None:
                job, answer = ended
                run = running.pop(job["run_id"])
                if answer["status"] == "done":
                    self.timing.record_trial(job["run_id"], run, answer["seconds_per_step"])
                else:
                    self.progress.say(f"timing {run.run_id} failed: {answer['error']}")
            self.progress.update("timing", 1 - (len(waiting) + len(running)) / len(trials), "")

    def execute(self, planned: Planned, *, only: Collection[float] = ()) -> bool:
        """Carry out runs until all have ended: here, or in another process that works on the same study.

        Args:
            planned: the runs that are known so far; called again after each run that ends.
            only: carry out the runs of these budgets alone; empty: of all.

        Returns:
            False if the deadline came first.
        """
        self.keep()
        while True:
            runs = [run for run in planned() if not only or run.budget in only]
            pending = [run for run in runs if self.store.row(run.run_id) is None]
            self._tell(runs)
            if pending and self.deadline is not None and time.monotonic() > self.deadline:
                return False
            waiting = [run for run in self._ordered(pending) if run.run_id not in self._begun]
            for run in waiting:
                if not self.pool.idle:
                    break
                if not self.store.is_claimed(run.run_id):
                    self._start(run)
            if not pending and not self._begun:
                return True
            self._show(runs, pending)
            ended = self.pool.wait(POLL_SECONDS)
            if ended is not None:
                self._end(*ended, {run.run_id: run for run in runs})
                self.keep()

    def keep(self) -> None:
        """Write the run table and the plan."""
        runs = self.everything()
        rows = [(run, self.store.row(run.run_id) or self.store.failures_before(run.run_id)) for run in runs]
        self.store.export([{**row, "stage": run.stage} for run, row in rows if row is not None])
        self.store.write_plan(
            [
                {
                    **{"run_id": run.run_id, **run.columns, "seed": run.seed},
                    **{"d_model": run.spec.d_model, "n_layers": run.spec.n_layers},
                    **{"params_active": run.resolved.count.params_active, "tokens": run.resolved.tokens},
                    **{"flops": run.resolved.flops, "steps": run.resolved.steps, "seconds": self.timing.seconds(run)},
                }
                for run in runs
            ],
            workers=self.pool.workers,
            to_come=self.to_come(),
            study_file=self.study_file,
        )

    def to_come(self, only: Collection[float] = ()) -> dict[str, Any]:
        """Runs that are certain but whose models are not known yet: number, FLOPs, predicted seconds.

        Extra seeds count as repeats of the expected optimum; a verification run takes as long as its FLOPs with the
        largest model that has been timed. Sizes that may be added at the edge are not counted.

        Args:
            only: count extra seeds of these budgets alone, and no verification; empty: all.
        """
        rows = self.store.rows(self.planned())
        extra = [run for run in self.grid.extra_seeds_to_come(rows) if not only or run.budget in only]
        flops = sum(run.resolved.flops for run in extra)
        seconds = self.timing.remaining(extra, {})
        number, wanted = len(extra), self.study.verification
        if wanted is not None and self.verification_possible and not self.verification and not only:
            checks = len(wanted.seeds) * (1 + len(wanted.also))
            rate = self.timing.seconds_per_flop(self.planned())
            number, flops = number + checks, flops + checks * wanted.flops
            if seconds is not None and rate is not None:
                seconds += rate * wanted.flops * max(1.0, checks / self.pool.workers)
        return {"runs": number, "flops": flops, "seconds": seconds}

    def remaining_seconds(self, runs: Sequence[PlannedRun]) -> float | None:
        """Predicted seconds until the runs that have not ended will have."""
        now = time.monotonic()
        elapsed = {run_id: now - begun for run_id, begun in self._begun.items()}
        return self.timing.remaining([run for run in runs if self.store.row(run.run_id) is None], elapsed)

    def _ordered(self, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Small budgets first, for early news; in a budget the longest first, so that the workers end together."""
        return sorted(runs, key=lambda run: (run.budget, -(self.timing.seconds(run) or run.resolved.flops)))

    def _start(self, run: PlannedRun) -> None:
        self._begun[run.run_id] = time.monotonic()
        self.pool.start(
            {
                "kind": "run",
                "run_id": run.run_id,
                "directory": str(self.store.run_directory(run.run_id)),
                "spec": spec_to_dict(run.spec),
                "config": run.config.to_dict(),
                "data": str(self.data),
                "columns": {"study": self.study.name, **run.columns},
            }
        )

    def _end(self, job: Mapping[str, Any], answer: Mapping[str, Any], runs: Mapping[str, PlannedRun]) -> None:
        run_id = job["run_id"]
        begun = self._begun.pop(run_id)
        run = runs.get(run_id)
        if run is None or answer["status"] == "busy":
            return
        if answer["status"] == "killed":
            self._killed[run_id] += 1
            if self._killed[run_id] < ATTEMPTS:
                self.progress.say(f"{run_id}: {answer['error'].splitlines()[0]}; trying once more")
                return
        if answer["status"] in ("killed", "failed"):
            self.store.write_failure(run_id, self._failed_row(run, answer["error"]))
        row = self.store.row(run_id)
        if row is not None:
            seconds = time.monotonic() - begun
            self.timing.observe(run, row, seconds)
            self._announce(run, row, seconds, runs.values())

    def _announce(
        self, run: PlannedRun, row: dict[str, Any], seconds: float | None, runs: Collection[PlannedRun]
    ) -> None:
        self._told.add(run.run_id)
        self.progress.ended(run, row, seconds, len(self._told), len(runs))

    def _tell(self, runs: Sequence[PlannedRun]) -> None:
        """Name the runs that had ended before, or that another process has ended."""
        first = not self._told
        unknown = [run for run in runs if run.run_id not in self._told and run.run_id not in self._begun]
        ended = [run for run in unknown if self.store.row(run.run_id) is not None]
        if first and ended:
            self.progress.say(f"{len(ended)} of {len(runs)} runs have ended before")
            self._told |= {run.run_id for run in ended}
        for run in [] if first else ended:
            self._announce(run, self.store.row(run.run_id) or {}, None, runs)

    def _show(self, runs: Sequence[PlannedRun], pending: Sequence[PlannedRun]) -> None:
        total = sum(run.resolved.flops for run in runs)
        left = sum(run.resolved.flops for run in pending)
        for run in pending:
            seconds = self.timing.seconds(run)
            if run.run_id in self._begun and seconds:
                left -= run.resolved.flops * min((time.monotonic() - self._begun[run.run_id]) / seconds, 0.99)
        status = f"{total - left:.3g}/{total:.3g} FLOPs  {duration(self.remaining_seconds(runs))} left"
        self.progress.update(f"{len(runs) - len(pending)}/{len(runs)} runs", 1 - left / total, status)

    def _failed_row(self, run: PlannedRun, error: str) -> dict[str, Any]:
        from isoflop.train.record import run_record

        return run_record(
            run.spec,
            run.config,
            run.resolved,
            run_id=run.run_id,
            steps=0,
            epochs=0.0,
            wall_seconds=0.0,
            bytes_per_token=1.0,
            evaluation=None,
            sampled=None,
            train_loss=None,
            error=error,
            extra={"study": self.study.name, **run.columns, "status": "failed"},
        )
