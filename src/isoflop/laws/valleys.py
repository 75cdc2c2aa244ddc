"""Where the loss is least over the expert–attention ratio, how deep that valley is, and how its place moves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._parabola import Interval, Parabola, central, groups_of, pooled_noise
from isoflop.laws._rows import CONVENTION, Runs, as_table, check_rows
from isoflop.laws.table import RunTable

WRONG: Final = (0.5, 2.0)
"""Multiples of the best ratio whose cost is told."""

COLUMN: Final = "expert_attention_ratio"

CLEAR: Final = 3.0
"""Standard errors above 0 from which on a curvature is a valley of its own."""

LARGEST: Final = 300.0
"""ln r beyond which a draw says no more than that any ratio may be the best; its exponential still is a float."""

MOST_DRAWS: Final = 100_000
"""Most draws that can be asked for."""


@dataclass(frozen=True, kw_only=True)
class Valley:
    """A parabola loss = L* + v (ln r − ln r*)² through runs that differ in r, the expert–attention ratio."""

    group: Mapping[str, Any]
    """The values of the columns that the runs were grouped by."""
    status: Literal["inside", "edge", "not_convex", "too_few_ratios"]
    """inside: r* lies inside the ratios that were run, and the lowest mean loss at neither end of them; edge: one of
    the two does not hold, so that r* is an extrapolation; not_convex: the parabola opens downward, and the lowest run
    stands in; too_few_ratios: fewer than three, likewise."""
    ratio: float
    """r*; of the lowest run where there is no parabola that opens upward (then `to_dict` has None)."""
    ratio_interval: Interval | None
    """None where the rows leave no noise estimate or the parabola may be flat: then any ratio may be the best."""
    log_ratio_error: float | None
    """Standard error of ln r*, to first order in the noise; None without a valley or a noise estimate."""
    loss: float
    """Loss at r*, nats per token; likewise."""
    loss_interval: Interval | None
    curvature: float | None
    """Coefficient of (ln r)², nats: negative where the losses make a hill; None without a parabola."""
    curvature_error: float | None
    """Its standard error; None where the rows leave no noise estimate."""
    depth_interval: Interval | None
    """Of v, Student's; where it holds 0, the runs do not show that there is a valley. None without draws as well."""
    is_visible: bool
    """Whether that interval stands above 0 (with draws or without): whether the runs show that there is a valley."""
    costs: Mapping[float, float]
    """Nats lost at these multiples of r*, v (ln multiple)²; empty without a parabola."""
    cost_intervals: Mapping[float, Interval]
    """Likewise."""
    band: Interval | None
    """Ratios whose loss is within `noise` of the least; None without a parabola or noise."""
    noise: float | None
    """Standard deviation of one run's loss about the parabolas, pooled over all groups, nats."""
    spare: int
    """Rows of all groups beyond the three that each parabola takes: degrees of freedom of the noise."""
    flops: float
    """Geometric mean of the runs' training FLOPs."""
    flops_range: Interval
    """Smallest and largest of them."""
    sparsity: float
    """Mean of the runs' sparsity."""
    n_rows: int
    ratio_range: Interval
    """Smallest and largest ratio that was run."""
    context_range: Interval | None
    """Smallest and largest context of the runs, tokens; None where they do not say it."""
    convention: str | None
    """How the ratio and FLOPs were counted, as flops_convention of the runs says; None where they do not say it."""
    log_ratio_draws: np.ndarray = field(repr=False, compare=False)
    """Draws of ln r* [B], NaN where a draw has no valley."""
    curvature_draws: np.ndarray = field(repr=False, compare=False)
    """Draws of the curvature [B], of the same parabolas."""
    moments: np.ndarray = field(repr=False, compare=False)
    """Sums over the rows for least squares (see _parabola.Parabola.moments)."""
    log_centre: float = field(repr=False, compare=False)
    """Mean of the rows' ln r, from which the moments are."""
    squares: float = field(repr=False, compare=False)
    """Sum of the squares about the parabola."""

    @property
    def depth(self) -> float | None:
        """v, nats per squared ln r; None where there is no valley."""
        return self.curvature if self.curvature is not None and self.curvature > 0 else None

    @property
    def is_clear(self) -> bool:
        """Whether the group has a valley of its own: r* inside the ratios that were run, and a curvature of CLEAR
        standard errors; whatever the draws and the level of the intervals."""
        return (
            self.inside
            and self.curvature is not None
            and self.curvature_error is not None
            and self.curvature > CLEAR * self.curvature_error
        )

    @property
    def inside(self) -> bool:
        """Whether r* lies inside the ratios that were run."""
        return self.status == "inside"

    def curve(self, ratio: np.ndarray) -> np.ndarray:
        """The parabola at these ratios, nats per token; NaN without one."""
        if self.depth is None:
            return np.full(np.shape(ratio), np.nan)
        return np.asarray(self.loss + self.depth * np.log(np.asarray(ratio) / self.ratio) ** 2)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON, without the draws; ratio and loss are None where there is no valley."""
        hidden = ("group", "log_ratio_draws", "curvature_draws", "costs", "cost_intervals", "moments", "log_centre")
        values = {name: value for name, value in vars(self).items() if name not in hidden}
        costs = {f"{times:g}": nats for times, nats in self.costs.items()}
        intervals = {f"{times:g}": list(ends) for times, ends in self.cost_intervals.items()}
        if self.depth is None:
            values |= {"ratio": None, "ratio_interval": None, "loss": None, "loss_interval": None}
        return {**self.group, **values, "depth": self.depth, "costs": costs, "cost_intervals": intervals}


def ratio_valleys(
    runs: Runs,
    by: Sequence[str] = ("sparsity", "budget"),
    *,
    level: float = 0.9,
    draws: int = 1000,
    seed: int = 0,
) -> list[Valley]:
    """Fit a parabola in ln r to the losses of each group of runs, such as those of one budget and sparsity.

    The runs of a group should be alike in all that the ratio does not move (FLOPs per token, tokens), or each ratio be
    at its own best size. Intervals come from draws of the parabola's coefficients, with a noise pooled over all groups
    (as in `isoflop_minima`). The parabola is the leading term of any valley about its floor: ratios far from r*, or
    spread unevenly about it, bias the minimum, and no interval shows it.

    Args:
        runs: finished runs with expert_attention_ratio, sparsity, flops and loss; others are left out.
        by: columns whose values make a group.
        level: of the intervals.
        draws: number of draws; 0: no intervals.
        seed: of the draws.

    Raises:
        InputError: if an argument is out of range, a column is absent, is named twice or is what a group must differ
            in, a value is missing or in another unit (as of fits), or a run is there twice, naming the row.
    """
    check_draws(draws, seed)
    _check_grouping(by)
    runs = as_table(runs)
    groups = groups_of(runs, by, (COLUMN, "sparsity", "flops", "loss"), level=level, what="valleys")
    check_rows(runs.usable(), (COLUMN, "flops"), target="loss")
    parabolas = [Parabola(np.log(own.numeric(COLUMN)), own.numeric("loss")) for _, own in groups]
    rng = np.random.default_rng(seed)
    noise = pooled_noise(parabolas, draws, rng)
    spare = sum(parabola.spare for parabola in parabolas)
    sd = float(np.sqrt(sum(parabola.squares for parabola in parabolas) / spare)) if spare > 0 else None
    return [
        _valley(group, own, parabola, noise, sd, spare, level, rng)
        for (group, own), parabola in zip(groups, parabolas, strict=True)
    ]


def check_draws(draws: int, seed: int) -> None:
    """Raise InputError where no number of draws, or no seed of them, is given."""
    if not 0 <= draws <= MOST_DRAWS:
        raise InputError(f"draws is {draws}; it must be from 0 to {MOST_DRAWS:,}.")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be a whole number from 0.")


def _check_grouping(by: Sequence[str]) -> None:
    for column in by:
        if list(by).count(column) > 1:
            raise InputError(f"by is {','.join(by)}, which names {column} twice; name each column once.")
        if column in (COLUMN, "loss"):
            raise InputError(f"by is {','.join(by)}, but {column} is what the runs of a group differ in; leave it out.")


def _valley(
    group: dict[str, Any],
    rows: RunTable,
    parabola: Parabola,
    noise: np.ndarray,
    sd: float | None,
    spare: int,
    level: float,
    rng: np.random.Generator,
) -> Valley:
    place, loss, depth = float(parabola.x[parabola.lowest]), float(parabola.loss[parabola.lowest]), None
    if parabola.coefficients is None:
        status = "too_few_ratios"
    elif parabola.vertex is None:
        status = "not_convex"
    else:
        place, loss, depth = parabola.vertex
        status = "inside" if parabola.is_inside(place) else "edge"
    places, losses, depths = parabola.draws(noise, rng)
    ends = central(places, level)
    curvature = None if parabola.coefficients is None else float(parabola.coefficients[2])
    scale = parabola.curvature_scale
    error = None if sd is None or scale is None else sd * scale
    of_depth = None if curvature is None or error is None else around(curvature, error, spare, level)
    visible = of_depth is not None and of_depth[0] > 0
    if not len(depths):
        of_depth = None
    costs = {} if depth is None else {times: depth * float(np.log(times)) ** 2 for times in WRONG}
    band = None
    if depth is not None and sd is not None:
        reach = float(np.sqrt(sd / depth))
        band = (_exp(place - reach), _exp(place + reach))
    return Valley(
        group=group,
        status=status,  # type: ignore[arg-type]
        ratio=_exp(place),
        ratio_interval=None if ends is None else (_exp(ends[0]), _exp(ends[1])),
        log_ratio_error=None if sd is None or depth is None else sd * parabola.vertex_scale,
        loss=loss,
        loss_interval=central(losses, level),
        curvature=curvature,
        curvature_error=error,
        depth_interval=of_depth,
        is_visible=visible,
        costs=costs,
        cost_intervals={}
        if of_depth is None
        else {times: (of_depth[0] * np.log(times) ** 2, of_depth[1] * np.log(times) ** 2) for times in costs},
        band=band,
        noise=sd,
        spare=spare,
        flops=float(np.exp(np.mean(np.log(rows.numeric("flops"))))),
        flops_range=(float(rows.numeric("flops").min()), float(rows.numeric("flops").max())),
        sparsity=float(rows.numeric("sparsity").mean()),
        n_rows=len(rows),
        ratio_range=(float(np.exp(parabola.values[0])), float(np.exp(parabola.values[-1]))),
        context_range=_span(rows, "context"),
        convention=_convention(rows),
        log_ratio_draws=places,
        curvature_draws=depths,
        moments=parabola.moments,
        log_centre=parabola.centre,
        squares=parabola.squares,
    )


def around(value: float, error: float, spare: int, level: float) -> Interval:
    """Student's interval of an estimate with this standard error and these degrees of freedom."""
    from scipy.special import stdtrit  # scipy is slow to import

    reach = float(stdtrit(spare, (1 + level) / 2)) * error
    return value - reach, value + reach


def _exp(log_ratio: float) -> float:
    return float(np.exp(np.clip(log_ratio, -LARGEST, LARGEST)))


def _span(rows: RunTable, column: str) -> Interval | None:
    if column not in rows:
        return None
    values = rows.numeric(column)
    return (float(np.nanmin(values)), float(np.nanmax(values))) if np.isfinite(values).any() else None


def _convention(rows: RunTable) -> str | None:
    """How the rows' FLOPs and ratios were counted.

    Raises:
        InputError: if they were counted in several ways.
    """
    if CONVENTION not in rows:
        return None
    named = dict.fromkeys(
        value.strip() if isinstance(value, str) and value.strip() else None for value in rows[CONVENTION].tolist()
    )
    if len(named) > 1:
        raise InputError(
            f"{rows.source} counts the FLOPs of one group by "
            f"{' and '.join(name or 'nothing that is said' for name in named)}; count all of them one way, or "
            f'keep one with --where "{CONVENTION}={next(name for name in named if name)}".'
        )
    return next(iter(named), None)
