"""What a plan says of its best model's split between experts and attention."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.errors import InputError
from isoflop.laws import Fit, exponent
from isoflop.planner.allocation import Realised
from isoflop.planner.losses import constants
from isoflop.planner.ratio import Allocator, Ratio
from isoflop.planner.ratio_search import RATIO_TOLERANCE
from isoflop.planner.result import PlanRow
from isoflop.spec import count

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PlanAllocation:
    """How the model to build splits a token's FLOPs between experts and attention, and what the law says of it."""

    architecture: str
    asked: Ratio | None
    """What was asked for: a ratio, best, or None for the template's shape."""
    ratio: float
    """r of the model: FLOPs of experts or feed-forward / FLOPs of attention."""
    template_ratio: float
    """r of the shape that it was moved from; the same where it was not."""
    ratio_convention: str
    """How all ratios here are counted."""
    context: int
    """Tokens in a sequence, which the ratio depends on."""
    scores_share: float
    """Share of a token's forward FLOPs that attention scores take, by flops_convention."""
    flops_convention: str
    """How FLOPs per token are counted and, where the model was moved, held."""
    law: str | None
    """What says r*; None where nothing does."""
    best: float | None
    """r*."""
    best_interval: Interval | None
    """None where the law comes without draws."""
    level: float
    """Of the intervals."""
    extrapolated: tuple[str, ...]
    """What lies outside of what r* was measured on, with the range that was."""
    cost: float | None
    """Nats that r loses against r*; None where the depth of the valley is not known."""
    cost_interval: Interval | None
    change: float | None
    """Nats that moving the model from the template's ratio added to its loss; None where it was not moved, or the depth
    is not known."""
    change_interval: Interval | None
    realised: Realised | None
    """What was moved, where a ratio was asked for."""
    to_best: Realised | None
    """What it would take to stand at r*, where the model does not."""
    sentences: tuple[str, ...]
    """All of it for people."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        moves = {name: getattr(self, name) for name in ("realised", "to_best")}
        return {**vars(self)} | {name: None if move is None else move.to_dict() for name, move in moves.items()}


def report_on(row: PlanRow, allocator: Allocator) -> PlanAllocation:
    """What there is to say of the model to build.

    Args:
        row: its row, after it was moved.
        allocator: of the plan.
    """
    assert row.model is not None
    level = allocator.problem.level
    convention, held = allocator.ratio_convention(row), allocator.flops_convention
    base = row.model if row.realised is None else row.realised.base
    ratio, template_ratio = (count(spec, convention=convention).expert_attention_ratio for spec in (row.model, base))
    counted = count(row.model, convention=held)
    reads = allocator.reads(row)
    optimum = allocator.optimum(row)
    law, beyond = _source(row, allocator, optimum.ratio if optimum else ratio)
    cost = None if optimum is None else optimum.cost(ratio, level)
    change = None
    if optimum is not None and row.realised is not None:
        change = optimum.change(template_ratio, ratio, level)
        change = (row.ratio_nats, change[1] if change else None) if reads else change
    to_best, refusal = None, ""
    if optimum is not None and row.realised is None and abs(np.log(ratio / optimum.ratio)) > RATIO_TOLERANCE:
        try:
            to_best = allocator.realised(row, optimum.ratio)
        except InputError as error:
            refusal = str(error)
    found = PlanAllocation(
        architecture=row.architecture,
        asked=allocator.asked if row.realised is not None else None,
        ratio=ratio,
        template_ratio=template_ratio,
        ratio_convention=convention,
        context=row.model.context,
        scores_share=counted.attention_flops["scores"] / counted.flops_per_token["total"],
        flops_convention=held,
        law=law if optimum is not None else None,
        best=None if optimum is None else optimum.ratio,
        best_interval=None if optimum is None else optimum.interval(level),
        level=level,
        extrapolated=tuple(beyond) if optimum is not None else (),
        cost=None if cost is None else cost[0],
        cost_interval=None if cost is None else cost[1],
        change=None if change is None else change[0],
        change_interval=None if change is None else change[1],
        realised=row.realised,
        to_best=to_best,
        sentences=(),
    )
    said = [_place(found, row, allocator), _best(found, row, allocator, reads), *_moved(found, reads, allocator)]
    if to_best is not None:
        said.append(f"To stand at r*, at equal FLOPs per token: {to_best.changes} (ratio best builds it).")
    if refusal:
        said.append(f"No integer model stands at r*: {refusal}")
    return PlanAllocation(**{**vars(found), "sentences": tuple(said)})


def _source(row: PlanRow, allocator: Allocator, best: float) -> tuple[str, list[str]]:
    """Name of what says r*, and what is asked of it beyond its runs."""
    law = allocator.families[row.architecture].law
    if not allocator.reads(row):
        name, own = allocator.best.name, allocator.best
        asked = {"flops": allocator.budget(row), "sparsity": row.sparsity, "expert_attention_ratio": best}
        return name, own.beyond(**asked, context=float(row.template.context))
    if not isinstance(law, Fit):
        return constants(law).name, []
    beyond = []
    for name, value, times in (("flops", row.flops, 10.0), ("expert_attention_ratio", best, 1.0)):
        low, high = float(np.nanmin(law.runs.numeric(name))), float(np.nanmax(law.runs.numeric(name)))
        if not low / times * 0.999 <= value <= high * times * 1.001:
            beyond.append(f"{name} {value:.3g} ({low:.3g} to {high:.3g})")
    return f"law {law.form.name}", beyond


def _place(found: PlanAllocation, row: PlanRow, allocator: Allocator) -> str:
    """Where the model stands, and what context has to do with it."""
    assert row.model is not None
    what = "experts" if row.n_experts > 1 else "feed-forward"
    said = (
        f"r = {found.ratio:.3g} ({what} / attention, counted as {found.ratio_convention}) for {row.architecture} "
        f"{row.model.n_layers}×{row.model.d_model} at context {found.context}, where attention scores take "
        f"{found.scores_share:.0%} of a token's FLOPs ({found.flops_convention})"
    )
    span = allocator.best.range.get("context")
    if span is not None and found.law is not None and not allocator.reads(row):
        nearest = round(min(max(found.context, span[0]), span[1]))
        if nearest != found.context:
            there = count(row.model, context=nearest, convention=found.ratio_convention).expert_attention_ratio
            said += f"; scores grow with context: at {nearest}, where r* was measured, it has r = {there:.3g}"
    if allocator.convention != found.flops_convention:
        said += f"; {allocator.convention} counts no scores, so that sizes and ranking do not depend on the context"
    return f"{said}."


def _best(found: PlanAllocation, row: PlanRow, allocator: Allocator, reads: bool) -> str:
    """r*, how sure it is, and what the model loses against it."""
    if found.best is None:
        return f"{allocator.best.name} is a law of experts, and says nothing of r of a dense model."
    sure = "interval unknown" if found.best_interval is None else f"{found.level:.0%} {_ends(found.best_interval)}"
    if found.extrapolated:
        sure += f"; extrapolated, outside of what it was measured on: {', '.join(found.extrapolated)}"
    at = f"at {exponent(row.flops if reads else allocator.budget(row))} FLOPs and S = {row.sparsity:.3g}"
    said = f"r* = {found.best:.3g} by {found.law} {at} ({sure})"
    if found.cost is None:
        shallow = allocator.best.depth is not None
        why = "its runs show no valley" if shallow else "that law says no depth of the valley"
        return f"{said}; what r = {found.ratio:.3g} costs against it is not known: {why}."
    interval = _paren(found.cost_interval, found.level)
    said += f"; r = {found.ratio:.3g} costs {found.cost:.4f} nats against it{interval}."
    if not reads and not allocator.best.is_visible:
        said += " The runs behind r* do not show that there is a valley: its depth may be 0."
    return said


def _moved(found: PlanAllocation, reads: bool, allocator: Allocator) -> list[str]:
    """What was moved, and how the loss counts it."""
    if found.realised is None:
        return []
    said = [
        f"Moved from r = {found.template_ratio:.3g} at equal FLOPs per token ({found.flops_convention}) and tokens: "
        f"{found.realised.changes}."
    ]
    if reads:
        said.append(
            f"The loss is the law's, which reads r, at this model's parameters: {found.change or 0.0:+.4f} nats "
            f"against the template's shape{_paren(found.change_interval, found.level)}."
        )
    elif found.change is None:
        said.append("The loss is that of the template's shape: what the ratio adds is not known.")
    else:
        said.append(
            f"The loss is that of the template's shape and {found.change:+.4f} nats by the valley"
            f"{_paren(found.change_interval, found.level)}: the law is not asked about the parameters that r moves, "
            "which would count them twice."
        )
    if allocator.convention != found.flops_convention:
        times = found.realised.moved_by(allocator.convention)
        said.append(f"By {allocator.convention} the model takes {times:.3f} times the FLOPs of that shape.")
    return said


def _ends(interval: Interval) -> str:
    return f"{interval[0]:.3g} to {interval[1]:.3g}"


def _paren(interval: Interval | None, level: float) -> str:
    return "" if interval is None else f" ({level:.0%} {interval[0]:.4f} to {interval[1]:.4f})"
