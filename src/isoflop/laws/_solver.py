"""Batched minimisation of Huber(ln L - ln L̂) over the parameters of a law: all restarts or resamples at once.

Shapes: B fits side by side, n rows, p free parameters. A fit moves in coordinates (s, θ): s_j is c_j times the root
mean square of φ_j over the rows, so that a coefficient is its term's size in nats and does not run along a banana with
its exponent: φ_j over its own size changes only at right angles to itself. The step is Newton's with the Gauss-Newton
Hessian of the Huber loss (only residuals inside δ curve it), damped by λ times the Hessian of iteratively reweighted
least squares, which bounds it from above: λ → 0 is Newton, λ large is IRLS, and no scale has to be chosen. Bounds are
kept by projection. The optimiser works on sums that are compared only with themselves, so the size of δ does not matter
to when it stops.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from isoflop.laws.forms import Columns, Form, Parameter

_CHUNK = 40_000  # fits × rows that are worked on together: arrays that stay in cache
_TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class Solution:
    """B minima."""

    coordinates: np.ndarray
    """[B, p] values of (s, θ)."""
    objective: np.ndarray
    """[B] sum over rows of weight · Huber."""
    decrement: np.ndarray
    """[B] what one more step promises to gain; 0 at a minimum."""

    def best(self) -> int:
        """Index of the lowest objective."""
        return int(np.nanargmin(self.objective))


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """A quadratic penalty ½ worth Σ_k ((z_k - mean_k) / sd_k)² on coordinates."""

    mean: np.ndarray
    """[p], or [B, p] for B fits side by side."""
    sd: np.ndarray
    """[p]; infinite where nothing is known beforehand."""
    noise: float
    """Standard deviation of ln L that `worth` comes from."""
    worth: float
    """The objective that stands for one nat of log likelihood."""

    @property
    def precision(self) -> np.ndarray:
        """Curvature [p]."""
        return np.asarray(self.worth / self.sd**2)

    def at(self, z: np.ndarray, fits: np.ndarray | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Its value [B] and gradient [B, p] at coordinates [B, p] of these fits."""
        away = z - (self.mean[fits] if self.mean.ndim == 2 else self.mean)
        return 0.5 * np.sum(self.precision * away**2, axis=1), self.precision * away

    def part(self, fits: slice) -> "Penalty":
        """That of some of the B fits."""
        return replace(self, mean=self.mean[fits]) if self.mean.ndim == 2 else self

    def drawn(self, count: int, rng: np.random.Generator) -> "Penalty":
        """With means [count, p] drawn from the priors, as resamples of what is known beforehand."""
        sd = np.where(np.isinf(self.sd), 0.0, self.sd)
        return replace(self, mean=self.mean + sd * rng.standard_normal((count, len(sd))))


