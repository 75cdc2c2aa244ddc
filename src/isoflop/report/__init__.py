"""Shows what a study found: figures, and a report in one HTML file. Reads nothing but the study's files.

`isoflop.report.figures` holds the figures, each usable alone.
"""

from isoflop.report.page import write_report

__all__ = ["write_report"]
