"""What a plan must respect besides the compute budget."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from isoflop.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Limits on a plan; None: no limit."""

    tokens_available: float | None = None
    """Distinct training tokens. One epoch at most: a model that could be trained on more leaves FLOPs unspent."""
    max_params_total: float | None = None
    """Largest params_total (non-embedding)."""
    max_params_active: float | None = None
    """Largest params_active (non-embedding)."""

    def __post_init__(self) -> None:
        for name, limit in self.active():
            if not limit > 0:
                raise InputError(f"{name} is {limit:g}; it must be greater than 0.")

    def active(self) -> Iterator[tuple[str, float]]:
        """Name and limit of every constraint that is set."""
        for field in fields(self):
            limit = getattr(self, field.name)
            if limit is not None:
                yield field.name, float(limit)

    def without(self, name: str) -> "Constraints":
        """The same constraints but this one."""
        return replace(self, **{name: None})

    def tokens(self, affordable: np.ndarray) -> np.ndarray:
        """Tokens to train on, of those that the budget affords."""
        return affordable if self.tokens_available is None else np.minimum(affordable, self.tokens_available)

    def admits(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Mask of the candidates that every parameter limit allows."""
        mask = np.ones_like(columns["params_active"], dtype=bool)
        for limit, column in (
            (self.max_params_total, "params_total"),
            (self.max_params_active, "params_active"),
        ):
            if limit is not None:
                mask &= columns[column] <= limit
        return mask

    def explain_nothing_left(self, smallest: Mapping[str, float]) -> InputError:
        """The error for a plan that no candidate satisfies; `smallest` holds the least value of each column."""
        for name, column in (
            ("tokens_available", "tokens"),
            ("max_params_total", "params_total"),
            ("max_params_active", "params_active"),
        ):
            limit = getattr(self, name)
            if limit is not None and limit < smallest[column]:
                return InputError(
                    f"{name} is {limit:g}, which leaves no candidate; allow at least {smallest[column]:.0f}, the "
                    f"least {column} of any."
                )
        limits = " and ".join(f"{name}={limit:g}" for name, limit in self.active())
        return InputError(f"{limits} together leave no candidate; relax one of them.")
