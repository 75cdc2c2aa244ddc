"""Laws fitted together that share their irreducible loss: dense and MoE runs on the same text have one entropy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._diagnosis import Status, diagnose
from isoflop.laws._resampling import Resampler, bootstrap_draws
from isoflop.laws._rows import CONVENTION, Runs, check_values, fit_rows
from isoflop.laws._screening import minimise_from
from isoflop.laws._solver import Problem
from isoflop.laws._starts import starts
from isoflop.laws.fitting import (
    check_asymptote,
    check_options,
    delta_named,
    hardly_any,
    mixed,
    noise_about,
    without_columns,
)
from isoflop.laws.forms import Columns, Form, Parameter, form_named
from isoflop.laws.held_out import Holdout, held_out_score, held_out_split
from isoflop.laws.priors import check_priors, penalty
from isoflop.laws.result import Fit
from isoflop.laws.table import RunTable

_ASYMPTOTES = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.85, 0.95)
_SHARED = "asymptote"


@dataclass(frozen=True, kw_only=True)
class SharedFit:
    """Fits by group with one irreducible loss; draw i of every fit comes from the same resample."""

    fits: dict[str, Fit]
    """The groups' fits; their objective and residuals are their own, their status is that of the whole."""
    status: Status
    message: str

    def __getitem__(self, group: str) -> Fit:
        return self.fits[group]

    @property
    def asymptote(self) -> float:
        """The shared irreducible loss, nats per token."""
        return next(iter(self.fits.values())).law.asymptote

    def holdout(self, by: str = "flops", largest: float = 0.2) -> dict[str, Holdout]:
        """Fit all groups again without the largest runs, and score each group's; groups without such runs are left out.

        Args:
            by: column that decides which runs are large.
            largest: share of all rows to hold out; rows that tie with the smallest of them are held out too.

        Raises:
            InputError: if the share is not between 0 and 1, or too few rows remain.
        """
        values = np.concatenate([fit.runs.numeric(by) for fit in self.fits.values()])
        threshold = held_out_split(values, largest)
        out = {name: fit.runs.numeric(by) >= threshold * (1 - 1e-9) for name, fit in self.fits.items()}
        first = next(iter(self.fits.values()))
        others = fit_shared(
            {name: (fit.runs.where(~out[name]), fit.form) for name, fit in self.fits.items()},
            huber_delta=first.huber_delta,
            weights=first.weights,
            pinned={name: fit.pinned for name, fit in self.fits.items()},
            priors={name: fit.priors for name, fit in self.fits.items()},
            seed=first.seed,
        )
        return {
            name: held_out_score(others[name], fit.runs.where(out[name]), by=by, threshold=threshold)
            for name, fit in self.fits.items()
            if out[name].any()
        }


