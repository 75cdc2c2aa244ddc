"""`isoflop valleys`: the best expert–attention ratio of each group of runs, and the law through them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from isoflop.cli._common import JsonFlag, print_json, print_table
from isoflop.cli._fit_tables import print_parameters
from isoflop.cli._tables import BestOfOption, ColumnOption, LastOfOption, SetOption, WhereOption, read_table
from isoflop.cli._usage import options_as_typed
from isoflop.errors import InputError

if TYPE_CHECKING:
    from isoflop.laws import BestRatio, Fit, Valley

_OPTIONS: Final = {name: f"--{name}" for name in ("level", "out", "plots", "by", "draws", "seed")}

_STATUS: Final = {"not_convex": "a hill", "too_few_ratios": "under 3 ratios"}

_FEWEST: Final = 100
"""Draws that intervals take at least."""

_MIXED: Final = 1.5
"""Times that the FLOPs of a group may differ without a word."""


def valleys(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run tables (.csv, .tsv, .jsonl, .parquet) or directories, as `isoflop fit` reads them."),
    ],
    by: Annotated[
        str, typer.Option(metavar="COLUMNS", help="Columns whose values make a group of runs that differ in r.")
    ] = "sparsity,budget",
    column: ColumnOption = None,
    where: WhereOption = None,
    assign: SetOption = None,
    last_of: LastOfOption = None,
    best_of: BestOfOption = None,
    convention: Annotated[
        str | None,
        typer.Option(help="How r was counted (exact, expert-attention, …); default: as flops_convention of the runs."),
    ] = None,
    level: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.9,
    draws: Annotated[int, typer.Option(help="Draws behind intervals, from 100 to 100,000; 0: no intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIRECTORY", help="Write figures there (PNG and SVG): loss against r, r*.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the law and the depth to this .json file, for `isoflop plan --allocation`."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Find the best expert–attention ratio r of each group of runs, and what other ratios cost.

    r is the FLOPs of experts (or feed-forward) over those of attention. A parabola in ln r goes through the losses of
    each group, whose runs should be alike in FLOPs per token and tokens; r*(C, S) goes through the minima where every
    group has a clear valley, else it shares one depth with all rows. Status: inside: r* lies inside the ratios that
    were run, and the lowest mean loss at neither end of them; edge: one of the two does not hold; a hill: the parabola
    opens downward; may be flat: the interval of v holds 0.
    """
    from isoflop import laws
    from isoflop.laws._units import doubts
    from isoflop.laws.reading import derive_sparsity
    from isoflop.spec import CONVENTIONS

    names = [name.strip() for name in by.split(",") if name.strip()]
    if not names:
        raise InputError("--by is empty; name the columns whose values make a group, as sparsity,budget.")
    if convention is not None and convention not in CONVENTIONS:
        raise InputError(f"--convention is {convention!r}; allowed: {', '.join(CONVENTIONS)}.")
    if draws and not _FEWEST <= draws <= laws.MOST_DRAWS:
        raise InputError(
            f"--draws is {draws}; it must be 0, for no intervals, or from {_FEWEST} to {laws.MOST_DRAWS:,}."
        )
    if out is not None and out.suffix != ".json":
        raise InputError(f"--out is {out}; it must end in .json.")
    tables = [read_table(path, column, where, assign, last_of, best_of)[0] for path in runs]
    table = derive_sparsity(laws.joined(tables), ("sparsity",))
    law, refusal = None, None
    with options_as_typed(_OPTIONS):
        found = laws.ratio_valleys(table, names, level=level, draws=draws, seed=seed)
        table = table.with_columns({}, doubts(table.usable(), target="loss"))
        try:
            law = laws.best_ratio_of(
                found, draws=draws, seed=seed, convention=convention, source=table.source, level=level
            )
        except InputError as error:
            refusal = str(error)
        depth, depth_interval, _, spread = laws.pooled_depth(found, level=level)
        visible = laws.shows_valley(found, level=level)
        if law is not None:
            depth, depth_interval, spread, visible = law.depth, law.depth_interval, law.spread, law.is_visible
        pooled = Depth(depth, depth_interval, spread, visible)
        figures: list[Path] = []
        if plots is not None:
            from isoflop.report import write_valley_figures

            figures = write_valley_figures(table, found, law, plots, convention=convention)
        said = _sentences(found, law, pooled, level, draws, convention, refusal)
        if not json:
            _print(found, law, names, level, draws, table.source)
            typer.echo("\n".join([*said, *(f"note: {sentence}" for sentence in table.notes)]))
            typer.echo("".join(f"figure: {path}\n" for path in figures if path.suffix == ".png"), nl=False)
        if out is not None:
            if law is None:
                raise InputError(f"out is {out}, but there is no law to write: {refusal}")
            laws.save_best_ratio(law, out)
        if json:
            written: dict[str, Any] = {"figures": [str(path) for path in figures]} if figures else {}
            written |= {} if out is None else {"out": str(out)}
            print_json(_document(found, law, pooled, level, convention, said, table.notes) | written)
        elif out is not None:
            typer.echo(f"wrote: {out}   (for isoflop plan --allocation {out})")


