"""A decision at a later budget and the runs that could come before it, under every bootstrap draw of the laws.

Shapes: B draws, A architectures, S sizes, K candidate runs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from isoflop.laws import Fit, noise_floor
from isoflop.laws._noise import worth
from isoflop.planner._experiments import Family

_SIZES = 65
_SPAN = 16.0  # the sizes of a choice span its optimum divided and multiplied by this
_NODES = np.array([NormalDist().inv_cdf((index + 0.5) / 41) for index in range(41)])  # of equal probability
_LEVELS = 9
_RATIOS = 7
_FAR = 6.0  # draws this many robust deviations away from the median are left out


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the budget of the decision would be spent on: an architecture at its best size."""

    architecture: str
    granularity: float
    expansion_rate: float
    params_active: float
    params_total: float
    tokens: float
    loss: float
    """Predicted, nats per token."""
    loss_std: float
    """Standard deviation of the prediction over the draws, without the noise of a run."""


class Grid:
    """Candidate runs: architecture × cost × tokens per parameter."""

    def __init__(self, families: Sequence[Family], *, budget: float) -> None:
        self.families = families
        self.cheapest = min(family.cheapest for family in families)
        self.family = np.zeros(0, dtype=int)
        self.flops = np.zeros(0)
        self.level = np.zeros(0, dtype=int)
        self.shapes: list[dict[str, np.ndarray]] = []
        if budget < self.cheapest:
            return
        doublings = math.log2(budget / self.cheapest)
        costs = np.geomspace(self.cheapest, budget, min(_LEVELS, 1 + math.ceil(doublings)))
        low, high = (pick(family.ratios[i] for family in families) for i, pick in enumerate((min, max)))
        cost, ratio = (each.ravel() for each in np.meshgrid(costs, np.geomspace(low, high, _RATIOS)))
        for family in families:
            size = family.size(cost, ratio)
            self.shapes.append(family.columns(size, size * ratio))
        self.family = np.repeat(np.arange(len(families)), len(cost))
        self.flops = np.tile(cost, len(families))
        self.level = np.tile(np.searchsorted(costs, cost * (1 - 1e-9)), len(families))
        drawn = [np.log(family.draws(shape)) for family, shape in zip(families, self.shapes, strict=True)]
        self.log_loss_BK = np.concatenate(drawn, axis=1)
        self.point = np.concatenate(
            [family.predict(shape) for family, shape in zip(families, self.shapes, strict=True)]
        )

    def __len__(self) -> int:
        return len(self.flops)

    def centred(self, kept: np.ndarray) -> np.ndarray:
        """Log losses [B, K] of the draws that are kept, less their mean."""
        log_loss = self.log_loss_BK[kept]
        return np.asarray(log_loss - log_loss.mean(axis=0))

    def column(self, name: str) -> np.ndarray:
        """One column [K] of the candidates."""
        return np.concatenate([shape[name] for shape in self.shapes])


