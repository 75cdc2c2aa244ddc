"""Everything the report shows that is computed from the study's records: minima, laws, frontier, checks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.errors import InputError
from isoflop.laws import (
    Fit,
    LawFrontier,
    MinimaFrontier,
    Minimum,
    RunTable,
    efficiency_multiplier,
    isoflop_minima,
)
from isoflop.laws import Multiplier as EfficiencyMultiplier
from isoflop.report import view
from isoflop.report.marks import Curve, Multiplier, Verified
from isoflop.report.style import flops, short
from isoflop.report.trust import doubt, frontier_of

if TYPE_CHECKING:
    from isoflop.report.records import StudyRecords

_BEYOND = 2.0  # how far beyond the largest budget a law's frontier is drawn


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the sections show; a part that is empty says why in its `_missing`."""

    runs: RunTable
    """Every run."""
    grid: RunTable
    """Those of the isoFLOP grid: all but the verification's."""
    architectures: Sequence[view.Architecture]
    minima: Sequence[Minimum]
    """Of every architecture and budget."""
    minima_missing: str
    multipliers: Sequence[Multiplier]
    multipliers_missing: str
    fits: Sequence[tuple[str, Fit]]
    """The laws of fits.json by name."""
    holdouts: Mapping[str, Mapping[str, Any]]
    """Score of each law, fitted without the largest runs, on them (see isoflop.laws.Holdout), by its name."""
    predicted: np.ndarray | None
    """Loss of each row of `runs` under the law that describes its architecture; NaN where there is none."""
    law_missing: str
    curves: Sequence[Curve]
    """Compute-optimal loss under the laws."""
    curves_missing: str
    checks: Sequence[Verified]
    checks_missing: str
    near_optimal: str
    """Which models the plan for the verification budget held for nearly as good as the best, in a sentence."""


def gather(records: "StudyRecords") -> Evidence:
    """Compute it all from a study's records; what cannot be had is missing with a reason, never an error."""
    runs = records.runs
    grid = view.grid_rows(runs)
    architectures = view.architectures(runs)
    minima, minima_missing = _minima(grid)
    fits, by_architecture, law_missing = _fits(records)
    predicted = _predicted(runs, by_architecture)
    if predicted is not None and not (np.isfinite(predicted) & view.finished(runs)).any():
        predicted, law_missing = None, law_missing or "no run of the table is described by a law of fits.json."
    frontiers = _frontiers(by_architecture, architectures)
    multipliers, multipliers_missing = _multipliers(minima, architectures, frontiers)
    curves = _curves(grid, frontiers)
    checks, checks_missing = _checks(records)
    return Evidence(
        runs=runs,
        grid=grid,
        architectures=architectures,
        minima=minima,
        minima_missing=minima_missing,
        multipliers=multipliers,
        multipliers_missing=multipliers_missing,
        fits=fits,
        holdouts=_holdouts(records),
        predicted=predicted,
        law_missing=law_missing,
        curves=curves,
        curves_missing=_curves_missing(curves, frontiers, law_missing),
        checks=checks,
        checks_missing=checks_missing,
        near_optimal=_near_optimal(records),
    )


def _minima(grid: RunTable) -> tuple[list[Minimum], str]:
    keyed = grid.with_columns({"architecture": np.array(view.names(grid), dtype=object), "budget": view.budgets(grid)})
    keyed = keyed.where(view.finished(grid) & np.isfinite(view.budgets(grid)))
    try:
        minima = isoflop_minima(keyed)
    except InputError as error:
        return [], str(error)
    drawn = [minimum for minimum in minima if minimum.curvature is not None]
    if not drawn:
        return [], "a parabola needs three sizes of one architecture at one budget, and an optimum between them."
    return drawn, ""


def _fits(records: "StudyRecords") -> tuple[list[tuple[str, Fit]], dict[str, Fit], str]:
    """The laws by name, the law of each architecture, and why some are missing."""
    document = records.fits
    if document is None:
        return [], {}, "the study has no fits.json (its laws have not been fitted yet)."
    fits: list[tuple[str, Fit]] = []
    by_architecture: dict[str, Fit] = {}
    problems = [str(note) for note in document.get("notes") or ()]
    for entry in document.get("laws") or ():
        try:
            found = Fit.from_dict(entry)
        except (InputError, AttributeError, TypeError, ValueError) as error:
            problems.append(f"a law of fits.json cannot be read: {error}")
            continue
        fits.append((str(entry.get("name", found.form.name)), found))
        by_architecture |= {str(name): found for name in entry.get("architectures") or ()}
    if not fits and not problems:
        problems.append("fits.json holds no law.")
    return fits, by_architecture, " ".join(problems)


