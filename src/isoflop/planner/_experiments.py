"""What runs of each architecture cost and predict, as the runs behind a fit tell it: no model is built for that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.errors import InputError
from isoflop.laws import Fit, RunTable, fit, fit_shared
from isoflop.laws.forms import form_named

_EXPERT_SHARE = 2 / 3
"""Share of the active parameters that stand in experts of the papers' shapes, 8 d_model² of 12."""

_WIDTH = 16.0  # least ratio of the most to the fewest tokens per parameter of candidates

_KNOWN = {
    "params_active",
    "params_total",
    "tokens",
    "flops",
    "granularity",
    "expansion_rate",
    "sparsity",
    "expert_attention_ratio",
    "depth_capacity",
}


def laws_of_runs(
    runs: RunTable, law: str, *, huber_delta: float | None = 1e-3, bootstrap: int = 200, seed: int = 0
) -> dict[str, Fit]:
    """Fits of all runs with paired bootstrap draws, by name.

    Where the law holds for one expansion rate and the runs have several, each rate gets a law of its own, the dense
    runs chinchilla, and all share one irreducible loss.

    Raises:
        InputError: as `fit` and `fit_shared` do.
    """
    form = form_named(law)
    done = runs.usable()
    if "expansion_rate" not in form.fixed or "expansion_rate" not in done:
        return {"": fit(runs, form, huber_delta=huber_delta, bootstrap=bootstrap, seed=seed)}
    rates = done.numeric("expansion_rate")
    if len(np.unique(rates)) < 2:
        return {"": fit(runs, form, huber_delta=huber_delta, bootstrap=bootstrap, seed=seed)}
    groups = {
        "dense" if rate == 1 else f"moe-e{rate:g}": (done.where(rates == rate), "chinchilla" if rate == 1 else law)
        for rate in np.unique(rates)
    }
    return fit_shared(groups, huber_delta=huber_delta, bootstrap=bootstrap, seed=seed).fits


