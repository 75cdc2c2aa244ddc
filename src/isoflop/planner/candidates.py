"""Which families a plan chooses from: laws, convention, granularities and expansion rates made to agree."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from isoflop.errors import InputError
from isoflop.laws import PUBLISHED, Fit, Law, published
from isoflop.planner import continuous
from isoflop.planner.families import ContinuousFamily, Family, LadderFamily, LossLaw, constants
from isoflop.planner.ladder import Template
from isoflop.spec import CONVENTIONS, ExpertsSpec, RouterSpec

GRANULARITIES = tuple(2**power for power in range(9))
"""What a plan with continuous shapes considers unless told otherwise, for a law that knows G."""

EXPANSION_RATES = tuple(2**power for power in range(7))
"""Likewise for a law that knows E."""


def named_laws(law: str | LossLaw | Mapping[str, LossLaw]) -> dict[str, LossLaw]:
    """Laws by architecture; the key is empty where one law serves all."""
    if isinstance(law, str):
        return {"": published(law)}
    if isinstance(law, (Law, Fit)):
        return {"": law}
    if not law:
        raise InputError("law is an empty mapping; give at least one law.")
    return dict(law)


def agreed_convention(laws: Mapping[str, LossLaw], convention: str | None) -> str:
    """The convention that the budget is counted in.

    Raises:
        InputError: if it is unknown, or not that of the laws.
    """
    if convention is not None and convention not in CONVENTIONS:
        raise InputError(f"convention is {convention!r}; allowed: {', '.join(CONVENTIONS)}.")
    for fitted in laws.values():
        law = constants(fitted)
        if convention is None:
            convention = law.convention
        if law.convention != convention:
            others = [name for name in PUBLISHED if published(name).convention == convention]
            instead = f", or a law of {convention}: {', '.join(others)}" if others else ""
            raise InputError(
                f"convention is {convention!r}, but law {law.name} counts FLOPs as {law.convention}; use convention "
                f"{law.convention}{instead}."
            )
    assert convention is not None
    return convention


def continuous_families(
    laws: Mapping[str, LossLaw],
    convention: str,
    granularities: Sequence[int] | None,
    expansion_rates: Sequence[float] | None,
    vocab_size: int,
    context: int,
) -> list[Family]:
    """One family for each granularity and expansion rate of each law.

    Raises:
        InputError: if the convention needs whole models, or a law does not know a value that was asked for.
    """
    if convention not in continuous.CONVENTIONS:
        raise InputError(
            f"templates is empty, but convention {convention} counts whole models (context, heads, vocabulary); give "
            f"at least one template, or a law whose convention is {' or '.join(continuous.CONVENTIONS)}."
        )
    families: list[Family] = []
    for label, fitted in laws.items():
        law = constants(fitted)
        knows_g = "granularity" in law.form.columns
        rates = _choices("expansion_rates", expansion_rates, law, "expansion_rate", EXPANSION_RATES)
        for rate in rates:
            for g in _choices("granularities", granularities, law, "granularity", GRANULARITIES):
                name = label or law.name
                families.append(
                    ContinuousFamily(
                        name=f"{name}-g{g}" if knows_g else name,
                        law=fitted,
                        convention=convention,
                        granularity=int(g),
                        expansion_rate=float(rate),
                        template=_paper_template(name, int(g), float(rate), vocab_size, context),
                    )
                )
    return families


def _choices(
    argument: str,
    given: Sequence[float] | None,
    law: Law,
    column: str,
    default: Sequence[float],
) -> Sequence[float]:
    """The values of one column to try: what was given, if the law knows the column."""
    if given is not None and (not given or not all(value >= 1 for value in given)):
        raise InputError(f"{argument} is {list(given)}; give at least one number, each at least 1.")
    if column in law.form.columns:
        return tuple(dict.fromkeys(given or default))
    only = law.fixed.get(column, 1)
    if given is not None and set(given) != {only}:
        listed = ", ".join(f"{value:g}" for value in given)
        raise InputError(f"{argument} is {listed}; law {law.name} holds for {column} {only:g} alone.")
    return (only,)


def ladder_families(
    laws: Mapping[str, LossLaw],
    convention: str,
    templates: Sequence[Template],
    granularities: Sequence[int] | None,
    expansion_rates: Sequence[float] | None,
) -> list[Family]:
    """One family for each template, at each granularity and expansion rate that was asked for.

    Raises:
        InputError: if a template has no law, or one that holds for other experts.
    """
    families: list[Family] = []
    for template in _variants(templates, granularities, expansion_rates):
        keys = (template.name, template.family, "")
        fitted = next((laws[key] for key in keys if key in laws), None)
        if fitted is None:
            raise InputError(
                f"law has no entry for template {template.name}; give one under {template.name!r} or "
                f"{template.family!r} (it has {', '.join(laws)})."
            )
        _check_fixed(template, constants(fitted))
        families.append(LadderFamily(name=template.name, law=fitted, convention=convention, template=template))
    return families


def _check_fixed(template: Template, law: Law) -> None:
    """Raise InputError if the law holds for other experts than the template's."""
    experts = template.experts
    own = {"expansion_rate": experts.expansion_rate, "granularity": experts.granularity} if experts else {}
    for column, value in law.fixed.items():
        given = own.get(column, 1)
        if column in ("expansion_rate", "granularity") and abs(given - value) > 1e-6 * value:
            raise InputError(
                f"template {template.name} has {column} {given:g}; law {law.name} holds for {column} {value:g} alone."
            )


def _variants(
    templates: Sequence[Template], granularities: Sequence[int] | None, expansion_rates: Sequence[float] | None
) -> list[Template]:
    """The templates, each MoE one at every granularity and expansion rate that was asked for, all on one ladder."""
    used = {g for template in templates for g in template.granularities}
    shared = tuple(sorted(used | {int(g) for g in granularities or ()}))
    found: dict[str, Template] = {}
    for template in templates:
        template = replace(template, granularities=shared)
        experts = template.experts
        if experts is None or (granularities is None and expansion_rates is None):
            if template.name in found:
                raise InputError(f"templates holds {template.name!r} twice; names must differ.")
            found[template.name] = template
            continue
        for rate in expansion_rates or (experts.expansion_rate,):
            for g in granularities or (experts.granularity,):
                name = f"moe-e{rate:g}-g{g}"
                found[name] = template.with_experts(name, granularity=int(g), expansion_rate=float(rate))
    return list(found.values())


def _paper_template(name: str, granularity: int, expansion_rate: float, vocab_size: int, context: int) -> Template:
    """Ungated models, expert choice: the recipe of Krajewski et al. 2024, sec. 5 and appendix."""
    experts = None
    if granularity * expansion_rate > 1:
        experts = ExpertsSpec(
            granularity=granularity, expansion_rate=expansion_rate, router=RouterSpec(kind="expert_choice")
        )
    return Template(
        name=name,
        vocab_size=vocab_size,
        context=context,
        experts=experts,
        granularities=(granularity,),
        activation="relu",
        init_scale=0.1,
    )
