"""Thresholds that let an expert-choice model run one token at a time.

Shapes: B batch, T tokens in a sequence, D d_model, N tokens of all batches, X routed experts.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.errors import InputError
from isoflop.nn.decoder import Block, Decoder
from isoflop.nn.moe import MoE


@torch.no_grad()
def calibrate_thresholds(model: Decoder, batches: Iterable[Tensor]) -> None:
    """Set every expert's threshold so that on these held-out tokens it takes its share k/X of them.

    At sampling time an expert-choice model has no batch to choose from; instead expert x takes each token whose
    softmax probability reaches threshold_X[x] (compare the moving-average thresholds of arXiv 2603.11535). The rule
    looks at one token alone, so it is causal, and the number of experts per token is k on average, not exactly.

    Blocks are calibrated in order, each on what the already thresholded blocks below it produce. `batches` are token
    ids [B, T], T ≤ context; a few ten thousand tokens suffice for the usual shares. The thresholds are a buffer of
    the model and so are saved with it; `model.expert_choice` stays as it was: set it to "threshold" to use them.

    Raises InputError if the model has no expert-choice layer or the batches hold fewer than X/k tokens.
    """
    routers = [layer.router for layer in model.moe_layers if layer.router.is_expert_choice]
    if not routers:
        raise InputError("model has no expert-choice layer; thresholds exist for expert choice alone.")
    mode = model.expert_choice
    device = model.embedding_VD.device
    streams = [F.embedding(tokens_BT.to(device), model.embedding_VD) for tokens_BT in batches]
    n_tokens = sum(x_BTD.shape[0] * x_BTD.shape[1] for x_BTD in streams)
    experts = routers[0].experts
    share = round(n_tokens * experts.top_k / experts.n_experts)
    if share < 1:
        raise InputError(
            f"batches hold {n_tokens} tokens; calibration needs at least {experts.n_experts // experts.top_k}, "
            "better a few ten thousand."
        )
    cos, sin = model.rotary(device)
    for block in model.blocks:
        assert isinstance(block, Block)
        streams = [block.attend(x_BTD, (cos[: x_BTD.shape[1]], sin[: x_BTD.shape[1]])) for x_BTD in streams]
        inputs = [block.feed_forward_input(x_BTD) for x_BTD in streams]
        layer = block.feed_forward
        if isinstance(layer, MoE):
            scores_NX = torch.cat([layer.router.scores(normed_BTD)[1] for normed_BTD in inputs])
            layer.router.threshold_X.copy_(scores_NX.topk(share, dim=0, sorted=True).values[-1])
            layer.router.by_threshold = True
            streams = [x + layer(normed)[0] for x, normed in zip(streams, inputs, strict=True)]
        else:
            streams = [x + layer(normed) for x, normed in zip(streams, inputs, strict=True)]
    model.expert_choice = mode
