"""The saturating count Ê of Clark et al. 2022 (arXiv 2202.01169, eq. 10): 1/Ê = 1/(E − 1 + 1/(1/s − 1/m)) + 1/m.

Ê is s at E = 1 (experts help from the first on, or only after a few) and tends to m as E grows.
"""

import numpy as np

from isoflop.laws.forms.base import Parameter

E_START = Parameter(
    name="E_start", meaning="Ê of a single expert", lower=0.5, upper=9.0, starts=(1.0, 1.5, 2.5, 4.5), log=True
)
E_MAX = Parameter(
    name="E_max", meaning="Ê of infinitely many experts", lower=10.0, upper=1e6, starts=(60.0, 300.0, 2000.0), log=True
)


def log_saturated(
    minus_one: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln Ê and its derivatives by `start` and `end`; `minus_one` is E − 1 (or its like for another measure of size)."""
    inner = 1 / (1 / start - 1 / end)
    room = 1 / (minus_one + inner)
    inverse = room + 1 / end
    slope = (room * inner) ** 2  # ∂(1/Ê) / ∂(1/start)
    return -np.log(inverse), slope / (start**2 * inverse), (1 - slope) / (end**2 * inverse)
