"""Rules that fill in what a configuration leaves open: learning rate, batch, micro-batch; every constant is here."""

import math

LEARNING_RATE_AT_1M = {"dense": 3.5e-3, "moe": 5e-3}
"""Peak learning rate of a model with one million active non-embedding parameters (docs/results/learning-rate.md)."""
LEARNING_RATE_EXPONENT = -0.3
"""Power of the active non-embedding parameters."""
LEARNING_RATE_BOUNDS = (1e-4, 3e-2)
"""Smallest and largest learning rate that the rule gives."""

BATCH_COEFFICIENT = 0.0347
"""Batch in tokens = BATCH_COEFFICIENT × FLOPs^BATCH_EXPONENT, then rounded."""
BATCH_EXPONENT = 0.3644
"""Power of the training FLOPs."""
BATCH_BOUNDS = (512, 4194304)
"""Smallest and largest batch, in tokens, that the rule gives."""

LOGIT_ELEMENTS = 2**27
"""Largest micro-batch: its float32 logits have at most this many elements (512 MiB)."""


def learning_rate(params_active: float, *, moe: bool) -> float:
    """Peak AdamW learning rate for a model with this many active non-embedding parameters: a clipped power law.

    Dense and MoE models have constants of their own, so that neither side of a comparison is badly tuned.
    """
    low, high = LEARNING_RATE_BOUNDS
    at_1m = LEARNING_RATE_AT_1M["moe" if moe else "dense"]
    wanted: float = at_1m * (params_active / 1e6) ** LEARNING_RATE_EXPONENT
    return min(high, max(low, wanted))


def batch_tokens(flops: float, *, context: int, least_sequences: int = 1) -> int:
    """Tokens in an optimiser step for a run of `flops` training FLOPs.

    The power of two nearest (in logarithm) to the power law, clipped, then rounded to whole sequences.

    Args:
        flops: training FLOPs of the whole run.
        context: tokens in a sequence; the result is a multiple.
        least_sequences: the batch has at least this many sequences; expert choice across sequences needs
            n_experts / top_k of them, so that an expert takes at least one token of a group.
    """
    low, high = BATCH_BOUNDS
    wanted = 2.0 ** round(math.log2(BATCH_COEFFICIENT) + BATCH_EXPONENT * math.log2(flops))
    sequences = max(1, round(min(high, max(low, wanted)) / context))
    if sequences < least_sequences:
        sequences = 1 << (least_sequences - 1).bit_length()
    return sequences * context


def micro_batch(sequences: int, *, context: int, vocab_size: int, least: int = 1) -> int:
    """Sequences in one forward pass: the largest divisor of `sequences` whose logits stay within LOGIT_ELEMENTS."""
    most = min(sequences, LOGIT_ELEMENTS // (context * vocab_size))
    fitting = (size for size in range(most, max(least, 1) - 1, -1) if sequences % size == 0)
    too_large = (size for size in range(max(least, most + 1), sequences + 1) if sequences % size == 0)
    return next(fitting, None) or next(too_large, sequences)
