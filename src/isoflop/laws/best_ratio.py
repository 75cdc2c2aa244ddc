"""The best expert–attention ratio of any budget and sparsity, and what another ratio costs there."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._parabola import Interval
from isoflop.laws.files import strict
from isoflop.laws.law import Law
from isoflop.laws.numbers import exponent
from isoflop.laws.published import PUBLISHED, published
from isoflop.laws.result import Fit
from isoflop.laws.valleys import Valley, allocation_and_draws, shared_valley

_TARGET: Final = "expert_attention_ratio"
_SHARED_DRAWS: Final = 1000
_SAME: Final = {"sparsity": 1.0, "flops": 1.0, "context": 2.0}
"""How many times beyond what was measured on a value still counts as measured, unless the law says otherwise."""


@dataclass(frozen=True, kw_only=True)
class RatioOptimum:
    """Where one model's loss is least over r at its FLOPs per token, and how much more it is elsewhere."""

    ratio: float
    """r*."""
    log_draws: np.ndarray = field(repr=False)
    """Draws of ln r* [B]; empty where nothing says how sure it is."""
    above: Callable[[float], tuple[float, np.ndarray]] | None = field(repr=False)
    """ln r → nats above the least loss, and likewise in each draw [B]; None where the valley's depth is not known."""

    def interval(self, level: float = 0.9) -> Interval | None:
        """Central interval of r*; None without draws."""
        return None if not len(self.log_draws) else _ends(np.exp(self.log_draws), level)

    def cost(self, ratio: float, level: float = 0.9) -> tuple[float, Interval | None] | None:
        """Nats that a ratio loses against the best, with the interval; None where the depth is not known."""
        if self.above is None:
            return None
        nats, drawn = self.above(float(np.log(ratio)))
        return nats, _around(nats, drawn, level)

    def change(self, before: float, after: float, level: float = 0.9) -> tuple[float, Interval | None] | None:
        """Nats that moving from one ratio to another adds, negative where it saves; likewise."""
        if self.above is None:
            return None
        (start, from_draws), (end, to_draws) = (self.above(float(np.log(ratio))) for ratio in (before, after))
        return end - start, _around(end - start, to_draws - from_draws, level)


