"""What compute buys: the compute-optimal frontier, and how many times the compute a dense model needs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from isoflop.laws import Minimum
from isoflop.report import view
from isoflop.report.marks import Curve, Multiplier
from isoflop.report.style import (
    LIGHT,
    WIDE,
    Look,
    factor,
    grid,
    log_axis,
    look_of,
    name_lines,
    reach,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from isoflop.laws import RunTable


def frontier(
    runs: "RunTable", minima: Sequence[Minimum] = (), curves: Sequence[Curve] = (), *, width: float = WIDE
) -> "Figure":
    """Compute-optimal loss against training FLOPs, an architecture a colour.

    Filled marks are the isoFLOP minima inside the sizes that were run, with their intervals; hollow ones the best size
    where there is no such minimum. Lines are the fitted laws, each at its best size for every budget; dashed and named
    so where the runs do not pin the law down.
    """
    architectures, points = view.architectures(runs), view.measured(runs)
    looks = look_of(architectures)
    inside = {(minimum.architecture, minimum.budget): minimum for minimum in minima if minimum.inside}
    figure, (axes,) = grid(1, width=width, panel_height=4.4)
    x = [point.budget for point in points] + [float(value) for curve in curves for value in curve.flops]
    log_axis(axes, "x", x, kind="flops", most=7 if width > 5 else 4, margin=0.04)
    ends: dict[str, tuple[float, float]] = {}
    for index, architecture in enumerate(architectures):
        look = looks[architecture.name]
        dodge = min(1.01, 1.07 ** (1 / len(architectures))) ** (index - (len(architectures) - 1) / 2)
        for budget in sorted({point.budget for point in points if point.architecture == architecture.name}):
            minimum = inside.get((architecture.name, budget))
            best = view.best_measured(points, architecture.name, budget)
            if minimum is not None:
                loss, bars, face = minimum.loss, reach(minimum.loss, minimum.loss_interval), look.color
            elif best is not None:
                loss, bars, face = best.loss, None, LIGHT["surface"]
            axes.errorbar(
                [budget * dodge],
                [loss],
                yerr=bars,
                linestyle="none",
                ecolor=look.color,
                elinewidth=1.2,
                markersize=5,
                zorder=3,
                **(look.marks | {"markerfacecolor": face}),
            )
            ends[architecture.name] = (budget, loss)
    doubtful = {}
    for curve in curves:
        style = looks[curve.architecture].line
        if curve.doubtful:
            style = style | {"linestyle": (0, (4, 3)), "alpha": 0.6}
            doubtful[curve.architecture] = f" ({curve.doubtful})"
        axes.plot(curve.flops, curve.loss, zorder=2, **style)
        ends[curve.architecture] = (float(curve.flops[-1]), float(curve.loss[-1]))
    named = [name for name in looks if name in ends]
    named_style = {"markersize": 5}
    name_lines(
        axes,
        [
            (name + doubtful.get(name, ""), *ends[name], looks[name].line | looks[name].marks | named_style)
            for name in named
        ],
    )
    axes.set_xlabel("training FLOPs")
    axes.set_ylabel("loss (nats/token)")
    return figure


def efficiency(
    architectures: Sequence[view.Architecture], multipliers: Sequence[Multiplier], *, width: float = WIDE
) -> "Figure":
    """Efficiency multiplier against budget: the FLOPs that a dense model needs for the same loss / the FLOPs spent.

    Bars are intervals; hollow marks reach beyond the dense runs' budgets, where the dense loss is extrapolated.
    """
    looks = look_of(architectures)
    figure, (axes,) = grid(1, width=width, panel_height=3.9)
    budgets = [multiplier.budget for multiplier in multipliers]
    log_axis(axes, "x", budgets, kind="flops", most=7 if width > 5 else 4, margin=0.06)
    order = [architecture.name for architecture in architectures if not architecture.dense]
    by_name: Mapping[str, list[Multiplier]] = {
        name: sorted((m for m in multipliers if m.architecture == name), key=lambda m: m.budget) for name in order
    }
    ends = [("dense", max(budgets) * 1.05, 1.0, {"color": LIGHT["ink"]})]
    for index, name in enumerate(order):
        own, look = by_name[name], looks[name]
        if not own:
            continue
        dodge = 1.035 ** (index - (len(order) - 1) / 2)
        x, y = [m.budget * dodge for m in own], [m.value for m in own]
        axes.plot(x, y, zorder=2, **(look.line | {"linewidth": 1.2}))
        for place, multiplier in zip(x, own, strict=True):
            _multiplier(axes, place, multiplier, look)
        ends.append((name, x[-1], y[-1], look.line | look.marks | {"markersize": 5}))
    axes.axhline(1.0, color=LIGHT["ink"], linewidth=1.2, zorder=1)
    from matplotlib.ticker import FuncFormatter

    values = [m.value for m in multipliers]
    tops = [m.interval[1] if m.interval and np.isfinite(m.interval[1]) else m.value for m in multipliers]
    lows = [m.interval[0] if m.interval and m.interval[0] > 0 else m.value for m in multipliers]
    if max(1.0, *values) > 5 * min(1.0, *values):
        low = max(min([1.0, *lows]), 0.1 * min(1.0, *values))
        log_axis(axes, "y", [low, min(max([1.0, *tops]), 10 * max(1.0, *values))], kind="factor", most=6)
    else:
        bottom, top = min([1.0, *lows]), min(max([1.0, *tops]), 3 * max(1.0, *values))
        room = 0.08 * (top - bottom or 1.0)
        axes.set_ylim(bottom - room, top + room)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: factor(value)))
    name_lines(axes, ends)
    axes.set_xlabel("training FLOPs")
    axes.set_ylabel("× dense FLOPs for equal loss")
    return figure


def _multiplier(axes: "Axes", x: float, multiplier: Multiplier, look: Look) -> None:
    marks = look.marks | {"markerfacecolor": LIGHT["surface"] if multiplier.extrapolated else look.color}
    axes.errorbar(
        [x],
        [multiplier.value],
        yerr=reach(multiplier.value, _drawable(multiplier)),
        linestyle="none",
        ecolor=look.color,
        elinewidth=1.3,
        markersize=5.5,
        zorder=3,
        **marks,
    )


def _drawable(multiplier: Multiplier) -> tuple[float, float] | None:
    """The interval with ends that matplotlib draws: an end that is infinite or 0 runs out of the axes instead."""
    if multiplier.interval is None:
        return None
    low, high = multiplier.interval
    return max(low, 1e-6 * multiplier.value), high if np.isfinite(high) else 1e6 * multiplier.value
