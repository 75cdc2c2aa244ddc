"""Compute-optimal frontiers: the lowest loss L(C) of a law, or through isoFLOP minima."""

from collections.abc import Callable, Mapping, Sequence
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
_BESIDE = 1.1  # a best size this factor beyond those that ran still counts as theirs

_PAPERS_RATIO = 2.0  # FLOPs of experts / FLOPs of attention with d_ff = 4·d_model
_SPENT = ("tokens", "unique_tokens", "flops")

FlopsPerToken = Callable[[np.ndarray], np.ndarray]
"""Training FLOPs per token from params_active."""

Shapes = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Columns that do not depend on the budget, and training_flops_per_token, from params_active."""


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
        self,
        law: Law | Fit,
        *,
        granularity: float | None = None,
        expansion_rate: float | None = None,
        flops_per_token: FlopsPerToken | None = None,
        shapes: Shapes | None = None,
    ) -> None:
        """Say which models the budget is spent on.

        Args:
            law: a law, or a fit, whose bootstrap then gives the interval.
            granularity: G, for a law that knows it; default: that of the fit's rows, if they have one.
            expansion_rate: E, for a law that knows it or the sparsity; likewise.
            flops_per_token: training FLOPs per token from params_active. Default: for a fit, the power law
                k·params_active^e through its rows (so that whatever FLOPs they count are counted here); else
                6·params_active.
            shapes: in place of all three, what models of a size are: the columns that the law reads (but tokens,
                unique_tokens and flops), as the law means them, params_total, and training_flops_per_token.

        Raises:
            InputError: if the law does not predict the loss or reads no tokens, knows G or E and none is given, or
                reads columns that nothing here says.
        """
        self.law = law.law if isinstance(law, Fit) else law
        self.fit = law if isinstance(law, Fit) else None
        form = self.law.form
        if form.target != "loss":
            raise InputError(f"law {self.law.name} predicts {form.target}; a frontier needs a law of the loss.")
        if not {"tokens", "flops"} & set(form.columns):
            raise InputError(
                f"law {self.law.name} reads neither tokens nor flops, so that the largest model would be the best at "
                "any budget; a frontier needs a law of size and tokens."
            )
        self.note = ""
        self.granularity = granularity
        if shapes is None:
            self.granularity = self._given("granularity", granularity, {"granularity"})
            rate = self._given("expansion_rate", expansion_rate, {"expansion_rate", "sparsity"})
            shapes = self._shapes(self.granularity, rate, flops_per_token)
        known = {*shapes(np.ones(1)), "params_active", "params_total", *_SPENT}
        unknown = [name for name in form.columns if name not in known]
        if unknown:
            raise InputError(
                f"law {self.law.name} reads {', '.join(unknown)}, which a frontier does not know of models of a size; "
                "it needs a law of "
                f"{', '.join(sorted((known - {'training_flops_per_token'}) | {'granularity', 'expansion_rate'}))}."
            )
        self.shapes = shapes

    def flops_per_token(self, params_active: np.ndarray) -> np.ndarray:
        """Training FLOPs per token of models with these active parameters."""
        return np.asarray(self.shapes(params_active)["training_flops_per_token"])

    def _given(self, name: str, value: float | None, names: set[str]) -> float | None:
        """The value of a column that was given; else the one that all rows of the fit have, if the law knows it."""
        known = bool(names & set(self.law.form.columns))
        if value is None and known and self.fit is not None and name in self.fit.runs:
            seen = np.unique(self.fit.runs.numeric(name))
            value = float(seen[0]) if len(seen) == 1 else None
        if known and value is None:
            raise InputError(f"{name} is missing; law {self.law.name} needs one for its frontier.")
        if value is not None and not 1 <= value < np.inf:
            raise InputError(f"{name} is {value:g}; it must be at least 1 and finite.")
        return value

    def _shapes(self, granularity: float | None, rate: float | None, cost: FlopsPerToken | None) -> Shapes:
        """Models of one architecture: what its rows of the fit have, else those of the papers."""
        reads = set(self.law.form.columns)
        share, constants = self.law.active_share, {"depth_capacity": 1.0, "expert_attention_ratio": _PAPERS_RATIO}
        if granularity is not None:
            constants["granularity"] = float(granularity)
        if rate is not None:
            constants |= {"expansion_rate": float(rate), "sparsity": 1 - 1 / rate}
            if self.fit is None and {"expansion_rate", "sparsity"} & reads:
                share = 12 / (8 * rate + 4)
        if self.fit is not None:
            own = _rows_of(self.fit, granularity, rate, needed=cost is None)
            if {"params_active", "params_total"} <= set(own.columns):
                share = float(np.median(own.numeric("params_active") / own.numeric("params_total")))
            constants |= {
                name: float(np.median(own.numeric(name)))
                for name in ("depth_capacity", "expert_attention_ratio")
                if name in reads and name in own
            }
        if cost is None:
            scale, power = (6.0, 1.0) if self.fit is None else _cost(own)
            if self.fit is None and self.law.convention != "6ND":
                self.note = (
                    f"law {self.law.name} counts FLOPs as {self.law.convention}; 6·params_active was taken here."
                )

            def cost(params: np.ndarray) -> np.ndarray:
                return np.asarray(scale * params**power)

        of_a_token = cost

        def shapes(params: np.ndarray) -> Mapping[str, np.ndarray]:
            return {
                "params_active": params,
                "params_total": params / share,
                "training_flops_per_token": of_a_token(params),
                **{name: np.asarray(value) for name, value in constants.items()},
            }

        return shapes

    def loss(self, flops: np.ndarray) -> np.ndarray:
        """Loss at each budget, nats per token."""
        return self._best(np.asarray(flops, dtype=float), self.law.parameters)[1]

    def optimum(self, flops: float) -> dict[str, float]:
        """The compute-optimal params_active, params_total, tokens and loss at one budget."""
        size, loss = self._best(np.array([flops]), self.law.parameters)
        columns = self._columns(size, np.array([flops]))
        return {
            "params_active": float(size[0]),
            "params_total": float(columns["params_total"][0]),
            "tokens": float(columns["tokens"][0]),
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
        budget = np.array([flops])
        best = self._columns(self._best(budget, self.law.parameters)[0], budget)
        return all(
            low <= float(np.ravel(best.get(name, low))[0]) <= high for name, (low, high) in self.law.range.items()
        )

    def _columns(self, size: np.ndarray, flops: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of models of these sizes that are trained for these budgets on fresh tokens."""
        shapes = self.shapes(size)
        tokens = flops / shapes["training_flops_per_token"]
        return {**shapes, "tokens": tokens, "unique_tokens": tokens, "flops": flops}

    def _best(self, flops: np.ndarray, parameters: Any) -> tuple[np.ndarray, np.ndarray]:
        """Size and loss [m] at budgets [m]; parameters are numbers or [m]. Power laws are convex in ln N."""

        def loss(log_size: np.ndarray) -> np.ndarray:
            return self.law.form.predict(self._columns(np.exp(log_size), flops), parameters)

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


