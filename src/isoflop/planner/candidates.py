"""Which families a plan chooses from: laws, convention, granularities and expansion rates made to agree."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from isoflop.errors import InputError
from isoflop.laws import PUBLISHED, Fit, Law, published
from isoflop.planner import continuous
from isoflop.planner.families import COLUMNS, ContinuousFamily, Family, LadderFamily
from isoflop.planner.ladder import sizes_around
from isoflop.planner.losses import LossLaw, constants, knows, tried
from isoflop.planner.template import Template
from isoflop.spec import CONVENTIONS, ExpertsSpec, RouterSpec

GRANULARITIES = tuple(2**power for power in range(9))
"""What a plan with continuous shapes considers unless told otherwise, for published constants that know G; a fit has
those of its rows."""

EXPANSION_RATES = tuple(2**power for power in range(7))
"""Likewise for constants that know E, as far as their range goes."""


def named_laws(law: str | LossLaw | Mapping[str, LossLaw]) -> dict[str, LossLaw]:
    """Laws by architecture; the key is empty where one law serves all.

    Raises:
        InputError: if there is none, or one that cannot rank models: it predicts no loss, or from what no model has.
    """
    if isinstance(law, str):
        laws: dict[str, LossLaw] = {"": published(law)}
    elif isinstance(law, (Law, Fit)):
        laws = {"": law}
    else:
        laws = dict(law)
    if not laws:
        raise InputError("law is an empty mapping; give at least one law.")
    for each in map(constants, laws.values()):
        if each.form.target != "loss":
            raise InputError(
                f"law {each.name} predicts {each.form.target}; a plan needs a law of the loss; ask for "
                "what this one says by itself."
            )
        unknown = [name for name in each.form.columns if name not in COLUMNS]
        if unknown:
            raise InputError(
                f"law {each.name} reads {', '.join(unknown)}, which no candidate has; they have {', '.join(COLUMNS)}."
            )
        if not {"tokens", "flops"} & set(each.form.columns):
            raise InputError(
                f"law {each.name} reads neither tokens nor flops, so that the largest model on the fewest tokens would "
                "always win; a plan needs a law of size and tokens."
            )
    return laws


def check_experts(laws: Mapping[str, LossLaw]) -> list[str]:
    """A sentence for each fit of several granularities that its law does not read.

    Raises:
        InputError: if a fit's rows have experts that its law does not tell apart, so that nobody knows which models it
            is of; where templates say what to build, that is theirs to know.
    """
    notes = []
    for fitted in laws.values():
        if not isinstance(fitted, Fit):
            continue
        rates, finer = tried(fitted, "expansion_rate"), tried(fitted, "granularity")
        column, values, remedy = "expansion_rate", rates, "fit the rows of one"
        if rates is None and "n_experts" in fitted.runs:
            counts = fitted.runs.numeric("n_experts")
            column, values = "n_experts", np.unique(counts[counts > 1])
            remedy = 'say their expansion rate (--set "expansion_rate=n_experts/top_k") and fit the rows of one'
        if values is not None and len(values) > (rates is not None) and not knows(fitted, "expansion_rate"):
            listed = ", ".join(f"{value:g}" for value in values[:6]) + (" …" if len(values) > 6 else "")
            raise InputError(
                f"law {fitted.form.name} was fitted to rows with {column} {listed}, which it does not read, so that "
                f"the experts of what it would plan are unknown; {remedy}, or a law that reads expansion_rate, or give "
                "templates of what is to be built."
            )
        if finer is not None and len(finer) > 1 and not knows(fitted, "granularity"):
            notes.append(
                f"Law {fitted.form.name} was fitted to rows with granularity {finer[0]:g} to {finer[-1]:g}, which it "
                "does not read: its predictions are of their mixture, and candidates have granularity 1."
            )
    return notes


def agreed_convention(laws: Mapping[str, LossLaw], convention: str | None) -> str:
    """The convention that the budget is counted in.

    Raises:
        InputError: if it is unknown, or not that of the laws.
    """
    if convention is not None and convention not in CONVENTIONS:
        raise InputError(f"convention is {convention!r}; allowed: {', '.join(CONVENTIONS)}.")
    counted = {label: constants(fitted).convention for label, fitted in laws.items()}
    if len(set(counted.values())) > 1:
        each = ", ".join(f"{label or constants(laws[label]).name} as {how}" for label, how in counted.items())
        raise InputError(
            f"law has several that count FLOPs differently ({each}), which cannot be ranked on one budget."
        )
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
    *,
    vocab_size: int,
    context: int,
    multiple: int | None = None,
    head_dim: int | None = None,
) -> list[Family]:
    """One family for each granularity and expansion rate of each law.

    Raises:
        InputError: if the convention needs whole models, or a law does not know a value that was asked for.
    """
    if convention not in continuous.CONVENTIONS:
        raise InputError(
            f"templates is empty, but convention {convention} counts whole models (context, heads, vocabulary); give "
            f"vocab_size and context, or templates, or a law whose convention is {' or '.join(continuous.CONVENTIONS)}."
        )
    families: dict[str, Family] = {}
    for label, fitted in laws.items():
        strict = len(laws) == 1
        rates = _choices("expansion_rates", expansion_rates, fitted, "expansion_rate", _default_rates(fitted), strict)
        finer = tried(fitted, "granularity")
        default = GRANULARITIES if finer is None else [int(g) for g in finer]
        values = _choices("granularities", granularities, fitted, "granularity", default, strict)
        for rate in rates:
            for g in values if rate > 1 or len(rates) == 1 else (1,):
                name = "dense" if g * rate == 1 else f"moe-e{rate:g}-g{g:g}"
                if name in families:
                    name = f"{label} {name}"
                families[name] = ContinuousFamily(
                    name=name,
                    law=fitted,
                    convention=convention,
                    granularity=int(g),
                    expansion_rate=float(rate),
                    template=_paper_template(name, int(g), float(rate), vocab_size, context).aligned(
                        multiple, head_dim
                    ),
                )
    return list(families.values())


def _choices(
    argument: str,
    given: Sequence[float] | None,
    fitted: LossLaw,
    column: str,
    default: Sequence[float],
    strict: bool,
) -> Sequence[float]:
    """The values of one column to try: what was given, if the law knows the column.

    A law that does not know it keeps its one value beside other laws, and refuses other values where it is alone.
    """
    if given is not None and (not given or not all(value >= 1 for value in given)):
        raise InputError(f"{argument} is {list(given)}; give at least one number, each at least 1.")
    law = constants(fitted)
    if knows(fitted, column):
        return tuple(dict.fromkeys(given or default))
    only = law.fixed.get(column, 1)
    if strict and given is not None and set(given) != {only}:
        listed = ", ".join(f"{value:g}" for value in given)
        raise InputError(f"{argument} is {listed}; law {law.name} holds for {column} {only:g} alone.")
    return (only,)


def ladder_families(
    laws: Mapping[str, LossLaw],
    convention: str,
    templates: Sequence[Template],
    granularities: Sequence[int] | None,
    expansion_rates: Sequence[float] | None,
    spacing: float,
    multiple: int | None = None,
    head_dim: int | None = None,
) -> tuple[list[Family], list[str]]:
    """One family for each template, at each granularity and expansion rate that was asked for.

    A template that has no law, or one that holds for other experts, or no size, is left out; sentences say why.

    Raises:
        InputError: if none is left.
    """
    families: list[Family] = []
    errors: dict[str, InputError] = {}
    for variant in _variants(templates, granularities, expansion_rates):
        template = variant.aligned(multiple, head_dim)
        try:
            fitted = _law_of(template, laws)
            sizes_around(template, 1.0, 1)
            family = LadderFamily(
                name=template.name, law=fitted, convention=convention, template=template, spacing=spacing
            )
        except InputError as error:
            errors[template.name] = error
        else:
            families.append(family)
    if not families:
        raise next(iter(errors.values()))
    return families, [f"template {name} is left out: {error}" for name, error in errors.items()]


def _law_of(template: Template, laws: Mapping[str, LossLaw]) -> LossLaw:
    """The law under the template's name, else its family, else the one law whose fixed columns are the template's."""
    for key in (template.name, template.family):
        if key in laws:
            _check_fixed(template, constants(laws[key]))
            return laws[key]
    distinct = {id(law): label for label, law in laws.items()}
    fitting = [label for label in distinct.values() if not _clashes(template, constants(laws[label]))]
    if len(fitting) == 1:
        return laws[fitting[0]]
    if len(distinct) == 1:
        _check_fixed(template, constants(next(iter(laws.values()))))
    raise InputError(
        f"law has {', '.join(laws)}, of which {' and '.join(fitting) or 'none'} holds for template {template.name}; "
        f"put the one to use under {template.name!r} or {template.family!r}."
    )


def _check_fixed(template: Template, law: Law) -> None:
    """Raise InputError if the law holds for other experts than the template's."""
    for column, (given, value) in _clashes(template, law).items():
        raise InputError(
            f"template {template.name} has {column} {given:g}; law {law.name} holds for {column} {value:g} alone."
        )


