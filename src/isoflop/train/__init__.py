"""Training: optimiser, schedule, loop, checkpoints, metrics. A run is a directory; starting it again resumes it, and a
finished one returns its record. The configuration, its rules and its arithmetic load without torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isoflop.train.config import TrainConfig
from isoflop.train.resolve import Resolved, resolve
from isoflop.train.rules import batch_tokens, learning_rate

if TYPE_CHECKING:
    from isoflop.train.evaluation import Evaluation, evaluate, measure
    from isoflop.train.load import LoadedModel, load_model
    from isoflop.train.loop import train

__all__ = [
    "Evaluation",
    "LoadedModel",
    "Resolved",
    "TrainConfig",
    "batch_tokens",
    "evaluate",
    "learning_rate",
    "load_model",
    "measure",
    "resolve",
    "train",
]

_LAZY = {
    "Evaluation": "evaluation",
    "LoadedModel": "load",
    "evaluate": "evaluation",
    "load_model": "load",
    "measure": "evaluation",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(f"isoflop.train.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'isoflop.train' has no attribute {name!r}")
