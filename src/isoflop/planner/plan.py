"""From a compute budget and a loss law to ranked architectures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from isoflop.errors import InputError
from isoflop.laws import Fit, exponent
from isoflop.planner.candidates import (
    agreed_convention,
    continuous_families,
    default_templates,
    ladder_families,
    named_laws,
)
from isoflop.planner.constraints import Constraints
from isoflop.planner.continuous import CONVENTIONS
from isoflop.planner.families import Family, LossLaw, constants, knows_uncertainty
from isoflop.planner.ladder import SPACING
from isoflop.planner.result import Curve, Plan, PlanRow
from isoflop.planner.template import Template

_VOCAB_SIZE = 50257
_CONTEXT = 1024


def plan(
    *,
    flops: float,
    law: str | LossLaw | Mapping[str, LossLaw],
    convention: str | None = None,
    templates: Sequence[Template] = (),
    granularities: Sequence[int] | None = None,
    expansion_rates: Sequence[float] | None = None,
    tokens_available: float | None = None,
    max_params_total: float | None = None,
    max_params_active: float | None = None,
    level: float = 0.9,
    vocab_size: int | None = None,
    context: int | None = None,
    spacing: float = SPACING,
) -> Plan:
    """Rank what a training budget could be spent on by the loss that the law predicts.

    Under a convention of the papers (`krajewski`, `6ND`) and without templates, shapes are continuous (see
    isoflop.planner.continuous), and each granularity and expansion rate gives one row: its compute-optimal size and
    tokens. Otherwise they are integer models, counted exactly, and every size near an optimum is a row.

    Args:
        flops: training budget.
        law: name of a published law, a Law or a Fit; or a mapping from label to Law or Fit where families have laws of
            their own. A template takes the law under its name, else its family (`dense`, `moe-e8`), else the only one
            that holds for its expansion rate.
        convention: how FLOPs are counted; default: that of the law.
        templates: families of integer models to choose from. Default: those that the laws were fitted on.
        granularities: values of G to consider; with templates, each MoE template is tried at each of them.
            Default: what the templates say; 1, 2, 4 … 256 for continuous shapes.
        expansion_rates: values of E to consider; default: what the templates or the laws say.
        tokens_available: at most this many distinct tokens, seen once.
        max_params_total: largest number of non-embedding parameters.
        max_params_active: largest number of non-embedding parameters that a token uses.
        level: of the prediction intervals.
        vocab_size: of default templates, and of the models nearest to continuous shapes (there by default 50257).
        context: likewise (1024).
        spacing: ratio of the sizes of integer models; best that of the runs which the law was fitted on, so that a plan
            stands on shapes that were tried.

    A template that no law describes is left out, and `warnings` of the plan says so; `notes` says what was assumed.

    Raises:
        InputError: if an argument is out of range, law and convention do not belong together, no template has a law, or
            budget and constraints leave nothing.
    """
    if not 0 < flops < math.inf:
        raise InputError(f"flops is {flops:g}; it must be positive and finite.")
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}; it must be between 0 and 1.")
    constraints = Constraints(
        tokens_available=tokens_available,
        max_params_total=max_params_total,
        max_params_active=max_params_active,
    )
    laws = named_laws(law)
    convention = agreed_convention(laws, convention)
    if not templates and convention not in CONVENTIONS and vocab_size is not None and context is not None:
        templates = default_templates(laws, vocab_size, context)
    families: Sequence[Family]
    left_out: list[str] = []
    notes: list[str] = []
    if templates:
        families, left_out = ladder_families(laws, convention, templates, granularities, expansion_rates, spacing)
    else:
        notes = _assumed(vocab_size, context)
        families = continuous_families(
            laws,
            convention,
            granularities,
            expansion_rates,
            vocab_size=_VOCAB_SIZE if vocab_size is None else vocab_size,
            context=_CONTEXT if context is None else context,
        )
    rows, curves = _solve(families, flops, constraints, level)
    if not rows:
        raise _nothing_left(families, flops, constraints, level)
    costs = {}
    for name, _ in constraints.active():
        freed, _ = _solve(families, flops, constraints.without(name), level)
        costs[name] = max(0.0, rows[0].loss - min(row.loss for row in freed))
    return Plan(
        flops=flops,
        convention=convention,
        table=tuple(rows),
        curves=tuple(curves),
        constraint_costs=costs,
        warnings=(*_warnings(families, rows, flops), *left_out),
        notes=tuple(notes),
    )


def _solve(
    families: Sequence[Family], flops: float, constraints: Constraints, level: float
) -> tuple[list[PlanRow], list[Curve]]:
    """All rows and curves, best first."""
    solved = [family.solve(flops, constraints, level) for family in families]
    rows = sorted((row for found, _ in solved for row in found), key=lambda row: (row.loss, row.granularity))
    curves = sorted((curve for _, curve in solved if curve is not None), key=lambda curve: curve.loss.min())
    return rows, curves


def _nothing_left(families: Sequence[Family], flops: float, constraints: Constraints, level: float) -> InputError:
    free, _ = _solve(families, flops, Constraints(), level)
    if not free:
        smallest = min((family.smallest() for family in families), key=lambda least: least["params_active"])
        return InputError(
            f"flops is {exponent(flops)}; not even the smallest candidate, of {smallest['params_active']:.0f} active "
            f"parameters, can be trained on one sequence of {smallest['tokens']:.0f} tokens."
        )
    least = [family.smallest() for family in families]
    return constraints.explain_nothing_left({name: min(row[name] for row in least) for name in least[0]})


def _assumed(vocab_size: int | None, context: int | None) -> list[str]:
    """What stands in for arguments that continuous shapes can do without, and what it touches."""
    defaults = [("vocab_size", vocab_size, _VOCAB_SIZE), ("context", context, _CONTEXT)]
    assumed = [f"{name} {default}" for name, given, default in defaults if given is None]
    if not assumed:
        return []
    return [
        f"{' and '.join(assumed)} {'are defaults' if len(assumed) > 1 else 'is a default'}: the spec of the best model "
        "has them, the ranking does not depend on them."
    ]


def _doubts(families: Sequence[Family], rows: Sequence[PlanRow]) -> list[str]:
    """Which of the fits behind the rows are not to be trusted, the best row's first."""
    laws = {family.name: family.law for family in families}
    found: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(row.architecture for row in rows):
        law = laws[name]
        if isinstance(law, Fit) and law.status != "converged":
            found.setdefault((law.status, law.message), []).append(name)
    return [
        f"The law behind {', '.join(names)} has status {status}: {message.rstrip('.')}."
        for (status, message), names in found.items()
    ]


