"""What an MoE layer reports beside its output.

Shapes: N tokens, X experts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExpertStatistics:
    """Statistics of one MoE layer on one batch; tensors, so reading them is the caller's only synchronisation."""

    load_X: Tensor
    """Share of the assignments that each expert received; sums to 1."""
    entropy: Tensor
    """Entropy of the mean router distribution, nats; ln X when the router spreads tokens evenly."""
    dropped_share: Tensor
    """Share of the tokens that no routed expert took (0 for token choice, which is dropless)."""
    auxiliary_loss: Tensor
    """Weighted balance loss plus weighted z-loss; the only member that carries a gradient."""


def expert_statistics(
    probabilities_NX: Tensor, counts_X: Tensor, dropped_share: Tensor, auxiliary_loss: Tensor
) -> ExpertStatistics:
    """Assemble the statistics from the router's softmax and the number of rows that each expert received."""
    with torch.no_grad():
        load_X = counts_X.to(probabilities_NX.dtype) / counts_X.sum().clamp_min(1)
        entropy = torch.special.entr(probabilities_NX.mean(0)).sum()
    return ExpertStatistics(load_X, entropy, dropped_share, auxiliary_loss)
