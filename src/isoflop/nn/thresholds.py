"""Thresholds that let a model whose tokens compete, for experts or for depth, run one token at a time.

Shapes: B batch, T tokens in a sequence, D d_model, N tokens of all batches, X routed experts; A, C, M: kept tokens of a
depth-routed block.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.errors import InputError
from isoflop.nn.block import Block, Place
from isoflop.nn.decoder import Decoder
from isoflop.nn.moe import MoE
from isoflop.spec import ExpertsSpec


@torch.no_grad()
def calibrate_thresholds(model: Decoder, batches: Iterable[Tensor]) -> None:
    """Set every threshold so that on these held-out tokens each expert, and each routed block, takes its share.

    At sampling time an expert-choice model has no batch to choose from, and a depth-routed one does not know the rest
    of the sequence. Instead expert x takes each token whose softmax probability reaches threshold_X[x], and a routed
    block each token whose score exceeds its threshold (compare the moving-average thresholds of arXiv 2603.11535). The
    rule looks at one token alone, so it is causal, and shares hold on average, not exactly.

    Blocks are calibrated in order, each on what the already thresholded blocks below it produce. `batches` are token
    ids [B, T], T ≤ context; a few ten thousand tokens suffice for the usual shares. Of depth routers with an auxiliary
    loss or a predictor the threshold is 0 and stays; the quantiles of their scores are stored for
    `Decoder.set_depth_capacity`. All are buffers of the model and so are saved with it; `model.decisions` stays as it
    was: set it to "sampled" to use them.

    Raises InputError if nothing in the model has a threshold, or the batches hold too few tokens for one.
    """
    if not model.needs_calibration:
        raise InputError(
            "model has no expert-choice layer and no learned depth routing; thresholds exist for these alone."
        )
    expert_choice, depth_choice = model.expert_choice, model.depth_choice
    device = model.embedding_VD.device
    tokens = [tokens_BT.to(device) for tokens_BT in batches]
    places = [model._place(tokens_BT, None) for tokens_BT in tokens]
    streams = [F.embedding(tokens_BT, model.embedding_VD) for tokens_BT in tokens]
    try:
        for block in model.blocks:
            assert isinstance(block, Block)
            _calibrate_depth(block, streams, places)
            _calibrate_experts(block, streams, places)
            streams = [block(x_BTD, place)[0] for x_BTD, place in zip(streams, places, strict=True)]
    finally:
        model.expert_choice, model.depth_choice = expert_choice, depth_choice


def _calibrate_depth(block: Block, streams: list[Tensor], places: list[Place]) -> None:
    router = block.depth_router
    if router is None:
        return
    if router.is_learned:
        decisions = [
            router.scores(_router_input(block, x_BTD, place), place.draws_BT)[1].reshape(-1)
            for x_BTD, place in zip(streams, places, strict=True)
        ]
        n_tokens = sum(decision.shape[0] for decision in decisions)
        if n_tokens * router.spec.capacity < 1 or n_tokens < 2:
            raise InputError(f"batches hold {n_tokens} tokens; calibration needs more, better a few ten thousand.")
        router.calibrate(torch.cat(decisions))
    router.by_threshold = True


def _router_input(block: Block, x_BTD: Tensor, place: Place) -> Tensor:
    """The stream that the depth router sees."""
    return x_BTD + block.attend(x_BTD, place.rotary) if block.routes_feed_forward_only else x_BTD


def _calibrate_experts(block: Block, streams: list[Tensor], places: list[Place]) -> None:
    layer = block.feed_forward
    if not isinstance(layer, MoE) or not layer.router.is_expert_choice:
        return
    rows = [_expert_input(block, x_BTD, place) for x_BTD, place in zip(streams, places, strict=True)]
    scores_NX = torch.cat([layer.router.scores(normed_ND[None])[1] for normed_ND in rows])[:, : layer.experts.n_experts]
    share = _share(layer.experts, scores_NX.shape[0])
    layer.router.threshold_X.copy_(scores_NX.topk(share, dim=0, sorted=True).values[-1])
    layer.router.by_threshold = True


def _expert_input(block: Block, x_BTD: Tensor, place: Place) -> Tensor:
    """The rows that a block's experts and their router see, [N, D]."""
    if block.depth_router is None:
        normed_BTD = block.feed_forward_input(x_BTD + block.attend(x_BTD, place.rotary))
        return normed_BTD.reshape(-1, x_BTD.shape[-1])
    seen_BTD = _router_input(block, x_BTD, place)
    kept = block.choose(seen_BTD, place)
    x_ACD = seen_BTD.reshape(-1, x_BTD.shape[-1])[kept.rows_M].view(*kept.places_AC.shape, -1)
    attended_ACD = block.attend_kept(x_ACD, kept, place)
    normed_ACD = block.feed_forward_input(x_ACD if attended_ACD is None else x_ACD + attended_ACD)
    return normed_ACD.reshape(-1, x_BTD.shape[-1]) if kept.real_AC is None else normed_ACD[kept.real_AC]


def _share(experts: ExpertsSpec, n_tokens: int) -> int:
    share = round(n_tokens * experts.top_k / experts.n_choices)
    if share < 1:
        raise InputError(
            f"batches hold {n_tokens} tokens; calibration needs at least {experts.n_choices // experts.top_k}, "
            "better a few ten thousand."
        )
    return share
