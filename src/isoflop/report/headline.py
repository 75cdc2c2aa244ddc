"""What the runs say, in sentences that are never stronger than the data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isoflop.laws import Fit, Minimum
from isoflop.report import view
from isoflop.report.marks import Interval, Multiplier, Verified
from isoflop.report.style import factor, flops

if TYPE_CHECKING:
    from isoflop.laws import RunTable

WIDE_INTERVAL = 0.1
"""Width of a predicted interval, relative to the prediction, from which a loss inside it proves little."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The loss of one architecture at one budget: at the fitted minimum over size if there is one, else of its best
    size."""

    architecture: str
    loss: float
    interval: Interval | None
    """Interval of the fitted minimum; of the best size from the noise between seeds, where some runs were repeated."""
    fitted: bool


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The report's first section."""

    sentences: tuple[str, ...]
    caveats: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    missing: str = ""
    """Why there is nothing to say."""


def headline(
    runs: "RunTable",
    minima: Sequence[Minimum],
    multipliers: Sequence[Multiplier],
    checks: Sequence[Verified],
    fits: Sequence[tuple[str, Fit]] = (),
    multipliers_missing: str = "",
) -> Headline:
    """Best architecture per budget, efficiency multiplier and verification, with what limits them.

    Architectures whose router sees later tokens are left out of the comparison, because their losses are not those of
    a language model.
    """
    ranked = standings(runs, minima)
    if not ranked:
        return Headline(sentences=(), caveats=(), columns=(), rows=(), missing="no run has ended with a loss.")
    dense = {architecture.name for architecture in view.architectures(runs) if architecture.dense}
    by_key = {(multiplier.architecture, multiplier.budget): multiplier for multiplier in multipliers}
    largest = max(ranked)
    sentences = [_best(largest, ranked[largest])]
    efficiency = _efficiency(ranked, by_key, dense)
    both = 0 < len(dense) < len(view.architectures(runs))
    if not efficiency and multipliers_missing and both:
        efficiency = [f"How many FLOPs a dense model needs for the same loss is not known: {multipliers_missing}"]
    sentences += efficiency
    sentences += [verdict(check) for check in checks]
    return Headline(
        sentences=tuple(sentences),
        caveats=(*_caveats(runs, minima), *_law_caveats(fits)),
        columns=("budget (FLOPs)", "lowest loss", "loss", "not separated from", "dense", "× dense FLOPs"),
        rows=tuple(_row(budget, order, by_key, dense) for budget, order in ranked.items()),
    )


def standings(runs: "RunTable", minima: Sequence[Minimum]) -> dict[float, list[Standing]]:
    """For each budget the architectures with a causal loss, best first."""
    points = view.measured(view.grid_rows(runs))
    fitted = {(minimum.architecture, minimum.budget): minimum for minimum in minima if minimum.inside}
    leaking = set(_leaking(runs))
    noise = seed_noise(points)
    result: dict[float, list[Standing]] = {}
    for budget in sorted({point.budget for point in points}):
        order = []
        for architecture in view.architectures(runs):
            point = view.best_measured(points, architecture.name, budget)
            minimum = fitted.get((architecture.name, budget))
            if point is None or architecture.name in leaking:
                continue
            if minimum:
                loss, interval = minimum.loss, minimum.loss_interval
            else:
                reach = noise / math.sqrt(point.seeds) if noise else None
                loss, interval = point.loss, (point.loss - reach, point.loss + reach) if reach else None
            order.append(
                Standing(architecture=architecture.name, loss=loss, interval=interval, fitted=minimum is not None)
            )
        if order:
            result[budget] = sorted(order, key=lambda standing: standing.loss)
    return result


def seed_noise(points: Sequence[view.Measured]) -> float | None:
    """Half-width of the 90% interval of one run's loss, from the variance between seeds pooled over all cells."""
    spare = sum(point.seeds - 1 for point in points)
    if spare == 0:
        return None
    from scipy.stats import t

    variance = sum(point.squares for point in points) / spare
    return float(t.ppf(0.95, spare) * math.sqrt(variance))


