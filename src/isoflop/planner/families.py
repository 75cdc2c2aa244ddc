"""Families of candidates: at a budget each gives its rows and its curve of loss against size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from isoflop.laws import Fit, Law
from isoflop.planner import continuous
from isoflop.planner.constraints import Constraints
from isoflop.planner.ladder import ladder, sizes_around
from isoflop.planner.result import Curve, PlanRow
from isoflop.planner.template import Template
from isoflop.spec import DecoderSpec, count

Columns = dict[str, np.ndarray]

COLUMNS = (
    "params_total",
    "params_active",
    "tokens",
    "flops",
    "n_layers",
    "d_model",
    "granularity",
    "expansion_rate",
    "n_experts",
    "top_k",
    "sparsity",
    "expert_attention_ratio",
    "depth_capacity",
)
"""Columns that every candidate has, and so a law may read."""

_COUNTED = ("params_total", "params_active", "params_embedding", "params_router", "expert_attention_ratio")

_CURVE = 32.0
"""A continuous curve spans the optimal size divided and multiplied by this."""

_KEPT = 1.05
"""A family's rows whose loss exceeds its best by more than this factor are left out of the table."""


_WHOLE = (
    "params_total",
    "params_active",
    "params_embedding",
    "tokens",
    "n_layers",
    "d_model",
    "granularity",
    "n_experts",
    "top_k",
)
"""Columns that are whole numbers for a model that can be built."""


LossLaw = Law | Fit
"""Constants, with or without the uncertainty of a fit."""


def constants(law: LossLaw) -> Law:
    """The Law itself, or that of a Fit."""
    return law.law if isinstance(law, Fit) else law


def knows_uncertainty(law: LossLaw) -> TypeGuard[Fit]:
    """Whether the law can give prediction intervals: a fit with bootstrap draws, and rows to know the noise by."""
    return isinstance(law, Fit) and bool(law.draws) and law.n_rows > law.n_free


@dataclass(frozen=True, kw_only=True)
class ContinuousFamily:
    """The papers' continuous shapes at one granularity and expansion rate; its one row is its optimum."""

    name: str
    law: LossLaw
    convention: str
    granularity: int
    expansion_rate: float
    template: Template
    """Makes the nearest model that can be built."""

    def smallest(self) -> dict[str, float]:
        """The least that each limit can be."""
        low = continuous.SMALLEST
        return {
            "params_active": low,
            "params_total": low * (8 * self.expansion_rate + 4) / 12,
            "tokens": self.template.context,
        }

    def solve(self, flops: float, constraints: Constraints, level: float) -> tuple[list[PlanRow], Curve | None]:
        """The best size, and loss against size; no row if the constraints or the budget leave none."""
        smallest, largest = continuous.size_range(flops, self.template.context)
        if largest < smallest:
            return [], None

        def loss(sizes: np.ndarray) -> np.ndarray:
            columns = self._columns(sizes, flops, constraints)
            allowed = constraints.admits(columns) & (columns["tokens"] >= self.template.context)
            return np.where(allowed, _predict(self.law, columns), np.inf)

        size = continuous.minimise(loss, smallest, largest)
        if not np.isfinite(loss(np.array([size]))).all():
            return [], None
        columns = self._columns(np.array([size]), flops, constraints)
        rows = _rows(self, columns, _predict(self.law, columns), level, [None])
        sizes = np.geomspace(max(smallest, size / _CURVE), size * _CURVE, 201)
        return rows, Curve(architecture=self.name, params_active=sizes, loss=loss(sizes))

    def _columns(self, sizes: np.ndarray, flops: float, constraints: Constraints) -> Columns:
        columns = continuous.shapes(
            sizes,
            convention=self.convention,
            granularity=self.granularity,
            expansion_rate=self.expansion_rate,
        )
        per_token = columns.pop("training_flops_per_token")
        tokens = constraints.tokens(flops / per_token)
        return {**columns, "tokens": tokens, "flops": tokens * per_token}


