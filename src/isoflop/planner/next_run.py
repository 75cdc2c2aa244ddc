"""Which run to do next: the one that tells most, for its FLOPs, about the choice that a later budget depends on.

The bootstrap draws of a fit stand for what is not known of the law. Every candidate run's log loss y and every
possible choice's loss q at the later budget is computed under each draw; a run with noise σ then leaves of q the
variance Var(q) − Cov(q, y)² / (Var(y) + σ²): the update of linear Bayes (exact where the draws are Gaussian and the
law is linear across them). No run is simulated and nothing is fitted again.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isoflop.errors import InputError
from isoflop.laws import Fit, exponent
from isoflop.planner._decision import Choice, Decision, Grid, effective_variance, noise_of, repeat_noise
from isoflop.planner._experiments import families_of
from isoflop.planner.losses import beyond_runs
from isoflop.planner.problem import checked_flops

About = Literal["difference", "loss"]

THRESHOLD = 0.002
"""Nats of expected regret that are worth no further run, unless repeated runs show more noise."""

SETTLED = 0.95
"""Probability of the best architecture from which on runs are ranked by what they tell about its loss."""

_FEWEST = 40
_EDGE = 0.02  # of a value; nearer to the runs' own range is within it


@dataclass(frozen=True, kw_only=True)
class RunCandidate:
    """A run that could be done, and what is to be expected of it."""

    architecture: str
    granularity: float
    expansion_rate: float
    params_active: float
    params_total: float
    tokens: float
    flops: float
    loss: float
    """Predicted, nats per token."""
    variance_cut: float
    """Share of the variance of what is asked about (gap or loss) that the run is expected to remove."""
    per_flop: float
    """Variance removed, in squared nats, for each FLOP of the run: candidates are ranked by it."""
    loss_std_after: float
    """Standard deviation of the loss at the decision once the run is known, nats."""
    gap_std_after: float | None
    """Likewise of the gap between the two best architectures; None where there is one."""
    regret_after: float
    """Expected regret of the decision once the run is known, nats."""


@dataclass(frozen=True, kw_only=True)
class NextRun:
    """The answer to: which run next, or none?"""

    decide_at: float
    """FLOPs of the training run that is to be decided."""
    budget: float
    """FLOPs that are left for runs before it."""
    about: About
    """What runs are ranked by: the gap between the two best architectures, or the loss at the decision."""
    choice: Choice
    """What would be chosen now."""
    runner_up: Choice | None
    """The second best architecture."""
    gap: float | None
    """Loss of the runner-up less that of the choice, nats."""
    gap_std: float | None
    """Standard deviation of the gap over the draws."""
    probability_best: float | None
    """Probability that no other architecture is better than the chosen one; None where there is one."""
    probability_near: float
    """Probability that the choice (architecture and size) loses at most `threshold` nats against the best."""
    regret: float
    """Nats that deciding now is expected to lose against knowing the law."""
    threshold: float
    """Regret below which no run is worth its FLOPs."""
    noise: float
    """Standard deviation of the log loss of one run that candidates were given."""
    stop: bool
    """Whether to decide now."""
    reason: str
    """Why, in one sentence."""
    candidates: tuple[RunCandidate, ...]
    """For each architecture and cost the best run, best first; empty where none is affordable."""
    draws: int
    """Draws that were used."""
    warnings: tuple[str, ...] = ()
    """What the answer cannot promise."""

    @property
    def best(self) -> RunCandidate | None:
        """The run to do next, were one to be done."""
        return self.candidates[0] if self.candidates else None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        values = {
            name: value for name, value in vars(self).items() if name not in ("candidates", "choice", "runner_up")
        }
        return values | {
            "choice": dict(vars(self.choice)),
            "runner_up": None if self.runner_up is None else dict(vars(self.runner_up)),
            "next": None if self.stop or self.best is None else dict(vars(self.best)),
            "candidates": [dict(vars(candidate)) for candidate in self.candidates],
            "warnings": list(self.warnings),
        }


def next_run(
    fits: Fit | Mapping[str, Fit],
    *,
    budget: float,
    decide_at: float,
    about: About | None = None,
    granularities: Sequence[float] | None = None,
    expansion_rates: Sequence[float] | None = None,
    threshold: float | None = None,
    least_cut: float = 0.05,
) -> NextRun:
    """Rank the runs that the remaining budget affords by what they tell about a decision, for their FLOPs.

    The decision is what to train on `decide_at` FLOPs: an architecture (granularity, expansion rate) and its size.
    Draws are centred on the fit, so that what would be chosen now is what `plan` would choose. A candidate is an
    architecture, a cost between the cheapest run so far and what is affordable, and tokens per parameter as
    most runs so far: elsewhere the law was hardly seen to hold.

    Args:
        fits: a fit with bootstrap draws, or several with paired draws (`fit_shared`) by name.
        budget: FLOPs left for runs.
        decide_at: FLOPs of the decision.
        about: what runs are to tell: the gap between the two best architectures there (difference; the default where
            there are two, until one is better with a probability of 0.95) or the predicted loss of the best (loss).
        granularities: G that the decision is between and that runs may have, for a law that knows it; default: those
            of the runs.
        expansion_rates: E, likewise.
        threshold: nats of expected regret below which to stop; default: 0.002, or the noise of one run where repeated
            runs say that it is more.
        least_cut: candidates must remove this share of the variance (or half of the largest share, if that is less);
            and where even all of the budget, spent on repeats of any candidate, would not lower the expected regret by
            this share, the advice is to stop.

    Raises:
        InputError: if an argument is out of range, a fit has no draws or no rows to know the noise by, or lacks
            columns.
    """
    fits = {"": fits} if isinstance(fits, Fit) else dict(fits)
    _check(fits, budget=budget, decide_at=decide_at, about=about, threshold=threshold, least_cut=least_cut)
    families = families_of(fits, granularities, expansion_rates)
    if about == "difference" and len(families) < 2:
        raise InputError(f"about is difference, but the runs have one architecture, {families[0].name}; use loss.")
    decision = Decision(families, decide_at)
    probability_best = decision.probability_best()
    if about is None:
        about = "loss" if probability_best is None or probability_best >= SETTLED else "difference"
    noise = noise_of(fits.values())
    variance = effective_variance(noise, next(iter(fits.values())).huber_delta)
    unknown_noise = []
    if threshold is None:
        floor = repeat_noise(fits.values())
        threshold = max(THRESHOLD, (floor or 0.0) * decision.choices[0].loss)
        if floor is None:
            unknown_noise.append(_without_repeats(fits.values(), threshold))
    regret = decision.regret()
    grid = Grid(families, budget=min(budget, decide_at))
    candidates: list[RunCandidate] = []
    saved = 0.0
    if len(grid):
        candidates = _ranked(decision, grid, about, variance, regret, least_cut)
        repeats = np.floor(budget / grid.flops)
        saved = float(np.max(decision.gain(grid, variance / repeats)))
    stop, reason = _advice(decision, candidates, regret, threshold, saved, least_cut, budget, grid.cheapest)
    if stop and any(fit.status in ("not_identified", "failed") for fit in fits.values()):
        reason += " But the runs leave the law loose (see the warnings): more may be uncertain than the draws show."
    return NextRun(
        decide_at=decide_at,
        budget=budget,
        about=about,
        choice=decision.choices[0],
        runner_up=decision.choices[1] if len(decision.choices) > 1 else None,
        gap=decision.gap,
        gap_std=None if decision.gap_draws is None else float(np.std(decision.gap_draws)),
        probability_best=probability_best,
        probability_near=float(np.mean(decision.losses() <= threshold)),
        regret=regret,
        threshold=threshold,
        noise=noise,
        stop=stop,
        reason=reason,
        candidates=tuple(candidates),
        draws=int(decision.kept.sum()),
        warnings=(
            *_warnings(fits, decide_at, decision.kept),
            *(_beyond_sizes(fits.values(), candidates[0]) if candidates and not stop else []),
            *unknown_noise,
            *beyond_runs((family.fit, "granularity", family.granularity) for family in families),
            *beyond_runs((family.fit, "expansion_rate", family.expansion_rate) for family in families),
        ),
    )


def _ranked(
    decision: Decision, grid: Grid, about: About, variance: float, regret: float, least_cut: float
) -> list[RunCandidate]:
    """The best candidate of each architecture and cost, by variance removed for each FLOP."""
    observed = grid.centred(decision.kept)
    spread = observed.var(axis=0) + variance

    def removed(draws: np.ndarray) -> np.ndarray:
        return np.asarray(((draws - draws.mean()) @ observed / len(observed)) ** 2 / spread)

    of_loss = removed(decision.loss_draws)
    of_gap = None if decision.gap_draws is None else removed(decision.gap_draws)
    asked, draws = of_loss, decision.loss_draws
    if about == "difference":
        assert of_gap is not None
        assert decision.gap_draws is not None
        asked, draws = of_gap, decision.gap_draws
    cut = asked / max(float(np.var(draws)), 1e-300)
    score = asked / grid.flops
    gain = decision.gain(grid, variance)
    enough = cut >= min(least_cut, 0.5 * float(cut.max()))
    columns = {name: grid.column(name) for name in ("params_active", "params_total", "tokens")}
    found: list[RunCandidate] = []
    seen = set()
    for k in np.lexsort((-score, ~enough)):
        family = grid.families[grid.family[k]]
        place = (family.name, int(grid.level[k]))
        if place in seen or not enough[k]:
            continue
        seen.add(place)
        found.append(
            RunCandidate(
                architecture=family.name,
                granularity=family.granularity,
                expansion_rate=family.expansion_rate,
                **{name: float(values[k]) for name, values in columns.items()},
                flops=float(grid.flops[k]),
                loss=float(grid.point[k]),
                variance_cut=float(cut[k]),
                per_flop=float(score[k]),
                loss_std_after=_left(decision.loss_draws, of_loss[k]),
                gap_std_after=(
                    None if of_gap is None or decision.gap_draws is None else _left(decision.gap_draws, of_gap[k])
                ),
                regret_after=max(0.0, regret - float(gain[k])),
            )
        )
    return found


def _left(draws: np.ndarray, removed: float) -> float:
    return math.sqrt(max(0.0, float(np.var(draws)) - float(removed)))


def _advice(
    decision: Decision,
    candidates: Sequence[RunCandidate],
    regret: float,
    threshold: float,
    saved: float,
    least_cut: float,
    budget: float,
    cheapest: float,
) -> tuple[bool, str]:
    """Whether to stop, and why."""
    choice = decision.choices[0].architecture
    if regret < threshold:
        return True, (
            f"Stop and take {choice}: deciding now is expected to lose {regret:.2g} nats, less than the "
            f"{threshold:.2g} that are worth a run."
        )
    if not candidates:
        return True, (
            f"Stop: the {exponent(budget)} FLOPs that are left buy no run as large as the smallest so far, of "
            f"{exponent(cheapest)}."
        )
    if saved < least_cut * regret:
        return True, (
            f"Stop and take {choice}: all of the {exponent(budget)} FLOPs that are left would lower the expected "
            f"regret of {regret:.2g} nats by {saved / regret:.1%}, less than {least_cut:.0%}."
        )
    best = candidates[0]
    return False, (
        f"Run {best.architecture} with {best.params_active:.3g} active parameters on {best.tokens:.3g} tokens "
        f"({exponent(best.flops)} FLOPs): it is expected to remove {best.variance_cut:.0%} of the variance and to "
        f"lower the expected regret from {regret:.2g} to {best.regret_after:.2g} nats."
    )


def _check(
    fits: Mapping[str, Fit],
    *,
    budget: float,
    decide_at: float,
    about: str | None,
    threshold: float | None,
    least_cut: float,
) -> None:
    if not fits:
        raise InputError("fits is an empty mapping; give at least one fit.")
    checked_flops("budget", budget)
    checked_flops("decide_at", decide_at)
    if threshold is not None and not 0 < threshold < math.inf:
        raise InputError(f"threshold is {threshold:g}; it must be positive and finite.")
    if about not in (None, "difference", "loss"):
        raise InputError(f"about is {about!r}; allowed: difference, loss.")
    if not 0 <= least_cut < 1:
        raise InputError(f"least_cut is {least_cut:g}; it must be at least 0 and below 1.")
    for fit in fits.values():
        count = len(next(iter(fit.draws.values()))) if fit.draws else 0
        if count < _FEWEST:
            raise InputError(
                f"the fit of {fit.runs.source} has {count} bootstrap draws; fit with bootstrap={_FEWEST} or more to "
                "know what is uncertain."
            )
        if fit.n_rows <= fit.n_free:
            raise InputError(
                f"the fit has {fit.n_rows} rows for {fit.n_free} free parameters, which leaves none to know the noise; "
                "add runs."
            )


def _beyond_sizes(fits: Iterable[Fit], first: RunCandidate) -> list[str]:
    """That the first run is larger or smaller than all runs so far, if it is."""
    said = []
    fits = list(fits)
    for column in ("params_active", "tokens", "flops"):
        rows = np.concatenate([fit.runs.numeric(column) for fit in fits if column in fit.runs] or [np.empty(0)])
        value = getattr(first, column)
        if len(rows) and not np.nanmin(rows) * (1 - _EDGE) <= value <= np.nanmax(rows) * (1 + _EDGE):
            said.append(
                f"{column} {exponent(value)}, of {exponent(np.nanmin(rows))} to {exponent(np.nanmax(rows))} so far"
            )
    if not said:
        return []
    return [f"The first run is outside all runs so far ({'; '.join(said)}), where the law was not seen to hold."]


def _without_repeats(fits: Iterable[Fit], threshold: float) -> str:
    seeded = all("seed" in fit.runs for fit in fits)
    why = "no run repeats another with a different seed" if seeded else "the runs have no column seed"
    return (
        f"{why[0].upper()}{why[1:]}, so the noise of one run is not known from repeats: a regret below {threshold:g} "
        "nats counts as nothing; a threshold of your own replaces it."
    )


def _warnings(fits: Mapping[str, Fit], decide_at: float, kept: np.ndarray) -> list[str]:
    doubtful: dict[tuple[str, str], list[str]] = {}
    for name, fit in fits.items():
        if fit.status != "converged":
            doubtful.setdefault((fit.status, fit.message.rstrip(".")), []).append(name)
    sentences = []
    for (status, message), names in doubtful.items():
        which = f" of {' and '.join(names)}" if all(names) else ""
        rest = "" if status == "bound_hit" else "; its draws may not show all that is uncertain"
        sentences.append(f"The law{which} has status {status}: {message}{rest}.")
    sentences += dict.fromkeys(sentence for fit in fits.values() for sentence in fit.warnings)
    largest = max(float(fit.runs.numeric("flops").max()) for fit in fits.values())
    if decide_at > 10 * largest:
        sentences.append(
            f"decide_at {exponent(decide_at)} is {decide_at / largest:.3g} times the largest run: if the law bends "
            "beyond it, the draws do not know."
        )
    if kept.mean() < 0.95:
        sentences.append(
            f"{int((~kept).sum())} of {len(kept)} draws lie far off at the decision and were left out: the rows leave "
            "the law loose, and any answer is rough."
        )
    return sentences
