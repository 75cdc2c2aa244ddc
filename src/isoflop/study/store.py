"""The directory of a study. There is no database: every run owns its directory, and tables are rebuilt from those.

`study.yaml`, `plan.json` (the runs that are planned), `runs/<run_id>/` (run directories of the train room, immutable
once `result.json` exists; `failed.json` in place of it where the run ended with an error), `imported.csv` (rows of a
committed table), `timing/`, `runs.csv` and `runs.parquet`, `fits.json`, `verification.json`, `report/`.

A finished row never leaves `runs.csv`: where the study no longer plans its run, its stage becomes `unplanned`, unless
it repeats a planned run with another seed: then it is an `extra_seed`, and the laws use it. A row
counts as a finished run even where its directory is gone; to repeat a run, remove both.
"""

import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from isoflop.errors import InputError, RunError
from isoflop.study.grid import PlannedRun
from isoflop.study.table import read_table, write_table

SETTLED = ("done", "diverged")
"""States of a run that is not carried out again; a failed one is tried anew when the study is started again."""


UNPLANNED = "unplanned"
"""Stage of a finished run that the study, as it stands now, does not ask for."""

_CELL = (
    *("study", "architecture", "budget", "n_layers", "d_model", "d_ff", "context", "vocab_size", "router"),
    *("output_norm", "batch_tokens", "learning_rate", "steps"),
)
"""Runs that agree in these columns differ in their seed alone."""