def rivals(order: Sequence[Standing]) -> list[Standing] | None:
    """Those whose interval overlaps that of the best one; None if an interval is missing, so that nobody knows."""
    best = order[0]
    if best.interval is None or any(other.interval is None for other in order):
        return None
    return [other for other in order[1:] if other.interval and other.interval[0] <= best.interval[1]]


def verdict(check: Verified) -> str:
    """The verification in one sentence."""
    said = f"{check.label}: predicted {check.predicted:.4f}"
    if check.interval:
        level = "" if check.level is None else f"{check.level:.0%} interval "
        said += f" ({level}{_span(check.interval)})"
    if check.measured is None:
        return f"{said}; the run has no loss ({check.error})." if check.error else f"{said}; the run has not ended."
    said += f", measured {check.measured:.4f} nats/token"
    off = check.measured / check.predicted - 1
    if check.interval is None:
        return (
            f"{said}, {abs(off):.2%} {'above' if off > 0 else 'below'} the prediction, which came without an interval."
        )
    low, high = check.interval
    if low <= check.measured <= high:
        wide = high - low > WIDE_INTERVAL * check.predicted
        reach = f", which is wide ({low / check.predicted - 1:+.0%} to {high / check.predicted - 1:+.0%}): a weak test"
        return f"{said}: inside the interval{reach if wide else ''}."
    beyond = check.measured / high - 1 if check.measured > high else low / check.measured - 1
    end = "above its upper" if check.measured > high else "below its lower"
    return f"{said}: outside the interval, {beyond:.2%} {end} end."


def _best(budget: float, order: Sequence[Standing]) -> str:
    best = order[0]
    where = f"At {flops(budget)} FLOPs"
    if len(order) == 1:
        return f"{where} only {best.architecture} was run: loss {_loss(best)} nats/token."
    close = rivals(order)
    said = f"{where} {best.architecture} has the lowest loss, {_loss(best)} nats/token"
    if close is None:
        ahead = f"ahead of {order[1].architecture} by {order[1].loss - best.loss:.4f}"
        return f"{said}, {ahead}; not every loss has an interval, so it is open whether the difference is real."
    if not close:
        return f"{said}; its interval overlaps no other."
    others = _list([other.architecture for other in close])
    return f"{said}, but its interval overlaps that of {others}: these runs do not separate them."


def _efficiency(
    ranked: Mapping[float, Sequence[Standing]], by_key: Mapping[tuple[str, float], Multiplier], dense: set[str]
) -> list[str]:
    """The multiplier of the best MoE at the largest budget, and how it changed from the smallest."""
    by_key = {key: multiplier for key, multiplier in by_key.items() if math.isfinite(multiplier.value)}
    known = [budget for budget in ranked if any((s.architecture, budget) in by_key for s in ranked[budget])]
    if not known:
        return []
    budget = max(known)
    name = next(s.architecture for s in ranked[budget] if (s.architecture, budget) in by_key)
    last = by_key[name, budget]
    leader = next(s.architecture for s in ranked[budget] if s.architecture not in dense)
    said = (
        f"To reach the loss of {name} at {flops(budget)} FLOPs a dense model needs {_times(last)} the FLOPs"
        f"{' (extrapolated beyond the dense runs)' if last.extrapolated else ''}"
    )
    if leader != name:
        said += f" (how many for {leader}, which does better, is not known)"
    if last.interval is None:
        said += "; this multiplier has no interval."
    elif last.interval[0] <= 1 <= last.interval[1]:
        said += "; the interval holds 1, so no gain is established."
    elif last.value < 1:
        said += ": here the dense model is the better one."
    else:
        said += "."
    first = by_key.get((name, min(known)))
    if first is None or first is last:
        return [said]
    change = (
        f"For {name} the multiplier goes from {_times(first)} at {flops(first.budget)} to {_times(last)} at "
        f"{flops(budget)} FLOPs"
    )
    if first.interval is None or last.interval is None:
        return [said, f"{change}; without intervals this says nothing about a trend."]
    if first.interval[1] < last.interval[0] or last.interval[1] < first.interval[0]:
        return [said, f"{change}: it {'grows' if last.value > first.value else 'falls'} over these budgets."]
    return [said, f"{change}; the intervals overlap, so a trend with budget is not established."]


