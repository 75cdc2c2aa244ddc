"""IsoFLOP minima (approach 2): the best size of each architecture at each budget, read off its own runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from isoflop.laws._parabola import Interval, Parabola, central, groups_of, pooled_noise
from isoflop.laws._rows import Runs
from isoflop.laws.table import RunTable


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """Minimum of a parabola loss = a + b·ln N + q·(ln N)², N params_active, through the runs of one budget."""

    group: Mapping[str, Any]
    """The values of the columns that the runs were grouped by."""
    status: Literal["inside", "edge", "not_convex", "too_few_sizes"]
    """inside: trustworthy; edge: the vertex or the lowest loss stands at or beyond an end of the sizes, so the optimum
    is an extrapolation; not_convex: the parabola opens downward, and the lowest run stands in; too_few_sizes: fewer
    than three sizes, likewise."""
    params_active: float
    """Optimal size."""
    params_total: float
    """params_total at that size, interpolated."""
    tokens: float
    """Tokens at that size, interpolated."""
    flops: float
    """Geometric mean of the runs' FLOPs."""
    loss: float
    """Loss at the minimum, nats per token."""
    params_interval: Interval | None
    """Of params_active; None where the rows leave no noise estimate or the parabola may be flat."""
    tokens_interval: Interval | None
    loss_interval: Interval | None
    """Of the minimum's loss, as the parabola's mean."""
    curvature: float | None
    """q; None without a parabola."""
    n_rows: int
    n_sizes: int
    size_range: Interval
    """Smallest and largest params_active that were run."""
    loss_draws: np.ndarray = field(repr=False, compare=False)
    """Draws of the loss at the minimum [B], NaN where a draw's parabola opens downward; empty without intervals."""

    @property
    def architecture(self) -> str:
        """Name of the architecture; empty if the runs were not grouped by it."""
        return str(self.group.get("architecture", ""))

    @property
    def budget(self) -> float:
        """The budget; the mean FLOPs if the runs were not grouped by it."""
        return float(self.group.get("budget", self.flops))

    @property
    def inside(self) -> bool:
        """Whether the minimum lies inside the sizes that were run."""
        return self.status == "inside"

    def curve(self, params_active: np.ndarray) -> np.ndarray:
        """The parabola at these sizes, nats per token; NaN without one."""
        if self.curvature is None:
            return np.full(np.shape(params_active), np.nan)
        return self.loss + self.curvature * np.log(np.asarray(params_active) / self.params_active) ** 2

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON, without the draws."""
        values = {name: value for name, value in vars(self).items() if name not in ("loss_draws", "group")}
        return {**self.group, **values}


def isoflop_minima(
    runs: Runs,
    by: Sequence[str] = ("architecture", "budget"),
    *,
    level: float = 0.9,
    draws: int = 1000,
    seed: int = 0,
) -> list[Minimum]:
    """Fit a parabola in ln params_active to the loss of each group.

    This is approach 2 of Hoffmann et al. 2022, arXiv 2203.15556. Intervals come from draws of the parabola's
    coefficients: normal with the least-squares covariance, its noise pooled over all groups and drawn with its degrees
    of freedom (so that they are Student's intervals), which gives even a budget of three sizes an interval if other
    budgets have rows to spare. A parabola is only the middle of the true curve: sizes far from the optimum, or spread
    unevenly about it, bias the minimum, and no interval shows it.

    Args:
        runs: finished runs; others are left out.
        by: columns whose values make a group: an architecture at a budget.
        level: of the intervals.
        draws: number of draws.
        seed: of the draws.

    Raises:
        InputError: if a column is absent or a value is missing, naming the row.
    """
    columns = ("params_active", "params_total", "tokens", "flops", "loss")
    curves = [_Curve(group, own) for group, own in groups_of(runs, by, columns, level=level, what="isoFLOP minima")]
    rng = np.random.default_rng(seed)
    noise = pooled_noise([curve.parabola for curve in curves], draws, rng)
    return [curve.minimum(noise, level, rng) for curve in curves]


class _Curve:
    """One group's rows and the parabola through them."""

    def __init__(self, group: dict[str, Any], table: RunTable) -> None:
        self.group = group
        self.n_rows = len(table)
        self.log_total = np.log(table.numeric("params_total"))
        self.log_tokens = np.log(table.numeric("tokens"))
        self.flops = float(np.exp(np.mean(np.log(table.numeric("flops")))))
        self.parabola = Parabola(np.log(table.numeric("params_active")), table.numeric("loss"))

    def minimum(self, noise: np.ndarray, level: float, rng: np.random.Generator) -> Minimum:
        """The vertex, or the lowest row where there is none; noise [B] holds draws of the standard deviation."""
        parabola = self.parabola
        lowest = parabola.lowest
        log_size, loss, curvature = float(parabola.x[lowest]), float(parabola.loss[lowest]), None
        if parabola.coefficients is None:
            status = "too_few_sizes"
        elif parabola.vertex is None:
            status = "not_convex"
        else:
            log_size, loss, curvature = parabola.vertex
            status = "inside" if parabola.is_inside(log_size) else "edge"
        vertices, losses, _ = parabola.draws(noise if parabola.vertex else np.zeros(0), rng)
        sizes = central(vertices, level)
        ends = None if sizes is None else [float(np.exp(self._at(self.log_tokens, end))) for end in sizes]
        return Minimum(
            group=self.group,
            status=status,  # type: ignore[arg-type]
            params_active=float(np.exp(log_size)),
            params_total=float(np.exp(self._at(self.log_total, log_size))),
            tokens=float(np.exp(self._at(self.log_tokens, log_size))),
            flops=self.flops,
            loss=loss,
            params_interval=None if sizes is None else (float(np.exp(sizes[0])), float(np.exp(sizes[1]))),
            tokens_interval=None if ends is None else (min(ends), max(ends)),
            loss_interval=central(losses, level),
            curvature=curvature,
            n_rows=self.n_rows,
            n_sizes=len(parabola.values),
            size_range=(float(np.exp(parabola.values[0])), float(np.exp(parabola.values[-1]))),
            loss_draws=losses,
        )

    def _at(self, values: np.ndarray, log_size: float) -> float:
        """A column's logarithm at a size: a line through the group's rows."""
        own = self.parabola
        if len(own.values) == 1:
            return float(values.mean())
        slope, offset = np.polyfit(own.x - own.centre, values, 1)
        return float(offset + slope * (log_size - own.centre))