class Decision:
    """The choices at one budget under every draw."""

    def __init__(self, families: Sequence[Family], flops: float) -> None:
        self.families = families
        sizes = [_around_best(family, flops) for family in families]
        shapes = [
            family.columns(size, family.tokens(size, flops)) for family, size in zip(families, sizes, strict=True)
        ]
        drawn = np.stack([family.draws(columns) for family, columns in zip(families, shapes, strict=True)], axis=1)
        point = np.stack([family.predict(columns) for family, columns in zip(families, shapes, strict=True)])
        best = np.argmin(point, axis=1)
        order = np.argsort(np.min(point, axis=1), kind="stable")
        self.kept = _usable(drawn[:, np.arange(len(families)), best])
        drawn = drawn[self.kept]
        self.loss_ASB = np.moveaxis(drawn - drawn.mean(axis=0) + point, 0, -1)
        self.point_AS = point
        self.first = (int(order[0]), int(best[order[0]]))
        self.choices = [self._choice(a, shapes[a], int(best[a])) for a in order]
        self.loss_draws = self.loss_ASB[self.first]
        self.gap: float | None = None
        self.gap_draws: np.ndarray | None = None
        if len(families) > 1:
            second = (int(order[1]), int(best[order[1]]))
            self.gap = float(point[second] - point[self.first])
            self.gap_draws = self.loss_ASB[second] - self.loss_draws

    def _choice(self, index: int, columns: Mapping[str, np.ndarray], size: int) -> Choice:
        family = self.families[index]
        return Choice(
            architecture=family.name,
            granularity=family.granularity,
            expansion_rate=family.expansion_rate,
            **{name: float(columns[name][size]) for name in ("params_active", "params_total", "tokens")},
            loss=float(self.point_AS[index, size]),
            loss_std=float(np.std(self.loss_ASB[index, size])),
        )

    def losses(self) -> np.ndarray:
        """Nats [B] that the choice loses against the best of each draw."""
        return np.asarray(self.loss_draws - self.loss_ASB.min(axis=(0, 1)))

    def regret(self) -> float:
        """Their mean."""
        return float(np.mean(self.losses()))

    def probability_best(self) -> float | None:
        """Share of the draws in which no other architecture is better at its best size."""
        if len(self.families) < 2:
            return None
        return float(np.mean(np.argmin(self.loss_ASB.min(axis=1), axis=0) == self.first[0]))

    def gain(self, grid: Grid, variance: float | np.ndarray) -> np.ndarray:
        """Nats [K] by which knowing a candidate's log loss, with this variance of noise, lowers the expected regret.

        The choice after the run is the best in expectation then; E[min over choices] over what the run may show is
        the knowledge gradient for correlated beliefs (Frazier, Powell & Dayanik 2009, INFORMS J. Comput. 21:599).
        """
        choices = self.loss_ASB.reshape(-1, self.loss_ASB.shape[-1])
        mean = self.point_AS.reshape(-1)
        observed = grid.centred(self.kept)
        covariance = (choices - mean[:, None]) @ observed / len(observed)
        slope = covariance / np.sqrt(observed.var(axis=0) + variance)
        lowest = np.zeros(slope.shape[1])
        for node in _NODES:
            lowest += np.min(mean[:, None] + slope * node, axis=0)
        return np.asarray(np.maximum(0.0, mean.min() - lowest / len(_NODES)))


def noise_of(fits: Iterable[Fit]) -> float:
    """Standard deviation of one run's log loss about its law, over all fits."""
    spare, squares = zip(*((fit.n_rows - fit.n_free, fit.noise**2) for fit in fits), strict=True)
    return math.sqrt(float(np.average(squares, weights=spare)))


def effective_variance(noise: float, delta: float | None) -> float:
    """Variance of ln L that a run counts with in a Huber fit, whose draws are wider than those of least squares.

    E[ψ²] / E[ψ']² under normal noise (Huber 1964, Ann. Math. Stat. 35:73, eq. 2.3): σ² for large δ, π/2·σ² for small.
    """
    if delta is None or noise == 0:
        return noise**2
    return worth(noise, delta) / math.erf(delta / noise / math.sqrt(2))


def repeat_noise(fits: Iterable[Fit]) -> float | None:
    """Standard deviation of the log loss from one seed to another, over all fits; None where no run repeats another."""
    floors = [noise_floor(fit.runs, fit.form.columns, target=fit.form.target) for fit in fits]
    known = [floor for floor in floors if floor is not None]
    if not known:
        return None
    freedom = [floor.n_repeats for floor in known]
    return math.sqrt(float(np.average([floor.sd**2 for floor in known], weights=freedom)))


def _around_best(family: Family, flops: float) -> np.ndarray:
    """Sizes [S] around the best at a budget, which is one of them."""
    wide = np.geomspace(1.0, flops, 4001)
    with np.errstate(over="ignore"):
        loss = family.predict(family.columns(wide, family.tokens(wide, flops)))
    best = wide[int(np.nanargmin(loss))]
    return np.asarray(best * np.geomspace(1 / _SPAN, _SPAN, _SIZES))


def _usable(loss: np.ndarray) -> np.ndarray:
    """Mask [B] of the draws whose losses [B, A] at the decision are finite and not wildly off.

    A resample that leaves a parameter open can put the loss anywhere; one such draw would be all of the variance.
    """
    finite = np.isfinite(loss).all(axis=1)
    middle = np.median(loss[finite], axis=0)
    distance = np.abs(loss - middle)
    scale = 1.4826 * np.median(distance[finite], axis=0)
    return np.asarray(finite & np.all(distance <= _FAR * scale + 1e-12, axis=1))
