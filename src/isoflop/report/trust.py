"""How far the laws of a study carry: when a number that follows from them may be quoted."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from isoflop.laws import Fit, LawFrontier, Multiplier, cost_between_runs, efficiency_multiplier
from isoflop.report.style import flops as shown_flops
from isoflop.report.style import short

_SLACK = 1.001  # sizes and budgets are those of whole numbers of weights and steps


def frontier_of(fit: Fit, granularity: float = 1.0) -> LawFrontier | None:
    """Compute-optimal loss of one granularity under a study's law; None if its runs lack a column that it needs.

    What a token costs at a size is interpolated between the runs of that granularity, which also say what `doubt`
    holds for the sizes that were run.
    """
    if not {"params_active", "params_total", "flops", "tokens"} <= set(fit.runs.columns):
        return None
    own = fit.runs
    if "granularity" in fit.form.columns:
        own = own.where(np.isclose(own.numeric("granularity"), granularity))
    if not len(own):
        return None
    return LawFrontier(replace(fit, runs=own), granularity=granularity, flops_per_token=cost_between_runs(own))


def doubt(frontier: LawFrontier, name: str, budget: float) -> str:
    """Why nothing that the law says of this budget should be quoted, as a clause; empty if nothing speaks against it.

    A law that its runs pin down may be extrapolated. One that they do not is a smooth curve through them, good where
    its optimum lies between the sizes that were run and nowhere else.
    """
    fit = frontier.fit
    if fit is None or fit.status == "converged":
        return ""
    sizes = fit.runs.numeric("params_active")
    best = frontier.optimum(budget)["params_active"]
    if sizes.min() / _SLACK <= best <= sizes.max() * _SLACK:
        return ""
    return (
        f"the law of {name} is {fit.status.replace('_', ' ')} and puts its optimum at {shown_flops(budget)} FLOPs at "
        f"{short(best)} active parameters, outside of the sizes that were run "
        f"({short(sizes.min())} to {short(sizes.max())})"
    )


def planned_multiplier(
    dense: tuple[str, Fit], moe: tuple[str, Fit], planned: Mapping[str, Any], *, level: float
) -> tuple[Multiplier | None, str]:
    """How many times the FLOPs a compute-optimal dense model needs for the predicted loss of one planned MoE model.

    Args:
        dense: name and law of the dense models.
        moe: name and law of the planned model's architecture.
        planned: the model: params_active, params_total, tokens, flops, granularity, loss and loss_interval.
        level: of the interval.

    Returns:
        The multiplier; or None, and in one clause why it should not be quoted.
    """
    ours, theirs = frontier_of(dense[1]), frontier_of(moe[1], planned["granularity"])
    if ours is None or theirs is None:
        return None, "the laws' runs lack the columns that a frontier needs"
    budget = planned["flops"]
    found = efficiency_multiplier(ours, _OneModel(theirs, planned), budget, level=level)
    reasons = [doubt(ours, dense[0], budget), doubt(theirs, moe[0], budget)]
    if np.isfinite(found.value) and found.value > 0:
        reasons.append(doubt(ours, dense[0], found.dense_flops))
    reasons.append(_disagreement(theirs, moe[0], planned))
    reason = next((reason for reason in reasons if reason), "")
    if not reason and not (np.isfinite(found.value) and found.value > 0):
        reason = f"under the law of {dense[0]} no dense budget gives the planned loss of {planned['loss']:.4f}"
    return (None, reason) if reason else (found, "")


def _disagreement(frontier: LawFrontier, name: str, planned: Mapping[str, Any]) -> str:
    """Whether a law that is not pinned down has another optimum in mind than the model that was planned."""
    fit = frontier.fit
    if fit is None or fit.status == "converged" or planned["loss_interval"] is None:
        return ""
    best = frontier.optimum(planned["flops"])["loss"]
    low, high = planned["loss_interval"]
    if low <= best <= high:
        return ""
    return (
        f"the law of {name} is {fit.status.replace('_', ' ')} and its lowest loss at "
        f"{shown_flops(planned['flops'])} FLOPs, {best:.4f}, is not that of the planned model, {planned['loss']:.4f}"
    )


class _OneModel(LawFrontier):
    """One model in place of the best at a budget: its loss and the draws of it."""

    def __init__(self, frontier: LawFrontier, planned: Mapping[str, Any]) -> None:
        super().__init__(
            frontier.fit or frontier.law,
            granularity=frontier.granularity,
            flops_per_token=frontier.flops_per_token,
        )
        self.planned = planned

    def loss(self, flops: np.ndarray) -> np.ndarray:
        return np.full(np.shape(flops), float(self.planned["loss"]))

    def loss_draws(self, flops: np.ndarray) -> np.ndarray:
        if self.fit is None or not self.fit.draws:
            return np.zeros(0)
        columns = {name: np.array([float(self.planned[name])]) for name in self.law.form.columns}
        return self.law.form.predict(columns, {name: values[:, None] for name, values in self.fit.draws.items()})[:, 0]
