"""Figures of a plan: what each choice costs at its budget, isoloss contours, and what other budgets would want."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.errors import InputError
from isoflop.planner import Plan
from isoflop.report._plan_families import LossLaw, PlanFamily, families_of
from isoflop.report.embed import save
from isoflop.report.style import (
    DASHES,
    LIGHT,
    WIDE,
    Look,
    flops,
    grid,
    legend,
    log_axis,
    look_of,
    outer,
    reach,
    require_matplotlib,
    title,
)
from isoflop.report.view import Architecture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = 5  # architectures with a line of their own
_BUDGETS = 25
_REACH = (100.0, 10.0)  # budgets from the plan's divided by the first to it times the second
_DRAWS = 300
_TIE = 1e-4  # nats; closer ones are equal
_BAND: dict[str, Any] = {"alpha": 0.18, "linewidth": 0, "zorder": 1}


def write_plan_figures(plan: Plan, laws: str | LossLaw | Mapping[str, LossLaw], directory: Path) -> list[Path]:
    """Write plan-choices, plan-isoloss and plan-budgets, each as .png and .svg, into a directory that may be new.

    Args:
        plan: what `planner.plan` returned.
        laws: what it was given as `law`.
        directory: where to.

    Raises:
        InputError: if matplotlib is missing, the laws are not the plan's, or the directory cannot be written.
    """
    require_matplotlib()
    families = families_of(plan, laws)
    figures = {
        "plan-choices": loss_against_choices(plan, families),
        "plan-isoloss": isoloss(plan, families),
        "plan-budgets": optimum_against_budget(plan, families),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return [path for name, figure in figures.items() for path in save(figure, directory / name)]
    except OSError as error:
        raise InputError(f"plots is {directory}, which cannot be written: {error.strerror}.") from None


def loss_against_choices(plan: Plan, families: Sequence[PlanFamily], *, width: float = WIDE) -> "Figure":
    """Predicted loss against size, tokens, granularity and expansion rate at the plan's budget.

    Against size and tokens, a line is an architecture: the best ones and dense; the band is the best one's 90%
    prediction interval. Against granularity and expansion rate, every value has its best size and the best value of
    the other; bars and bands are 90% intervals. A panel is left out where the plan knows one value alone. The star is
    the best model of all.
    """
    shown = _shown(families)
    looks = _apart(_looks(shown))
    rows = [family.row for family in families]
    wholes = [
        (name, label)
        for name, label in (("granularity", "granularity G"), ("expansion_rate", "expansion rate E"))
        if len({getattr(row, name) for row in rows if name == "expansion_rate" or row.n_experts > 1}) > 1
    ]
    figure, panels = grid(2 + len(wholes), width=width, panel_height=3.1, most=2)
    curves = {curve.architecture: curve for curve in plan.curves}
    top = max(
        [1.04 * plan.best.loss, *(family.row.loss + 0.2 * (family.row.loss - plan.best.loss) for family in shown)]
    )
    bottom = plan.best.loss
    lines: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for family in shown:
        curve = curves[family.row.architecture]
        seen = np.isfinite(curve.loss) & (curve.loss <= top)
        size, loss = curve.params_active[seen], curve.loss[seen]
        lines[family.row.architecture] = (size, family.columns(size)["tokens"], loss)
    best = lines[plan.best.architecture]
    band = _band(shown[0], best)
    highest = top
    if band is not None:
        bottom = min(bottom, float(band[0].min()))
        highest = max(top, float(band[1].min()) + 0.1 * (top - bottom))
    for axes, which, label in zip(panels, (0, 1), ("active parameters", "tokens"), strict=False):
        values = np.concatenate([line[which] for line in lines.values()])
        log_axis(axes, "x", list(values), most=5, margin=0.02)
        for name in reversed(lines):
            axes.plot(lines[name][which], lines[name][2], zorder=2, **looks[name].line)
            lowest = int(np.argmin(lines[name][2]))
            if name != plan.best.architecture:
                axes.plot(lines[name][which][lowest], lines[name][2][lowest], zorder=3, **_MARK, **looks[name].marks)
        if band is not None:
            axes.fill_between(best[which], *band, color=looks[plan.best.architecture].color, **_BAND)
        _star(axes, plan.best.params_active if which == 0 else plan.best.tokens, plan.best.loss)
        axes.set_ylim(bottom - 0.06 * (highest - bottom), highest)
        axes.set_xlabel(label)
        title(axes, "size" if which == 0 else "data")
    for axes, (name, label) in zip(panels[2:], wholes, strict=True):
        _whole(axes, plan, families, name)
        axes.set_xlabel(label)
        title(axes, label.rsplit(" ", 1)[0])
    for axes in panels:
        axes.set_ylabel("loss (nats/token)" if outer(axes) else "")
    key = [
        (name, looks[name].line | ({} if name == plan.best.architecture else looks[name].marks | {"markersize": 5}))
        for name in lines
    ]
    legend(figure, [*key, ("best", _STAR)])
    return figure


def isoloss(plan: Plan, families: Sequence[PlanFamily], *, width: float = WIDE) -> "Figure":
    """Contours of equal predicted loss over size and tokens for the best architecture, and what the budget affords.

    The line of the budget is flat where the text ends; sizes that a limit forbids are grey.
    """
    family, best = families[0], plan.best
    look = _looks([family])[best.architecture]
    figure, (axes,) = grid(1, width=width, panel_height=4.6)
    size = best.params_active * np.geomspace(1 / 20, 20, 121)
    tokens = best.tokens * np.geomspace(1 / 20, 20, 121)
    log_axis(axes, "x", [size[0], size[-1]], margin=0.0)
    log_axis(axes, "y", [tokens[0], tokens[-1]], margin=0.0)
    size_AB, tokens_AB = np.meshgrid(size, tokens)
    loss = family.loss(family.columns(size_AB, tokens=tokens_AB))
    bought = family.columns(size)
    affordable, allowed = bought["tokens"], family.allowed(bought)
    levels = _levels(loss, best.loss)
    lines = axes.contour(size_AB, tokens_AB, loss, levels=levels, colors=LIGHT["muted"], linewidths=1.0)
    lines.set_linewidth([1.8 if level == best.loss else 0.9 for level in levels])
    budget_line = np.stack([size, affordable], axis=1)
    for level, place in _label_places(axes, lines.allsegs, levels, budget_line).items():
        written = f"{level:.3f}" if level == best.loss else f"{level:.4g}"
        for text in axes.clabel(lines, [level], fmt=written, fontsize=8, inline_spacing=4, manual=[place]):
            text.set_color(LIGHT["ink"])
    axes.plot(size, affordable, zorder=3, **(look.line | {"linewidth": 2.0, "linestyle": "solid"}))
    axes.fill_between(size, affordable, tokens[-1] * 2, color=look.color, alpha=0.07, linewidth=0, zorder=0)
    beyond: dict[str, Any] = {"color": LIGHT["muted"], "alpha": 0.25}
    if not allowed.all():
        axes.fill_between(size, tokens[0] / 2, tokens[-1] * 2, where=~allowed, linewidth=0, zorder=1, **beyond)
    _star(axes, best.params_active, best.tokens)
    axes.set_xlim(size[0], size[-1])
    axes.set_ylim(tokens[0], tokens[-1])
    axes.set_xlabel("active parameters")
    axes.set_ylabel("tokens")
    contour = {"color": LIGHT["muted"], "linewidth": 1.0}
    budget = look.line | {"linewidth": 2.0, "linestyle": "solid"}
    legend(
        figure,
        [
            (f"{flops(plan.flops)} FLOPs of {best.architecture} (shaded: beyond)", budget),
            ("equal loss (nats/token)", contour),
            *([] if allowed.all() else [("sizes beyond the limits", beyond | {"linewidth": 7.0})]),
            ("best", _STAR),
        ],
    )
    return figure


def optimum_against_budget(plan: Plan, families: Sequence[PlanFamily], *, width: float = WIDE) -> "Figure":
    """What budgets around the plan's would best be spent on, within the plan's limits: loss, size, tokens, G and E.

    Each budget has the best of the plan's architectures, of any size and aspect (a model that can be built may do a
    little better next to a cap, see planner.plan); one that buys nothing has none. Bands are 90% intervals over
    the draws of the fits: of the loss as a prediction of one run, of size and tokens where the plan's best architecture
    is the best,
    of G and E over what each draw finds best. The upright line is the plan's budget.
    """
    budgets = plan.flops * np.geomspace(1 / _REACH[0], _REACH[1], _BUDGETS)
    sizes = np.stack([family.optimum(budgets) for family in families])
    columns = [family.columns(size, flops=budgets) for family, size in zip(families, sizes, strict=True)]
    loss = np.stack(
        [
            np.where(family.allowed(each), family.loss(each), np.inf)
            for family, each in zip(families, columns, strict=True)
        ]
    )
    bought = np.isfinite(loss).any(axis=0)
    budgets, columns, loss = _at(bought, budgets, columns, loss)
    best = np.argmin(loss, axis=0)
    at = np.arange(len(budgets))

    def of_best(name: str) -> np.ndarray:
        return np.array([columns[a][name][i] for i, a in enumerate(best)])

    panels_of = [("loss", "loss (nats/token)"), ("params_active", "active parameters"), ("tokens", "tokens")]
    panels_of += [
        (name, label)
        for name, label in (("granularity", "granularity G"), ("expansion_rate", "expansion rate E"))
        if len({float(getattr(family.row, name)) for family in families}) > 1
    ]
    figure, panels = grid(len(panels_of), width=width, panel_height=2.7, most=3)
    color = LIGHT["accent"]
    bands = _bands(families, columns, budgets, loss)
    for axes, (name, label) in zip(panels, panels_of, strict=True):
        values = loss[best, at] if name == "loss" else of_best(name)
        band = bands.get(name)
        log_axis(axes, "x", list(budgets), kind="flops", most=4, margin=0.02)
        axes.axvline(plan.flops, color=LIGHT["muted"], linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
        if name in ("granularity", "expansion_rate"):
            choices = sorted({float(getattr(family.row, name)) for family in families})
            log_axis(axes, "y", [choices[0] / 1.25, choices[-1] * 1.25], margin=0.02)
            kept = choices if len(choices) < 8 else choices[::2]
            axes.set_yticks(kept, [f"{value:g}" for value in kept])
            axes.plot(budgets, values, color=color, linewidth=1.2, drawstyle="steps-mid", zorder=2)
            axes.plot(budgets, values, color=color, linestyle="none", marker="o", markersize=3.5, zorder=3)
        else:
            axes.plot(budgets, values, color=color, linewidth=1.6, zorder=2)
            if name != "loss":
                both = [values, *([] if band is None else band)]
                log_axis(axes, "y", list(np.concatenate(both)), most=5, margin=0.04)
        if band is not None:
            stepped = name in ("granularity", "expansion_rate")
            # sizes and tokens have the band of the plan's best architecture, so only where the line is that one's
            where = best == 0 if name in ("params_active", "tokens") else np.ones(len(budgets), dtype=bool)
            axes.fill_between(
                budgets, band[0], band[1], where=where, color=color, step="mid" if stepped else None, **_BAND
            )
        axes.set_xlabel("training FLOPs")
        title(axes, label)
    return figure


_MARK: dict[str, Any] = {"linestyle": "none", "markersize": 5}
_STAR: dict[str, Any] = {
    "linestyle": "none",
    "marker": "*",
    "markersize": 11,
    "markerfacecolor": LIGHT["ink"],
    "markeredgecolor": LIGHT["surface"],
    "markeredgewidth": 0.8,
}


def _levels(loss: np.ndarray, best: float) -> list[float]:
    """Round losses over the panel, and the best loss itself, in ascending order."""
    from matplotlib.ticker import MaxNLocator

    low, high = (float(value) for value in np.quantile(loss, [0.02, 0.98]))
    ticks = MaxNLocator(10, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    step = float(ticks[1] - ticks[0])
    kept = [float(tick) for tick in ticks if low <= tick <= high and abs(tick - best) > 0.3 * step]
    return sorted([*kept, best])


def _label_places(
    axes: "Axes", segments: Sequence[Sequence[np.ndarray]], levels: Sequence[float], budget_line: np.ndarray
) -> dict[float, tuple[float, float]]:
    """Where on each contour its number stands: as far as possible from the budget line, the border and each other."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    to_share = axes.transData + axes.transAxes.inverted()
    inches = np.array([figure.get_figwidth() * 0.9, figure.get_figheight() * 0.85])
    line = to_share.transform(budget_line) * inches
    taken: list[np.ndarray] = []
    found = {}
    for level, parts in zip(levels, segments, strict=True):
        points = np.concatenate([part for part in parts if len(part)] or [np.zeros((0, 2))])
        if not len(points):
            continue
        place = to_share.transform(points) * inches
        clear = np.min(np.linalg.norm(place[:, None] - line[None], axis=-1), axis=1)
        border = 1.5 * np.minimum(place, inches - place).min(axis=1)
        others = [np.linalg.norm(place - other, axis=1) for other in taken]
        room = np.min([clear, border, *others], axis=0)
        best = int(np.argmax(np.minimum(room, 1.0)))
        if room[best] > 0.25:
            taken.append(place[best])
            found[level] = (float(points[best, 0]), float(points[best, 1]))
    return found


