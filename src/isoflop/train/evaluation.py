"""Held-out loss of a model on fixed windows of text.

B sequences in a batch, T tokens in a sequence, V vocabulary, W windows, S batches, L MoE layers (or routed blocks), X
routed experts, no-ops among them; the last dimension of statistics is X + 2: the loads, then dropped share and entropy.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from isoflop.errors import InputError
from isoflop.nn import Decoder
from isoflop.train.distributed import Ranks

_ALONE: Final = Ranks()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model does on held-out text."""

    loss: float
    """Mean cross-entropy in nats per token."""
    loss_std: float
    """Standard error of that mean: standard deviation of the windows' mean losses / sqrt(W); NaN for one window."""
    load_LX: tuple[tuple[float, ...], ...]
    """Share of the assignments that each expert took, one row a MoE layer; each row sums to 1."""
    dropped_share: float
    """Share of tokens that no expert took, mean over MoE layers; 0 if dense."""
    router_entropy: float
    """Entropy of the mean router distribution in nats, mean over MoE layers; 0 if dense."""
    kept_share: float
    """Share of tokens that a depth-routed block computed, mean over these; 1 if there is none."""
    depth_agreement: float
    """Share of tokens on which the sampling rule of depth routing and the top-k of training agree, mean over blocks;
    NaN if there is none or no rule is set."""

    @property
    def load_max(self) -> float:
        """Largest load of an expert as a multiple of an equal share; 1 if dense or perfectly even."""
        return max((max(load_X) * len(load_X) for load_X in self.load_LX), default=1.0)


def evaluate(model: Decoder, windows_WT: np.ndarray, *, batch_size: int) -> tuple[float, float]:
    """Mean cross-entropy in nats per token, and its standard error over windows; see `measure`."""
    result = measure(model, windows_WT, batch_size=batch_size)
    return result.loss, result.loss_std


@torch.no_grad()
def measure(
    model: Decoder,
    windows_WT: np.ndarray,
    *,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = _ALONE,
) -> Evaluation:
    """Held-out loss and expert statistics, with the model in evaluation mode (its mode is restored).

    Args:
        model: the model; its device is used.
        windows_WT: token ids [W, context + 1]; each window's tokens but the first are predicted.
        batch_size: sequences in a forward pass. A model whose experts choose among the tokens of a batch is always
            given full batches: the last one is filled up with the first windows, whose losses then count once only.
        dtype: bfloat16 runs the forward pass under autocast; the loss is float32 in any case.
        ranks: the processes that share the batches; each gets the whole result, the same as one process alone.

    Raises:
        InputError: if there is no window.
    """
    if not len(windows_WT):
        raise InputError("evaluation windows: there are none; the validation split needs at least context + 1 tokens.")
    device = next(model.parameters()).device
    choosing = [layer for layer in model.moe_layers if layer.router.is_expert_choice]
    batch_chooses = bool(choosing) and model.expert_choice == "grouped"
    was_training = model.training
    model.eval()
    wide = torch.float64 if device.type != "mps" else torch.float32
    loss_W = torch.zeros(len(windows_WT), device=device, dtype=wide)
    starts = range(0, len(windows_WT), batch_size)
    n_experts = model.spec.experts.n_choices if model.spec.experts is not None else 0
    statistics_SLX = torch.zeros(len(starts), len(model.moe_layers), n_experts + 2, device=device)
    depth_SL2 = torch.zeros(len(starts), len(model.depth_routers), 2, device=device)
    for number, start in enumerate(starts):
        if number % ranks.world != ranks.rank:
            continue
        batch_BT = windows_WT[start : start + batch_size]
        own = len(batch_BT)
        if batch_chooses and own < batch_size:
            batch_BT = np.concatenate([batch_BT, np.resize(windows_WT, (batch_size - own, windows_WT.shape[1]))])
        tokens_BT = torch.from_numpy(np.ascontiguousarray(batch_BT)).to(device, torch.int64)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = model(tokens_BT[:, :-1])
        loss_BT = functional.cross_entropy(
            output.logits_BTV.float().transpose(1, 2), tokens_BT[:, 1:], reduction="none"
        )
        loss_W[start : start + own] = loss_BT[:own].to(wide).mean(dim=1)
        for row, layer in zip(statistics_SLX[number], output.experts, strict=True):
            row.copy_(torch.cat((layer.load_X, torch.stack((layer.dropped_share, layer.entropy)))))
        for row, block in zip(depth_SL2[number], output.depth, strict=True):
            row.copy_(torch.stack((block.kept_share, block.agreement)))
    model.train(was_training)
    ranks.sum_(loss_W)
    ranks.sum_(statistics_SLX)
    ranks.sum_(depth_SL2)
    loss_W = loss_W.cpu()
    layers = [
        (layer_SX[:, :-2].contiguous(), layer_SX[:, -2].contiguous(), layer_SX[:, -1].contiguous())
        for layer_SX in statistics_SLX.unbind(1)
    ]
    return Evaluation(
        loss=loss_W.mean().item(),
        loss_std=loss_W.std().item() / math.sqrt(len(loss_W)) if len(loss_W) > 1 else math.nan,
        load_LX=tuple(tuple(load.mean(0).tolist()) for load, _, _ in layers),
        dropped_share=_mean([dropped for _, dropped, _ in layers]),
        router_entropy=_mean([entropy for _, _, entropy in layers]),
        kept_share=depth_SL2[..., 0].mean().item() if depth_SL2.numel() else 1.0,
        depth_agreement=depth_SL2[..., 1].mean().item() if depth_SL2.numel() else math.nan,
    )


def _mean(series: list[torch.Tensor]) -> float:
    return sum(values.mean().item() for values in series) / len(series) if series else 0.0
