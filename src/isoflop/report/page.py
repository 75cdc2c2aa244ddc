"""The report: one self-contained HTML file, and its figures as PNG and SVG."""

import math
import os
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from isoflop import __version__
from isoflop.errors import InputError, RunError
from isoflop.report import view
from isoflop.report.embed import inline_svg, save
from isoflop.report.evidence import Evidence, gather
from isoflop.report.headline import headline
from isoflop.report.records import StudyRecords
from isoflop.report.run_table import run_table
from isoflop.report.sections import Plot, sections
from isoflop.report.style import DARK, LIGHT, NARROW, WIDE, flops, require_matplotlib


def write_report(study_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a study and return the path of its HTML file.

    The page holds everything inline: styles, a few lines of script, every figure as SVG in a wide and a narrow layout.
    Beside it `figures/` has each figure as PNG and SVG. A section says what it needs and the study does not have.

    Args:
        study_dir: the study's directory.
        out: directory of the report; default: `report` in the study's directory.

    Raises:
        InputError: if it is no study directory, its run table is empty, or matplotlib or jinja2 is missing.
        RunError: if the report cannot be written.
    """
    environment = _environment()
    records = StudyRecords.open(study_dir)
    require_matplotlib()
    evidence = gather(records)
    target = records.directory / "report" if out is None else Path(out)
    page = target / "index.html"
    try:
        (target / "figures").mkdir(parents=True, exist_ok=True)
        shown = [
            {**vars(section), "figures": [_drawn(plot, target / "figures") for plot in section.plots]}
            for section in sections(records, evidence)
        ]
        html = environment.get_template("report.html.j2").render(
            name=records.name,
            description=records.study.get("description"),
            facts=_facts(evidence),
            headline=headline(
                records.runs,
                evidence.minima,
                evidence.multipliers,
                evidence.checks,
                evidence.fits,
                evidence.multipliers_missing,
            ),
            sections=shown,
            run_table=run_table(records.runs),
            commands=_commands(records),
            versions=_versions(records),
            study_yaml=records.study_yaml,
            light=LIGHT,
            dark=DARK,
        )
        temporary = target / f".index.{os.getpid()}.html"
        temporary.write_text(html, encoding="utf-8")
        temporary.replace(page)
    except OSError as error:
        raise RunError(f"the report cannot be written to {target}: {error.strerror}.") from None
    return page


def _environment() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise InputError(
            "jinja2 is not installed and the report needs it; install it with: pip install 'isoflop[report]'"
        ) from None
    return Environment(
        loader=PackageLoader("isoflop.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _drawn(plot: Plot, folder: Path) -> dict[str, Any]:
    """Files and inline SVGs of one figure."""
    from markupsafe import Markup

    wide = plot.draw(WIDE)
    save(wide, folder / plot.key)
    return {
        "key": plot.key,
        "caption": plot.caption,
        "wide": Markup(inline_svg(wide, prefix=f"{plot.key}-w", description=plot.description)),
        "narrow": Markup(inline_svg(plot.draw(NARROW), prefix=f"{plot.key}-n", description=plot.description)),
    }


def _facts(evidence: Evidence) -> str:
    runs = evidence.runs
    spent = float(np.nansum(view.numbers(runs, "flops")))
    seconds = float(np.nansum(view.numbers(runs, "wall_seconds")))
    budgets = sorted({float(budget) for budget in view.budgets(evidence.grid) if math.isfinite(budget)})
    facts = [f"{len(runs)} runs", f"{len(evidence.architectures)} architectures"]
    if budgets:
        span = (
            flops(budgets[0])
            if len(budgets) == 1
            else f"{len(budgets)} budgets from {flops(budgets[0])} to {flops(budgets[-1])}"
        )
        facts.append(f"{span} FLOPs")
    facts.append(
        f"{flops(spent)} FLOPs in all" + (f", {seconds / 3600:.1f} hours of training" if seconds >= 360 else "")
    )
    return " · ".join(facts)


def _commands(records: StudyRecords) -> str:
    directory = shlex.quote(str(records.directory))
    return f"isoflop study run {shlex.quote(records.study_file)} --out {directory}\nisoflop report {directory}"


def _versions(records: StudyRecords) -> list[tuple[str, str]]:
    """What the runs' records and this process say about themselves."""
    found = []
    for column, label in (
        ("version", "isoflop that trained"),
        ("torch_version", "torch"),
        ("device", "device"),
        ("dtype", "number format"),
        ("flops_convention", "FLOPs convention"),
        ("context", "context (tokens)"),
        ("vocab_size", "vocabulary"),
    ):
        values = sorted(set(view.texts(records.runs, column)) - {""})
        if values:
            found.append((label, ", ".join(values)))
    found.append(("isoflop that reports", __version__))
    found.append(("Python", platform.python_version()))
    for package in ("numpy", "scipy", "matplotlib", "jinja2"):
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found
