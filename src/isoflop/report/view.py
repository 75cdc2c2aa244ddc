"""What a run table holds, as the report sees it: architectures in their fixed order, budgets, typed columns."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from isoflop.laws import RunTable


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One family of models that the study compares; the order of tables, legends and colours."""

    name: str
    granularity: float
    expansion_rate: float
    router: str
    depth_capacity: float = 1.0
    """Share of the tokens that its depth-routed blocks compute."""
    depth_routed: bool = False
    """Whether it has such blocks; their capacity may be 1."""

    @property
    def dense(self) -> bool:
        """Whether every token meets all of it: no experts, no depth routing."""
        return not self.has_experts and not self.depth_routed

    @property
    def has_experts(self) -> bool:
        """Whether it is a Mixture-of-Experts."""
        return self.expansion_rate != 1 or self.router not in ("none", "")

    @property
    def family(self) -> str:
        """Its name without the granularity: what architectures share that differ in granularity alone."""
        return re.sub(r"[-_ ]*\b[gG]=?\d+(\.\d+)?\b", "", self.name).strip("-_ ") or f"E{self.expansion_rate:g}"

    @property
    def depth_family(self) -> str:
        """Its name without the depth capacity: what architectures share that differ in capacity alone."""
        return re.sub(r"[-_ ]*\b[cC]=?(\d+(\.\d+)?|\.\d+)(?![\w.])", "", self.name).strip("-_ ") or "depth-routed"


def numbers(runs: "RunTable", name: str) -> np.ndarray:
    """A column as floats; NaN where a cell, or the whole column, is missing."""
    return np.array([_number(row.get(name)) for row in runs.rows], dtype=float)


def texts(runs: "RunTable", name: str) -> list[str]:
    """A column as text; empty where a cell, or the whole column, is missing."""
    return ["" if _missing(row.get(name)) else str(row.get(name)) for row in runs.rows]


def names(runs: "RunTable") -> list[str]:
    """The architecture of each row: its name in the study, else one made of its granularity and expansion rate."""
    given = texts(runs, "architecture")
    granularity, expansion = numbers(runs, "granularity"), numbers(runs, "expansion_rate")
    capacity = numbers(runs, "depth_capacity")
    return [
        name
        or ("dense" if not expansion[row] > 1 else f"E{expansion[row]:g}-G{granularity[row]:g}")
        + (f"-c{capacity[row]:g}" if capacity[row] < 1 else "")
        for row, name in enumerate(given)
    ]


def architectures(runs: "RunTable") -> list[Architecture]:
    """Every architecture of the table: dense first, then by experts, depth routing, capacity, granularity and name."""
    granularity, expansion, capacity = (
        numbers(runs, name) for name in ("granularity", "expansion_rate", "depth_capacity")
    )
    routers, depth_routers = texts(runs, "router"), texts(runs, "depth_router")
    found: dict[str, Architecture] = {}
    for row, name in enumerate(names(runs)):
        found.setdefault(
            name,
            Architecture(
                name=name,
                granularity=granularity[row] if math.isfinite(granularity[row]) else 1.0,
                expansion_rate=expansion[row] if math.isfinite(expansion[row]) else 1.0,
                router=routers[row],
                depth_capacity=capacity[row] if math.isfinite(capacity[row]) else 1.0,
                depth_routed=bool(capacity[row] < 1) or depth_routers[row] not in ("none", ""),
            ),
        )
    return sorted(
        found.values(),
        key=lambda a: (not a.dense, a.expansion_rate, a.depth_routed, -a.depth_capacity, a.granularity, a.name),
    )


def budgets(runs: "RunTable") -> np.ndarray:
    """The nominal budget of each row in FLOPs: column `budget`, else `flops` to two digits."""
    given, spent = numbers(runs, "budget"), numbers(runs, "flops")
    rounded = np.array([float(f"{value:.1e}") if math.isfinite(value) else math.nan for value in spent])
    return np.asarray(np.where(np.isfinite(given), given, rounded))


def finished(runs: "RunTable") -> np.ndarray:
    """Which rows have a loss and are neither failed nor diverged."""
    status = texts(runs, "status")
    ended = np.array([state in ("done", "") for state in status], dtype=bool)
    return np.asarray(ended & np.isfinite(numbers(runs, "loss")))


def grid_rows(runs: "RunTable") -> "RunTable":
    """The runs that the laws are fitted to: not the verification's, nor those that the study no longer asks for."""
    left_out = ("verification", "unplanned")
    return runs.where(np.array([stage not in left_out for stage in texts(runs, "stage")], dtype=bool))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One architecture, budget and size: the runs that differ in their seed alone."""

    architecture: str
    budget: float
    params_active: float
    loss: float
    """Mean over the seeds, nats/token."""
    spread: float | None
    """Half the range over the seeds; none with one seed."""
    squares: float
    """Sum of squared deviations from the mean."""
    seeds: int
    rows: tuple[int, ...]


def measured(runs: "RunTable") -> list[Measured]:
    """The finished runs, those that differ in their seed alone put together."""
    name, budget, size, loss = names(runs), budgets(runs), numbers(runs, "params_active"), numbers(runs, "loss")
    groups: dict[tuple[str, float, float], list[int]] = {}
    for row in np.flatnonzero(finished(runs)):
        groups.setdefault((name[row], float(budget[row]), float(size[row])), []).append(int(row))
    return [
        Measured(
            architecture=key[0],
            budget=key[1],
            params_active=key[2],
            loss=float(np.mean(loss[rows])),
            squares=float(np.sum((loss[rows] - np.mean(loss[rows])) ** 2)),
            spread=float(np.ptp(loss[rows])) / 2 if len(rows) > 1 else None,
            seeds=len(rows),
            rows=tuple(rows),
        )
        for key, rows in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0], item[0][2]))
    ]


def best_measured(points: Sequence[Measured], architecture: str, budget: float) -> Measured | None:
    """The size with the lowest mean loss of one architecture at one budget."""
    of_it = [point for point in points if point.architecture == architecture and point.budget == budget]
    return min(of_it, key=lambda point: point.loss, default=None)


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> float:
    try:
        return math.nan if _missing(value) else float(value)
    except (TypeError, ValueError):
        return math.nan