def _frontiers(laws: Mapping[str, Fit], architectures: Sequence[view.Architecture]) -> dict[str, LawFrontier]:
    """The compute-optimal loss of each architecture under its law."""
    frontiers = {}
    for architecture in architectures:
        fit = laws.get(architecture.name)
        frontier = None if fit is None else frontier_of(fit, architecture.granularity)
        if frontier is not None:
            frontiers[architecture.name] = frontier
    return frontiers


def _predicted(runs: RunTable, by_architecture: Mapping[str, Fit]) -> np.ndarray | None:
    if not by_architecture:
        return None
    predicted = np.full(len(runs), math.nan)
    names = np.array(view.names(runs))
    for architecture, fit in by_architecture.items():
        known = names == architecture
        for column in fit.form.columns:
            values = view.numbers(runs, column)
            known &= np.isfinite(values) & (values > 0)
        rows = np.flatnonzero(known)
        if len(rows):
            predicted[rows] = fit.law.form.predict(_columns(runs, fit, rows), fit.parameters)
    return predicted


def _columns(runs: RunTable, fit: Fit, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {column: view.numbers(runs, column)[rows] for column in fit.form.columns}


def _curves(grid: RunTable, frontiers: Mapping[str, LawFrontier]) -> list[Curve]:
    """Each architecture's law at its best size, from the smallest budget to somewhat beyond the largest.

    A law that the runs do not pin down is drawn at its own runs' budgets alone, where its optimum lies inside the sizes
    that were run; if that is nowhere, not at all.
    """
    budgets = view.budgets(grid)[view.finished(grid)]
    budgets = budgets[np.isfinite(budgets)]
    if not len(budgets):
        return []
    at = np.geomspace(budgets.min(), budgets.max() * _BEYOND, 60)
    curves = []
    for name, frontier in frontiers.items():
        fit, where, doubtful = frontier.fit, at, ""
        if fit is not None and fit.status != "converged":
            doubtful = fit.status.replace("_", " ")
            where = np.array([flops for flops in at if frontier.inside(flops) and not doubt(frontier, name, flops)])
        if len(where) > 1:
            curves.append(Curve(architecture=name, flops=where, loss=frontier.loss(where), doubtful=doubtful))
    return curves


def _curves_missing(curves: Sequence[Curve], frontiers: Mapping[str, LawFrontier], law_missing: str) -> str:
    if not frontiers:
        return law_missing or "the run table lacks the columns that the laws need."
    drawn = {curve.architecture for curve in curves}
    absent = [name for name in frontiers if name not in drawn]
    if not absent:
        return ""
    return (
        f"{', '.join(absent)}, whose law the runs do not pin down and whose optimum lies outside of the sizes that "
        "were run at every budget."
    )


def _multipliers(
    minima: Sequence[Minimum], architectures: Sequence[view.Architecture], frontiers: Mapping[str, LawFrontier]
) -> tuple[list[Multiplier], str]:
    """Multipliers of every MoE at every budget where its minimum is known, and why there are none or some are lacking.

    The MoE's loss is that of its isoFLOP minimum, or of its law where the minimum is not inside the sizes that were
    run or has no interval. The dense budget for it comes from the dense law, else from the dense minima. A law that the
    runs do not pin down is used where its optimum lies inside the sizes that were run, and nowhere else.
    """
    dense = next((architecture.name for architecture in architectures if architecture.dense), None)
    if dense is None:
        return [], "the study has no dense architecture to compare with."
    if len(architectures) == 1:
        return [], "the study has no other architecture than the dense one."
    laws = {name: law for name, law in frontiers.items() if law.fit is not None and law.fit.status != "failed"}
    inside = [minimum for minimum in minima if minimum.architecture == dense and minimum.inside]
    if dense not in laws and len(inside) < 2:
        return [], f"{dense} has no law and fewer than two isoFLOP minima inside the sizes that were run."
    reference = laws.get(dense) or MinimaFrontier([_possible(minimum) for minimum in inside])
    found, unknown, doubts = [], [], []
    for architecture in architectures:
        own = [minimum for minimum in minima if minimum.architecture == architecture.name]
        for minimum in [] if architecture.dense else own:
            law = laws.get(architecture.name)
            source = _at(minimum) if minimum.inside and (law is None or len(minimum.loss_draws)) else law
            if source is None:
                unknown.append(f"{architecture.name} at {flops(minimum.budget)}")
                continue
            point = efficiency_multiplier(reference, source, minimum.flops)
            if reason := _doubt((dense, reference), (architecture.name, source), point):
                doubts.append(f"{architecture.name} at {flops(minimum.budget)} FLOPs, because {reason}")
                continue
            found.append(
                Multiplier(
                    architecture=architecture.name,
                    budget=minimum.budget,
                    value=point.value,
                    interval=point.interval,
                    extrapolated=point.extrapolated,
                )
            )
    missing = []
    if unknown:
        missing.append(
            f"{', '.join(unknown)} FLOPs, where there is no law and no isoFLOP minimum inside the sizes that were run"
        )
    missing += doubts
    if missing:
        return found, f"{'; '.join(missing)}."
    return found, "" if found else "no isoFLOP minimum of another architecture is known."


def _doubt(
    dense: tuple[str, LawFrontier | MinimaFrontier],
    moe: tuple[str, LawFrontier | MinimaFrontier],
    point: EfficiencyMultiplier,
) -> str:
    """Why a multiplier should not be quoted; empty if nothing speaks against it."""
    asked = [(*dense, point.flops), (*moe, point.flops)]
    if math.isfinite(point.value) and point.value > 0:
        asked.append((*dense, point.dense_flops))
    reasons = [doubt(source, name, at) for name, source, at in asked if isinstance(source, LawFrontier)]
    return next((reason for reason in reasons if reason), "")


def _at(minimum: Minimum) -> MinimaFrontier:
    """A frontier that is good for the budget of one minimum alone; it needs a second point, which is not read."""
    minimum = _possible(minimum)
    other = replace(minimum, flops=2 * minimum.flops, group={**minimum.group, "budget": 2 * minimum.budget})
    return MinimaFrontier([minimum, other])


def _possible(minimum: Minimum) -> Minimum:
    """The minimum without the draws of a loss below 0, which a wide interval may hold."""
    draws = minimum.loss_draws
    return replace(minimum, loss_draws=np.where(draws > 0, draws, math.nan))


def _checks(records: "StudyRecords") -> tuple[list[Verified], str]:
    document = records.verification
    if document is None:
        return [], "the study has no verification.json (no prediction has been put to the test yet)."
    checks = []
    for run in document.get("runs") or ():
        predicted = _float(run.get("predicted"))
        if predicted is None:
            continue
        size = _float(run.get("params_active"))
        seed = run.get("seed")
        checks.append(
            Verified(
                label=f"{run.get('architecture', 'run')} at {flops(_float(run.get('flops')))} FLOPs"
                + (f", {short(size)} active" if size else "")
                + (f", seed {seed}" if seed else ""),
                predicted=predicted,
                interval=_pair(run.get("interval")),
                level=_float(document.get("level")),
                measured=_float(run.get("measured")),
                measured_std=_float(run.get("loss_std")),
                error=str(run.get("error") or ""),
            )
        )
    return checks, "" if checks else "verification.json holds no predicted run."


def _holdouts(records: "StudyRecords") -> dict[str, Mapping[str, Any]]:
    entries = (records.fits or {}).get("laws") or ()
    scores = {str(entry.get("name")): entry.get("holdout") for entry in entries}
    needed = {"n_held_out", "threshold", "by", "rmse", "bias"}
    return {name: score for name, score in scores.items() if isinstance(score, Mapping) and needed <= score.keys()}


def _near_optimal(records: "StudyRecords") -> str:
    near = ((records.verification or {}).get("plan") or {}).get("near_optimal") or ()
    if len(near) < 2:
        return ""
    return f"The plan held {len(near)} models to be within 0.002 nats of the best: {', '.join(map(str, near))}."


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _pair(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = _float(value[0]), _float(value[1])
    return None if low is None or high is None else (low, high)
