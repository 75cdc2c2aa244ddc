"""What a study left in its directory: its YAML, run table, fits, verification, and files of single runs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from isoflop.errors import InputError
from isoflop.laws import RunTable, read_runs


@dataclass(frozen=True)
class StudyRecords:
    """The files of one study directory; everything but the run table may be absent."""

    directory: Path
    runs: RunTable
    """Every run, also those that failed."""

    @classmethod
    def open(cls, directory: str | Path) -> "StudyRecords":
        """Read the run table of a study directory.

        Raises:
            InputError: if it is no study directory, or its run table is empty or unreadable.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise InputError(
                f"study directory {directory} does not exist; give a directory that `isoflop study run` wrote."
            )
        table = directory / "runs.csv"
        if not table.exists():
            raise InputError(
                f"{directory} is not a study directory (it has no runs.csv); give one that `isoflop study run` wrote."
            )
        if len(table.read_bytes().strip().splitlines()) < 2:
            raise InputError(f"run table {table} has no rows; no run of the study has ended yet.")
        return cls(directory=directory, runs=read_runs(table))

    @cached_property
    def study_yaml(self) -> str | None:
        """study.yaml as it stands."""
        return _read(self.directory / "study.yaml")

    @cached_property
    def study(self) -> Mapping[str, Any]:
        """study.yaml as a mapping; empty if it is absent or unreadable."""
        try:
            values = yaml.safe_load(self.study_yaml or "")
        except yaml.YAMLError:
            return {}
        return values if isinstance(values, Mapping) else {}

    @property
    def name(self) -> str:
        """The study's name, else its directory's."""
        return str(self.study.get("name") or self.directory.resolve().name)

    @cached_property
    def fits(self) -> Mapping[str, Any] | None:
        """fits.json; None if it is absent or unreadable."""
        return _read_json(self.directory / "fits.json")

    @cached_property
    def verification(self) -> Mapping[str, Any] | None:
        """verification.json; None if it is absent or unreadable."""
        return _read_json(self.directory / "verification.json")

    @property
    def study_file(self) -> str:
        """The YAML file that the study was started with, else the copy in its directory."""
        given = (_read_json(self.directory / "plan.json") or {}).get("study_file")
        return given if isinstance(given, str) else str(self.directory / "study.yaml")

    def training_curve(self, run_id: str) -> list[tuple[float, float]]:
        """Points (tokens, training loss in nats/token) of a run; empty if it left no metrics."""
        points = []
        for line in (_read(self.directory / "runs" / run_id / "metrics.jsonl") or "").splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue  # a line that was being written when the run was killed
            tokens, loss = values.get("tokens"), values.get("loss")
            if isinstance(tokens, (int, float)) and isinstance(loss, (int, float)) and tokens > 0:
                points.append((float(tokens), float(loss)))
        return points

    def expert_load(self, run_id: str) -> list[list[float]] | None:
        """Share of the assignments per layer and expert on held-out text; None if the run did not record it."""
        run = self.directory / "runs" / run_id
        load = (_read_json(run / "expert_load.json") or {}).get("load")
        if load is None:
            load = (_read_json(run / "result.json") or {}).get("expert_load")
        try:
            layers = [[float(share) for share in layer] for layer in load or []]
        except (TypeError, ValueError):
            return None
        return [layer for layer in layers if layer] or None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _read_json(path: Path) -> Mapping[str, Any] | None:
    text = _read(path)
    try:
        values = json.loads(text) if text else None
    except ValueError:
        return None
    return values if isinstance(values, Mapping) else None
