"""Runs that TensorBoard logged, through the `tensorboard` package."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isoflop.errors import InputError

_EVENTS = "*.tfevents.*"
_HPARAMS = "_hparams_/session_start_info"


def run_directories(path: Path) -> list[Path]:
    """Directories at or below `path` that hold event files."""
    return sorted({events.parent for events in path.rglob(_EVENTS)})


def rows(path: Path, runs: Iterable[Path]) -> list[tuple[str, dict[str, Any]]]:
    """One row for each directory with events: run_id, hparams and the last value of each scalar, by their own names.

    `step` is the largest step of any scalar. Hyperparameters that stand in a directory of their own below a run, where
    torch's `add_hparams` puts them, belong to that run.

    Raises:
        InputError: if the package is absent or no scalar is found.
    """
    found: dict[Path, dict[str, Any]] = {}
    hparams: dict[Path, dict[str, Any]] = {}
    for directory in runs:
        scalars, hparams[directory] = _read(directory)
        found[directory] = scalars
    for directory in list(found):
        parent = directory.parent
        if hparams[directory] and parent in found and not hparams[parent]:
            hparams[parent] = hparams[directory]
            found[parent] = found.pop(directory) | found[parent]
    labelled = []
    for directory, scalars in found.items():
        if scalars:
            name = "." if directory == path else str(directory.relative_to(path))
            labelled.append((name, {"run_id": directory.name if name == "." else name} | hparams[directory] | scalars))
    if not labelled:
        raise InputError(f"{path} has event files of TensorBoard without a scalar; log the loss with add_scalar.")
    return labelled


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Last value of each scalar with the largest step, and the hyperparameters."""
    try:
        from tensorboard.backend.event_processing import event_accumulator
        from tensorboard.plugins.hparams import plugin_data_pb2
        from tensorboard.util import tensor_util
    except ModuleNotFoundError:
        raise InputError(
            f"{directory} holds event files of TensorBoard, which need its package: pip install 'isoflop[tensorboard]'."
        ) from None
    kept = {event_accumulator.SCALARS: 1, event_accumulator.TENSORS: 1}
    events = event_accumulator.EventAccumulator(str(directory), size_guidance=kept)
    events.Reload()
    tags = events.Tags()
    scalars: dict[str, Any] = {}
    steps = []
    for tag in tags[event_accumulator.SCALARS]:
        last = events.Scalars(tag)[-1]
        scalars[tag] = float(last.value)
        steps.append(last.step)
    for tag in tags[event_accumulator.TENSORS]:
        last = events.Tensors(tag)[-1]
        value = tensor_util.make_ndarray(last.tensor_proto)
        if value.ndim == 0 and value.dtype.kind in "fiu":
            scalars[tag] = float(value)
            steps.append(last.step)
    if steps:
        scalars.setdefault("step", max(steps))
    hparams: dict[str, Any] = {}
    try:
        content = events.PluginTagToContent("hparams").get(_HPARAMS)
    except KeyError:
        content = None
    if content:
        data = plugin_data_pb2.HParamsPluginData.FromString(content)
        for name, value in data.session_start_info.hparams.items():
            hparams[name] = getattr(value, value.WhichOneof("kind") or "", None)
    return scalars, hparams
