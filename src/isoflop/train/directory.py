"""The directory of one run: what it computes, who holds it, its metrics and its record."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from isoflop.data import TokenData
from isoflop.data.manifest import MANIFEST_FILE, TOKENIZER_FILE
from isoflop.errors import InputError, RunError
from isoflop.spec import DecoderSpec, save_spec, spec_to_dict
from isoflop.train.checkpoint import flush_to_disk
from isoflop.train.config import OPERATIONAL, TrainConfig
from isoflop.train.resolve import Resolved

_OURS: Final = ("spec.yaml", MANIFEST_FILE, TOKENIZER_FILE, "config.json")
"""Files that a run writes after run.json, in this order."""


class RunDirectory:
    """A run on disk.

    `spec.yaml`, `config.json`, copies of the data's `manifest.json` and `tokenizer.json`, `run.json` (what decides the
    outcome), `metrics.jsonl`, `checkpoints/`, `expert_load.json` and, last, `result.json`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"

    def claim(self, spec: DecoderSpec, config: TrainConfig, plan: Resolved, data: TokenData) -> None:
        """Write what the run computes, or make sure that the directory already holds the same.

        Raises:
            InputError: if it holds another run (names the fields that differ), or files of that name that are not a
                run's, or cannot be written.
        """
        wanted = _description(spec, config, plan, data)
        stored = self._read("run.json")
        if stored is not None:
            differing = list(_differences(stored, json.loads(json.dumps(wanted))))
            if differing:
                raise InputError(
                    f"out is {self.path}, which holds a run with other settings: {'; '.join(differing)}; give another "
                    f"directory or the same settings."
                )
        elif foreign := [name for name in _OURS if (self.path / name).exists()]:
            raise InputError(f"out is {self.path}, which holds a {foreign[0]} but no run; give another directory.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if stored is None:
                self._write("run.json", wanted)
            if (self.path / _OURS[-1]).exists():
                return
            save_spec(spec, self.path / "spec.yaml")
            for name in (MANIFEST_FILE, TOKENIZER_FILE):
                if (data.path / name).exists():
                    shutil.copyfile(data.path / name, self.path / name)
            self._write("config.json", config.to_dict())
        except OSError as error:
            raise InputError(f"out is {self.path}, which cannot be written: {error.strerror}.") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory; the system lets go of it when the process ends, however it ends.

        Raises:
            RunError: if another process holds it.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{self.path} is being trained by another process.") from None
            yield

    def result(self) -> dict[str, Any] | None:
        """The run record, if the run has ended."""
        return self._read("result.json")

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the run record, atomically."""
        self._write("result.json", record)

    def write_expert_load(self, load_LX: Sequence[Sequence[float]]) -> None:
        """Write the held-out load of every expert, one row a MoE layer, for the report's heat map."""
        self._write("expert_load.json", {"load": [[round(share, 6) for share in load_X] for load_X in load_LX]})

    def flush_metrics(self) -> None:
        """Make the metrics written so far survive a loss of power."""
        flush_to_disk(self.metrics)

    def truncate_metrics(self, length: int) -> None:
        """Cut the metrics back to the first `length` bytes, those that a checkpoint has seen."""
        if self.metrics.exists():
            os.truncate(self.metrics, min(length, self.metrics.stat().st_size))

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            raise RunError(f"{path} is not valid JSON; remove it to compute it anew.") from None
        return values

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        temporary = self.path / f".writing-{name}"
        temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        flush_to_disk(temporary)
        temporary.rename(self.path / name)
        flush_to_disk(self.path)


def _description(spec: DecoderSpec, config: TrainConfig, plan: Resolved, data: TokenData) -> dict[str, Any]:
    """What decides the outcome of a run; the defaults are filled in, because a rule may change with the version."""
    settings = {name: value for name, value in config.to_dict().items() if name not in OPERATIONAL}
    settings |= {name: getattr(plan, name) for name in ("batch_tokens", "micro_batch", "learning_rate", "steps")}
    return {"spec": spec_to_dict(spec), "config": settings, "data": _fingerprint(data)}


def _fingerprint(data: TokenData) -> str:
    """SHA-256 of the data's manifest, which holds the hashes of its shards."""
    return hashlib.sha256((data.path / MANIFEST_FILE).read_bytes()).hexdigest()


def _differences(stored: Any, wanted: Any, name: str = "") -> Iterator[str]:
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        for key in sorted(stored.keys() | wanted.keys()):
            yield from _differences(stored.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif stored != wanted:
        shown = (stored, wanted) if name != "data" else ("another manifest", "this one")
        yield f"{name} is {shown[0]} there and {shown[1]} here"