class Problem:
    """One law, its rows, what is pinned and the objective."""

    def __init__(
        self,
        form: Form,
        columns: Columns,
        loss: np.ndarray,
        *,
        pinned: Mapping[str, float],
        huber_delta: float | None,
        weights: np.ndarray | None = None,
    ) -> None:
        self.form = form
        self.log_loss = np.log(loss)
        self.features = form.features(columns)
        self.pinned = dict(pinned)
        self.delta = np.inf if huber_delta is None else huber_delta
        self.coefficients = [parameter for parameter in form.coefficients if parameter.name not in pinned]
        self.exponents = [parameter for parameter in form.exponents if parameter.name not in pinned]
        self.names = [parameter.name for parameter in (*self.coefficients, *self.exponents)]
        self.weights = weights
        self.penalty: Penalty | None = None
        self.held: str | None = None

    def on_rows(self, rows: np.ndarray) -> "Problem":
        """The same problem on some of its rows; its coordinates are others (see `moved`)."""
        part = copy(self)
        part.log_loss = self.log_loss[rows]
        part.weights = None if self.weights is None else self.weights[rows]
        part.features = {
            name: value[rows] if len(value) == len(self.log_loss) else value for name, value in self.features.items()
        }
        return part

    def penalised(self, penalty: Penalty | None) -> "Problem":
        """The same problem with a penalty."""
        other = copy(self)
        other.penalty = penalty
        return other

    def holding(self, name: str) -> "Problem":
        """The same problem with one parameter held where a fit starts; its coordinate is its own value."""
        other = copy(self)
        other.held = name
        vars(other).pop("unscaled", None)  # another is held
        return other

    @property
    def size(self) -> int:
        """p, the number of free parameters."""
        return len(self.names)

    # coordinates and parameters

    def theta(self, z: np.ndarray) -> dict[str, np.ndarray]:
        """Exponents [B, 1] at coordinates [B, p]."""
        values = {name: np.full((1, 1), value) for name, value in self.pinned.items()}
        first = len(self.coefficients)
        moving = {parameter.name: z[:, first + k, None] for k, parameter in enumerate(self.exponents)}
        return values | {p.name: np.exp(moving[p.name]) if p.log else moving[p.name] for p in self.exponents}

    def parameters(self, z: np.ndarray) -> dict[str, np.ndarray]:
        """All parameters of the law in their own units, [B, 1] each."""
        theta = self.theta(z)
        values = {p.name: np.empty((len(z), 1)) for p in self.coefficients}
        chunk = max(1, _CHUNK // len(self.log_loss))
        for low in range(0, len(z) if values else 0, chunk):
            fits = slice(low, low + chunk)
            scales = self.scales(self.form.terms(self.features, self.theta(z[fits])))
            for j, p in enumerate(self.coefficients):
                values[p.name][fits] = z[fits, j, None] / scales[p.name]
        ones = np.ones((len(z), 1))
        return {name: (values | theta)[name] * ones for name in self.form.names}

    def scales(self, terms: Columns) -> dict[str, np.ndarray]:
        """What a coordinate s is per unit of its coefficient: the size of its term, or 1 (see `unscaled`)."""
        return {p.name: np.ones(1) if p.name in self.unscaled else _size(terms[p.name]) for p in self.coefficients}

    @cached_property
    def unscaled(self) -> set[str | None]:
        """Coefficients that are their own coordinate: one that is held, and those whose bounds would move with θ."""
        return {self.held} | {p.name for p in self.coefficients if {p.lower, p.upper} - {0.0, -np.inf, np.inf}}

    def coordinates(self, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        """Coordinates [B, p] of parameters [B, 1]."""
        scales = self.scales(self.form.terms(self.features, parameters)) if self.coefficients else {}
        scaled = [parameters[p.name] * scales[p.name] for p in self.coefficients]
        return np.concatenate([*scaled, *(_moving(p, parameters[p.name]) for p in self.exponents)], axis=1)

    def moved(self, z: np.ndarray, other: "Problem") -> np.ndarray:
        """Coordinates [B, p] of another problem of the same law and pins, whose rows are others."""
        return other.coordinates(self.parameters(z))

    def clip(self, z: np.ndarray) -> np.ndarray:
        """Coordinates [B, p] projected on the bounds."""
        return np.asarray(np.clip(z, *self.bounds))

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds [p] of the coordinates."""
        sides = [[getattr(p, side) for p in self.coefficients] for side in ("lower", "upper")]
        low, high = (np.concatenate(both) for both in zip(sides, self.exponent_bounds, strict=True))
        return low, high

    @cached_property
    def exponent_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds [exponents] of the coordinates θ."""
        low, high = (
            np.array([float(_moving(p, np.array(getattr(p, side)))) for p in self.exponents])
            for side in ("lower", "upper")
        )
        return low, high

    # objective and derivatives

    def evaluate(self, z: np.ndarray) -> "_Point":
        """Terms, coefficients and residuals at coordinates [B, p]."""
        theta = self.theta(z)
        terms = self.form.terms(self.features, theta)
        scales = self.scales(terms)
        coefficients = {name: theta.get(name, np.ones((1, 1))) for name in terms}
        coefficients |= {p.name: z[:, j, None] / scales[p.name] for j, p in enumerate(self.coefficients)}
        loss = sum(coefficients[name] * terms[name] for name in terms)
        loss = np.maximum(loss, _TINY)
        residuals = self.log_loss - np.log(loss)
        return _Point(theta, terms, scales, coefficients, loss, residuals)

    def huber(self, residuals: np.ndarray) -> np.ndarray:
        """Huber's loss of each residual; half the square where delta is None."""
        size: np.ndarray = np.abs(residuals)
        if np.isinf(self.delta):
            return np.asarray(0.5 * size * size)
        inside = np.minimum(size, self.delta)
        return np.asarray(inside * (size - 0.5 * inside))

    def jacobian(self, point: "_Point") -> np.ndarray:
        """∂ ln L̂ / ∂z, [B, p, n]."""
        derivatives = self.form.derivatives(self.features, point.theta, point.terms)
        inverse = 1.0 / point.loss
        columns = []
        for p in self.coefficients:
            columns.append((point.terms[p.name] / point.scales[p.name]) * inverse)
        for p in self.exponents:
            total = np.zeros(())
            for (exponent, name), derivative in derivatives.items():
                if exponent != p.name:
                    continue
                if name in point.scales and name not in self.unscaled:  # s_j is held, so that c_j moves with θ
                    along = _mean_product(point.terms[name], derivative) / point.scales[name] ** 2
                    derivative = derivative - along * point.terms[name]
                total = total + point.coefficients[name] * derivative
            columns.append((total * point.theta[p.name] if p.log else total) * inverse)
        return np.stack([np.broadcast_to(column, point.residuals.shape) for column in columns], axis=1)

    def normal_equations(
        self, point: "_Point", weights: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gradient [B, p], and the Hessians [B, p, p] of Newton (Gauss-Newton) and of reweighted least squares."""
        jacobian = self.jacobian(point)
        size = np.abs(point.residuals)
        inside = (size <= self.delta).astype(float)
        reweighted = np.ones_like(size) if np.isinf(self.delta) else self.delta / np.maximum(size, self.delta)
        if weights is not None:
            inside = inside * weights
            reweighted = reweighted * weights
        transposed = jacobian.swapaxes(1, 2)
        gradient = -np.matmul(jacobian, (reweighted * point.residuals)[..., None])[..., 0]
        outer = np.matmul(jacobian * reweighted[:, None, :], transposed)
        inner = outer if np.isinf(self.delta) else np.matmul(jacobian * inside[:, None, :], transposed)
        return gradient, inner, outer


def _moving(parameter: Parameter, value: np.ndarray) -> np.ndarray:
    """The coordinate of an exponent."""
    return np.asarray(np.log(value) if parameter.log else value)


def _size(term: np.ndarray) -> np.ndarray:
    """Root mean square of a term over the rows, [B, 1] or [1]; 1 where it is zero in all of them."""
    term = np.atleast_1d(term)
    size = np.abs(term) if term.shape[-1] == 1 else np.sqrt(_mean_product(term, term))
    return np.asarray(size if size.all() else np.where(size > 0, size, 1.0))


def _mean_product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean over the rows of two arrays that broadcast to [B, n], [B, 1] or [1]."""
    if np.shape(first) != np.shape(second):
        first, second = np.broadcast_arrays(*np.atleast_1d(first, second))
    return np.asarray(np.einsum("...n,...n->...", first, second)[..., None] / first.shape[-1])


@dataclass
class _Point:
    theta: dict[str, np.ndarray]
    terms: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    coefficients: dict[str, np.ndarray]
    loss: np.ndarray
    residuals: np.ndarray

    def take(self, rows: np.ndarray) -> "_Point":
        """Some of the B fits."""

        def pick(value: np.ndarray) -> np.ndarray:
            return value[rows] if value.ndim == 2 and len(value) == len(self.loss) else value

        def pick_all(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: pick(value) for name, value in values.items()}

        return _Point(
            pick_all(self.theta),
            pick_all(self.terms),
            pick_all(self.scales),
            pick_all(self.coefficients),
            self.loss[rows],
            self.residuals[rows],
        )


def minimise(
    problem: Problem, start: np.ndarray, weights: np.ndarray | None = None, *, max_iterations: int = 200
) -> Solution:
    """Minimise from every row of `start` [B, p], with row weights [B, n] beside the problem's own if given."""
    chunk = max(1, _CHUNK // len(problem.log_loss))
    parts = []
    for low in range(0, len(start), chunk):
        fits = slice(low, low + chunk)
        own = problem if problem.penalty is None else problem.penalised(problem.penalty.part(fits))
        parts.append(_minimise(own, start[fits], _weights(problem, weights, fits), max_iterations))
    return Solution(
        coordinates=np.concatenate([part.coordinates for part in parts]),
        objective=np.concatenate([part.objective for part in parts]),
        decrement=np.concatenate([part.decrement for part in parts]),
    )


def _weights(problem: Problem, resample: np.ndarray | None, fits: slice) -> np.ndarray | None:
    """Row weights [B, n] or [1, n] of some fits: the problem's times those of the resamples."""
    if resample is None:
        return None if problem.weights is None else problem.weights[None]
    return resample[fits] if problem.weights is None else resample[fits] * problem.weights


def _minimise(problem: Problem, start: np.ndarray, weights: np.ndarray | None, max_iterations: int) -> Solution:
    z = problem.clip(start)
    point = problem.evaluate(z)

    def of(fits: np.ndarray | slice) -> np.ndarray | None:
        return weights if weights is None or len(weights) == 1 else weights[fits]

    def total(point: _Point, z: np.ndarray, fits: np.ndarray | slice = slice(None)) -> np.ndarray:
        each, own = problem.huber(point.residuals), of(fits)
        value = np.asarray(np.sum(each if own is None else each * own, axis=1))
        return value if problem.penalty is None else value + problem.penalty.at(z, fits)[0]

    def slopes(point: _Point, z: np.ndarray, fits: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        gradient, inner, outer = problem.normal_equations(point, of(fits))
        if problem.penalty is None:
            return gradient, inner, outer
        curvature = np.diag(problem.penalty.precision)
        return gradient + problem.penalty.at(z, fits)[1], inner + curvature, outer + curvature

    objective = total(point, z)
    gradient, inner, outer = slopes(point, z, slice(None))
    held = np.array([name == problem.held for name in problem.names])
    damping = np.ones(len(z))
    decrement = np.full(len(z), np.inf)
    floor = 1e-27 * len(problem.log_loss)  # residuals that are rounding
    active = np.arange(len(z))
    for _ in range(max_iterations):
        step, decrement[active] = _step(
            z[active],
            gradient[active],
            inner[active],
            outer[active],
            damping[active],
            problem.bounds,
            held,
        )
        settled = decrement[active] <= 1e-11 * objective[active] + floor
        if settled.any():
            active, step = active[~settled], step[~settled]
            if not len(active):
                break
        trial = problem.clip(z[active] + step)
        point = problem.evaluate(trial)
        value = total(point, trial, active)
        better = value < objective[active]
        damping[active] = np.where(better, damping[active] * 0.2, damping[active] * 6)
        stuck = ~better & (damping[active] > 1e8)
        if better.any():
            moved = active[better]
            z[moved], objective[moved] = trial[better], value[better]
            gradient[moved], inner[moved], outer[moved] = slopes(point.take(better), z[moved], moved)
        active = active[~stuck]
        if not len(active):
            break
    return Solution(coordinates=z, objective=objective, decrement=decrement)


def _step(
    z: np.ndarray,
    gradient: np.ndarray,
    inner: np.ndarray,
    outer: np.ndarray,
    damping: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    fixed: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Damped step [B, p], and the gain that reweighted least squares promises [B].

    Parameters at a bound stay there, and so does the fixed one [p].
    """
    lower, upper = bounds
    held = fixed | ((z <= lower) & (gradient > 0)) | ((z >= upper) & (gradient < 0))
    curvature = np.einsum("bii->bi", outer)
    held |= curvature <= 1e-24 * np.max(curvature, axis=1, keepdims=True)  # the rows say nothing about this one
    slope = np.where(held, 0.0, gradient)
    scale = np.where(held, 0.0, 1.0 / np.sqrt(np.maximum(curvature, _TINY)))
    both = scale[:, :, None] * scale[:, None, :]
    eye = np.eye(z.shape[1])
    ridge = eye * (held + 1e-13)[:, :, None]
    upper_bound = outer * both + ridge
    damped = inner * both + damping[:, None, None] * upper_bound + ridge
    scaled_slope = (slope * scale)[..., None]
    step = -np.linalg.solve(damped, scaled_slope)[..., 0] * scale
    promise = 0.5 * np.sum(scaled_slope * np.linalg.solve(upper_bound, scaled_slope), axis=(1, 2))
    return step, promise
