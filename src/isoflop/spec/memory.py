"""Bytes to train and to sample."""

import math
from dataclasses import dataclass
from typing import Final, Literal

from isoflop.errors import InputError
from isoflop.spec.count import count
from isoflop.spec.decoder import DecoderSpec


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one training step, by what holds them."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Sum of all parts, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def memory(
    spec: DecoderSpec,
    *,
    batch_tokens: int,
    weight_bytes: int = 4,
    gradient_bytes: int = 4,
    optimizer_bytes: int = 8,
    activation_bytes: int = 4,
    activation_checkpointing: bool = False,
    device: Literal["cpu", "cuda"] = "cuda",
) -> Memory:
    """Bytes to train `isoflop.nn.Decoder` with AdamW on one device, `batch_tokens` tokens in one forward.

    Activations are the tensors that PyTorch's backward needs, operation by operation (`_block_bytes`); a fused norm or
    a compiled model keeps fewer. The residual stream, the norms and the router stay in float32 under autocast, which
    also keeps a copy of every weight in the narrow type. Logits stand three times: as they are, as log-probabilities
    and as their gradient. With checkpointing each block keeps its input, and one block is alive in full.

    Args:
        spec: the model.
        batch_tokens: tokens in one forward pass (a micro-batch).
        weight_bytes: bytes of one weight.
        gradient_bytes: bytes of one gradient.
        optimizer_bytes: bytes of optimiser state per parameter (AdamW in float32: 8).
        activation_bytes: bytes of one number in matrix products (float32 4, bfloat16 by autocast 2).
        activation_checkpointing: whether blocks are recomputed in the backward.
        device: on the CPU experts are computed in blocks of rows, and of all that only w_up's outputs are kept.

    Raises:
        InputError: if batch_tokens is not positive.
    """
    if batch_tokens < 1:
        raise InputError(f"batch_tokens is {batch_tokens}; it must be at least 1.")
    counted = count(spec)
    parameters = counted.params_total + counted.params_embedding
    blocks = [_block_bytes(spec, layer, activation_bytes, blocked=device == "cpu") for layer in range(spec.n_layers)]
    per_token = spec.n_layers * spec.d_model * _WIDE + max(blocks) if activation_checkpointing else sum(blocks)
    per_token += 2 * spec.d_model * _WIDE + spec.d_model * activation_bytes  # the final norm, and the head's input
    copies = parameters * activation_bytes if activation_bytes < weight_bytes else 0
    return Memory(
        weights=parameters * weight_bytes,
        gradients=parameters * gradient_bytes,
        optimizer=parameters * optimizer_bytes,
        activations=batch_tokens * per_token + copies,
        logits=batch_tokens * spec.vocab_size * (activation_bytes + 2 * _WIDE),
    )


def kv_cache_bytes(spec: DecoderSpec, *, tokens: int, batch: int = 1, element_bytes: int = 4) -> int:
    """Bytes of the keys and values of `tokens` tokens in each of `batch` sequences: 2·L·K·h a token.

    A block whose attention is depth-routed holds ceil(capacity · tokens) of them.
    """
    if tokens < 0 or batch < 1:
        raise InputError(f"tokens is {tokens} and batch is {batch}; tokens must be at least 0 and batch at least 1.")
    routing = spec.depth_routing
    routed = len(spec.routed_layers) if routing is not None and routing.part == "block" else 0
    kept = routing.n_kept(tokens) if routing is not None and tokens else tokens
    held = (spec.n_layers - routed) * tokens + routed * kept
    return 2 * spec.attention.kv_heads * spec.attention.head_dim * held * batch * element_bytes


_WIDE: Final = 4
"""Bytes of a number in the residual stream, the norms and the router: float32."""

_INDEX: Final = 8
"""Bytes of an index: int64."""

_HIDDEN: Final = {"swiglu": 4, "gelu": 2, "relu": 1}
"""Rows of the hidden width that an activation keeps: gate and up, silu(gate), their product; input and output; output
(relu's backward reads its output)."""


def _block_bytes(spec: DecoderSpec, layer: int, narrow: int, *, blocked: bool) -> int:
    """Bytes per token that one block keeps for its backward; `narrow` is the size of a number in matrix products."""
    attention, feed_forward = _attention_bytes(spec, narrow), _feed_forward_bytes(spec, layer, narrow, blocked=blocked)
    routing = spec.depth_routing
    if routing is None or not spec.is_routed_layer(layer):
        return attention + feed_forward
    share, d = spec.kept_share(), spec.d_model
    kept = share * (feed_forward + _INDEX + 2 * _WIDE + narrow * d)  # row, gate; its input: the update
    kept += attention * (share if routing.part == "block" else 1)
    if routing.router == "learned":
        kept += 2 * _WIDE * d + 2 * _WIDE + 1  # the router's norm; score and membership
        kept += 3 * _WIDE * routing.hidden_width(d) if routing.has_predictor else 0
    return math.ceil(kept)


def _attention_bytes(spec: DecoderSpec, narrow: int) -> int:
    """The same of the norm before attention, and of attention."""
    d, attention = spec.d_model, spec.attention
    turned = attention.width + attention.kv_heads * attention.head_dim  # queries and keys after the rotary embedding
    projected = turned + attention.kv_heads * attention.head_dim  # with the values: one tensor
    wide = 2 * d + attention.n_heads  # the norm's input and normalised; attention's logsumexp
    kept = d + projected + turned + attention.width  # the norm's output; attention's parts and output
    if attention.qk_norm:
        wide += turned if narrow == _WIDE else 2 * turned  # normalised; under autocast also the input, cast
    return _WIDE * wide + narrow * kept


def _feed_forward_bytes(spec: DecoderSpec, layer: int, narrow: int, *, blocked: bool) -> int:
    """The same of the norm before the feed-forward or the experts, and of these."""
    d = spec.d_model
    wide, kept = 2 * d, d  # the norm's input and normalised; its output
    hidden = _HIDDEN[spec.feed_forward.activation]
    if not spec.is_expert_layer(layer) or spec.experts is None:
        return _WIDE * wide + narrow * (kept + hidden * spec.feed_forward.d_ff)
    experts = spec.experts
    rows = d + hidden * spec.d_expert  # of each expert that a token uses: its input and what its activation keeps
    if experts.gates_after_norm:
        wide += 3 * d  # the norm's input, normalised and output, which the gate multiplies
    else:
        rows += spec.d_expert  # hidden rows after the gate
        wide += 2 * d if experts.output_norm else 0
    if blocked:
        rows = (2 if spec.feed_forward.activation == "swiglu" else 1) * spec.d_expert
    used = experts.top_k * experts.computed_share
    kept += math.ceil(used * rows) + hidden * spec.d_expert * experts.shared_experts
    wide += experts.n_choices + 2 * experts.top_k  # router's probabilities; gates, before and after their softmax
    wide += d if narrow < _WIDE else 0  # the router's input, which is not the experts'
    indices = 3 * experts.top_k + 1  # token and place of every row, its score's place; a token's first row
    return _WIDE * wide + narrow * kept + _INDEX * indices
