"""Depth routing: which tokens of a sequence a block computes (Raposo et al. 2024, arXiv 2404.02258).

Shapes: B sequences, T tokens in a sequence, D d_model, C kept tokens of a sequence, A sequences with a kept token,
M = A·C kept rows, Q quantiles, P width of the predictor.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import InputError
from isoflop.nn._init import truncated_normal
from isoflop.nn.statistics import DepthStatistics
from isoflop.spec import DepthRoutingSpec

N_QUANTILES: Final = 1025
"""Points of the stored distribution of scores, from which a threshold for any capacity is read."""

UNSET: Final = "depth_choice is 'causal' but this model's depth thresholds are unset; run calibrate_thresholds first."


@dataclass(frozen=True)
class Kept:
    """The tokens that a routed block computes, as rows of x [B·T, D]; A·C of them, by sequence, then by position."""

    rows_M: Tensor
    """Row of each kept token. Sequences that keep fewer than C tokens are filled up with tokens that are not kept."""
    places_AC: Tensor
    """Place of each in its sequence's new tokens."""
    sequences: list[int] | None
    """The A sequences; None: all."""
    counts: list[int] | None
    """Kept tokens of each of the A sequences; None: C everywhere."""
    real_AC: Tensor | None
    """False where a row only fills up; None: all are real."""
    gates_M1: Tensor | None
    """Factor on each update, float32; None: 1, where nothing only fills up."""
    statistics: DepthStatistics
    """Kept share, agreement, scale of the scores and auxiliary loss."""


