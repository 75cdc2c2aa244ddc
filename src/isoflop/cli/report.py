"""`isoflop report`: a study's figures and its one-file HTML report."""

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli._common import JsonFlag, print_json


def report(
    study_dir: Annotated[Path, typer.Argument(help="Directory of a study, which `isoflop study run` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Directory of the report; default: STUDY_DIR/report.")] = None,
    json: JsonFlag = False,
) -> None:
    """Write a study's report: one HTML file that needs nothing else, and its figures as PNG and SVG."""
    from isoflop.report import write_report

    page = write_report(study_dir, out)
    if json:
        figures = sorted(str(path) for path in (page.parent / "figures").iterdir() if path.suffix in (".png", ".svg"))
        print_json({"report": str(page), "figures": figures})
    else:
        typer.echo(str(page))
