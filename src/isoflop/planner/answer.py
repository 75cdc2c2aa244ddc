"""What laws of something else than the loss answer at a budget: the best expert–attention ratio, the leverage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from isoflop.errors import InputError
from isoflop.laws import Law, published
from isoflop.planner.candidates import GRANULARITIES
from isoflop.planner.losses import LossLaw, beyond_runs, constants, knows_uncertainty, tried
from isoflop.planner.problem import checked_flops

_WORDS: Final[Mapping[str, str]] = {
    "expert_attention_ratio": "best FLOPs of expert layers / FLOPs of attention layers",
    "leverage": "FLOPs of a dense model of equal loss / FLOPs of the MoE",
}
"""What is predicted, in words."""

_HALF_GRANULARITY: Final = frozenset({"tian-2025"})
"""Laws whose G is 2·d_model / d_expert, half of d_ff / d_expert."""

_RATES: Final[Mapping[str, tuple[float, ...]]] = {
    "li-2026": (17 / 3, 33 / 3, 65 / 3, 129 / 3),
    "": (2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
}
"""Expansion rates by published law: those of its runs, where they are known."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Predictions of one law, by architecture, at one budget."""

    law: str
    """Name of the law."""
    quantity: str
    """Standard column that it predicts."""
    meaning: str
    """That in words."""
    flops: float
    """Training FLOPs."""
    convention: str
    """How they are counted."""
    rows: tuple[Mapping[str, float | None], ...]
    """expansion_rate, sparsity, granularity (where the law knows it), the quantity, and its interval's ends."""
    warnings: tuple[str, ...]
    """What the predictions stand outside of."""
    notes: tuple[str, ...]
    """What the law means by its symbols."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return {**vars(self), "rows": [dict(row) for row in self.rows]}


def answer(
    law: str | LossLaw,
    *,
    flops: float,
    expansion_rates: Sequence[float] | None = None,
    granularities: Sequence[int] | None = None,
    level: float = 0.9,
) -> Answer:
    """Ask a law of sparsity and FLOPs (forms allocation, leverage) for each architecture at a budget.

    Args:
        law: published name, Law or Fit.
        flops: training budget.
        expansion_rates: E, all experts / those that a token uses (shared ones in both); sparsity is 1 − 1/E. Default:
            those of a fit's rows, or of the published runs.
        granularities: G = d_ff / d_expert, for a law that knows it; likewise.
        level: of the intervals, where the law has bootstrap draws.

    Raises:
        InputError: if a number is out of range, or the law reads what neither says.
    """
    checked_flops("flops", flops)
    fitted: LossLaw = published(law) if isinstance(law, str) else law
    known = constants(fitted)
    unknown = [name for name in known.form.columns if name not in ("flops", "sparsity", "granularity")]
    if unknown:
        raise InputError(
            f"law {known.name} reads {', '.join(unknown)}; an answer needs a law of flops, sparsity and "
            "granularity alone."
        )
    grid = _grid(fitted, expansion_rates, granularities)
    rates, values = np.array([rate for rate, _ in grid]), np.array([g for _, g in grid], dtype=float)
    columns = {
        "flops": np.full(len(grid), flops),
        "sparsity": 1 - 1 / rates,
        "granularity": values / 2 if known.name in _HALF_GRANULARITY else values,
    }
    asked = Law(**{**vars(known), "warnings": []})
    asked.checked({**columns, "sparsity": columns["sparsity"].round(4)})  # ranges are printed with four digits
    predicted = asked.form.predict(columns, asked.parameters)
    low = high = None
    if knows_uncertainty(fitted):
        low, high = fitted.predict_interval(columns, level=level)
    rows = []
    for at, (rate, g) in enumerate(grid):
        row: dict[str, float | None] = {"expansion_rate": rate, "sparsity": float(columns["sparsity"][at])}
        if "granularity" in known.form.columns:
            row["granularity"] = g
        row[known.form.target] = float(predicted[at])
        if known.form.target == "leverage":
            row["dense_flops"] = flops * float(predicted[at])
        row["low"], row["high"] = (None, None) if low is None or high is None else (float(low[at]), float(high[at]))
        rows.append(row)
    return Answer(
        law=known.name,
        quantity=known.form.target,
        meaning=_WORDS.get(known.form.target, known.form.target),
        flops=flops,
        convention=known.convention,
        rows=tuple(rows),
        warnings=(
            *beyond_runs((fitted, "expansion_rate", rate) for rate, _ in grid),
            *beyond_runs((fitted, "granularity", g) for _, g in grid),
            *asked.warnings,
        ),
        notes=tuple(_notes(known)),
    )


def _grid(
    fitted: LossLaw, expansion_rates: Sequence[float] | None, granularities: Sequence[int] | None
) -> list[tuple[float, int]]:
    law = constants(fitted)
    rows, finer = tried(fitted, "expansion_rate"), tried(fitted, "granularity")
    default = _RATES.get(law.name, _RATES[""]) if rows is None else tuple(map(float, rows))
    rates = expansion_rates if expansion_rates is not None else default
    for name, given in (("expansion_rates", rates), ("granularities", granularities or ())):
        if not all(1 <= value < np.inf for value in given) or (name == "expansion_rates" and not given):
            raise InputError(f"{name} is {list(given)}; give at least one number, each at least 1.")
    if "granularity" not in law.form.columns:
        if granularities is not None:
            raise InputError(f"granularities is given, but law {law.name} does not know granularity.")
        return [(float(rate), 1) for rate in dict.fromkeys(rates)]
    values = granularities or (GRANULARITIES[:7] if finer is None else tuple(map(int, finer)))
    return [(float(rate), int(g)) for rate in dict.fromkeys(rates) for g in dict.fromkeys(values)]


def _notes(law: Law) -> list[str]:
    found = ["sparsity is 1 − 1/E, E = all experts / those that a token uses, shared ones in both."]
    if law.name == "li-2026":
        found.append("its runs have 17, 33, 65 and 129 experts of which a token uses 3: E = 5.67, 11, 21.7 and 43.")
    if law.name in _HALF_GRANULARITY:
        found.append("granularity is d_ff / d_expert with d_ff = 4·d_model, twice the G of the paper.")
    if law.symbols:
        found.append(f"{law.name}: {law.symbols}.")
    return found
