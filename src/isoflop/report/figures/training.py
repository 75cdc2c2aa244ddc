"""Inside the runs: their training curves, and how evenly the router spreads tokens."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.report.style import LIGHT, WIDE, grid, log_axis, look_of, name_lines, plain, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isoflop.report.view import Architecture

_SPAN = 100.0  # ratio of the last tokens that are shown to the first
_BINS = 70  # averages along that span
_BAR_INCHES = 0.6  # height of the colour bar of the load with its labels


def training_curves(
    architectures: Sequence["Architecture"],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    width: float = WIDE,
) -> "Figure":
    """Training loss against tokens seen, a line a run, in the colour of its architecture.

    Losses of neighbouring steps are averaged, in steps of equal ratio of tokens; the first percent of the tokens is
    not shown.

    Args:
        architectures: in their fixed order.
        curves: points (tokens, training loss in nats/token) of one run for each architecture's name.
        width: inches.
    """
    looks = look_of(architectures)
    figure, (axes,) = grid(1, width=width, panel_height=4.0)
    smooth = {name: _averaged(points) for name, points in curves.items()}
    last = max(float(tokens[-1]) for tokens, _ in smooth.values())
    shown = {name: tokens >= last / _SPAN for name, (tokens, _) in smooth.items()}
    log_axis(axes, "x", [last / _SPAN, last], most=6 if width > 5 else 4, margin=0.03)
    ends, losses = [], []
    for name, (tokens, loss) in smooth.items():
        axes.plot(tokens, loss, zorder=2, **(looks[name].line | {"linewidth": 1.3}))
        ends.append((name, float(tokens[-1]), float(loss[-1]), looks[name].line))
        losses += [float(value) for value in loss[shown[name]]] or [float(loss[-1])]
    room = 0.05 * (max(losses) - min(losses) or 0.1)
    axes.set_ylim(min(losses) - room, max(losses) + room)
    name_lines(axes, ends)
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("training loss (nats/token)")
    return figure


def _averaged(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and loss, each the mean over the points in one of a number of bins of equal ratio."""
    known = np.array([point for point in points if point[0] > 0])
    tokens, loss = known[:, 0], known[:, 1]
    edges = tokens[-1] / _SPAN ** np.linspace(1, 0, _BINS)
    bins = np.searchsorted(edges * (1 + 1e-9), tokens)
    each = [np.flatnonzero(bins == index) for index in np.unique(bins)]
    return np.array([tokens[rows].mean() for rows in each]), np.array([loss[rows].mean() for rows in each])


def expert_load(loads: Mapping[str, Sequence[Sequence[float]]], *, width: float = WIDE) -> "Figure":
    """Share of the assignments that each expert gets, layer by expert, as a multiple of an even share.

    Args:
        loads: for each run's name, a list of layers, each the shares of its experts (sum 1).
        width: inches.
    """
    from matplotlib.colors import LogNorm

    layers = max(len(load) for load in loads.values())
    figure, panels = grid(len(loads), width=width, panel_height=0.75 + 0.16 * max(layers, 2), most=1)
    figure.set_figheight(figure.get_figheight() + _BAR_INCHES)
    norm = LogNorm(0.25, 4.0)
    mesh: Any = None
    for (name, load), axes in zip(loads.items(), panels, strict=True):
        experts = max(len(layer) for layer in load)
        relative = np.full((len(load), experts), np.nan)
        for row, layer in enumerate(load):
            relative[row, : len(layer)] = np.asarray(layer, dtype=float) * len(layer)
        mesh = axes.pcolormesh(
            np.arange(experts + 1) + 0.5,
            np.arange(len(load) + 1) + 0.5,
            np.ma.masked_invalid(np.clip(relative, 0.25, 4.0)),
            cmap="PuOr_r",
            norm=norm,
            edgecolors=LIGHT["surface"],
            linewidth=0.4 if experts * width < 40 * WIDE else 0.0,
        )
        axes.grid(visible=False)
        axes.invert_yaxis()
        axes.set_yticks(range(1, len(load) + 1) if len(load) <= 8 else [1, len(load)])
        axes.set_xticks(sorted({1, *np.unique(np.linspace(1, experts, min(experts, 8)).round().astype(int))}))
        axes.set_ylabel("layer")
        title(axes, f"{plain(name)}: busiest {np.nanmax(relative):.2f}×, idlest {np.nanmin(relative):.2f}×")
    panels[-1].set_xlabel("expert")
    share = max(0.05, _BAR_INCHES / 3 / figure.get_figheight())
    bar = figure.colorbar(mesh, ax=panels, orientation="horizontal", fraction=share, aspect=40, pad=0.02)
    bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["≤ 0.25×", "0.5×", "even", "2×", "≥ 4×"])
    bar.ax.tick_params(which="both", labelsize=8.5, colors=LIGHT["muted"], length=2)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label("assignments / even share", size=9, color=LIGHT["ink"])
    return figure
