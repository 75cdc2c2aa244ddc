"""The law of the best ratio, r*(C, S), through valleys over the expert–attention ratio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._parabola import Interval
from isoflop.laws._rows import CONVENTION
from isoflop.laws.fitting import fit
from isoflop.laws.forms import form_named
from isoflop.laws.result import Fit
from isoflop.laws.table import RunTable
from isoflop.laws.valleys import COLUMN, LARGEST, Valley, around, check_draws

_SINGULAR: Final = 1e12
"""Condition number of the scaled normal equations beyond which they have no solution."""

_DOUBT: Final = 0.05
"""Probability of no valley from which on there may be none."""

_ALIKE: Final = 0.1
"""Logarithms of budgets, or of 1 − S, that lie closer than this are one budget, or one sparsity."""


def _kinds(logarithms: np.ndarray) -> int:
    """How many values these are, those closer than _ALIKE to a neighbour being one."""
    return 1 + int(np.sum(np.diff(np.sort(logarithms)) > _ALIKE)) if len(logarithms) else 0


def _budgets_and_sparsities(valleys: Sequence[Valley]) -> tuple[int, int]:
    """How many different ones there are."""
    return (
        _kinds(np.log([valley.flops for valley in valleys])),
        _kinds(np.log1p(-np.array([valley.sparsity for valley in valleys]))),
    )


def allocation_of(valleys: Sequence[Valley], *, draws: int = 100, pinned: Mapping[str, float] | None = None) -> Fit:
    """Fit r*(C, S) = A (1−S)^p C^(B (1−S)^q) to valleys that lie inside the ratios that were run.

    Each valley weighs by how well its r* is known; the draws are refits to draws of every r*, so that intervals say
    what the runs leave open. With one sparsity p and q are pinned at 0, with one budget B and q.

    Args:
        valleys: of `ratio_valleys`.
        draws: refits; 0 for none.
        pinned: further parameters that are given.

    Raises:
        InputError: if fewer valleys than parameters lie inside.
    """
    return allocation_and_draws(valleys, draws=draws, pinned=pinned)[0]


def allocation_and_draws(
    valleys: Sequence[Valley], *, draws: int, pinned: Mapping[str, float] | None = None
) -> tuple[Fit, list[int], float]:
    """`allocation_of`, which draw of the valleys each draw of the fit is made of, and the share of draws without one
    because a group has no valley in it."""
    own = [valley for valley in valleys if valley.inside]
    budgets, sparsities = _budgets_and_sparsities(own)
    fixed: dict[str, float] = {}
    if sparsities < 2:
        fixed |= {"p": 0.0, "q": 0.0}
    if budgets < 2:
        fixed |= {"B": 0.0, "q": 0.0}
    fixed |= pinned or {}
    free = 4 - len(fixed)
    if len(own) < max(1, free):
        raise InputError(
            f"{len(own)} of {len(valleys)} valleys lie inside the ratios that were run, fewer than the "
            f"{free} parameter{'s' if free > 1 else ''} of law allocation; add ratios, budgets or sparsities."
        )
    spread = np.array([valley.log_ratio_error or 0.0 for valley in own])
    weights = np.ones(len(own))
    if (spread > 0).all():
        weights = (spread.min() / spread) ** 2
        weights /= weights.mean()

    def fitted(ratios: np.ndarray) -> Fit:
        return fit(_minima(own, ratios, weights), "allocation", huber_delta=None, weights="weight", pinned=fixed)

    found = fitted(np.array([valley.ratio for valley in own]))
    length = min((len(valley.log_ratio_draws) for valley in own), default=0)
    drawn = np.array([valley.log_ratio_draws[:length] for valley in own])
    with np.errstate(invalid="ignore"):
        usable = np.flatnonzero((np.abs(drawn) < LARGEST).all(axis=0))  # NaN is not
    flat = 1 - len(usable) / length if length else 0.0
    used = usable[:draws].tolist()
    refits = [fitted(np.exp(drawn[:, index])).parameters for index in used]
    if not refits:
        return found, [], flat
    refitted = {name: np.array([each[name] for each in refits]) for name in found.parameters}
    return replace(found, draws=refitted), used, flat


def _minima(valleys: Sequence[Valley], ratios: np.ndarray, weights: np.ndarray) -> RunTable:
    """One row for each valley, as law allocation reads it."""
    return RunTable(
        {
            "run_id": f"valley-{index}",
            "flops": valley.flops,
            "sparsity": valley.sparsity,
            COLUMN: float(ratio),
            "weight": float(weight),
            CONVENTION: valley.convention or "given",
        }
        for index, (valley, ratio, weight) in enumerate(zip(valleys, ratios, weights, strict=True))
    )


@dataclass(frozen=True, kw_only=True)
class SharedValley:
    """One depth for all groups, and their r* on one law: r* = A (1−S)^p C^B."""

    depth: float
    """v, nats per squared ln r; negative where the groups together are a hill."""
    depth_error: float
    """Its standard error, Student's with `spare` degrees of freedom."""
    depth_draws: np.ndarray = field(repr=False)
    """Draws of it [B]."""
    law: Fit | None
    """r*(C, S) with the draws [B'] that have a valley; None on a hill. Its rows are the minima of the groups' own
    parabolas, where they have one, and its residuals how far these lie from it; it was fitted to the runs."""
    used: np.ndarray = field(repr=False)
    """Which draws these are [B']; in the others any ratio may be the best."""
    noise: float
    """Standard deviation of one run's loss about it, nats."""
    spare: int
    """Rows beyond its parameters."""
    misfit: float | None
    """Probability of parabolas of their own fitting this much better by chance (F test); None where these leave no row
    to spare, so that it cannot be tested."""

    @property
    def flat(self) -> float:
        """Share of the draws in which any ratio may be the best."""
        return 1 - len(self.used) / len(self.depth_draws) if len(self.depth_draws) else 0.0

    def depth_interval(self, level: float = 0.9) -> Interval:
        """Of the depth."""
        return around(self.depth, self.depth_error, self.spare, level)


