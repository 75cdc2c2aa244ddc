"""Families of candidates: at a budget each gives its rows and its curve of loss against size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Final, Self

import numpy as np

from isoflop.planner import continuous
from isoflop.planner.ladder import ladder, nearest, sizes_around
from isoflop.planner.losses import LossLaw, constants, counts_embedding, predict
from isoflop.planner.problem import Columns, Problem
from isoflop.planner.result import Curve, PlanRow
from isoflop.planner.rows import allowed, losses, rows_of
from isoflop.planner.sharding import memory_per_device
from isoflop.planner.template import Template
from isoflop.spec import Count, DecoderSpec, count

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
    "unique_tokens",
)
"""Columns that every candidate has, and so a law may read."""

_COUNTED = ("params_total", "params_active", "params_embedding", "params_router", "expert_attention_ratio")

_CURVE = 32.0
"""A continuous curve spans the optimal size divided and multiplied by this."""

_KEPT = 1.05
"""A family's rows whose loss exceeds its best by more than this factor are left out of the table."""

_NEAR: Final = 8
"""Integer models nearest to a size among which the best are sought."""

_SHRINK: Final = 0.9
"""Where too few integer models near a continuous shape are within the limits, they are sought at this factor of its
size, and again."""

_SMALLEST_SHARE: Final = 0.05
"""Down to this share of it."""

_COARSE: Final = 2.0
"""Spacing of the models between which costs of other sizes are interpolated."""

_COARSER: Final = 3.0
"""Likewise the memory of continuous shapes, which takes longer to count."""

_READ: Final = 2
"""Bytes of a number that decoding reads."""


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

    @property
    def n_experts(self) -> float:
        """Experts in a layer; 1: dense."""
        return self.granularity * self.expansion_rate

    @property
    def built(self) -> "LadderFamily":
        """The integer models of the family."""
        return LadderFamily(
            name=self.name, law=self.law, convention=self.convention, template=self.template, spacing=_COARSE
        )

    def certain(self) -> Self:
        """The family without the uncertainty of its law, which takes time to spell out."""
        return replace(self, law=constants(self.law))

    def smallest(self, problem: Problem) -> dict[str, float]:
        """The least that each limit can be."""
        columns = self.limited(self._columns(np.array([continuous.SMALLEST]), problem))
        least = {name: float(values[0]) for name, values in columns.items()}
        return {**least, "tokens": self.template.context}

    def solve(self, problem: Problem) -> tuple[list[PlanRow], Curve | None]:
        """The best size, and loss against size; no row if the constraints or the budget leave none."""
        smallest, largest = continuous.size_range(problem.flops, self.template.context)
        if largest < smallest:
            return [], None

        def loss(sizes: np.ndarray) -> np.ndarray:
            return losses(self, self._columns(sizes, problem), problem)

        size = continuous.minimise(loss, smallest, largest)
        if not np.isfinite(loss(np.array([size]))).all():
            return [], None
        columns = self._columns(np.array([size]), problem)
        rows = rows_of(self, columns, predict(self.law, columns), problem, [None])
        sizes = np.geomspace(max(smallest, size / _CURVE), size * _CURVE, 201)
        return rows, Curve(architecture=self.name, params_active=sizes, loss=loss(sizes))

    def models(self, row: PlanRow, problem: Problem, n: int) -> list[PlanRow]:
        """Of the integer models near a row, counted exactly at its budget, the `n` best that the limits allow.

        Where a limit binds, most of the nearest are beyond it, and smaller ones are looked at as well.
        """
        family = self.built
        found: dict[DecoderSpec, PlanRow] = {}
        tried: set[DecoderSpec] = set()
        share = 1.0
        while len(found) < n and share > _SMALLEST_SHARE:
            near = nearest(self.template, share * row.params_active, _NEAR, with_embedding=row.with_embedding)
            specs = [spec for spec in near if spec not in tried]
            tried.update(specs)
            found |= {each.spec: each for each in family.rows(specs, problem)} if specs else {}
            share *= _SHRINK
        return sorted(found.values(), key=lambda each: each.loss)[:n]

    def bounds(self, problem: Problem) -> tuple[float, float] | None:
        """Smallest and largest size that can be considered; None where there is none."""
        smallest, largest = continuous.size_range(problem.flops, self.template.context)
        return None if largest <= smallest else (smallest, largest)

    def sized_within(self, sizes: np.ndarray, problem: Problem) -> tuple[Columns, np.ndarray]:
        """The columns of models of these sizes on the budget, and which of them limits and budget allow."""
        columns = self._columns(sizes, problem)
        return columns, allowed(self, columns, problem)

    def limited(self, columns: Columns) -> Columns:
        """The columns as limits mean them: parameters with the router and without embedding and head."""
        routers = columns["d_model"] * columns["n_layers"] * self.n_experts if self.n_experts > 1 else 0.0
        size = columns["params_active"]
        embedding = size - continuous.without_embedding(size, self._embedding_rows)
        return {**columns, **{name: columns[name] + routers - embedding for name in ("params_total", "params_active")}}

    @property
    def _embedding_rows(self) -> float:
        """Vectors of d_model that N holds beside the matrices of the blocks."""
        return self.template.vocab_size * (1 if self.template.tied_head else 2) * counts_embedding(self.law)

    def costs(self, sizes: np.ndarray, only: frozenset[str] = frozenset()) -> Columns:
        """Columns that do not depend on the budget, and what a token costs, at these active parameters."""
        return continuous.shapes(
            sizes,
            convention=self.convention,
            granularity=self.granularity,
            expansion_rate=self.expansion_rate,
            embedding_rows=self._embedding_rows,
        )

    def _columns(self, sizes: np.ndarray, problem: Problem) -> Columns:
        return problem.spend(self.sized(sizes, problem), whole=False)

    def sized(self, sizes: np.ndarray, problem: Problem) -> Columns:
        """All columns that do not depend on the budget: `costs`, the time of a token and the memory."""
        found = self.costs(sizes)
        if problem.bandwidth is not None:
            d_model, n_layers = found["d_model"], found["n_layers"]
            weights = sizes + self.template.vocab_size * d_model * (not counts_embedding(self.law))
            weights = weights + (d_model * n_layers * self.n_experts if self.n_experts > 1 else 0)
            cache = 2 * n_layers * d_model * self.template.context
            found["decode_ms"] = (weights + cache) * _READ / problem.bandwidth * 1e3
        if problem.needs_memory:
            known, bytes_needed = _memory_curve(self.template, tuple(problem.memory_settings.items()))
            at, below = np.log(continuous.without_embedding(sizes, self._embedding_rows)), np.log(known)
            beyond = np.maximum(at - below[-1], 0.0)  # memory grows no faster than parameters
            found["memory_bytes"] = np.exp(np.interp(at, below, np.log(bytes_needed)) + beyond)
        return found


