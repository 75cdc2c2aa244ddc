"""The report's sections: which figures, what their captions say, and why one is missing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.report import figures, view
from isoflop.report.headline import verdict
from isoflop.report.style import factor, flops

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isoflop.report.evidence import Evidence
    from isoflop.report.records import StudyRecords


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure of the page."""

    key: str
    """Name of its files."""
    draw: Callable[[float], "Figure"]
    """Draws it at a width in inches."""
    caption: str
    """What to see in it."""
    description: str
    """What a screen reader says in its place."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page."""

    key: str
    title: str
    plots: Sequence[Plot] = ()
    table: dict[str, Any] | None = None
    """columns, rows (text) and caption."""
    missing: str = ""
    """Why it, or a part of it, is not there."""


def sections(records: "StudyRecords", evidence: "Evidence") -> list[Section]:
    """Every section between the headline and the run table, in reading order."""
    return [
        *_by_budget(evidence),
        _frontier(evidence),
        _law(evidence),
        _verification(evidence),
        _efficiency(evidence),
        _load(records, evidence),
        _training(records, evidence),
    ]


def _by_budget(evidence: "Evidence") -> list[Section]:
    runs, minima = evidence.grid, evidence.minima
    curves, granularity = "Loss against size at equal FLOPs", "What granularity does"
    points = view.measured(runs)
    if not points:
        reason = "no run of the grid has a loss."
        return [
            Section(key="isoflop", title=curves, missing=reason),
            Section(key="granularity", title=granularity, missing=reason),
        ]
    missing = f"fitted minima: {evidence.minima_missing}" if evidence.minima_missing else ""
    budgets = ", ".join(flops(budget) for budget in sorted({point.budget for point in points}))
    above = figures.off_scale(runs)
    isoflop = Plot(
        key="isoflop",
        draw=lambda width: figures.isoflop_curves(runs, minima, width=width),
        caption="Every panel spends one budget. A point is a model size; a larger model sees fewer tokens. "
        + (
            "Curves are parabolas in the logarithm of size, large marks their minima with 90% intervals: the "
            "lower a minimum, the better the architecture uses the budget; where a curve is flat, size hardly matters."
            if minima
            else "The lowest point of a colour is its best size."
        )
        + (f" Arrows at the upper edge stand for {above} points far above the others." if above else ""),
        description=f"Loss against active parameters at budgets of {budgets} FLOPs, one curve for each architecture.",
    )
    found = [Section(key="isoflop", title=curves, plots=[isoflop], missing=missing)]
    routed = any(architecture.depth_routed for architecture in evidence.architectures)
    values = {a.granularity for a in evidence.architectures if a.has_experts and not a.depth_routed}
    if len(values) > 1 or (values and not routed):
        found.append(_granularity(evidence, granularity, budgets, missing))
    elif not routed:
        found.append(
            Section(key="granularity", title=granularity, missing="the study has no architecture with experts.")
        )
    return [*found, _capacity(evidence, budgets, missing)] if routed else found


def _capacity(evidence: "Evidence", budgets: str, missing: str) -> Section:
    runs, minima = evidence.grid, evidence.minima
    plot = Plot(
        key="capacity",
        draw=lambda width: figures.loss_against_capacity(runs, minima, width=width),
        caption="Each architecture at its best size: filled marks are fitted minima over size with 90% intervals, "
        "hollow ones the best size that was run, with the range between seeds where there are several; an arrow stands "
        "for a loss above the panel. Families stand a little to the right of each other. Lines join what differs in "
        "capacity alone; level lines are without depth routing. Losses are those of the causal model. A smaller "
        "capacity computes fewer tokens in each routed block, and so sees more text on the same budget.",
        description=f"Loss against depth capacity at budgets of {budgets} FLOPs.",
    )
    return Section(key="capacity", title="What depth routing does", plots=[plot], missing=missing)


def _granularity(evidence: "Evidence", title: str, budgets: str, missing: str) -> Section:
    runs, minima = evidence.grid, evidence.minima
    fitted = (
        "Filled marks are fitted minima over size, where they are inside the sizes that were run, with 90% intervals; "
        "hollow marks, to the right, the best size"
        if minima
        else "Hollow marks are the best size"
    )
    against = Plot(
        key="granularity",
        draw=lambda width: figures.loss_against_granularity(runs, minima, width=width),
        caption=f"{fitted} that was run, with the range between seeds where there are several. The dense model is the "
        "horizontal line. A finer model "
        "pays for its router with tokens: where the line turns up, that price is higher than the gain.",
        description=f"Loss against granularity at budgets of {budgets} FLOPs, with the dense model as a line.",
    )
    return Section(key="granularity", title=title, plots=[against], missing=missing)


