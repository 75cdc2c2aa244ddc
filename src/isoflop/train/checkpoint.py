"""Atomic checkpoints: a directory `step-00000100` of safetensors and JSON with a checksum of each file.

A checkpoint is written under another name, flushed to disk and renamed, so that it is there in whole or not at all;
whatever happens to it afterwards is seen by its checksums. Nothing is ever unpickled.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

MODEL, OPTIMIZER, STATE, CHECKSUMS = "model.safetensors", "optimizer.safetensors", "state.json", "checksums.json"
_log = logging.getLogger("isoflop.train")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk that matched its checksums."""

    path: Path
    """Its directory."""
    state: Mapping[str, Any]
    """What the loop stored beside the tensors; has `step`."""

    def load_model(self, model: nn.Module) -> None:
        """Copy the stored weights and buffers into `model`."""
        stored = load_file(self.path / MODEL)
        with torch.no_grad():
            for name, tensor in model_tensors(model).items():
                tensor.copy_(stored[name])

    def missing(self, model: nn.Module) -> list[str]:
        """Weights and buffers of `model` that the checkpoint does not have."""
        with safe_open(self.path / MODEL, framework="pt") as stored:
            return sorted(model_tensors(model).keys() - set(stored.keys()))

    def unknown(self, model: nn.Module) -> list[str]:
        """Weights and buffers of the checkpoint that `model` does not have."""
        with safe_open(self.path / MODEL, framework="pt") as stored:
            return sorted(set(stored.keys()) - model_tensors(model).keys())

    def optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """The optimiser's tensors by name; empty in the checkpoint of a finished run."""
        path = self.path / OPTIMIZER
        return load_file(path) if path.exists() else {}


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and persistent buffers by name, shared ones once."""
    persistent = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {name: weight.detach() for name, weight in model.named_parameters()} | buffers


def save_checkpoint(
    root: Path,
    *,
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of `state["step"]` below `root`, then delete all but the newest `keep` (at least one)."""
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"step-{state['step']:08d}"
    temporary = root / f".writing-{final.name}"
    _remove(temporary)
    temporary.mkdir()
    for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer)):
        if tensors:
            host = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            try:
                save_file(host, temporary / name)
            except SafetensorError as error:  # the disk is full, say
                raise OSError(f"{name}: {error}") from error
    (temporary / STATE).write_text(json.dumps(state, indent=1) + "\n")
    checksums = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
    (temporary / CHECKSUMS).write_text(json.dumps(checksums, indent=1) + "\n")
    for path in temporary.iterdir():
        flush_to_disk(path)
    flush_to_disk(temporary)
    _remove(final)
    temporary.rename(final)
    flush_to_disk(root)
    prune(root, max(1, keep))
    return final


def newest_checkpoint(root: Path, *, repair: bool = False) -> Checkpoint | None:
    """The newest checkpoint below `root` that matches its checksums; a message says which newer ones did not.

    Args:
        root: the directory of checkpoints; it may be missing.
        repair: delete the broken ones and unfinished writes.
    """
    found = None
    for path in _newest_first(root):
        try:
            found = open_checkpoint(path)
            break
        except ValueError as error:
            _log.warning("checkpoint %s is damaged (%s); looking for one before it", path, error)
            if repair:
                _remove(path)
    if repair and root.is_dir():
        for leftover in root.glob(".*ing-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    return found


def open_checkpoint(path: Path) -> Checkpoint:
    """Check the checksums of the checkpoint at `path`.

    Raises:
        ValueError: if a file is missing or differs, saying which.
    """
    try:
        checksums = json.loads((path / CHECKSUMS).read_text())
        expected = {name: str(value) for name, value in checksums.items()}
    except (OSError, ValueError, AttributeError):
        raise ValueError(f"{CHECKSUMS} is missing or unreadable") from None
    for name in {MODEL, STATE} | expected.keys():
        if not (path / name).is_file() or _sha256(path / name) != expected.get(name):
            raise ValueError(f"{name} is missing or does not match its checksum")
    return Checkpoint(path, json.loads((path / STATE).read_text()))


def prune(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in list(_newest_first(root))[keep:]:
        _remove(path)


def flush_to_disk(path: Path) -> None:
    """fsync a file or, where the system allows it, a directory."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # directories cannot be opened on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _newest_first(root: Path) -> Iterator[Path]:
    yield from sorted(root.glob("step-*"), reverse=True)


def _remove(path: Path) -> None:
    """Delete a directory; it first loses its name, so that half of it is never taken for a checkpoint."""
    if path.exists():
        doomed = path.with_name(f".deleting-{path.name.lstrip('.')}")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
