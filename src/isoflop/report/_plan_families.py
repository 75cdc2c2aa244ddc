"""The architectures of a plan as functions of a size that need not be a rung, for smooth lines."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from isoflop.errors import InputError
from isoflop.laws import Fit, Law, published
from isoflop.planner import Plan, PlanRow, continuous, ladder
from isoflop.spec import count

LossLaw = Law | Fit
Columns = dict[str, np.ndarray]

_COUNTED = ("params_total", "params_active", "params_router", "expert_attention_ratio", "training_flops_per_token")
_COARSE, _FINE = 120, 17


@dataclass(frozen=True, kw_only=True)
class PlanFamily:
    """One architecture of a plan, of any size."""

    row: PlanRow
    """Its best row."""
    law: LossLaw
    convention: str

    @property
    def fit(self) -> Fit | None:
        """The law with its uncertainty, where that is known."""
        known = isinstance(self.law, Fit) and self.law.draws and self.law.n_rows > self.law.n_free
        return self.law if isinstance(self.law, Fit) and known else None

    @property
    def n_draws(self) -> int:
        """Draws of the fit; 0 without its uncertainty."""
        return 0 if self.fit is None else len(next(iter(self.fit.draws.values())))

    def thinned(self, most: int) -> "PlanFamily":
        """The same with at most this many draws, the first: so those of fits that share resamples stay paired."""
        if self.fit is None or self.n_draws <= most:
            return self
        return replace(self, law=replace(self.fit, draws={name: d[:most] for name, d in self.fit.draws.items()}))

    def columns(
        self, size: np.ndarray, *, flops: np.ndarray | float | None = None, tokens: np.ndarray | float | None = None
    ) -> Columns:
        """Standard columns of models with these active parameters, trained for these FLOPs or on these tokens."""
        columns = self._shapes(np.asarray(size, dtype=float))
        cost = columns.pop("training_flops_per_token")
        columns["tokens"] = flops / cost if tokens is None else tokens * np.ones_like(cost)
        columns["flops"] = columns["tokens"] * cost
        return columns

    def loss(self, columns: Columns) -> np.ndarray:
        """Predicted loss, in the shape of the columns."""
        law = self.law.law if isinstance(self.law, Fit) else self.law
        return law.form.predict(columns, law.parameters)

    def draws(self, columns: Columns) -> np.ndarray:
        """Predicted loss under every draw of the fit, [B, n, …] from columns [n, …] or [B, n, …] of at least 2 axes."""
        assert self.fit is not None
        axes = 2 if next(iter(columns.values())).ndim > 1 else 1
        shape = (-1, *(1,) * axes)
        return self.fit.form.predict(columns, {name: values.reshape(shape) for name, values in self.fit.draws.items()})

    def interval(self, columns: Columns) -> tuple[np.ndarray, np.ndarray] | None:
        """90% prediction interval [n] of columns [n]; None where the law comes without its uncertainty."""
        return None if self.fit is None else self.fit.predict_interval(columns)

    def optimum(self, flops: np.ndarray, *, drawn: bool = False) -> np.ndarray:
        """Compute-optimal active parameters at budgets [n]; under every draw, [B, n], if `drawn`."""
        low = np.full_like(flops, float(self._rungs["params_active"][0]))
        high = np.maximum(flops / (6 * self.row.template.context), low)
        size = self._lowest(flops, low, high, _COARSE, drawn)
        step = (high / low) ** (1 / (_COARSE - 1))
        for _ in range(2):
            size = self._lowest(flops, np.maximum(low, size / step), np.minimum(high, size * step), _FINE, drawn)
            step = step ** (2 / (_FINE - 1))
        return size

    def _lowest(self, flops: np.ndarray, low: np.ndarray, high: np.ndarray, points: int, drawn: bool) -> np.ndarray:
        """Where the loss is least among sizes between low and high, [n], or both [B, n]."""
        share = np.linspace(0.0, 1.0, points)
        size = np.exp(np.log(low)[..., None] + share * np.log(high / low)[..., None])
        columns = self.columns(size, flops=flops[..., None])
        loss = self.draws(columns) if drawn else self.loss(columns)
        best = np.argmin(np.where(np.isfinite(loss), loss, np.inf), axis=-1)
        size = np.broadcast_to(size, loss.shape)
        return np.take_along_axis(size, best[..., None], axis=-1)[..., 0]

    def _shapes(self, size: np.ndarray) -> Columns:
        if self.row.model is None:
            return continuous.shapes(
                size,
                convention=self.convention,
                granularity=self.row.granularity,
                expansion_rate=self.row.expansion_rate,
            )
        columns = {
            name: size * np.exp(self._trend(name, size)) for name in ("params_total", "training_flops_per_token")
        }
        columns["expert_attention_ratio"] = np.exp(self._trend("expert_attention_ratio", size))
        names = ("granularity", "expansion_rate", "n_experts", "top_k", "sparsity", "depth_capacity")
        constants = {name: np.full_like(size, getattr(self.row, name)) for name in names}
        return {"params_active": size, **columns, **constants}

    def _trend(self, name: str, size: np.ndarray) -> np.ndarray:
        """ln of a column (of its ratio to the size, for counts): a cubic in ln size through the integer models.

        Integer shapes scatter about it by some percent; beyond them it stays what it is at the last.
        """
        middle, half, coefficients = self._trends
        place = np.clip((np.log(size) - middle) / half, -1.0, 1.0)
        return np.asarray(np.polynomial.polynomial.polyval(place, coefficients[name]))

    @cached_property
    def _trends(self) -> tuple[float, float, dict[str, np.ndarray]]:
        sizes = self._rungs["params_active"]
        middle, half = np.log(sizes[-1] * sizes[0]) / 2, max(np.log(sizes[-1] / sizes[0]) / 2, 1e-9)
        place = (np.log(sizes) - middle) / half
        total = self._rungs["params_total"]
        law = self.law.law if isinstance(self.law, Fit) else self.law
        if law.convention == "krajewski":  # whose N leaves the router out
            total = total - self._rungs["params_router"]
        values = {
            "params_total": total / sizes,
            "training_flops_per_token": self._rungs["training_flops_per_token"] / sizes,
            "expert_attention_ratio": self._rungs["expert_attention_ratio"],
        }
        degree = min(3, len(sizes) - 1)
        fitted = {name: np.polynomial.polynomial.polyfit(place, np.log(each), degree) for name, each in values.items()}
        return float(middle), float(half), fitted

    @cached_property
    def _rungs(self) -> Columns:
        """Counts of the integer models from far below to far beyond the best; continuous shapes: the smallest."""
        if self.row.model is None:
            return {"params_active": np.array([continuous.SMALLEST])}
        best = self.row.params_active
        counts = [count(spec, convention=self.convention) for spec in ladder(self.row.template, largest=64 * best)]
        near = [each for each in counts if each.params_active >= best / 4096] or counts[-1:]
        return {name: np.array([getattr(each, name) for each in near], dtype=float) for name in _COUNTED}


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
    return [PlanFamily(row=row, law=_law_of(row, quiet), convention=plan.convention) for row in best.values()]


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
    fixed = law.law.fixed if isinstance(law, Fit) else law.fixed
    return all(abs(getattr(row, name, value) - value) <= 1e-6 * abs(value) for name, value in fixed.items())
