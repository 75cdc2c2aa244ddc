"""What an MoE layer and a depth-routed block report beside their output.

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


@dataclass(frozen=True)
class DepthStatistics:
    """Statistics of one depth-routed block on one batch; tensors, as above."""

    kept_share: Tensor
    """Share of the tokens that the block computed."""
    agreement: Tensor
    """Share of the tokens on which the rule of sampling and the top-k of training agree; NaN while no rule is set."""
    score_std: Tensor
    """Standard deviation of the scores; NaN for fixed routing."""
    auxiliary_loss: Tensor
    """Weighted BCE of the rule against top-k membership; the only member that carries a gradient."""


def expert_statistics(
    probabilities_NX: Tensor, counts_X: Tensor, dropped_share: Tensor, auxiliary_loss: Tensor
) -> ExpertStatistics:
    """Assemble the statistics from the router's softmax and the number of rows that each expert received."""
    with torch.no_grad():
        load_X = counts_X.to(probabilities_NX.dtype) / counts_X.sum().clamp_min(1)
        entropy = torch.special.entr(probabilities_NX.mean(0)).sum()
    return ExpertStatistics(load_X, entropy, dropped_share, auxiliary_loss)
