"""What to know before trusting a fit that found its minimum: intervals without an end, held-out rows that it misses."""

import math
from collections.abc import Mapping

import numpy as np

from isoflop.laws.held_out import Holdout
from isoflop.laws.repeats import NoiseFloor
from isoflop.laws.result import Fit

_TIMES = 3.0  # a held-out error beyond this multiple of the noise is the law's
_SEEN = 0.01  # of the loss
_EXACT = 1e-6  # losses without noise
_DECADES = 2.0  # a constant whose interval spans more is not known
_HIGHEST = 4.0  # nats per token; no published irreducible loss is half of it
_END = 1e-6  # of its range: a draw so near to a bound is at it


def cautions(
    fit: Fit,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    holdout: Holdout | None = None,
    floor: NoiseFloor | None = None,
) -> list[str]:
    """One sentence each for a fit that converged and may yet be of no use.

    Named are parameters whose interval spans over two decades or ends at a bound, a held-out error above three times
    the noise floor (without one, the error in sample), and an irreducible loss above 4 nats per token.
    """
    return [*_held_out(fit, holdout, floor), *_wide(fit, intervals or {}), *_irreducible(fit)]


def _held_out(fit: Fit, holdout: Holdout | None, floor: NoiseFloor | None) -> list[str]:
    if holdout is None or holdout.status in ("not_identified", "failed"):
        return []
    inside = float(np.sqrt(np.sum(fit.residuals**2) / max(fit.n_rows - fit.n_free, 1)))
    beside = [(inside, "error in sample")]
    if floor is not None:
        beside = [(floor.sd, "noise floor")]
    elif holdout.rmse > _SEEN:  # below it, that few residuals happen to be small would raise it
        beside.append((fit.noise, "noise of ln loss"))
    passed = [(size, name) for size, name in beside if size > _EXACT and holdout.rmse > _TIMES * size]
    if not passed:
        return []
    size, name = passed[0]
    return [
        f"the held-out error {holdout.rmse:.2%} is {holdout.rmse / size:.2g} times the {name} {size:.2%}: the law does "
        "not carry to larger runs as it describes these; try another law, or leave out runs that it does not hold for."
    ]


def _wide(fit: Fit, intervals: Mapping[str, tuple[float, float]]) -> list[str]:
    bounds = {p.name: (p.lower, p.upper) for p in fit.form.parameters}
    wide, ended = [], []
    for name, (low, high) in intervals.items():
        if name in fit.pinned or not (math.isfinite(low) and math.isfinite(high)):
            continue
        lower, upper = bounds[name]
        slack = _END * (upper - lower) if math.isfinite(upper - lower) else 1e-12 * abs(high)
        if low <= lower + slack or high >= upper - slack:
            ended.append(name)
        elif low > 0 and high > low * 10**_DECADES:
            wide.append(name)
    said = []
    if wide:
        said.append(f"{_and(wide, 'the interval of', 'the intervals of')} over two decades")
    if ended:
        said.append(f"{_and(ended, 'the interval of', 'the intervals of', 'ends', 'end')} at a bound")
    return [f"{' and '.join(said)}: the rows hardly say how large; add runs, or pin what is known."] if said else []


def _irreducible(fit: Fit) -> list[str]:
    name = fit.form.asymptote
    if name is None or fit.form.target != "loss" or name in fit.pinned or not fit.parameters[name] > _HIGHEST:
        return []
    return [
        f"the irreducible loss {name} is {fit.parameters[name]:.3g}, above {_HIGHEST:g} nats per token, which no text "
        'has: is the loss a perplexity (then --set "loss=log(loss)") or in another unit?'
    ]


def _and(names: list[str], one: str, several: str, verb: str = "spans", verbs: str = "span") -> str:
    if len(names) == 1:
        return f"{one} {names[0]} {verb}"
    return f"{several} {', '.join(names[:-1])} and {names[-1]} {verbs}"
