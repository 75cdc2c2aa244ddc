"""Does the law hold: predicted against measured, residuals, and the verification run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from isoflop.report import view
from isoflop.report.marks import Verified
from isoflop.report.style import LIGHT, WIDE, grid, legend, log_axis, look_of, outer, plain, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from isoflop.laws import RunTable


def parity(runs: "RunTable", predicted: np.ndarray, *, width: float = WIDE) -> "Figure":
    """Predicted against measured loss of every finished run; on the line they agree.

    Args:
        runs: the run table.
        predicted: the law's loss for each of its rows, nats/token; NaN where there is none.
        width: inches.
    """
    figure, (axes,) = grid(1, width=min(width, 5.4), panel_height=min(width, 5.4) * 0.95)
    loss, shown = view.numbers(runs, "loss"), _comparable(runs, predicted)
    both = np.concatenate([loss[shown], predicted[shown]])
    room = 0.04 * (float(np.ptp(both)) or 0.1)
    limits = (float(both.min()) - room, float(both.max()) + room)
    axes.plot(limits, limits, color=LIGHT["muted"], linewidth=1.0, zorder=1)
    _marks(axes, runs, predicted, loss, shown)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_xlabel("predicted loss (nats/token)")
    axes.set_ylabel("measured loss (nats/token)")
    root_mean_square = float(np.sqrt(np.mean((loss - predicted)[shown] ** 2)))
    axes.text(
        0.97,
        0.05,
        f"{int(shown.sum())} runs, RMSE {root_mean_square:.4f} nats",
        transform=axes.transAxes,
        ha="right",
        fontsize=8.5,
        color=LIGHT["ink"],
    )
    _key(figure, runs, shown)
    return figure


def residuals(runs: "RunTable", predicted: np.ndarray, *, width: float = WIDE) -> "Figure":
    """Measured minus predicted loss against FLOPs and against active parameters; a trend is lack of fit.

    Arguments as in `parity`.
    """
    figure, panels = grid(2, width=width, panel_height=3.0)
    loss, shown = view.numbers(runs, "loss"), _comparable(runs, predicted)
    residual = loss - predicted
    bound = 1.15 * float(np.max(np.abs(residual[shown]))) or 0.01
    for axes, name, label, kind in zip(
        panels, ("flops", "params_active"), ("training FLOPs", "active parameters"), ("flops", "count"), strict=True
    ):
        x = view.numbers(runs, name)
        known = shown & np.isfinite(x) & (x > 0)
        if known.any():
            log_axis(axes, "x", [float(value) for value in x[known]], kind=kind, most=5)
        axes.axhline(0, color=LIGHT["muted"], linewidth=1.0, zorder=1)
        _marks(axes, runs, x, residual, known, dodge=name == "flops")
        axes.set_ylim(-bound, bound)
        axes.set_xlabel(label)
        axes.set_ylabel("measured − predicted (nats)" if outer(axes) else "")
    _key(figure, runs, shown)
    return figure


def verification(checks: Sequence[Verified], *, width: float = WIDE) -> "Figure":
    """For each check the predicted interval (bar) and loss (tick), and what was measured (dot); all to one scale."""
    figure, panels = grid(len(checks), width=width, panel_height=1.15, most=1)
    ends = [
        value - check.predicted
        for check in checks
        for value in (*(check.interval or ()), check.measured)
        if value is not None
    ]
    half = 1.25 * max([abs(end) for end in ends] + [1e-3 * checks[0].predicted])
    for check, axes in zip(checks, panels, strict=True):
        if check.interval:
            axes.plot(check.interval, [0, 0], color=LIGHT["accent"], linewidth=9, alpha=0.3, solid_capstyle="butt")
        axes.plot([check.predicted], [0], "|", color=LIGHT["accent"], markersize=15, markeredgewidth=2)
        if check.measured is not None:
            axes.errorbar(
                [check.measured],
                [0],
                xerr=check.measured_std,
                marker="o",
                markersize=7,
                color=LIGHT["ink"],
                elinewidth=1.2,
                zorder=3,
            )
        title(axes, plain(check.label))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set(xlim=(check.predicted - half, check.predicted + half), ylim=(-1, 1))
        axes.locator_params(axis="x", nbins=7 if width > 5 else 4)
    panels[-1].set_xlabel("loss (nats/token)")
    level = next((check.level for check in checks if check.level), None)
    interval = "predicted interval" if level is None else f"predicted {level:.0%} interval"
    legend(
        figure,
        [
            (interval, {"color": LIGHT["accent"], "linewidth": 8, "alpha": 0.3}),
            ("prediction", {"color": LIGHT["accent"], "linestyle": "none", "marker": "|", "markersize": 12}),
            ("measured", {"color": LIGHT["ink"], "linestyle": "none", "marker": "o", "markersize": 6}),
        ],
    )
    return figure


def _comparable(runs: "RunTable", predicted: np.ndarray) -> np.ndarray:
    """Rows with a measured and a predicted loss."""
    return np.asarray(view.finished(runs) & np.isfinite(predicted))


def _marks(
    axes: "Axes", runs: "RunTable", x: np.ndarray, y: np.ndarray, shown: np.ndarray, *, dodge: bool = False
) -> None:
    names = np.array(view.names(runs))
    architectures = view.architectures(runs)
    looks = look_of(architectures)
    for index, architecture in enumerate(architectures):
        own = shown & (names == architecture.name)
        shift = 1.03 ** (index - (len(architectures) - 1) / 2) if dodge else 1.0
        axes.plot(x[own] * shift, y[own], linestyle="none", markersize=4.5, **looks[architecture.name].marks)


def _key(figure: "Figure", runs: "RunTable", shown: np.ndarray) -> None:
    present = {name for name, visible in zip(view.names(runs), shown, strict=True) if visible}
    architectures = view.architectures(runs)
    looks = look_of(architectures)
    style = {"linestyle": "none", "markersize": 5.5}
    legend(figure, [(a.name, looks[a.name].marks | style) for a in architectures if a.name in present])
