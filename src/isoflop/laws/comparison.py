"""Several laws on the same rows: which predicts runs that it never saw, and which describes the rows best."""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._noise import log_likelihood
from isoflop.laws._rows import Runs, as_table, fit_rows
from isoflop.laws.fitting import delta_named, fit, resolve_form, with_weights
from isoflop.laws.forms import Form
from isoflop.laws.held_out import Holdout
from isoflop.laws.result import Fit


@dataclass(frozen=True, kw_only=True)
class ComparedLaw:
    """One law of a comparison."""

    law: str
    fit: Fit | None
    """None: the law could not be fitted to these rows."""
    holdout: Holdout | None
    """Score on the largest rows; None: too few rows were left for it."""
    log_likelihood: float | None
    aicc: float | None
    """Akaike's criterion for small samples; None without two rows more than parameters."""
    bic: float | None
    problem: str = ""
    """Why there is no fit or no score."""

    @property
    def n_parameters(self) -> int | None:
        """Fitted parameters, the noise not counted."""
        return None if self.fit is None else self.fit.n_free

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        fit = self.fit
        return {
            "law": self.law,
            "status": None if fit is None else fit.status,
            "n_parameters": self.n_parameters,
            "held_out_rmse": None if self.holdout is None else self.holdout.rmse,
            "holdout": None if self.holdout is None else self.holdout.to_dict(),
            "rmse": None if fit is None else float(np.sqrt(np.mean(fit.residuals**2))),
            "objective": None if fit is None else fit.objective,
            "log_likelihood": self.log_likelihood,
            "aicc": self.aicc,
            "bic": self.bic,
            "parameters": None if fit is None else fit.parameters,
            "problem": self.problem,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Laws on the same rows, the one that predicts best first."""

    laws: list[ComparedLaw]
    """By held-out error, then AICc and BIC; laws without a score after them, laws that could not be fitted last."""
    n_rows: int
    likelihood: str
    """Which noise AICc and BIC assume."""

    @property
    def best(self) -> ComparedLaw:
        """The first of the laws."""
        return self.laws[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return {
            "n_rows": self.n_rows,
            "likelihood": self.likelihood,
            "laws": [law.to_dict() for law in self.laws],
        }


def compare(
    runs: Runs,
    laws: Sequence[str | Form],
    *,
    huber_delta: float | Literal["l1", "l2"] | None = 1e-3,
    weights: str | Sequence[float] | np.ndarray | None = None,
    by: str = "flops",
    largest: float = 0.2,
    seed: int = 0,
    restarts: int = 16,
) -> Comparison:
    """Fit each law to the same rows and rank them by the error on the largest, which they were not fitted to.

    AICc and BIC come from the likelihood whose maximum the objective's minimum is: noise of ln L that is normal for
    least squares, Laplace for absolute errors, and normal with Laplace tails beyond delta for Huber; its scale is
    fitted and counts as one parameter. Their differences mean something between laws on the same rows alone.

    Args:
        runs: finished runs; they must have the columns of every law.
        laws: names of law forms, or Forms; at least two.
        huber_delta: as in `fit`.
        weights: as in `fit`.
        by: column that says which rows are large.
        largest: share of the rows to hold out.
        seed: of the restarts.
        restarts: as in `fit`.

    Raises:
        InputError: if fewer than two laws are given, one is given twice, they predict different columns, none can be
            fitted, or an argument is out of range.
    """
    forms = [resolve_form(law) if isinstance(law, str) else law for law in laws]
    if len(forms) < 2:
        raise InputError(f"laws has {len(forms)} entry; a comparison needs at least two.")
    names = [form.name for form in forms]
    for form in forms:
        if names.count(form.name) > 1:
            raise InputError(f"laws has {form.name} twice; give each law once.")
        if form.target != forms[0].target:
            raise InputError(
                f"law {form.name} predicts {form.target} and law {forms[0].name} {forms[0].target}; compare laws of "
                "one column."
            )
    if not 0 < largest < 1:
        raise InputError(f"largest is {largest:g}; it must be between 0 and 1, the share of rows to hold out.")
    delta = delta_named(huber_delta)
    table, column = with_weights(as_table(runs), weights)
    read = [fit_rows(table, _without_limits(form))[0] for form in forms]
    if not any(by in rows for rows in read):
        read[0][by]  # says which columns there are
    found = []
    for form in forms:
        options: dict[str, Any] = {"huber_delta": delta, "weights": column, "seed": seed, "restarts": restarts}
        try:
            fitted = fit(table, form, **options)
        except InputError as error:
            found.append(_refused(form, str(error)))
            continue
        found.append(_compared(fitted, by, largest))
    if all(law.fit is None for law in found):
        raise InputError(f"no law can be fitted to {table.source}: {found[0].problem}")
    found.sort(key=_rank)
    kind = "normal" if delta is None else f"normal within {delta:g} of the law in ln loss, Laplace beyond"
    return Comparison(
        laws=found, n_rows=len(read[0]), likelihood=f"{kind}; its scale is fitted and counts as a parameter"
    )


def _compared(fitted: Fit, by: str, largest: float) -> ComparedLaw:
    holdout, problem = None, ""
    try:
        holdout = fitted.holdout(by=by, largest=largest)
    except InputError as error:
        problem = f"no held-out score: {error}"
    n, k = fitted.n_rows, fitted.n_free + 1
    likelihood = log_likelihood(fitted.objective, n, fitted.huber_delta)
    return ComparedLaw(
        law=fitted.form.name,
        fit=fitted,
        holdout=holdout,
        log_likelihood=likelihood,
        aicc=2 * k - 2 * likelihood + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else None,
        bic=k * math.log(n) - 2 * likelihood,
        problem=problem,
    )


def _refused(form: Form, problem: str) -> ComparedLaw:
    return ComparedLaw(law=form.name, fit=None, holdout=None, log_likelihood=None, aicc=None, bic=None, problem=problem)


def _rank(law: ComparedLaw) -> tuple[float, ...]:
    held_out = math.inf if law.holdout is None else law.holdout.rmse
    criteria = (math.inf if value is None else value for value in (law.aicc, law.bic))
    return (law.fit is None, held_out, *criteria)


def _without_limits(form: Form) -> Form:
    """The form without what it holds fixed, so that its columns alone are checked."""
    other = copy(form)
    other.fixed = ()
    return other
