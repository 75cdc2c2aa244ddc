"""The architectures of a plan as functions of a size that need not be a rung, for smooth lines."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from isoflop.errors import InputError
from isoflop.laws import Fit, Law, published
from isoflop.planner import Plan, PlanRow, continuous, ladder
from isoflop.planner.families import ContinuousFamily, Family
from isoflop.planner.losses import LossLaw, constants, knows_uncertainty, law_columns, predict
from isoflop.planner.problem import Columns, Problem

_COARSE, _FINE = 120, 17
_PER_SIZE = frozenset({"params_total", "params_router", "params_embedding", "memory_bytes", "decode_ms"})
"""Columns that grow with the size beyond the models that a trend goes through, beside FLOPs per token."""


@dataclass(frozen=True, kw_only=True)
class PlanFamily:
    """One architecture of a plan, of any size, under the plan's limits."""

    row: PlanRow
    """Its best row."""
    family: Family
    problem: Problem

    @property
    def law(self) -> LossLaw:
        """The law of its loss."""
        return self.family.law

    @property
    def fit(self) -> Fit | None:
        """The law with its uncertainty, where that is known."""
        return self.law if knows_uncertainty(self.law) else None

    @property
    def n_draws(self) -> int:
        """Draws of the fit; 0 without its uncertainty."""
        return 0 if self.fit is None else len(next(iter(self.fit.draws.values())))

    def thinned(self, most: int) -> "PlanFamily":
        """The same with at most this many draws, the first: so those of fits that share resamples stay paired."""
        if self.fit is None or self.n_draws <= most:
            return self
        law = replace(self.fit, draws={name: draws[:most] for name, draws in self.fit.draws.items()})
        return replace(self, family=replace(self.family, law=law))

    def columns(
        self, size: np.ndarray, *, flops: np.ndarray | None = None, tokens: np.ndarray | float | None = None
    ) -> Columns:
        """All columns of models with these active parameters, on a budget (the plan's) or trained on these tokens."""
        sized = self._sized(np.asarray(size, dtype=float))
        if tokens is None:
            found = self.problem.spend(sized, whole=False, flops=flops)
        else:
            found = self.problem.trained(sized, tokens * np.ones_like(sized["params_active"]))
        # a law has no loss without a token; `allowed` knows
        spent = ("tokens", "unique_tokens", "tokens_effective", "flops")
        return {**found, **{name: np.maximum(found[name], 1.0) for name in spent}}

    def allowed(self, columns: Columns) -> np.ndarray:
        """Mask of the models that the plan's limits allow, and that see one sequence at least."""
        limits = self.problem.constraints
        enough = columns["tokens"] >= self.row.template.context
        return np.asarray(limits.admits(self.family.limited(columns)) & enough)

    def loss(self, columns: Columns) -> np.ndarray:
        """Predicted loss, in the shape of the columns, whether allowed or not."""
        return predict(self.law, columns)

    def draws(self, columns: Columns) -> np.ndarray:
        """Predicted loss under every draw of the fit, [B, n, …] from columns [n, …] or [B, n, …] of at least 2 axes."""
        assert self.fit is not None
        axes = 2 if next(iter(columns.values())).ndim > 1 else 1
        shape = (-1, *(1,) * axes)
        drawn = {name: values.reshape(shape) for name, values in self.fit.draws.items()}
        return self.fit.form.predict(law_columns(self.fit, columns), drawn)

    def interval(self, columns: Columns) -> tuple[np.ndarray, np.ndarray] | None:
        """90% prediction interval [n] of columns [n]; None where the law comes without its uncertainty."""
        return None if self.fit is None else self.fit.predict_interval(law_columns(self.fit, columns))

    def optimum(self, flops: np.ndarray, *, drawn: bool = False) -> np.ndarray:
        """Active parameters of the best allowed models at budgets [n]; under every draw, [B, n], if `drawn`."""
        low = np.full_like(flops, float(self._rungs["params_active"][0]))
        high = np.maximum(flops / (6 * self.row.template.context), low)
        size = self._lowest(flops, low, high, _COARSE, drawn)
        step = (high / low) ** (1 / (_COARSE - 1))
        for _ in range(3):
            size = self._lowest(flops, np.maximum(low, size / step), np.minimum(high, size * step), _FINE, drawn)
            step = step ** (2 / (_FINE - 1))
        return size

    def _lowest(self, flops: np.ndarray, low: np.ndarray, high: np.ndarray, points: int, drawn: bool) -> np.ndarray:
        """Where the loss is least among allowed sizes between low and high, [n], or both [B, n]."""
        share = np.linspace(0.0, 1.0, points)
        size = np.exp(np.log(low)[..., None] + share * np.log(high / low)[..., None])
        columns = self.columns(size, flops=flops[..., None])
        loss = self.draws(columns) if drawn else self.loss(columns)
        best = np.argmin(np.where(np.isfinite(loss) & self.allowed(columns), loss, np.inf), axis=-1)
        size = np.broadcast_to(size, loss.shape)
        return np.take_along_axis(size, best[..., None], axis=-1)[..., 0]

    def _sized(self, size: np.ndarray) -> Columns:
        if isinstance(self.family, ContinuousFamily):
            return self.family.sized(size, self.problem)
        middle, half, trends = self._trends
        place = np.clip((np.log(size) - middle) / half, -1.0, 1.0)
        found = {"params_active": size}
        for name, (coefficients, grows) in trends.items():
            values = np.exp(np.polynomial.polynomial.polyval(place, coefficients))
            found[name] = np.asarray(values * size if grows else values)
        return found | {name: np.full_like(size, value) for name, value in self._constants.items()}

    @cached_property
    def _constants(self) -> dict[str, float]:
        """Columns that have one value at every size."""
        return {
            name: float(values[0])
            for name, values in self._rungs.items()
            if name != "params_active" and np.all(values == values[0])
        }

    @cached_property
    def _trends(self) -> tuple[float, float, dict[str, tuple[np.ndarray, bool]]]:
        """Cubics in ln size through ln of the integer models' columns (of their ratio to the size, for counts).

        Integer shapes scatter about them by some percent; beyond them they stay what they are at the last.
        """
        sizes = self._rungs["params_active"]
        middle, half = np.log(sizes[-1] * sizes[0]) / 2, max(np.log(sizes[-1] / sizes[0]) / 2, 1e-9)
        place = (np.log(sizes) - middle) / half
        degree = min(3, len(sizes) - 1)
        trends = {}
        for name, values in self._rungs.items():
            if name == "params_active" or name in self._constants:
                continue
            grows = name in _PER_SIZE or name.endswith("flops_per_token")
            logs = np.log(values / sizes if grows else values)
            trends[name] = (np.polynomial.polynomial.polyfit(place, logs, degree), grows)
        return float(middle), float(half), trends

    @cached_property
    def _rungs(self) -> Columns:
        """Columns of the integer models from far below to far beyond the best; continuous shapes: the smallest size."""
        if isinstance(self.family, ContinuousFamily):
            return {"params_active": np.array([continuous.SMALLEST])}
        best = self.row.params_active
        counted = self.family.counted(ladder(self.row.template, largest=64 * best), self.problem)
        near = counted["params_active"] >= best / 4096
        near[-1] = True
        return {name: values[near] for name, values in counted.items()}


