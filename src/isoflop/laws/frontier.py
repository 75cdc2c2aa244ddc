"""Compute-optimal frontiers L(C), and how many times the FLOPs a dense model needs for an MoE's loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.law import Law
from isoflop.laws.minima import Minimum
from isoflop.laws.numbers import exponent
from isoflop.laws.result import Fit
from isoflop.laws.table import RunTable

_GOLDEN = (np.sqrt(5) - 1) / 2
_NARROWINGS = 45
_HALVINGS = 45
_BESIDE = 1.1  # a best size this factor beyond those that ran still counts as theirs
_REACH = (-9.0, 30.0)  # ln of the dense budget / the MoE's between which an equal loss is sought

FlopsPerToken = Callable[[np.ndarray], np.ndarray]
"""Training FLOPs per token from params_active."""


def cost_between_runs(runs: RunTable) -> FlopsPerToken:
    """Training FLOPs per token from params_active: straight lines between the runs, in logarithms, and beyond them.

    For models of one family: with a head and attention scores to pay for, no power law fits small ones well enough.
    """
    size = np.log(runs.numeric("params_active"))
    cost = np.log(runs.numeric("flops") / runs.numeric("tokens"))
    x = np.unique(np.round(size, 6))
    y = np.array([cost[np.abs(size - each) < 1e-5].mean() for each in x])
    slopes = np.diff(y) / np.diff(x) if len(x) > 1 else np.ones(1)

    def flops_per_token(params: np.ndarray) -> np.ndarray:
        at = np.log(params)
        below, above = np.minimum(0.0, at - x[0]) * slopes[0], np.maximum(0.0, at - x[-1]) * slopes[-1]
        return np.asarray(np.exp(np.interp(at, x, y) + below + above))

    return flops_per_token


class LawFrontier:
    """The lowest loss that a law allows at a budget: N chosen freely, D = C / FLOPs per token."""

    def __init__(
        self, law: Law | Fit, *, granularity: float | None = None, flops_per_token: FlopsPerToken | None = None
    ) -> None:
        """Say which models the budget is spent on.

        Args:
            law: a law, or a fit, whose bootstrap then gives the interval.
            granularity: G, for a law that knows it.
            flops_per_token: training FLOPs per token from params_active. Default: for a fit, the power law
                k·params_active^e through its rows (so that whatever FLOPs they count are counted here); else
                6·params_active.

        Raises:
            InputError: if the law knows G and none is given.
        """
        self.law = law.law if isinstance(law, Fit) else law
        self.fit = law if isinstance(law, Fit) else None
        if "granularity" in self.law.form.columns and granularity is None:
            raise InputError(f"granularity is missing; law {self.law.name} needs one for its frontier.")
        self.granularity = granularity
        self.note = ""
        if flops_per_token is None:
            scale, power = (6.0, 1.0) if self.fit is None else _cost(self.fit, granularity)
            if self.fit is None and self.law.convention != "6ND":
                self.note = (
                    f"law {self.law.name} counts FLOPs as {self.law.convention}; 6·params_active was taken here."
                )

            def flops_per_token(params: np.ndarray) -> np.ndarray:
                return np.asarray(scale * params**power)

        self.flops_per_token = flops_per_token

    def loss(self, flops: np.ndarray) -> np.ndarray:
        """Loss at each budget, nats per token."""
        return self._best(np.asarray(flops, dtype=float), self.law.parameters)[1]

    def optimum(self, flops: float) -> dict[str, float]:
        """The compute-optimal params_active, params_total, tokens and loss at one budget."""
        size, loss = self._best(np.array([flops]), self.law.parameters)
        return {
            "params_active": float(size[0]),
            "params_total": float(size[0] / self.law.active_share),
            "tokens": float(flops / self.flops_per_token(size)[0]),
            "loss": float(loss[0]),
        }

    def loss_draws(self, flops: np.ndarray) -> np.ndarray:
        """Loss [B] under each draw at a budget, one or [B]; empty without a bootstrap."""
        if self.fit is None or not self.fit.draws:
            return np.zeros(0)
        count = len(next(iter(self.fit.draws.values())))
        return self._best(np.broadcast_to(flops, (count,)), self.fit.draws)[1]

    def inside(self, flops: float) -> bool:
        """Whether runs support the loss at this budget: the budget and the best size lie within those that ran."""
        if self.fit is not None:
            budgets = self.fit.runs.numeric("flops")
            if not budgets.min() * 0.999 <= flops <= budgets.max() * 1.001:
                return False
            if "params_active" not in self.fit.runs:
                return True
            sizes, size = self.fit.runs.numeric("params_active"), self.optimum(flops)["params_active"]
            return bool(sizes.min() / _BESIDE <= size <= sizes.max() * _BESIDE)
        best = self.optimum(flops)
        return all(low <= best.get(name, low) <= high for name, (low, high) in self.law.range.items())

    def _best(self, flops: np.ndarray, parameters: Any) -> tuple[np.ndarray, np.ndarray]:
        """Size and loss [m] at budgets [m]; parameters are numbers or [m]. Power laws are convex in ln N."""

        def loss(log_size: np.ndarray) -> np.ndarray:
            size = np.exp(log_size)
            columns = {"params_total": size / self.law.active_share, "tokens": flops / self.flops_per_token(size)}
            if self.granularity is not None:
                columns["granularity"] = np.asarray(float(self.granularity))
            return self.law.form.predict(columns, parameters)

        low = np.zeros_like(flops)
        high = np.log(np.maximum(flops, 10.0))
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        at_left, at_right = loss(left), loss(right)
        for _ in range(_NARROWINGS):
            down = at_left < at_right
            low, high = np.where(down, low, left), np.where(down, right, high)
            probe = np.where(down, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
            value = loss(probe)
            left, right = np.where(down, probe, right), np.where(down, left, probe)
            at_left, at_right = np.where(down, value, at_right), np.where(down, at_left, value)
        middle = 0.5 * (low + high)
        return np.exp(middle), loss(middle)


class MinimaFrontier:
    """Straight lines in (ln C, ln L) through isoFLOP minima; beyond the ends, the line of the last two."""

    def __init__(self, minima: Sequence[Minimum]) -> None:
        """Take the minima of one architecture; those without a loss are left out.

        Raises:
            InputError: if fewer than two budgets are there, or a budget twice.
        """
        given = len(minima)
        known = [minimum for minimum in minima if 0 < minimum.loss < np.inf and 0 < minimum.flops < np.inf]
        lost = f", {given - len(known)} of them without a loss" if len(known) < given else ""
        minima = sorted(known, key=lambda minimum: minimum.flops)
        if len(minima) < 2 or min(len({m.budget for m in minima}), len({m.flops for m in minima})) < len(minima):
            raise InputError(
                f"minima has length {given}{lost}; a frontier needs those of one architecture at two "
                "budgets or more, each once."
            )
        self.log_flops = np.log([minimum.flops for minimum in minima])
        self.log_loss = np.log([[minimum.loss for minimum in minima]])
        loose = [exponent(minimum.budget) for minimum in minima if not minimum.inside]
        self.note = f"the minimum at {', '.join(loose)} FLOPs is not inside the sizes that were run." if loose else ""
        drawn = [minimum.loss_draws for minimum in minima]
        self.draws = np.log(np.stack(drawn, axis=1)) if all(len(each) for each in drawn) else np.zeros((0, len(minima)))

    def loss(self, flops: np.ndarray) -> np.ndarray:
        """Loss at each budget, nats per token."""
        return self._line(np.asarray(flops, dtype=float), self.log_loss)

    def loss_draws(self, flops: np.ndarray) -> np.ndarray:
        """Loss [B] under each draw at a budget, one or [B]; empty where a minimum has no draws."""
        return self._line(np.broadcast_to(np.asarray(flops, dtype=float), (len(self.draws),)), self.draws)

    def inside(self, flops: float) -> bool:
        """Whether the budget lies between the smallest and the largest that was run."""
        return bool(self.log_flops[0] - 1e-3 <= np.log(flops) <= self.log_flops[-1] + 1e-3)

    def _line(self, flops: np.ndarray, log_loss: np.ndarray) -> np.ndarray:
        x = np.log(flops)
        piece = np.clip(np.searchsorted(self.log_flops, x) - 1, 0, len(self.log_flops) - 2)
        rows = np.arange(len(x)) if len(log_loss) == len(x) else np.zeros(len(x), dtype=int)
        low, high = log_loss[rows, piece], log_loss[rows, piece + 1]
        share = (x - self.log_flops[piece]) / (self.log_flops[piece + 1] - self.log_flops[piece])
        return np.asarray(np.exp(low + share * (high - low)))


Frontier = LawFrontier | MinimaFrontier


@dataclass(frozen=True, kw_only=True)
class Multiplier:
    """How many times the FLOPs a dense model needs for the loss that an MoE reaches at one budget."""

    flops: float
    """What the MoE spends."""
    value: float
    """dense_flops / flops; infinite where no dense budget reaches the loss."""
    interval: tuple[float, float] | None
    """From draws of both frontiers, paired; an end may be infinite. None where either has no draws."""
    loss: float
    """The MoE's compute-optimal loss at `flops`, nats per token."""
    dense_flops: float
    """What a compute-optimal dense model spends for this loss."""
    extrapolated: bool
    """Whether `flops` or `dense_flops` stands outside of the runs behind the frontiers."""
    message: str
    """What to know before quoting it; empty if nothing."""
    draws: np.ndarray = field(repr=False, compare=False)
    """Draws of the value [B]."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON, without the draws."""
        return {name: value for name, value in vars(self).items() if name != "draws"}