@dataclass(frozen=True, kw_only=True)
class BestRatio:
    """The law r*(C, S), how deep the valley about it is, and what both were measured on."""

    law: Law | Fit
    """Of the form `allocation`; a fit's draws are refits to draws of every r*."""
    convention: str | None
    """How r is counted, a key of `isoflop.spec.CONVENTIONS`; None where its runs do not say it."""
    depth: float | None = None
    """v, nats per squared ln r, pooled over all valleys; None where it is not known."""
    depth_interval: Interval | None = None
    """Interval of it, 90% unless `best_ratio_of` was told otherwise."""
    depth_draws: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)
    """Draws of it [B], each of the same parabolas as the law's draw; empty without draws of the law."""
    spread: float = 1.0
    """How many times farther the valleys' depths lie from the pooled one than their noise explains; at least 1, and the
    interval and the draws of the depth are wider by it (the scale factor of the Particle Data Group)."""
    misfit: float | None = None
    """Where the groups share depth and law because their own valleys are too faint (`shared_valley`): the probability
    of parabolas of their own fitting this much better by chance. None: the law goes through their minima."""
    range: Mapping[str, Interval] = field(default_factory=dict)
    """Smallest and largest expert_attention_ratio, flops, sparsity and context that it was measured on."""
    n_valleys: int = 0
    """Valleys behind it; 0 for a published law."""
    n_rows: int = 0
    """Runs behind them."""
    source: str = ""
    """Where the runs are from."""

    @property
    def name(self) -> str:
        """For people: of a published law its name, else where its runs are from."""
        return self.law.name if isinstance(self.law, Law) else self.source

    @property
    def is_visible(self) -> bool:
        """Whether the runs show a valley: the interval of its depth stands above 0."""
        return self.depth_interval is not None and self.depth_interval[0] > 0

    @property
    def flops_convention(self) -> str:
        """How C is counted."""
        return self.law.law.convention if isinstance(self.law, Fit) else self.law.convention

    def covers_dense(self) -> bool:
        """Whether dense models are among its runs."""
        return self.range.get("sparsity", (1.0, 1.0))[0] == 0

    def at(self, flops: float, sparsity: float) -> RatioOptimum:
        """r* and the valley about it of a model of this sparsity, trained with these FLOPs.

        Raises:
            InputError: if flops is not positive, or sparsity not from 0 to below 1.
        """
        columns = {"flops": np.array([flops]), "sparsity": np.array([sparsity])}
        law = self.law.law if isinstance(self.law, Fit) else self.law
        best = float(law.form.predict(Law(**{**vars(law), "warnings": []}).checked(columns), law.parameters)[0])
        drawn = np.zeros(0)
        if isinstance(self.law, Fit) and self.law.draws:
            drawn = np.log(self.law.form.predict({n: v[0] for n, v in columns.items()}, self.law.draws))
        if self.depth is None or self.depth <= 0:
            return RatioOptimum(ratio=best, log_draws=drawn, above=None)
        depth, depths = self.depth, self.depth_draws

        def above(log_ratio: float) -> tuple[float, np.ndarray]:
            nats = depths * (log_ratio - drawn) ** 2 if len(depths) == len(drawn) else np.zeros(0)
            return depth * (log_ratio - float(np.log(best))) ** 2, nats

        return RatioOptimum(ratio=best, log_draws=drawn, above=above)

    def beyond(self, **asked: float) -> list[str]:
        """What is asked for that lies outside of what was measured, as `flops 1e25 (1e18 to 1e21)`; by name of `range`.

        Budgets of a fit may be ten times beyond its runs, contexts twice.
        """
        reach = {**_SAME, "flops": self.law.law.reach if isinstance(self.law, Fit) else self.law.reach}
        found = []
        for name, value in asked.items():
            if name not in self.range:
                continue
            low, high = self.range[name]
            times = reach.get(name, 1.0)
            if not low / times * (1 - 1e-3) <= value <= high * times * (1 + 1e-3):
                write = {"flops": exponent, "context": "{:.0f}".format}.get(name, "{:.4g}".format)
                span = write(low) if low == high else f"{write(low)} to {write(high)}"
                found.append(f"{name} {write(value)} ({span})")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; `BestRatio.from_dict` gives an equal one.

        Raises:
            InputError: for a published law, which is known by its name.
        """
        if not isinstance(self.law, Fit):
            raise InputError(f"law {self.law.name} is published; give its name in place of a file.")
        return {
            "allocation": self.law.to_dict(),
            "convention": self.convention,
            "depth": self.depth,
            "depth_interval": None if self.depth_interval is None else list(self.depth_interval),
            "depth_draws": self.depth_draws.tolist(),
            "spread": self.spread,
            "misfit": self.misfit,
            "range": {name: list(ends) for name, ends in self.range.items()},
            "n_valleys": self.n_valleys,
            "n_rows": self.n_rows,
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BestRatio":
        """What `to_dict` described, or a fit of law allocation, whose valley's depth is then not known.

        Raises:
            InputError: if it is something else.
        """
        if values.get("law") == "allocation" and "parameters" in values:
            fitted = Fit.from_dict(values)
            spans = {name: _span(fitted.runs.numeric(name)) for name in (_TARGET, "flops", "sparsity")}
            convention = fitted.law.convention if "flops_convention" in fitted.runs else None
            return cls(law=fitted, convention=convention, range=spans, source=fitted.runs.source)
        try:
            interval = values["depth_interval"]
            return cls(
                law=Fit.from_dict(values["allocation"]),
                convention=values["convention"],
                depth=values["depth"],
                depth_interval=None if interval is None else (float(interval[0]), float(interval[1])),
                depth_draws=np.array(values["depth_draws"], dtype=float),
                spread=float(values["spread"]),
                misfit=None if values["misfit"] is None else float(values["misfit"]),
                range={name: (float(ends[0]), float(ends[1])) for name, ends in values["range"].items()},
                n_valleys=int(values["n_valleys"]),
                n_rows=int(values["n_rows"]),
                source=str(values["source"]),
            )
        except (KeyError, TypeError, IndexError, ValueError, AttributeError):
            raise InputError(
                "it holds no law of the best ratio; give what `isoflop valleys --out` or `isoflop fit --law allocation "
                "--out` wrote."
            ) from None


def best_ratio(name: str) -> BestRatio:
    """A published law of the best ratio, without interval and depth.

    Raises:
        InputError: if there is none of this name.
    """
    known = [each for each in PUBLISHED if published(each).form.target == _TARGET]
    if name not in known:
        raise InputError(f"allocation is {name!r}; published laws of the best ratio: {', '.join(known)}.")
    law = published(name)
    return BestRatio(law=law, convention=law.convention, range=law.range, source=law.source)


def best_ratio_of(
    valleys: Sequence[Valley],
    *,
    draws: int = 200,
    pinned: Mapping[str, float] | None = None,
    convention: str | None = None,
    source: str = "the valleys",
    level: float = 0.9,
) -> BestRatio:
    """The best ratio's law and the depth of the valley about it.

    Where every group has a valley of its own, the law goes through their minima (see `allocation_of`). Where some are
    too faint for that, all groups share one depth and one law (see `shared_valley`, which knows no q).

    Args:
        valleys: of `ratio_valleys`.
        draws: refits behind the intervals.
        pinned: parameters of the law that are given.
        convention: how the ratio was counted; default: as the FLOPs of its runs.
        source: where the runs are from.
        level: of the interval of the depth.

    Raises:
        InputError: if the groups together are a hill or too few, or they were counted in several ways.
    """
    named = dict.fromkeys(valley.convention for valley in valleys)
    if len(named) > 1:
        raise InputError(
            f"{source} counts FLOPs by {' and '.join(str(name or 'nothing that is said') for name in named)}; count "
            "all of them one way, or keep the rows of one."
        )
    misfit: float | None = None
    if all(valley.inside and valley.ratio_interval is not None for valley in valleys):
        law, used = allocation_and_draws(valleys, draws=draws, pinned=pinned)
        depth, interval, drawn, spread = pooled_depth(valleys, level=level)
    else:
        shared = shared_valley(valleys, draws=_SHARED_DRAWS, pinned=pinned)
        if shared.law is None:
            raise InputError(f"the {len(valleys)} groups together are a hill in ln r, so that they show no best ratio.")
        law, used, depth, spread, misfit = shared.law, shared.used.tolist(), shared.depth, 1.0, shared.misfit
        drawn, interval = shared.depth_draws, _ends(shared.depth_draws, level)
    contexts = [end for valley in valleys for end in valley.context_range or ()]
    spans = {
        _TARGET: _span([end for valley in valleys for end in valley.ratio_range]),
        "flops": _span([valley.flops for valley in valleys]),
        "sparsity": _span([valley.sparsity for valley in valleys]),
        **({"context": _span(contexts)} if contexts else {}),
    }
    return BestRatio(
        law=law,
        convention=convention or next(iter(named)),
        depth=depth,
        depth_interval=interval,
        depth_draws=drawn[used] if len(drawn) else drawn,
        spread=spread,
        misfit=misfit,
        range=spans,
        n_valleys=len(valleys),
        n_rows=sum(valley.n_rows for valley in valleys),
        source=source,
    )


def pooled_depth(
    valleys: Sequence[Valley], *, level: float = 0.9
) -> tuple[float | None, Interval | None, np.ndarray, float]:
    """One depth for all valleys: v, its interval, its draws [B], and the spread of the valleys about it.

    Each parabola weighs by the inverse variance of its curvature; hills count too, with their negative one, since to
    leave them out would deepen the valley. Where the curvatures lie farther apart than their noise explains, draws and
    interval are wider by that factor (see BestRatio.spread).
    """
    own = [valley for valley in valleys if valley.curvature is not None]
    if not own:
        return None, None, np.zeros(0), 1.0
    curvature = np.array([valley.curvature for valley in own], dtype=float)
    drawn = np.array([valley.curvature_draws for valley in own])
    sd = drawn.std(axis=1) if drawn.shape[1] else np.zeros(len(own))
    known = bool((sd > 0).all())
    weights = 1 / sd**2 if known else np.ones(len(own))
    depth = float(np.average(curvature, weights=weights))
    if not drawn.shape[1]:
        return depth, None, np.zeros(0), 1.0
    spread = 1.0
    if known and len(own) > 1:
        spread = max(1.0, float(np.sqrt(np.sum(((curvature - depth) / sd) ** 2) / (len(own) - 1))))
    pooled = depth + spread * (np.average(drawn, axis=0, weights=weights) - depth)
    return depth, _ends(pooled, level), pooled, spread


def save_best_ratio(found: BestRatio, path: str | Path) -> None:
    """Write it as JSON; `load_best_ratio` gives an equal one.

    Raises:
        InputError: if the file cannot be written, or the law is a published one.
    """
    text = json.dumps(strict(found.to_dict()), indent=1) + "\n"
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"out is {path}, which cannot be written: {error.strerror}.") from None


def load_best_ratio(path: str | Path) -> BestRatio:
    """Read what `save_best_ratio` (or `isoflop valleys --out`) wrote, or a fit of law allocation.

    Raises:
        InputError: if the file cannot be read or holds something else.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"allocation file {path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise InputError(f"allocation file {path} is not JSON in UTF-8.") from None
    try:
        return BestRatio.from_dict(values if isinstance(values, dict) else {})
    except InputError as error:
        raise InputError(f"allocation file {path}: {error}") from None


def _span(values: Any) -> Interval:
    return float(np.nanmin(values)), float(np.nanmax(values))


def _ends(values: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _around(value: float, drawn: np.ndarray, level: float) -> Interval | None:
    """The interval of the draws, widened to the value: a square at its least lies below all of its draws."""
    if not len(drawn):
        return None
    low, high = _ends(drawn, level)
    return min(low, value), max(high, value)