_SUSPICIOUS: Final = 0.05
"""Probability of a better fit by chance below which one depth and one law are doubted."""


class Depth(NamedTuple):
    """The depth of all groups together."""

    v: float | None
    """Nats per squared ln r."""
    interval: tuple[float, float] | None
    spread: float
    """See BestRatio.spread."""
    visible: bool
    """Whether it stands above 0."""


def _print(
    found: "Sequence[Valley]",
    law: "BestRatio | None",
    names: Sequence[str],
    level: float,
    draws: int,
    source: str,
) -> None:
    rows = []
    for valley in found:
        cells = [", ".join(_cell(name, valley.group[name]) for name in names), str(valley.n_rows)]
        status = _STATUS.get(valley.status, valley.status)
        if valley.depth is not None and not valley.is_visible:
            status += "\nmay be flat"
        cells += [
            "–" if valley.depth is None else f"{valley.ratio:.3g}" + _below(valley.ratio_interval),
            "–" if valley.curvature is None else f"{valley.curvature:.4f}" + _below(valley.depth_interval, ".4f"),
            "–" if not valley.costs else f"{valley.costs[2.0]:.4f}" + _below(valley.cost_intervals.get(2.0), ".4f"),
            "–" if valley.band is None else "{:.3g}–{:.3g}".format(*valley.band),
            status,
        ]
        rows.append(cells)
    heads = [", ".join(names), "runs", "r*", "depth v", "r*/2, 2r* cost", "within noise", "status"]
    told = f"second lines: {level:.0%} intervals" if draws else "no intervals: --draws is 0"
    print_table(f"{source} · {told}", heads, rows)
    if law is not None:
        fitted = _fit(law)
        print_parameters(fitted, law.interval(level), f"{level:.0%} interval", f"law: {fitted.form.equation}")


def _fit(law: "BestRatio") -> "Fit":
    from isoflop.laws import Fit

    assert isinstance(law.law, Fit)
    return law.law