class DepthRouter(nn.Module):
    """Decides which tokens take part in one block, in float32 also under autocast.

    **As trained** (`by_threshold` false) the C = ceil(capacity·T) tokens with the highest scores of each sequence take
    part: static shapes, but the choice looks at later tokens. **As sampled** (`by_threshold`) a token takes part iff
    its own score exceeds a threshold, so a sequence may keep more or fewer than C.

    **learned.** score = w · rmsnorm(x); the norm has no gain, and makes the score independent of the stream's scale.
    How it is sampled: see `DepthRoutingSpec.sampled_by`. **stochastic.** A hash of block, position and token id,
    uniform in [0, 1): independent of what the model computes, and the same in training and sampling. **fixed.** The
    tokens at positions floor(j / capacity), j = 0, 1, …; causal by itself.
    """

    threshold: Tensor
    quantiles_Q: Tensor

    def __init__(
        self,
        d_model: int,
        spec: DepthRoutingSpec,
        *,
        layer: int,
        norm_eps: float = 1e-6,
        init_scale: float = 1.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.layer = layer
        self.norm_eps = norm_eps
        self.by_threshold = False
        self.sampling_capacity = spec.capacity
        """The share that stochastic and fixed routers keep as sampled."""
        wide = torch.promote_types(dtype, torch.float32)
        if spec.router != "learned":
            return
        std = math.sqrt(init_scale / d_model)
        self.w_1D = truncated_normal(1, d_model, std=std, generator=generator, device=device, dtype=wide)
        if spec.has_predictor:
            hidden = spec.hidden_width(d_model)
            self.predictor_up_PD = truncated_normal(
                hidden, d_model, std=std, generator=generator, device=device, dtype=wide
            )
            self.predictor_down_1P = truncated_normal(
                1, hidden, std=math.sqrt(init_scale / hidden), generator=generator, device=device, dtype=wide
            )
        start = -math.inf if spec.capacity == 1 else math.nan if spec.sampled_by == "threshold" else 0.0
        self.register_buffer("threshold", torch.full((), start, dtype=wide, device=device))
        self.register_buffer("quantiles_Q", torch.full((N_QUANTILES,), math.nan, dtype=wide, device=device))

    @property
    def is_learned(self) -> bool:
        """Whether scores depend on the stream."""
        return self.spec.router == "learned"

    def is_calibrated(self) -> bool:
        """Whether the rule that sampling uses is there."""
        return not self.is_learned or not bool(self.threshold.isnan())

    def set_capacity(self, capacity: float | None) -> None:
        """Keep about this share of the tokens as sampled, by stored quantiles of calibration text; None: as trained.

        Raises InputError if capacity is not in (0, 1] or a learned router was never calibrated.
        """
        if capacity is None:
            if self.is_learned and self.spec.sampled_by != "threshold" and self.spec.capacity < 1:
                self.threshold.zero_()
                return
            capacity = self.spec.capacity
        if isinstance(capacity, bool) or not isinstance(capacity, (int, float)) or not 0 < capacity <= 1:
            raise InputError(f"depth capacity is {capacity!r}; it must be a number greater than 0 and at most 1.")
        self.sampling_capacity = capacity
        if not self.is_learned:
            return
        if bool(self.quantiles_Q.isnan().any()):
            raise InputError(f"depth capacity is {capacity}; it needs a calibrated model: run calibrate_thresholds.")
        if capacity == 1:
            self.threshold.fill_(-math.inf)
            return
        place = (1 - capacity) * (N_QUANTILES - 1)
        low = min(int(place), N_QUANTILES - 2)
        self.threshold.copy_(torch.lerp(self.quantiles_Q[low], self.quantiles_Q[low + 1], place - low))

    def calibrate(self, decisions_N: Tensor) -> None:
        """Store the quantiles of what the rule looks at, and set the threshold of `sampled_by: threshold`."""
        self.quantiles_Q.copy_(_dividing(decisions_N, N_QUANTILES))
        if self.spec.sampled_by == "threshold":
            self.set_capacity(self.spec.capacity)

    def scores(self, x_BTD: Tensor, draws_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the scores that rank tokens, and what the sampling rule looks at; each [B, T], float32 or wider.

        `draws_BT`: position · V + token id of each token; a stochastic router hashes it.
        """
        if not self.is_learned:
            assert draws_BT is not None
            score_BT = _uniform(draws_BT, self.layer)
            return score_BT, score_BT
        if torch.is_autocast_enabled(x_BTD.device.type):
            with torch.autocast(x_BTD.device.type, enabled=False):
                return self.scores(x_BTD, draws_BT)
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        normed_BTD = F.rms_norm(x_BTD.to(wide), x_BTD.shape[-1:], eps=self.norm_eps)
        score_BT = _dot(normed_BTD, self.w_1D.to(wide))
        if not self.spec.has_predictor:
            return score_BT, score_BT
        hidden_BTP = F.silu(F.linear(normed_BTD.detach(), self.predictor_up_PD.to(wide)))
        return score_BT, _dot(hidden_BTP, self.predictor_down_1P.to(wide))

    def forward(
        self,
        x_BTD: Tensor,
        *,
        draws_BT: Tensor | None = None,
        positions: Tensor | None = None,
        real_BT: Tensor | None = None,
        ragged: bool = False,
    ) -> Kept:
        """Choose tokens.

        `positions`: [T] or [B, T], default 0 to T−1 (only a fixed router looks). `real_BT`: False for padding, which is
        never kept. `ragged`: leave out sequences that keep nothing, as a cache allows.
        """
        batch, length = x_BTD.shape[:2]
        if self.spec.router == "fixed":
            return self._fixed(x_BTD, positions, real_BT, ragged)
        score_BT, decision_BT = self.scores(x_BTD, draws_BT)
        if self.by_threshold:
            if ragged and length == 1 and not torch.is_grad_enabled():
                return self._next(score_BT, decision_BT, real_BT)
            with torch.no_grad():
                keep_BT = self._above(decision_BT)
                agreement = torch.full((), math.nan, device=x_BTD.device)
                if not ragged:
                    member_BT = self._members(score_BT, self._best(score_BT, length))
                    agreement = (keep_BT == member_BT).to(score_BT.dtype).mean()
                if real_BT is not None:
                    keep_BT = keep_BT & real_BT
            return self._kept(keep_BT, score_BT, agreement, ragged)
        with torch.no_grad():
            best_BC = self._best(score_BT, length)
            rows_M = (best_BC + torch.arange(batch, device=best_BC.device)[:, None] * length).view(-1)
        gates_M1 = None
        auxiliary_loss = score_BT.new_zeros(())
        agreement = score_BT.new_full((), math.nan)
        if self.is_learned:
            gates_M1 = self.gate(score_BT.reshape(-1).index_select(0, rows_M))[:, None]
            member_BT = self._members(score_BT, best_BC)
            agreement = (self._above(decision_BT) == member_BT).to(score_BT.dtype).mean()
            agreement = torch.where(self.threshold.isnan(), math.nan, agreement)
            if self.spec.sampled_by != "threshold" and self.spec.auxiliary_weight:
                target_BT = member_BT.to(decision_BT.dtype)
                bce = F.binary_cross_entropy_with_logits(decision_BT, target_BT)
                auxiliary_loss = self.spec.auxiliary_weight * bce
        share = score_BT.new_full((), best_BC.shape[1] / length)
        statistics = DepthStatistics(share, agreement.detach(), score_BT.detach().std(correction=0), auxiliary_loss)
        return Kept(rows_M, best_BC, None, None, None, gates_M1, statistics)

    def _above(self, decision_BT: Tensor) -> Tensor:
        if self.is_learned:
            return decision_BT > self.threshold
        return decision_BT >= 1 - self.sampling_capacity

    def _best(self, score_BT: Tensor, length: int) -> Tensor:
        return score_BT.topk(self.spec.n_kept(length), sorted=False).indices.sort().values

    @staticmethod
    @torch.no_grad()
    def _members(score_BT: Tensor, best_BC: Tensor) -> Tensor:
        return torch.zeros_like(score_BT, dtype=torch.bool).scatter_(1, best_BC, True)

    def gate(self, score: Tensor) -> Tensor:
        """What a kept token's update is multiplied by, from its score."""
        return score if self.spec.gate == "raw" else 2 * score.sigmoid()

    def _fixed(self, x_BTD: Tensor, positions: Tensor | None, real_BT: Tensor | None, ragged: bool) -> Kept:
        batch, length = x_BTD.shape[:2]
        capacity = self.sampling_capacity if self.by_threshold else self.spec.capacity
        nothing = torch.full((), math.nan, device=x_BTD.device)
        if positions is None and real_BT is None:
            places = [place for place in range(length) if _is_fixed(place, capacity)]
            places_BC = torch.tensor(places, device=x_BTD.device).expand(batch, -1)
            rows_M = (places_BC + torch.arange(batch, device=x_BTD.device)[:, None] * length).reshape(-1)
            share = nothing.new_full((), len(places) / length)
            statistics = DepthStatistics(share, nothing.new_ones(()), nothing, nothing.new_zeros(()))
            return Kept(rows_M, places_BC, None, None, None, None, statistics)
        assert positions is not None
        wanted = [[_is_fixed(place, capacity) for place in row] for row in positions.view(-1, length).tolist()]
        keep_BT = torch.tensor(wanted, device=x_BTD.device).expand(batch, length)
        keep_BT = keep_BT if real_BT is None else keep_BT & real_BT
        return self._kept(keep_BT, None, nothing.new_ones(()), ragged)

    def _next(self, score_B1: Tensor, decision_B1: Tensor, real_B1: Tensor | None) -> Kept:
        """`_kept` for one new token of each sequence, in fewer operations, which are all that passing by costs."""
        keep_B1 = self._above(decision_B1)
        if real_B1 is not None:
            keep_B1 = keep_B1 & real_B1
        batch = keep_B1.shape[0]
        rows_A = keep_B1.nonzero()[:, 0]
        sequences: list[int] = rows_A.tolist()
        nothing = score_B1.new_full((), math.nan)
        share = score_B1.new_full((), len(sequences) / batch)
        return Kept(
            rows_A,
            rows_A.new_zeros(len(sequences), 1),
            None if len(sequences) == batch else sequences,
            [1] * len(sequences),
            None,
            self.gate(score_B1.index_select(0, rows_A)) if self.is_learned and sequences else None,
            DepthStatistics(share, nothing, nothing, score_B1.new_zeros(())),
        )

    def _kept(self, keep_BT: Tensor, score_BT: Tensor | None, agreement: Tensor, ragged: bool) -> Kept:
        """From a decision for each token to rows; as many of each sequence as of the one that keeps most."""
        batch, length = keep_BT.shape
        counts: list[int] = keep_BT.sum(1).tolist()
        sequences = [index for index in range(batch) if counts[index]] if ragged else list(range(batch))
        n_most = max((counts[index] for index in sequences), default=0) if ragged else max([1, *counts])
        chosen_A = torch.tensor(sequences, dtype=torch.int64, device=keep_BT.device)
        keep_AT = keep_BT if len(sequences) == batch else keep_BT.index_select(0, chosen_A)
        # kept tokens first, each group in order of position
        places_AC = keep_AT.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :n_most]
        real_AC = keep_AT.gather(1, places_AC)
        rows_M = (places_AC + chosen_A[:, None] * length).reshape(-1)
        gates_M1 = real_AC.reshape(-1, 1).to(torch.float32)
        if score_BT is not None and self.is_learned:
            gates_M1 = self.gate(score_BT.reshape(-1).index_select(0, rows_M))[:, None] * gates_M1
        scale = agreement.new_full((), math.nan) if score_BT is None or ragged else score_BT.detach().std(correction=0)
        share = keep_BT.to(torch.float32).mean()
        statistics = DepthStatistics(share, agreement, scale, share.new_zeros(()))
        return Kept(
            rows_M,
            places_AC,
            None if len(sequences) == batch else sequences,
            [counts[index] for index in sequences],
            real_AC,
            gates_M1,
            statistics,
        )


def _dividing(values_N: Tensor, n: int) -> Tensor:
    """Numbers [n] that the shares 0, 1/(n−1), …, 1 of the values do not exceed, each halfway between two values.

    Many values can be equal up to rounding (those of the first block depend on the token alone): a number that is one
    of them would divide equal values by their rounding. So each stands in a gap, the widest close to its place, and
    where there is none in the nearest one.
    """
    wide = torch.float64 if values_N.device.type != "mps" else torch.float32
    ranked_N = values_N.to(wide).sort().values
    count = ranked_N.shape[0]
    spread = ranked_N.std(correction=0).clamp_min(1e-12 + 1e-6 * ranked_N.abs().max())
    ends = torch.stack((ranked_N[0] - 1e-3 * spread, ranked_N[-1] + 1e-3 * spread))
    padded_M = torch.cat((ends[:1], ranked_N, ends[1:]))
    gaps_M = padded_M.diff()  # gap i has i values below it
    middles_M = padded_M[:-1] + gaps_M / 2
    places_Q = torch.linspace(0, count, n, dtype=wide, device=ranked_N.device).round().long()
    reach = max(1, count // (2 * n))
    near_QW = (places_Q[:, None] + torch.arange(-reach, reach + 1, device=ranked_N.device)).clamp(0, count)
    best_Q = near_QW.gather(1, gaps_M[near_QW].argmax(1, keepdim=True))[:, 0]
    best_Q[0], best_Q[-1] = 0, count  # all above, none above
    open_K = (gaps_M > _ROUNDING * spread).nonzero()[:, 0]
    above_Q = open_K[torch.searchsorted(open_K, places_Q).clamp_max(open_K.shape[0] - 1)]
    below_Q = open_K[(torch.searchsorted(open_K, places_Q, right=True) - 1).clamp_min(0)]
    closest_Q = torch.where((above_Q - places_Q).abs() < (places_Q - below_Q).abs(), above_Q, below_Q)
    return middles_M[torch.where(gaps_M[best_Q] > _ROUNDING * spread, best_Q, closest_Q)]


def _dot(x: Tensor, w_1D: Tensor) -> Tensor:
    """x·w, [..., D] → [...]; a matrix–vector product while sampling, which is faster for a few rows."""
    return F.linear(x, w_1D)[..., 0] if torch.is_grad_enabled() else x @ w_1D[0]


def _is_fixed(position: int, capacity: float) -> bool:
    """Whether fixed routing keeps a position: of the first n positions it keeps ceil(capacity · n), whatever n."""
    return math.ceil(capacity * (position + 1) - 1e-9) > math.ceil(capacity * position - 1e-9)


def _uniform(draws_BT: Tensor, layer: int) -> Tensor:
    """A hash of each draw and the block, as float32 in [0, 1) (the finaliser of splitmix64, Steele et al. 2014)."""
    bits = draws_BT.to(torch.int64) * 64 + (layer + 1) * 0x1E3779B97F4A7C15 % 2**62
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB)):
        bits = (bits ^ (bits & _MASK) >> shift) * factor
    bits = bits ^ (bits & _MASK) >> 31
    return (bits & (2**24 - 1)).to(torch.float32) / 2**24


