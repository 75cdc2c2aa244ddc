"""Everything the report shows that is computed from the study's records: minima, laws, frontier, checks."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.errors import InputError
from isoflop.laws import Fit, LawFrontier, Minimum, RunTable, efficiency_multiplier, isoflop_minima
from isoflop.report import view
from isoflop.report.marks import Curve, Multiplier, Verified
from isoflop.report.style import flops, short

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
    predicted: np.ndarray | None
    """Loss of each row of `runs` under the law that describes its architecture; NaN where there is none."""
    law_missing: str
    curves: Sequence[Curve]
    """Compute-optimal loss under the laws."""
    curves_missing: str
    checks: Sequence[Verified]
    checks_missing: str


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
    multipliers, multipliers_missing = _multipliers(minima, architectures, _own_rows(by_architecture, architectures))
    curves = _curves(grid, architectures, _own_rows(by_architecture, architectures))
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
        predicted=predicted,
        law_missing=law_missing,
        curves=curves,
        curves_missing="" if curves else law_missing or "the run table lacks the columns that the laws need.",
        checks=checks,
        checks_missing=checks_missing,
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


def _own_rows(laws: Mapping[str, Fit], architectures: Sequence[view.Architecture]) -> dict[str, Fit]:
    """Each architecture's law with the rows of its own granularity, which say what its tokens cost and what share of
    its parameters is active."""
    own = {}
    for architecture in architectures:
        fit = laws.get(architecture.name)
        if fit is not None and "granularity" in fit.form.columns:
            same = np.isclose(fit.runs.numeric("granularity"), architecture.granularity)
            fit = replace(fit, runs=fit.runs.where(same)) if same.any() else None
        if fit is not None:
            own[architecture.name] = fit
    return own


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


def _curves(grid: RunTable, architectures: Sequence[view.Architecture], laws: Mapping[str, Fit]) -> list[Curve]:
    """Each architecture's law at its best size, from the smallest budget to somewhat beyond the largest."""
    budgets = view.budgets(grid)[view.finished(grid)]
    budgets = budgets[np.isfinite(budgets)]
    if not len(budgets):
        return []
    at = np.geomspace(budgets.min(), budgets.max() * _BEYOND, 60)
    curves = []
    for architecture in architectures:
        if architecture.name not in laws:
            continue
        with suppress(InputError):
            frontier = LawFrontier(laws[architecture.name], granularity=architecture.granularity)
            curves.append(Curve(architecture=architecture.name, flops=at, loss=frontier.loss(at)))
    return curves


def _multipliers(
    minima: Sequence[Minimum], architectures: Sequence[view.Architecture], laws: Mapping[str, Fit]
) -> tuple[list[Multiplier], str]:
    """Multipliers of every MoE at every budget where its minimum is known, and why there are none or some are lacking.

    The MoE's loss is that of its isoFLOP minima, or of its law where fewer than two minima are inside the sizes that
    were run. The dense budget for it comes from the dense law if that converged, else from the dense minima.
    """
    dense = next((architecture.name for architecture in architectures if architecture.dense), None)
    if dense is None:
        return [], "the study has no dense architecture to compare with."
    if len(architectures) == 1:
        return [], "the study has no architecture with experts."
    found, problems = [], []
    reference = _source(dense, minima, laws, prefer_law=True)
    for architecture in architectures:
        if architecture.dense:
            continue
        own = _source(architecture.name, minima, laws, prefer_law=False)
        known = own if isinstance(own, list) else [m for m in minima if m.architecture == architecture.name]
        for budget in sorted({minimum.budget for minimum in known}):
            try:
                point = efficiency_multiplier(reference, own, budget, granularity=architecture.granularity)
            except InputError as error:
                problems.append(f"{architecture.name}: {error}")
                break
            found.append(
                Multiplier(
                    architecture=architecture.name,
                    budget=budget,
                    value=point.value,
                    interval=point.interval,
                    extrapolated=point.extrapolated,
                )
            )
    if not found and not problems:
        problems.append("no isoFLOP minimum of an architecture with experts lies inside the sizes that were run.")
    return found, " ".join(problems)


def _source(name: str, minima: Sequence[Minimum], laws: Mapping[str, Fit], *, prefer_law: bool) -> Fit | list[Minimum]:
    """What tells an architecture's compute-optimal loss: its law or its isoFLOP minima."""
    inside = [minimum for minimum in minima if minimum.architecture == name and minimum.inside]
    law = laws.get(name)
    if law is not None and law.status == "converged" and (prefer_law or len(inside) < 2):
        return law
    return inside


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


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _pair(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = _float(value[0]), _float(value[1])
    return None if low is None or high is None else (low, high)
