"""The best expert–attention ratio of any budget and sparsity, and what another ratio costs there."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from isoflop.errors import InputError
from isoflop.laws._parabola import Interval, central
from isoflop.laws.files import read_json, strict
from isoflop.laws.law import Law
from isoflop.laws.numbers import exponent
from isoflop.laws.pooling import pooled
from isoflop.laws.published import PUBLISHED, published
from isoflop.laws.ratio_law import allocation_and_draws, shared_valley
from isoflop.laws.result import Fit
from isoflop.laws.valleys import Valley, check_draws

_TARGET: Final = "expert_attention_ratio"
_REFITS: Final = 200
"""Most refits behind a law through minima, each of which is a fit."""

_SAME: Final = {"sparsity": 1.0, "flops": 1.0, "context": 2.0}
"""How many times beyond what was measured on a value still counts as measured, unless the law says otherwise."""


@dataclass(frozen=True, kw_only=True)
class RatioOptimum:
    """Where one model's loss is least over r at its FLOPs per token, and how much more it is elsewhere."""

    ratio: float
    """r*, within `span`."""
    log_draws: np.ndarray = field(repr=False)
    """Draws of ln r* [B], NaN where any ratio may be the best; empty where nothing says how sure it is."""
    above: Callable[[float], tuple[float, np.ndarray]] | None = field(repr=False)
    """ln r → nats above the least loss, and likewise in each draw [B]; None where the valley's depth is not known."""
    span: Interval | None = None
    """Smallest and largest ratio that was run, or searched; None where that is not known."""
    law_ratio: float | None = None
    """What the law says where that lies outside of `span`; r* is then held at its end."""

    @property
    def at_end(self) -> bool:
        """Whether r* stands at an end of the ratios that were run, so that a better one may lie beyond."""
        return self.span is not None and (
            self.ratio <= self.span[0] * (1 + 1e-9) or self.ratio >= self.span[1] * (1 - 1e-9)
        )

    def covers(self, ratio: float) -> bool:
        """Whether such a ratio was run, as far as that is known."""
        return self.span is None or self.span[0] * (1 - 1e-3) <= ratio <= self.span[1] * (1 + 1e-3)

    def interval(self, level: float = 0.9) -> Interval | None:
        """Central interval of r*; None without draws, or where too many of them are flat."""
        ends = central(self.log_draws, level)
        return None if ends is None else (float(np.exp(ends[0])), float(np.exp(ends[1])))

    def cost(self, ratio: float, level: float = 0.9) -> tuple[float, Interval | None] | None:
        """Nats that a ratio loses against the best, with the interval; None where the depth is not known.

        Of a ratio that was not run (see `covers`) it is the cost of the nearest that was: the least that it can be.
        """
        if self.above is None:
            return None
        nats, drawn = self.above(self._nearest(ratio))
        return nats, _around(nats, drawn, level)

    def change(self, before: float, after: float, level: float = 0.9) -> tuple[float, Interval | None] | None:
        """Nats that moving from one ratio to another adds, negative where it saves; likewise.

        What would be saved outside of the ratios that were run is not credited, what would be lost there is counted.
        """
        if self.above is None:
            return None
        (start, from_draws), (end, to_draws) = (self.above(float(np.log(ratio))) for ratio in (before, after))
        (near, near_draws), (far, far_draws) = (self.above(self._nearest(ratio)) for ratio in (before, after))
        nats = max(end - start, far - near)
        return nats, _around(nats, np.maximum(to_draws - from_draws, far_draws - near_draws), level)

    def _nearest(self, ratio: float) -> float:
        """ln of the nearest ratio that was run."""
        return float(np.log(ratio if self.span is None else np.clip(ratio, *self.span)))


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
    is_visible: bool = False
    """Whether the runs show a valley: whether the interval of its depth stands above 0, with draws or without."""
    flat: float = 0.0
    """Share of the draws in which any ratio may be the best; they are in neither the law's draws nor the depth's."""
    method: Literal["minima", "shared"] = "minima"
    """minima: the law goes through minima, one a group; shared: the groups share depth and law, because the valley of
    one at least is too faint (see Valley.is_clear and `shared_valley`)."""
    misfit: float | None = None
    """Where they share: the probability of parabolas of their own fitting this much better by chance; None where that
    cannot be tested."""
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
    def flops_convention(self) -> str:
        """How C is counted."""
        return self.law.law.convention if isinstance(self.law, Fit) else self.law.convention

    def covers_dense(self) -> bool:
        """Whether dense models are among its runs."""
        return self.range.get("sparsity", (1.0, 1.0))[0] == 0

    def at(self, flops: float, sparsity: float) -> RatioOptimum:
        """r* and the valley about it of a model of this sparsity, trained with these FLOPs.

        r* is held within the ratios that were run, and so are its draws: beyond them nothing was seen.

        Raises:
            InputError: if flops is not positive, or sparsity not from 0 to below 1.
        """
        law = self.law.law if isinstance(self.law, Fit) else self.law
        columns = {"flops": np.array([flops]), "sparsity": np.array([sparsity])}
        Law(**{**vars(law), "warnings": []}).checked(columns)
        span = self.range.get(_TARGET)
        low, high = (-np.inf, np.inf) if span is None else np.log(span)
        said = float(_log_ratio(law.parameters, flops, sparsity))
        best = float(np.clip(said, low, high))
        drawn = np.zeros(0)
        if isinstance(self.law, Fit) and self.law.draws:
            drawn = np.clip(_log_ratio(self.law.draws, flops, sparsity), low, high)
        n_flat = round(len(drawn) * self.flat / (1 - self.flat)) if self.flat < 1 else 0
        depth, depths = self.depth or 0.0, self.depth_draws

        def above(log_ratio: float) -> tuple[float, np.ndarray]:
            nats = depths * (log_ratio - drawn) ** 2 if len(depths) == len(drawn) else np.zeros(0)
            return depth * (log_ratio - best) ** 2, np.append(nats, np.zeros(n_flat if len(nats) else 0))

        return RatioOptimum(
            ratio=float(np.exp(best)),
            log_draws=np.append(drawn, np.full(n_flat, np.nan)),
            above=above if depth > 0 else None,
            span=span,
            law_ratio=None if abs(said - best) < 1e-6 else float(np.exp(np.clip(said, -700, 700))),
        )

    def interval(self, level: float = 0.9) -> dict[str, Interval]:
        """Intervals of the law's parameters; empty without draws, or where too many of them are flat."""
        if not isinstance(self.law, Fit) or self.flat > (1 - level) / 2:
            return {}
        return self.law.interval(level)

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
            "visible": self.is_visible,
            "flat": self.flat,
            "method": self.method,
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
            interval, misfit = values["depth_interval"], values["misfit"]
            method = values.get("method", "minima" if misfit is None else "shared")
            if method not in ("minima", "shared"):
                raise ValueError(method)
            return cls(
                law=Fit.from_dict(values["allocation"]),
                convention=values["convention"],
                depth=values["depth"],
                depth_interval=None if interval is None else (float(interval[0]), float(interval[1])),
                depth_draws=np.array(values["depth_draws"], dtype=float),
                spread=float(values["spread"]),
                is_visible=bool(values.get("visible", interval is not None and interval[0] > 0)),
                flat=float(values.get("flat", 0.0)),
                method=method,
                misfit=None if misfit is None else float(misfit),
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
    draws: int = 1000,
    seed: int = 0,
    pinned: Mapping[str, float] | None = None,
    convention: str | None = None,
    source: str = "the valleys",
    level: float = 0.9,
) -> BestRatio:
    """The best ratio's law and the depth of the valley about it.

    Where every group has a clear valley of its own (`Valley.is_clear`), the law goes through their minima (see
    `allocation_of`). Where some are too faint for that, all groups share one depth and one law (see `shared_valley`,
    which knows no q).

    Args:
        valleys: of `ratio_valleys`.
        draws: behind the intervals; at most 200 where the law goes through minima, since each is then a refit.
        seed: of the draws of a shared law; refits are to the draws of the valleys.
        pinned: parameters of the law that are given.
        convention: how the ratio was counted; default: as the FLOPs of its runs.
        source: where the runs are from.
        level: of the interval of the depth.

    Raises:
        InputError: if the groups together are a hill, flat or too few, they were counted in several ways, or an
            argument is out of range.
    """
    check_draws(draws, seed)
    named = dict.fromkeys(valley.convention for valley in valleys)
    if len(named) > 1:
        raise InputError(
            f"{source} counts FLOPs by {' and '.join(str(name or 'nothing that is said') for name in named)}; count "
            "all of them one way, or keep the rows of one."
        )
    method: Literal["minima", "shared"] = "shared"
    misfit: float | None = None
    if all(valley.is_clear for valley in valleys):
        method = "minima"
        law, used, flat = allocation_and_draws(valleys, draws=min(draws, _REFITS), pinned=pinned)
        found = pooled(valleys)
        depth, drawn, spread = found.depth, found.draws, found.spread
        interval = found.interval(level)
    else:
        shared = shared_valley(valleys, draws=draws, seed=seed, pinned=pinned)
        if shared.law is None:
            shape = "a hill" if shared.depth <= 0 else "too flat"
            raise InputError(
                f"the {len(valleys)} groups together are {shape} in ln r, so that they show no best ratio."
            )
        law, used, flat, misfit = shared.law, shared.used.tolist(), shared.flat, shared.misfit
        depth, drawn, spread = shared.depth, shared.depth_draws, 1.0
        interval = shared.depth_interval(level)
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
        depth_interval=interval if draws and len(drawn) else None,
        depth_draws=drawn[used] if len(drawn) else drawn,
        spread=spread,
        is_visible=interval is not None and interval[0] > 0,
        flat=flat,
        method=method,
        misfit=misfit,
        range=spans,
        n_valleys=len(valleys),
        n_rows=sum(valley.n_rows for valley in valleys),
        source=source,
    )


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
    values = read_json(path, "allocation file")
    try:
        return BestRatio.from_dict(values if isinstance(values, dict) else {})
    except InputError as error:
        raise InputError(f"allocation file {path}: {error}") from None


def _log_ratio(parameters: Mapping[str, Any], flops: float, sparsity: float) -> Any:
    """ln r* of law allocation, of constants or of draws [B]: r* itself may be beyond what a float can hold."""
    used = np.log1p(-sparsity)
    power = np.asarray(parameters["B"]) * np.exp(np.asarray(parameters["q"]) * used)
    return np.log(parameters["A"]) + np.asarray(parameters["p"]) * used + power * np.log(flops)


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