_MASK: Final = 2**63 - 1
_ROUNDING: Final = 2e-6  # of the spread of scores; gaps below it may be rounding alone
_FEW: Final = 256  # rows; for more, PyTorch's index_add is the slower one on the CPU


def through(x_BTD: Tensor, kept: Kept, update: Callable[[Tensor], Tensor]) -> Tensor:
    """Return x with what `update` gives for the kept tokens, [A, C, D] → [A, C, D], times the gate, added to them."""
    shape = x_BTD.shape
    stream_ND, x_MD = take(x_BTD.reshape(-1, shape[-1]), kept.rows_M)
    update_MD = update(x_MD.view(*kept.places_AC.shape, shape[-1])).reshape(-1, shape[-1])
    if kept.gates_M1 is not None:
        update_MD = update_MD * kept.gates_M1.to(update_MD.dtype)
    return give(stream_ND, kept.rows_M, update_MD).view(shape)


def take(x_ND: Tensor, rows_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return x itself and its rows; the pair's gradient is one copy, without a scatter-add (rows are distinct)."""
    if not torch.is_grad_enabled():
        return x_ND, x_ND.index_select(0, rows_M)
    stream, kept = _Take.apply(x_ND, rows_M)
    return stream, kept


def give(x_ND: Tensor, rows_M: Tensor, update_MD: Tensor) -> Tensor:
    """Return x with `update_MD` added to its (distinct) rows."""
    if not torch.is_grad_enabled():
        return _with_added(x_ND, rows_M, update_MD)
    out: Tensor = _Give.apply(x_ND, rows_M, update_MD)
    return out


def _with_added(x_ND: Tensor, rows_M: Tensor, update_MD: Tensor) -> Tensor:
    if x_ND.shape[0] <= _FEW and not torch.is_grad_enabled():
        return x_ND.index_add(0, rows_M, update_MD.to(x_ND.dtype))
    out_ND = x_ND.clone()
    out_ND[rows_M] = x_ND.index_select(0, rows_M) + update_MD.to(x_ND.dtype)
    return out_ND


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, rows_M: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows_M)
        return x_ND.view_as(x_ND), x_ND.index_select(0, rows_M)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (rows_M,) = ctx.saved_tensors
        stream_ND, kept_MD = gradients
        return _with_added(stream_ND, rows_M, kept_MD), None


class _Give(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, rows_M: Tensor, update_MD: Tensor) -> Tensor:
        ctx.save_for_backward(rows_M)
        ctx.dtype = update_MD.dtype
        return _with_added(x_ND, rows_M, update_MD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:
        (rows_M,) = ctx.saved_tensors
        return gradients[0], None, gradients[0].index_select(0, rows_M).to(ctx.dtype)