def families_of(plan: Plan, laws: str | LossLaw | Mapping[str, LossLaw]) -> list[PlanFamily]:
    """The architectures of a plan, best first.

    Raises:
        InputError: if the laws are not those that the plan was made with.
    """
    if isinstance(laws, str):
        laws = published(laws)
    named = {"": laws} if isinstance(laws, (Law, Fit)) else dict(laws)
    # predictions far off add warnings to a fit, which drawing must not
    quiet = {name: replace(law, warnings=list(law.warnings)) for name, law in named.items()}
    best: dict[str, PlanRow] = {}
    for row in plan.table:
        best.setdefault(row.architecture, row)
    known = {family.name: family for family in plan.families}
    assert plan.problem is not None
    return [
        PlanFamily(row=row, family=replace(known[name], law=_law_of(row, quiet)), problem=plan.problem)
        for name, row in best.items()
    ]


def _law_of(row: PlanRow, laws: Mapping[str, LossLaw]) -> LossLaw:
    """The law under the architecture's name, else its family's, else the only one that holds for its experts."""
    for key in (row.architecture, row.template.family):
        if key in laws:
            return laws[key]
    fitting = [law for law in laws.values() if _holds(law, row)]
    if not fitting:
        raise InputError(f"laws has {', '.join(laws)}, none of which holds for {row.architecture} of the plan.")
    return fitting[0]


def _holds(law: LossLaw, row: PlanRow) -> bool:
    fixed = constants(law).fixed
    return all(abs(getattr(row, name, value) - value) <= 1e-6 * abs(value) for name, value in fixed.items())
