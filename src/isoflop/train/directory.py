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

_RUN: Final = "run.json"
"""What decides the outcome; the first file that a run writes."""
_LAST: Final = "config.json"
"""The last file that describes a run."""
_WRITING: Final = ".writing-"
"""How the name of a file begins that is being written."""
_BEFORE: Final = (".claim", ".lock", "failed.json")
"""Files that a study may have put into the directory of a run before it began."""
_SHOWN: Final = 4
"""Settings that a message names; the others are counted."""


class RunDirectory:
    """A run on disk.

    `spec.yaml`, `config.json`, copies of the data's `manifest.json` and `tokenizer.json`, `run.json` (what decides the
    outcome), `metrics.jsonl`, `checkpoints/`, `expert_load.json` and, last, `result.json`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"

    @property
    def is_claimed(self) -> bool:
        """Whether a run has taken it: says what it computes."""
        return (self.path / _RUN).exists()

    def claim(self, spec: DecoderSpec, config: TrainConfig, plan: Resolved, data: TokenData) -> None:
        """Write what the run computes, or make sure that the directory already holds the same.

        Raises:
            InputError: if it holds another run (names the fields that differ), or files but no run, or cannot be
                written.
        """
        wanted = _description(spec, config, plan, data)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._alone():
                stored = self._read(_RUN)
                if stored is None:
                    self._refuse_foreign_files()
                    self._write(_RUN, wanted)
                else:
                    self._refuse_another_run(stored, json.loads(json.dumps(wanted)))
                if not (self.path / _LAST).exists():
                    save_spec(spec, self.path / "spec.yaml")
                    for name in (MANIFEST_FILE, TOKENIZER_FILE):
                        if (data.path / name).exists():
                            shutil.copyfile(data.path / name, self.path / name)
                    self._write(_LAST, config.to_dict())
        except FileExistsError:
            raise InputError(f"out is {self.path}, which is a file; a directory is needed.") from None
        except OSError as error:
            raise InputError(f"out is {self.path}, which cannot be written: {error.strerror}.") from None

    def release(self) -> None:
        """Give back a directory that a run took and could not begin: remove what `claim` wrote."""
        for name in (_RUN, _LAST, "spec.yaml", MANIFEST_FILE, TOKENIZER_FILE, ".lock"):
            (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process claims the directory, and keep others from it."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _refuse_foreign_files(self) -> None:
        names = sorted(entry.name for entry in self.path.iterdir())
        foreign = [name for name in names if name not in _BEFORE and not name.startswith(_WRITING)]
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise InputError(
                f"out is {self.path}, which holds {foreign[0]}{more} but no run; give a new or an empty directory."
            )

    def _refuse_another_run(self, stored: Any, wanted: Mapping[str, Any]) -> None:
        if not isinstance(stored, Mapping) or stored.keys() != wanted.keys():
            raise InputError(
                f"out is {self.path}, which holds a {_RUN} that no run of this version wrote; give another directory."
            )
        differing = list(_differences(stored, wanted))
        if differing:
            more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            raise InputError(
                f"out is {self.path}, which holds a run with other settings: {'; '.join(differing[:_SHOWN])}{more}; "
                f"give another directory or the same settings."
            )

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
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}.") from None
        except ValueError:
            raise RunError(f"{path} is not valid JSON; remove it to compute it anew.") from None
        return values

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        temporary = self.path / f"{_WRITING}{name}"
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
        yield f"{name} is {_plain(shown[0])} there and {_plain(shown[1])} here"


def _plain(value: Any) -> str:
    """A setting in a sentence."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "given" if isinstance(value, Mapping) else str(value)
