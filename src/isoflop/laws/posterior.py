"""Bayesian posterior of a law's parameters by Markov chains (emcee, Foreman-Mackey et al. 2013, arXiv 1202.3665)."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from isoflop.errors import InputError, RunError
from isoflop.laws._noise import spread
from isoflop.laws._solver import Problem
from isoflop.laws.fitting import problem_again
from isoflop.laws.result import Fit

_FREEDOM = 5.0  # of Student's t: outliers of a few standard deviations cost little
_ENOUGH = 50.0  # a chain this many autocorrelation times long
_MIXED = 1.05  # largest R̂
_LEAST = 1e-9
_FIRST = 1000  # steps before the first look at convergence; each further look doubles the chain


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Draws from the posterior of a law's parameters, after checks that the chain has converged."""

    fit: Fit
    """The fit with these draws in place of a bootstrap's: its intervals and predictions are the posterior's."""
    noise: np.ndarray
    """Draws [B] of the scale of the noise of ln L."""
    r_hat: dict[str, float]
    """Split R̂ by free parameter, the walkers as chains (Gelman et al. 2013, Bayesian Data Analysis, eq. 11.4)."""
    autocorrelation_time: float
    """In steps, the longest of all parameters."""
    steps: int
    """Length of the chain of each walker, the discarded start included."""
    acceptance: float
    """Share of the proposals that were accepted."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON, without the draws."""
        return {name: value for name, value in vars(self).items() if name not in ("fit", "noise")}


