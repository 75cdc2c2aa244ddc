"""How many times the FLOPs a dense model needs for an MoE's loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.frontier import Frontier, LawFrontier, MinimaFrontier
from isoflop.laws.law import Law
from isoflop.laws.minima import Minimum
from isoflop.laws.numbers import exponent
from isoflop.laws.result import Fit

_HALVINGS = 45
_REACH = (-9.0, 30.0)  # ln of the dense budget / the MoE's between which an equal loss is sought


@dataclass(frozen=True, kw_only=True)
class Multiplier:
    """How many times the FLOPs a dense model needs for the loss that an MoE reaches at one budget."""

    flops: float
    """What the MoE spends."""
    value: float
    """dense_flops / flops; infinite where no dense budget reaches the loss."""
    interval: tuple[float, float] | None
    """From draws of both frontiers, paired; an end may be infinite. None where either has no draws."""
    loss: float
    """The MoE's compute-optimal loss at `flops`, nats per token."""
    dense_flops: float
    """What a compute-optimal dense model spends for this loss."""
    extrapolated: bool
    """Whether `flops` or `dense_flops` stands outside of the runs behind the frontiers."""
    message: str
    """What to know before quoting it; empty if nothing."""
    draws: np.ndarray = field(repr=False, compare=False)
    """Draws of the value [B]."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON, without the draws."""
        return {name: value for name, value in vars(self).items() if name != "draws"}


def efficiency_multiplier(
    dense: Fit | Law | Sequence[Minimum] | Frontier,
    moe: Fit | Law | Sequence[Minimum] | Frontier,
    flops: float,
    *,
    granularity: float | None = None,
    expansion_rate: float | None = None,
    level: float = 0.9,
) -> Multiplier:
    """Compare two compute-optimal frontiers at equal loss.

    Args:
        dense: the dense models' law, fit, isoFLOP minima or frontier.
        moe: likewise of the MoE. Draw i of the two is paired, so that what they share (see fit_shared) cancels.
        flops: budget of the MoE.
        granularity: G of the MoE, for a law that knows it.
        expansion_rate: E of the MoE, for a law that knows it. A law that does may be that of the dense models too, at
            E = 1.
        level: of the interval.

    Raises:
        InputError: if flops or level is out of range, or a frontier cannot be made.
    """
    if not 0 < flops < np.inf:
        raise InputError(f"flops is {flops:g}; it must be positive and finite.")
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}; it must be between 0 and 1.")
    ours, theirs = _frontier(dense, *_of_dense(dense)), _frontier(moe, granularity, expansion_rate)
    loss = float(theirs.loss(np.array([flops]))[0])
    value = float(_budget_ratio(ours.loss, np.array([loss]), flops)[0])
    moe_losses = theirs.loss_draws(np.array(flops))
    dense_count = len(ours.loss_draws(np.array(flops)))
    draws = np.zeros(0)
    if len(moe_losses) and dense_count:
        count = min(len(moe_losses), dense_count)
        targets = np.resize(moe_losses[:count], dense_count)
        draws = _budget_ratio(ours.loss_draws, targets, flops)[:count]
    notes = [note for note in (ours.note, theirs.note) if note]
    extrapolated = not theirs.inside(flops)
    if extrapolated:
        notes.append(f"the best MoE at {exponent(flops)} FLOPs is outside of the MoE's runs.")
    if not np.isfinite(value):
        extrapolated = True
        notes.append("no dense budget within reach gives this loss, which lies below the dense runs' asymptote.")
    elif not ours.inside(flops * value):
        extrapolated = True
        notes.append(f"the best dense model at {exponent(flops * value)} FLOPs is outside of the dense runs.")
    return Multiplier(
        flops=flops,
        value=value,
        interval=_interval(draws, level),
        loss=loss,
        dense_flops=flops * value,
        extrapolated=extrapolated,
        message=" ".join(note[0].upper() + note[1:] for note in notes),
        draws=draws,
    )


def _of_dense(source: Fit | Law | Sequence[Minimum] | Frontier) -> tuple[float | None, float | None]:
    """G and E of dense models, for a law that knows E; one that knows G alone has no dense models."""
    if not isinstance(source, (Fit, Law)) or not {"expansion_rate", "sparsity"} & set(source.form.columns):
        return None, None
    return 1.0, 1.0


def _frontier(
    source: Fit | Law | Sequence[Minimum] | Frontier, granularity: float | None, expansion_rate: float | None
) -> Frontier:
    if isinstance(source, (LawFrontier, MinimaFrontier)):
        return source
    if isinstance(source, (Fit, Law)):
        return LawFrontier(source, granularity=granularity, expansion_rate=expansion_rate)
    return MinimaFrontier(source)


def _budget_ratio(loss_at: Callable[[np.ndarray], np.ndarray], targets: np.ndarray, flops: float) -> np.ndarray:
    """Budget / flops [B] at which each target loss [B] is reached; inf where none is, NaN where a loss is none."""
    low, high = (np.full(len(targets), end) for end in _REACH)
    at_most = loss_at(flops * np.exp(high))
    reached = at_most <= targets
    above = loss_at(flops * np.exp(low)) >= targets
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        enough = loss_at(flops * np.exp(middle)) <= targets
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    ratio = np.where(reached, np.where(above, np.exp(0.5 * (low + high)), 0.0), np.inf)
    return np.where(np.isfinite(targets) & np.isfinite(at_most), ratio, np.nan)


def _interval(draws: np.ndarray, level: float) -> tuple[float, float] | None:
    """Central interval of the draws; None where there are none, or more of them than a tail have no value."""
    tail = (1 - level) / 2
    if not len(draws) or np.mean(np.isnan(draws)) > tail:
        return None
    draws = np.sort(draws[~np.isnan(draws)])
    low, high = (draws[int(np.clip(round(share * (len(draws) - 1)), 0, len(draws) - 1))] for share in (tail, 1 - tail))
    return float(low), float(high)