@dataclass(frozen=True, kw_only=True)
class LadderFamily:
    """The integer models of a template, counted exactly; every rung is a row."""

    name: str
    law: LossLaw
    convention: str
    template: Template
    spacing: float

    @property
    def n_experts(self) -> float:
        """Experts in a layer; 1: dense."""
        return self.template.experts.n_experts if self.template.experts else 1

    def certain(self) -> Self:
        """The family without the uncertainty of its law, which takes time to spell out."""
        return replace(self, law=constants(self.law))

    def smallest(self, problem: Problem) -> dict[str, float]:
        """The least that each limit can be."""
        columns = self._columns(sizes_around(self.template, 1.0, 1), problem)
        least = {name: float(values[0]) for name, values in columns.items()}
        return {**least, "tokens": self.template.context}

    def solve(self, problem: Problem) -> tuple[list[PlanRow], Curve | None]:
        """The rungs near the best, and loss against size; no row if the constraints or the budget leave none."""
        specs, columns = self._rungs_of(problem)
        loss = losses(self, columns, problem)
        if not np.isfinite(loss).any():
            return [], None
        kept = loss <= loss.min() * _KEPT
        rows = rows_of(
            self,
            {name: values[kept] for name, values in columns.items()},
            loss[kept],
            problem,
            [spec for spec, keep in zip(specs, kept, strict=True) if keep],
        )
        return rows, Curve(architecture=self.name, params_active=columns["params_active"], loss=loss)

    def _rungs_of(self, problem: Problem) -> tuple[list[DecoderSpec], Columns]:
        """The rungs that the budget trains on a sequence at least."""
        largest = problem.flops / (6 * self.template.context)
        specs = ladder(self.template, largest=largest, spacing=self.spacing)
        columns = self._columns(specs, problem)
        affordable = columns["tokens"] >= self.template.context
        kept = [spec for spec, keep in zip(specs, affordable, strict=True) if keep]
        return kept, {name: values[affordable] for name, values in columns.items()}

    def rows(self, specs: Sequence[DecoderSpec], problem: Problem) -> list[PlanRow]:
        """These models of the template as rows; those that limits and budget allow."""
        columns = self._columns(specs, problem)
        kept = np.isfinite(losses(self, columns, problem))
        columns = {name: values[kept] for name, values in columns.items()}
        models = [spec for spec, keep in zip(specs, kept, strict=True) if keep]
        return rows_of(self, columns, predict(self.law, columns), problem, models)

    def bounds(self, problem: Problem) -> tuple[float, float] | None:
        """Sizes of the smallest and the largest rung that limits and budget allow; None where there are not two."""
        _, columns = self._rungs_of(problem)
        sizes = columns["params_active"][allowed(self, columns, problem)]
        return None if len(sizes) < 2 else (float(sizes.min()), float(sizes.max()))

    def sized_within(self, sizes: np.ndarray, problem: Problem) -> tuple[Columns, np.ndarray]:
        """The columns of models of any sizes within `bounds` on the budget, interpolated, and that all are allowed."""
        return problem.spend(self.costs(sizes), whole=False), np.ones(len(sizes), dtype=bool)

    def limited(self, columns: Columns) -> Columns:
        """The columns as limits mean them: as they are."""
        return columns

    def costs(self, sizes: np.ndarray, only: frozenset[str] = frozenset()) -> Columns:
        """Columns that do not depend on the budget, and what a token costs, interpolated between the rungs.

        Straight lines in logarithms of each column's ratio to the size; beyond the rungs the ratio of the outermost.
        Where `only` names columns the others are left out, to save time.
        """
        rungs, constant = self._rungs
        at, known = np.log(sizes), np.log(rungs["params_active"])
        found: Columns = {}
        for name, values in rungs.items():
            if only and name not in only:
                continue
            if name in ("expert_attention_ratio", "expert_share"):
                found[name] = np.interp(at, known, values)
            else:
                ratio = np.log(np.maximum(values, 1e-9)) - known
                found[name] = np.exp(np.interp(at, known, ratio) + at)
        return {**found, **{name: np.full_like(at, value) for name, value in constant.items()}}

    @cached_property
    def _rungs(self) -> tuple[Columns, dict[str, float]]:
        specs = ladder(self.template, largest=1e12, spacing=_COARSE)
        columns = self._costs(specs)
        constant = {name: float(columns.pop(name)[0]) for name in self._constant}
        return columns, constant

    @property
    def _constant(self) -> dict[str, float]:
        experts = self.template.experts
        return {
            "granularity": experts.granularity if experts else 1,
            "expansion_rate": experts.expansion_rate if experts else 1,
            "n_experts": experts.n_experts if experts else 1,
            "top_k": experts.top_k if experts else 1,
            "sparsity": experts.sparsity if experts else 0,
            "depth_capacity": 1,
        }

    def _costs(self, specs: Sequence[DecoderSpec]) -> Columns:
        counts = [_counted(spec, self.convention) for spec in specs]
        columns = {name: np.array([getattr(each, name) for each in counts], dtype=float) for name in _COUNTED}
        training = np.array([each.training_flops_per_token for each in counts])
        forward = np.array([each.flops_per_token["total"] for each in counts])
        routed = [sum(each.flops_per_token[part] for part in ("experts", "router", "dispatch")) for each in counts]
        share = np.array(routed) / forward
        if self.convention == "6ND" and counts_embedding(self.law):
            training = training + 6 * columns["params_embedding"]
            share = share * forward / (forward + 2 * columns["params_embedding"])
            forward = forward + 2 * columns["params_embedding"]
        return {
            **columns,
            "n_layers": np.array([spec.n_layers for spec in specs], dtype=float),
            "d_model": np.array([spec.d_model for spec in specs], dtype=float),
            **{name: np.full_like(training, value) for name, value in self._constant.items()},
            "training_flops_per_token": training,
            "inference_flops_per_token": forward,
            "expert_share": share,
            "d_expert": np.array([spec.d_expert for spec in specs], dtype=float),
        }

    def _columns(self, specs: Sequence[DecoderSpec], problem: Problem) -> Columns:
        return problem.spend(self.counted(specs, problem), whole=True)

    def counted(self, specs: Sequence[DecoderSpec], problem: Problem) -> Columns:
        """All columns of models of the template that do not depend on the budget, counted exactly."""
        found = self._costs(specs)
        if problem.bandwidth is not None:
            heads = np.array([spec.attention.kv_heads * spec.attention.head_dim for spec in specs], dtype=float)
            cache = 2 * found["n_layers"] * heads * self.template.context
            weights = found["params_active"] + self.template.vocab_size * found["d_model"]
            found["decode_ms"] = (weights + cache) * _READ / problem.bandwidth * 1e3
        if problem.needs_memory:
            found["memory_bytes"] = np.array([memory_per_device(spec, **problem.memory_settings) for spec in specs])
        return found


Family = ContinuousFamily | LadderFamily


@lru_cache(maxsize=8192)
def _counted(spec: DecoderSpec, convention: str) -> Count:
    return count(spec, convention=convention)


@lru_cache(maxsize=256)
def _memory_curve(template: Template, settings: tuple[tuple[str, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Active parameters without the router, and bytes of each device, of a template's models."""
    specs = ladder(template, largest=1e12, spacing=_COARSER)
    counts = [_counted(spec, "6ND") for spec in specs]
    sizes = np.array([each.params_active - each.params_router for each in counts], dtype=float)
    return sizes, np.array([memory_per_device(spec, **dict(settings)) for spec in specs])
