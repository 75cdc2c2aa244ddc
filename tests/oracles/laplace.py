"""What one more run tells, in closed form at the planted truth: the posterior of a law that is linear there."""

from collections.abc import Mapping

import numpy as np

from isoflop.laws import Form


def jacobian(form: Form, columns: Mapping[str, np.ndarray], truth: Mapping[str, float], *, log: bool) -> np.ndarray:
    """∂ loss / ∂ parameter [n, p], of the log loss if `log`, by central differences."""
    slopes = []
    for name, value in truth.items():
        step = 1e-5 * abs(value)
        up, down = (form.predict(columns, {**truth, name: moved}) for moved in (value + step, value - step))
        slopes.append((np.log(up) - np.log(down) if log else up - down) / (2 * step))
    return np.stack(slopes, axis=1)


def variance_removed(
    form: Form,
    truth: Mapping[str, float],
    *,
    runs: Mapping[str, np.ndarray],
    candidates: Mapping[str, np.ndarray],
    asked: np.ndarray,
    noise: float,
) -> tuple[np.ndarray, float]:
    """Variance of a quantity that each candidate removes [K], and its variance before.

    Args:
        form: the law.
        truth: its parameters.
        runs: columns of the runs so far.
        candidates: columns of the runs to judge.
        asked: derivative [p] of the quantity by the parameters.
        noise: standard deviation of the log loss of one run.
    """
    known = jacobian(form, runs, truth, log=True)
    information = known.T @ known / noise**2
    before = float(asked @ np.linalg.inv(information) @ asked)
    removed = []
    for slope in jacobian(form, candidates, truth, log=True):
        after = np.linalg.inv(information + np.outer(slope, slope) / noise**2)
        removed.append(before - float(asked @ after @ asked))
    return np.array(removed), before
