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
from isoflop.nn.attention import Attention
from isoflop.nn.cache import KVCache
from isoflop.nn.feed_forward import FeedForward
from isoflop.nn.moe import MoE
from isoflop.nn.rotary import rotary_tables
from isoflop.nn.statistics import ExpertStatistics
from isoflop.spec import DecoderSpec

ExpertChoiceMode = Literal["grouped", "threshold"]


@dataclass(frozen=True)
class DecoderOutput:
    """What a forward pass returns."""

    logits_BTV: Tensor
    """Unnormalised log-probabilities of the next token."""
    experts: tuple[ExpertStatistics, ...]
    """One per MoE block, in order; empty for a dense model."""

    @property
    def auxiliary_loss(self) -> Tensor:
        """Sum of the blocks' weighted auxiliary losses, a 0-d tensor; 0 for a dense model."""
        losses = [block.auxiliary_loss for block in self.experts]
        return torch.stack(losses).sum() if losses else self.logits_BTV.new_zeros(())


class Block(nn.Module):
    """Pre-norm Transformer block: x + attention(norm(x)), then + feed-forward or MoE of norm of that."""

    def __init__(
        self,
        spec: DecoderSpec,
        layer: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.norm_eps = spec.norm_eps
        output_scale = 1 / math.sqrt(2 * spec.n_layers)
        self.attention_gain = gain(spec.d_model, 1.0, device, dtype)
        self.attention = Attention(
            spec.d_model,
            spec.attention,
            norm_eps=spec.norm_eps,
            init_scale=spec.init_scale,
            output_scale=output_scale,
            generator=generator,
            device=device,
            dtype=dtype,
        )
        self.feed_forward_gain = gain(spec.d_model, 1.0, device, dtype)
        self.feed_forward: FeedForward | MoE
        if spec.experts is not None and spec.is_expert_layer(layer):
            self.feed_forward = MoE(
                d_model=spec.d_model,
                d_ff=spec.feed_forward.d_ff,
                experts=spec.experts,
                activation=spec.feed_forward.activation,
                norm_eps=spec.norm_eps,
                init_scale=spec.init_scale,
                output_scale=output_scale,
                generator=generator,
                device=device,
                dtype=dtype,
            )
        else:
            self.feed_forward = FeedForward(
                spec.d_model,
                spec.feed_forward.d_ff,
                spec.feed_forward.activation,
                init_scale=spec.init_scale,
                output_scale=output_scale,
                generator=generator,
                device=device,
                dtype=dtype,
            )

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, ExpertStatistics | None]:
        """Return the block's output and, if it is MoE, its statistics."""
        x_BTD = self.attend(x_BTD, rotary, cache, mask)
        normed_BTD = self.feed_forward_input(x_BTD)
        if isinstance(self.feed_forward, MoE):
            y_BTD, statistics = self.feed_forward(normed_BTD)
            return x_BTD + y_BTD, statistics
        return x_BTD + self.feed_forward(normed_BTD), None

    def attend(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the residual stream after the attention layer."""
        normed_BTD = F.rms_norm(x_BTD, x_BTD.shape[-1:], self.attention_gain, self.norm_eps)
        y_BTD: Tensor = self.attention(normed_BTD, rotary=rotary, cache=cache, layer=self.layer, mask=mask)
        return x_BTD + y_BTD

    def feed_forward_input(self, x_BTD: Tensor) -> Tensor:
        """Return the normed residual stream that the feed-forward layer and its router see."""
        return F.rms_norm(x_BTD, x_BTD.shape[-1:], self.feed_forward_gain, self.norm_eps)


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

    def forward(self, tokens_BT: Tensor, *, cache: KVCache | None = None) -> DecoderOutput:
        """Return next-token logits for every position; with a cache, `tokens_BT` follow the cached ones.

        Raises InputError if T exceeds the context (or the cache), or if an expert-choice model is given a cache while
        its experts choose among a group.
        """
        batch, length = tokens_BT.shape
        mask = None
        if cache is None:
            if length > self.spec.context:
                raise InputError(
                    f"tokens_BT has {length} tokens a sequence; the model's context is {self.spec.context}."
                )
            cos, sin = self.rotary(tokens_BT.device)
            rotary = (cos[:length], sin[:length])
        else:
            cache.check(batch, length)
            if self._chooses_in_group:
                raise InputError(
                    "expert_choice is 'grouped', which needs whole sequences; with a cache set it to 'threshold' "
                    "after calibrate_thresholds."
                )
            positions = cache.positions(length)
            cos, sin = self.rotary(tokens_BT.device)
            rotary = (cos[positions], sin[positions])
            mask = cache.mask(length)
        x_BTD = F.embedding(tokens_BT, self.embedding_VD)
        experts = []
        recompute = self.activation_checkpointing and torch.is_grad_enabled() and cache is None
        for block in self.blocks:
            if recompute:
                x_BTD, statistics = checkpoint(block, x_BTD, rotary, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BTD, statistics = block(x_BTD, rotary, cache, mask)
            if statistics is not None:
                experts.append(statistics)
        if cache is not None:
            cache.length += length
        return DecoderOutput(self.head(x_BTD), tuple(experts))

    def head(self, x_BTD: Tensor) -> Tensor:
        """Return the logits of a residual stream."""
        normed_BTD = F.rms_norm(x_BTD, x_BTD.shape[-1:], self.final_gain, self.spec.norm_eps)
        return F.linear(normed_BTD, self.embedding_VD if self.spec.tied_head else self.head_VD)

    def rotary(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cos and sin of all positions of the context, [context, 1, h/2]."""
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
    def _chooses_in_group(self) -> bool:
        return self._expert_choice == "grouped" and any(layer.router.is_expert_choice for layer in self.moe_layers)

    def update_router_bias(self, experts: Sequence[ExpertStatistics]) -> None:
        """Move the loss-free balancing bias after an optimiser step; no-op unless balance is `bias`."""
        for layer, statistics in zip(self.moe_layers, experts, strict=True):
            layer.router.update_bias(statistics.load_X)
