"""The report's figures, each usable alone: it takes a run table or a part of the study's records and returns a
matplotlib Figure (no pyplot, nothing shown, nothing saved). `width` is in inches; panels wrap to fit it."""

from isoflop.report.figures.agreement import parity, residuals, verification
from isoflop.report.figures.isoflop import isoflop_curves, loss_against_capacity, loss_against_granularity, off_scale
from isoflop.report.figures.scaling import efficiency, frontier
from isoflop.report.figures.training import expert_load, training_curves
from isoflop.report.figures.valleys import best_ratio_against_budget, valley_curves

__all__ = [
    "best_ratio_against_budget",
    "efficiency",
    "expert_load",
    "frontier",
    "isoflop_curves",
    "loss_against_capacity",
    "loss_against_granularity",
    "off_scale",
    "parity",
    "residuals",
    "training_curves",
    "valley_curves",
    "verification",
]
