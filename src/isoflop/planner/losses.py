"""What a law says of candidates, whose columns are counted once and read as each law means them."""

from typing import Final, TypeGuard

import numpy as np

from isoflop.laws import Fit, Law
from isoflop.planner.problem import Columns

LossLaw = Law | Fit
"""Constants, with or without the uncertainty of a fit."""

WITH_EMBEDDING: Final = frozenset({"hoffmann-2022", "besiroglu-2024", "ludziejewski-2025", "muennighoff-2023"})
"""Published laws whose N counts embedding and head, in 6·N·D as well (see their `symbols`)."""


def constants(law: LossLaw) -> Law:
    """The Law itself, or that of a Fit."""
    return law.law if isinstance(law, Fit) else law


def counts_embedding(law: LossLaw) -> bool:
    """Whether the law's N holds embedding and head."""
    return isinstance(law, Law) and law.name in WITH_EMBEDDING


def knows_uncertainty(law: LossLaw) -> TypeGuard[Fit]:
    """Whether the law can give prediction intervals: a fit with bootstrap draws, and rows to know the noise by."""
    return isinstance(law, Fit) and bool(law.draws) and law.n_rows > law.n_free


def knows(law: LossLaw, column: str) -> bool:
    """Whether predictions depend on the column; sparsity tells expansion rates apart as well."""
    names = {"expansion_rate", "sparsity"} if column == "expansion_rate" else {column}
    return bool(names & set(constants(law).form.columns))


def predict(law: LossLaw, columns: Columns) -> np.ndarray:
    """Loss in nats per token."""
    read = law_columns(law, columns)
    law = constants(law)
    return law.form.predict(read, law.parameters)


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
