"""Slow, obvious depth-routed decoder: one sequence and one token at a time, with masks over the full length.

Shapes: T tokens, D d_model, h head size.
"""

import math

import torch
from torch import Tensor

from isoflop.nn import Decoder
from isoflop.nn.block import Block


def rms_norm(x_D: Tensor, gain_D: Tensor | None, eps: float) -> Tensor:
    normed = x_D / torch.sqrt((x_D * x_D).mean() + eps)
    return normed if gain_D is None else normed * gain_D


def turn(x_h: Tensor, position: int, theta: float) -> Tensor:
    half = x_h.shape[0] // 2
    out = x_h.clone()
    for i in range(half):
        angle = position * theta ** (-2 * i / x_h.shape[0])
        a, b = x_h[i], x_h[i + half]
        out[i], out[i + half] = a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)
    return out


def attend(block: Block, stream: list[Tensor], taking_part: list[int]) -> dict[int, Tensor]:
    """Attention's update of each token that takes part, over the ones that take part and stand no later."""
    layer = block.attention
    spec = layer.spec
    queries, keys, values = {}, {}, {}
    for t in taking_part:
        qkv = (layer.w_qkv @ rms_norm(stream[t], block.attention_gain, block.norm_eps)).view(-1, spec.head_dim)
        queries[t] = [turn(q, t, spec.rope_theta) for q in qkv[: spec.n_heads]]
        keys[t] = [turn(k, t, spec.rope_theta) for k in qkv[spec.n_heads : spec.n_heads + spec.kv_heads]]
        values[t] = list(qkv[spec.n_heads + spec.kv_heads :])
    updates = {}
    for t in taking_part:
        heads = []
        for head in range(spec.n_heads):
            group = head // (spec.n_heads // spec.kv_heads)
            seen = [s for s in taking_part if s <= t]
            scores = torch.stack([queries[t][head] @ keys[s][group] for s in seen]) / math.sqrt(spec.head_dim)
            weights = scores.softmax(0)
            heads.append(sum(weight * values[s][group] for weight, s in zip(weights, seen, strict=True)))
        updates[t] = layer.w_out @ torch.cat(heads)
    return updates


def feed(block: Block, x_D: Tensor) -> Tensor:
    normed = rms_norm(x_D, block.feed_forward_gain, block.norm_eps)
    return block.feed_forward(normed)


def router_score(block: Block, x_D: Tensor) -> Tensor:
    router = block.depth_router
    return (router.w_1D @ rms_norm(x_D, None, router.norm_eps))[0]


def decision(block: Block, x_D: Tensor) -> Tensor:
    """What the sampling rule compares with its threshold."""
    router = block.depth_router
    if not router.spec.has_predictor:
        return router_score(block, x_D)
    hidden = router.predictor_up_PD @ rms_norm(x_D, None, router.norm_eps).detach()
    return (router.predictor_down_1P @ (hidden * hidden.sigmoid()))[0]


def chosen(block: Block, stream: list[Tensor]) -> list[int]:
    """Positions that take part, in order (learned and fixed routers)."""
    router, length = block.depth_router, len(stream)
    n_kept = math.ceil(router.spec.capacity * length - 1e-9)
    if router.spec.router == "fixed":
        return [int(j / router.spec.capacity + 1e-6) for j in range(n_kept)]
    if router.by_threshold:
        return [t for t in range(length) if decision(block, stream[t]) > router.threshold]
    ranked = sorted(range(length), key=lambda t: -router_score(block, stream[t]).item())
    return sorted(ranked[:n_kept])


def routed_block(block: Block, stream: list[Tensor]) -> list[Tensor]:
    """A depth-routed block of dense layers on one sequence."""
    router = block.depth_router
    whole = router.spec.part == "block"
    if not whole:
        updates = attend(block, stream, list(range(len(stream))))
        stream = [x + updates[t] for t, x in enumerate(stream)]
    taking_part = chosen(block, stream)
    updates = attend(block, stream, taking_part) if whole else {}
    out = list(stream)
    for t in taking_part:
        attended = updates.get(t, torch.zeros_like(stream[t]))
        gate = torch.ones(())
        if router.spec.router == "learned":
            score = router_score(block, stream[t])
            gate = score if router.spec.gate == "raw" else 2 * score.sigmoid()
        out[t] = stream[t] + gate * (attended + feed(block, stream[t] + attended))
    return out


def logits(model: Decoder, tokens_T: Tensor) -> Tensor:
    """Logits [T, V] of one sequence."""
    stream = [model.embedding_VD[token] for token in tokens_T.tolist()]
    for block in model.blocks:
        if block.depth_router is None:
            updates = attend(block, stream, list(range(len(stream))))
            stream = [x + updates[t] for t, x in enumerate(stream)]
            stream = [x + feed(block, x) for x in stream]
        else:
            stream = routed_block(block, stream)
    return model.head(torch.stack(stream)[None])[0]
