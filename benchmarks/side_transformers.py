"""Hugging Face transformers' side of the comparisons, in a process that never loads isoflop; a Worker.

It trains as transformers' Trainer does by default: SDPA attention, no key/value cache, AdamW (fused) with decay on
matrices alone, gradients clipped to norm 1; without what the Trainer itself costs around a step. The load-balancing
loss of an MoE is on, as it is on our side.
"""

import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from benchmarks import profiling
from benchmarks.worker import peak_rss, serve, warm_rss

IMPLEMENTATIONS = ("grouped_mm", "eager", "batched_mm")
GATHERED_LIMIT = 2**31
"""Bytes of weights above which batched_mm, which copies a token's experts, is not even tried."""
LEARNING_RATE = 1e-4
state: dict[str, Any] = {}


def _model(kind: str, config: dict[str, Any], directory: str) -> Any:
    named = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
    }
    config_class, model_class = named[kind]
    model = model_class(config_class(**config))
    model.load_state_dict(load_file(Path(directory) / "weights.safetensors"), strict=True)
    state.update(model=model, is_moe=kind == "qwen3_moe", config=config)
    return model


def _differ(directory: str) -> float:
    """Largest difference of logits from ours."""
    reference = load_file(Path(directory) / "reference.safetensors")
    with torch.no_grad():
        logits = state["model"](input_ids=reference["tokens"], use_cache=False).logits
    return float((logits - reference["logits"]).abs().max())


def build_trainer(kind: str, config: dict[str, Any], directory: str, experts: str | None) -> float:
    """Model and optimiser; returns the largest difference of logits from ours."""
    state["before"] = warm_rss()
    model = _model(kind, config, directory)
    if experts is not None:
        model.set_experts_implementation(experts)
    difference = _differ(directory)
    model.train()
    decayed = [weight for weight in model.parameters() if weight.ndim >= 2]
    plain = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    state["optimizer"] = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, fused=True)
    state["batches"] = load_file(Path(directory) / "batches.safetensors")["batches"]
    state["done"] = 0
    return difference


def _step() -> None:
    model, batches = state["model"], state["batches"]
    tokens_BT = batches[state["done"] % len(batches), :, :-1]
    state["done"] += 1
    extra = {"output_router_logits": True} if state["is_moe"] else {}
    loss = model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False, **extra).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    state["optimizer"].step()
    model.zero_grad()


def train(steps: int) -> float:
    """Seconds of so many steps."""
    start = time.perf_counter()
    for _ in range(steps):
        _step()
    return time.perf_counter() - start


def _implementations(tokens: int) -> tuple[str, ...]:
    config = state["config"]
    copied = 4 * tokens * config["num_experts_per_tok"] * 2 * config["moe_intermediate_size"] * config["hidden_size"]
    return IMPLEMENTATIONS if copied <= GATHERED_LIMIT else IMPLEMENTATIONS[:2]


def implementations() -> dict[str, float]:
    """Seconds of a training step with each implementation of the experts, the better of two."""
    found = {}
    for name in _implementations(state["batches"][0, :, :-1].numel()):
        state["model"].set_experts_implementation(name)
        train(1)
        found[name] = min(train(1), train(1))
    return found


def step_memory() -> dict[str, int]:
    """Bytes: the process's peak since before the model was built."""
    return {"peak": peak_rss() - state["before"]}


def profile(steps: int) -> dict[str, Any]:
    """Milliseconds of a training step by kind."""
    return profiling.profile(_step, steps)


def build_sampler(kind: str, config: dict[str, Any], directory: str) -> float:
    """A model that generates and knows no end; returns the largest difference of logits from ours."""
    model = _model(kind, config, directory).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return _differ(directory)


def sample(prompts: list[list[int]], new: int) -> float:
    """Seconds of a greedy continuation, which is kept."""
    tokens_BT = torch.tensor(prompts)
    start = time.perf_counter()
    tokens_BT = state["model"].generate(
        tokens_BT, attention_mask=torch.ones_like(tokens_BT), max_new_tokens=new, do_sample=False
    )
    taken = time.perf_counter() - start
    state["tokens"] = tokens_BT[:, len(prompts[0]) :].tolist()
    return taken


def sampled() -> list[list[int]]:
    """The last continuation."""
    tokens: list[list[int]] = state["tokens"]
    return tokens


def choose_implementation(prompts: list[list[int]], new: int) -> str:
    """Set the implementation of the experts that continues these prompts fastest, the better of two; its name."""
    found = {}
    for name in _implementations(sum(map(len, prompts))):
        state["model"].set_experts_implementation(name)
        sample(prompts, new)
        found[name] = min(sample(prompts, new), sample(prompts, new))
    best = min(found, key=lambda name: found[name])
    state["model"].set_experts_implementation(best)
    return best


if __name__ == "__main__":
    served = (build_trainer, train, implementations, step_memory, profile)
    served = (*served, build_sampler, sample, sampled, choose_implementation)
    serve({function.__name__: function for function in served})
