"""Profile likelihood: what the rows say about one parameter when all others follow it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._noise import spread, worth
from isoflop.laws._solver import Problem, minimise
from isoflop.laws.fitting import problem_again
from isoflop.laws.forms import Parameter
from isoflop.laws.result import Fit

_FIRST = 0.7  # standard errors to the first value on a side; each next one lies twice as far
_LOG_REACH = 20.0  # a coefficient is followed so far in its logarithm, either way
_PASSES = 3
_LEAST = 1e-9  # noise of ln L where the rows show none


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The best objective that each value of one parameter allows."""

    parameter: str
    estimate: float
    """The fitted value."""
    values: np.ndarray
    """Values [m] of the parameter, ascending."""
    objective: np.ndarray
    """Objective [m] with the other parameters fitted again."""
    deviance: np.ndarray
    """Twice the log likelihood [m] that is lost against the best: 2 (objective - least) / E[ψ²] · E[ψ']."""
    threshold: float
    """Deviance up to which values belong to the interval: the square of Student's t with n - p degrees of freedom."""
    level: float
    interval: tuple[float, float]
    """Ends of the interval; where it is open, the bound (0 or infinity for coefficients without one)."""
    closed: tuple[bool, bool]
    """Whether the rows end the interval below and above; if not, it runs to the bound."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        arrays = {name: getattr(self, name).tolist() for name in ("values", "objective", "deviance")}
        return {**vars(self), **arrays, "interval": list(self.interval), "closed": list(self.closed)}


def profile(fit: Fit, parameter: str, *, level: float = 0.9, points: int = 41) -> Profile:
    """Follow one parameter away from its fitted value, all others fitted again at every step, side by side.

    The interval is where the likelihood ratio test does not reject at this level. It may be lopsided or open, which
    says that the rows do not bound the parameter; a bootstrap cannot say so.

    Args:
        fit: a fit; its rows, weights, pins and priors stand.
        parameter: name of a fitted parameter.
        level: coverage of the interval.
        points: number of values, half of them on each side.

    Raises:
        InputError: if the parameter was not fitted, the level is not between 0 and 1, there are fewer than 5 points,
            or no more rows than parameters.
    """
    if parameter in fit.pinned or parameter not in fit.form.names:
        free = [name for name in fit.form.names if name not in fit.pinned]
        raise InputError(f"profile is of {parameter}, which was not fitted; fitted are {', '.join(free)}.")
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}; it must be between 0 and 1.")
    if points < 5:
        raise InputError(f"points is {points}; a profile needs at least 5.")
    spare = fit.n_rows - fit.n_free
    if spare < 1:
        raise InputError(
            f"the fit has {fit.n_rows} rows for {fit.n_free} free parameters, which leaves none to know the noise; "
            "add runs."
        )
    noise = max(spread(fit.weighted_residuals, fit.n_free, fit.huber_delta), _LEAST)
    from scipy.special import stdtrit  # scipy is slow to import, and most users of laws do without

    path = _Path(fit, parameter)
    per_nat = worth(noise, fit.huber_delta)
    threshold = float(stdtrit(spare, (1 + level) / 2) ** 2)
    enough = 0.5 * threshold * per_nat
    marched = path.marched(enough, noise)
    step = points // 2 + 1
    low, high = (np.linspace(path.centre, end, step) for end in (marched.places[0], marched.places[-1]))
    curve = path.at(np.concatenate([low[:0:-1], high]), near=marched)
    least = float(min(curve.objective.min(), marched.objective.min()))
    deviance = 2 * np.maximum(curve.objective - least, 0.0) / per_nat
    interval, closed = [], []
    for sign in (-1, 1):
        crossing = _crossing(curve.places - path.centre, deviance, threshold, sign)
        closed.append(crossing is not None)
        interval.append(path.bound(sign) if crossing is None else path.value(path.centre + crossing))
    return Profile(
        parameter=parameter,
        estimate=fit.parameters[parameter],
        values=np.array([path.value(place) for place in curve.places]),
        objective=curve.objective,
        deviance=deviance,
        threshold=threshold,
        level=level,
        interval=(interval[0], interval[1]),
        closed=(closed[0], closed[1]),
    )


@dataclass(frozen=True)
class _Curve:
    places: np.ndarray
    """[m] ascending."""
    coordinates: np.ndarray
    """[m, p]"""
    objective: np.ndarray
    """[m]"""


class _Path:
    """The line along which a parameter moves: its logarithm for a coefficient of a term, else its coordinate."""

    def __init__(self, fit: Fit, name: str) -> None:
        self.problem: Problem = problem_again(fit).holding(name)
        self.parameter: Parameter = next(p for p in fit.form.parameters if p.name == name)
        self.column = self.problem.names.index(name)
        given = {key: np.full((1, 1), value) for key, value in fit.parameters.items()}
        self.start = self.problem.coordinates(given)
        value = float(self.start[0, self.column])
        coefficient = name in {p.name for p in self.problem.coefficients}
        self.logarithmic = coefficient and name != fit.form.asymptote and value > 0 and self.parameter.lower >= 0
        self.exponential = self.logarithmic or (self.parameter.log and not coefficient)
        self.centre = float(np.log(value)) if self.logarithmic else value
        self.asymptote = fit.form.asymptote
        self.lowest_loss = float(np.exp(self.problem.log_loss.min()))

    def value(self, place: float) -> float:
        """The parameter in its own unit."""
        return float(np.exp(place)) if self.exponential else float(place)

    def bound(self, sign: int) -> float:
        """What the parameter may take at the most on a side."""
        return self.parameter.lower if sign < 0 else self.parameter.upper

    def reach(self, sign: int) -> float:
        """How far from the fitted value a side is followed: to the bound, or where no law can be."""
        bound = self.bound(sign)
        if self.exponential:
            bound = float(np.log(bound)) if bound > 0 else -np.inf
        elif self.parameter.name == self.asymptote and sign > 0:
            bound = min(bound, 1.2 * max(self.lowest_loss, self.centre))
        if np.isfinite(bound):
            return abs(bound - self.centre)
        return _LOG_REACH if self.exponential else 4 * max(1.0, abs(self.centre))

    def marched(self, enough: float, noise: float) -> _Curve:
        """Places ever farther out on both sides, until the objective is `enough` above the fit's or the end is near."""
        steps = [_Curve(np.array([self.centre]), self.start, minimise(self.problem, self.start).objective)]
        first = _FIRST * self.error(noise)
        for sign in (-1, 1):
            reach = self.reach(sign)
            last, away = steps[0], min(first, reach) if np.isfinite(first) and first > 0 else reach / 64
            while reach > 0:
                last = self._solved(np.array([self.centre + sign * away]), last.coordinates)
                steps.append(last)
                if last.objective[0] > steps[0].objective[0] + enough or away >= reach:
                    break
                away = min(2 * away, reach)
        order = np.argsort([step.places[0] for step in steps])
        return _Curve(*(np.concatenate([getattr(steps[i], name) for i in order]) for name in vars(steps[0])))

    def error(self, noise: float) -> float:
        """Standard error of the place by the curvature of least squares."""
        jacobian = self.problem.jacobian(self.problem.evaluate(self.start))[0]
        if self.logarithmic:
            jacobian[self.column] *= np.exp(self.centre)
        inverse = np.linalg.pinv(jacobian @ jacobian.T, rcond=1e-14, hermitian=True)
        return noise * float(np.sqrt(max(inverse[self.column, self.column], 0.0)))

    def at(self, places: np.ndarray, near: _Curve) -> _Curve:
        """Minimise at each place, from what a marched curve says; neighbours hand their minima on to each other."""
        between = [np.interp(places, near.places, column) for column in near.coordinates.T]
        curve = self._solved(places, np.stack(between, axis=1))
        z, objective = curve.coordinates, curve.objective
        for _ in range(_PASSES):
            before = objective.copy()
            for shift in (1, -1):
                start = np.roll(z, shift, axis=0)
                start[0 if shift == 1 else -1] = z[0 if shift == 1 else -1]
                other = self._solved(places, start)
                lower = other.objective < objective
                z[lower], objective[lower] = other.coordinates[lower], other.objective[lower]
            if np.all(objective >= before * (1 - 1e-6)):
                break
        return curve

    def _solved(self, places: np.ndarray, start: np.ndarray) -> _Curve:
        start = start.copy()
        start[:, self.column] = np.exp(places) if self.logarithmic else places
        found = minimise(self.problem, start)
        return _Curve(places, found.coordinates, found.objective)


def _crossing(away: np.ndarray, deviance: np.ndarray, threshold: float, sign: int) -> float | None:
    """Where the root of the deviance, nearly a line, first crosses that of the threshold on a side."""
    order = np.argsort(sign * away)
    order = order[sign * away[order] >= 0]
    root = np.sqrt(deviance[order])
    above = np.flatnonzero(root > np.sqrt(threshold))
    if not len(above) or above[0] == 0:
        return None
    i = above[0]
    share = (np.sqrt(threshold) - root[i - 1]) / (root[i] - root[i - 1])
    return float(away[order[i - 1]] + share * (away[order[i]] - away[order[i - 1]]))
