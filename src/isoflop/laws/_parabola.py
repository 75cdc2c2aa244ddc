"""A parabola in the logarithm of a column through the runs of one group, and draws of where its vertex is."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._rows import Runs, as_table, check_values
from isoflop.laws.reading import derive, derive_sparsity
from isoflop.laws.table import RunTable

Interval = tuple[float, float]


class Parabola:
    """Least squares of loss = a + b·x + q·x², where there are three values of x or more."""

    def __init__(self, x: np.ndarray, loss: np.ndarray) -> None:
        self.x, self.loss = x, loss
        self.values = np.unique(np.round(x, 6))
        self.centre = float(x.mean())
        self.coefficients: np.ndarray | None = None
        self.squares = 0.0
        if len(self.values) >= 3:
            own = x - self.centre
            design = np.stack([np.ones_like(own), own, own * own], axis=1)
            self.coefficients, *_ = np.linalg.lstsq(design, loss, rcond=None)
            self.squares = float(np.sum((loss - design @ self.coefficients) ** 2))
            self._root = np.linalg.inv(np.linalg.qr(design, mode="r"))

    @property
    def moments(self) -> np.ndarray:
        """n, Σx, Σx², Σx³, Σx⁴, Σy, Σxy, Σx²y, Σy² of the rows, all that least squares asks of them.

        x and y, the loss, each less their mean in the group, since what matters is small against them.
        """
        x, y = self.x - self.centre, self.loss - self.loss.mean()
        powers = [np.sum(x**power) for power in range(5)]
        return np.array([*powers, *(np.sum(y * x**power) for power in range(3)), np.sum(y**2)])

    @property
    def curvature_scale(self) -> float | None:
        """Standard error of the curvature for a noise of 1; None without a parabola."""
        return None if self.coefficients is None else float(np.linalg.norm(self._root[2]))

    @property
    def spare(self) -> int:
        """Rows beyond the three that a parabola takes."""
        return len(self.x) - 3 if self.coefficients is not None else 0

    @property
    def lowest(self) -> int:
        """Row of the lowest loss."""
        return int(np.argmin(self.loss))

    @cached_property
    def vertex(self) -> tuple[float, float, float] | None:
        """x, loss and curvature at the minimum; None without one."""
        if self.coefficients is None or self.coefficients[2] <= 0:
            return None
        first, slope, curvature = (float(value) for value in self.coefficients)
        return self.centre - slope / (2 * curvature), first - slope * slope / (4 * curvature), curvature

    @property
    def vertex_scale(self) -> float:
        """Standard error of the vertex's x for a noise of 1, to first order; NaN without one."""
        if self.vertex is None or self.coefficients is None:
            return float("nan")
        _, slope, curvature = self.coefficients
        return float(np.linalg.norm(np.array([0.0, -1.0, slope / curvature]) @ self._root) / (2 * curvature))

    def is_inside(self, x: float) -> bool:
        """Whether x lies between the ends of the values, and the lowest mean loss is at neither end."""
        means = [self.loss[np.abs(self.x - value) < 1e-5].mean() for value in self.values]
        return bool(self.values[0] < x < self.values[-1] and 0 < int(np.argmin(means)) < len(means) - 1)

    def draws(self, noise: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x and loss [B] of the vertex under draws of the coefficients, NaN where these open downward, and curvature.

        Args:
            noise: draws of the standard deviation [B].
            rng: for the coefficients, normal with the least-squares covariance.
        """
        if not len(noise) or self.coefficients is None:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        drawn = self.coefficients + noise[:, None] * (rng.standard_normal((len(noise), 3)) @ self._root.T)
        with np.errstate(divide="ignore", invalid="ignore"):
            convex = drawn[:, 2] > 0
            x = np.where(convex, self.centre - drawn[:, 1] / (2 * drawn[:, 2]), np.nan)
            loss = np.where(convex, drawn[:, 0] - drawn[:, 1] ** 2 / (4 * drawn[:, 2]), np.nan)
            return x, loss, drawn[:, 2]


def pooled_noise(parabolas: Sequence[Parabola], draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draws [B] of the standard deviation about all parabolas with its degrees of freedom; none where none is spare."""
    spare = sum(parabola.spare for parabola in parabolas)
    if spare <= 0:
        return np.zeros(0)
    variance = sum(parabola.squares for parabola in parabolas) / spare
    return np.asarray(np.sqrt(variance * spare / rng.chisquare(spare, size=draws)))


def central(values: np.ndarray, level: float) -> Interval | None:
    """Central interval of the draws; None where there are none or more than one tail of them is flat (NaN)."""
    tail = (1 - level) / 2
    if not len(values) or np.mean(~np.isfinite(values)) > tail:
        return None
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def groups_of(
    runs: Runs, by: Sequence[str], columns: Sequence[str], *, level: float, what: str
) -> list[tuple[dict[str, Any], RunTable]]:
    """The finished runs by their values in the columns `by`, with those values; the other columns and level checked.

    Raises:
        InputError: if level is out of range, no run is finished, a column is absent or a value is missing.
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}; it must be between 0 and 1.")
    table = derive_sparsity(derive(as_table(runs).usable()), (*by, *columns))
    if not len(table):
        raise InputError(f"no row has status done; {what} need finished runs.")
    for column in columns:
        check_values(table, column)
    for column in by:
        empty = [label for label, value in zip(table.labels, table[column].tolist(), strict=True) if value != value]
        if empty:
            raise InputError(f"{table.source} {empty[0]}: {column} is missing; {what} are grouped by it.")
    keys = list(zip(*(table[column].tolist() for column in by), strict=True))
    return [
        (dict(zip(by, key, strict=True)), table.take([i for i, own in enumerate(keys) if own == key]))
        for key in dict.fromkeys(keys)
    ]
