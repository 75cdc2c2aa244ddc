"""Bytes to train and to sample."""

from dataclasses import dataclass

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
) -> Memory:
    """Bytes to train with AdamW on one device, `batch_tokens` tokens in one forward.

    Activations are the tensors that the backward needs: per block the residual stream and its normalised copy (twice),
    queries, keys, values, the attention's output, and the feed-forward's hidden rows; an MoE block keeps k copies of
    each token's input, hidden and output rows. Logits are counted in float32 with their gradient. With checkpointing
    each block keeps its input, and one block is alive in full.

    Args:
        spec: the model.
        batch_tokens: tokens in one forward pass (a micro-batch).
        weight_bytes: bytes of one weight.
        gradient_bytes: bytes of one gradient.
        optimizer_bytes: bytes of optimiser state per parameter (AdamW in float32: 8).
        activation_bytes: bytes of one activation (float32 4, bfloat16 2).
        activation_checkpointing: whether blocks are recomputed in the backward.

    Raises:
        InputError: if batch_tokens is not positive.
    """
    if batch_tokens < 1:
        raise InputError(f"batch_tokens is {batch_tokens}; it must be at least 1.")
    counted = count(spec)
    parameters = counted.params_total + counted.params_embedding
    blocks = [_block_activations(spec, layer) for layer in range(spec.n_layers)]
    per_token = spec.n_layers * spec.d_model + max(blocks) if activation_checkpointing else sum(blocks)
    per_token += 2 * spec.d_model  # input and output of the final norm
    return Memory(
        weights=parameters * weight_bytes,
        gradients=parameters * gradient_bytes,
        optimizer=parameters * optimizer_bytes,
        activations=batch_tokens * per_token * activation_bytes,
        logits=2 * batch_tokens * spec.vocab_size * 4,
    )


def kv_cache_bytes(spec: DecoderSpec, *, tokens: int, batch: int = 1, element_bytes: int = 4) -> int:
    """Bytes of the keys and values of `tokens` tokens in each of `batch` sequences: 2·L·K·h a token."""
    if tokens < 0 or batch < 1:
        raise InputError(f"tokens is {tokens} and batch is {batch}; tokens must be at least 0 and batch at least 1.")
    per_token = 2 * spec.n_layers * spec.attention.kv_heads * spec.attention.head_dim
    return per_token * tokens * batch * element_bytes


def _block_activations(spec: DecoderSpec, layer: int) -> int:
    """Numbers per token that one block keeps for its backward."""
    d, attention = spec.d_model, spec.attention
    kept = 4 * d + 2 * attention.width + 2 * attention.kv_heads * attention.head_dim
    hidden_rows = spec.feed_forward.n_matrices  # gated: gate, up and their product; ungated: before and after
    if not spec.is_expert_layer(layer) or spec.experts is None:
        return kept + hidden_rows * spec.feed_forward.d_ff
    experts = spec.experts
    kept += experts.n_experts + (d if experts.output_norm else 0)
    kept += hidden_rows * spec.d_expert * experts.shared_experts
    return kept + experts.top_k * (2 * d + hidden_rows * spec.d_expert)
