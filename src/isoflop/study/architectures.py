"""What a study compares: architectures, one for each value of what a list in the YAML varies."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from isoflop.errors import InputError
from isoflop.planner.allocation import Held
from isoflop.spec import DepthRoutingSpec, ExpertsSpec
from isoflop.spec._checks import STRICT_FIELDS
from isoflop.spec._problems import refuse_flags
from isoflop.spec.io import describe_validation_error

Kind = TypeVar("Kind", ExpertsSpec, DepthRoutingSpec)
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
"""What a study or an architecture may be called."""


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """One architecture of the study; a list of granularities or capacities stands for one architecture each."""

    __pydantic_config__ = STRICT_FIELDS

    name: str
    """Its name in tables; a list of granularities appends -g1, -g2, …, of capacities -c.125, -c.25, …, of ratios -r.5,
    -r1, …"""
    experts: Mapping[str, Any] | None = None
    """Fields of ExpertsSpec, granularity as a number or a list; none: dense."""
    depth_routing: Mapping[str, Any] | None = None
    """Fields of DepthRoutingSpec, capacity as a number or a list; none: every block computes every token."""
    expert_attention_ratio: float | tuple[float, ...] | None = None
    """FLOPs of feed-forward or experts / FLOPs of attention, a number or a list: each size gets the ratio at its own
    FLOPs per token (see isoflop.planner.realise); none: that of the ladder's shapes."""
    hold: tuple[Held, ...] = ()
    """With a ratio: params_active and params_total of the ladder's shapes to keep as well."""
    budgets: tuple[float, ...] | None = None
    """Run at these of the study's budgets only."""
    sizes_per_budget: int | None = None
    """Fewer or more sizes than the study's own number."""
    params_active: Mapping[float, tuple[float, ...]] = field(default_factory=dict)
    """Sizes by budget, instead of the study's own."""
    depth: float | None = None
    """Factor on the depth that the aspect rule gives, instead of the template's."""
    learning_rate_multiplier: float = 1.0
    """Factor on the learning rate, on top of the study's."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InputError(
                f"name is {self.name!r}; it must start with a letter or digit and hold only letters, digits, '.', "
                f"'_', '+' and '-'."
            )
        if self.sizes_per_budget is not None and self.sizes_per_budget < 1:
            raise InputError(f"sizes_per_budget is {self.sizes_per_budget}; it must be at least 1.")
        if not 0 < self.learning_rate_multiplier < float("inf"):
            raise InputError(
                f"learning_rate_multiplier is {self.learning_rate_multiplier}; it must be finite and greater than 0."
            )
        for ratio in self.ratios:
            if ratio is not None and not 0 < ratio < float("inf"):
                raise InputError(f"expert_attention_ratio is {ratio}; it must be finite and greater than 0.")
        if not self.ratios:
            raise InputError("expert_attention_ratio is empty; give a number or a list of numbers.")
        if self.hold and self.expert_attention_ratio is None:
            raise InputError(
                f"hold is {', '.join(self.hold)} without expert_attention_ratio; give one, or leave it out."
            )

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """The expert–attention ratios; one None where the ladder's shapes stay."""
        given = self.expert_attention_ratio
        return tuple(given) if isinstance(given, (list, tuple)) else (given,)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture with one granularity, one depth capacity and one expert–attention ratio."""

    name: str
    family: str
    """Its name in the YAML, which granularities and capacities share."""
    experts: ExpertsSpec | None
    depth_routing: DepthRoutingSpec | None
    budgets: tuple[float, ...]
    sizes_per_budget: int
    params_active: Mapping[float, tuple[float, ...]]
    depth: float | None
    learning_rate_multiplier: float
    expert_attention_ratio: float | None = None
    hold: tuple[Held, ...] = ()

    @property
    def is_dense(self) -> bool:
        """Whether every token goes through every parameter."""
        return self.experts is None and self.depth_routing is None

    @property
    def is_causal(self) -> bool:
        """False if its models cannot decide token by token even when sampled."""
        return self.experts is None or self.experts.router.is_causal


def each_of(
    values: Mapping[str, Any] | None, kind: type[Kind], where: str, field: str, suffix: str
) -> list[tuple[str, Kind | None]]:
    """One (name suffix, spec) for each value of `field`."""
    if values is None:
        return [("", None)]
    given = values.get(field)
    if isinstance(given, (list, tuple)):
        if not given:
            raise InputError(f"{where}.{field} is empty; give a number or a list of numbers.")
        return [(suffix.format(f"{g}".removeprefix("0")), _parse({**values, field: g}, kind, where)) for g in given]
    return [("", _parse(values, kind, where))]


def _parse(values: Mapping[str, Any], kind: type[Kind], where: str) -> Kind:
    refuse_flags(values, where, kind)
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise InputError(describe_validation_error(error, where, kind)) from None
