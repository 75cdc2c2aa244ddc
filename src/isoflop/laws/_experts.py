"""What columns of experts say together: those that follow from others, and those that cannot all be right."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.table import RunTable

_APART = 0.1  # n_experts may count a shared expert or two, and granularity times expansion_rate does not


def speaks_of_experts(table: RunTable) -> bool:
    """Whether any column tells dense from MoE; without one, a table is taken as dense."""
    if any(name in table for name in ("expansion_rate", "n_experts", "sparsity")):
        return True
    if "granularity" in table and np.nanmax(table.numeric("granularity"), initial=1) > 1:
        return True
    if "params_active" in table and "params_total" in table:
        return bool(np.any(table.numeric("params_active") < table.numeric("params_total")))
    return False


def idle_experts(table: RunTable) -> np.ndarray:
    """Mask [n] of the rows that have more experts than a token uses, as far as the columns tell."""
    idle = np.zeros(len(table), dtype=bool)
    for name, dense in (("expansion_rate", 1.0), ("sparsity", 0.0)):
        if name in table:
            idle |= table.numeric(name) > dense
    if "n_experts" in table:
        used = np.nan_to_num(table.numeric("top_k"), nan=1.0) if "top_k" in table else np.ones(len(table))
        idle |= table.numeric("n_experts") > np.maximum(used, 1)
    if "params_active" in table and "params_total" in table:
        idle |= table.numeric("params_active") < table.numeric("params_total")
    return idle


def derived_granularity(table: RunTable) -> tuple[Any, str]:
    """Granularity of every row of a table that lacks it [n, or 1], and how it was found.

    By n_experts = G · E, the experts' width d_ff / G, or top_k = G, which holds where a token's active parameters are
    those of a dense model (Krajewski et al. 2024, arXiv 2402.07871).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        if "n_experts" in table and "expansion_rate" in table:
            found, how = table.numeric("n_experts") / table.numeric("expansion_rate"), "n_experts / expansion_rate"
        elif "d_ff" in table and "d_expert" in table:
            found, how = table.numeric("d_ff") / table.numeric("d_expert"), "d_ff / d_expert"
        elif "top_k" in table and np.nanmax(table.numeric("top_k"), initial=1) > 1:
            found = table.numeric("top_k")
            how = 'top_k, as for fine-grained experts (with experts of full width, use --set "granularity=1")'
        else:
            return 1, "granularity is absent: taken as 1."
    dense = ~np.isfinite(found) | (found < 1)
    if "n_experts" in table:
        dense |= ~(table.numeric("n_experts") > 1)
    return np.where(dense, 1.0, found), f"granularity is absent: derived as {how}."


def derived_expansion(table: RunTable) -> np.ndarray:
    """Expansion rate [n] of a table with n_experts and granularity; at least 1, NaN where a row has no n_experts."""
    return np.asarray(np.maximum(table.numeric("n_experts") / table.numeric("granularity"), 1))


def check_experts(table: RunTable) -> None:
    """Raise InputError at the first row whose columns contradict each other, naming row, columns and remedy."""

    def refuse(wrong: np.ndarray, said: str, remedy: str) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            names = [name for name in _NAMES if name in said]
            values = ", ".join(f"{table.in_file(name)} is {table.numeric(name)[row]:g}" for name in names)
            count = f"{int(wrong.sum())} of {len(table)} rows"
            raise InputError(f"{table.source} {table.labels[row]}: {values}, but {said} ({count}); {remedy}.")

    def have(*names: str) -> bool:
        return all(name in table for name in names)

    if have("params_active", "params_total"):
        active, total = table.numeric("params_active"), table.numeric("params_total")
        refuse(
            (total > 0) & (active > total * (1 + _APART / 10)),
            "params_active is at most params_total",
            "correct the two, or swap them with --column",
        )
    if have("top_k", "n_experts"):
        experts, used = table.numeric("n_experts"), table.numeric("top_k")
        refuse((experts >= 1) & (used > experts), "top_k is at most n_experts", "correct one of the two")
    if have("granularity", "expansion_rate", "n_experts"):
        product = table.numeric("granularity") * table.numeric("expansion_rate")
        experts = table.numeric("n_experts")
        refuse(
            (experts > 1) & (np.abs(experts - product) > _APART * experts),
            "n_experts is granularity · expansion_rate",
            "correct one of the three, or leave one out",
        )


_NAMES = ("params_total", "params_active", "granularity", "expansion_rate", "n_experts", "top_k")


def unknown_flops(table: RunTable, columns: Iterable[str]) -> None:
    """Raise InputError if a law reads tokens or flops that 6 · params_total · tokens would make wrong."""
    for name in ("tokens", "flops"):
        if name in columns and name not in table and "params_active" not in table and idle_experts(table).any():
            raise InputError(
                f"{table.source} has no column {name}, and params_total counts experts that a token does not use, so "
                f"that {name} cannot be derived from it; give params_active, as with --column params_active=NAME."
            )
