"""isoflop: from a compute budget to the best conditional-computation language model you can train with it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isoflop.errors import InputError, RunError
from isoflop.spec import (
    AttentionSpec,
    DecoderSpec,
    DepthRoutingSpec,
    ExpertsSpec,
    FeedForwardSpec,
    RouterSpec,
    count,
    load_spec,
)

if TYPE_CHECKING:
    from isoflop import data, laws, nn, planner, report, sample, spec, study, train
    from isoflop.planner import plan

__version__ = "0.1.0"

__all__ = [
    "AttentionSpec",
    "DecoderSpec",
    "DepthRoutingSpec",
    "ExpertsSpec",
    "FeedForwardSpec",
    "InputError",
    "RouterSpec",
    "RunError",
    "count",
    "data",
    "laws",
    "load_spec",
    "nn",
    "plan",
    "planner",
    "report",
    "sample",
    "spec",
    "study",
    "train",
]

_ROOMS = ("data", "laws", "nn", "planner", "report", "sample", "spec", "study", "train")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"isoflop.{name}")
    if name == "plan":
        return import_module("isoflop.planner").plan
    raise AttributeError(f"module 'isoflop' has no attribute {name!r}")
