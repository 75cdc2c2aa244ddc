"""Laws fitted together that share their irreducible loss: dense and MoE runs on the same text have one entropy."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._diagnosis import Status, diagnose
from isoflop.laws._rows import Runs, fit_rows
from isoflop.laws._solver import Problem, minimise
from isoflop.laws._starts import starts
from isoflop.laws.fitting import Resampler, bootstrap_draws, check_options, mixed
from isoflop.laws.forms import Columns, Form, Parameter, form_named
from isoflop.laws.result import Fit, Holdout, held_out_score, held_out_split
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
    huber_delta: float | None = 1e-3,
    bootstrap: int = 0,
    seed: int = 0,
) -> SharedFit:
    """Fit one law to each group of runs, with the same irreducible loss in all.

    Args:
        groups: name → (runs, law), such as {"dense": (dense, "chinchilla"), "moe": (moe, "fine-grained")}.
        huber_delta: as in `fit`.
        bootstrap: number of resamples; rows are resampled within their group.
        seed: of the resamples.

    Raises:
        InputError: as `fit`, or if fewer than two groups are given.
    """
    if len(groups) < 2:
        raise InputError(f"groups has {len(groups)} entry; a shared fit needs at least two, else use fit.")
    forms, tables, left_out = {}, {}, {}
    for name, (runs, law) in groups.items():
        forms[name] = form_named(law) if isinstance(law, str) else law
        if forms[name].asymptote is None:
            raise InputError(f"group {name} has law {law}, which has no irreducible loss to share; choose another law.")
        tables[name], left_out[name] = fit_rows(runs, forms[name])
        if len(tables[name]) < len(forms[name].names) - 1:
            raise InputError(
                f"group {name} has {len(tables[name])} usable rows for {len(forms[name].names) - 1} parameters of law "
                f"{forms[name].name} beside the shared one; add runs."
            )
    check_options(next(iter(forms.values())), huber_delta=huber_delta, bootstrap=bootstrap, pinned=None, restarts=2)
    form = _Together(forms)
    columns = form.stack(tables)
    loss = np.concatenate([table.numeric("loss") for table in tables.values()])
    problem = Problem(form, columns, loss, pinned={}, huber_delta=huber_delta)
    rng = np.random.default_rng(seed)
    solution = minimise(problem, _starts(problem, form, tables, huber_delta, rng))
    best = solution.coordinates[[solution.best()]]
    diagnosis = diagnose(problem, solution)
    draws = np.zeros((0, problem.size))
    if bootstrap:
        draws = bootstrap_draws(problem, best, Resampler(len(loss), strata=form.group_of_row(tables)), bootstrap, rng)
    residuals = problem.evaluate(best).residuals[0]
    together = f"fitted together with one irreducible loss: {diagnosis.message}"
    fits = {}
    for index, (name, table) in enumerate(tables.items()):
        own = residuals[form.group_of_row(tables) == index]
        fits[name] = Fit(
            form=forms[name],
            parameters={key: float(value[0]) for key, value in form.of_group(name, problem.parameters(best)).items()},
            status=diagnosis.status,
            message=together,
            objective=float(problem.huber(own).sum()),
            condition=diagnosis.condition,
            n_left_out=left_out[name],
            huber_delta=huber_delta,
            pinned={},
            residuals=own,
            draws=form.of_group(name, problem.parameters(draws)) if bootstrap else {},
            runs=table,
            seed=seed,
            warnings=mixed(table, forms[name]),
        )
    return SharedFit(fits=fits, status=diagnosis.status, message=diagnosis.message)


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

    def stack(self, tables: Mapping[str, RunTable]) -> dict[str, np.ndarray]:
        """Columns [n] over all groups' rows; where a row is another group's, the group's geometric mean."""
        group_of_row = self.group_of_row(tables)
        columns = {}
        for index, (group, form) in enumerate(self.forms.items()):
            own = group_of_row == index
            for name in form.columns:
                values = tables[group].numeric(name)
                column = np.full(len(own), np.exp(np.mean(np.log(values))))
                column[own] = values
                columns[f"{group}.{name}"] = column
            columns[f"{group}.rows"] = own.astype(float)
        return columns

    def group_of_row(self, tables: Mapping[str, RunTable]) -> np.ndarray:
        """Index of the group that each of the stacked rows belongs to."""
        return np.repeat(np.arange(len(tables)), [len(table) for table in tables.values()])

    def of_group(self, group: str, parameters: Columns) -> dict[str, np.ndarray]:
        """One group's parameters [B] in its own law's names."""
        form = self.forms[group]
        names = {name: _SHARED if name == form.asymptote else f"{group}.{name}" for name in form.names}
        return {name: parameters[stacked][:, 0] for name, stacked in names.items()}

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
        """The groups' derivatives; a term that is zero on other groups' rows has no derivative there."""
        found: dict[tuple[str, str], np.ndarray] = {}
        for group, form in self.forms.items():
            own = form.derivatives(_inner(group, x), _inner(group, theta), _inner(group, terms))
            found |= {(f"{group}.{a}", f"{group}.{b}"): value for (a, b), value in own.items()}
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
    """Each group fitted alone at several given asymptotes; together they are the starts [_, p]."""
    lowest = min(float(table.numeric("loss").min()) for table in tables.values())
    rows = []
    for share in _ASYMPTOTES:
        parameters = {_SHARED: np.full((1, 1), share * lowest)}
        for group, own in form.forms.items():
            columns = {name: tables[group].numeric(name) for name in own.columns}
            loss = tables[group].numeric("loss")
            assert own.asymptote is not None
            alone = Problem(own, columns, loss, pinned={own.asymptote: share * lowest}, huber_delta=huber_delta)
            solution = minimise(alone, starts(alone, 4, rng))
            values = alone.parameters(solution.coordinates[[solution.best()]])
            parameters |= {f"{group}.{name}": value for name, value in values.items() if name != own.asymptote}
        rows.append(problem.coordinates(parameters))
    return np.concatenate(rows)
