"""From a compute budget and a loss law to the architecture to train."""

from isoflop.planner._experiments import laws_of_runs
from isoflop.planner.allocation import Realised, ratio_sweep, realise
from isoflop.planner.answer import Answer, answer
from isoflop.planner.constraints import Constraints
from isoflop.planner.hardware import HARDWARE, Expense, Hardware, Machine, hardware
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
from isoflop.planner.ratio_report import PlanAllocation
from isoflop.planner.result import Curve, Plan, PlanRow
from isoflop.planner.sharding import memory_per_device
from isoflop.planner.speed import SpeedTable, load_speed
from isoflop.planner.template import Template
from isoflop.planner.versus import DenseComparison

__all__ = [
    "HARDWARE",
    "SPACING",
    "Answer",
    "Constraints",
    "Curve",
    "DenseComparison",
    "Expense",
    "Hardware",
    "Machine",
    "NextRun",
    "Plan",
    "PlanAllocation",
    "PlanRow",
    "Realised",
    "RunCandidate",
    "SpeedTable",
    "Template",
    "answer",
    "architecture",
    "dense_params",
    "expected_optimum",
    "hardware",
    "ladder",
    "laws_of_runs",
    "load_speed",
    "memory_per_device",
    "neighbour",
    "next_run",
    "plan",
    "ratio_sweep",
    "realise",
    "sizes_around",
]