def shared_valley(
    valleys: Sequence[Valley], *, draws: int = 400, seed: int = 0, pinned: Mapping[str, float] | None = None
) -> SharedValley:
    """Fit loss = a_group + v (ln r − ln r*(C, S))², r* = A (1−S)^p C^B, to the rows of all groups at once.

    Faint valleys say little one by one: of some not even whether they are one. Together they may. Expanded, the model
    is linear in v and its products with ln A, p and B, so that it is one least-squares problem, with exact draws, and
    every row counts, those of hills and edges too. What it assumes is that groups share their depth and that q = 0 in
    the published form; `misfit` tests both.

    Args:
        valleys: of `ratio_valleys`.
        draws: of the coefficients, normal with the least-squares covariance and a drawn noise.
        seed: of the draws.
        pinned: p or B given; with one sparsity p is 0, with one budget B.

    Raises:
        InputError: if no group has three ratios, the rows leave nothing to estimate the noise from or cannot tell p
            from B, A or another q than 0 is pinned, or draws or seed are out of range.
    """
    check_draws(draws, seed)
    fixed = dict(pinned or {})
    if not set(fixed) <= {"p", "B", "q"} or fixed.get("q", 0.0):
        raise InputError(f"pinned is {', '.join(fixed)}; one depth for all valleys knows p and B alone, and q = 0.")
    own = [valley for valley in valleys if valley.curvature is not None]
    if not own:
        raise InputError("no group has runs at three ratios or more, which a valley takes; add ratios.")
    budgets, sparsities = _budgets_and_sparsities(own)
    if sparsities < 2:
        fixed.setdefault("p", 0.0)
    if budgets < 2:
        fixed.setdefault("B", 0.0)
    names = [name for name in ("A", "p", "B") if name not in fixed]
    log_flops = np.log([valley.flops for valley in own])
    centre = float(np.mean(log_flops))
    known = {"A": np.ones(len(own)), "p": np.log1p(-np.array([v.sparsity for v in own])), "B": log_flops - centre}
    given = sum((fixed.get(name, 0.0) * known[name] for name in ("p", "B")), np.zeros(len(own)))
    size = len(own) + len(names) + 1
    normal, right, squares = np.zeros((size, size)), np.zeros(size), 0.0
    for group, valley in enumerate(own):
        n, x1, x2, x3, x4, y, xy, xxy, yy = valley.moments
        # the group's own constant, then columns −2 x·feature, and last x² − 2 x·given
        features, m = np.array([known[name][group] for name in names]), given[group] - valley.log_centre
        inner = slice(len(own), size - 1)
        normal[group, group] = n
        normal[group, inner] = normal[inner, group] = -2 * x1 * features
        normal[group, -1] = normal[-1, group] = x2 - 2 * m * x1
        normal[inner, inner] += 4 * x2 * np.outer(features, features)
        normal[inner, -1] += -2 * (x3 - 2 * m * x2) * features
        normal[-1, inner] = normal[inner, -1]
        normal[-1, -1] += x4 - 4 * m * x3 + 4 * m * m * x2
        right[group] = y
        right[inner] += -2 * xy * features
        right[-1] += xxy - 2 * m * xy
        squares += yy
    from scipy.special import fdtrc, stdtr  # scipy is slow to import

    rows = sum(valley.n_rows for valley in own)
    spare = rows - size
    if spare < 1:
        raise InputError(f"{rows} rows in {len(own)} groups leave nothing to estimate the noise from; add runs.")
    scale = np.sqrt(np.diag(normal))
    if np.linalg.cond(normal / np.outer(scale, scale)) > _SINGULAR:
        raise InputError(
            f"the sparsities and budgets of {len(own)} groups move together, so that p and B cannot be told apart; "
            "add groups, or pin one of them."
        )
    solved = np.linalg.solve(normal, right)
    residual = max(squares - float(right @ solved), 0.0)
    free = rows - 3 * len(own)
    rng = np.random.default_rng(seed)
    spread = np.sqrt(residual / rng.chisquare(spare, size=draws)) if draws else np.zeros(0)
    inverse = np.linalg.inv(normal)
    root = np.linalg.cholesky(inverse)
    drawn = solved + spread[:, None] * (rng.standard_normal((len(spread), size)) @ root.T)
    noise = float(np.sqrt(residual / spare))
    error = noise * float(np.sqrt(inverse[-1, -1]))
    misfit = None
    if free > 0 and spare > free:
        apart = sum(valley.squares for valley in own)
        ratio = (residual - apart) / (spare - free) / (apart / free) if apart > 0 else np.inf
        misfit = float(fdtrc(spare - free, free, ratio))
    first = len(own)

    def constants(values: np.ndarray) -> dict[str, np.ndarray]:
        """ln A, p, B and q from coefficients [..., size]."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            each = {name: values[..., first + i] / values[..., -1] for i, name in enumerate(names)}
            each |= {name: np.full_like(each["A"], value) for name, value in fixed.items() if name != "q"}
            return {**each, "A": each["A"] - each["B"] * centre, "q": np.zeros_like(each["A"])}

    # a depth of nearly 0 sends r* beyond all numbers: such a draw says as little as a flat one
    drawn_constants = constants(drawn)
    with np.errstate(invalid="ignore"):
        used = np.flatnonzero((drawn[:, -1] > 0) & (np.abs(drawn_constants["A"]) < 2 * LARGEST))
    minima = [valley for valley in own if valley.depth is not None]
    best = {name: float(value) for name, value in constants(solved).items()}
    law = None
    if solved[-1] > 0 and abs(best["A"]) < 2 * LARGEST and minima:
        predicted = [
            best["A"] + best["p"] * np.log1p(-valley.sparsity) + best["B"] * np.log(valley.flops) for valley in minima
        ]
        known_flat = float(stdtr(spare, -solved[-1] / error)) if error > 0 else 0.0
        visible = known_flat < _DOUBT
        law = Fit(
            form=form_named("allocation"),
            parameters={**best, "A": float(np.exp(best["A"]))},
            status="converged" if visible else "not_identified",
            message="least squares over all rows, one depth for all groups"
            + ("." if visible else "; the valley may be flat, and any ratio the best."),
            objective=residual / 2,
            condition=float(np.linalg.cond(normal / np.outer(scale, scale))),
            n_left_out=0,
            huber_delta=None,
            pinned=fixed | {"q": 0.0},
            residuals=np.log([valley.ratio for valley in minima]) - predicted,
            draws=_with_coefficient({name: values[used] for name, values in drawn_constants.items()}),
            runs=_minima(minima, np.array([valley.ratio for valley in minima]), np.ones(len(minima))),
        )
    return SharedValley(
        depth=float(solved[-1]),
        depth_error=error,
        depth_draws=drawn[:, -1],
        law=law,
        used=used,
        noise=noise,
        spare=spare,
        misfit=misfit,
    )


def _with_coefficient(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draws [B] with A in place of ln A; empty without draws."""
    return {**draws, "A": np.exp(draws["A"])} if len(draws["A"]) else {}
