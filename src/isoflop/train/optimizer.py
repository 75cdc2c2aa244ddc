"""AdamW with weight decay on matrices only, and its state as named tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from isoflop.nn import Decoder
from isoflop.train.config import TrainConfig

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def build_optimizer(model: Decoder, config: TrainConfig, learning_rate: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), fused where the device has it.

    Parameters with two or more dimensions decay, except the embedding (with a tied head, the head is the embedding).
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        matrix = parameter.ndim >= 2 and parameter is not model.embedding_VD
        (decayed if matrix else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    fused = next(model.parameters()).device.type in ("cpu", "cuda", "mps")
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=learning_rate, betas=config.betas, eps=1e-8, fused=fused
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """The optimiser's state, flattened to `<parameter>.<moment>`; parameters without a state yet are left out."""
    return {
        f"{name}.{moment}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in _MOMENTS
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave."""
    for name, parameter in model.named_parameters():
        if f"{name}.step" in tensors:
            optimizer.state[parameter] = {
                moment: tensors[f"{name}.{moment}"].to(parameter.device, copy=True) for moment in _MOMENTS
            }
