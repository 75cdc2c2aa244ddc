"""One depth for all valleys over the expert–attention ratio, whatever their places."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from isoflop.laws._parabola import Interval
from isoflop.laws.valleys import Valley, around


def pooled_depth(
    valleys: Sequence[Valley], *, level: float = 0.9
) -> tuple[float | None, Interval | None, np.ndarray, float]:
    """One depth for all valleys: v, its interval, its draws [B], and the spread of the valleys about it.

    Each parabola weighs by the inverse variance of its curvature; hills count too, with their negative one, since to
    leave them out would deepen the valley. Where the curvatures lie farther apart than their noise explains, draws and
    interval are wider by that factor (see BestRatio.spread). Without draws of the valleys there is no interval.
    """
    found = pooled(valleys)
    return found.depth, found.interval(level) if len(found.draws) else None, found.draws, found.spread


def shows_valley(valleys: Sequence[Valley], *, level: float = 0.9) -> bool:
    """Whether the interval of the depth of all valleys stands above 0, whether they have draws or not."""
    interval = pooled(valleys).interval(level)
    return interval is not None and interval[0] > 0


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """One depth for all valleys."""

    depth: float | None = None
    error: float | None = None
    """Its standard error, the spread not in it; None where the rows leave no noise estimate."""
    spare: int = 0
    draws: np.ndarray = field(default_factory=lambda: np.zeros(0))
    spread: float = 1.0

    def interval(self, level: float) -> Interval | None:
        """Student's; None where there is no noise estimate."""
        if self.depth is None or self.error is None:
            return None
        return around(self.depth, self.spread * self.error, self.spare, level)


def pooled(valleys: Sequence[Valley]) -> Pooled:
    """See `pooled_depth`; everything but the draws is the same without draws."""
    own = [valley for valley in valleys if valley.curvature is not None]
    if not own:
        return Pooled()
    curvature = np.array([valley.curvature for valley in own], dtype=float)
    errors = np.array([valley.curvature_error or 0.0 for valley in own])
    known = bool((errors > 0).all())
    weights = (errors.min() / errors) ** 2 if known else np.ones(len(own))
    weights /= weights.sum()
    depth = float(weights @ curvature)
    spread = 1.0
    if known and len(own) > 1:
        spread = max(1.0, float(np.sqrt(np.sum(((curvature - depth) / errors) ** 2) / (len(own) - 1))))
    drawn = weights @ np.array([valley.curvature_draws for valley in own])
    return Pooled(
        depth=depth,
        error=None if own[0].curvature_error is None else float(np.sqrt(np.sum((weights * errors) ** 2))),
        spare=own[0].spare,
        draws=depth + spread * (drawn - depth),
        spread=spread,
    )
