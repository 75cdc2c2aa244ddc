"""From a compute budget and a loss law to the architecture to train."""

from isoflop.planner.ladder import (
    Template,
    architecture,
    dense_params,
    expected_optimum,
    ladder,
    neighbour,
    sizes_around,
)

__all__ = [
    "Template",
    "architecture",
    "dense_params",
    "expected_optimum",
    "ladder",
    "neighbour",
    "sizes_around",
]
