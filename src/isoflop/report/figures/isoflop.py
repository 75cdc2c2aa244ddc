"""Loss against size at equal FLOPs, and what granularity does to it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.laws import Minimum
from isoflop.report import view
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
    plain,
    reach,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from isoflop.laws import RunTable


def isoflop_curves(runs: "RunTable", minima: Sequence[Minimum] = (), *, width: float = WIDE) -> "Figure":
    """Loss against active parameters, one panel a budget, a colour an architecture.

    Points are runs (seeds put together, their range as a bar), curves the parabolas in ln(parameters) that
    `minima` hold; the large mark is a parabola's minimum, its bars the intervals of its place and of its loss.
    """
    points = view.measured(runs)
    architectures = view.architectures(runs)
    looks = look_of(architectures)
    budgets = sorted({point.budget for point in points})
    figure, panels = grid(len(budgets), width=width, panel_height=3.1)
    for budget, axes in zip(budgets, panels, strict=True):
        here = [point for point in points if point.budget == budget]
        log_axis(axes, "x", [point.params_active for point in here], most=4)
        low, high = axes.get_xlim()
        for architecture in reversed(architectures):
            look = looks[architecture.name]
            own = [point for point in here if point.architecture == architecture.name]
            _bars(axes, own, [point.params_active for point in own], look)
            for minimum in minima:
                if (minimum.architecture, minimum.budget) == (architecture.name, budget):
                    _parabola(axes, minimum, look, (low, high))
        losses = [point.loss for point in here]
        top = _top(losses)
        losses += [minimum.loss for minimum in minima if minimum.inside and minimum.budget == budget]
        room = 0.08 * (top - min(losses) or 0.1)
        axes.set_ylim(min(losses) - room, top + room)
        for point in here:
            if point.loss > top:
                _arrow(axes, point.params_active, top + 0.5 * room, looks[point.architecture])
        title(axes, f"{flops(budget)} FLOPs")
        axes.set_xlabel("active parameters")
        axes.set_ylabel("loss (nats/token)" if outer(axes) else "")
    legend(figure, [(a.name, looks[a.name].line | looks[a.name].marks | {"markersize": 5}) for a in architectures])
    return figure


def off_scale(runs: "RunTable") -> int:
    """How many points `isoflop_curves` shows as arrows at the upper edge of their panel."""
    points = view.measured(runs)
    budgets = {point.budget for point in points}
    losses = [[point.loss for point in points if point.budget == budget] for budget in budgets]
    return sum(loss > _top(own) for own in losses for loss in own)


def _top(losses: Sequence[float]) -> float:
    """The highest loss that is drawn to scale: a few far above the rest would flatten all the others."""
    low, most = min(losses), float(np.quantile(losses, 0.75, method="lower"))
    return min(max(losses), low + 4 * (most - low)) if most > low else max(losses)


def loss_against_capacity(runs: "RunTable", minima: Sequence[Minimum] = (), *, width: float = WIDE) -> "Figure":
    """Loss against the capacity of depth-routed blocks, one panel a budget; marks as in `loss_against_granularity`.

    One line per family of architectures that differ in capacity alone; architectures without depth routing are
    horizontal lines.
    """
    points, architectures = view.measured(runs), view.architectures(runs)
    looks = look_of(architectures)
    routed = [architecture for architecture in architectures if architecture.depth_routed]
    families: dict[str, list[view.Architecture]] = {}
    for architecture in routed:
        families.setdefault(architecture.depth_family, []).append(architecture)
    values = sorted({architecture.depth_capacity for architecture in routed})
    budgets = sorted({point.budget for point in points if point.architecture in {a.name for a in routed}})
    figure, panels = grid(len(budgets), width=width, panel_height=3.1)
    fitted = {(minimum.architecture, minimum.budget): minimum for minimum in minima if minimum.inside}
    for budget, axes in zip(budgets, panels, strict=True):
        log_axis(axes, "x", [values[0] / 1.15, values[-1] * 1.3])
        axes.set_xticks(values, [f"{value:g}" for value in values])
        best = {a.name: view.best_measured(points, a.name, budget) for a in architectures}
        shown = [point.loss for point in best.values() if point is not None]
        shown += [minimum.loss for (_, own), minimum in fitted.items() if own == budget]
        top = _top(shown)
        for other in architectures:
            if not other.depth_routed:
                color = looks[other.name].color
                _dense_line(axes, other.name, fitted.get((other.name, budget)), best[other.name], color=color)
        for index, family in enumerate(families.values()):
            shift = 1.15 ** (index / max(1, len(families) - 1))
            chosen = [(a, fitted.get((a.name, budget)), best[a.name]) for a in reversed(family)]
            chosen = [(a, minimum, point) for a, minimum, point in chosen if minimum or point]
            axes.plot(
                [a.depth_capacity * shift for a, _, _ in chosen],
                [minimum.loss if minimum else point.loss for _, minimum, point in chosen if minimum or point],  # type: ignore[union-attr]
                color=LIGHT["muted"],
                linewidth=1.0,
                zorder=2,
            )
            for architecture, minimum, point in chosen:
                look, x = looks[architecture.name], architecture.depth_capacity * shift
                if minimum:
                    _fitted(axes, x, minimum, look)
                elif point and point.loss > top:
                    _arrow(axes, x, top, look)
                elif point:
                    _bars(axes, [point], [x], look, hollow=True)
        room = 0.08 * (top - min(shown) or 0.1)
        axes.set_ylim(min(shown) - room, top + room)
        title(axes, f"{flops(budget)} FLOPs")
        axes.set_xlabel("depth capacity")
        axes.set_ylabel("loss (nats/token)" if outer(axes) else "")
    key = [(a.name, looks[a.name].marks | {"linestyle": "none", "markersize": 6}) for a in routed]
    legend(figure, key)
    return figure


def loss_against_granularity(runs: "RunTable", minima: Sequence[Minimum] = (), *, width: float = WIDE) -> "Figure":
    """Loss against granularity, one panel a budget: at the fitted minimum over size, and at the best measured size.

    Filled marks are the fitted minimum with its interval, where it is inside the sizes that were run; hollow ones (a
    little to the right) the best size, with the range over seeds. The dense model is the horizontal line, its interval
    a band. One line per family of architectures that differ in granularity alone.
    """
    points = view.measured(runs)
    architectures = view.architectures(runs)
    looks = look_of(architectures)
    budgets = sorted({point.budget for point in points})
    families: dict[str, list[view.Architecture]] = {}
    for architecture in architectures:
        if architecture.has_experts and not architecture.depth_routed:
            families.setdefault(architecture.family, []).append(architecture)
    values = sorted({architecture.granularity for family in families.values() for architecture in family}) or [1.0]
    figure, panels = grid(len(budgets), width=width, panel_height=2.9)
    fitted = {(minimum.architecture, minimum.budget): minimum for minimum in minima if minimum.inside}
    for budget, axes in zip(budgets, panels, strict=True):
        log_axis(axes, "x", [values[0] / 1.25, values[-1] * 1.35])
        axes.set_xticks(values, [f"{value:g}" for value in values])
        best = {a.name: view.best_measured(points, a.name, budget) for a in architectures}
        for dense in (architecture for architecture in architectures if architecture.dense):
            _dense_line(axes, dense.name, fitted.get((dense.name, budget)), best[dense.name])
        for index, family in enumerate(families.values()):
            shift = 1.06**index
            chosen = [(a, fitted.get((a.name, budget)), best[a.name]) for a in family]
            chosen = [(a, minimum, point) for a, minimum, point in chosen if minimum or point]
            axes.plot(
                [a.granularity * shift for a, _, _ in chosen],
                [minimum.loss if minimum else point.loss for _, minimum, point in chosen if minimum or point],  # type: ignore[union-attr]
                color=LIGHT["muted"],
                linestyle=DASHES[index % len(DASHES)],
                linewidth=1.1,
                zorder=2,
            )
            for architecture, minimum, point in chosen:
                look = looks[architecture.name]
                if minimum:
                    _fitted(axes, architecture.granularity * shift, minimum, look)
                if point:
                    _bars(axes, [point], [architecture.granularity * shift * 1.13], look, hollow=True)
        title(axes, f"{flops(budget)} FLOPs")
        axes.set_xlabel("granularity G")
        axes.set_ylabel("loss (nats/token)" if outer(axes) else "")
        axes.margins(y=0.12)
    legend(figure, _granularity_key(list(families), bool(fitted)))
    return figure


def _arrow(axes: "Axes", x: float, y: float, look: Look) -> None:
    """Stands for a loss above the panel."""
    axes.plot([x], [y], linestyle="none", marker="$\\uparrow$", color=look.color, markersize=6)


def _bars(
    axes: "Axes", points: Sequence[view.Measured], x: Sequence[float], look: Look, *, hollow: bool = False
) -> None:
    """Measured losses as marks, with the range over seeds where there are several."""
    marks = look.marks | ({"markerfacecolor": LIGHT["surface"]} if hollow else {})
    axes.errorbar(
        x,
        [point.loss for point in points],
        yerr=[point.spread or 0.0 for point in points] if any(point.spread for point in points) else None,
        linestyle="none",
        ecolor=look.color,
        elinewidth=1.0,
        capsize=0,
        markersize=4.5,
        zorder=3,
        **marks,
    )


def _parabola(axes: "Axes", minimum: Minimum, look: Look, limits: tuple[float, float]) -> None:
    sizes = np.geomspace(*limits, 120)
    axes.plot(sizes, minimum.curve(sizes), zorder=2, **(look.line | {"linewidth": 1.2}))
    if not minimum.inside or not limits[0] <= minimum.params_active <= limits[1]:
        return
    axes.errorbar(
        [minimum.params_active],
        [minimum.loss],
        xerr=reach(minimum.params_active, minimum.params_interval),
        yerr=reach(minimum.loss, minimum.loss_interval),
        ecolor=look.color,
        elinewidth=1.6,
        capsize=0,
        marker=look.marker,
        markersize=8,
        markerfacecolor=look.color,
        markeredgecolor=LIGHT["surface"],
        markeredgewidth=0.6,
        linestyle="none",
        zorder=4,
    )


def _fitted(axes: "Axes", x: float, minimum: Minimum, look: Look) -> None:
    axes.errorbar(
        [x],
        [minimum.loss],
        yerr=reach(minimum.loss, minimum.loss_interval),
        ecolor=look.color,
        elinewidth=1.6,
        capsize=0,
        linestyle="none",
        marker=look.marker,
        markersize=6.5,
        markerfacecolor=look.color,
        markeredgecolor=look.color,
        zorder=4,
    )


def _dense_line(
    axes: "Axes",
    name: str,
    minimum: Minimum | None,
    point: view.Measured | None,
    *,
    color: str = LIGHT["ink"],
) -> None:
    if minimum is None and point is None:
        return
    loss = minimum.loss if minimum else point.loss  # type: ignore[union-attr]
    if minimum and minimum.loss_interval:
        axes.axhspan(*minimum.loss_interval, color=color, alpha=0.1, linewidth=0, zorder=1)
    axes.axhline(loss, color=color, linewidth=1.5, zorder=1)
    axes.annotate(
        plain(name),
        (1.0, loss),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=color,
    )


def _granularity_key(families: Sequence[str], fitted: bool) -> list[tuple[str, dict[str, Any]]]:
    mark = {"linestyle": "none", "marker": "o", "markersize": 6, "markeredgecolor": LIGHT["muted"]}
    lines = [
        (name, {"color": LIGHT["muted"], "linestyle": DASHES[index % len(DASHES)]})
        for index, name in enumerate(families)
    ]
    key = [("best measured size", mark | {"markerfacecolor": LIGHT["surface"]})]
    if fitted:
        key.insert(0, ("fitted minimum", mark | {"markerfacecolor": LIGHT["muted"]}))
    return lines + key
