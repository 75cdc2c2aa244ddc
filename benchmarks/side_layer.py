"""An MoE layer of Hugging Face's transformers, in a process that never loads isoflop; a Worker."""

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from benchmarks.worker import serve

IMPLEMENTATIONS = ("grouped_mm", "eager", "batched_mm")
GATHERED_LIMIT = 2**31
"""Bytes of weights above which batched_mm, which copies a token's experts, is not even tried."""
state: dict[str, Any] = {}


def build(d_model: int, d_expert: int, n_experts: int, top_k: int, directory: str) -> float:
    """The block with our weights; the largest difference of its output from ours."""
    config = Qwen3MoeConfig(
        hidden_size=d_model,
        moe_intermediate_size=d_expert,
        num_experts=n_experts,
        num_experts_per_tok=top_k,
        norm_topk_prob=top_k > 1,  # a lone gate stays a probability on our side
        attn_implementation="sdpa",
    )
    config._experts_implementation = "eager"
    block = Qwen3MoeSparseMoeBlock(config).train()
    tensors = load_file(Path(directory) / "layer.safetensors")
    weights = {name: tensors[name] for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")}
    block.load_state_dict(weights, strict=True)
    state.update(block=block, config=config, x=tensors["x"])
    with torch.no_grad():
        return float((block(tensors["x"]) - tensors["y"]).abs().max())


def inputs(tokens: int) -> None:
    """Use the first so many tokens from now on, four sequences where they divide."""
    x_ND = state["x"].flatten(0, 1)[:tokens]
    state["now"] = x_ND.view(4 if tokens % 4 == 0 else 1, -1, x_ND.shape[-1]).clone().requires_grad_()
    state["gradient"] = torch.randn_like(state["now"])


def train() -> float:
    """Seconds of a forward and backward."""
    block, x_BTD = state["block"], state["now"]
    start = time.perf_counter()
    block(x_BTD).backward(state["gradient"])
    seconds = time.perf_counter() - start
    block.zero_grad()
    x_BTD.grad = None
    return seconds


def forward(calls: int) -> float:
    """Seconds of so many forwards without gradients."""
    block, x_BTD = state["block"], state["now"].detach()
    with torch.no_grad():
        start = time.perf_counter()
        for _ in range(calls):
            block(x_BTD)
        return time.perf_counter() - start


def choose(training: bool) -> str:
    """Use the fastest implementation for the present inputs, the better of two repeats; its name."""
    config, found = state["config"], {}
    tokens = state["now"].shape[:2].numel()
    copied = 4 * tokens * config.num_experts_per_tok * 3 * config.moe_intermediate_size * config.hidden_size
    for name in IMPLEMENTATIONS if copied <= GATHERED_LIMIT else IMPLEMENTATIONS[:2]:
        config._experts_implementation = name
        work = train if training else lambda: forward(3)
        work()
        found[name] = min(work(), work())
    best = min(found, key=lambda name: found[name])
    config._experts_implementation = best
    return best


if __name__ == "__main__":
    serve({function.__name__: function for function in (build, inputs, train, forward, choose)})
