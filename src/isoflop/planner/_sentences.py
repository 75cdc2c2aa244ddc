"""What a plan says in sentences: what was assumed, what its limits mean, and what its predictions cannot promise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from isoflop.laws import Fit, exponent
from isoflop.laws.cautions import cautions
from isoflop.planner.constraints import Constraints
from isoflop.planner.families import Family
from isoflop.planner.hardware import Machine
from isoflop.planner.losses import LossLaw, beyond_runs, constants, far_from_runs, is_known, knows_uncertainty
from isoflop.planner.problem import Problem
from isoflop.planner.result import PlanRow
from isoflop.spec import count

VOCAB_SIZE: Final = 50257
"""Of models near continuous shapes, unless told otherwise."""

CONTEXT: Final = 1024
"""Likewise."""


_OFF: Final = 1.1
"""Ratio of exact FLOPs to those of a convention from which on it is said."""

_COSTLY: Final = 1e-3
"""Nats that a limit costs at least to be named as a reason."""


def assumed(vocab_size: int | None, context: int | None, problem: Problem, *, at_ratio: bool) -> list[str]:
    """What stands in for arguments that continuous shapes can do without, and what it touches.

    Args:
        vocab_size: as it was given.
        context: likewise.
        problem: what is asked.
        at_ratio: whether models are built at a ratio of experts and attention, which scores over the context are in.
    """
    defaults = [("vocab_size", vocab_size, VOCAB_SIZE), ("context", context, CONTEXT)]
    stood_in = [f"{name} {default}" for name, given, default in defaults if given is None]
    if not stood_in:
        return []
    limits = problem.constraints
    depends = limits.memory_per_device is not None or limits.max_decode_ms is not None
    are = "are defaults" if len(stood_in) > 1 else "is a default"
    return [
        f"{' and '.join(stood_in)} {are}: the spec of the best model "
        + (
            "and its memory depend on them."
            if depends
            else "and what the ratio makes of it depend on them, the table's ranking does not."
            if at_ratio
            else "has them, the ranking does not depend on them."
        )
    ]


def of_limits(limits: Constraints, problem: Problem) -> list[str]:
    """What the limits that were given mean."""
    found = []
    if limits.repeat:
        found.append(
            "tokens beyond one epoch repeat: D of U distinct ones count as "
            "U + U·R(1 − exp(−(D/U − 1)/R)), R = 15.4 (arXiv 2305.16264); that law's other half, which discounts "
            "parameters beyond what U tokens would want, is not in it."
        )
    if limits.memory_per_device is not None:
        sharded = f"sharded over {problem.devices} devices" if problem.devices > 1 else "on one device"
        checkpointed = "with" if limits.activation_checkpointing else "without"
        found.append(
            f"memory: float32 weights, gradients and AdamW {sharded}, bf16 copies at work, activations and logits of "
            f"{limits.micro_batch} sequence{'s' if limits.micro_batch > 1 else ''} a device, {checkpointed} activation "
            "checkpointing; nothing for fragmentation or communication buffers."
        )
    if limits.inference_tokens is not None:
        found.append(
            f"the budget pays the forward FLOPs of {limits.inference_tokens:g} served tokens as well as "
            "training; energy and price are those of training alone."
        )
    if limits.max_decode_ms is not None:
        found.append(
            "decoding: one sequence on one device, which reads active weights, head and a full KV cache in 2-byte "
            "numbers at its peak bandwidth for each token; real decoding is slower."
        )
    return found


def told_apart(rows: Sequence[PlanRow], ties: Sequence[str], level: float) -> str:
    """How sure the ranking is, from the architectures that may be as good as the best."""
    best = rows[0].architecture
    if not ties:
        return f"{best} is told from every other architecture at the {level:.0%} level."
    return (
        f"{', '.join(ties)} cannot be told from {best} at the {level:.0%} level: the law's interval of the difference "
        "of their losses holds 0."
    )


def unsure_ranking(families: Sequence[Family], rows: Sequence[PlanRow]) -> list[str]:
    """That the ranking rests on laws that their runs do not identify, if there are several architectures to rank."""
    laws = {family.name: family.law for family in families}
    ranked = dict.fromkeys(row.architecture for row in rows)
    loose = [name for name in ranked if not is_known(laws[name])]
    if not loose or len(ranked) < 2:
        return []
    return [
        f"which architecture is the best is not known: the runs do not identify the law behind {', '.join(loose)}, and "
        "its intervals show less than what is open."
    ]


def of_machine(best: PlanRow, machine: Machine | None, limits: Constraints) -> list[str]:
    """That the best model, or the limit on memory, is more than a device has."""
    hardware = None if machine is None else machine.hardware
    if machine is None or hardware is None or hardware.memory_bytes is None:
        return []
    has = hardware.memory_bytes
    if limits.memory_per_device is not None:
        if limits.memory_per_device <= has:
            return []
        return [f"memory_per_device is {limits.memory_per_device / 1e9:g} GB; {hardware.name} has {has / 1e9:g} GB."]
    if best.memory_bytes is None or best.memory_bytes <= has:
        return []
    return [
        f"The best model needs {best.memory_bytes / 1e9:.3g} GB on each of {machine.devices} "
        f"device{'s' if machine.devices > 1 else ''}; {hardware.name} has {has / 1e9:g} GB: give the number of "
        "devices, and their memory becomes a limit."
    ]


def off_convention(best: PlanRow, models: Sequence[PlanRow], convention: str) -> list[str]:
    """That the model to build takes other FLOPs than the law's convention counts, if by more than a tenth."""
    if convention not in ("6ND", "krajewski"):
        return []
    row = best if best.model is not None else next(iter(models), None)
    if row is None or row.realised is not None:  # of a moved model PlanAllocation.warnings tells it
        return []
    ratio = count(row.spec).training_flops_per_token * row.tokens / row.flops
    if abs(math.log(ratio)) < math.log(_OFF):
        return []
    return [
        f"Counted exactly, with head and attention scores, the model to build takes {exponent(ratio * row.flops)} "
        f"FLOPs to train, {ratio:.2f} times what {convention} counts: so it is with hours, energy and price."
    ]


