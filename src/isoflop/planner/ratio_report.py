"""What a plan says of its best model's split between experts and attention."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from isoflop.errors import InputError
from isoflop.laws import Fit, RatioOptimum, exponent
from isoflop.planner.allocation import Realised
from isoflop.planner.losses import constants
from isoflop.planner.ratio import Allocator, Ratio
from isoflop.planner.ratio_doubts import of_context, of_convention, of_shape
from isoflop.planner.ratio_search import RATIO_TOLERANCE
from isoflop.planner.result import PlanRow
from isoflop.spec import count

Interval = tuple[float, float]

_OFF: Final = 1.02
"""Times that the FLOPs of the plan's own convention may move without a word."""


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
    """r*, held within the ratios that were run."""
    best_of_law: float | None
    """What the law says where that lies outside of the ratios that were run; None where r* is just that."""
    best_range: Interval | None
    """Ratios that were run, where r* is from runs."""
    at_end: bool
    """Whether r* stands at an end of them, so that a better one may lie beyond."""
    best_interval: Interval | None
    """None where the law comes without draws, or all of them that count are held at one end (see best_held)."""
    best_held: Literal["smallest", "largest"] | None
    """The end of the ratios that were run at which the whole interval of r* is held; None where it is not."""
    level: float
    """Of the intervals."""
    extrapolated: tuple[str, ...]
    """What lies outside of what r* was measured on, with the range that was."""
    cost: float | None
    """Nats that r loses against r*; of an r outside of the ratios that were run, what the nearest of them loses, the
    least that it can be. None where the depth of the valley is not known."""
    cost_interval: Interval | None
    change: float | None
    """Nats that moving the model from the template's ratio added to its loss; None where it was not moved, or the depth
    is not known. Far beyond the budgets that were measured no gain is credited, and it is 0 in place of that."""
    change_interval: Interval | None
    times_beyond: float | None
    """How many times the largest budget that was measured the plan's is, where a gain was therefore not credited."""
    realised: Realised | None
    """What was moved, where a ratio was asked for."""
    to_best: Realised | None
    """What it would take to stand at r*, where the model does not."""
    sentences: tuple[str, ...]
    """All of it for people."""
    warnings: tuple[str, ...]
    """What a model that was moved, or its loss, cannot promise."""

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
    law, beyond = _source(row, allocator)
    end = None if optimum is None else _held(optimum, level)
    cost = None if optimum is None else optimum.cost(ratio, level)
    change, uncredited = None, False
    if optimum is not None and row.realised is not None:
        change = allocator.change(row, template_ratio, ratio)
        change = (row.ratio_nats, change[1] if change else None) if reads else change
        uncredited = not reads and change is not None and change[0] == 0 < abs(np.log(ratio / template_ratio))
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
        best_of_law=None if optimum is None else optimum.law_ratio,
        best_range=None if optimum is None else optimum.span,
        at_end=optimum is not None and optimum.at_end,
        best_interval=None if optimum is None or end is not None else optimum.interval(level),
        best_held=end,
        level=level,
        extrapolated=tuple(beyond) if optimum is not None else (),
        cost=None if cost is None else cost[0],
        cost_interval=None if cost is None else cost[1],
        change=None if change is None else change[0],
        change_interval=None if change is None else change[1],
        times_beyond=allocator.times_beyond(row) if uncredited else None,
        realised=row.realised,
        to_best=to_best,
        sentences=(),
        warnings=(),
    )
    said = [_place(found, row, allocator), _best(found, row, allocator, reads), *_moved(found, reads)]
    if to_best is not None:
        said.append(f"To stand at r*, at equal FLOPs per token: {to_best.changes} (ratio best builds it).")
    if refusal:
        said.append(f"No integer model stands at r*: {refusal}")
    assumed = [] if reads or found.law is None else of_convention(allocator.best, convention)
    warnings = [*assumed, *_followed(found, allocator, reads), *_off_budget(found, row, allocator)]
    if row.realised is not None:
        warnings += of_context(allocator.best, row.model.context) if not reads and optimum is not None else []
        warnings += of_shape(row.model, ratio)
    return PlanAllocation(**{**vars(found), "sentences": tuple(said), "warnings": tuple(warnings)})


