"""Shows what a study found: figures, and a report in one HTML file. Reads nothing but the study's files.

`isoflop.report.figures` holds the figures, each usable alone; `isoflop.report.plan_figures` those of a plan.
"""

from isoflop.report.page import write_report
from isoflop.report.plan_figures import write_plan_figures
from isoflop.report.valley_figures import write_valley_figures

__all__ = ["write_plan_figures", "write_report", "write_valley_figures"]