def _sentences(
    found: "Sequence[Valley]",
    law: "BestRatio | None",
    pooled: Depth,
    level: float,
    draws: int,
    convention: str | None,
    refusal: str | None,
) -> list[str]:
    """What the valleys say, and what they do not."""
    import numpy as np

    said = []
    mixed = [valley for valley in found if valley.flops_range[1] > _MIXED * valley.flops_range[0]]
    if mixed:
        most = max(valley.flops_range[1] / valley.flops_range[0] for valley in mixed)
        said.append(
            f"warning: within {len(mixed)} of {len(found)} groups the FLOPs of the runs differ, by up to {most:.3g} "
            "times, so that their parabolas mix what the budget does with what r does: group by budget as well."
        )
    if pooled.v is not None:
        between = "interval not drawn: --draws is 0" if not draws else "interval unknown: no run beyond three a group"
        if pooled.interval is not None:
            between = _range(pooled.interval, ".4f")
        twice = float(np.log(2)) ** 2
        known = found[0].spare > 0
        if pooled.visible:
            ends = "" if pooled.interval is None else f" ({_range(_times(pooled.interval, twice), '.4f')})"
            said.append(
                f"depth of all groups together: v = {pooled.v:.4f} nats per squared ln r ({between}), so that half or "
                f"twice the best ratio costs {pooled.v * twice:.4f} nats{ends}."
            )
        elif not known:
            said.append(f"depth of all groups together: v = {pooled.v:.4f} nats per squared ln r ({between}).")
        else:
            said.append(
                f"no visible valley: the depth of all groups together is {pooled.v:.4f} nats per squared ln r "
                f"({between}), which may be 0; over the ratios that were run the loss does not visibly depend on r, "
                "and no r* here is to be taken for an optimum."
            )
        if pooled.spread > 1.5:
            said.append(
                f"the groups' depths lie {pooled.spread:.1f} times farther apart than their noise explains; the "
                "interval is wider by that."
            )
    flat = [valley for valley in found if valley.depth is not None and not valley.is_visible]
    if flat and pooled.visible:
        said.append(f"of {len(found)} groups, {len(flat)} may be flat by themselves: any ratio may be their best.")
    edge = [valley for valley in found if valley.status == "edge"]
    if edge:
        said.append(
            f"of {len(edge)} of {len(found)} groups the minimum, or the lowest mean loss, lies at or beyond an end of "
            "the ratios that were run (status edge): widen them."
        )
    runs = next((valley.convention for valley in found if valley.convention), None)
    if convention and runs and convention != runs:
        said.append(
            f"r is counted as {convention}, since --convention says so, although flops_convention of the runs is "
            f"{runs}; C is counted as {runs}."
        )
    elif runs:
        said.append(f"r and C are counted as {runs}.")
    elif convention:
        said.append(f"r is counted as {convention}, since --convention says so; the runs have no flops_convention.")
    else:
        said.append("how r was counted is not known: the runs have no flops_convention; say it with --convention.")
    if law is None:
        said.append(f"no law r*(C, S): {refusal}")
    else:
        fitted = _fit(law)
        if fitted.status != "converged":
            said.append(f"the law has status {fitted.status}: {fitted.message.rstrip('.')}.")
        if law.flat > 0 and draws and not fitted.draws:
            said.append("how sure the law is, is not known: in no draw do all groups have a valley.")
        elif law.flat > 0 and not law.interval(level):
            said.append(
                f"in {law.flat:.0%} of the draws there is no valley, and any ratio may be the best: the law has no "
                "intervals."
            )
        if law.method == "minima":
            said.append(f"the law goes through the minima of all {len(found)} groups.")
        else:
            clear = sum(valley.is_clear for valley in found)
            said.append(
                f"the law and one depth are fitted to all rows at once, since {len(found) - clear} of {len(found)} "
                "groups have no clear valley of their own; "
                + (
                    "whether parabolas of their own would fit better cannot be tested: they leave no row to spare."
                    if law.misfit is None
                    else f"parabolas of their own fit better than chance explains (p = {law.misfit:.2g}): depths "
                    "differ, or best ratios move in ways that the law does not know."
                    if law.misfit < _SUSPICIOUS
                    else f"parabolas of their own do not fit better than chance explains (p = {law.misfit:.2g})."
                )
            )
    return said


def _document(
    found: "Sequence[Valley]",
    law: "BestRatio | None",
    pooled: Depth,
    level: float,
    convention: str | None,
    said: Sequence[str],
    notes: Sequence[str],
) -> dict[str, Any]:
    fitted = None if law is None else _fit(law)
    counted = next((valley.convention for valley in found if valley.convention), None)
    return {
        "valleys": [{**valley.to_dict(), "ratio_convention": convention or valley.convention} for valley in found],
        "level": level,
        "ratio_convention": convention or counted,
        "flops_convention": counted,
        "depth": pooled.v,
        "depth_interval": pooled.interval,
        "visible": pooled.visible,
        "spread": pooled.spread,
        "law": None
        if fitted is None or law is None
        else {
            "equation": fitted.form.equation,
            "parameters": fitted.parameters,
            "intervals": law.interval(level),
            "pinned": fitted.pinned,
            "status": fitted.status,
            "message": fitted.message,
            "method": law.method,
            "misfit": law.misfit,
            "flat": law.flat,
            "convention": law.convention,
            "range": {name: list(ends) for name, ends in law.range.items()},
        },
        "sentences": list(said),
        "notes": list(notes),
    }


def _cell(name: str, value: Any) -> str:
    from isoflop.laws import exponent

    if name in ("flops", "budget") and isinstance(value, (int, float)):
        return exponent(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _times(interval: tuple[float, float], factor: float) -> tuple[float, float]:
    return interval[0] * factor, interval[1] * factor


def _range(interval: tuple[float, float], form: str) -> str:
    return f"{interval[0]:{form}} to {interval[1]:{form}}"


def _below(interval: tuple[float, float] | None, form: str = ".3g") -> str:
    """An interval as the second line of a cell."""
    return "" if interval is None else f"\n{interval[0]:{form}}–{interval[1]:{form}}"
