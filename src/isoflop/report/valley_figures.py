"""Figures of the valleys over the expert–attention ratio as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.errors import InputError
from isoflop.report.embed import save
from isoflop.report.figures.valleys import best_ratio_against_budget, valley_curves
from isoflop.report.style import require_matplotlib

if TYPE_CHECKING:
    from isoflop.laws import BestRatio, RunTable, Valley


def write_valley_figures(
    runs: "RunTable",
    valleys: Sequence["Valley"],
    law: "BestRatio | None",
    directory: Path,
    *,
    convention: str | None = None,
) -> list[Path]:
    """Write valleys and best-ratio, each as .png and .svg, into a directory that may be new.

    Args:
        runs: what `ratio_valleys` was given.
        valleys: what it returned.
        law: through them, where there is one.
        directory: where to.
        convention: how r was counted; default: as the valleys say.

    Raises:
        InputError: if matplotlib is missing, or the directory cannot be written.
    """
    require_matplotlib()
    figures = {
        "valleys": valley_curves(runs, valleys, convention=convention),
        "best-ratio": best_ratio_against_budget(valleys, law),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return [path for name, figure in figures.items() for path in save(figure, directory / name)]
    except OSError as error:
        raise InputError(f"plots is {directory}, which cannot be written: {error.strerror}.") from None