def _frontier(evidence: "Evidence") -> Section:
    title = "The compute-optimal frontier"
    if not view.finished(evidence.grid).any():
        return Section(key="frontier", title=title, missing="no run of the grid has a loss.")
    loose = [name for name, fit in evidence.fits if fit.status != "converged"]
    plot = Plot(
        key="frontier",
        draw=lambda width: figures.frontier(evidence.grid, evidence.minima, evidence.curves, width=width),
        caption="Loss at the best size for each budget. Filled marks are isoFLOP minima with 90% intervals, hollow "
        "ones the best size where the minimum is not inside the sizes that were run."
        + (
            " Lines are the fitted laws at their best size; the horizontal distance between two is how many times the "
            "FLOPs one architecture needs for the loss of another."
            if evidence.curves
            else ""
        )
        + (
            f" Not pinned down by the runs: the law of {' and of '.join(loose)}; it is dashed, and drawn only where "
            "its optimum lies inside the sizes that were run."
            if loose
            else ""
        ),
        description="Loss against training FLOPs at the best size, one line for each architecture.",
    )
    missing = f"the fitted laws' lines: {evidence.curves_missing}" if evidence.curves_missing else ""
    return Section(key="frontier", title=title, plots=[plot], missing=missing)


def _law(evidence: "Evidence") -> Section:
    title = "The fitted law against the runs"
    runs, predicted = evidence.runs, evidence.predicted
    if predicted is None:
        return Section(key="law", title=title, missing=evidence.law_missing, table=_parameters(evidence))
    residual = (view.numbers(runs, "loss") - predicted)[view.finished(runs) & np.isfinite(predicted)]
    rmse = float(np.sqrt(np.mean(residual**2)))
    plots = [
        Plot(
            key="parity",
            draw=lambda width: figures.parity(runs, predicted, width=width),
            caption=f"Each mark is a run; on the diagonal the law predicts it exactly. Root mean square error "
            f"{rmse:.4f} nats/token over {len(residual)} runs, all fitted but the verification's: this is no test.",
            description=f"Measured against predicted loss of {len(residual)} runs; RMSE {rmse:.4f} nats per token.",
        ),
        Plot(
            key="residuals",
            draw=lambda width: figures.residuals(runs, predicted, width=width),
            caption="What the law leaves unexplained. A slope or a curve along either axis, or one colour that lies on "
            "one side of the line, would be lack of fit; a level band is noise. Marks of one budget are set apart.",
            description="Measured minus predicted loss against training FLOPs and against active parameters.",
        ),
    ]
    return Section(key="law", title=title, plots=plots, table=_parameters(evidence), missing=evidence.law_missing)


def _parameters(evidence: "Evidence") -> dict[str, Any] | None:
    rows = []
    for name, fit in evidence.fits:
        intervals = fit.intervals
        for parameter, value in fit.parameters.items():
            span = intervals.get(parameter)
            pinned = parameter in fit.pinned
            rows.append(
                [
                    f"{name} ({fit.form.name})",
                    parameter,
                    f"{value:.4g}",
                    "pinned" if pinned else f"[{span[0]:.4g}, {span[1]:.4g}]" if span else "–",
                    fit.status.replace("_", " "),
                    str(fit.n_rows),
                ]
            )
    if not rows:
        return None
    equations = "; ".join(dict.fromkeys(f"{fit.form.name}: {fit.form.equation}" for _, fit in evidence.fits))
    return {
        "columns": ["law", "parameter", "value", "90% interval", "status", "runs"],
        "rows": rows,
        "caption": f"Fitted constants with bootstrap intervals. {equations}. {_held_out(evidence)}",
    }


def _held_out(evidence: "Evidence") -> str:
    """How well each law, fitted without the largest runs, predicts them."""
    said = [
        f"{name}: {score['n_held_out']:g} runs from {score['threshold']:.3g} {score['by']}, root mean square of "
        f"ln(measured / predicted) {score['rmse']:.4f}, mean {score['bias']:+.4f}"
        for name, score in evidence.holdouts.items()
    ]
    return f"Fitted again without the largest runs, the laws predict those: {'; '.join(said)}." if said else ""


def _verification(evidence: "Evidence") -> Section:
    title = "Does the prediction hold?"
    checks = evidence.checks
    if not checks:
        return Section(key="verification", title=title, missing=evidence.checks_missing)
    plot = Plot(
        key="verification",
        draw=lambda width: figures.verification(checks, width=width),
        caption="The law was fitted to runs at smaller budgets, before these runs. It holds if the dot is in the bar.",
        description=" ".join(verdict(check) for check in checks),
    )
    table = {
        "columns": ["run", "predicted", "interval", "measured", "difference"],
        "rows": [
            [
                check.label,
                f"{check.predicted:.4f}",
                f"[{check.interval[0]:.4f}, {check.interval[1]:.4f}]" if check.interval else "–",
                "–" if check.measured is None else f"{check.measured:.4f}",
                "–" if check.measured is None else f"{check.measured / check.predicted - 1:+.2%}",
            ]
            for check in checks
        ],
        "caption": "Losses in nats/token." + (f" {evidence.near_optimal}" if evidence.near_optimal else ""),
    }
    return Section(key="verification", title=title, plots=[plot], table=table)


