"""From the columns of candidates to rows: which of them are allowed, what the law says of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.planner.losses import constants, counts_embedding, knows_uncertainty, law_columns, predict
from isoflop.planner.problem import Columns, Problem
from isoflop.planner.result import PlanRow
from isoflop.spec import DecoderSpec

if TYPE_CHECKING:
    from isoflop.planner.families import Family

_WHOLE = (
    "params_total",
    "params_active",
    "params_embedding",
    "tokens",
    "n_layers",
    "d_model",
    "granularity",
    "n_experts",
    "top_k",
)
"""Columns that are whole numbers for a model that can be built."""


def allowed(family: "Family", columns: Columns, problem: Problem) -> np.ndarray:
    """Which candidates the limits admit and the budget buys one sequence."""
    admitted = problem.constraints.admits(family.limited(columns))
    return np.asarray(admitted & (columns["tokens"] >= family.template.context))


def losses(family: "Family", columns: Columns, problem: Problem) -> np.ndarray:
    """Predicted loss; inf where the limits forbid a candidate or the budget does not buy it one sequence."""
    kept = allowed(family, columns, problem)
    loss = np.full(len(kept), np.inf)
    if kept.any():
        loss[kept] = predict(family.law, {name: values[kept] for name, values in columns.items()})
    return loss


def rows_of(
    family: "Family", columns: Columns, loss: np.ndarray, problem: Problem, models: Sequence[DecoderSpec | None]
) -> list[PlanRow]:
    """Candidates of these columns and losses as rows, with intervals where the law knows them.

    Args:
        family: what they are of.
        columns: of the candidates, after `Problem.spend`.
        loss: predicted, nats per token.
        problem: what was asked.
        models: of each candidate the model that the columns count; None for a continuous shape.
    """
    intervals: list[tuple[float, float] | None] = [None] * len(loss)
    if len(loss) and knows_uncertainty(family.law):
        low, high = family.law.predict_interval(law_columns(family.law, columns), level=problem.level)
        intervals = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    read = law_columns(family.law, columns)
    reads = constants(family.law).form.columns
    router = family.template.experts.router.kind if family.template.experts else "none"
    rows = []
    for index, model in enumerate(models):
        value: dict[str, Any] = {name: float(values[index]) for name, values in columns.items()}
        value.pop("params_router", None)
        for name in _WHOLE if model else ("granularity", "n_experts", "top_k"):
            value[name] = round(value[name])
        expense = None
        if problem.machine is not None:
            expense = problem.machine.expense(value["flops"] * value["slowdown"])
        rows.append(
            PlanRow(
                **{"params_embedding": None, "memory_bytes": None, "decode_ms": None, **value},
                architecture=family.name,
                flops_convention=family.convention,
                router=router,
                loss=float(loss[index]),
                loss_interval=intervals[index],
                expense=expense,
                template=family.template,
                model=model,
                read={name: float(read[name][index]) for name in reads},
                with_embedding=model is None and counts_embedding(family.law),
            )
        )
    return rows
