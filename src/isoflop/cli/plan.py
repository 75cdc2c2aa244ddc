"""`isoflop plan`: from a budget and a law to the architecture to train."""

import json as json_module
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli._common import JsonFlag, print_json, print_table, si
from isoflop.errors import InputError

if TYPE_CHECKING:
    from isoflop.laws import Fit, Law
    from isoflop.planner import Plan, PlanRow, Template

_SHOWN = 24
"""Most rows of the table for people."""


def plan(
    law: Annotated[
        list[str],
        typer.Option(
            help="Published law, or a JSON file with a fit or several (fit.json, fits.json); may be repeated."
        ),
    ],
    flops: Annotated[str, typer.Option(metavar="NUMBER", help="Training budget, such as 1.93e20.")],
    convention: Annotated[
        str | None, typer.Option(help="How FLOPs are counted: krajewski, 6ND, exact, …; default: the law's.")
    ] = None,
    granularity: Annotated[list[int] | None, typer.Option(help="Consider this granularity; may be repeated.")] = None,
    expansion_rate: Annotated[
        list[float] | None, typer.Option(help="Consider this expansion rate; may be repeated.")
    ] = None,
    template: Annotated[
        list[Path] | None,
        typer.Option(help="Spec file; models like it, of any size, are candidates; may be repeated."),
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Vocabulary of the models, where no template says it.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens in a sequence, where no template says it.")] = None,
    tokens_available: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Distinct training tokens; one epoch at most.")
    ] = None,
    max_params_total: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Most parameters (non-embedding).")
    ] = None,
    max_params_active: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Most parameters that a token uses (non-embedding).")
    ] = None,
    within: Annotated[float, typer.Option(help="Nats above the best that count as near-optimal.")] = 0.002,
    spec_out: Annotated[
        Path | None, typer.Option(help="Write the best model's spec to this .yaml or .json file.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Rank the architectures that a training budget could buy by their predicted loss."""
    from isoflop import planner
    from isoflop.cli.train import parse_number
    from isoflop.planner import Template
    from isoflop.spec import load_spec, save_spec

    def limit(name: str, text: str | None) -> float | None:
        return None if text is None else parse_number(name, text)

    laws: dict[str, Law | Fit] = {}
    templates = [Template.like(load_spec(path), path.stem) for path in template or []]
    spacing = planner.SPACING
    for each in law:
        file = _law_file(each)
        found = _read_laws(each, file)
        laws |= found
        if not template and vocab_size is None and (file.parent / "study.yaml").exists():
            known, spacing = _study_templates(file.parent, found)
            templates += known
    result = planner.plan(
        flops=parse_number("flops", flops),
        law=laws,
        convention=convention,
        templates=templates,
        granularities=granularity,
        expansion_rates=expansion_rate,
        vocab_size=vocab_size,
        context=context,
        spacing=spacing,
        tokens_available=limit("tokens_available", tokens_available),
        max_params_total=limit("max_params_total", max_params_total),
        max_params_active=limit("max_params_active", max_params_active),
    )
    near = result.near_optimal(within)
    if spec_out is not None:
        try:
            save_spec(result.best.spec, spec_out)
        except OSError as error:
            raise InputError(f"spec_out is {spec_out}, which cannot be written: {error.strerror}.") from None
    if json:
        print_json(result.to_dict(within))
        return
    _print_plan(result, near, within, spec_out, ", ".join(law))


def _law_file(name: str) -> Path:
    """Where the fits of a law argument are: the file itself, or a study's fits.json.

    Raises:
        InputError: if it is a directory without one.
    """
    path = Path(name)
    if not path.is_dir():
        return path
    if not (path / "fits.json").exists():
        if not (path / "study.yaml").exists():
            raise InputError(f"law is {name}, a directory without fits.json; give a study's directory or a .json file.")
        finish = f"isoflop study run {path / 'study.yaml'} --out {name}"
        raise InputError(f"law is {name}, a study without fits.json; finish it with `{finish}`, which fits its laws.")
    return path / "fits.json"


def _read_laws(name: str, file: Path) -> "dict[str, Law | Fit]":
    """The published law of this name, or the fits in this JSON file, by label.

    Raises:
        InputError: if there is no such law or file, or the file holds no fit.
    """
    from isoflop.laws import PUBLISHED, published

    if name in PUBLISHED:
        return {name: published(name)}
    if file.suffix != ".json":
        raise InputError(f"law is {name!r}; give a .json file with fits, a study, or one of {', '.join(PUBLISHED)}.")
    try:
        document = json_module.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"law file {file} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise InputError(f"law file {file} is not JSON.") from None
    try:
        found: dict[str, Law | Fit] = dict(_fits(document, file.stem))
    except (AttributeError, TypeError, ValueError) as error:
        reason = error if isinstance(error, InputError) else "its fields hold values of the wrong kind."
        raise InputError(f"law file {file}: {reason}") from None
    if not found:
        raise InputError(f"law file {file} holds no fit; it must be what `isoflop fit --out` or a study wrote.")
    return found


def _fits(document: Any, label: str) -> "Iterator[tuple[str, Fit]]":
    """Every fit in a JSON document, under each architecture that it names, else its name or the field that holds it."""
    from isoflop.laws import Fit

    if isinstance(document, list):
        for value in document:
            yield from _fits(value, label)
    elif isinstance(document, dict) and {"law", "parameters", "runs"} <= document.keys():
        fit = Fit.from_dict(document)
        for name in document.get("architectures") or [document.get("name", label)]:
            yield name, fit
    elif isinstance(document, dict):
        for name, value in document.items():
            yield from _fits(value, name)


def _study_templates(directory: Path, known: Container[str]) -> "tuple[list[Template], float]":
    """The causal architectures of a study that have a law, and the spacing of its sizes.

    Raises:
        InputError: if the study's files do not say them.
    """
    from isoflop.laws import read_runs
    from isoflop.study import load_study

    study = load_study(directory / "study.yaml")
    vocab_size = int(read_runs(directory / "runs.csv").numeric("vocab_size")[0])
    causal = [a for a in study.expanded if a.experts is None or a.experts.router.is_causal]
    return [study.model_template(a, vocab_size) for a in causal if a.name in known], study.size_spacing


def _print_plan(result: "Plan", near: "Sequence[PlanRow]", within: float, spec_out: Path | None, names: str) -> None:
    from isoflop.laws import exponent

    best = result.best
    leaders = {row.architecture: row for row in reversed(result.table)}.values()
    shown = [row for row in result.table if row in near or row in leaders][:_SHOWN]
    intervals = any(row.loss_interval for row in shown)
    rows = []
    for row in shown:
        shape = f"{row.n_layers:g}×{row.d_model:g}" if row.model else f"{row.n_layers:.1f}×{row.d_model:.0f}"
        cells = [
            ("* " if row in near else "  ") + row.architecture,
            str(row.granularity),
            f"{row.expansion_rate:g}",
            shape,
            si(row.params_active),
            si(row.params_total),
            si(row.tokens),
            f"{row.loss:.4f}",
        ]
        if intervals:
            cells.append("–" if row.loss_interval is None else "{:.3f}–{:.3f}".format(*row.loss_interval))
        rows.append(cells)
    for sentence in result.warnings:
        typer.echo(f"warning: {sentence}")
    columns = ["architecture", "G", "E", "shape", "active", "total", "tokens", "loss", *(["90%"] if intervals else [])]
    print_table(f"{names} · {exponent(result.flops)} FLOPs · convention {result.convention}", columns, rows)
    lines = [
        f"* within {within:g} nats of the best: {len(near)} of {len(result.table)} rows; shape is layers × d_model, "
        "parameters are non-embedding."
    ]
    for name, (low, high) in result.sizes_within(within).items():
        if high > low:
            lines.append(f"  {name}: from {si(low)} to {si(high)} active parameters.")
    for name, cost in result.constraint_costs.items():
        lines.append(f"{name} costs {cost:.4f} nats.")
    lines += [f"note: {sentence}" for sentence in result.notes]
    spec = spec_out or "spec.yaml"
    hint = "" if spec_out else "   (with --spec-out spec.yaml)"
    lines.append(f"train: isoflop train --spec {spec} --data DATA --out RUN --tokens {best.tokens:.0f}{hint}")
    typer.echo("\n".join(lines))
