"""Slow, obvious MoE layer: one token and one expert at a time.

Shapes: B batch, T tokens, D d_model, X experts.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.nn import MoE


def expert_output(layer: MoE, x_D: Tensor, expert: int) -> Tensor:
    """Output of one expert for one token."""
    hidden = x_D @ layer.w_up[expert]
    width = layer.w_down.shape[1]
    if layer.activation == "swiglu":
        hidden = F.silu(hidden[:width]) * hidden[width:]
    elif layer.activation == "gelu":
        hidden = F.gelu(hidden)
    else:
        hidden = F.relu(hidden)
    return hidden @ layer.w_down[expert]


def shared_output(layer: MoE, x_D: Tensor) -> Tensor:
    """Sum of the shared experts, one after another, each a slice of the fused matrices."""
    shared = layer.shared
    assert shared is not None
    total_width = shared.w_down.shape[1]
    width = layer.w_down.shape[1]
    y_D = torch.zeros_like(x_D)
    for start in range(0, total_width, width):
        rows = slice(start, start + width)
        up = shared.w_up[total_width:][rows] if layer.activation == "swiglu" else shared.w_up[rows]
        hidden = up @ x_D
        if layer.activation == "swiglu":
            hidden = F.silu(shared.w_up[rows] @ x_D) * hidden
        else:
            hidden = F.gelu(hidden) if layer.activation == "gelu" else F.relu(hidden)
        y_D = y_D + shared.w_down[:, rows] @ hidden
    return y_D


def chosen_pairs(layer: MoE, scores_BTX: Tensor) -> set[tuple[int, int, int]]:
    """Set of (sequence, position, expert) that the router should choose."""
    experts, router = layer.experts, layer.experts.router
    n_sequences, n_positions, n_experts = scores_BTX.shape
    pairs = set()
    if router.kind == "token_choice":
        ranked = scores_BTX + layer.router.bias_X if router.balance == "bias" else scores_BTX
        for b in range(n_sequences):
            for t in range(n_positions):
                best = sorted(range(n_experts), key=lambda x: -ranked[b, t, x].item())
                pairs |= {(b, t, x) for x in best[: experts.top_k]}
    elif layer.router.by_threshold:
        pairs = {
            (b, t, x)
            for b in range(n_sequences)
            for t in range(n_positions)
            for x in range(n_experts)
            if scores_BTX[b, t, x] >= layer.router.threshold_X[x]
        }
    elif router.kind == "expert_choice":
        share = max(1, math.floor(n_sequences * experts.top_k / n_experts + 0.5))
        for t in range(n_positions):
            for x in range(n_experts):
                best = sorted(range(n_sequences), key=lambda b: -scores_BTX[b, t, x].item())
                pairs |= {(b, t, x) for b in best[:share]}
    else:
        share = math.ceil(n_positions * experts.top_k / n_experts)
        for b in range(n_sequences):
            for x in range(n_experts):
                best = sorted(range(n_positions), key=lambda t: -scores_BTX[b, t, x].item())
                pairs |= {(b, t, x) for t in best[:share]}
    return pairs


def moe(layer: MoE, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return output, auxiliary loss, load per expert and share of dropped tokens."""
    experts, router = layer.experts, layer.experts.router
    logits_BTX = x_BTD @ layer.router.w_XD.T
    scores_BTX = logits_BTX.softmax(-1)
    pairs = chosen_pairs(layer, scores_BTX.detach())
    n_experts = experts.n_experts
    lone = router.kind == "token_choice" and experts.top_k == 1

    def norm(y_D: Tensor) -> Tensor:
        if not experts.output_norm:
            return y_D
        return y_D / (y_D.square().mean() + layer.norm_eps).sqrt() * layer.output_gain

    outputs = []
    for b in range(x_BTD.shape[0]):
        for t in range(x_BTD.shape[1]):
            mine = [x for x in range(n_experts) if (b, t, x) in pairs]
            gates = {x: scores_BTX[b, t, x] for x in mine}
            if router.kind == "token_choice" and not lone:
                if router.score_order == "topk_softmax":
                    weights = torch.stack([logits_BTX[b, t, x] for x in mine]).softmax(0)
                    gates = dict(zip(mine, weights, strict=True))
                elif router.renormalise:
                    total = sum(gates.values())
                    gates = {x: gate / total for x, gate in gates.items()}
            token = x_BTD[b, t]
            if lone and layer.shared is None:
                (x,) = mine
                outputs.append(gates[x] * norm(expert_output(layer, token, x)))
                continue
            y_D = torch.zeros_like(token)
            for x in mine:
                y_D = y_D + gates[x] * expert_output(layer, token, x)
            if layer.shared is not None:
                y_D = y_D + shared_output(layer, token)
            outputs.append(norm(y_D))
    n_tokens = len(outputs)
    load_X = torch.stack(
        [torch.tensor(float(sum(x == e for *_, x in pairs)), dtype=x_BTD.dtype) for e in range(n_experts)]
    ) / len(pairs)
    auxiliary = router.z_loss_weight * (logits_BTX.exp().sum(-1).log() ** 2).mean()
    if router.kind == "token_choice" and router.balance == "auxiliary":
        mean_X = scores_BTX.reshape(-1, n_experts).mean(0)
        auxiliary = auxiliary + router.balance_weight * n_experts * (load_X * mean_X).sum()
    dropped = 1 - len({(b, t) for b, t, _ in pairs}) / n_tokens
    return torch.stack(outputs).view(x_BTD.shape), auxiliary, load_X, torch.tensor(dropped, dtype=x_BTD.dtype)
