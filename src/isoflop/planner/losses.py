"""What a law says of candidates, whose columns are counted once and read as each law means them."""

from collections.abc import Iterable, Mapping
from typing import Final, TypeGuard

import numpy as np

from isoflop.laws import Fit, Law, exponent
from isoflop.planner.problem import Columns

LossLaw = Law | Fit
"""Constants, with or without the uncertainty of a fit."""

WITH_EMBEDDING: Final = frozenset({"hoffmann-2022", "besiroglu-2024", "ludziejewski-2025", "muennighoff-2023"})
"""Published laws whose N counts embedding and head, in 6·N·D as well (see their `symbols`)."""


FAR: Final = 10.0
"""Sizes and tokens beyond this multiple of the largest of a fit's rows, or below this part of the smallest, are warned
of."""

_SIZES: Final = ("params_active", "params_total", "tokens")


def constants(law: LossLaw) -> Law:
    """The Law itself, or that of a Fit."""
    return law.law if isinstance(law, Fit) else law


def counts_embedding(law: LossLaw) -> bool:
    """Whether the law's N holds embedding and head."""
    return isinstance(law, Law) and law.name in WITH_EMBEDDING


def knows_uncertainty(law: LossLaw) -> TypeGuard[Fit]:
    """Whether the law can give prediction intervals: a fit with bootstrap draws, and rows to know the noise by."""
    return isinstance(law, Fit) and bool(law.draws) and law.n_rows > law.n_free


def is_known(law: LossLaw) -> bool:
    """Whether nothing says that its constants are loose: published constants, or a fit that its rows identify."""
    return not isinstance(law, Fit) or law.status not in ("not_identified", "failed")


def knows(law: LossLaw, column: str) -> bool:
    """Whether predictions depend on the column; sparsity tells expansion rates apart as well."""
    names = {"expansion_rate", "sparsity"} if column == "expansion_rate" else {column}
    return bool(names & set(constants(law).form.columns))


def tried(law: LossLaw, column: str) -> np.ndarray | None:
    """Rising values of granularity or expansion_rate in the rows of a fit; None where these do not say.

    The granularity is rounded; expansion rates follow from sparsity where they are absent.
    """
    if not isinstance(law, Fit):
        return None
    if column in law.runs:
        values = law.runs.numeric(column)
    elif column == "expansion_rate" and "sparsity" in law.runs:
        values = 1 / (1 - law.runs.numeric("sparsity"))
    else:
        return None
    values = values[np.isfinite(values)]
    return np.unique(np.round(values, 0 if column == "granularity" else 6)) if len(values) else None


def beyond_runs(asked: Iterable[tuple[LossLaw, str, float]]) -> list[str]:
    """A sentence for each column and range of which values are asked of a fit whose rows have none so small or large.

    Args:
        asked: law, column (granularity or expansion_rate) and value, of every candidate.
    """
    found: dict[tuple[str, float, float], list[str]] = {}
    for law, column, value in asked:
        values = tried(law, column) if knows(law, column) else None
        if values is not None and not values[0] * (1 - 1e-6) <= value <= values[-1] * (1 + 1e-6):
            named = found.setdefault((column, float(values[0]), float(values[-1])), [])
            named.append(f"{value:g}")
    return [
        f"{column} {', '.join(dict.fromkeys(values))} is outside {low:g} to {high:g}, where the fit has runs: an "
        "extrapolation."
        for (column, low, high), values in found.items()
    ]


def far_from_runs(asked: Iterable[tuple[LossLaw, Mapping[str, float]]]) -> list[str]:
    """A sentence for each of size and tokens that lies more than FAR times beyond those of a fit's rows.

    Args:
        asked: law, and what it reads of a candidate.
    """
    found: dict[tuple[str, float, float], list[float]] = {}
    for law, read in asked:
        if not isinstance(law, Fit):
            continue
        for column in _SIZES:
            if column in read and column in law.runs:
                rows = law.runs.numeric(column)
                low, high = float(np.nanmin(rows)), float(np.nanmax(rows))
                if not low / FAR * (1 - 1e-6) <= read[column] <= high * FAR * (1 + 1e-6):
                    found.setdefault((column, low, high), []).append(read[column])
    sentences = []
    for (column, low, high), values in found.items():
        named = " to ".join(dict.fromkeys(exponent(value) for value in (min(values), max(values))))
        sentences.append(
            f"{column} {named} is outside {exponent(low)} to {exponent(high)}, where the fit has runs, by more "
            f"than {FAR:g} times: an extrapolation."
        )
    return sentences


def predict(law: LossLaw, columns: Columns) -> np.ndarray:
    """Loss in nats per token."""
    read = law_columns(law, columns)
    law = constants(law)
    return law.form.predict(read, law.parameters)


def draws(law: Fit, read: Mapping[str, float]) -> np.ndarray:
    """Loss [B] of one candidate under every draw of the fit, from what the law reads of it."""
    return law.form.predict({name: np.asarray(value) for name, value in read.items()}, law.draws)


def drawn_losses(law: Fit, columns: Columns) -> np.ndarray:
    """Loss [B, n] of candidates under every draw of the fit."""
    read = law_columns(law, columns)
    return law.form.predict(read, {name: values[:, None] for name, values in law.draws.items()})


def law_columns(law: LossLaw, columns: Columns) -> Columns:
    """The columns as the law means them.

    N of the krajewski convention leaves the router out, that of some papers holds the embedding. Repeated tokens count
    for what they are worth, unless the law itself discounts them.
    """
    read = dict(columns)
    if constants(law).convention == "krajewski" and "params_router" in read:
        read["params_total"] = read["params_total"] - read["params_router"]
    if counts_embedding(law) and "params_embedding" in read:
        for name in ("params_total", "params_active"):
            read[name] = read[name] + read["params_embedding"]
    if "tokens_effective" in read and "unique_tokens" not in constants(law).form.columns:
        read["tokens"] = read["tokens_effective"]
    return read