def fit_shared(
    groups: Mapping[str, tuple[Runs, str | Form]],
    *,
    huber_delta: float | Literal["l1", "l2"] | None = 1e-3,
    weights: str | None = None,
    bootstrap: int = 0,
    pinned: Mapping[str, Mapping[str, float]] | None = None,
    priors: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    seed: int = 0,
) -> SharedFit:
    """Fit one law to each group of runs, with the same irreducible loss in all.

    Args:
        groups: name → (runs, law), such as {"dense": (dense, "chinchilla"), "moe": (moe, "fine-grained")}.
        huber_delta: as in `fit`.
        weights: column, in all groups, of how much each row counts, as in `fit`.
        bootstrap: number of resamples; rows are resampled within their group.
        pinned: group → parameters of its law that are given, not fitted. The irreducible loss of one is that of all.
        priors: group → what is known of its law's parameters, as in `fit`; of the irreducible loss, in one group.
        seed: of the resamples.

    Raises:
        InputError: as `fit`, or if fewer than two groups are given, or what is pinned or known names no group or speaks
            of the irreducible loss twice.
    """
    delta = delta_named(huber_delta)
    if len(groups) < 2:
        raise InputError(f"groups has {len(groups)} entry; a shared fit needs at least two, else use fit.")
    for option, given in (("pinned", pinned or {}), ("priors", priors or {})):
        unknown = [name for name in given if name not in groups]
        if unknown:
            raise InputError(f"{option} names group {unknown[0]}; the groups are {', '.join(groups)}.")
    forms, tables, left_out = {}, {}, {}
    fixed: dict[str, dict[str, float]] = {}
    known: dict[str, dict[str, tuple[float, float]]] = {}
    for name, (runs, law) in groups.items():
        forms[name] = form_named(law) if isinstance(law, str) else law
        if forms[name].asymptote is None:
            raise InputError(f"group {name} has law {law}, which has no irreducible loss to share; choose another law.")
        tables[name], left_out[name] = fit_rows(runs, forms[name])
        pins = without_columns(forms[name], tables[name]) | dict((pinned or {}).get(name, {}))
        fixed[name] = check_options(forms[name], huber_delta=delta, bootstrap=bootstrap, pinned=pins, restarts=2)
        known[name] = check_priors(forms[name], (priors or {}).get(name), fixed[name])
        free = len({*forms[name].names} - {*fixed[name], forms[name].asymptote})
        if len(tables[name]) < free:
            raise InputError(
                f"group {name} has {len(tables[name])} usable rows for {free} parameters of law {forms[name].name} "
                "beside the shared one; add runs, or pin parameters."
            )
    form = _Together(forms)
    together = form.pinned(fixed)
    columns = form.stack(tables)
    loss = np.concatenate([table.numeric("loss") for table in tables.values()])
    if _SHARED in together:
        for name, table in tables.items():
            check_asymptote(forms[name], table, together[_SHARED])
    each = _weights(tables, weights)
    problem = Problem(form, columns, loss, pinned=together, huber_delta=delta, weights=each)
    rng = np.random.default_rng(seed)
    begin = _starts(problem, form, tables, delta, rng)
    stacked, noise = form.priors(known, together), None
    if stacked:
        noise = noise_about(problem, begin)
        problem = problem.penalised(penalty(problem, stacked, noise))
    solution = minimise_from(problem, begin)
    best = solution.coordinates[[solution.best()]]
    diagnosis = diagnose(problem, solution)
    draws = np.zeros((0, problem.size))
    if bootstrap:
        draws = bootstrap_draws(problem, best, Resampler(len(loss), strata=form.group_of_row(tables)), bootstrap, rng)
    residuals = problem.evaluate(best).residuals[0]
    message = f"fitted together with one irreducible loss: {diagnosis.message}"
    conventions = {str(value) for table in tables.values() if CONVENTION in table for value in table[CONVENTION]}
    warnings = []
    if len(conventions) > 1:
        counted = " and ".join(sorted(conventions))
        warnings = [f"the groups count their flops by {counted}, so that budgets of one are not those of another."]
    fits = {}
    for index, (name, table) in enumerate(tables.items()):
        rows = form.group_of_row(tables) == index
        own = residuals[rows]
        huber = problem.huber(own) if each is None else problem.huber(own) * each[rows]
        fits[name] = Fit(
            form=forms[name],
            parameters={key: float(value[0]) for key, value in form.of_group(name, problem.parameters(best)).items()},
            status=diagnosis.status,
            message=message,
            objective=float(huber.sum()),
            condition=diagnosis.condition,
            n_left_out=left_out[name],
            huber_delta=delta,
            pinned=form.pinned_of(name, together),
            priors=known[name],
            prior_noise=noise,
            weights=weights,
            shared_with=tuple(other for other in tables if other != name),
            residuals=own,
            draws=form.of_group(name, problem.parameters(draws)) if bootstrap else {},
            runs=table,
            seed=seed,
            warnings=[*mixed(table, forms[name]), *warnings, *hardly_any(len(loss), problem.size)],
        )
    return SharedFit(fits=fits, status=diagnosis.status, message=diagnosis.message)


def _weights(tables: Mapping[str, RunTable], column: str | None) -> np.ndarray | None:
    """Weights of all rows, with the mean 1."""
    if column is None:
        return None
    for table in tables.values():
        check_values(table, column)
    each = np.concatenate([table.numeric(column) for table in tables.values()])
    return np.asarray(each / np.mean(each))


