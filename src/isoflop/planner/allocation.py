"""Models with a given expert–attention ratio: how much of a token's compute goes to experts, how much to attention.

r = FLOPs of feed-forward or expert layers / FLOPs of attention layers (Li et al. 2026, arXiv 2603.10379, sec. 3). A
model that spends more on experts must spend less on attention: `realise` finds the integer model near a base model that
has the ratio at the same FLOPs per token, by moving one property of attention and the experts' width against each
other. At equal FLOPs a larger ratio also buys parameters, active and idle ones, since attention scores have none (arXiv
2603.21862): `hold` keeps those as well.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from isoflop.errors import InputError
from isoflop.planner.ratio_search import Held, Move, Search, shape_of
from isoflop.spec import Count, DecoderSpec, count


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
            for (name, before), (_, after) in zip(shape_of(self.base), shape_of(self.spec), strict=True)
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
            **dict(shape_of(self.spec)),
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
    keep_heads: bool = False,
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
        keep_heads: whether heads keep their size; with move width their number then moves apart from d_model.

    Raises:
        InputError: if an argument is out of range, or no model comes that near; then the nearest is named.
    """
    held = tuple(hold)
    _check(base, ratio, flops_per_token, move, held, multiple)
    counted = count(base, convention=convention)
    target = counted.flops_per_token["total"] if flops_per_token is None else flops_per_token
    if keep_heads and held:
        raise InputError(f"keep_heads is given with hold {', '.join(held)}, which moves the heads' size; give one.")
    search = Search(base, ratio, target, held, convention, ratio_convention or convention, multiple, keep_heads)
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