def _held(optimum: RatioOptimum, level: float) -> Literal["smallest", "largest"] | None:
    """The end of the ratios that were run at which both ends of the interval of r* lie, if they do."""
    ends = optimum.interval(level)
    if ends is None or optimum.span is None or not optimum.at_end or ends[1] > ends[0] * (1 + 1e-9):
        return None
    low, high = optimum.span
    return "smallest" if optimum.ratio < (low * high) ** 0.5 else "largest"


def _source(row: PlanRow, allocator: Allocator) -> tuple[str, list[str]]:
    """Name of what says r*, and what is asked of it beyond its runs."""
    law = allocator.families[row.architecture].law
    if not allocator.reads(row):
        own, asked = allocator.best, {"flops": allocator.budget(row), "sparsity": row.sparsity}
        return own.name, own.beyond(**asked, context=float(row.template.context))
    if not isinstance(law, Fit):
        return constants(law).name, []
    low, high = float(np.nanmin(law.runs.numeric("flops"))), float(np.nanmax(law.runs.numeric("flops")))
    beyond = []
    if not low / 10 * 0.999 <= row.flops <= high * 10 * 1.001:
        beyond.append(f"flops {exponent(row.flops)} ({exponent(low)} to {exponent(high)})")
    return f"law {law.form.name}", beyond


def _followed(found: PlanAllocation, allocator: Allocator, reads: bool) -> list[str]:
    """That a plan that follows r*, or counts on its valley, leaves what these were measured on."""
    asked = allocator.asked
    if found.realised is None or found.best is None or not (asked == "best" or found.change is not None):
        return []
    said = []
    if not reads and allocator.best.depth is not None and not allocator.best.is_visible:
        said.append(
            f"The runs behind r* by {found.law} do not show that there is a valley: its depth may be 0, and any ratio "
            "the best."
        )
    counted = "" if found.change is None else f", and {found.change:+.4f} nats of the loss rest on it"
    if found.times_beyond is not None:
        counted = (
            f"; the budget is {found.times_beyond:.3g} times the largest that was measured, so that the loss is "
            "without what the ratio would gain"
        )
    if found.extrapolated:
        what = f"r* = {found.best:.3g}" if asked == "best" else f"What r = {found.ratio:.3g} costs"
        said.append(
            f"{what} by {found.law} is an extrapolation far from what was measured (in parentheses): "
            f"{', '.join(found.extrapolated)}{counted}."
        )
    outside = [f"{ratio:.3g}" for ratio in (found.template_ratio, found.ratio) if not _was_run(found, ratio)]
    if found.change is not None and outside:
        assert found.best_range is not None
        means = "what the law says of it is an extrapolation" if reads else "no saving beyond them is credited"
        said.append(
            f"r = {' and '.join(outside)} {'lies' if len(outside) == 1 else 'lie'} outside of the ratios that were run "
            f"({_ends(found.best_range)}): {means}."
        )
    if asked == "best" and found.best_range is not None and found.at_end:
        low, high = found.best_range
        where = (
            f"the law says {found.best_of_law:.3g}, where nothing was run"
            if found.best_of_law is not None
            else "a better one may lie beyond"
        )
        said.append(
            f"r* is held at {found.best:.3g}, the {'smallest' if found.best < (low * high) ** 0.5 else 'largest'} of "
            f"the ratios that were run ({low:.3g} to {high:.3g}): {where}."
        )
    return said


