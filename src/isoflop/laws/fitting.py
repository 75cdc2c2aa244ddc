"""Fit a law to runs: global, robust, with bootstrap draws."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._diagnosis import diagnose
from isoflop.laws._noise import spread
from isoflop.laws._rows import Runs, as_table, check_values, fit_rows
from isoflop.laws._screening import minimise_from
from isoflop.laws._solver import Problem, minimise
from isoflop.laws._starts import starts
from isoflop.laws.forms import Form, form_named
from isoflop.laws.loading import load_form
from isoflop.laws.priors import check_priors, penalty
from isoflop.laws.published import PUBLISHED, published
from isoflop.laws.result import Fit
from isoflop.laws.table import RunTable

L1_DELTA: Final = 1e-7
"""Delta that stands for absolute errors: far below any noise of ln L."""

_SHOWN = 8  # values of a column that a warning lists
_TOGETHER = 2_000_000  # resamples × rows whose weights are held in memory at once


def fit(
    runs: Runs,
    law: str | Form = "chinchilla",
    *,
    huber_delta: float | Literal["l1", "l2"] | None = 1e-3,
    weights: str | Sequence[float] | np.ndarray | None = None,
    bootstrap: int = 0,
    pinned: Mapping[str, float] | None = None,
    priors: Mapping[str, tuple[float, float]] | None = None,
    seed: int = 0,
    restarts: int = 16,
    groups: str | None = None,
) -> Fit:
    """Minimise the sum over rows of Huber(ln L - ln L̂) over a law's parameters.

    Starts come from a grid over the exponents with the best coefficients at each point; all of them, and all
    bootstrap resamples, are polished side by side (see isoflop.laws._solver).

    Args:
        runs: finished runs; rows whose status is not `done` are counted and left out.
        law: name of a law form, `file.py:Class` of a user's own, or a Form.
        huber_delta: residual of ln L beyond which the loss is linear; None or "l2": least squares; "l1": absolute
            errors, as the limit of a small delta (1e-7).
        weights: how much each row counts, inversely as the variance of its ln L: one positive number for each row, or
            the name of a column. Only their ratios matter.
        bootstrap: number of resamples of the rows, drawn with replacement; 0: no intervals.
        pinned: parameters that are given, not fitted.
        priors: exponent, or the irreducible loss, → (mean, standard deviation) known before the runs; of a parameter
            that a fit moves in its logarithm, the median and the standard deviation of the logarithm. They enter as
            ½ ((θ - mean) / sd)² nats of log likelihood, by the noise that a fit without them leaves. Every bootstrap
            draw draws their means anew.
        seed: of restarts and resamples.
        restarts: starting points that are polished; the status is judged by their agreement.
        groups: column whose values are resampled as wholes (a run's several rows, a family); default: rows.

    Raises:
        InputError: if rows are unusable (naming row, column and remedy) or too few, or an argument is out of range.
    """
    form = resolve_form(law) if isinstance(law, str) else law
    delta = delta_named(huber_delta)
    weighted, column = with_weights(as_table(runs), weights)
    table, left_out = fit_rows(weighted, form)
    pinned = without_columns(form, table) | dict(pinned or {})
    fixed = check_options(form, huber_delta=delta, bootstrap=bootstrap, pinned=pinned, restarts=restarts)
    known = check_priors(form, priors, fixed)
    free = len(form.names) - len(fixed)
    if len(table) + len(known) < free:
        raise InputError(
            f"law {form.name} has {free} free parameters and {table.source} only {len(table)} usable rows; add runs, "
            "or pin parameters."
        )
    rng = np.random.default_rng(seed)
    problem = problem_of(form, table, pinned=fixed, delta=delta, weights=column)
    noise = None
    if known:
        noise = _noise_without(known, form, table, fixed, delta, column, restarts)
        problem = problem.penalised(penalty(problem, known, noise))
    solution = minimise_from(problem, starts(problem, restarts, rng))
    best = solution.coordinates[[solution.best()]]
    diagnosis = diagnose(problem, solution)
    draws = {}
    if bootstrap:
        coordinates = bootstrap_draws(problem, best, resampler(table, groups), bootstrap, rng)
        draws = {name: values[:, 0] for name, values in problem.parameters(coordinates).items()}
    return Fit(
        form=form,
        parameters={name: float(values[0, 0]) for name, values in problem.parameters(best).items()},
        status=diagnosis.status,
        message=diagnosis.message,
        objective=float(solution.objective[solution.best()]),
        condition=diagnosis.condition,
        n_left_out=left_out,
        huber_delta=delta,
        pinned=fixed,
        priors=known,
        prior_noise=noise,
        weights=column,
        residuals=problem.evaluate(best).residuals[0],
        draws=draws,
        runs=table,
        seed=seed,
        restarts=restarts,
        warnings=mixed(table, form),
    )


def resolve_form(name: str) -> Form:
    """The law form of this name, or that of a user's own file, given as `file.py:Class`.

    Raises:
        InputError: if there is none, or it is the name of published constants.
    """
    if ":" in name or name.endswith(".py"):
        return load_form(name)
    if name in PUBLISHED:
        form = published(name).form.name
        raise InputError(
            f"law is {name!r}, which has its constants already; fit its form, {form!r}, or predict with the constants "
            "(`isoflop plan --law`, or laws.published)."
        )
    return form_named(name)


def delta_named(value: float | str | None) -> float | None:
    """Delta by its number, or by "l1" and "l2", its limits; None: least squares.

    Raises:
        InputError: if it is neither positive nor one of these words.
    """
    if isinstance(value, str):
        if value not in ("l1", "l2"):
            raise InputError(f"huber_delta is {value!r}; it must be a positive number, 'l1' or 'l2'.")
        return L1_DELTA if value == "l1" else None
    if value is not None and not 0 < value < np.inf:
        raise InputError(f"huber_delta is {value:g}; it must be positive, or None for least squares.")
    return value


def with_weights(table: RunTable, weights: str | Sequence[float] | np.ndarray | None) -> tuple[RunTable, str | None]:
    """The table with a column of weights, and that column's name; None where all rows count alike.

    Raises:
        InputError: if there is not one number for each row, or the column is absent.
    """
    if weights is None or isinstance(weights, str):
        if weights is not None:
            table[weights]  # says which columns there are
        return table, weights
    values = np.asarray(weights, dtype=float)
    if values.shape != (len(table),):
        raise InputError(f"weights has shape {values.shape}; it must have one number for each of {len(table)} rows.")
    return table.with_columns({"weight": values}), "weight"


def problem_of(
    form: Form, table: RunTable, *, pinned: Mapping[str, float], delta: float | None, weights: str | None
) -> Problem:
    """The problem that a table's rows pose; weights have the mean 1, so that the objective stays a sum over rows."""
    columns = {name: table.numeric(name) for name in form.columns}
    each = None
    if weights is not None:
        check_values(table, weights)
        each = table.numeric(weights) / np.mean(table.numeric(weights))
    return Problem(form, columns, table.numeric(form.target), pinned=pinned, huber_delta=delta, weights=each)


def problem_again(fit: Fit) -> Problem:
    """The problem that a fit solved."""
    problem = problem_of(fit.form, fit.runs, pinned=fit.pinned, delta=fit.huber_delta, weights=fit.weights)
    return problem.penalised(penalty(problem, fit.priors, fit.prior_noise or 0.0))


def refit(fit_before: Fit, runs: RunTable, **changes: Any) -> Fit:
    """The same fit to other rows."""
    options: dict[str, Any] = {
        "huber_delta": fit_before.huber_delta,
        "weights": fit_before.weights,
        "pinned": fit_before.pinned,
        "priors": fit_before.priors,
        "seed": fit_before.seed,
        "restarts": fit_before.restarts,
    }
    return fit(runs, fit_before.form, **(options | changes))


def _noise_without(
    priors: Mapping[str, tuple[float, float]],
    form: Form,
    table: RunTable,
    pinned: Mapping[str, float],
    delta: float | None,
    weights: str | None,
    restarts: int,
) -> float:
    """Noise about a fit without the priors; with too few rows for that, about one with their means pinned.

    Raises:
        InputError: if even that leaves no row to spare.
    """
    if len(table) <= len(form.names) - len(pinned):
        pinned = {**pinned, **{name: mean for name, (mean, _) in priors.items()}}
    problem = problem_of(form, table, pinned=pinned, delta=delta, weights=weights)
    if len(table) <= problem.size:
        raise InputError(
            f"priors are weighed against the noise of the runs, and {len(table)} rows for {problem.size} parameters "
            "beside them leave none to know it; add runs, or pin parameters."
        )
    solution = minimise_from(problem, starts(problem, restarts, np.random.default_rng(0)))
    point = problem.evaluate(solution.coordinates[[solution.best()]])
    residuals = point.residuals[0] if problem.weights is None else point.residuals[0] * np.sqrt(problem.weights)
    return spread(residuals, problem.size, delta)


def without_columns(form: Form, table: RunTable) -> dict[str, float]:
    """What is pinned because an optional column of the law is absent, or has its neutral value in every row."""
    pinned: dict[str, float] = {}
    for name, neutral in form.optional.items():
        if np.all(table.numeric(name) == neutral.value):
            pinned |= neutral.pinned
    return pinned


def check_options(
    form: Form, *, huber_delta: float | None, bootstrap: int, pinned: Mapping[str, float] | None, restarts: int
) -> dict[str, float]:
    """The pinned parameters as floats, after all checks of a fit's arguments."""
    delta_named(huber_delta)
    if bootstrap < 0 or 0 < bootstrap < 20:
        raise InputError(f"bootstrap is {bootstrap}; it must be 0 or at least 20 resamples.")
    if restarts < 2:
        raise InputError(f"restarts is {restarts}; it must be at least 2, since their agreement is the check.")
    fixed = {name: float(value) for name, value in (pinned or {}).items()}
    known = {parameter.name: parameter for parameter in form.parameters}
    for name, value in fixed.items():
        if name not in known:
            raise InputError(f"pinned parameter {name} is not in law {form.name}; it has {', '.join(known)}.")
        if not (np.isfinite(value) and known[name].lower <= value <= known[name].upper):
            raise InputError(
                f"pinned {name} is {value:g}; it must be between {known[name].lower:g} and {known[name].upper:g}."
            )
    if len(fixed) == len(known):
        raise InputError(f"all parameters of law {form.name} are pinned; leave at least one to fit.")
    return fixed


class Resampler:
    """Draws how often each of n rows stands in a resample."""

    def __init__(self, n_rows: int, *, units: np.ndarray | None = None, strata: np.ndarray | None = None) -> None:
        """Say what is drawn.

        Args:
            n_rows: n.
            units: index [n] of the unit that a row belongs to, from 0; units are drawn as wholes. Default: rows.
            strata: index [units], in ascending order; a unit is replaced by one of its own stratum. Default: any.
        """
        self.unit_of_row = np.arange(n_rows) if units is None else units
        self.n_units = int(self.unit_of_row.max()) + 1
        strata = np.zeros(self.n_units, dtype=int) if strata is None else strata
        sizes = np.bincount(strata)
        self.size = sizes[strata]
        self.start = (np.cumsum(sizes) - sizes)[strata]

    def weights(self, count: int, distinct: int, rng: np.random.Generator) -> np.ndarray:
        """Counts [count, n]; a resample with fewer than `distinct` different rows is drawn again.

        Raises:
            InputError: if hardly any resample has that many.
        """
        weights = np.empty((count, len(self.unit_of_row)))
        todo = np.arange(count)
        for _ in range(100):
            picked = self.start + (rng.random((len(todo), self.n_units)) * self.size).astype(int)
            offset = np.arange(len(todo))[:, None] * self.n_units
            counts = np.bincount((picked + offset).ravel(), minlength=len(todo) * self.n_units)
            weights[todo] = counts.reshape(len(todo), self.n_units)[:, self.unit_of_row]
            todo = todo[np.count_nonzero(weights[todo], axis=1) < distinct]
            if not len(todo):
                return weights
        raise InputError(
            f"bootstrap needs resamples with {distinct} different rows, which {self.n_units} units with "
            f"{len(self.unit_of_row)} rows almost never give; add runs, use smaller groups, or fit without it."
        )


def resampler(table: RunTable, groups: str | None) -> Resampler:
    """Resample rows, or the values of one column as wholes."""
    if groups is None:
        return Resampler(len(table))
    labels = {value: index for index, value in enumerate(dict.fromkeys(table[groups].tolist()))}
    if len(labels) < 2:
        raise InputError(f"groups is {groups}, which has one value; a bootstrap needs at least two groups.")
    return Resampler(len(table), units=np.array([labels[value] for value in table[groups].tolist()]))


def bootstrap_draws(
    problem: Problem, best: np.ndarray, resample: Resampler, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Coordinates [count, p] of fits to resamples, each started at the fit to all rows [1, p]."""
    size = max(1, _TOGETHER // len(resample.unit_of_row))
    parts = []
    distinct = problem.size
    if problem.penalty is not None:
        distinct -= int(np.isfinite(problem.penalty.sd).sum())
    for low in range(0, count, size):
        weights = resample.weights(min(size, count - low), distinct, rng)
        drawn = problem
        if problem.penalty is not None:
            drawn = problem.penalised(problem.penalty.drawn(len(weights), rng))
        parts.append(minimise(drawn, np.repeat(best, len(weights), axis=0), weights).coordinates)
    return np.concatenate(parts)


def mixed(table: RunTable, form: Form) -> list[str]:
    """What the rows mix although the law does not tell it apart."""
    sentences = []
    for column in ("expansion_rate", "granularity", "router"):
        if column in form.columns or column not in table:
            continue
        values = dict.fromkeys(table[column].tolist())
        if len(values) > 1:
            shown = list(values)[:_SHOWN]
            listed = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in shown)
            if len(values) > len(shown):
                listed += f" and {len(values) - len(shown)} more"
            sentences.append(f"the rows mix {column} {listed}, which law {form.name} does not tell apart.")
    return sentences