@dataclass(frozen=True, kw_only=True)
class Family:
    """The models of one architecture, of any size: what they cost, and what a fit predicts of them."""

    name: str
    fit: Fit
    granularity: float
    expansion_rate: float
    scale: float
    """Training FLOPs per token = scale · params_active^power, from the runs."""
    power: float
    total_share: float
    """params_total / params_active."""
    constants: Mapping[str, float]
    """Columns that do not depend on size, such as expert_attention_ratio."""
    cheapest: float
    """FLOPs of the cheapest run of the fit."""
    ratios: tuple[float, float]
    """Fewest and most tokens per active parameter that a run should have: those of the middle 80% of the fit's runs.

    The outermost runs would tell most if the law held exactly, and least where it does not. Where the runs span less
    than 16 times, the range is made that wide.
    """

    def tokens(self, params_active: np.ndarray, flops: np.ndarray | float) -> np.ndarray:
        """Tokens that a budget buys."""
        return np.asarray(flops / (self.scale * params_active**self.power))

    def size(self, flops: np.ndarray, ratio: np.ndarray) -> np.ndarray:
        """params_active of the run that costs so much and has so many tokens per active parameter."""
        return np.asarray((flops / (self.scale * ratio)) ** (1 / (1 + self.power)))

    def columns(self, params_active: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Standard columns of runs."""
        return {
            "params_active": params_active,
            "params_total": params_active * self.total_share,
            "tokens": tokens,
            "flops": tokens * self.scale * params_active**self.power,
            **{name: np.full_like(params_active, value) for name, value in self.constants.items()},
        }

    def predict(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Loss [n] of the fitted law."""
        return self.fit.form.predict(columns, self.fit.parameters)

    def draws(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Loss [B, n] under every draw of the fit."""
        parameters = {name: values[:, None] for name, values in self.fit.draws.items()}
        return self.fit.form.predict(columns, parameters)


def families_of(
    fits: Mapping[str, Fit], granularities: Sequence[float] | None, expansion_rates: Sequence[float] | None
) -> list[Family]:
    """The architectures that the laws tell apart: those of the runs, or at the values given.

    Raises:
        InputError: if a law reads columns that say nothing of a run's size, tokens and experts, a value is below 1, or
            no law knows what was given.
    """
    for name, given in (("granularity", granularities), ("expansion_rate", expansion_rates)):
        if given is None:
            continue
        if not given or not all(1 <= value < np.inf for value in given):
            raise InputError(f"{name} is {list(given)}; give at least one number, each at least 1.")
        if not any(_knows(fit, name) for fit in fits.values()):
            forms = ", ".join(dict.fromkeys(fit.form.name for fit in fits.values()))
            raise InputError(f"{name} is given, but {forms} does not know it; leave it out, or fit a law that does.")
    found: list[Family] = []
    for each in fits.values():
        unknown = [name for name in each.form.columns if name not in _KNOWN]
        if unknown:
            raise InputError(f"law {each.form.name} reads {', '.join(unknown)}; the next run cannot be sought for it.")
        if each.form.target != "loss":
            raise InputError(f"law {each.form.name} predicts {each.form.target}; a decision needs a law of the loss.")
        found += _Runs(each).families(granularities, expansion_rates)
    names = [family.name for family in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"fits has two laws for {twice}; give one for each architecture.")
    return found


class _Runs:
    """The rows behind a fit: what distinguishes them, and how their cost grows."""

    def __init__(self, fit: Fit) -> None:
        self.fit = fit
        runs = fit.runs
        for name in ("tokens", "flops"):
            if name not in runs:
                raise InputError(f"{runs.source} has no column {name}, which says what runs cost; add it.")
        self.granularity = _column(runs, "granularity", 1.0)
        self.rate = _column(runs, "expansion_rate", np.nan)
        if np.isnan(self.rate).all():
            self.rate = 1 / (1 - _column(runs, "sparsity", 0.0))
        if not _knows(fit, "granularity"):
            self.granularity = np.full_like(self.granularity, np.median(self.granularity))
        if not _knows(fit, "expansion_rate"):
            self.rate = np.full_like(self.rate, np.median(self.rate))
        self.active = _column(runs, "params_active", np.nan)
        self.total = _column(runs, "params_total", np.nan)
        known = ~np.isnan(self.active) & ~np.isnan(self.total) & (self.rate > 1)
        excess = (self.total / self.active - 1) / np.maximum(self.rate - 1, 1e-9)
        self.expert_share = float(np.median(excess[known])) if known.any() else _EXPERT_SHARE
        share = 1 + self.expert_share * (self.rate - 1)
        self.active = np.where(np.isnan(self.active), self.total / share, self.active)
        if np.isnan(self.active).any():
            raise InputError(f"{runs.source} has neither params_active nor params_total in every row; add one of them.")
        self.flops = runs.numeric("flops")
        self.tokens = runs.numeric("tokens")
        # ln(FLOPs / 6 N D), linear in what varies: zero slopes for what does not
        cost = np.log(self.flops / (6 * self.active * self.tokens))
        self.features = np.log(np.stack([self.active, self.granularity, self.rate], axis=1))
        self.middle, self.mean_cost = self.features.mean(axis=0), float(cost.mean())
        centred = self.features - self.middle
        self.slopes = np.linalg.lstsq(centred, cost - self.mean_cost, rcond=1e-6)[0]
        self.rest = cost - self.mean_cost - centred @ self.slopes

    def families(self, granularities: Sequence[float] | None, expansion_rates: Sequence[float] | None) -> list[Family]:
        present = sorted({(float(e), float(g)) for e, g in zip(self.rate, self.granularity, strict=True)})
        rates = expansion_rates if _knows(self.fit, "expansion_rate") else None
        values = granularities if _knows(self.fit, "granularity") else None
        pairs = [
            (float(e), float(g))
            for e in dict.fromkeys(rates or [e for e, _ in present])
            for g in dict.fromkeys(values or [g for _, g in present])
            if (e > 1 or g == 1) and (rates or values or (float(e), float(g)) in present)
        ]
        if not pairs:
            raise InputError("granularity and expansion_rate leave no architecture; a dense model has granularity 1.")
        return [self._family(e, g) for e, g in pairs]

    def _family(self, rate: float, granularity: float) -> Family:
        own = (self.rate == rate) & (self.granularity == granularity)
        offset = self.mean_cost - self.middle @ self.slopes + self.slopes[1:] @ np.log([granularity, rate])
        offset += float(self.rest[own].mean()) if own.any() else 0.0
        known = own & ~np.isnan(self.total)
        share = 1 + self.expert_share * (rate - 1)
        attention = _column(self.fit.runs, "expert_attention_ratio", 1.0)
        return Family(
            name=self._name(own, rate, granularity),
            fit=self.fit,
            granularity=granularity,
            expansion_rate=rate,
            scale=6 * float(np.exp(offset)),
            power=1 + float(self.slopes[0]),
            total_share=float(np.median(self.total[known] / self.active[known])) if known.any() else share,
            constants={
                "granularity": granularity,
                "expansion_rate": rate,
                "sparsity": 1 - 1 / rate,
                "expert_attention_ratio": float(np.median(attention[own] if own.any() else attention)),
                "depth_capacity": 1.0,
            },
            cheapest=float(self.flops.min()),
            ratios=_usual(self.tokens / self.active),
        )

    def _name(self, own: np.ndarray, rate: float, granularity: float) -> str:
        """The name that the runs have for it, else one like moe-e8-g4."""
        if "architecture" in self.fit.runs:
            names = set(self.fit.runs["architecture"][own].tolist()) - {None}
            if len(names) == 1:
                return str(names.pop())
        return "dense" if rate * granularity == 1 else f"moe-e{rate:g}-g{granularity:g}"


def _usual(ratio: np.ndarray) -> tuple[float, float]:
    low, high = np.log(np.quantile(ratio, [0.1, 0.9]))
    room = max(0.0, np.log(_WIDTH) - (high - low)) / 2
    return float(np.exp(low - room)), float(np.exp(high + room))


def _knows(fit: Fit, column: str) -> bool:
    """Whether the law tells values of granularity or expansion_rate apart, or all runs have one."""
    names = {column, "sparsity"} if column == "expansion_rate" else {column}
    return bool(names & set(fit.form.columns))


def _column(runs: RunTable, name: str, default: float) -> np.ndarray:
    return runs.numeric(name) if name in runs else np.full(len(runs), default)
