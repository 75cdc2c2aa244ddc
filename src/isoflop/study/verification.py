"""The plan for the verification budget, made before its run, and how close the run came."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from isoflop.errors import InputError
from isoflop.planner import Plan, PlanRow, architecture, plan
from isoflop.study.fits import LEVEL, StudyFits
from isoflop.study.grid import Grid, PlannedRun
from isoflop.study.spec import StudySpec, Verification

KEPT_ROWS = 20
"""Rows of the plan that verification.json keeps."""


def predict(study: StudySpec, grid: Grid, fits: StudyFits, *, tokens_available: float) -> dict[str, Any]:
    """verification.json before the runs: the plan, its best model and those to compare it with.

    Candidates are the study's architectures that have a law and whose loss is that of a causal model.

    Args:
        study: the study; it has a verification.
        grid: makes the runs.
        fits: the study's laws.
        tokens_available: no candidate is trained on more tokens.

    Raises:
        InputError: if no law can tell, or the budget fits no model.
    """
    wanted = _wanted(study)
    laws = fits.by_architecture()
    candidates = [a for a in study.expanded if a.name in laws and a.is_causal]
    if not candidates:
        reasons = "; ".join(fits.notes) or "the study has no causal architecture."
        raise InputError(f"verification.flops is {wanted.flops:g}, but there is no law to plan with: {reasons}")
    found = plan(
        flops=wanted.flops,
        law={a.name: laws[a.name] for a in candidates},
        templates=[grid.template(a) for a in candidates],
        tokens_available=tokens_available,
        level=LEVEL,
    )
    chosen = {found.best.architecture: found.best}
    for name in wanted.also:
        row = next((row for row in found.table if row.architecture == name), None)
        if row is not None:
            chosen.setdefault(name, row)
    return {
        "flops": wanted.flops,
        "level": LEVEL,
        "digest": fits.digest,
        "runs": [
            _predicted(_run(study, grid, row, seed), row, best=row is found.best)
            for row in chosen.values()
            for seed in wanted.seeds
        ],
        **_multiplier(study, fits, found.best),
        "plan": _plan(found),
        "notes": [
            f"verification.also holds {name!r}, which has no law of its own: not run."
            for name in wanted.also
            if name not in chosen
        ],
    }


def planned_runs(study: StudySpec, grid: Grid, document: Mapping[str, Any]) -> list[PlannedRun]:
    """The runs that verification.json describes; they keep their last checkpoints, so that they can be sampled.

    Those of architectures that the study no longer has are left out.
    """
    known = {architecture.name: architecture for architecture in study.expanded}
    found = []
    for run in document["runs"]:
        if run["architecture"] in known:
            own = known[run["architecture"]]
            spec = architecture(grid.template(own), d_model=run["d_model"], n_layers=run["n_layers"])
            planned = grid.run(own, run["flops"], spec, run["seed"], "verification")
            kept = planned.config.keep_checkpoints if "keep_checkpoints" in study.training else 2
            found.append(replace(planned, config=replace(planned.config, keep_checkpoints=kept)))
    return found


def compare(document: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """verification.json after the runs: what each measured, and where that stands to its interval.

    `distance` is 0 inside the interval, else the relative distance to its nearer end: positive above it.
    """
    return {**document, "runs": [_measured(run, rows.get(run["run_id"])) for run in document["runs"]]}


def sentence(run: Mapping[str, Any]) -> str:
    """The comparison of one verification run in one sentence."""
    level = f"{LEVEL:.0%}"
    name = f"{run['architecture']} at {run['flops']:.3g} FLOPs (seed {run['seed']})"
    predicted = f"predicted {run['predicted']:.4f}"
    low, high = run["interval"] or (None, None)
    if run["measured"] is None:
        return f"{name}: {predicted}; the run has no loss ({run['status']}: {run['error']})"
    measured = f"measured {run['measured']:.4f}"
    if low is None:
        return f"{name}: {measured}, {predicted} without an interval: {run['measured'] / run['predicted'] - 1:+.1%}"
    interval = f"predicted {level} interval [{low:.4f}, {high:.4f}]"
    if run["inside"]:
        return f"{name}: {measured} inside the {interval}"
    side = "above" if run["distance"] > 0 else "below"
    return f"{name}: {measured} outside the {interval}, {side} it by {abs(run['distance']):.1%}"


def multiplier_sentence(document: Mapping[str, Any]) -> str:
    """What verification.json says of the FLOPs of a dense model, in one sentence; empty if nothing.

    Documents of versions that did not check how far the laws carry say nothing.
    """
    found, reason = document.get("multiplier"), document.get("multiplier_missing")
    if reason:
        return f"how many FLOPs a dense model needs for the planned loss is not known: {reason}"
    if reason is None or found is None or found["value"] is None:
        return ""
    said = f"a dense model needs {found['value']:.3g} × the FLOPs for the planned loss of {found['loss']:.4f}"
    if found["interval"] is None:
        return said
    low, high = (math.inf if end is None else end for end in found["interval"])
    return f"{said} ({LEVEL:.0%} interval {low:.3g} to {'any number' if math.isinf(high) else f'{high:.3g}'})"


def _wanted(study: StudySpec) -> Verification:
    assert study.verification is not None
    return study.verification


def _run(study: StudySpec, grid: Grid, row: PlanRow, seed: int) -> PlannedRun:
    return grid.run(study.architecture(row.architecture), _wanted(study).flops, row.spec, seed, "verification")


def _predicted(run: PlannedRun, row: PlanRow, *, best: bool) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "architecture": run.architecture,
        "role": "best" if best else "also",
        "seed": run.seed,
        "flops": run.budget,
        "params_active": run.resolved.count.params_active,
        "params_total": run.resolved.count.params_total,
        "tokens": run.resolved.tokens,
        "d_model": run.spec.d_model,
        "n_layers": run.spec.n_layers,
        "predicted": row.loss,
        "interval": None if row.loss_interval is None else list(row.loss_interval),
        "measured": None,
        "loss_std": None,
        "inside": None,
        "distance": None,
        "status": "waiting",
        "error": None,
    }


def _measured(run: Mapping[str, Any], row: Mapping[str, Any] | None) -> dict[str, Any]:
    if row is None:
        return dict(run)
    loss = row.get("loss")
    inside = distance = None
    if loss is not None and run["interval"] is not None:
        low, high = run["interval"]
        inside = low <= loss <= high
        distance = 0.0 if inside else loss / high - 1 if loss > high else loss / low - 1
    return {
        **run,
        "measured": loss,
        "loss_std": row.get("loss_std"),
        "inside": inside,
        "distance": distance,
        "status": row.get("status"),
        "error": row.get("error"),
    }


def _multiplier(study: StudySpec, fits: StudyFits, best: PlanRow) -> dict[str, Any]:
    """How many times the FLOPs a dense model needs for the predicted loss of the plan's best; else why none is said."""
    from isoflop.report.trust import planned_multiplier

    laws = fits.by_architecture()
    dense = next((a.name for a in study.expanded if a.is_dense and a.name in laws), None)
    if dense is None or study.architecture(best.architecture).is_dense:
        return {"multiplier": None, "multiplier_missing": ""}
    found, reason = planned_multiplier(
        (dense, laws[dense]), (best.architecture, laws[best.architecture]), vars(best), level=LEVEL
    )
    return {"multiplier": None if found is None else found.to_dict(), "multiplier_missing": reason}


def _plan(found: Plan) -> dict[str, Any]:
    document = found.to_dict()
    rows: Sequence[Any] = document["table"]
    near = [f"{row.architecture} d{row.spec.d_model}×{row.spec.n_layers}" for row in found.near_optimal()]
    return {**document, "table": list(rows[:KEPT_ROWS]), "near_optimal": near}
