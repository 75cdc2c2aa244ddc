"""Decoder-only Transformer.

Shapes: B batch, T tokens in a sequence, D d_model, V vocabulary, h head size, X routed experts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isoflop.errors import InputError
from isoflop.nn._init import gain, truncated_normal
from isoflop.nn._memory import keep_freed_memory
from isoflop.nn.block import Block, Place
from isoflop.nn.cache import KVCache
from isoflop.nn.depth import UNSET, DepthRouter
from isoflop.nn.linear import linear
from isoflop.nn.moe import MoE
from isoflop.nn.rotary import rotary_tables
from isoflop.nn.statistics import DepthStatistics, ExpertStatistics
from isoflop.spec import DecoderSpec

ExpertChoiceMode = Literal["grouped", "threshold"]
DepthChoiceMode = Literal["top_k", "causal"]
Decisions = Literal["trained", "sampled"]


@dataclass(frozen=True)
class DecoderOutput:
    """What a forward pass returns."""

    logits_BTV: Tensor
    """Unnormalised log-probabilities of the next token."""
    experts: tuple[ExpertStatistics, ...]
    """One per MoE block, in order; empty for a dense model, and while sampling (with a cache, without gradients)."""
    depth: tuple[DepthStatistics, ...] = ()
    """One per depth-routed block, in order."""

    @property
    def auxiliary_loss(self) -> Tensor:
        """Sum of the blocks' weighted auxiliary losses, a 0-d tensor; 0 for a dense model."""
        losses = [*(block.auxiliary_loss for block in self.experts), *(block.auxiliary_loss for block in self.depth)]
        return torch.stack(losses).sum() if losses else self.logits_BTV.new_zeros(())


