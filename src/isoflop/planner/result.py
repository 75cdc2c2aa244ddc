"""What a plan answers: ranked rows, the set that is nearly as good, what each constraint costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.errors import InputError
from isoflop.planner.hardware import Expense, Machine
from isoflop.planner.ladder import nearest
from isoflop.planner.template import Template
from isoflop.planner.versus import DenseComparison
from isoflop.spec import DecoderSpec, spec_to_dict

if TYPE_CHECKING:
    from isoflop.planner.allocation import Realised
    from isoflop.planner.families import Family
    from isoflop.planner.problem import Problem
    from isoflop.planner.ratio_report import PlanAllocation

_INTERNAL = ("template", "model", "with_embedding", "read", "spec", "expense", "realised")


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One candidate: the standard columns of a run table, and its predicted loss.

    With continuous shapes parameters, layers and widths need not be whole, and parameters leave out embedding, norms
    and router, as in the papers (unless the law's N holds the embedding); `spec` is then the nearest model that can be
    built.
    """

    architecture: str
    params_total: float
    params_active: float
    params_embedding: float | None
    tokens: float
    flops: float
    """Of training."""
    flops_convention: str
    n_layers: float
    d_model: float
    granularity: int
    expansion_rate: float
    n_experts: int
    top_k: int
    sparsity: float
    expert_attention_ratio: float
    depth_capacity: float
    router: str
    loss: float
    """Predicted loss, nats per token of held-out text."""
    loss_interval: tuple[float, float] | None
    """Prediction interval of the loss; None where the law comes without its uncertainty."""
    d_expert: float
    """Width of an expert; of the feed-forward for a dense model."""
    unique_tokens: float
    """Distinct ones of the tokens."""
    tokens_effective: float
    """Fresh tokens that the tokens are worth; the same unless they repeat."""
    lifetime_flops: float
    """Training FLOPs and those of serving."""
    slowdown: float
    """Time of the model / time of one of the same FLOPs without experts; 1 where no speed table was given."""
    memory_bytes: float | None
    """Of each device in training; None where neither machine nor limit was given."""
    decode_ms: float | None
    """Of one generated token on one device; None where its memory bandwidth is unknown."""
    expense: Expense | None
    """What training takes on the machine; None where its speed is unknown."""
    template: Template = field(repr=False)
    """The family that the row belongs to."""
    model: DecoderSpec | None = field(repr=False)
    """The very model that the columns count; None with continuous shapes."""
    read: Mapping[str, float] = field(repr=False)
    """What the law reads of it, as the law means it."""
    params_active_interval: tuple[float, float] | None = None
    """Of the best row of an architecture: interval of its best size over the draws of the law, whose level is that of
    the plan. Not how flat the loss is around the row: see Plan.sizes_within. None for other rows and laws without
    draws."""
    tokens_interval: tuple[float, float] | None = None
    """Likewise of the tokens of the best size."""
    with_embedding: bool = field(repr=False, default=False)
    """Whether parameters of a continuous shape hold embedding and head."""
    ratio_nats: float = 0.0
    """Nats of the loss that come from moving the model to another expert–attention ratio; 0 where it was not, or what
    that costs is not known."""
    realised: "Realised | None" = field(repr=False, default=None)
    """What was moved to reach the ratio; None where nothing was."""

    @property
    def epochs(self) -> float:
        """Times that a distinct token is seen."""
        return self.tokens / self.unique_tokens

    @cached_property
    def spec(self) -> DecoderSpec:
        """`model`, or the one nearest in active parameters, which limits may forbid (see Plan.to_train)."""
        return self.model or nearest(self.template, self.params_active, 1, with_embedding=self.with_embedding)[0]

    def to_dict(self) -> dict[str, Any]:
        """The columns, loss and loss_interval, for JSON; ratio_convention is how expert_attention_ratio is counted."""
        values = {name: value for name, value in vars(self).items() if name not in _INTERNAL}
        return {
            **values,
            "epochs": self.epochs,
            "ratio_convention": self.flops_convention,
            "expense": None if self.expense is None else dict(vars(self.expense)),
            "realised": None if self.realised is None else self.realised.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Predicted loss against size for one architecture at the plan's budget."""

    architecture: str
    params_active: np.ndarray
    loss: np.ndarray
    """inf where a constraint forbids the size."""

    def sizes_within(self, loss: float) -> tuple[float, float] | None:
        """Smallest and largest size whose predicted loss is at most `loss`; None if there is none."""
        sizes = self.params_active[self.loss <= loss]
        return (float(sizes[0]), float(sizes[-1])) if len(sizes) else None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer to: what should this budget train?"""

    flops: float
    """The budget: training FLOPs, and those of serving where tokens are served."""
    convention: str
    """How FLOPs are counted."""
    table: tuple[PlanRow, ...]
    """Candidates, best first."""
    curves: tuple[Curve, ...]
    """Loss against size, one per architecture, best first."""
    constraint_costs: Mapping[str, float]
    """Nats that each constraint costs: best loss with all of them less best loss without this one."""
    warnings: tuple[str, ...]
    """Sentences about what the prediction cannot promise, doubtful fits first."""
    notes: tuple[str, ...] = ()
    """Sentences about what was assumed."""
    ties: tuple[str, ...] | None = None
    """Architectures that cannot be told from the best one: the interval of the difference of their best rows' expected
    losses, over the draws of the laws, holds 0. None where a law comes without draws, or its runs do not identify
    it."""
    models: tuple[PlanRow, ...] = ()
    """For continuous shapes: integer models near the best rows, counted exactly and within the limits, best first."""
    machine: Machine | None = None
    """What it runs on."""
    timed: bool = False
    """Whether candidates were compared at equal time rather than equal FLOPs."""
    other_best: PlanRow | None = None
    """With a speed table, the best at equal FLOPs where `timed`, else the best at equal time (the budget then is time,
    in FLOPs of a model without experts)."""
    against_dense: DenseComparison | None = None
    """Best MoE against the dense family, where both have a law."""
    allocation: "PlanAllocation | None" = None
    """How the model to build splits its FLOPs between experts and attention; None where nothing can be built."""
    problem: "Problem | None" = field(repr=False, default=None)
    """What was asked of every family."""
    families: "tuple[Family, ...]" = field(repr=False, default=())
    """What was chosen from."""

    @property
    def best(self) -> PlanRow:
        """The candidate with the lowest predicted loss."""
        return self.table[0]

    @property
    def to_train(self) -> PlanRow:
        """The best model that can be built within the limits.

        `best`, or for a continuous shape the best of `models` of its kind, or of any kind where it has none.

        Raises:
            InputError: if the limits leave none.
        """
        found = self._built
        if found is None:
            raise InputError(
                f"no model of {self.best.architecture} that can be built fits the limits; relax one of them."
            )
        return found

    @property
    def _built(self) -> PlanRow | None:
        return self.built_of(self.table, self.models)

    @staticmethod
    def built_of(rows: Sequence[PlanRow], models: Sequence[PlanRow]) -> PlanRow | None:
        """The best of these rows that can be built: the first, or of `models` one of its kind, or any; None if none."""
        if rows[0].model is not None:
            return rows[0]
        of_its_kind = (row for row in models if row.architecture == rows[0].architecture)
        return next(of_its_kind, models[0] if models else None)

    @property
    def best_for_flops(self) -> PlanRow | None:
        """The best at equal FLOPs; None where the plan compared times alone."""
        return self.other_best if self.timed else self.best

    @property
    def best_for_time(self) -> PlanRow | None:
        """The best at equal time; None without a speed table."""
        return self.best if self.timed else self.other_best

    def near_optimal(self, within: float = 0.002) -> tuple[PlanRow, ...]:
        """The rows whose predicted loss is at most `within` nats above the best, best first.

        Raises:
            InputError: if within is negative.
        """
        if not within >= 0:
            raise InputError(f"within is {within:g}; it must not be negative (nats).")
        return tuple(row for row in self.table if row.loss <= self.best.loss + within)

    def sizes_within(self, within: float = 0.002) -> dict[str, tuple[float, float]]:
        """Smallest and largest params_active, by architecture, that lose at most `within` nats against the best."""
        found = {curve.architecture: curve.sizes_within(self.best.loss + within) for curve in self.curves}
        return {name: sizes for name, sizes in found.items() if sizes is not None}

    def to_dict(self, within: float = 0.002) -> dict[str, Any]:
        """Plain dictionary for JSON: best (with its spec), table, near_optimal, constraint_costs, warnings, notes, …

        The spec is that of `to_train`, None where nothing can be built; `models` are rows with their spec and
        `loss_difference`, their loss less that of the best row.
        """
        flops_best, time_best, built = self.best_for_flops, self.best_for_time, self._built
        return {
            "best": {**self.best.to_dict(), "spec": None if built is None else spec_to_dict(built.spec)},
            "table": [row.to_dict() for row in self.table],
            "near_optimal": {
                "within": within,
                "rows": len(self.near_optimal(within)),
                "params_active": {name: list(sizes) for name, sizes in self.sizes_within(within).items()},
            },
            "ties": None if self.ties is None else list(self.ties),
            "constraint_costs": dict(self.constraint_costs),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "flops": self.flops,
            "flops_convention": self.convention,
            "models": [
                {**row.to_dict(), "loss_difference": row.loss - self.best.loss, "spec": spec_to_dict(row.spec)}
                for row in self.models
            ],
            "machine": None if self.machine is None else self.machine.to_dict(),
            "timed": self.timed,
            "best_for_flops": None if flops_best is None else flops_best.to_dict(),
            "best_for_time": None if time_best is None else time_best.to_dict(),
            "allocation": None if self.allocation is None else self.allocation.to_dict(),
            "against_dense": None if self.against_dense is None else self.against_dense.to_dict(),
        }