def _row(
    budget: float, order: Sequence[Standing], by_key: Mapping[tuple[str, float], Multiplier], dense: set[str]
) -> tuple[str, ...]:
    best, close = order[0], rivals(order)
    reference = next((standing for standing in order if standing.architecture in dense), None)
    multiplier = by_key.get((best.architecture, budget))
    return (
        flops(budget),
        best.architecture,
        _loss(best),
        "unknown" if close is None else ", ".join(other.architecture for other in close) or "none",
        "–" if reference is None else f"{reference.loss:.4f}",
        "–" if multiplier is None else _times(multiplier),
    )


def _caveats(runs: "RunTable", minima: Sequence[Minimum]) -> list[str]:
    caveats = []
    points = view.measured(view.grid_rows(runs))
    repeated = [point for point in points if point.seeds > 1]
    if not repeated:
        caveats.append("Every run has one seed: no difference here has been checked against the noise between seeds.")
    else:
        where = _list([flops(budget) for budget in sorted({point.budget for point in repeated})])
        widest = max(point.spread or 0.0 for point in repeated)
        caveats.append(
            f"{len(repeated)} of {len(points)} cells (architecture, budget and size) have more than one seed (at "
            f"{where} FLOPs); the widest half-range between seeds is {widest:.4f} nats."
        )
    inside = {(minimum.architecture, minimum.budget) for minimum in minima if minimum.inside}
    loose: dict[str, list[str]] = {}
    for name, budget in sorted({(point.architecture, point.budget) for point in points} - inside):
        loose.setdefault(name, []).append(flops(budget))
    if loose:
        where = "; ".join(f"{name} at {_list(budgets)}" for name, budgets in loose.items())
        caveats.append(
            f"No minimum is known inside the sizes that were run, and the best size stands in for it: {where} FLOPs."
        )
    status = view.texts(runs, "status")
    lost = [state for state in status if state not in ("done", "")]
    if lost:
        kinds = ", ".join(f"{lost.count(kind)} {kind}" for kind in sorted(set(lost)))
        caveats.append(
            f"{len(lost)} of {len(status)} runs have no loss ({kinds}); they stand in the table with their error."
        )
    if leaking := _leaking(runs):
        caveats.append(
            f"{_list(leaking)}: the router sees later tokens, so the losses are not causal and are not compared here."
        )
    epochs = view.numbers(runs, "epochs")
    if np.nansum(epochs > 1):
        caveats.append(f"{int(np.nansum(epochs > 1))} runs repeat data, up to {np.nanmax(epochs):.2f} epochs.")
    return caveats


def _law_caveats(fits: Sequence[tuple[str, Fit]]) -> list[str]:
    """Laws that the runs do not pin down."""
    doubtful: dict[str, list[str]] = {}
    for name, fit in fits:
        if fit.status != "converged":
            doubtful.setdefault(fit.status.replace("_", " "), []).append(name)
    return [
        f"The law of {_list(names)} is {status}: do not trust its constants, nor predictions far from the runs."
        for status, names in doubtful.items()
    ]


def _leaking(runs: "RunTable") -> list[str]:
    """Architectures with a run whose loss is not causal."""
    names, causal = view.names(runs), view.texts(runs, "causal")
    return sorted({name for name, value in zip(names, causal, strict=True) if value.lower() in ("false", "0", "0.0")})


def _loss(standing: Standing) -> str:
    return f"{standing.loss:.4f}" + (f" {_span(standing.interval)}" if standing.interval else "")


def _times(multiplier: Multiplier) -> str:
    if multiplier.interval is None:
        return factor(multiplier.value)
    low, high = multiplier.interval
    upper = f"{high:.3g}" if math.isfinite(high) else "∞"
    return f"{factor(multiplier.value)} [{low:.3g}, {upper}]"


def _span(interval: Interval) -> str:
    return f"[{interval[0]:.4f}, {interval[1]:.4f}]"


def _list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"