class _Together(Form):
    """Several forms side by side: every term is zero outside of its group, but for the shared constant."""

    def __init__(self, forms: Mapping[str, Form]) -> None:
        self.forms = dict(forms)
        self.name = " + ".join(form.name for form in forms.values())
        self.asymptote = _SHARED
        self.columns = tuple(f"{group}.{name}" for group, form in forms.items() for name in (*form.columns, "rows"))
        shared = Parameter(name=_SHARED, meaning="irreducible loss, nats per token")
        self.coefficients = (shared, *self._renamed("coefficients"))
        self.exponents = self._renamed("exponents")

    def _renamed(self, kind: str) -> tuple[Parameter, ...]:
        return tuple(
            Parameter(**{**vars(parameter), "name": f"{group}.{parameter.name}"})
            for group, form in self.forms.items()
            for parameter in getattr(form, kind)
            if parameter.name != form.asymptote
        )

    def pinned(self, by_group: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Parameters pinned in the groups, in the names of this law.

        Raises:
            InputError: if the groups give their one asymptote two values.
        """
        found: dict[str, float] = {}
        for group, pinned in by_group.items():
            for name, value in pinned.items():
                stacked = self._stacked(group, name)
                if found.setdefault(stacked, value) != value:
                    raise InputError(
                        f"pinned {name} of group {group} is {value:g} and {found[stacked]:g} of another; a shared fit "
                        "has one irreducible loss."
                    )
        return found

    def priors(
        self, by_group: Mapping[str, Mapping[str, tuple[float, float]]], pinned: Mapping[str, float]
    ) -> dict[str, tuple[float, float]]:
        """What is known in the groups, in the names of this law.

        Raises:
            InputError: if it speaks of the one asymptote twice, or of one that is pinned.
        """
        found: dict[str, tuple[float, float]] = {}
        for group, priors in by_group.items():
            for name, prior in priors.items():
                stacked = self._stacked(group, name)
                if stacked in found or stacked in pinned:
                    raise InputError(
                        f"prior {name} of group {group} is on the irreducible loss, which another group pins or has a "
                        "prior on; a shared fit has one irreducible loss."
                    )
                found[stacked] = prior
        return found

    def pinned_of(self, group: str, pinned: Mapping[str, float]) -> dict[str, float]:
        """The pinned parameters of one group, in its own law's names."""
        stacked = {name: self._stacked(group, name) for name in self.forms[group].names}
        return {name: pinned[each] for name, each in stacked.items() if each in pinned}

    def _stacked(self, group: str, name: str) -> str:
        return _SHARED if name == self.forms[group].asymptote else f"{group}.{name}"

    def stack(self, tables: Mapping[str, RunTable]) -> dict[str, np.ndarray]:
        """Columns [n] over all groups' rows; where a row is another group's, some value of the group's own."""
        group_of_row = self.group_of_row(tables)
        columns = {}
        for index, (group, form) in enumerate(self.forms.items()):
            own = group_of_row == index
            for name in form.columns:
                values = tables[group].numeric(name)
                column = np.full(len(own), values[0])
                column[own] = values
                columns[f"{group}.{name}"] = column
            columns[f"{group}.rows"] = own.astype(float)
        return columns

    def group_of_row(self, tables: Mapping[str, RunTable]) -> np.ndarray:
        """Index of the group that each of the stacked rows belongs to."""
        return np.repeat(np.arange(len(tables)), [len(table) for table in tables.values()])

    def of_group(self, group: str, parameters: Columns) -> dict[str, np.ndarray]:
        """One group's parameters [B] in its own law's names."""
        return {name: parameters[self._stacked(group, name)][:, 0] for name in self.forms[group].names}

    def features(self, columns: Columns) -> dict[str, np.ndarray]:
        """Each group's own features, and which rows are its own."""
        features: dict[str, np.ndarray] = {}
        for group, form in self.forms.items():
            own = form.features({name: columns[f"{group}.{name}"] for name in form.columns})
            features |= {f"{group}.{name}": value for name, value in own.items()}
            features[f"{group}.rows"] = columns[f"{group}.rows"]
        return features

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """The groups' terms, each on its own rows."""
        terms: dict[str, np.ndarray] = {_SHARED: np.ones(())}
        for group, form in self.forms.items():
            own = form.terms(_inner(group, x), _inner(group, theta))
            rows = x[f"{group}.rows"]
            terms |= {f"{group}.{name}": rows * term for name, term in own.items() if name != form.asymptote}
        return terms

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """The groups' derivatives, each on its own rows."""
        found: dict[tuple[str, str], np.ndarray] = {}
        for group, form in self.forms.items():
            inner, own = _inner(group, x), _inner(group, theta)
            rows = x[f"{group}.rows"]
            derivatives = form.derivatives(inner, own, form.terms(inner, own))
            found |= {
                (f"{group}.{a}", f"{group}.{b}"): rows * d for (a, b), d in derivatives.items() if b != form.asymptote
            }
        return found


def _inner(group: str, values: Columns) -> dict[str, np.ndarray]:
    prefix = f"{group}."
    return {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}


def _starts(
    problem: Problem,
    form: _Together,
    tables: Mapping[str, RunTable],
    huber_delta: float | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Each group fitted alone at several given asymptotes; together they are the starts [_, p].

    Where the asymptote is pinned, that is the one, and the starts differ in which of a group's minima they take.
    """
    lowest = min(float(table.numeric("loss").min()) for table in tables.values())
    rows = []
    for index, share in enumerate(_ASYMPTOTES):
        asymptote = problem.pinned.get(_SHARED, share * lowest)
        parameters = {_SHARED: np.full((1, 1), asymptote)}
        for group, own in form.forms.items():
            columns = {name: tables[group].numeric(name) for name in own.columns}
            loss = tables[group].numeric("loss")
            assert own.asymptote is not None
            pinned = form.pinned_of(group, problem.pinned) | {own.asymptote: asymptote}
            alone = Problem(own, columns, loss, pinned=pinned, huber_delta=huber_delta)
            z = np.zeros((1, 0))
            if alone.size:
                solution = minimise_from(alone, starts(alone, 4, rng))
                order = np.argsort(solution.objective, kind="stable")
                z = solution.coordinates[[order[index % len(order) if _SHARED in problem.pinned else 0]]]
            values = alone.parameters(z)
            parameters |= {f"{group}.{name}": value for name, value in values.items() if name != own.asymptote}
        rows.append(problem.coordinates(parameters))
    return np.concatenate(rows)