def _clashes(template: Template, law: Law) -> dict[str, tuple[float, float]]:
    """(template's, law's) value of every column that the law holds fixed at another value."""
    experts = template.experts
    own = {
        "expansion_rate": experts.expansion_rate if experts else 1.0,
        "granularity": experts.granularity if experts else 1.0,
    }
    pairs = {column: (own[column], value) for column, value in law.fixed.items() if column in own}
    return {column: (given, value) for column, (given, value) in pairs.items() if abs(given - value) > 1e-6 * value}


def default_templates(laws: Mapping[str, LossLaw], vocab_size: int, context: int) -> tuple[Template, ...]:
    """The families that the laws were fitted on: dense where a law holds for E = 1 alone, else MoE at each E and G.

    A law that knows both E and G is asked for each E with each G, one that knows less for the pairs of its runs.
    """
    found: dict[str, Template] = {}
    for fitted in laws.values():
        for rate, g in _architectures(fitted):
            dense = Template(vocab_size=vocab_size, context=context)
            template = dense
            if g * rate > 1:
                template = dense.with_experts(f"moe-e{rate:g}-g{g}", granularity=g, expansion_rate=rate)
            found.setdefault(template.name, template)
    return tuple(found.values())


def _architectures(fitted: LossLaw) -> list[tuple[float, int]]:
    """Pairs of E and G that a law describes, rising; a dense model has G = 1."""
    law = constants(fitted)
    rates = _seen(fitted, "expansion_rate", law.fixed.get("expansion_rate"))
    if len(rates) < 2 and "sparsity" in law.form.columns and isinstance(fitted, Fit):
        rates = 1 / (1 - fitted.runs.numeric("sparsity"))
    values = _seen(fitted, "granularity", law.fixed.get("granularity"))
    pairs = {(float(e), round(g)) for e, g in zip(*np.broadcast_arrays(rates, values), strict=True)}
    if knows(fitted, "expansion_rate") and knows(fitted, "granularity"):
        pairs = {(e, g) for e, _ in pairs for _, g in pairs if e > 1 or g == 1}
    return sorted(pairs)


def _seen(fitted: LossLaw, column: str, fixed: float | None) -> np.ndarray:
    """The column's values in the fit's rows, else the one value of the law."""
    if isinstance(fitted, Fit) and fixed is None and column in fitted.runs:
        return fitted.runs.numeric(column)
    return np.array([1.0 if fixed is None else fixed])


def _default_rates(fitted: LossLaw) -> tuple[float, ...]:
    """Expansion rates to try: those of a fit's rows, or powers of two where the published law has runs."""
    seen = tried(fitted, "expansion_rate")
    if seen is not None:
        return tuple(float(rate) for rate in seen)
    bounds = constants(fitted).range
    low, high = bounds.get("expansion_rate", (1.0, np.inf))
    if "sparsity" in bounds:
        low, high = (1 / (1 - end) for end in bounds["sparsity"])
    return tuple(rate for rate in EXPANSION_RATES if low * (1 - 1e-9) <= rate <= high * (1 + 1e-9))


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
                if rate == 1:
                    dense = replace(template, name="dense", experts=None)
                    found.setdefault(dense.name, dense)
                    continue
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