def _rows_of(fit: Fit, granularity: float | None, expansion_rate: float | None, *, needed: bool) -> RunTable:
    """The rows of one architecture, as far as values are given; where none has them all rows, unless they are needed.

    An expansion rate is told from sparsity where it is absent.
    """
    own = fit.runs
    for name, value in (("granularity", granularity), ("expansion_rate", expansion_rate)):
        if value is None:
            continue
        if name in own:
            values = own.numeric(name)
        elif name == "expansion_rate" and "sparsity" in own:
            values = 1 / (1 - own.numeric("sparsity"))
        else:
            continue
        same = np.isclose(values, value)
        if same.any():
            own = own.where(same)
        elif needed:
            present = ", ".join(f"{each:g}" for each in np.unique(values))
            raise InputError(f"{name} is {value:g}, which no run has; there are {present}.")
    return own


def _cost(runs: RunTable) -> tuple[float, float]:
    """k and e of training FLOPs per token = k·params_active^e through rows of one architecture."""
    size = np.log(runs.numeric("params_active"))
    cost = np.log(runs.numeric("flops") / runs.numeric("tokens"))
    if np.ptp(size) < 1e-6:
        return float(np.exp(np.mean(cost - size))), 1.0
    power, offset = np.polyfit(size, cost, 1)
    return float(np.exp(offset)), float(power)