def efficiency_multiplier(
    dense: Fit | Law | Sequence[Minimum] | Frontier,
    moe: Fit | Law | Sequence[Minimum] | Frontier,
    flops: float,
    *,
    granularity: float | None = None,
    level: float = 0.9,
) -> Multiplier:
    """Compare two compute-optimal frontiers at equal loss.

    Args:
        dense: the dense models' law, fit, isoFLOP minima or frontier.
        moe: likewise of the MoE. Draw i of the two is paired, so that what they share (see fit_shared) cancels.
        flops: budget of the MoE.
        granularity: G of the MoE, for a law that knows it.
        level: of the interval.

    Raises:
        InputError: if flops or level is out of range, or a frontier cannot be made.
    """
    if not 0 < flops < np.inf:
        raise InputError(f"flops is {flops:g}; it must be positive and finite.")
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}; it must be between 0 and 1.")
    ours, theirs = _frontier(dense, None), _frontier(moe, granularity)
    loss = float(theirs.loss(np.array([flops]))[0])
    value = float(_budget_ratio(ours.loss, np.array([loss]), flops)[0])
    moe_losses = theirs.loss_draws(np.array(flops))
    dense_count = len(ours.loss_draws(np.array(flops)))
    draws = np.zeros(0)
    if len(moe_losses) and dense_count:
        count = min(len(moe_losses), dense_count)
        targets = np.resize(moe_losses[:count], dense_count)
        draws = _budget_ratio(ours.loss_draws, targets, flops)[:count]
    notes = [note for note in (ours.note, theirs.note) if note]
    extrapolated = not theirs.inside(flops)
    if extrapolated:
        notes.append(f"the best MoE at {exponent(flops)} FLOPs is outside of the MoE's runs.")
    if not np.isfinite(value):
        extrapolated = True
        notes.append("no dense budget within reach gives this loss, which lies below the dense runs' asymptote.")
    elif not ours.inside(flops * value):
        extrapolated = True
        notes.append(f"the best dense model at {exponent(flops * value)} FLOPs is outside of the dense runs.")
    return Multiplier(
        flops=flops,
        value=value,
        interval=_interval(draws, level),
        loss=loss,
        dense_flops=flops * value,
        extrapolated=extrapolated,
        message=" ".join(note[0].upper() + note[1:] for note in notes),
        draws=draws,
    )


