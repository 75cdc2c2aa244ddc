"""The integer models near a base model among which one has a given expert–attention ratio and FLOPs per token."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal

from isoflop.spec import AttentionSpec, Count, DecoderSpec, count
from isoflop.spec.count import flops_and_ratio

Move = Literal["width", "heads", "kv_heads", "depth", "context"]
Held = Literal["params_active", "params_total"]

RATIO_TOLERANCE: Final = 0.02
"""Largest deviation of the ratio, as a share of it."""

FLOPS_TOLERANCE: Final = 0.01
"""Largest deviation of FLOPs per token, and of the parameters that are held."""

_REACH: Final = 8.0  # a moved property is tried from the base's divided by this to it times this
_BESIDE: Final = 4  # integers on both sides of the best that are tried
_LOOKED_AT: Final = 128  # places at most that tell what a move reaches


def shape_of(spec: DecoderSpec) -> list[tuple[str, int]]:
    """Name and value of every property that a move can change."""
    attention, experts = spec.attention, spec.experts
    return [
        ("d_model", spec.d_model),
        ("n_layers", spec.n_layers),
        ("n_heads", attention.n_heads),
        ("n_kv_heads", attention.kv_heads),
        ("head_dim", attention.head_dim),
        ("d_expert", spec.d_expert),
        ("n_experts", experts.n_experts if experts else 1),
        ("context", spec.context),
    ]


@dataclass(frozen=True)
class Search:
    """One question: ratio, FLOPs per token and what is held. `keep_heads`: their size stays the base's."""

    base: DecoderSpec
    ratio: float
    flops: float
    hold: tuple[Held, ...]
    convention: str
    ratio_convention: str
    multiple: int
    keep_heads: bool = False
    misses: dict[DecoderSpec, float] = field(default_factory=dict)
    slopes: dict[tuple[int, int, int], float] = field(default_factory=dict)

    @cached_property
    def counted(self) -> Count:
        """Of the base."""
        return count(self.base, convention=self.convention)

    def cost(self, spec: DecoderSpec) -> tuple[float, float]:
        """FLOPs per token and ratio, each by its convention."""
        flops, ratio = flops_and_ratio(spec, convention=self.convention)
        if self.ratio_convention != self.convention:
            _, ratio = flops_and_ratio(spec, convention=self.ratio_convention)
        return flops, ratio

    def miss(self, spec: DecoderSpec) -> float:
        """How far the model is off, 1 being what is allowed."""
        if spec in self.misses:
            return self.misses[spec]
        flops, ratio = self.cost(spec)
        off = [math.log(ratio / self.ratio) / RATIO_TOLERANCE, math.log(flops / self.flops) / FLOPS_TOLERANCE]
        if self.hold:
            found = count(spec, convention=self.convention)
            off += [
                math.log(getattr(found, name) / getattr(self.counted, name)) / FLOPS_TOLERANCE for name in self.hold
            ]
        self.misses[spec] = max(map(abs, off))
        return self.misses[spec]

    def rank(self, spec: DecoderSpec) -> tuple[float, float]:
        """What the best model has least of: being off, beyond what is allowed, then an unusual shape."""
        miss = self.miss(spec)
        own, base = spec.attention.width / spec.d_model, self.base.attention.width / self.base.d_model
        odd = abs(math.log(own / base)) + 0.1 * abs(math.log(spec.d_model / self.base.d_model))
        return max(miss, 1.0), odd + 0.02 * min(miss, 1.0)

    def found(self, move: Move) -> Iterator[DecoderSpec]:
        """Models to choose from, the base first where its widths are the multiples that are asked for."""
        if self.base.d_model % self.multiple == 0 and self.base.d_expert % self.multiple == 0:
            yield self.base
        if self.hold:
            yield from self._holding()
            return
        if move == "width" and self.keep_heads:
            yield from self._counted_heads()
            return
        tied = move == "width" and self.base.attention.width == self.base.d_model
        nearest, _ = self._near(self._places(move), lambda place: self._at(move, place, tied))
        yield from nearest
        if min(map(self.miss, nearest), default=math.inf) <= 1:
            return
        if tied:
            yield from self._apart()
        elif move in ("heads", "kv_heads", "depth"):
            for spec in nearest:
                yield from self._adjusted(spec)

    def _near(self, places: Sequence[int], at: Any, guess: int | None = None) -> tuple[list[DecoderSpec], int]:
        """The models around the place where the ratio is met, which falls with every place; and that place's index.

        A search by halves; about a guess, if there is one, it starts with a step that doubles. No model at a place
        means that attention leaves no FLOPs to experts there.
        """
        low, high, step = 0, len(places) - 1, 1
        while high - low > 1:
            middle = (low + high) // 2 if guess is None else min(max(guess, low + 1), high - 1)
            spec = at(places[middle])
            too_large = spec is not None and self.cost(spec)[1] > self.ratio
            low, high = (middle, high) if too_large else (low, middle)
            if guess is not None:
                turned = (low > 0) and (high < len(places) - 1)
                guess, step = (None, 1) if turned else (middle + (step if too_large else -step), 2 * step)
        around = places[max(0, low - _BESIDE) : high + _BESIDE + 1]
        return [spec for place in around for spec in [at(place)] if spec is not None], low

    def _places(self, move: Move) -> list[int]:
        base, attention = self.base, self.base.attention
        own = {
            "width": base.d_model,
            "heads": attention.n_heads,
            "kv_heads": attention.kv_heads,
            "depth": base.n_layers,
            "context": base.context,
        }[move]
        step = self.multiple if move == "width" else 1
        if move == "width" and attention.width == base.d_model:
            step = math.lcm(2 * attention.n_heads, self.multiple)
        if move == "heads":
            step = attention.n_heads // attention.kv_heads
        if move == "kv_heads":
            return [k for k in range(1, attention.n_heads + 1) if attention.n_heads % k == 0]
        first, last = max(1, math.ceil(own / _REACH / step)), max(1, math.floor(own * _REACH / step))
        if move == "depth" and base.experts is not None:
            first = max(first, base.experts.skip_first + 1)
        return [step * i for i in range(first, last + 1)]

    def _at(self, move: Move, place: int, tied: bool) -> DecoderSpec | None:
        base, attention = self.base, self.base.attention
        if move == "width":
            head_dim = place // attention.n_heads if tied else attention.head_dim
            return self._fed(replace(base, d_model=place, attention=replace(attention, head_dim=head_dim)))
        if move == "heads":
            return self._fed(replace(base, attention=self._with_heads(place)))
        if move == "kv_heads":
            return self._fed(replace(base, attention=replace(attention, n_kv_heads=place)))
        if move == "context":
            return self._fed(replace(base, context=place))
        return self._fed(replace(base, n_layers=place))

    def _with_heads(self, n_heads: int) -> AttentionSpec:
        """The base's attention with so many query heads, and as many for each key and value head."""
        attention = self.base.attention
        return replace(attention, n_heads=n_heads, n_kv_heads=n_heads // (attention.n_heads // attention.kv_heads))

    def _fed(self, spec: DecoderSpec) -> DecoderSpec | None:
        """The model with experts as wide as its FLOPs per token leave room for; None where they leave none."""
        group = self.multiple * (spec.experts.granularity if spec.experts else 1)
        one, _ = flops_and_ratio(_with_width(spec, group), convention=self.convention)
        key = (spec.d_model, spec.n_layers, spec.context)  # heads do not move what a unit of width costs
        if key not in self.slopes:
            self.slopes[key] = flops_and_ratio(_with_width(spec, 2 * group), convention=self.convention)[0] - one
        units = 1 + (self.flops - one) / self.slopes[key]
        return None if units < 0.5 else _with_width(spec, group * max(1, round(units)))

    def _apart(self) -> Iterator[DecoderSpec]:
        """Heads whose sizes do not follow from d_model, for d_model near the best tied one."""
        attention, guess = self.base.attention, None
        for d_model in self._widths():
            sizes = [2 * i for i in range(1, 2 * d_model // attention.n_heads + 1)]
            shaped = replace(self.base, d_model=d_model)
            found, guess = self._near(
                sizes,
                lambda size, spec=shaped: self._fed(replace(spec, attention=replace(attention, head_dim=size))),
                guess,
            )
            yield from found

    def _counted_heads(self) -> Iterator[DecoderSpec]:
        """Heads of the base's size, more or fewer of them, for d_model within a factor of 2.5."""
        places, guess = self._places("heads"), None
        for d_model in self._widths():
            shaped = replace(self.base, d_model=d_model)
            found, guess = self._near(
                places,
                lambda place, spec=shaped: self._fed(replace(spec, attention=self._with_heads(place))),
                guess,
            )
            yield from found

    def _adjusted(self, spec: DecoderSpec) -> Iterator[DecoderSpec]:
        """The model with heads and a d_model up to a fifth larger or smaller; heads as they are where they are kept."""
        widths = _within_a_fifth(spec.d_model, self.multiple * (1 if self.multiple > 1 else 2))
        own = spec.attention.head_dim
        for size in [own] if self.keep_heads else _within_a_fifth(own, 2):
            shaped = replace(spec, attention=replace(spec.attention, head_dim=size))
            yield from self._near(widths, lambda width, other=shaped: self._fed(replace(other, d_model=width)))[0]

    def _widths(self) -> list[int]:
        step = self.multiple * (1 if self.multiple > 1 else 2)
        low, high = self.base.d_model / 2.5, self.base.d_model * 2.5
        widths = [step * i for i in range(max(1, math.ceil(low / step)), math.floor(high / step) + 1)]
        return widths[:: max(1, len(widths) // 96)]

    def _holding(self) -> Iterator[DecoderSpec]:
        """With FLOPs and active parameters scores stay, nearly: d_model moves under heads of about the same width.

        With total parameters alone heads move as they do where nothing is held.
        """
        size = self.base.attention.head_dim
        largest = 1.5 if "params_active" in self.hold else 3
        for d_model in self._widths():
            for head_dim in range(2 * math.ceil(0.3 * size), int(largest * size) + 1, 2):
                spec: DecoderSpec | None = replace(
                    self.base, d_model=d_model, attention=replace(self.base.attention, head_dim=head_dim)
                )
                for _ in range(3 if "params_total" in self.hold else 1):  # idle experts cost router FLOPs
                    spec = spec and self._fed(spec)
                    if spec is not None and "params_total" in self.hold:
                        spec = self._filled(spec)
                if spec is not None:
                    yield spec

    def _filled(self, spec: DecoderSpec) -> DecoderSpec:
        """The model with as many experts as make its total parameters the base's."""
        assert spec.experts is not None
        k, found = spec.experts.top_k, count(spec, convention=self.convention)
        each = spec.feed_forward.n_matrices * spec.d_model * spec.d_expert + spec.d_model
        more = (self.counted.params_total - found.params_total) / (each * spec.n_expert_layers)
        n_experts = max(k, round(spec.experts.n_experts + more))
        return replace(spec, experts=replace(spec.experts, expansion_rate=n_experts / spec.experts.granularity))

    def refusal(self, best: DecoderSpec | None, move: Move) -> str:
        """Why there is no such model, and the nearest."""
        asked = f"ratio is {self.ratio:g} at {self.flops:,.0f} FLOPs per token; no model with move {move}"
        if best is None:
            return f"{asked} leaves room for experts; ask for fewer blocks or more FLOPs."
        found = count(best, convention=self.convention)
        ends = self._reach(move, best)
        known = ends is not None and not ends[0] <= self.ratio <= ends[1]
        reach = f"; models like this one reach ratios from {ends[0]:.3g} to {ends[1]:.3g}" if ends and known else ""
        held = "".join(f", {name} ×{getattr(found, name) / getattr(self.counted, name):.3f}" for name in self.hold)
        return (
            f"{asked} comes within {RATIO_TOLERANCE:.0%} of the ratio and {FLOPS_TOLERANCE:.0%} of the rest; the "
            f"nearest has {self.cost(best)[1]:.3g} at {found.flops_per_token['total']:,.0f}{held} "
            f"({', '.join(f'{name} {value}' for name, value in shape_of(best))}){reach}."
        )

    def _reach(self, move: Move, best: DecoderSpec) -> tuple[float, float] | None:
        """The smallest and the largest ratio at these FLOPs that the move, or the nearest model, comes to.

        None where integers are too coarse for these to be ends.
        """
        if self.hold:
            return None
        tied = move == "width" and self.base.attention.width == self.base.d_model
        places = self._places(move)
        looked_at = [*places[:: max(1, len(places) // _LOOKED_AT)], *places[-1:]]
        specs = [best, *(self._at(move, place, tied) for place in looked_at)]
        ratios = [self.cost(spec)[1] for spec in specs if spec is not None and self._affords(spec)]
        return (min(ratios), max(ratios)) if len(ratios) > _BESIDE else None

    def _affords(self, spec: DecoderSpec) -> bool:
        """Whether a model has about the FLOPs that are asked for."""
        return abs(math.log(self.cost(spec)[0] / self.flops)) <= 10 * FLOPS_TOLERANCE


def _within_a_fifth(value: int, step: int) -> list[int]:
    return [step * i for i in range(max(1, math.ceil(value / 1.2 / step)), math.floor(value * 1.2 / step) + 1)]


def _with_width(spec: DecoderSpec, d_ff: int) -> DecoderSpec:
    return replace(spec, feed_forward=replace(spec.feed_forward, d_ff=d_ff))