def _warnings(families: Sequence[Family], rows: Sequence[PlanRow], flops: float) -> list[str]:
    """What the predictions cannot promise: doubtful fits of all rows first, then the best row's own limits."""
    best = rows[0]
    family = next(family for family in families if family.name == best.architecture)
    law = constants(family.law)
    sentences = _doubts(families, rows)
    guessing = math.log(best.template.vocab_size)
    if best.loss > guessing:
        sentences.append(
            f"The predicted loss {best.loss:.3g} is worse than guessing among {best.template.vocab_size} tokens, which "
            f"has {guessing:.3g}: a budget of {exponent(flops)} FLOPs is too small for law {law.name}."
        )
    if isinstance(family.law, Fit) and not knows_uncertainty(family.law):
        sentences.append("The fit has no bootstrap draws, or no more rows than parameters: no prediction interval.")
    asked = replace(law, warnings=[])
    asked.predict({name: [value] for name, value in best.to_dict().items() if isinstance(value, (int, float))})
    sentences += asked.warnings
    if best.flops < 0.98 * flops:
        sentences.append(
            f"Only {exponent(best.flops)} of {exponent(flops)} FLOPs are spent: the available tokens, seen once, last "
            "no longer."
        )
    solved = {row.architecture for row in rows}
    missing = [family.name for family in families if family.name not in solved]
    if missing:
        sentences.append(f"No model of {', '.join(missing)} fits the budget and its limits.")
    return sentences
