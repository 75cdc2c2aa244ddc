"""From a compute budget and a loss law to the architecture to train."""

from isoflop.planner._experiments import laws_of_runs
from isoflop.planner.constraints import Constraints
from isoflop.planner.ladder import (
    SPACING,
    architecture,
    dense_params,
    expected_optimum,
    ladder,
    neighbour,
    sizes_around,
)
from isoflop.planner.next_run import NextRun, RunCandidate, next_run
from isoflop.planner.plan import plan
from isoflop.planner.result import Curve, Plan, PlanRow
from isoflop.planner.template import Template

__all__ = [
    "SPACING",
    "Constraints",
    "Curve",
    "NextRun",
    "Plan",
    "PlanRow",
    "RunCandidate",
    "Template",
    "architecture",
    "dense_params",
    "expected_optimum",
    "ladder",
    "laws_of_runs",
    "neighbour",
    "next_run",
    "plan",
    "sizes_around",
]
