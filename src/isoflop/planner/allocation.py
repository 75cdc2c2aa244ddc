"""Models with a given expert–attention ratio: how much of a token's compute goes to experts, how much to attention.

r = FLOPs of feed-forward or expert layers / FLOPs of attention layers (Li et al. 2026, arXiv 2603.10379, sec. 3). A
model that spends more on experts must spend less on attention: `realise` finds the integer model near a base model that
has the ratio at the same FLOPs per token, by moving one property of attention and the experts' width against each
other. At equal FLOPs a larger ratio also buys parameters, active and idle ones, since attention scores have none (arXiv
2603.21862): `hold` keeps those as well.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal, get_args

from isoflop.errors import InputError
from isoflop.spec import Count, DecoderSpec, count

Move = Literal["width", "heads", "kv_heads", "depth", "context"]
Held = Literal["params_active", "params_total"]

RATIO_TOLERANCE: Final = 0.02
"""Largest deviation of the ratio, as a share of it."""

FLOPS_TOLERANCE: Final = 0.01
"""Largest deviation of FLOPs per token, and of the parameters that are held."""

_REACH: Final = 8.0  # a moved property is tried from the base's divided by this to it times this
_BESIDE: Final = 4  # integers on both sides of the best that are tried


@dataclass(frozen=True, kw_only=True)
class Realised:
    """An integer model with (nearly) the asked ratio and FLOPs per token."""

    spec: DecoderSpec
    base: DecoderSpec
    move: Move
    """What was moved against the experts' width."""
    hold: tuple[Held, ...]
    """Parameters that were kept as well."""
    convention: str
    """How FLOPs are counted."""
    ratio_convention: str
    """How r is counted."""
    asked_ratio: float
    asked_flops_per_token: float

    @cached_property
    def counted(self) -> Count:
        """Of the model, at its own context."""
        return count(self.spec, convention=self.convention)

    @property
    def expert_attention_ratio(self) -> float:
        """r of the model."""
        return count(self.spec, convention=self.ratio_convention).expert_attention_ratio

    @property
    def flops_per_token(self) -> float:
        """Forward FLOPs per token of the model."""
        return self.counted.flops_per_token["total"]

    @cached_property
    def moved(self) -> dict[str, float]:
        """Totals of the model / those of the base: what the ratio bought or cost beside the FLOPs."""
        base = count(self.base, convention=self.convention)
        names = ("params_active", "params_total", "training_flops_per_token")
        return {name: getattr(self.counted, name) / getattr(base, name) for name in names} | {
            "flops_per_token": self.flops_per_token / base.flops_per_token["total"]
        }

    @property
    def sentence(self) -> str:
        """What was moved, and which totals went along."""
        own = "" if self.ratio_convention == self.convention else f" ({self.ratio_convention})"
        return (
            f"r = {self.expert_attention_ratio:.3f}{own} at {self.flops_per_token:,.0f} FLOPs per token "
            f"({self.convention}): {self.changes}."
        )

    @property
    def changes(self) -> str:
        """Properties before and after, and which totals went along."""
        changes = [
            f"{name} {before} → {after}"
            for (name, before), (_, after) in zip(_shape(self.base), _shape(self.spec), strict=True)
            if before != after
        ]
        totals = [f"{name} ×{self.moved[name]:.3f}" for name in ("params_active", "params_total")]
        return f"{', '.join(changes) or 'the base itself'}; {', '.join(totals)}"

    def moved_by(self, convention: str) -> float:
        """Training FLOPs per token of the model / those of the base as another convention counts them."""
        own, base = (count(spec, convention=convention).training_flops_per_token for spec in (self.spec, self.base))
        return own / base

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON, without the specs."""
        return {
            "move": self.move,
            "hold": list(self.hold),
            "convention": self.convention,
            "ratio_convention": self.ratio_convention,
            "asked_ratio": self.asked_ratio,
            "asked_flops_per_token": self.asked_flops_per_token,
            "expert_attention_ratio": self.expert_attention_ratio,
            "flops_per_token": self.flops_per_token,
            "params_active": self.counted.params_active,
            "params_total": self.counted.params_total,
            "sparsity": self.spec.experts.sparsity if self.spec.experts else 0.0,
            "moved": self.moved,
            **dict(_shape(self.spec)),
        }


def realise(
    base: DecoderSpec,
    *,
    ratio: float,
    flops_per_token: float | None = None,
    move: Move = "width",
    hold: Iterable[Held] = (),
    convention: str = "exact",
    ratio_convention: str | None = None,
    multiple: int = 1,
) -> Realised:
    """The model near `base` with this expert–attention ratio, within 2%, and these FLOPs per token, within 1%.

    Depth, heads, context, sparsity and everything else stay as they are in the base, but for what `move` names:

    - width: d_model, with as many heads (their size follows, as in arXiv 2603.10379);
    - heads: their number, with as many queries for each key and value head;
    - kv_heads: key and value heads, of which there can be few;
    - depth: blocks;
    - context: tokens in a sequence, of which attention scores take their share.

    Against it moves the width of the experts (of the feed-forward for a dense model). Where these integers are too
    coarse, the size of heads or (but for width) d_model moves a little beside.

    Args:
        base: the model to start from.
        ratio: r, feed-forward or expert FLOPs / attention FLOPs.
        flops_per_token: forward FLOPs, all of them; default: the base's.
        move: what changes.
        hold: parameters to keep within 1% of the base's: active ones (the heads' size then moves apart from d_model),
            total ones (the number of experts then moves, and with it the sparsity), or both.
        convention: how FLOPs are counted.
        ratio_convention: how the ratio is; default: likewise. A ratio of the literature can so be met at equal FLOPs of
            another convention.
        multiple: d_model and widths of experts are multiples of this.

    Raises:
        InputError: if an argument is out of range, or no model comes that near; then the nearest is named.
    """
    held = tuple(hold)
    _check(base, ratio, flops_per_token, move, held, multiple)
    counted = count(base, convention=convention)
    target = counted.flops_per_token["total"] if flops_per_token is None else flops_per_token
    search = _Search(base, ratio, target, held, convention, ratio_convention or convention, multiple)
    best = min(search.found(move), key=search.rank, default=None)
    if best is None or search.miss(best) > 1:
        raise InputError(search.refusal(best, move))
    return Realised(
        spec=best,
        base=base,
        move=move,
        hold=held,
        convention=convention,
        ratio_convention=search.ratio_convention,
        asked_ratio=ratio,
        asked_flops_per_token=target,
    )


def ratio_sweep(base: DecoderSpec, ratios: Sequence[float], **how: Any) -> list[Realised]:
    """`realise` for each ratio, with the same arguments otherwise.

    Without `hold` at equal FLOPs per token; with hold=("params_active",) at equal active parameters too; with both at
    equal total parameters as well, so that nothing but the allocation differs.
    """
    if not ratios:
        raise InputError("ratios is empty; give at least one.")
    return [realise(base, ratio=ratio, **how) for ratio in ratios]


def _check(
    base: DecoderSpec, ratio: float, flops_per_token: float | None, move: str, hold: tuple[str, ...], multiple: int
) -> None:
    if not 0 < ratio < math.inf:
        raise InputError(f"ratio is {ratio:g}; it must be positive and finite.")
    if flops_per_token is not None and not 0 < flops_per_token < math.inf:
        raise InputError(f"flops_per_token is {flops_per_token:g}; it must be positive and finite.")
    if move not in get_args(Move):
        raise InputError(f"move is {move!r}; allowed: {', '.join(get_args(Move))}.")
    for name in hold:
        if name not in get_args(Held):
            raise InputError(f"hold is {name!r}; allowed: {', '.join(get_args(Held))}.")
    if hold and move != "width":
        raise InputError(f"hold is {', '.join(hold)} with move {move}; parameters can be held with move width alone.")
    if "params_total" in hold and base.experts is None:
        raise InputError("hold is params_total, but a dense model has no idle parameters; hold params_active alone.")
    if multiple < 1:
        raise InputError(f"multiple is {multiple}; it must be a whole number from 1.")


def _shape(spec: DecoderSpec) -> list[tuple[str, int]]:
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
class _Search:
    base: DecoderSpec
    ratio: float
    flops: float
    hold: tuple[Held, ...]
    convention: str
    ratio_convention: str
    multiple: int

    @cached_property
    def counted(self) -> Count:
        return count(self.base, convention=self.convention)

    def ratio_of(self, spec: DecoderSpec) -> float:
        """The model's ratio."""
        return count(spec, convention=self.ratio_convention).expert_attention_ratio

    def miss(self, spec: DecoderSpec) -> float:
        """How far the model is off, 1 being what is allowed."""
        found = count(spec, convention=self.convention)
        off = [
            math.log(self.ratio_of(spec) / self.ratio) / RATIO_TOLERANCE,
            math.log(found.flops_per_token["total"] / self.flops) / FLOPS_TOLERANCE,
            *(math.log(getattr(found, name) / getattr(self.counted, name)) / FLOPS_TOLERANCE for name in self.hold),
        ]
        return max(map(abs, off))

    def rank(self, spec: DecoderSpec) -> tuple[float, float]:
        """What the best model has least of: being off, beyond what is allowed, then an unusual shape."""
        miss = self.miss(spec)
        own, base = spec.attention.width / spec.d_model, self.base.attention.width / self.base.d_model
        odd = abs(math.log(own / base)) + 0.1 * abs(math.log(spec.d_model / self.base.d_model))
        return max(miss, 1.0), odd + 0.02 * min(miss, 1.0)

    def found(self, move: Move) -> Iterator[DecoderSpec]:
        """Models to choose from."""
        if self.hold:
            yield from self._holding()
            return
        tied = move == "width" and self.base.attention.width == self.base.d_model
        nearest = self._near(self._places(move), lambda place: self._at(move, place, tied))
        yield from nearest
        if min(map(self.miss, nearest), default=math.inf) <= 1:
            return
        if tied:
            yield from self._apart()
        elif move in ("heads", "kv_heads", "depth"):
            for spec in nearest:
                yield from self._adjusted(spec)

    def _near(self, places: Sequence[int], at: Any) -> list[DecoderSpec]:
        """The models around the place where the ratio is met, which falls with every place."""
        low, high = 0, len(places) - 1
        while high - low > 1:
            middle = (low + high) // 2
            spec = at(places[middle])
            too_large = spec is not None and self.ratio_of(spec) > self.ratio
            low, high = (middle, high) if too_large else (low, middle)
        around = places[max(0, low - _BESIDE) : high + _BESIDE + 1]
        return [spec for place in around for spec in [at(place)] if spec is not None]

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
        if move == "kv_heads":
            return [k for k in range(1, attention.n_heads + 1) if attention.n_heads % k == 0]
        first, last = max(1, math.ceil(own / _REACH / step)), max(1, math.floor(own * _REACH / step))
        return [step * i for i in range(first, last + 1)]

    def _at(self, move: Move, place: int, tied: bool) -> DecoderSpec | None:
        base, attention = self.base, self.base.attention
        if move == "width":
            head_dim = place // attention.n_heads if tied else attention.head_dim
            return self._fed(replace(base, d_model=place, attention=replace(attention, head_dim=head_dim)))
        if move == "heads":
            each = attention.n_heads // attention.kv_heads
            if place % each:
                return None
            return self._fed(replace(base, attention=replace(attention, n_heads=place, n_kv_heads=place // each)))
        if move == "kv_heads":
            return self._fed(replace(base, attention=replace(attention, n_kv_heads=place)))
        if move == "context":
            return self._fed(replace(base, context=place))
        if base.experts is not None and place <= base.experts.skip_first:
            return None
        return self._fed(replace(base, n_layers=place))

    def _fed(self, spec: DecoderSpec) -> DecoderSpec | None:
        """The model with experts as wide as its FLOPs per token leave room for; None where they leave none."""
        group = self.multiple * (spec.experts.granularity if spec.experts else 1)
        one, two = (
            count(_with_width(spec, group * n), convention=self.convention).flops_per_token["total"] for n in (1, 2)
        )
        units = 1 + (self.flops - one) / (two - one)
        return None if units < 0.5 else _with_width(spec, group * max(1, round(units)))

    def _apart(self) -> Iterator[DecoderSpec]:
        """Heads whose sizes do not follow from d_model, for d_model near the best tied one."""
        attention = self.base.attention
        for d_model in self._widths():
            sizes = [2 * i for i in range(1, 2 * d_model // attention.n_heads + 1)]
            shaped = replace(self.base, d_model=d_model)
            yield from self._near(
                sizes, lambda size, spec=shaped: self._fed(replace(spec, attention=replace(attention, head_dim=size)))
            )

    def _adjusted(self, spec: DecoderSpec) -> Iterator[DecoderSpec]:
        """The model with heads and a d_model up to a fifth larger or smaller."""
        widths = _within_a_fifth(spec.d_model, self.multiple * (1 if self.multiple > 1 else 2))
        for size in _within_a_fifth(spec.attention.head_dim, 2):
            shaped = replace(spec, attention=replace(spec.attention, head_dim=size))
            yield from self._near(widths, lambda width, other=shaped: self._fed(replace(other, d_model=width)))

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
        held = "".join(f", {name} ×{getattr(found, name) / getattr(self.counted, name):.3f}" for name in self.hold)
        return (
            f"{asked} comes within {RATIO_TOLERANCE:.0%} of the ratio and {FLOPS_TOLERANCE:.0%} of the rest; the "
            f"nearest has {self.ratio_of(best):.3g} at {found.flops_per_token['total']:,.0f}{held} "
            f"({', '.join(f'{name} {value}' for name, value in _shape(best))})."
        )


def _within_a_fifth(value: int, step: int) -> list[int]:
    return [step * i for i in range(max(1, math.ceil(value / 1.2 / step)), math.floor(value * 1.2 / step) + 1)]


def _with_width(spec: DecoderSpec, d_ff: int) -> DecoderSpec:
    return replace(spec, feed_forward=replace(spec.feed_forward, d_ff=d_ff))
