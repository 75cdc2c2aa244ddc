"""Results of a benchmark: medians with quartiles, ratios of turns, and one table of them.

A ratio is taken within each turn, and its median is given with the quartiles of the turns. A ratio whose quartiles
enclose 1 says nothing about who is faster, and is printed as `equal`.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Repeats of one quantity."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""
    least: float
    most: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summary of at least one value."""
        quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else list(values) * 3
        return cls(
            median=statistics.median(values),
            low=quartiles[0],
            high=quartiles[2],
            least=min(values),
            most=max(values),
            n=len(values),
        )

    @property
    def encloses_one(self) -> bool:
        """Whether the quartiles hold 1 between them; a single value encloses nothing."""
        return self.n > 1 and self.low <= 1 <= self.high

    def numbers(self) -> list[float]:
        """Median, quartiles, range and number, for a file."""
        return [float(f"{value:.5g}") for value in (self.median, self.low, self.high, self.least, self.most)] + [self.n]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a benchmark's table: a quantity on both sides, and how far ours is ahead."""

    case: str
    unit: str
    ours: Spread
    peer: Spread | None = None
    peer_name: str = ""
    ratio: Spread | None = None
    """Above 1 ours is better: peer's seconds or bytes over ours, pair by pair."""
    goal: float | None = None
    """What the ratio is meant to reach."""
    note: str = ""

    @classmethod
    def of_costs(
        cls,
        case: str,
        ours: Sequence[float],
        peer: Sequence[float] | None = None,
        *,
        unit: str = "s",
        amount: float | None = None,
        peer_name: str = "",
        goal: float | None = None,
        note: str = "",
    ) -> Self:
        """A row from seconds or bytes, of which fewer are better; with an `amount` of work it shows amount/cost."""
        costs = {"ours": ours, "peer": peer}
        shown = {
            side: None if values is None else Spread.of([amount / v for v in values] if amount else values)
            for side, values in costs.items()
        }
        assert shown["ours"] is not None
        ratio = None if peer is None else Spread.of([p / o for o, p in zip(ours, peer, strict=True)])
        return cls(
            case=case,
            unit=unit,
            ours=shown["ours"],
            peer=shown["peer"],
            peer_name=peer_name,
            ratio=ratio,
            goal=goal,
            note=note,
        )

    @property
    def verdict(self) -> str:
        """`ahead`, `equal` or `behind`; empty without a peer."""
        if self.ratio is None:
            return ""
        if self.ratio.encloses_one:
            return "equal"
        return "ahead" if self.ratio.median > 1 else "behind"

    @property
    def is_met(self) -> bool | None:
        """Whether the median ratio reaches the goal; None without one."""
        return None if self.goal is None or self.ratio is None else self.ratio.median >= self.goal

    def to_dict(self) -> dict[str, Any]:
        """For the history: spreads as [median, lower, upper quartile, least, most, n]."""
        values: dict[str, Any] = {"case": self.case, "unit": self.unit, "ours": self.ours.numbers()}
        if self.peer is not None and self.ratio is not None:
            values |= {"peer": self.peer.numbers(), "peer_name": self.peer_name}
            values |= {"ratio": self.ratio.numbers(), "verdict": self.verdict}
        if self.goal is not None:
            values["goal"] = self.goal
        return values | ({"note": self.note} if self.note else {})


def compact(values: Sequence[float]) -> str:
    """Three significant digits with one suffix for all: 12.3K (12.1–12.5), 30.7m (30.1–32.8); a lone value is bare."""
    first = abs(values[0])
    scales = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "K"), (0.1, 1.0, ""), (1e-4, 1e-3, "m"))
    size, suffix = next(((size, suffix) for start, size, suffix in scales if first >= start), (1.0, ""))
    first /= size
    digits = 3 if first == 0 else max(0, min(3, 2 - math.floor(math.log10(first))))
    shown = [f"{value / size:.{digits}f}" for value in values]
    return shown[0] + suffix + (f" ({shown[1]}–{shown[2]})" if len(shown) > 1 else "")


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return compact((spread.median, spread.low, spread.high) if spread.n > 1 else (spread.median,))


def table(rows: Sequence[Row]) -> str:
    """Both sides of every row, medians with quartiles, at most 100 columns wide."""
    lines = [
        f"{'':<32}{'ours':>19}{'peer':>19}{'ratio':>20}{'goal':>10}",
        "─" * WIDTH,
    ]
    case = None
    for row in rows:
        if row.case != case:
            lines += _wrapped(row.case, WIDTH)
            case = row.case
        label = f"  {row.unit}" + (f", {row.peer_name}" if row.peer_name else "")
        if row.ratio is not None and row.ratio.encloses_one:
            ratio = f"equal ({row.ratio.low:.3g}–{row.ratio.high:.3g})"
        else:
            ratio = _cell(row.ratio)
        goal = "" if row.goal is None else f"≥{row.goal:g} {'met' if row.is_met else 'not'}"
        lines.append(f"{label[:32]:<32}{_cell(row.ours):>19}{_cell(row.peer):>19}{ratio:>20}{goal:>10}")
        lines += [f"    {line}" for line in _wrapped(row.note, WIDTH - 4)]
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines
