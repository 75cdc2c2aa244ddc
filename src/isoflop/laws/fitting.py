"""Fit a law to runs: global, robust, with bootstrap draws."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._diagnosis import diagnose
from isoflop.laws._experts import idle_experts
from isoflop.laws._noise import spread
from isoflop.laws._resampling import GROUPS, bootstrap_draws, resampler
from isoflop.laws._rows import CONVENTION, Runs, as_table, check_values, fit_rows
from isoflop.laws._screening import minimise_from
from isoflop.laws._solver import Problem
from isoflop.laws._starts import starts
from isoflop.laws.forms import Form, form_named
from isoflop.laws.loading import load_form
from isoflop.laws.priors import check_priors, penalty
from isoflop.laws.published import PUBLISHED, published
from isoflop.laws.result import Fit
from isoflop.laws.table import RunTable

L1_DELTA: Final = 1e-7
"""Delta that stands for absolute errors: far below any noise of ln L."""

_HARDLY_ANY = 2  # rows to spare, with which noise and intervals are hardly known
_EXPERTS = {"expansion_rate", "granularity", "sparsity", "n_experts", "top_k"}
_TUNED = ("learning_rate", "lr", "batch_tokens", "batch_size", "bs", "weight_decay", "warmup")
_RESTARTS = 16  # the default, which says nothing of what is wanted
_SHOWN = 8  # values of a column that a warning lists


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
        groups: column whose values are resampled, and held out, as wholes (a run's several rows, a family); default:
            rows.

    Raises:
        InputError: if rows are unusable (naming row, column and remedy) or too few, an argument is out of range, or the
            irreducible loss is pinned above a measured one.
    """
    form = resolve_form(law) if isinstance(law, str) else law
    delta = delta_named(huber_delta)
    weighted, column = with_weights(as_table(runs), weights)
    table, left_out = fit_rows(weighted, form, several_of=groups)
    pinned = without_columns(form, table) | dict(pinned or {})
    fixed = check_options(form, huber_delta=delta, bootstrap=bootstrap, pinned=pinned, restarts=restarts)
    check_seed(seed)
    if form.asymptote in fixed:
        check_asymptote(form, table, fixed[form.asymptote])
    return _fitted(
        table,
        form,
        delta=delta,
        weights=column,
        bootstrap=bootstrap,
        pinned=fixed,
        priors=check_priors(form, priors, fixed),
        seed=seed,
        restarts=restarts,
        groups=groups,
        n_left_out=left_out,
    )


def _fitted(
    table: RunTable,
    form: Form,
    *,
    delta: float | None,
    weights: str | None,
    pinned: dict[str, float],
    priors: dict[str, tuple[float, float]],
    seed: int,
    restarts: int,
    groups: str | None,
    bootstrap: int = 0,
    n_left_out: int = 0,
) -> Fit:
    """Fit rows and options that were checked."""
    free = len(form.names) - len(pinned)
    if len(table) + len(priors) < free:
        raise InputError(
            f"law {form.name} has {free} free parameters and {table.source} only {len(table)} usable rows; add runs, "
            "or pin parameters."
        )
    units = resampler(table, groups)
    rng = np.random.default_rng(seed)
    problem = problem_of(form, table, pinned=pinned, delta=delta, weights=weights)
    noise = None
    if priors:
        noise = _noise_without(priors, form, table, pinned, delta, weights, restarts)
        problem = problem.penalised(penalty(problem, priors, noise))
    begin = starts(problem, restarts, rng)
    solution = minimise_from(problem, begin)
    best = solution.coordinates[[solution.best()]]
    diagnosis = diagnose(problem, solution)
    draws = {}
    if bootstrap:
        coordinates = bootstrap_draws(problem, best, units, bootstrap, rng)
        draws = {name: values[:, 0] for name, values in problem.parameters(coordinates).items()}
    return Fit(
        form=form,
        parameters={name: float(values[0, 0]) for name, values in problem.parameters(best).items()},
        status=diagnosis.status,
        message=diagnosis.message,
        objective=float(solution.objective[solution.best()]),
        condition=diagnosis.condition,
        n_left_out=n_left_out,
        huber_delta=delta,
        pinned=pinned,
        priors=priors,
        prior_noise=noise,
        weights=weights,
        groups=groups,
        residuals=problem.evaluate(best).residuals[0],
        draws=draws,
        runs=table,
        seed=seed,
        restarts=restarts,
        warnings=[
            *mixed(table, form),
            *swept(table, form),
            *hardly_any(len(table), free),
            *_fewer(restarts, len(begin)),
        ],
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
        raise InputError(f"huber_delta is {value:g}; it must be positive, 'l1', or 'l2' for least squares.")
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
    """The problem that a fit solved.

    Raises:
        InputError: if it solved it together with those of other groups.
    """
    _check_alone(fit)
    problem = problem_of(fit.form, fit.runs, pinned=fit.pinned, delta=fit.huber_delta, weights=fit.weights)
    return problem.penalised(penalty(problem, fit.priors, fit.prior_noise or 0.0))


def refit(fit_before: Fit, runs: RunTable) -> Fit:
    """The same fit, without a bootstrap, to some of its rows.

    Raises:
        InputError: if they are too few, or it was fitted together with other groups.
    """
    _check_alone(fit_before)
    form, groups = fit_before.form, fit_before.groups
    if groups is not None and len({*runs[groups].tolist()}) < GROUPS:
        groups = None  # nothing is resampled
    return _fitted(
        runs,
        form,
        delta=fit_before.huber_delta,
        weights=fit_before.weights,
        pinned=without_columns(form, runs) | fit_before.pinned,
        priors=fit_before.priors,
        seed=fit_before.seed,
        restarts=fit_before.restarts,
        groups=groups,
    )


def _check_alone(fit: Fit) -> None:
    """Raise InputError if a fit's irreducible loss is that of other groups, too."""
    if fit.shared_with:
        asymptote = fit.form.asymptote or ""
        raise InputError(
            f"the fit shares its irreducible loss with {', '.join(fit.shared_with)}, and fitted again alone it would "
            "be another; hold out runs of all groups with SharedFit.holdout, or fit the group by itself with "
            f"{asymptote} pinned at {fit.parameters[asymptote]:.5g}."
        )


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
    return noise_about(problem, starts(problem, restarts, np.random.default_rng(0)))


def noise_about(problem: Problem, begin: np.ndarray) -> float:
    """Noise of ln L about the best fit from starts [B, p].

    Raises:
        InputError: if there is no row to spare.
    """
    n_rows = len(problem.log_loss)
    if n_rows <= problem.size:
        raise InputError(
            f"priors are weighed against the noise of the runs, and {n_rows} rows for {problem.size} parameters "
            "beside them leave none to know it; add runs, or pin parameters."
        )
    solution = minimise_from(problem, begin)
    residuals = problem.evaluate(solution.coordinates[[solution.best()]]).residuals[0]
    if problem.weights is not None:
        residuals = residuals * np.sqrt(problem.weights)
    return spread(residuals, problem.size, None if np.isinf(problem.delta) else problem.delta)


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


def check_seed(seed: int) -> None:
    """Raise InputError at a seed that no generator takes."""
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be a whole number of at least 0.")


def check_asymptote(form: Form, table: RunTable, pinned: float) -> None:
    """Raise InputError if a law whose other terms are positive cannot come down to a measured loss."""
    losses = table.numeric(form.target)
    below = losses <= pinned
    if below.any() and all(parameter.lower >= 0 for parameter in form.coefficients):
        row = int(np.argmin(losses))
        raise InputError(
            f"pinned {form.asymptote} is {pinned:g}, and {table.source} {table.labels[row]} has {form.target} "
            f"{losses[row]:g} ({int(below.sum())} of {len(table)} rows are not above it), which law {form.name} then "
            "cannot reach; pin a lower value, or correct the rows."
        )


def mixed(table: RunTable, form: Form) -> list[str]:
    """What the rows mix although the law does not tell it apart."""
    sentences = []
    for column in ("expansion_rate", "granularity", "router", CONVENTION):
        if column in form.columns or column not in table:
            continue
        values = dict.fromkeys(table[column].tolist())
        if len(values) > 1:
            shown = list(values)[:_SHOWN]
            listed = ", ".join(f"{value:g}" if isinstance(value, float) else str(value or "none") for value in shown)
            if len(values) > len(shown):
                listed += f" and {len(values) - len(shown)} more"
            why = f"which law {form.name} does not tell apart"
            if column == CONVENTION:
                why = "so that their flops are not one quantity; count all of them one way"
            sentences.append(f"the rows mix {column} {listed}, {why}.")
    if not sentences and not _EXPERTS & {*form.columns} and "expansion_rate" not in table:
        count = int(idle_experts(table).sum())
        if count:
            sentences.append(
                f"law {form.name} reads no column of experts, and {count} of {len(table)} rows have experts that a "
                "token does not use: its predictions hold for models like these, not for dense ones."
            )
    return sentences


def swept(table: RunTable, form: Form) -> list[str]:
    """Whether most rows share what the law reads with others and differ in how they were trained."""
    tuned = [name for name in _TUNED if name in table and name not in form.columns]
    if not tuned:
        return []
    cells = [name for name in form.columns if name not in table.derived and name not in form.optional]
    cells += [name for name in form.optional if name in table and len(set(table[name].tolist())) > 1]
    cells = list(dict.fromkeys(cells))
    places = list(zip(*(table[name].tolist() for name in cells), strict=True))
    settings: dict[tuple[object, ...], set[tuple[object, ...]]] = {}
    for place, setting in zip(places, zip(*(table[name].tolist() for name in tuned), strict=True), strict=True):
        settings.setdefault(place, set()).add(setting)
    count = sum(len(settings[place]) > 1 for place in places)
    if 2 * count <= len(table):
        return []
    tuned = [name for name in tuned if len(set(table[name].tolist())) > 1]
    listed = ",".join(cells)
    return [
        f"{count} of {len(table)} rows share {', '.join(cells)} with others and differ in {', '.join(tuned)}, which "
        f"the law takes for noise; keep the lowest loss of each with --best-of {listed}."
    ]


def _fewer(restarts: int, made: int) -> list[str]:
    """What to know of more restarts than a law has starting points."""
    if restarts <= max(made, _RESTARTS):
        return []
    return [f"restarts is {restarts}, and with these parameters there are only {made} starting points that differ."]


def hardly_any(n_rows: int, n_free: int) -> list[str]:
    """What to know of a fit with one or two rows to spare."""
    spare = n_rows - n_free
    if not 0 < spare <= _HARDLY_ANY:
        return []
    return [
        f"{n_rows} rows for {n_free} free parameters: status, noise and prediction intervals know the noise of ln loss "
        f"from {spare} to spare and are very wide; add runs, or pin parameters."
    ]
