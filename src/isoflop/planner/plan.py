"""From a compute budget and a loss law to ranked architectures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Unpack

import numpy as np

from isoflop.errors import InputError
from isoflop.laws import BestRatio, exponent
from isoflop.planner._sentences import (
    CONTEXT,
    VOCAB_SIZE,
    apart,
    assumed,
    idle,
    of_limits,
    of_machine,
    off_convention,
    told_apart,
    unsure_ranking,
    warnings_of,
)
from isoflop.planner.candidates import (
    agreed_convention,
    check_experts,
    continuous_families,
    default_templates,
    ladder_families,
    named_laws,
)
from isoflop.planner.constraints import Constraints, Limits
from isoflop.planner.continuous import CONVENTIONS
from isoflop.planner.families import ContinuousFamily, Family
from isoflop.planner.hardware import Machine
from isoflop.planner.ladder import SPACING
from isoflop.planner.losses import LossLaw, draws, is_known, knows_uncertainty
from isoflop.planner.optimum import with_size_intervals
from isoflop.planner.problem import MOST_FLOPS, Problem, checked_flops
from isoflop.planner.ratio import Allocator, Ratio, checked_ratio, reads_ratio
from isoflop.planner.ratio_doubts import of_status
from isoflop.planner.ratio_report import report_on
from isoflop.planner.result import Curve, Plan, PlanRow
from isoflop.planner.speed import SpeedTable
from isoflop.planner.template import Template
from isoflop.planner.versus import DenseComparison, compare_with_dense

_GPU_MULTIPLE: Final = 64
"""Widths of models for a GPU are multiples of this unless told otherwise, where no template says what they are like."""

_BUILDABLE: Final = (3, 2)
"""Continuous rows, best first, for which integer models are given, and how many of each."""


_BETTER: Final = 0.001
"""Nats by which an integer model must be better than the best continuous shape of its kind to stand beside it."""


def plan(
    *,
    law: str | LossLaw | Mapping[str, LossLaw],
    flops: float | None = None,
    device_hours: float | None = None,
    hours: float | None = None,
    machine: Machine | None = None,
    speed: SpeedTable | None = None,
    convention: str | None = None,
    templates: Sequence[Template] = (),
    granularities: Sequence[int] | None = None,
    expansion_rates: Sequence[float] | None = None,
    level: float = 0.9,
    vocab_size: int | None = None,
    context: int | None = None,
    spacing: float = SPACING,
    multiple: int | None = None,
    head_dim: int | None = None,
    ratio: Ratio | None = None,
    allocation: str | BestRatio | None = None,
    **limits: Unpack[Limits],
) -> Plan:
    """Rank what a training budget could be spent on by the loss that the law predicts.

    Under a convention of the papers (`krajewski`, `6ND`) and without templates, shapes are continuous (see
    isoflop.planner.continuous), and each granularity and expansion rate gives one row: its compute-optimal size and
    tokens; `models` of the plan are the nearest that can be built. Otherwise rows are integer models, counted exactly,
    and every size near an optimum is a row.

    Args:
        law: name of a published law, a Law or a Fit; or a mapping from label to Law or Fit where families have laws of
            their own. A template takes the law under its name, else its family (`dense`, `moe-e8`), else the only one
            that holds for its expansion rate.
        flops: the budget; exactly one of the three.
        device_hours: the budget as hours of one device of `machine`, summed over its devices.
        hours: the budget as hours of the whole machine.
        machine: what training runs on; its memory limits nothing unless `memory_per_device` says so.
        speed: measured speed of experts by their width. With a budget in hours candidates are then compared at equal
            time, else at equal FLOPs, and `other_best` of the plan is the best of the other comparison.
        convention: how FLOPs are counted; default: that of the law.
        templates: families of integer models to choose from. Default: those that the laws were fitted on.
        granularities: values of G to consider; with templates, each MoE template is tried at each of them.
            Default: what the templates say; for continuous shapes those of the fit's rows, or 1, 2, 4 … 256 for
            published constants. A value beyond a fit's rows is warned of.
        expansion_rates: values of E to consider; default: what the templates or the laws say, likewise.
        level: of the prediction intervals, and of those of the best sizes.
        vocab_size: of default templates, and of the models nearest to continuous shapes (there by default 50257).
        context: likewise (1024).
        spacing: ratio of the sizes of integer models; best that of the runs which the law was fitted on, so that a plan
            stands on shapes that were tried.
        multiple: d_model, d_ff and d_expert of integer models are multiples of this. Default: what the templates say;
            64 without templates on a machine whose hardware is a GPU.
        head_dim: size of their heads; default: what the templates say.
        ratio: r, expert (or feed-forward) FLOPs / attention FLOPs, of the integer models (of a template's, the four
            best), each at its FLOPs per token and tokens (see planner.realise), counted as `allocation` counts it;
            best: r* at its budget and sparsity, or where the law of the loss reads the ratio, the one of the lowest
            loss. The loss is then that of the template's shape plus what the valley says of the two ratios, unless the
            law reads the ratio. Curves, costs of limits and the comparison with dense stay those of the templates'
            shapes. Default: these.
        allocation: published law of the best ratio, or one of `isoflop valleys`; default: li-2026, which is of experts
            alone and says neither interval nor cost.
        **limits: fields of isoflop.planner.Constraints, such as tokens_available, max_params_total or inference_tokens.

    A template that no law describes is left out, and `warnings` of the plan says so; `notes` says what was assumed.

    Raises:
        InputError: if an argument is out of range, law and convention do not belong together, no template has a law, or
            budget and constraints leave nothing.
    """
    flops = _budget(flops, device_hours, hours, machine)
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}; it must be between 0 and 1.")
    constraints = Constraints(**limits)
    _check_machine(constraints, machine)
    timed = speed is not None and (hours is not None or device_hours is not None)
    problem = Problem(flops=flops, constraints=constraints, machine=machine, speed=speed, timed=timed, level=level)
    laws = named_laws(law)
    ratio, best_ratio = checked_ratio(ratio, allocation, list(laws.values()))
    convention = agreed_convention(laws, convention)
    notes = [] if machine is None else machine.notes()
    on_gpu = machine is not None and machine.hardware is not None and machine.hardware.peak_flops is not None
    if not templates and multiple is None and on_gpu:
        multiple = _GPU_MULTIPLE
        notes.append(f"widths of models are multiples of {multiple}, as GPUs like; `multiple` changes that.")
    mixtures = [] if templates else check_experts(laws)
    if not templates and convention not in CONVENTIONS and vocab_size is not None and context is not None:
        templates = default_templates(laws, vocab_size, context)
    families: Sequence[Family]
    left_out: list[str] = []
    if templates:
        families, left_out = ladder_families(
            laws, convention, templates, granularities, expansion_rates, spacing, multiple, head_dim
        )
    else:
        notes += assumed(vocab_size, context, problem, at_ratio=ratio is not None)
        families = continuous_families(
            laws,
            convention,
            granularities,
            expansion_rates,
            vocab_size=VOCAB_SIZE if vocab_size is None else vocab_size,
            context=CONTEXT if context is None else context,
            multiple=multiple,
            head_dim=head_dim,
        )
    rows, curves = _solve(families, problem)
    if not rows:
        raise _nothing_left(families, problem)
    models = _models(families, rows, problem)
    if constraints.cap_models:
        rows = _with_better_models(rows, models)
    rows = with_size_intervals(families, rows, problem)
    costs = _costs(families, problem, rows[0].loss)
    allocator = Allocator(
        asked=ratio,
        best=best_ratio,
        problem=problem,
        convention=convention,
        families={family.name: family for family in families},
        head_dim=head_dim,
    )
    rows, models, moved = _allocated(rows, models, allocator)
    other = None
    if speed is not None:
        compared, _ = _solve(families, replace(problem, timed=not timed))
        other = next(iter(allocator.moved(compared[:1]).rows), None)
        notes.append(speed.note)
    ties = _ties(families, rows, problem)
    if ties is not None:
        notes.append(told_apart(rows, ties, level))
    notes += unsure_ranking(families, rows)
    built = Plan.built_of(rows, models)
    allocated = None if built is None else report_on(built, allocator)
    return Plan(
        flops=flops,
        convention=convention,
        table=tuple(rows),
        curves=tuple(curves),
        constraint_costs=costs,
        warnings=(
            *of_status(best_ratio),
            *warnings_of(families, rows, models, problem, costs),
            *of_machine(rows[0], machine, constraints),
            *off_convention(rows[0], models, convention),
            *moved,
            *([] if allocated is None else allocated.warnings),
            *mixtures,
            *apart(laws),
            *left_out,
            *idle(laws, families),
        ),
        notes=(*notes, *of_limits(constraints, problem)),
        ties=ties,
        models=models,
        machine=machine,
        timed=timed,
        other_best=other,
        against_dense=_against_dense(families, rows, problem),
        allocation=allocated,
        problem=problem,
        families=tuple(families),
    )


def _budget(flops: float | None, device_hours: float | None, hours: float | None, machine: Machine | None) -> float:
    """The budget in FLOPs."""
    given = {"flops": flops, "device_hours": device_hours, "hours": hours}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise InputError(
            f"budget: {' and '.join(names) + ' are' if names else 'none is'} given; give exactly one of "
            f"{', '.join(given)}."
        )
    if flops is not None:
        return checked_flops("flops", flops)
    if machine is None:
        raise InputError(f"{names[0]} is given without a machine; say what hardware the hours are of.")
    if hours is not None:
        if not 0 < hours < math.inf:
            raise InputError(f"hours is {hours:g}; it must be positive and finite.")
        device_hours = hours * machine.devices
    assert device_hours is not None
    found = machine.flops(device_hours)
    if found > MOST_FLOPS:
        raise InputError(
            f"{names[0]} is {given[names[0]]:g}, which are {exponent(found)} FLOPs; at most {exponent(MOST_FLOPS)} are "
            "allowed."
        )
    return found


def _check_machine(constraints: Constraints, machine: Machine | None) -> None:
    hardware = None if machine is None else machine.hardware
    if constraints.max_decode_ms is not None and (hardware is None or hardware.memory_bandwidth is None):
        name = "not given" if hardware is None else f"{hardware.name}, which has no memory_bandwidth"
        raise InputError(
            f"max_decode_ms is given, but hardware is {name}; its memory bandwidth sets the time of a token."
        )
    parallel, devices = constraints.expert_parallel, 1 if machine is None else machine.devices
    if parallel is not None and machine is not None and devices % parallel:
        raise InputError(f"expert_parallel is {parallel}; it must divide devices={devices}.")


def _solve(families: Sequence[Family], problem: Problem) -> tuple[list[PlanRow], list[Curve]]:
    """All rows and curves, best first."""
    solved = [family.solve(problem) for family in families]
    rows = sorted((row for found, _ in solved for row in found), key=lambda row: (row.loss, row.granularity))
    curves = sorted((curve for _, curve in solved if curve is not None), key=lambda curve: curve.loss.min())
    return rows, curves


def _costs(families: Sequence[Family], problem: Problem, loss: float) -> dict[str, float]:
    """Nats that each limit costs."""
    costs = {}
    for name, _ in problem.constraints.active():
        free = replace(problem, constraints=problem.constraints.without(name))
        freed, _ = _solve([family.certain() for family in families], free)
        costs[name] = max(0.0, loss - min(row.loss for row in freed))
    return costs


def _models(families: Sequence[Family], rows: Sequence[PlanRow], problem: Problem) -> tuple[PlanRow, ...]:
    """Integer models nearest to the best continuous rows; to worse rows where those have none."""
    known = {family.name: family for family in families}
    most, each = _BUILDABLE
    found: list[PlanRow] = []
    for rank, row in enumerate(rows):
        if rank >= most and found:
            break
        family = known[row.architecture]
        if isinstance(family, ContinuousFamily):
            found += family.models(row, problem, each)
    return tuple(sorted(found, key=lambda row: row.loss))


def _allocated(
    rows: Sequence[PlanRow], models: Sequence[PlanRow], allocator: Allocator
) -> tuple[list[PlanRow], tuple[PlanRow, ...], list[str]]:
    """Rows and models at the ratio that was asked for, and sentences about those that cannot be there.

    Raises:
        InputError: if none can, or nothing says the best ratio of any.
    """
    if allocator.asked is None:
        return list(rows), tuple(models), []
    built = [row for row in (*rows, *models) if row.model is not None]
    if not built:
        raise InputError(f"ratio is {allocator.asked}, but no model that can be built fits the limits; relax one.")
    if allocator.asked == "best" and not any(map(allocator.applies, built)):
        raise InputError(
            f"ratio is best, but every model is dense, of which {allocator.best.name} says nothing; give a number, or "
            "leave ratio out."
        )
    there, also = allocator.moved(rows), allocator.moved(models)
    return there.rows, tuple(also.rows), allocator.sentences(there, also)


def _with_better_models(rows: Sequence[PlanRow], models: Sequence[PlanRow]) -> list[PlanRow]:
    """The rows, and the integer models that are better than the continuous shape of their kind, best first.

    A continuous shape has one aspect, and what it takes is interpolated: where a limit binds, a model of another aspect
    may be allowed although that shape of its size is not.
    """
    least: dict[str, float] = {}
    for row in rows:
        least.setdefault(row.architecture, row.loss)
    better = [model for model in models if model.loss < least.get(model.architecture, -math.inf) - _BETTER]
    return sorted([*rows, *better], key=lambda row: (row.loss, row.granularity))


def _ties(families: Sequence[Family], rows: Sequence[PlanRow], problem: Problem) -> tuple[str, ...] | None:
    """Architectures whose best row may be as good as the best of all; None if there is one, or a law without draws.

    Draw i of one row is set against draw i of the other: exact within a law, and where laws share their resamples; laws
    of other runs are independent, and so are their draws.
    """
    laws = {family.name: family.law for family in families}
    leaders: dict[str, PlanRow] = {}
    for row in rows:
        leaders.setdefault(row.architecture, row)
    drawn = []
    for row in leaders.values():
        law = laws[row.architecture]
        if not knows_uncertainty(law) or not is_known(law):
            return None
        drawn.append(draws(law, row.read) + (0.0 if reads_ratio(law) else row.ratio_nats))
    if len(drawn) < 2:
        return None
    count = min(map(len, drawn))
    low = (1 - problem.level) / 2
    behind = [np.quantile(each[:count] - drawn[0][:count], low) for each in drawn[1:]]
    return tuple(name for name, least in zip(list(leaders)[1:], behind, strict=True) if least <= 0)


def _against_dense(families: Sequence[Family], rows: Sequence[PlanRow], problem: Problem) -> DenseComparison | None:
    """The best MoE family against the dense one, if both are there."""
    known = {family.name: family for family in families}
    dense = next((family for family in families if family.n_experts == 1), None)
    moe = next((row.architecture for row in rows if row.n_experts > 1), None)
    if dense is None or moe is None:
        return None
    limited = any(True for _ in problem.constraints.active())
    return compare_with_dense(dense, known[moe], problem.flops, level=problem.level, limited=limited)


def _nothing_left(families: Sequence[Family], problem: Problem) -> InputError:
    least = [family.smallest(problem) for family in families]
    free, _ = _solve([family.certain() for family in families], replace(problem, constraints=Constraints()))
    if not free:
        smallest = min(least, key=lambda each: each["params_active"])
        return InputError(
            f"flops is {exponent(problem.flops)}; not even the smallest candidate, of {smallest['params_active']:.0f} "
            f"active parameters, can be trained on one sequence of {smallest['tokens']:.0f} tokens."
        )
    inference = problem.constraints.inference_tokens
    serving = min(each["lifetime_flops"] - each["flops"] for each in least)
    if inference is not None and serving >= problem.flops:
        return InputError(
            f"inference_tokens is {inference:g}; serving them takes {exponent(serving)} FLOPs with the smallest "
            f"candidate, of a budget of {exponent(problem.flops)}."
        )
    bounds = {name: min(each[name] for each in least) for name in least[0]}
    return problem.constraints.explain_nothing_left(bounds, {float(family.n_experts) for family in families})
