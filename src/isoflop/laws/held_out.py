"""How well a law predicts rows that it never saw: the largest ones, or one group of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._diagnosis import Status
from isoflop.laws.table import RunTable, as_columns

if TYPE_CHECKING:
    from isoflop.laws.result import Fit


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """How well a law that never saw some rows predicts them."""

    by: str
    """Column that decides which rows are held out."""
    threshold: float | None
    """The rows at or above this value were held out; None where one value of the column was."""
    left_out: Any = None
    """The value of the column whose rows were held out; None where the largest were."""
    n_fit: int
    n_held_out: int
    """Rows that are predicted."""
    n_aside: int = 0
    """Rows that were neither fitted nor predicted: others of the groups that the predicted ones belong to."""
    rmse: float
    """Root mean square of ln(measured / predicted) over the rows held out."""
    bias: float
    """Mean of the same: positive where the law was too optimistic."""
    status: Status
    """Of the fit without them."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return dict(vars(self))


def without_largest(fit: "Fit", by: str, largest: float) -> Holdout:
    """Fit again without the rows that are largest in a column, and predict those (see Fit.holdout)."""
    from isoflop.laws.fitting import refit

    values = fit.runs.numeric(by)
    threshold = held_out_split(values, largest)
    out = values >= threshold * (1 - 1e-9)
    kept = ~_whole_groups(fit, out)
    if kept.sum() <= fit.n_free:
        raise InputError(
            f"holding out {by} >= {threshold:g}{_with_groups(fit)} leaves {int(kept.sum())} rows for {fit.n_free} free "
            "parameters; hold out fewer, or pin parameters."
        )
    return held_out_score(
        refit(fit, fit.runs.where(kept)),
        fit.runs.where(out),
        by=by,
        threshold=threshold,
        n_aside=int((~kept & ~out).sum()),
    )


def without_each(fit: "Fit", by: str) -> dict[Any, Holdout]:
    """Fit again without the rows of each value of a column, and predict those (see Fit.leave_out)."""
    from isoflop.laws.fitting import refit

    labels = fit.runs[by].tolist()
    values = list(dict.fromkeys(labels))
    if len(values) < 2:
        raise InputError(f"leave_out is by {by}, which has one value; it takes two to predict one from the other.")
    scores = {}
    for value in values:
        out = np.array([label == value for label in labels])
        kept = ~_whole_groups(fit, out)
        if kept.sum() <= fit.n_free:
            raise InputError(
                f"leaving out {by} {value}{_with_groups(fit)} leaves {int(kept.sum())} rows for {fit.n_free} free "
                "parameters; take a column with smaller groups, or pin parameters."
            )
        scores[value] = held_out_score(
            refit(fit, fit.runs.where(kept)),
            fit.runs.where(out),
            by=by,
            threshold=None,
            left_out=value,
            n_aside=int((~kept & ~out).sum()),
        )
    return scores


def _whole_groups(fit: "Fit", out: np.ndarray) -> np.ndarray:
    """Mask [n] of the rows whose group has a row that is out; without groups, of those that are out."""
    if fit.groups is None:
        return out
    labels = fit.runs[fit.groups].tolist()
    touched = {label for label, gone in zip(labels, out, strict=True) if gone}
    return np.array([label in touched for label in labels])


def _with_groups(fit: "Fit") -> str:
    return "" if fit.groups is None else f", with every {fit.groups} that has such a row,"


def held_out_split(values: np.ndarray, largest: float) -> float:
    """The value from which on rows are held out, so that about this share of them is.

    Raises:
        InputError: if the share is not between 0 and 1.
    """
    if not 0 < largest < 1:
        raise InputError(f"largest is {largest:g}; it must be between 0 and 1, the share of rows to hold out.")
    count = max(1, round(largest * len(values)))
    return float(np.sort(values)[-count])


def held_out_score(
    fit: "Fit", held_out: RunTable, *, by: str, threshold: float | None, left_out: Any = None, n_aside: int = 0
) -> Holdout:
    """Score a fit on rows that it did not see, whatever their columns that the law does not read."""
    predicted = fit.form.predict(as_columns(held_out, fit.form.columns), fit.parameters)
    errors = np.log(held_out.numeric(fit.form.target) / predicted)
    return Holdout(
        by=by,
        threshold=threshold,
        left_out=left_out,
        n_fit=fit.n_rows,
        n_held_out=len(held_out),
        n_aside=n_aside,
        rmse=float(np.sqrt(np.mean(errors**2))),
        bias=float(np.mean(errors)),
        status=fit.status,
    )