def _frontier(source: Fit | Law | Sequence[Minimum] | Frontier, granularity: float | None) -> Frontier:
    if isinstance(source, (LawFrontier, MinimaFrontier)):
        return source
    if isinstance(source, (Fit, Law)):
        return LawFrontier(source, granularity=granularity)
    return MinimaFrontier(source)


def _budget_ratio(loss_at: Callable[[np.ndarray], np.ndarray], targets: np.ndarray, flops: float) -> np.ndarray:
    """Budget / flops [B] at which each target loss [B] is reached; inf where none is, NaN where a loss is none."""
    low, high = (np.full(len(targets), end) for end in _REACH)
    at_most = loss_at(flops * np.exp(high))
    reached = at_most <= targets
    above = loss_at(flops * np.exp(low)) >= targets
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        enough = loss_at(flops * np.exp(middle)) <= targets
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    ratio = np.where(reached, np.where(above, np.exp(0.5 * (low + high)), 0.0), np.inf)
    return np.where(np.isfinite(targets) & np.isfinite(at_most), ratio, np.nan)


def _cost(fit: Fit, granularity: float | None) -> tuple[float, float]:
    """k and e of training FLOPs per token = k·params_active^e through a fit's rows (of one granularity)."""
    runs = fit.runs
    if granularity is not None:
        same = np.isclose(runs.numeric("granularity"), granularity)
        if not same.any():
            present = ", ".join(f"{value:g}" for value in np.unique(runs.numeric("granularity")))
            raise InputError(f"granularity is {granularity:g}, which no run has; there are {present}.")
        runs = runs.where(same)
    size = np.log(runs.numeric("params_active"))
    cost = np.log(runs.numeric("flops") / runs.numeric("tokens"))
    if np.ptp(size) < 1e-6:
        return float(np.exp(np.mean(cost - size))), 1.0
    power, offset = np.polyfit(size, cost, 1)
    return float(np.exp(offset)), float(power)


def _interval(draws: np.ndarray, level: float) -> tuple[float, float] | None:
    """Central interval of the draws; None where there are none, or more of them than a tail have no value."""
    tail = (1 - level) / 2
    if not len(draws) or np.mean(np.isnan(draws)) > tail:
        return None
    draws = np.sort(draws[~np.isnan(draws)])
    low, high = (draws[int(np.clip(round(share * (len(draws) - 1)), 0, len(draws) - 1))] for share in (tail, 1 - tail))
    return float(low), float(high)