def _off_budget(found: PlanAllocation, row: PlanRow, allocator: Allocator) -> list[str]:
    """That holding the exact FLOPs moves those of the plan's own convention off the budget."""
    if found.realised is None or allocator.convention == found.flops_convention:
        return []
    times = found.realised.moved_by(allocator.convention)
    held = found.realised.counted.training_flops_per_token * row.tokens
    if max(abs(np.log(times)), abs(np.log(held / row.flops))) < np.log(_OFF):
        return []
    return [
        f"A ratio is reached at equal {found.flops_convention} FLOPs, with head and attention scores, here "
        f"{exponent(held)}. By {allocator.convention}, which counts neither and which the budget is counted by, the "
        f"model to build takes {exponent(row.flops)} FLOPs, {times:.2f} times those of the shape that it was moved "
        "from; hours, energy and price follow that count."
    ]


def _was_run(found: PlanAllocation, ratio: float) -> bool:
    """Whether a ratio lies within those that were run, or as near to their ends as an integer model comes."""
    if found.best_range is None:
        return True
    low, high = found.best_range
    return low * (1 - 1.5 * RATIO_TOLERANCE) <= ratio <= high * (1 + 1.5 * RATIO_TOLERANCE)


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
    limits = allocator.problem.constraints
    free = limits.memory_per_device is None and limits.max_decode_ms is None
    if allocator.convention != found.flops_convention and allocator.asked is None and free:
        said += f"; {allocator.convention} counts no scores, so that sizes and ranking do not depend on the context"
    return f"{said}."


def _best(found: PlanAllocation, row: PlanRow, allocator: Allocator, reads: bool) -> str:
    """r*, how sure it is, and what the model loses against it."""
    if found.best is None:
        return f"{allocator.best.name} is a law of experts, and says nothing of r of a dense model."
    sure = "interval unknown" if found.best_interval is None else f"{found.level:.0%} {_ends(found.best_interval)}"
    if found.best_held is not None:
        sure = f"{found.level:.0%} at or {'beyond' if found.best_held == 'largest' else 'below'} {found.best:.3g}"
    if found.best_of_law is not None and found.best_range is not None:
        sure += (
            f"; held within the ratios that were run, {_ends(found.best_range)}, though the law says "
            f"{found.best_of_law:.3g}"
        )
    elif found.at_end and found.best_range is not None:
        sure += f"; at an end of the ratios that were run, {_ends(found.best_range)}: a better one may lie beyond"
    if found.extrapolated:
        sure += f"; extrapolated, outside of what it was measured on: {', '.join(found.extrapolated)}"
    at = f"at {exponent(row.flops if reads else allocator.budget(row))} FLOPs and S = {row.sparsity:.3g}"
    said = f"r* = {found.best:.3g} by {found.law} {at} ({sure})"
    if found.cost is None:
        shallow = allocator.best.depth is not None
        why = "its runs show no valley" if shallow else "that law says no depth of the valley"
        return f"{said}; what r = {found.ratio:.3g} costs against it is not known: {why}."
    interval = _paren(found.cost_interval, found.level)
    outside = not _was_run(found, found.ratio)
    least = "at least " if outside else ""
    said += f"; r = {found.ratio:.3g} costs {least}{found.cost:.4f} nats against it{interval}"
    said += f": no ratio beyond {_ends(found.best_range)} was run." if outside and found.best_range else "."
    if not reads and not allocator.best.is_visible:
        said += " The runs behind r* do not show that there is a valley: its depth may be 0."
    return said


def _moved(found: PlanAllocation, reads: bool) -> list[str]:
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
    elif found.times_beyond is not None:
        said.append(
            "The loss is that of the template's shape: so far beyond the budgets that were measured, what the ratio "
            "would gain is not credited."
        )
    elif found.change is None:
        said.append("The loss is that of the template's shape: what the ratio adds is not known.")
    else:
        said.append(
            f"The loss is that of the template's shape and {found.change:+.4f} nats by the valley"
            f"{_paren(found.change_interval, found.level)}: the law is not asked about the parameters that r moves, "
            "which would count them twice."
        )
    return said


def _ends(interval: Interval) -> str:
    return f"{interval[0]:.3g} to {interval[1]:.3g}"


def _paren(interval: Interval | None, level: float) -> str:
    return "" if interval is None else f" ({level:.0%} {interval[0]:.4f} to {interval[1]:.4f})"
