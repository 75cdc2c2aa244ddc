"""Mixture of experts against dense models: how many times the FLOPs, and from which budget on."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from isoflop.laws import Fit, Law, LawFrontier, Multiplier, efficiency_multiplier, exponent
from isoflop.planner.losses import LossLaw, constants, is_known, law_columns
from isoflop.planner.problem import Columns

if TYPE_CHECKING:
    from isoflop.planner.families import Family

_DRAWS: Final = 200
"""Draws of each fit behind the interval of a multiplier."""

_REACH: Final = (1e-6, 1e6)
"""Budgets, as multiples of the plan's, among which the break-even is sought."""

_BUDGETS: Final = 241

_BELOW, _ABOVE, _FINE, _COARSER = 14.0, 31.0, 0.05, 10
"""Tabulated budgets: ln C below and above the plan's (as far as an equal loss is sought), its step, steps for draws."""

_COST: Final = frozenset({"training_flops_per_token"})


@dataclass(frozen=True, kw_only=True)
class DenseComparison:
    """The plan's best MoE family against the dense one, both compute-optimal and without limits."""

    dense: str
    """Architecture of the dense family."""
    moe: str
    """Architecture of the MoE family."""
    multiplier: Multiplier
    """How many times the FLOPs the dense model needs for the MoE's loss at the plan's budget."""
    break_even: float | None
    """Budget from which on the MoE has the lower loss; None where it has it, or lacks it, at every budget sought."""
    break_even_supported: bool
    """Whether both laws have runs there."""
    message: str
    """All of it in one sentence."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return {**vars(self), "multiplier": self.multiplier.to_dict()}


def compare_with_dense(
    dense: "Family", moe: "Family", flops: float, *, level: float, limited: bool = False
) -> DenseComparison:
    """Compare two families at a budget, and find the budget at which they are equally good.

    Args:
        dense: the dense family.
        moe: the other.
        flops: budget of the MoE.
        level: of the interval, which pairs the draws of both fits.
        limited: whether the plan has limits, which are left out here: the message then says so.
    """
    ours, theirs = _Frontier(dense, flops), _Frontier(moe, flops)
    found = efficiency_multiplier(ours, theirs, flops, level=level)
    budgets = flops * np.geomspace(*_REACH, _BUDGETS)
    ahead = ours.loss(budgets) - theirs.loss(budgets)
    where = np.flatnonzero((ahead[:-1] <= 0) & (ahead[1:] > 0))
    break_even, supported = None, False
    if len(where):
        at = int(where[-1])
        share = ahead[at] / (ahead[at] - ahead[at + 1])
        break_even = float(np.exp(np.log(budgets[at]) + share * np.log(budgets[at + 1] / budgets[at])))
        supported = ours.inside(break_even) and theirs.inside(break_even)
    return DenseComparison(
        dense=dense.name,
        moe=moe.name,
        multiplier=found,
        break_even=break_even,
        break_even_supported=supported,
        message=("limits left out, " if limited else "")
        + _sentence(dense.name, moe.name, found, level, budgets, ahead, break_even, supported)
        + _unsure(dense, moe),
    )


def _sentence(
    dense: str,
    moe: str,
    found: Multiplier,
    level: float,
    budgets: np.ndarray,
    ahead: np.ndarray,
    break_even: float | None,
    supported: bool,
) -> str:
    interval = "" if found.interval is None else f" ({level:.0%} {found.interval[0]:.3g} to {found.interval[1]:.3g})"
    far = ", outside of the runs" if found.extrapolated else ""
    first = f"{dense} needs {found.value:.3g}{interval} times the FLOPs for the loss of {moe}{far}"
    if not np.isfinite(found.value):
        first = f"no budget within reach gives {dense} the loss of {moe}"
    if break_even is not None:
        where = "" if supported else ", where the laws have no runs"
        return f"{first}; {moe} wins from {exponent(break_even)} FLOPs on{where}."
    wins = "at every" if np.all(ahead > 0) else "at no"
    if np.any(ahead > 0) and not np.all(ahead > 0):
        return f"{first}; {moe} wins up to {exponent(float(budgets[ahead > 0].max()))} FLOPs."
    return f"{first}; {moe} wins {wins} budget from {exponent(float(budgets[0]))} to {exponent(float(budgets[-1]))}."


def _unsure(dense: "Family", moe: "Family") -> str:
    loose = dict.fromkeys(each.name for each in (dense, moe) if not is_known(each.law))
    return f" The runs do not identify the law behind {' and '.join(loose)}: do not rely on it." if loose else ""


class _Frontier(LawFrontier):
    """The compute-optimal frontier of a family, whose law may read any column that the family has."""

    def __init__(self, family: "Family", flops: float) -> None:
        law = _thinned(family.law)
        asked = _COST | {"params_active", "params_total", "params_router", "params_embedding"}
        asked |= {*constants(law).form.columns}

        def shapes(params: np.ndarray) -> Columns:
            return law_columns(family.law, family.costs(params, asked))

        super().__init__(law, shapes=shapes)
        self.log_budgets = np.arange(np.log(flops) - _BELOW, np.log(flops) + _ABOVE, _FINE)
        self.losses = self._best(np.exp(self.log_budgets), self.law.parameters)[1][None]
        self.draws = self._draws()

    def loss(self, flops: np.ndarray) -> np.ndarray:
        """Loss at each budget, nats per token: straight lines in ln C between budgets e^0.05 apart."""
        return _between(np.log(flops), self.log_budgets, self.losses)

    def loss_draws(self, flops: np.ndarray) -> np.ndarray:
        """Loss [B] under each draw at a budget, one or [B]: likewise between budgets e^0.5 apart."""
        at = np.broadcast_to(np.log(flops), (len(self.draws),))
        return _between(at, self.log_budgets[::_COARSER], self.draws)

    def _draws(self) -> np.ndarray:
        """Loss [B, budgets] under each draw, all in one go: solving for each alone takes most of a second."""
        if self.fit is None or not self.fit.draws:
            return np.zeros((0, 2))
        budgets = self.log_budgets[::_COARSER]
        count = len(next(iter(self.fit.draws.values())))
        repeated = {name: np.repeat(values, len(budgets)) for name, values in self.fit.draws.items()}
        return self._best(np.exp(np.tile(budgets, count)), repeated)[1].reshape(count, len(budgets))


def _between(at: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """y [B or 1, n] at [B] on straight lines between evenly spaced x [n]."""
    place = np.clip((at - x[0]) / (x[1] - x[0]), 0, len(x) - 1.000001)
    below = place.astype(int)
    rows = np.arange(len(at)) if len(y) == len(at) else np.zeros(len(at), dtype=int)
    return np.asarray(y[rows, below] + (place - below) * (y[rows, below + 1] - y[rows, below]))


def _thinned(law: LossLaw) -> Law | Fit:
    """The law with the first draws alone, so that those of fits that share resamples stay paired."""
    if isinstance(law, Fit):
        draws = {name: values[:_DRAWS] for name, values in law.draws.items()}
        return replace(law, draws=draws, warnings=[])
    return replace(law, warnings=[])