def idle(laws: Mapping[str, LossLaw], families: Sequence[Family]) -> list[str]:
    """Which laws no candidate takes."""
    used = {id(family.law) for family in families}
    left = [label for label, law in laws.items() if id(law) not in used]
    return (
        [f"No candidate takes law {', '.join(left)}: none is an architecture that it alone holds for."] if left else []
    )


def apart(laws: Mapping[str, LossLaw]) -> list[str]:
    """That fits of different tables are ranked together, if they are."""
    sources = dict.fromkeys(law.runs.source for law in laws.values() if isinstance(law, Fit) and not law.shared_with)
    if len(sources) < 2:
        return []
    return [
        f"The laws were fitted to different tables ({', '.join(sources)}): their losses compare only where data, "
        "tokenizer and loss were the same."
    ]


def _doubts(families: Sequence[Family], rows: Sequence[PlanRow], level: float) -> list[str]:
    """Which of the fits behind the rows are not to be trusted, and why, the best row's first."""
    laws = {family.name: family.law for family in families}
    found: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(row.architecture for row in rows):
        law = laws[name]
        if isinstance(law, Fit) and law.status != "converged":
            found.setdefault((law.status, law.message), []).append(name)
    sentences = [
        f"The law behind {', '.join(names)} has status {status}: {message.rstrip('.')}."
        for (status, message), names in found.items()
    ]
    doubtful: dict[str, list[str]] = {}
    for name in dict.fromkeys(row.architecture for row in rows):
        law = laws[name]
        if isinstance(law, Fit) and law.status == "converged":
            for caution in cautions(law, law.interval(level) if knows_uncertainty(law) else None):
                doubtful.setdefault(caution, []).append(name)
    return sentences + [f"Of the law behind {', '.join(names)}, {said}" for said, names in doubtful.items()]


def warnings_of(
    families: Sequence[Family],
    rows: Sequence[PlanRow],
    models: Sequence[PlanRow],
    problem: Problem,
    costs: Mapping[str, float],
) -> list[str]:
    """What the predictions cannot promise: doubtful fits of all rows first, then the best row's own limits.

    Args:
        families: what was chosen from.
        rows: of the plan.
        models: of the plan.
        problem: what was asked.
        costs: nats that each limit costs.
    """
    best, flops = rows[0], problem.flops
    family = next(family for family in families if family.name == best.architecture)
    law = constants(family.law)
    sentences = _doubts(families, rows, problem.level)
    guessing = math.log(best.template.vocab_size)
    if best.loss > guessing:
        binding = [name for name, cost in costs.items() if best.loss - cost <= guessing]
        limits = [name for name, cost in costs.items() if cost > _COSTLY]
        if binding:
            why = f"that is because of {' and '.join(binding)}, not of the budget"
        else:
            within = f" within {' and '.join(limits)}" if limits else ""
            why = f"a budget of {exponent(flops)} FLOPs{within} is too small for law {law.name}"
        sentences.append(
            f"The predicted loss {best.loss:.3g} is worse than guessing among {best.template.vocab_size} tokens, which "
            f"has {guessing:.3g}: {why}."
        )
    by_name = {each.name: each.law for each in families}
    leaders: dict[str, PlanRow] = {}
    for row in rows:
        leaders.setdefault(row.architecture, row)
    sentences += beyond_runs(
        (by_name[row.architecture], column, float(getattr(row, column)))
        for row in leaders.values()
        for column in ("granularity", "expansion_rate")
        if column == "expansion_rate" or row.n_experts > 1
    )
    sentences += far_from_runs((by_name[row.architecture], row.read) for row in leaders.values())
    if isinstance(family.law, Fit) and not knows_uncertainty(family.law):
        sentences.append("The fit has no bootstrap draws, or no more rows than parameters: no prediction interval.")
    asked = replace(law, warnings=[])
    asked.predict({name: [value] for name, value in best.to_dict().items() if isinstance(value, (int, float))})
    sentences += asked.warnings
    spent = best.lifetime_flops * (best.slowdown if problem.timed else 1)
    if spent < 0.98 * flops:
        seen = "" if problem.constraints.repeat else ", seen once,"
        sentences.append(
            f"Only {exponent(spent)} of {exponent(flops)} FLOPs are spent: the available tokens{seen} last no longer."
        )
    if best.model is None and not any(row.architecture == best.architecture for row in models):
        instead = f"the spec is one of {models[0].architecture}" if models else "there is no spec"
        sentences.append(f"No model of {best.architecture} that can be built fits the limits: {instead}.")
    solved = {row.architecture for row in rows}
    missing = [family.name for family in families if family.name not in solved]
    if missing:
        sentences.append(f"No model of {', '.join(missing)} fits the budget and its limits.")
    return sentences