class StudyStore:
    """The files of one study; many processes may hold one of these on the same directory."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.runs = self.path / "runs"
        self.timing = self.path / "timing"
        self._results: dict[str, dict[str, Any]] = {}
        self._imported: dict[str, dict[str, Any]] = {}
        self._table: dict[str, dict[str, Any]] = {}
        self._opened_at = time.time()

    def create(self, yaml_text: str | None) -> None:
        """Make the directory and write the study's YAML into it (None: leave the one that is there).

        Raises:
            InputError: if the directory cannot be written.
        """
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            self.timing.mkdir(exist_ok=True)
            if yaml_text is not None:
                self.write_text("study.yaml", yaml_text)
        except OSError as error:
            raise InputError(f"out is {self.path}, which cannot be written: {error.strerror}.") from None
        self.load_tables()
        for directory in self.timing.glob("*-*"):  # trials of processes that were killed
            if not _is_alive(int(directory.name.partition("-")[2])):
                shutil.rmtree(directory, ignore_errors=True)

    def load_tables(self) -> None:
        """Read the finished rows of the study's own table, and those that were taken over from a committed one."""
        self._imported = _finished(self.path / "imported.csv")
        self._table = _finished(self.path / "runs.csv")

    @property
    def imported(self) -> set[str]:
        """Ids of the runs whose rows were taken over from a table."""
        return set(self._imported)

    def import_table(self, path: Path, *, keep: bool = True) -> None:
        """Take over the finished rows of a run table, so that they are not run again; `keep`: nor at later starts.

        Raises:
            InputError: if the table cannot be read or has no run_id.
        """
        if not path.exists():
            raise InputError(f"table {path} does not exist; give the runs.csv of a study.")
        self._imported |= _finished(path)
        if self._imported and keep:
            write_table(self.path / "imported.csv", list(self._imported.values()))

    def run_directory(self, run_id: str) -> Path:
        """Where a run lives."""
        return self.runs / run_id

    def row(self, run_id: str) -> dict[str, Any] | None:
        """The row of a run that has ended: from its result, from a table, or of its failure."""
        if run_id not in self._results:
            result = _read_json(self.run_directory(run_id) / "result.json")
            if result is None:
                return self._imported.get(run_id) or self._table.get(run_id) or self.failure(run_id)
            self._results[run_id] = result
        return self._results[run_id]

    def rows(self, runs: Sequence[PlannedRun]) -> dict[str, dict[str, Any]]:
        """The rows of those runs that have ended, by run_id."""
        found = ((run.run_id, self.row(run.run_id)) for run in runs)
        return {run_id: row for run_id, row in found if row is not None}

    def failure(self, run_id: str) -> dict[str, Any] | None:
        """The row of a run that failed while this process (or one beside it) works on the study."""
        path = self.run_directory(run_id) / "failed.json"
        try:
            if path.stat().st_mtime < self._opened_at:
                return None
        except OSError:
            return None
        return _read_json(path)

    def failures_before(self, run_id: str) -> dict[str, Any] | None:
        """The row of a run that failed at any time."""
        return _read_json(self.run_directory(run_id) / "failed.json")

    def write_failure(self, run_id: str, row: Mapping[str, Any]) -> None:
        """Record that a run ended with an error."""
        self.run_directory(run_id).mkdir(parents=True, exist_ok=True)
        name = f"runs/{run_id}/failed.json"
        self.write_json(name, row)
        os.utime(self.path / name)  # `failure` goes by its time, also where the run failed in the same way before

    def is_claimed(self, run_id: str) -> bool:
        """Whether a process is carrying out the run right now."""
        path = self.run_directory(run_id) / ".claim"
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock of the whole study; waits for the process that holds it."""
        with (self.path / f".{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def export(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write runs.csv, and runs.parquet where pyarrow is installed; finished rows of other runs stay, marked."""
        with self.lock("table"):
            repeats = self.repeats(rows)
            known = {row["run_id"] for row in (*rows, *repeats)}
            others = [row for run_id, row in _finished(self.path / "runs.csv").items() if run_id not in known]
            rows = [*rows, *repeats, *({**row, "stage": UNPLANNED} for row in others)]
            if not rows:
                return
            write_table(self.path / "runs.csv", rows)
            with suppress(ImportError):
                import pyarrow  # noqa: F401

                write_table(self.path / "runs.parquet", rows)

    def repeats(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Finished rows of the table that repeat one of these runs with another seed, as `extra_seed`."""
        rows = [row for row in rows if row.get("stage") != "verification"]
        ids, cells = {row["run_id"] for row in rows}, {_cell(row) for row in rows if row.get("status") in SETTLED}
        return [
            {**row, "stage": "extra_seed"}
            for run_id, row in _finished(self.path / "runs.csv").items()
            if run_id not in ids and row.get("stage") != "verification" and _cell(row) in cells
        ]

    def changed_at(self) -> float:
        """When the files that a report is made of changed last, in seconds since the epoch."""
        names = ("study.yaml", "runs.csv", "fits.json", "verification.json")
        return max((self.path / name).stat().st_mtime for name in names if (self.path / name).exists())

    def write_plan(
        self,
        runs: Sequence[Mapping[str, Any]],
        *,
        workers: int,
        to_come: Mapping[str, Any],
        study_file: str,
    ) -> None:
        """Write what is planned, for `study status` and the report."""
        self.write_json(
            "plan.json",
            {"study_file": study_file, "workers": workers, "runs": list(runs), "to_come": dict(to_come)},
        )

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the study, or None.

        Raises:
            RunError: if it is not JSON.
        """
        return _read_json(self.path / name)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file of the study, atomically."""
        self.write_text(name, json.dumps(_finite(values), indent=1, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the study, atomically; a file that says the same already is left alone."""
        path = self.path / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


@contextmanager
def claim(directory: Path) -> Iterator[bool]:
    """Claim a run for as long as the context lasts; yields whether it worked. A process that dies lets go."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".claim").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _cell(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a run is but for its seed; numbers as they compare, whether a table or a record holds them."""
    values = (row.get(name) for name in _CELL)
    return tuple(
        f"{value:.9g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value).lower()
        for value in values
    )


def _finished(table: Path) -> dict[str, dict[str, Any]]:
    """The rows of a run table whose runs need not be carried out again, by run_id; none where there is no table."""
    if not table.exists():
        return {}
    rows = read_table(table)
    if rows and "run_id" not in rows[0]:
        raise InputError(f"table {table} has no column run_id; give the runs.csv of a study.")
    return {row["run_id"]: row for row in rows if row.get("status") in SETTLED}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _finite(value: Any) -> Any:
    """The same with None for what JSON does not have: NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise RunError(f"{path} is not valid JSON; remove it to compute it anew.") from None
    return values