def _star(axes: "Axes", x: float, y: float) -> None:
    axes.plot([x], [y], zorder=5, **_STAR)


def _shown(families: Sequence[PlanFamily]) -> list[PlanFamily]:
    """The best architectures, and dense, best first."""
    kept = list(families[:_LINES])
    dense = next((family for family in families if family.row.n_experts == 1), None)
    if dense is not None and dense not in kept:
        kept[-1] = dense
    return kept


def _looks(families: Sequence[PlanFamily]) -> dict[str, Look]:
    return look_of(
        Architecture(
            name=family.row.architecture,
            granularity=family.row.granularity,
            expansion_rate=family.row.expansion_rate,
            router=family.row.router,
        )
        for family in families
    )


def _apart(looks: Mapping[str, Look]) -> dict[str, Look]:
    """The looks with dashes by rank, since neighbouring granularities have similar colours; dense stays solid."""
    return {
        name: look if look.color == LIGHT["ink"] else replace(look, dash=DASHES[rank % len(DASHES)])
        for rank, (name, look) in enumerate(looks.items())
    }


def _band(family: PlanFamily, line: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """The interval along a line of the plan, whose integer models lie beside the trend through them."""
    size, _, loss = line
    few = np.unique(np.linspace(0, len(size) - 1, _BUDGETS).astype(int))  # between them its ends are straight lines
    columns = family.columns(size[few])
    interval = family.interval(columns)
    if interval is None:
        return None
    low, high = (loss * np.interp(np.log(size), np.log(size[few]), end / family.loss(columns)) for end in interval)
    return low, high


def _whole(axes: "Axes", plan: Plan, families: Sequence[PlanFamily], name: str) -> None:
    """Loss against granularity or expansion rate, each with the best of everything else."""
    rows: dict[float, Any] = {}
    dense = None
    for family in families:
        row = family.row
        if row.n_experts == 1 and name == "granularity":
            dense = dense or row
        else:
            rows.setdefault(float(getattr(row, name)), row)
    values = sorted(rows)
    log_axis(axes, "x", [values[0] / 1.25, values[-1] * 1.25], margin=0.02)
    ticks = values if len(values) < 8 else values[::2]
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    chosen = [rows[value] for value in values]
    axes.plot(values, [row.loss for row in chosen], color=LIGHT["muted"], linewidth=1.1, zorder=2)
    for value, row in zip(values, chosen, strict=True):
        axes.errorbar(
            [value],
            [row.loss],
            yerr=reach(row.loss, row.loss_interval),
            color=LIGHT["accent"],
            elinewidth=1.4,
            marker="o",
            markersize=5.5,
            linestyle="none",
            zorder=3,
        )
    if dense is not None:
        if dense.loss_interval is not None:
            axes.axhspan(*dense.loss_interval, color=LIGHT["ink"], alpha=0.1, linewidth=0, zorder=1)
        axes.axhline(dense.loss, color=LIGHT["ink"], linewidth=1.3, zorder=1)
        axes.annotate(
            "dense",
            (1.0, dense.loss),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8.5,
            color=LIGHT["ink"],
        )
    best = plan.best
    if best.n_experts > 1 or name != "granularity":
        _star(axes, float(getattr(best, name)), best.loss)
    axes.margins(y=0.12)


def _at(
    kept: np.ndarray, budgets: np.ndarray, columns: Sequence[Mapping[str, np.ndarray]], loss: np.ndarray
) -> tuple[np.ndarray, list[dict[str, np.ndarray]], np.ndarray]:
    """The budgets that are kept, and what belongs to them."""
    some = [{name: values[kept] for name, values in each.items()} for each in columns]
    return budgets[kept], some, loss[:, kept]


def _bands(
    families: Sequence[PlanFamily], columns: Sequence[Mapping[str, np.ndarray]], budgets: np.ndarray, loss: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """90% bands by panel; none where a law comes without its uncertainty. An infinite loss is not allowed."""
    if any(family.fit is None for family in families):
        return {}
    best = np.argmin(loss, axis=0)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    both = [family.interval(dict(each)) for family, each in zip(families, columns, strict=True)]
    found["loss"] = tuple(  # type: ignore[assignment]
        np.array([both[a][side][i] for i, a in enumerate(best)]) for side in (0, 1)
    )
    first = families[0].thinned(_DRAWS)
    size = first.optimum(budgets, drawn=True)
    found["params_active"] = _quantiles(size)
    found["tokens"] = _quantiles(first.columns(size, flops=budgets)["tokens"])
    thin = [family.thinned(_DRAWS) for family in families]
    fewest = min(family.n_draws for family in thin)
    drawn = np.stack([family.draws(dict(each))[:fewest] for family, each in zip(thin, columns, strict=True)])
    drawn = np.where(np.isfinite(loss)[:, None], drawn, np.inf)
    ahead = drawn.min(axis=0) < np.take_along_axis(drawn, best[None, None], axis=0)[0] - _TIE
    winner = np.where(ahead, np.argmin(drawn, axis=0), best)
    for name in ("granularity", "expansion_rate"):
        values = np.array([float(getattr(family.row, name)) for family in families])
        found[name] = _quantiles(values[winner], method="closest_observation")
    return found


def _quantiles(values: np.ndarray, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(values, [0.05, 0.95], axis=0, **how)
    return low, high
