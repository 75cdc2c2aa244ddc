"""What is asked of every family: a budget, its limits, and what it runs on."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from isoflop.errors import InputError
from isoflop.laws import Repetition, exponent, published
from isoflop.planner.constraints import Constraints
from isoflop.planner.hardware import Machine
from isoflop.planner.speed import SpeedTable

Columns = dict[str, np.ndarray]

MOST_FLOPS: Final = 1e30
"""Largest budget of training FLOPs that a plan is made for: thousands of times the largest that anyone has spent."""


def checked_flops(name: str, flops: float) -> float:
    """The number of FLOPs.

    Raises:
        InputError: if it is not positive, or beyond MOST_FLOPS.
    """
    if not 0 < flops <= MOST_FLOPS:
        raise InputError(f"{name} is {flops:g}; it must be positive and at most {exponent(MOST_FLOPS)} FLOPs.")
    return flops


_COSTS: Final = frozenset({"training_flops_per_token", "inference_flops_per_token", "expert_share"})


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One budget to spend."""

    flops: float
    """Training FLOPs, and those of serving where tokens are served."""
    constraints: Constraints
    """Limits."""
    machine: Machine | None = None
    """What it runs on, where that is known."""
    speed: SpeedTable | None = None
    """How fast experts are, where that was measured."""
    timed: bool = False
    """Whether the budget is time, in FLOPs of a model without experts, so that a slow model has fewer FLOPs."""
    level: float = 0.9
    """Of the prediction intervals."""

    @property
    def devices(self) -> int:
        """Devices that share the training."""
        return 1 if self.machine is None else self.machine.devices

    @property
    def bandwidth(self) -> float | None:
        """Bytes of memory that a device reads in a second."""
        return None if self.machine is None or self.machine.hardware is None else self.machine.hardware.memory_bandwidth

    @property
    def needs_memory(self) -> bool:
        """Whether the memory of training is asked for."""
        return self.constraints.memory_per_device is not None or self.machine is not None

    @cached_property
    def memory_settings(self) -> dict[str, int]:
        """Keyword arguments of sharding.memory_per_device."""
        limits = self.constraints
        return {
            "devices": self.devices,
            "micro_batch": limits.micro_batch,
            "activation_checkpointing": limits.activation_checkpointing,
            "expert_parallel": limits.expert_parallel or 1,
        }

    def spend(self, columns: Columns, *, whole: bool, flops: np.ndarray | None = None) -> Columns:
        """The columns with tokens that the budget buys, what they are worth, and FLOPs.

        Args:
            columns: hold training_flops_per_token, inference_flops_per_token, expert_share (of the FLOPs) and d_expert.
            whole: whether tokens are rounded down to whole ones.
            flops: other budgets, broadcast with the columns.
        """
        budget = self.flops if flops is None else flops
        if self.timed:
            budget = budget / self._slowdown(columns)
        left = budget - self._serving(columns)
        tokens = np.minimum(left / columns["training_flops_per_token"], self.constraints.most_tokens)
        return self.trained(columns, np.maximum(np.floor(tokens) if whole else tokens, 0.0))

    def trained(self, columns: Columns, tokens: np.ndarray) -> Columns:
        """The columns (see spend) with these tokens, repetitions counted, what they are worth, and FLOPs."""
        limits = self.constraints
        unique = np.minimum(tokens, np.inf if limits.tokens_available is None else limits.tokens_available)
        flops = tokens * columns["training_flops_per_token"]
        return {
            **{name: values for name, values in columns.items() if name not in _COSTS},
            "tokens": tokens,
            "unique_tokens": unique,
            "tokens_effective": worth(tokens, unique) if limits.repeat else tokens,
            "flops": flops,
            "lifetime_flops": flops + self._serving(columns),
            "slowdown": self._slowdown(columns),
        }

    def _serving(self, columns: Columns) -> np.ndarray:
        return np.asarray(columns["inference_flops_per_token"] * (self.constraints.inference_tokens or 0.0))

    def _slowdown(self, columns: Columns) -> np.ndarray:
        if self.speed is None:
            return np.ones_like(columns["expert_share"])
        return self.speed.slowdown(columns["d_expert"], columns["expert_share"])


def worth(tokens: np.ndarray, unique: np.ndarray) -> np.ndarray:
    """Fresh tokens that `tokens` of `unique` distinct ones are worth (see laws.Repetition)."""
    decay = published("muennighoff-2023").parameters["R"]
    x = {
        "params_total": np.zeros(1),
        "tokens": np.log(np.maximum(tokens, 1e-300)),
        "unique_tokens": np.log(np.maximum(unique, 1e-300)),
    }
    theta = {name: np.asarray(value) for name, value in (("alpha", 0.0), ("beta", 1.0), ("R", decay))}
    return np.asarray(1 / Repetition().terms(x, theta)["B"])
