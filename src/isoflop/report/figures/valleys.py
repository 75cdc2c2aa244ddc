"""Loss against the expert–attention ratio, and the best ratio against the budget."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from isoflop.report.style import DASHES, LIGHT, WIDE, Look, flops, grid, legend, log_axis, outer, reach, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from isoflop.laws import BestRatio, RunTable, Valley

_ROLES: Final = ("g1", "g4", "g16", "g64", "g2", "g8", "g32")
_MARKERS: Final = "osD^vPX"

_WHY: Final = {
    "edge": "edge, at or beyond an end of the ratios",
    "not_convex": "a hill",
    "too_few_ratios": "under three ratios",
}
"""Why a group has no r* inside the ratios that were run, by its status."""


def valley_curves(
    runs: "RunTable", valleys: Sequence["Valley"], *, convention: str | None = None, width: float = WIDE
) -> "Figure":
    """Loss against r, one panel a group of `ratio_valleys`: runs, parabola, r* with its interval, and the band.

    Shaded are the ratios whose loss is within one run's noise of the least. A panel without a valley shows its runs
    alone, and every panel without r* says why in its title.
    `convention` is how r was counted; default: as the valleys say.
    """
    looks = _looks(valleys)
    figure, panels = grid(len(valleys), width=width, panel_height=2.6)
    usable = runs.usable()
    for valley, axes in zip(valleys, panels, strict=True):
        own = usable.where(**valley.group)
        ratios, losses = own.numeric("expert_attention_ratio"), own.numeric("loss")
        look = looks[valley.sparsity]
        log_axis(axes, "x", list(ratios), most=4, kind="count", margin=0.08)
        low, high = axes.get_xlim()
        room = 0.12 * (losses.max() - losses.min() or 0.1)
        axes.set_ylim(min(losses.min(), valley.loss if valley.inside else np.inf) - room, losses.max() + room)
        if valley.band is not None and valley.inside:
            axes.axvspan(*valley.band, color=look.color, alpha=0.1, linewidth=0, zorder=1)
        axes.plot(ratios, losses, linestyle="none", markersize=4.5, zorder=3, **look.marks)
        if valley.depth is not None:
            at = np.geomspace(low, high, 120)
            axes.plot(at, valley.curve(at), zorder=2, **(look.line | {"linewidth": 1.2}))
        if valley.inside:
            _optimum(axes, valley.ratio, valley.loss, valley.ratio_interval, look, along="x")
        axes.set_xlim(low, high)
        why = _WHY.get(valley.status, "")
        title(axes, f"{_name(valley)} ({why.partition(',')[0]})" if why else _name(valley))
        axes.set_xlabel(f"r = experts / attention ({convention or valley.convention or 'convention not said'})")
        axes.set_ylabel("loss (nats/token)" if outer(axes) else "")
    return figure


def best_ratio_against_budget(
    valleys: Sequence["Valley"], law: "BestRatio | None" = None, *, width: float = WIDE
) -> "Figure":
    """r* against training FLOPs, a look a sparsity: valleys inside the ratios that were run, and the law r*(C, S).

    Bars are intervals of r*; lines and bands the law, held within the ratios that were run, and its 90% interval over
    ten times the budgets of the runs. Groups without such a valley are not drawn; a line says how many, and why.
    """
    looks = _looks(valleys)
    inside = [valley for valley in valleys if valley.inside]
    budgets = [valley.flops for valley in valleys]
    figure, (axes,) = grid(1, width=width, panel_height=4.2)
    at = np.geomspace(min(budgets) / 2, max(budgets) * 10, 60)
    log_axis(axes, "x", list(at), kind="flops", margin=0.0)
    shown = [valley.ratio for valley in inside]
    for sparsity, look in looks.items() if law is not None else ():
        assert law is not None
        optima = [law.at(float(each), sparsity) for each in at]
        ratios = np.array([optimum.ratio for optimum in optima])
        axes.plot(at, ratios, zorder=2, **look.line)
        shown += [float(ratios.min()), float(ratios.max())]
        ends = [optimum.interval() for optimum in optima]
        if all(end is not None for end in ends):
            low, high = np.array(ends, dtype=float).T
            axes.fill_between(at, low, high, color=look.color, alpha=0.15, linewidth=0, zorder=1)
    for valley in inside:
        _optimum(axes, valley.flops, valley.ratio, valley.ratio_interval, looks[valley.sparsity], along="y")
    log_axis(axes, "y", shown or [end for valley in valleys for end in valley.ratio_range], margin=0.25)
    missing = Counter(_WHY[valley.status] for valley in valleys if not valley.inside)
    if missing:
        listed = "; ".join(f"{number} × {why}" for why, number in missing.items())
        axes.text(
            *(0.01, 0.02, f"not drawn: {missing.total()} of {len(valleys)} groups ({listed})"),
            transform=axes.transAxes,
            fontsize=8,
            color=LIGHT["muted"],
            va="bottom",
        )
    axes.set_xlabel("training FLOPs")
    counted = law.convention if law is not None else valleys[0].convention
    axes.set_ylabel(f"best r = experts / attention ({counted or 'convention not said'})")
    legend(figure, [(f"S = {sparsity:.4g}", look.line | look.marks) for sparsity, look in looks.items()])
    return figure


def _looks(valleys: Sequence["Valley"]) -> dict[float, Look]:
    """A colour and a marker for each sparsity, which no two share: a second round of colours has other markers."""
    rising = sorted({valley.sparsity for valley in valleys})
    looks = {}
    for index, sparsity in enumerate(rising):
        turn, place = divmod(index, len(_ROLES))
        looks[sparsity] = Look(
            color=LIGHT[_ROLES[place]],
            marker=_MARKERS[(place + turn) % len(_MARKERS)],
            dash=DASHES[turn % len(DASHES)],
            filled=turn < len(_MARKERS),
        )
    return looks


def _name(valley: "Valley") -> str:
    words = {"flops": flops, "budget": flops}
    parts = [
        f"{words[name](value)} FLOPs"
        if name in words
        else f"{'S' if name == 'sparsity' else name} {f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in valley.group.items()
    ]
    return ", ".join(parts) or "all runs"


def _optimum(axes: "Axes", x: float, y: float, interval: tuple[float, float] | None, look: Look, *, along: str) -> None:
    bar: dict[str, Any] = {f"{along}err": reach(x if along == "x" else y, interval)}
    style = look.marks | {"markersize": 8, "markeredgecolor": LIGHT["surface"], "markeredgewidth": 0.6}
    axes.errorbar([x], [y], **bar, ecolor=look.color, elinewidth=1.6, capsize=0, linestyle="none", zorder=4, **style)
