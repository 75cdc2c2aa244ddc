"""What the figures draw besides the runs and their isoFLOP minima."""

from dataclasses import dataclass

import numpy as np

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Multiplier:
    """How many times the FLOPs a dense model needs for the loss that one architecture reaches at one budget."""

    architecture: str
    budget: float
    """FLOPs that the architecture spends."""
    value: float
    interval: Interval | None = None
    extrapolated: bool = False
    """Whether the dense model would need more FLOPs than any dense run had (or less)."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The fitted law's compute-optimal loss of one architecture."""

    architecture: str
    flops: np.ndarray
    loss: np.ndarray
    doubtful: str = ""
    """What is wrong with the law, as "not identified"; empty if the runs pin it down."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A prediction that was made before the run, and what the run measured; losses in nats/token."""

    label: str
    predicted: float
    interval: Interval | None
    level: float | None
    """Coverage of the interval, as 0.9."""
    measured: float | None
    """None while the run has not ended."""
    measured_std: float | None = None
    """Standard error of the measurement."""
    error: str = ""
    """Why the run has no loss."""