@dataclass(frozen=True, kw_only=True)
class LadderFamily:
    """The integer models of a template, counted exactly; every rung is a row."""

    name: str
    law: LossLaw
    convention: str
    template: Template
    spacing: float

    def smallest(self) -> dict[str, float]:
        """The least that each limit can be."""
        counted = count(sizes_around(self.template, 1.0, 1)[0])
        return {
            "params_active": counted.params_active,
            "params_total": counted.params_total,
            "tokens": self.template.context,
        }

    def solve(self, flops: float, constraints: Constraints, level: float) -> tuple[list[PlanRow], Curve | None]:
        """The rungs near the best, and loss against size; no row if the constraints or the budget leave none."""
        largest = flops / (6 * self.template.context)
        specs = ladder(self.template, largest=largest, spacing=self.spacing)
        columns = self._columns(specs, flops, constraints)
        affordable = columns["tokens"] >= self.template.context
        specs = [spec for spec, keep in zip(specs, affordable, strict=True) if keep]
        columns = {name: values[affordable] for name, values in columns.items()}
        loss = np.where(constraints.admits(columns), _predict(self.law, columns), np.inf)
        if not np.isfinite(loss).any():
            return [], None
        kept = loss <= loss.min() * _KEPT
        rows = _rows(
            self,
            {name: values[kept] for name, values in columns.items()},
            loss[kept],
            level,
            [spec for spec, keep in zip(specs, kept, strict=True) if keep],
        )
        return rows, Curve(architecture=self.name, params_active=columns["params_active"], loss=loss)

    def _columns(self, specs: Sequence[DecoderSpec], flops: float, constraints: Constraints) -> Columns:
        counts = [count(spec, convention=self.convention) for spec in specs]
        per_token = np.array([counted.training_flops_per_token for counted in counts])
        tokens = np.floor(constraints.tokens(flops / per_token))
        experts = self.template.experts
        constant = {
            "granularity": experts.granularity if experts else 1,
            "expansion_rate": experts.expansion_rate if experts else 1,
            "n_experts": experts.n_experts if experts else 1,
            "top_k": experts.top_k if experts else 1,
            "sparsity": experts.sparsity if experts else 0,
            "depth_capacity": 1,
        }
        return {
            **{name: np.array([getattr(counted, name) for counted in counts], dtype=float) for name in _COUNTED},
            **{
                name: np.array([getattr(spec, name) for spec in specs], dtype=float) for name in ("n_layers", "d_model")
            },
            **{name: np.full_like(per_token, value) for name, value in constant.items()},
            "tokens": tokens,
            "flops": tokens * per_token,
        }


Family = ContinuousFamily | LadderFamily


def _predict(law: LossLaw, columns: Columns) -> np.ndarray:
    """Loss in nats per token."""
    law = constants(law)
    return law.form.predict(_law_columns(law, columns), law.parameters)


def _law_columns(law: Law, columns: Columns) -> Columns:
    """The columns as the law means them: N of the krajewski convention leaves the router out."""
    if law.convention == "krajewski" and "params_router" in columns:
        return {**columns, "params_total": columns["params_total"] - columns["params_router"]}
    return columns


def _rows(
    family: Family, columns: Columns, loss: np.ndarray, level: float, models: Sequence[DecoderSpec | None]
) -> list[PlanRow]:
    intervals: list[tuple[float, float] | None] = [None] * len(loss)
    if knows_uncertainty(family.law):
        low, high = family.law.predict_interval(_law_columns(family.law.law, columns), level=level)
        intervals = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    router = family.template.experts.router.kind if family.template.experts else "none"
    rows = []
    for index, model in enumerate(models):
        value: dict[str, Any] = {name: float(values[index]) for name, values in columns.items()}
        value.pop("params_router", None)
        for name in _WHOLE if model else ("granularity", "n_experts", "top_k"):
            value[name] = round(value[name])
        rows.append(
            PlanRow(
                **{"params_embedding": None, **value},
                architecture=family.name,
                flops_convention=family.convention,
                router=router,
                loss=float(loss[index]),
                loss_interval=intervals[index],
                template=family.template,
                model=model,
            )
        )
    return rows
