"""Memory of one of the devices that train a model together."""

from functools import lru_cache
from typing import Final

from isoflop.spec import DecoderSpec, count, memory

_STATE_BYTES: Final = {"weight_bytes": 4, "gradient_bytes": 4, "optimizer_bytes": 8}
"""Float32 weights, gradients and both moments of AdamW."""

_COPY: Final = 2
"""Bytes of a bf16 weight as matrix products read it, and of an activation."""


@lru_cache(maxsize=8192)
def memory_per_device(
    spec: DecoderSpec,
    *,
    devices: int = 1,
    micro_batch: int = 1,
    activation_checkpointing: bool = False,
    expert_parallel: int = 1,
) -> float:
    """Bytes that each device needs to train in bf16 (float32 weights and AdamW), as `spec.memory` counts parts.

    Weights, gradients and optimiser are sharded over all devices as fully sharded data parallelism does; each device
    holds the activations and logits of `micro_batch` sequences, and bf16 copies of the weights at work: all of them on
    one device, else those of the block at work and the next (or of the embedding, where that is larger), of whose
    routed experts it holds a share of 1/expert_parallel.

    Args:
        spec: the model.
        devices: that share the training.
        micro_batch: sequences in one forward pass of a device.
        activation_checkpointing: whether blocks are recomputed in the backward.
        expert_parallel: devices that the experts of a layer are spread over.
    """
    counted = count(spec)
    # with weights as narrow as activations `memory` adds no copies of them, which stand below
    parts = memory(
        spec,
        batch_tokens=micro_batch * spec.context,
        weight_bytes=_COPY,
        activation_bytes=_COPY,
        activation_checkpointing=activation_checkpointing,
    )
    parameters = counted.params_total + counted.params_embedding
    copies = float(parameters)
    if devices > 1:
        shared = counted.params_total - counted.params_by_part["experts"]
        experts = counted.params_by_part["experts"] / max(1, spec.n_expert_layers)
        copies = 2 * max(shared / spec.n_layers + experts / expert_parallel, float(spec.vocab_size * spec.d_model))
        copies = min(copies, parameters)
    states = parameters * sum(_STATE_BYTES.values()) / devices
    return states + _COPY * copies + parts.activations + parts.logits
