"""From run table to laws: isoFLOP minima, and one law for each family of architectures, with one irreducible loss."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import isoflop
from isoflop.errors import InputError
from isoflop.laws import Fit, Holdout, Minimum, RunTable, fit, fit_shared, isoflop_minima
from isoflop.study.spec import Architecture, StudySpec

LEVEL = 0.9
"""Coverage of every interval of a study."""
LEAST_BUDGETS = 2
"""A law of size and tokens needs runs at this many budgets: at a single one the two cannot be told apart."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Architectures that one law describes: they differ in nothing but their granularity."""

    name: str
    architectures: tuple[Architecture, ...]

    @property
    def law(self) -> str:
        """chinchilla, or fine-grained where there are two granularities to tell apart."""
        granularities = {a.experts.granularity for a in self.architectures if a.experts is not None}
        return "fine-grained" if len(granularities) > 1 else "chinchilla"


@dataclass(frozen=True, kw_only=True)
class StudyFits:
    """What the runs of a study say."""

    minima: list[Minimum]
    """One for each architecture and budget."""
    fits: dict[str, Fit]
    """By family."""
    holdouts: dict[str, Holdout]
    """How well each family's law, fitted without the largest runs, predicts them; by family."""
    families: dict[str, Family]
    """The families that have a fit, by name."""
    notes: list[str]
    """Which laws could not be fitted, and why."""
    digest: str
    """Of the rows that were fitted, and of how."""

    def by_architecture(self) -> dict[str, Fit]:
        """The fit that describes each architecture."""
        return {
            architecture.name: self.fits[family.name]
            for family in self.families.values()
            for architecture in family.architectures
        }

    def to_dict(self) -> dict[str, Any]:
        """fits.json."""
        return {
            "version": isoflop.__version__,
            "level": LEVEL,
            "digest": self.digest,
            "laws": [
                {
                    "name": name,
                    "architectures": [architecture.name for architecture in self.families[name].architectures],
                    "holdout": self.holdouts[name].to_dict() if name in self.holdouts else None,
                    **found.to_dict(),
                }
                for name, found in self.fits.items()
            ],
            "minima": [minimum.to_dict() for minimum in self.minima],
            "notes": self.notes,
        }


def families(study: StudySpec) -> list[Family]:
    """The study's architectures by what one law can describe, in the order of the study."""
    groups: dict[str, list[Architecture]] = {}
    for architecture in study.expanded:
        experts, routing = architecture.experts, architecture.depth_routing
        values: dict[str, Any] = {
            "experts": None if experts is None else {k: v for k, v in asdict(experts).items() if k != "granularity"},
            "depth_routing": None if routing is None else asdict(routing),
            "depth": architecture.depth,
            "name": architecture.name if experts is None else None,
            "learning_rate_multiplier": architecture.learning_rate_multiplier,
        }
        groups.setdefault(json.dumps(values, sort_keys=True), []).append(architecture)
    shared = Counter(members[0].family for members in groups.values())
    return [
        Family(
            name=members[0].family if shared[members[0].family] == 1 else members[0].name, architectures=tuple(members)
        )
        for members in groups.values()
    ]


def fit_study(study: StudySpec, rows: Sequence[Mapping[str, Any]]) -> StudyFits:
    """Minima and laws of a study's rows; the verification's are left out.

    Families are fitted together, with one irreducible loss: they saw the same text.

    Raises:
        InputError: if no run has a loss.
    """
    rows = [row for row in rows if row.get("stage") != "verification"]
    table = RunTable(rows, source=f"study {study.name}")
    groups: dict[str, tuple[RunTable, str]] = {}
    known: dict[str, Family] = {}
    notes = []
    for family in families(study):
        names = [architecture.name for architecture in family.architectures]
        own = RunTable([row for row in rows if row["architecture"] in names], source=f"study {study.name}").usable()
        budgets = {row["budget"] for row in own.rows}
        if len(budgets) < LEAST_BUDGETS:
            listed = ", ".join(names)
            notes.append(
                f"no law for {listed}: its runs stand at {len(budgets)} budget, and a law needs {LEAST_BUDGETS}."
            )
            continue
        groups[family.name] = (own, family.law)
        known[family.name] = family
    fits, holdouts = _fit_together(groups, study.bootstrap, notes)
    return StudyFits(
        minima=isoflop_minima(table, level=LEVEL),
        fits=fits,
        holdouts=holdouts,
        families={name: family for name, family in known.items() if name in fits},
        notes=notes,
        digest=fits_digest(study, rows),
    )


def fits_digest(study: StudySpec, rows: Sequence[Mapping[str, Any]]) -> str:
    """Hash of all that `fit_study` depends on: the rows, the families, the number of resamples and the version."""
    losses = sorted((row["run_id"], row.get("loss")) for row in rows if row.get("stage") != "verification")
    groups = [
        [family.name, *(architecture.name for architecture in family.architectures)] for family in families(study)
    ]
    content = json.dumps([losses, groups, study.bootstrap, isoflop.__version__])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _fit_together(
    groups: Mapping[str, tuple[RunTable, str]], bootstrap: int, notes: list[str]
) -> tuple[dict[str, Fit], dict[str, Holdout]]:
    """One irreducible loss for all causal groups that can be fitted; those that cannot are noted.

    A router that sees later tokens leaks, and its loss has another floor: such a group is fitted alone.
    """
    able = {}
    for name, (table, law) in groups.items():
        try:
            fit(table, law, restarts=2)
            able[name] = (table, law)
        except InputError as error:
            notes.append(f"no law for {name}: {error}")
    shared = None
    causal = {name: group for name, group in able.items() if not _leaks(group[0])}
    if len(causal) > 1:
        try:
            shared = fit_shared(causal, bootstrap=bootstrap)
        except InputError as error:
            notes.append(f"every law has an irreducible loss of its own: {error}")
    fits = {} if shared is None else dict(shared.fits)
    alone = {name: group for name, group in able.items() if name not in fits}
    for name, (table, law) in alone.items():
        try:
            fits[name] = fit(table, law, bootstrap=bootstrap)
        except InputError as error:
            notes.append(f"the law for {name} has no bootstrap: {error}")
            fits[name] = fit(table, law)
    holdouts: dict[str, Holdout] = {}
    try:
        if shared is not None:
            holdouts |= shared.holdout(by="budget")
        holdouts |= {name: fits[name].holdout(by="budget") for name in alone}
    except InputError as error:
        notes.append(f"no held-out score: {error}")
    return fits, holdouts


def _leaks(table: RunTable) -> bool:
    """Whether any row's loss is not causal."""
    return "causal" in table and any(str(value).lower() in ("false", "0", "0.0") for value in table["causal"])