def posterior(
    fit: Fit,
    *,
    draws: int = 1000,
    seed: int = 0,
    noise: Literal["student", "normal"] = "student",
    max_steps: int = 64_000,
) -> Posterior:
    """Sample the posterior of the fitted parameters and of the noise's scale.

    Residuals of ln L are Student's t with 5 degrees of freedom, or normal. Priors are flat within the parameters'
    bounds: in the exponents (or their logarithm where a fit moves in it), in each term's size over the rows (not in its
    coefficient, which an exponent moves over decades) and in the logarithm of the noise; the fit's Gaussian
    priors come on top. Walkers start at the fit's bootstrap draws, or else about its minimum by the curvature there.

    Args:
        fit: a fit; its rows, weights, pins and priors stand, its draws are replaced.
        draws: number of draws that are kept; the chains run on until they hold as many independent ones.
        seed: of the walkers.
        noise: distribution of the residuals.
        max_steps: longest chain before giving up.

    Raises:
        InputError: if emcee is not installed, draws is below 100, noise is another word, or there are no more rows than
            parameters.
        RunError: if the chains have not converged: each shorter than 50 autocorrelation times, fewer independent
            draws than asked for, or R̂ above 1.05.
    """
    try:
        import emcee
    except ModuleNotFoundError:
        raise InputError("a posterior needs emcee: pip install 'isoflop[bayes]'.") from None
    if draws < 100:
        raise InputError(f"draws is {draws}; a posterior needs at least 100.")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be a whole number of at least 0.")
    if noise not in ("student", "normal"):
        raise InputError(f"noise is {noise!r}; it must be 'student' or 'normal'.")
    if fit.n_rows <= fit.n_free:
        raise InputError(
            f"the fit has {fit.n_rows} rows for {fit.n_free} free parameters, which leaves none to know the noise; "
            "add runs."
        )
    target = _Target(fit, student=noise == "student")
    rng = np.random.default_rng(seed)
    walkers = 4 * target.size + 2
    start = target.around(fit, walkers, rng)
    # no snooker move: up to emcee 3.1.6 it draws from the wrong distribution (github.com/dfm/emcee/pull/531)
    moves = [(emcee.moves.DEMove(), 0.9), (emcee.moves.DEMove(gamma0=1.0), 0.1)]
    sampler = emcee.EnsembleSampler(walkers, target.size, target, moves=moves, vectorize=True)
    sampler.random_state = np.random.RandomState(seed).get_state()
    state: Any = emcee.State(start)
    steps, lengths = 0, max(_ENOUGH, draws / walkers)
    while True:
        more = min(max(steps, _FIRST), max_steps - steps)
        state = sampler.run_mcmc(state, more, progress=False)
        steps += more
        chain = sampler.get_chain()[steps // 4 :]
        time = float(np.max(emcee.autocorr.integrated_time(chain, tol=0, quiet=True)))
        r_hat = _split_r_hat(chain)
        long_enough = np.isfinite(time) and len(chain) >= lengths * time
        if long_enough and r_hat.max() <= _MIXED:
            break
        if steps >= max_steps:
            worst = [*target.problem.names, "the noise"][int(np.argmax(r_hat))]
            raise RunError(
                f"the posterior has not converged after {steps} steps: autocorrelation time {time:.0f} of at most "
                f"{len(chain) / lengths:.0f}, R̂ {r_hat.max():.3f} of {worst}; give priors, pin parameters, or add runs."
            )
    flat = chain.reshape(-1, target.size)
    picked = flat[np.linspace(0, len(flat) - 1, draws).round().astype(int)]
    values = target.problem.parameters(picked[:, :-1])
    return Posterior(
        fit=replace(fit, draws={name: value[:, 0] for name, value in values.items()}),
        noise=np.exp(picked[:, -1]),
        r_hat=dict(zip(target.problem.names, r_hat.tolist(), strict=False)),
        autocorrelation_time=time,
        steps=steps,
        acceptance=float(np.mean(sampler.acceptance_fraction)),
    )


class _Target:
    """Log posterior density [W] of coordinates and the logarithm of the noise [W, p + 1]."""

    def __init__(self, fit: Fit, *, student: bool) -> None:
        self.problem: Problem = problem_again(fit)
        self.size = self.problem.size + 1
        self.student = student
        self.root = 1.0 if self.problem.weights is None else np.sqrt(self.problem.weights)

    def __call__(self, place: np.ndarray) -> np.ndarray:
        z, log_noise = place[:, :-1], place[:, -1]
        clipped = self.problem.clip(z)
        inside = np.all(np.isclose(clipped, z, rtol=0, atol=0), axis=1) & (np.abs(log_noise) < 50)
        with np.errstate(all="ignore"):
            residuals = self.problem.evaluate(clipped).residuals * self.root / np.exp(log_noise)[:, None]
            if self.student:
                each = -0.5 * (_FREEDOM + 1) * np.log1p(residuals**2 / _FREEDOM)
            else:
                each = -0.5 * residuals**2
            value = np.sum(each, axis=1) - residuals.shape[1] * log_noise
            if self.problem.penalty is not None:
                value = value - self.problem.penalty.at(z)[0] / self.problem.penalty.worth
        return np.where(inside & np.isfinite(value), value, -np.inf)

    def around(self, fit: Fit, walkers: int, rng: np.random.Generator) -> np.ndarray:
        """Starting places [walkers, p + 1]: bootstrap draws, or about the minimum by its curvature."""
        best = self.problem.coordinates({name: np.full((1, 1), value) for name, value in fit.parameters.items()})
        noise = max(spread(fit.weighted_residuals, fit.n_free, fit.huber_delta), _LEAST)
        if fit.draws:
            drawn = self.problem.coordinates({name: values[:, None] for name, values in fit.draws.items()})
            z = drawn[rng.integers(0, len(drawn), walkers)]
        else:
            z = np.repeat(best, walkers, axis=0)
        jacobian = self.problem.jacobian(self.problem.evaluate(best))[0] * self.root
        norms = np.maximum(np.linalg.norm(jacobian, axis=1), 1e-12)
        scaled = jacobian / norms[:, None]
        width, directions = np.linalg.eigh(scaled @ scaled.T)
        steps = directions / np.sqrt(np.maximum(width, 1e-6)) * noise
        share = 0.2 if fit.draws else 1.0
        z = z + share * (rng.standard_normal((walkers, len(norms))) @ steps.T) / norms
        low, high = self.problem.bounds
        z = np.clip(z, low + 1e-6 * rng.random(z.shape), np.maximum(high - 1e-6 * rng.random(z.shape), low))
        z = self.problem.clip(z)
        return np.concatenate([z, np.log(noise) + 0.1 * rng.standard_normal((walkers, 1))], axis=1)


def _split_r_hat(chain: np.ndarray) -> np.ndarray:
    """R̂ [d] of a chain [steps, walkers, d], every walker's cut in two."""
    half = len(chain) // 2
    parts = np.concatenate([chain[:half], chain[half : 2 * half]], axis=1)
    within = np.mean(np.var(parts, axis=0, ddof=1), axis=0)
    between = np.var(np.mean(parts, axis=0), axis=0, ddof=1)
    return np.asarray(np.sqrt((half - 1) / half + between / np.maximum(within, 1e-300)))
