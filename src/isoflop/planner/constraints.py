"""What a plan must respect besides the compute budget."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypedDict

import numpy as np

from isoflop.errors import InputError

_CAPS: Final = (
    ("max_params_total", "params_total"),
    ("max_params_active", "params_active"),
    ("memory_per_device", "memory_bytes"),
    ("max_decode_ms", "decode_ms"),
)
"""Limits, and the column that each is an upper bound of."""

LIMITS: Final = ("tokens_available", "max_epochs", *(name for name, _ in _CAPS), "expert_parallel", "inference_tokens")
"""Fields of Constraints that can cost loss."""


class Limits(TypedDict, total=False):
    """Keyword arguments of Constraints."""

    tokens_available: float | None
    repeat: bool
    max_epochs: float | None
    max_params_total: float | None
    max_params_active: float | None
    memory_per_device: float | None
    micro_batch: int
    activation_checkpointing: bool
    expert_parallel: int | None
    inference_tokens: float | None
    max_decode_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Limits on a plan; None: no limit."""

    tokens_available: float | None = None
    """Distinct training tokens. Seen once at most, so that small models leave FLOPs unspent, unless `repeat`."""
    repeat: bool = False
    """Whether tokens may be seen again: D of U distinct ones are then worth U + U·R(1 − exp(−(D/U − 1)/R)) fresh ones,
    R = 15.4 (Muennighoff et al. 2023, arXiv 2305.16264, eq. 5)."""
    max_epochs: float | None = None
    """With `repeat`: most times that a token may be seen."""
    max_params_total: float | None = None
    """Largest params_total (non-embedding, router included)."""
    max_params_active: float | None = None
    """Largest params_active, likewise."""
    memory_per_device: float | None = None
    """Bytes of one device that training may use (see sharding.memory_per_device)."""
    micro_batch: int = 1
    """Sequences that a device has in one forward pass; for the memory alone."""
    activation_checkpointing: bool = False
    """Whether blocks are recomputed in the backward; for the memory alone."""
    expert_parallel: int | None = None
    """Devices that the experts of a layer are spread over: the number of experts must be a multiple."""
    inference_tokens: float | None = None
    """Tokens that the model will serve: the budget then pays their forward FLOPs as well as training."""
    max_decode_ms: float | None = None
    """Longest time of one generated token on one device, milliseconds: active weights, head and one sequence's full KV
    cache, 2 bytes a number, read once at the hardware's memory bandwidth."""

    def __post_init__(self) -> None:
        for name, limit in self.active():
            if not 0 < limit < math.inf:
                raise InputError(f"{name} is {limit:g}; it must be a finite number greater than 0.")
        if self.repeat and self.tokens_available is None:
            raise InputError("repeat is given without tokens_available; say how many distinct tokens there are.")
        if self.max_epochs is not None and not self.repeat:
            raise InputError(f"max_epochs is {self.max_epochs:g} without repeat; tokens are seen once then.")
        if self.max_epochs is not None and self.max_epochs < 1:
            raise InputError(f"max_epochs is {self.max_epochs:g}; it must be at least 1.")
        for name in ("micro_batch", "expert_parallel"):
            value = getattr(self, name)
            if value is not None and (value < 1 or value != int(value)):
                raise InputError(f"{name} is {value:g}; it must be a whole number from 1.")

    def active(self) -> Iterator[tuple[str, float]]:
        """Name and limit of every constraint that is set."""
        for name in LIMITS:
            limit = getattr(self, name)
            if limit is not None:
                yield name, float(limit)

    @property
    def cap_models(self) -> bool:
        """Whether a limit bounds the size of models, by parameters, memory or the time of a token."""
        return any(getattr(self, name) is not None for name, _ in _CAPS)

    def without(self, name: str) -> "Constraints":
        """The same constraints but this one, and what means nothing without it."""
        if name == "tokens_available":
            return replace(self, tokens_available=None, repeat=False, max_epochs=None)
        return replace(self, **{name: None})  # type: ignore[arg-type]

    @property
    def most_tokens(self) -> float:
        """Training tokens, repetitions counted, that the text allows."""
        if self.tokens_available is None:
            return math.inf
        if not self.repeat:
            return self.tokens_available
        return math.inf if self.max_epochs is None else self.max_epochs * self.tokens_available

    def admits(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Mask of the candidates that every limit on models allows."""
        mask = np.ones_like(columns["params_active"], dtype=bool)
        for name, column in _CAPS:
            limit = getattr(self, name)
            if limit is not None:
                mask &= columns[column] <= limit
        if self.expert_parallel is not None:
            experts = columns["n_experts"]
            mask &= (experts == 1) | (np.mod(experts, self.expert_parallel) == 0)
        return mask

    def explain_nothing_left(self, smallest: Mapping[str, float], n_experts: set[float]) -> InputError:
        """The error for a plan that no candidate satisfies.

        Args:
            smallest: least value of each column that a limit bounds.
            n_experts: numbers of experts of the candidates; 1 for a dense one.
        """
        if self.most_tokens < smallest["tokens"]:
            return InputError(
                f"tokens_available is {self.tokens_available:g}, which leaves no candidate; allow at least "
                f"{smallest['tokens']:.0f}, the least tokens of any."
            )
        for name, column in _CAPS:
            limit = getattr(self, name)
            if limit is not None and limit < smallest[column]:
                least = smallest[column]
                return InputError(
                    f"{name} is {limit:g}, which leaves no candidate; allow at least "
                    f"{f'{least:.3g}' if least < 100 else f'{math.ceil(least)}'}, the least {column} of any."
                )
        if self.expert_parallel is not None and all(n > 1 and n % self.expert_parallel for n in n_experts):
            listed = ", ".join(f"{n:g}" for n in sorted(n_experts))
            return InputError(
                f"expert_parallel is {self.expert_parallel}, which divides no number of experts of any candidate; they "
                f"have {listed}."
            )
        limits = " and ".join(f"{name}={limit:g}" for name, limit in self.active())
        return InputError(f"{limits} together leave no candidate; relax one of them.")
