"""What is known of a law before the runs: Gaussian priors on its exponents and its irreducible loss."""

from collections.abc import Mapping

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._noise import worth
from isoflop.laws._solver import Penalty, Problem
from isoflop.laws.forms import Form

_LEAST = 1e-6  # noise of ln L that a prior is weighed with where the rows show none


def check_priors(
    form: Form, priors: Mapping[str, tuple[float, float]] | None, pinned: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """The priors as floats.

    Raises:
        InputError: if one is on a parameter that is unknown, pinned or a coefficient, or its numbers make no sense.
    """
    known = {parameter.name: parameter for parameter in form.parameters}
    allowed = [*(p.name for p in form.exponents), *([form.asymptote] if form.asymptote else [])]
    checked = {}
    for name, (mean, sd) in (priors or {}).items():
        if name not in known:
            raise InputError(f"prior {name} is on no parameter of law {form.name}; it has {', '.join(known)}.")
        if name not in allowed:
            raise InputError(
                f"prior {name} is on a coefficient, whose size hangs on its exponent; law {form.name} takes priors on "
                f"{', '.join(allowed)}."
            )
        if name in pinned:
            raise InputError(f"prior {name} is on a pinned parameter; either pin it or give it a prior.")
        low, high = known[name].lower, known[name].upper
        if not (np.isfinite(mean) and low <= mean <= high):
            raise InputError(f"prior {name} has the mean {mean:g}; it must be between {low:g} and {high:g}.")
        if not (np.isfinite(sd) and sd > 0):
            raise InputError(f"prior {name} has the standard deviation {sd:g}; it must be positive (or pin {name}).")
        checked[name] = (float(mean), float(sd))
    return checked


def penalty(problem: Problem, priors: Mapping[str, tuple[float, float]], noise: float) -> Penalty | None:
    """Priors as a penalty on a problem's coordinates, weighed against rows with this noise of ln L."""
    if not priors:
        return None
    mean, sd = np.zeros(problem.size), np.full(problem.size, np.inf)
    logarithmic = {p.name for p in problem.exponents if p.log}
    for name, (middle, width) in priors.items():
        at = problem.names.index(name)
        mean[at], sd[at] = np.log(middle) if name in logarithmic else middle, width
    noise = max(noise, _LEAST)
    delta = None if np.isinf(problem.delta) else problem.delta
    return Penalty(mean=mean, sd=sd, noise=noise, worth=worth(noise, delta))