def _efficiency(evidence: "Evidence") -> Section:
    routed = any(architecture.depth_routed for architecture in evidence.architectures)
    title = f"How much compute the experts{' and the routing of depth' if routed else ''} save"
    multipliers = [multiplier for multiplier in evidence.multipliers if 0 < multiplier.value < np.inf]
    beyond = [multiplier for multiplier in evidence.multipliers if multiplier.value == np.inf]
    missing = evidence.multipliers_missing
    if beyond:
        missing += " " + "; ".join(
            f"{multiplier.architecture} at {flops(multiplier.budget)} FLOPs: no dense budget reaches its loss"
            for multiplier in beyond
        )
    if not multipliers:
        return Section(key="efficiency", title=title, missing=missing)
    hollow = any(multiplier.extrapolated for multiplier in multipliers)
    low, high = min(m.value for m in multipliers), max(m.value for m in multipliers)
    plot = Plot(
        key="efficiency",
        draw=lambda width: figures.efficiency(evidence.architectures, multipliers, width=width),
        caption="FLOPs that a dense model needs for the same loss, divided by the FLOPs spent; above the line the "
        "architecture pays. The loss is that of the isoFLOP minimum where it is inside the sizes that were run and has "
        "an interval, else of the law; the dense FLOPs for it are those of the dense law, if there is one. Bars are "
        "90% intervals"
        + (", hollow marks need dense losses beyond the dense runs' budgets (extrapolated)." if hollow else "."),
        description=f"Efficiency multiplier against budget, between {factor(low)} and {factor(high)}.",
    )
    return Section(key="efficiency", title=title, plots=[plot], missing=missing.strip())


def _load(records: "StudyRecords", evidence: "Evidence") -> Section:
    title = "How evenly the experts are used"
    runs = evidence.grid
    experts = [architecture.name for architecture in evidence.architectures if architecture.has_experts]
    if not experts:
        return Section(key="load", title=title, missing="the study has no architecture with experts.")
    ids = view.texts(runs, "run_id")
    chosen = {name: ids[row] for name, row in _best_rows(evidence).items() if name in experts}
    loads = {name: load for name, run_id in chosen.items() if (load := records.expert_load(run_id))}
    if loads:
        plot = Plot(
            key="load",
            draw=lambda width: figures.expert_load(loads, width=width),
            caption="Share of the assignments that each expert gets on held-out text, relative to an even share, in "
            "the best run of each architecture at its largest budget. White: even; orange: busy; purple: idle.",
            description="Heat map of expert load, layer by expert, for " + ", ".join(loads) + ".",
        )
        return Section(key="load", title=title, plots=[plot])
    largest = view.numbers(runs, "load_max")
    best = [(name, row) for name, row in _best_rows(evidence).items() if name in experts]
    rows = [[name, f"{largest[row]:.2f}×"] for name, row in best if np.isfinite(largest[row])]
    if not rows:
        return Section(key="load", title=title, missing="no run recorded its experts' load.")
    table = {
        "columns": ["architecture", "busiest expert / even share"],
        "rows": rows,
        "caption": "The busiest expert of any layer on held-out text, in the best run at the largest budget.",
    }
    return Section(key="load", title=title, table=table, missing="the map by layer: no run has an expert_load.json.")


def _training(records: "StudyRecords", evidence: "Evidence") -> Section:
    title = "Training curves of the best runs"
    ids = view.texts(evidence.grid, "run_id")
    found = {name: records.training_curve(ids[row]) for name, row in _best_rows(evidence).items()}
    curves = {name: points for name, points in found.items() if len(points) > 1}
    if not curves:
        return Section(
            key="training", title=title, missing="no run of the table has a metrics.jsonl in this directory."
        )
    plot = Plot(
        key="training",
        draw=lambda width: figures.training_curves(evidence.architectures, curves, width=width),
        caption="Training loss of the best run of each architecture at its largest budget, averaged over "
        "neighbouring steps. Sizes differ, so the lines end at different numbers of tokens; a spike or a plateau would "
        "be a sign of trouble.",
        description="Training loss against tokens seen, one line for each architecture.",
    )
    return Section(key="training", title=title, plots=[plot])


def _best_rows(evidence: "Evidence") -> dict[str, int]:
    """For each architecture the row of its best run at the largest budget where it has a loss."""
    runs = evidence.grid
    points = view.measured(runs)
    loss = view.numbers(runs, "loss")
    best = {}
    for architecture in evidence.architectures:
        own = [point.budget for point in points if point.architecture == architecture.name]
        if own and (point := view.best_measured(points, architecture.name, max(own))):
            best[architecture.name] = min(point.rows, key=lambda row: loss[row])
    return best