class Decoder(nn.Module):
    """The decoder-only Transformer of a spec: tokens [B, T] → logits [B, T, V].

    Pre-norm RMSNorm blocks with rotary grouped-query attention and a dense or fine-grained MoE feed-forward, a final
    RMSNorm and a head. No biases; parameters number exactly `isoflop.spec.count(spec).params_total` plus
    `.params_embedding`.

    Init: truncated normal (cut at 2 std) with std = sqrt(init_scale / fan_in); the second matrix of a feed-forward or
    expert takes fan_in = d_ff; matrices that write to the residual stream, and the gain of an MoE output norm, are
    divided by sqrt(2·n_layers) (Radford et al. 2019). Embedding std: sqrt(init_scale), so the residual stream starts
    as large as each block's input; d_model^−0.5 if tied, so that logits start with unit variance. The same seed gives
    the same weights on every device.

    On the CPU, building a model also tells glibc's allocator to keep freed memory (`keep_freed_memory`).
    """

    def __init__(
        self,
        spec: DecoderSpec,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        keep_freed_memory()
        self.spec = spec
        self.activation_checkpointing = False
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self._expert_choice: ExpertChoiceMode = "grouped"
        self._depth_choice: DepthChoiceMode = "top_k"
        generator = torch.Generator().manual_seed(seed)
        std = spec.d_model**-0.5 if spec.tied_head else math.sqrt(spec.init_scale)
        self.embedding_VD = truncated_normal(
            spec.vocab_size, spec.d_model, std=std, generator=generator, device=device, dtype=dtype
        )
        self.blocks = nn.ModuleList(
            Block(spec, layer, generator=generator, device=device, dtype=dtype) for layer in range(spec.n_layers)
        )
        self.final_gain = gain(spec.d_model, 1.0, device, dtype)
        if not spec.tied_head:
            self.head_VD = truncated_normal(
                spec.vocab_size,
                spec.d_model,
                std=math.sqrt(spec.init_scale / spec.d_model),
                generator=generator,
                device=device,
                dtype=dtype,
            )
        self._rotary: tuple[Tensor, Tensor] | None = None

    def forward(self, tokens_BT: Tensor, *, cache: KVCache | None = None, last_only: bool = False) -> DecoderOutput:
        """Return next-token logits for every position; with a cache, `tokens_BT` follow the cached ones.

        With `last_only` the logits are those of the last position alone, [B, 1, V], which is all that sampling needs.

        Raises InputError if T exceeds the context (or the cache), or if a model whose tokens compete for experts or for
        depth is given a cache while it decides as in training.
        """
        length = tokens_BT.shape[1]
        if cache is None and length > self.spec.context:
            raise InputError(f"tokens_BT has {length} tokens a sequence; the model's context is {self.spec.context}.")
        place = self._place(tokens_BT, cache)
        x_BTD = F.embedding(tokens_BT, self.embedding_VD)
        experts, depth = [], []
        recompute = self.activation_checkpointing and torch.is_grad_enabled() and cache is None
        for block in self.blocks:
            if recompute:
                x_BTD, of_experts, of_depth = checkpoint(
                    block, x_BTD, place, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x_BTD, of_experts, of_depth = block(x_BTD, place)
            if of_experts is not None:
                experts.append(of_experts)
            if of_depth is not None:
                depth.append(of_depth)
        if cache is not None:
            cache.length += length
        if last_only:
            x_BTD = x_BTD[:, -1:]
        return DecoderOutput(self.head(x_BTD), tuple(experts), tuple(depth))

    def _place(self, tokens_BT: Tensor, cache: KVCache | None) -> Place:
        batch, length = tokens_BT.shape
        cos, sin = self.rotary(tokens_BT.device)
        if cache is None:
            draws_BT = self._draws(tokens_BT, None)
            return Place((cos[:length], sin[:length]), draws_BT=draws_BT)
        cache.check(batch, length)
        if self._chooses_in_group:
            raise InputError(
                "expert_choice is 'grouped', which needs whole sequences; to sample set model.decisions = 'sampled' "
                "(a model that was never calibrated wants calibrate_thresholds first)."
            )
        if self._looks_ahead:
            raise InputError(
                "depth_choice is 'top_k', which needs whole sequences; to sample set model.decisions = 'sampled' (a "
                "model that was never calibrated wants calibrate_thresholds first)."
            )
        positions = cache.positions(length)
        return Place(
            (cos[positions], sin[positions]),
            cache,
            cache.mask(length),
            draws_BT=self._draws(tokens_BT, positions),
            positions=positions,
            real_BT=cache.real(length),
        )

    def _draws(self, tokens_BT: Tensor, positions: Tensor | None) -> Tensor | None:
        routing = self.spec.depth_routing
        if routing is None or routing.router != "stochastic":
            return None
        if positions is None:
            positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        return positions * self.spec.vocab_size + tokens_BT

    def head(self, x_BTD: Tensor) -> Tensor:
        """Return the logits of a residual stream."""
        normed_BTD = F.rms_norm(x_BTD, x_BTD.shape[-1:], self.final_gain, self.spec.norm_eps)
        return linear(normed_BTD, self.embedding_VD if self.spec.tied_head else self.head_VD)

    def rotary(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cos and sin of all positions of the context, [context, 1, h]."""
        if torch.is_inference_mode_enabled():
            # A table made there could never be part of a later backward pass.
            with torch.inference_mode(False):
                return self.rotary(device)
        dtype = self.embedding_VD.dtype
        if self._rotary is None or self._rotary[0].device != device or self._rotary[0].dtype != dtype:
            attention = self.spec.attention
            positions = torch.arange(self.spec.context, device=device)
            cos, sin = rotary_tables(positions, attention.head_dim, attention.rope_theta, dtype)
            self._rotary = cos[:, None], sin[:, None]
        return self._rotary

    @property
    def moe_layers(self) -> tuple[MoE, ...]:
        """The MoE layers, in order."""
        return tuple(block.feed_forward for block in self.blocks if isinstance(block.feed_forward, MoE))

    @property
    def expert_choice(self) -> ExpertChoiceMode:
        """How experts choose tokens: `grouped` as in training, or `threshold` as in sampling (causal, any batch).

        Without effect on dense and token-choice models. Setting `threshold` raises InputError unless the thresholds
        were calibrated (`calibrate_thresholds`).
        """
        return self._expert_choice

    @expert_choice.setter
    def expert_choice(self, mode: ExpertChoiceMode) -> None:
        if mode not in get_args(ExpertChoiceMode):
            raise InputError(f"expert_choice is {mode!r}; allowed: {', '.join(get_args(ExpertChoiceMode))}.")
        routers = [layer.router for layer in self.moe_layers if layer.router.is_expert_choice]
        if mode == "threshold" and not all(router.is_calibrated() for router in routers):
            raise InputError(
                "expert_choice is 'threshold' but this model's thresholds are unset; run calibrate_thresholds first."
            )
        self._expert_choice = mode
        for router in routers:
            router.by_threshold = mode == "threshold"

    @property
    def depth_routers(self) -> tuple[DepthRouter, ...]:
        """The depth routers, in order."""
        return tuple(block.depth_router for block in self.blocks if isinstance(block.depth_router, DepthRouter))

    @property
    def depth_choice(self) -> DepthChoiceMode:
        """How routed blocks choose tokens: `top_k` of the sequence as in training, or `causal` as in sampling.

        Without effect on a model without depth routing. Setting `causal` raises InputError where it needs thresholds
        that were never calibrated (`calibrate_thresholds`).
        """
        return self._depth_choice

    @depth_choice.setter
    def depth_choice(self, mode: DepthChoiceMode) -> None:
        if mode not in get_args(DepthChoiceMode):
            raise InputError(f"depth_choice is {mode!r}; allowed: {', '.join(get_args(DepthChoiceMode))}.")
        if mode == "causal" and not all(router.is_calibrated() for router in self.depth_routers):
            raise InputError(UNSET)
        self._depth_choice = mode
        for router in self.depth_routers:
            router.by_threshold = mode == "causal"

    @property
    def decisions(self) -> Decisions:
        """`sampled` if experts and depth routers decide token by token, as in sampling; else `trained`.

        Setting it sets `expert_choice` and `depth_choice`, which see.
        """
        return "sampled" if (self._expert_choice, self._depth_choice) == ("threshold", "causal") else "trained"

    @decisions.setter
    def decisions(self, mode: Decisions) -> None:
        if mode not in get_args(Decisions):
            raise InputError(f"decisions is {mode!r}; allowed: {', '.join(get_args(Decisions))}.")
        self.expert_choice = "threshold" if mode == "sampled" else "grouped"
        self.depth_choice = "causal" if mode == "sampled" else "top_k"

    @property
    def decides_token_by_token(self) -> bool:
        """Whether no token competes with others for experts or for depth, so that a cache may be used."""
        return not (self._chooses_in_group or self._looks_ahead)

    @property
    def needs_calibration(self) -> bool:
        """Whether sampling uses thresholds that `calibrate_thresholds` sets."""
        learned = any(router.is_learned for router in self.depth_routers)
        return learned or any(layer.router.is_expert_choice for layer in self.moe_layers)

    def set_depth_capacity(self, capacity: float | None) -> None:
        """The dial of sampling: let every routed block compute about this share of the tokens; None: as trained.

        Thresholds are read from the quantiles of the scores that `calibrate_thresholds` stored; they were taken at the
        capacity of training, so that the share that is really computed differs (`DepthStatistics.kept_share`).

        Raises InputError if capacity is not in (0, 1], the model has no depth routing or was never calibrated.
        """
        if not self.depth_routers:
            raise InputError(f"depth capacity is {capacity}, but the model has no depth routing.")
        if isinstance(capacity, (int, float)) and 0 < capacity * self.spec.context < 1:
            raise InputError(
                f"depth capacity is {capacity:g}, which keeps no token of a context of {self.spec.context}; it must be "
                f"at least 1/{self.spec.context}."
            )
        for router in self.depth_routers:
            router.set_capacity(capacity)

    @property
    def _looks_ahead(self) -> bool:
        routing = self.spec.depth_routing
        return routing is not None and not routing.is_causal and self._depth_choice == "top_k"

    @property
    def _chooses_in_group(self) -> bool:
        return self._expert_choice == "grouped" and any(layer.router.is_expert_choice for layer in self.moe_layers)

    def update_router_bias(self, experts: Sequence[ExpertStatistics]) -> None:
        """Move the loss-free balancing bias after an optimiser step; no-op unless balance is `bias`."""
        for layer, statistics in zip(self.moe_layers, experts, strict=True):
            layer.router.update_bias(statistics.load_X)
