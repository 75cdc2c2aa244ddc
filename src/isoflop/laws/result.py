"""What a fit gives back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._diagnosis import Status, noise_scale
from isoflop.laws.forms import Form, form_named
from isoflop.laws.held_out import Holdout, without_each, without_largest
from isoflop.laws.law import Law
from isoflop.laws.table import RunTable

_FAR = 10.0  # budgets beyond this multiple of the fit's largest are an extrapolation
_FEW = 30  # fewer residuals than this above the parameters are not resampled
_SAMPLES = 4000
_LARGEST_LOG = 700.0  # ln of what a float can hold


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law fitted to runs, and how far to trust it."""

    form: Form
    parameters: dict[str, float]
    """Fitted and pinned constants by name."""
    status: Status
    """converged, bound_hit, not_identified or failed: judged by restarts, gradient and Hessian."""
    message: str
    """Why that status."""
    objective: float
    """Sum over rows of weight · Huber(ln L - ln L̂), half the squares for huber_delta None; plus the priors' penalty."""
    condition: float
    """Condition number of the scaled Jacobian at the optimum."""
    n_left_out: int
    """Rows whose status was not done."""
    huber_delta: float | None
    pinned: dict[str, float]
    residuals: np.ndarray
    """ln(measured / predicted) of each row."""
    draws: dict[str, np.ndarray]
    """Bootstrap draws of every parameter [B]; empty without a bootstrap."""
    runs: RunTable = field(repr=False)
    """The rows that were fitted."""
    seed: int = 0
    restarts: int = 16
    priors: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Mean and standard deviation known before the runs, by parameter."""
    prior_noise: float | None = None
    """Noise of ln L that the priors were weighed with."""
    weights: str | None = None
    """Column of the rows' weights; None: all rows count alike."""
    groups: str | None = None
    """Column whose values are resampled and held out as wholes; None: rows are."""
    shared_with: tuple[str, ...] = ()
    """The groups that have the same irreducible loss, where the fit is one of a SharedFit."""
    warnings: list[str] = field(default_factory=list)
    """What to know before trusting predictions; `predict` appends where it extrapolates."""

    @property
    def n_rows(self) -> int:
        """Rows that were fitted."""
        return len(self.residuals)

    @property
    def n_free(self) -> int:
        """Parameters that were fitted."""
        return len(self.form.names) - len(self.pinned)

    @property
    def noise(self) -> float:
        """Robust standard deviation of ln L about the law (see noise_scale); NaN without rows to spare."""
        return noise_scale(self.weighted_residuals, self.n_free)

    @property
    def weighted_residuals(self) -> np.ndarray:
        """Residuals [n] times the root of the rows' weights (of mean 1): alike in variance."""
        if self.weights is None:
            return self.residuals
        each = self.runs.numeric(self.weights)
        return np.asarray(self.residuals * np.sqrt(each / np.mean(each)))

    @cached_property
    def law(self) -> Law:
        """The fitted constants as a Law."""
        fixed = {}
        for name in dict.fromkeys((*self.form.fixed, "expansion_rate", "granularity")):
            if name in self.form.columns or name not in self.runs:
                continue
            values = np.unique(self.runs.numeric(name))
            if len(values) == 1 and np.isfinite(values[0]):
                fixed[name] = float(values[0])
        conventions = set(self.runs["flops_convention"]) if "flops_convention" in self.runs else set()
        shares = [1.0]
        if "params_active" in self.runs and "params_total" in self.runs:
            shares = list(self.runs.numeric("params_active") / self.runs.numeric("params_total"))
        return Law(
            name=self.form.name,
            form=self.form,
            parameters=self.parameters,
            source=f"fit of {self.n_rows} rows of {self.runs.source}",
            convention=str(conventions.pop()) if len(conventions) == 1 else "6ND",
            range=_span(self.runs, self.form),
            reach=_FAR,
            fixed=fixed,
            active_share=float(np.nanmedian(shares)),
            warnings=self.warnings,
        )

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """90% bootstrap intervals by parameter; empty without a bootstrap."""
        return self.interval(0.9)

    def interval(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """Central percentile intervals of the bootstrap draws; empty without a bootstrap.

        Raises:
            InputError: if level is not between 0 and 1.
        """
        tail = _tail(level)
        return {
            name: tuple(float(value) for value in np.quantile(values, [tail, 1 - tail]))  # type: ignore[misc]
            for name, values in self.draws.items()
        }

    def predict(self, runs: RunTable | Mapping[str, Any]) -> np.ndarray:
        """Loss [n] in nats per token.

        `warnings` says once, with the 90% interval there, that a budget is beyond 10 times the fit's largest; of a law
        that knows no budget, that a column is.
        """
        before = len(self.warnings)
        loss = self.law.predict(runs)
        if len(self.warnings) > before:
            about = self._about_farthest(runs, loss)
            self.warnings[before:] = [f"{sentence[:-1]}; {about}" for sentence in self.warnings[before:]]
        return loss

    def _about_farthest(self, runs: RunTable | Mapping[str, Any], loss: np.ndarray) -> str:
        """What is predicted, and how surely, where the predicted loss is farthest from those of the fit."""
        measured = np.log(self.runs.numeric(self.form.target))
        row = int(np.argmax(np.abs(np.log(loss) - np.mean(measured))))
        what = f"the farthest {self.form.target} there is {loss[row]:.4g}"
        if not self.draws or self.n_rows <= self.n_free:
            return f"{what}, and only a bootstrap (and rows to spare) would say how surely."
        low, high = self.predict_interval(runs)
        return f"{what}, with 90% between {low[row]:.4g} and {high[row]:.4g}."

    def predict_draws(self, runs: RunTable | Mapping[str, Any]) -> np.ndarray:
        """Loss [B, n] under every bootstrap draw, without noise.

        Raises:
            InputError: if the fit has no bootstrap.
        """
        if not self.draws:
            raise InputError("the fit has no bootstrap draws; fit with bootstrap=1000 to know the uncertainty.")
        columns = self.law.checked(runs)
        return self.form.predict(columns, {name: values[:, None] for name, values in self.draws.items()})

    def predict_interval(self, runs: RunTable | Mapping[str, Any], level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Low and high [n] between which a new run's loss falls with probability `level`.

        Both the parameters (bootstrap draws) and the noise of one run are in it. With 30 rows more than parameters the
        noise is the fit's own residuals, resampled and scaled by sqrt(n / (n - p)); with fewer it is Student's t with
        n - p degrees of freedom times `noise`. With one or two rows to spare that is very wide, as `warnings` says.

        Raises:
            InputError: if the fit has no bootstrap or no more rows than parameters.
        """
        tail = _tail(level)
        losses = self.predict_draws(runs)
        spare = self.n_rows - self.n_free
        if spare < 1:
            raise InputError(
                f"the fit has {self.n_rows} rows for {self.n_free} free parameters, which leaves none to know the "
                "noise; add runs."
            )
        losses = np.repeat(losses, -(-_SAMPLES // len(losses)), axis=0)
        rng = np.random.default_rng(self.seed)
        if spare >= _FEW:
            centred = self.weighted_residuals - np.median(self.weighted_residuals)
            noise = rng.choice(centred, size=losses.shape) * np.sqrt(self.n_rows / spare)
        else:
            noise = rng.standard_t(spare, size=losses.shape) * self.noise
        ends = np.quantile(np.log(losses) + noise, [tail, 1 - tail], axis=0)
        low, high = np.exp(np.clip(ends, -_LARGEST_LOG, _LARGEST_LOG))
        return low, high

    def holdout(self, by: str = "flops", largest: float = 0.2) -> Holdout:
        """Fit again without the largest runs and predict them.

        Args:
            by: column that decides which runs are large.
            largest: share of the rows to hold out; rows that tie with the smallest of them are held out too. Where the
                fit has groups, the other rows of their groups are not fitted either.

        Raises:
            InputError: if the share is not between 0 and 1, the column is absent, too few rows remain, or the fit
                shares its irreducible loss with other groups.
        """
        return without_largest(self, by, largest)

    def leave_out(self, by: str) -> dict[Any, Holdout]:
        """Fit again without each value of a column (an architecture, a family) and predict its rows.

        Returns the score by value. A law that does not read what tells the groups apart predicts as if it did not
        matter, and the score says how far that holds. Where the fit has groups, rows of a group that stands under
        several values are not fitted either while one of these is left out.

        Raises:
            InputError: if the column is absent, has one value, too few rows remain, or the fit shares its irreducible
                loss with other groups.
        """
        return without_each(self, by)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; `Fit.from_dict` gives an equal fit."""
        return {
            "law": self.form.name,
            "law_file": self.form.origin,
            "parameters": self.parameters,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "status": self.status,
            "message": self.message,
            "objective": self.objective,
            "condition": self.condition,
            "n_rows": self.n_rows,
            "n_left_out": self.n_left_out,
            "huber_delta": self.huber_delta,
            "pinned": self.pinned,
            "priors": {name: list(prior) for name, prior in self.priors.items()},
            "prior_noise": self.prior_noise,
            "weights": self.weights,
            "groups": self.groups,
            "shared_with": list(self.shared_with),
            "seed": self.seed,
            "restarts": self.restarts,
            "warnings": list(self.warnings),
            "residuals": self.residuals.tolist(),
            "draws": {name: values.tolist() for name, values in self.draws.items()},
            "runs": {name: [_plain(value) for value in self.runs[name].tolist()] for name in self.runs.columns},
            "notes": list(self.runs.notes),
            "source": self.runs.source,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], form: Form | None = None) -> "Fit":
        """The fit that `to_dict` described.

        Args:
            values: the dictionary.
            form: the law form, for a law of the user's own, whose file is not run unasked.

        Raises:
            InputError: if a field is absent, or the law is the user's own and `form` is not given.
        """
        if form is None and values.get("law_file"):
            raise InputError(
                f"the fit is of law {values['law']} from {values['law_file']}, which is not run unasked; give its "
                f"form, as load_fit(path, form=load_form({values['law_file']!r}))."
            )
        try:
            columns = values["runs"]
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            return cls(
                form=form or form_named(values["law"]),
                parameters=dict(values["parameters"]),
                status=values["status"],
                message=values["message"],
                objective=values["objective"],
                condition=np.inf if values["condition"] is None else float(values["condition"]),
                n_left_out=values["n_left_out"],
                huber_delta=values["huber_delta"],
                pinned=dict(values["pinned"]),
                priors={name: (prior[0], prior[1]) for name, prior in values.get("priors", {}).items()},
                prior_noise=values.get("prior_noise"),
                weights=values.get("weights"),
                groups=values.get("groups"),
                shared_with=tuple(values.get("shared_with", ())),
                residuals=np.array(values["residuals"], dtype=float),
                draws={name: np.array(draws, dtype=float) for name, draws in values["draws"].items()},
                runs=RunTable(rows, notes=values.get("notes", ()), source=values["source"]),
                seed=values["seed"],
                restarts=values["restarts"],
                warnings=list(values["warnings"]),
            )
        except KeyError as error:
            raise InputError(f"the fit lacks the field {error}; it must be what Fit.to_dict wrote.") from None


def _plain(value: Any) -> Any:
    """A cell as JSON has it: a missing number is None, and what JSON lacks is text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else str(value)


def _span(runs: RunTable, form: Form) -> dict[str, tuple[float, float]]:
    """Range of the budgets; where a prediction of the form does not tell its budget, of all columns but sparsity."""
    names = ["flops"] if "flops" in runs else []
    if "flops" not in form.columns and not (
        "tokens" in form.columns and {"params_total", "params_active"} & {*form.columns}
    ):
        names += [name for name in form.columns if name != "sparsity"]
    return {name: (float(runs.numeric(name).min()), float(runs.numeric(name).max())) for name in names}


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}; it must be between 0 and 1.")
    return (1 - level) / 2
