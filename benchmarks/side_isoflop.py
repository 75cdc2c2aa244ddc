"""Our side of the comparisons with Hugging Face's transformers, in a process of its own; a Worker.

It trains through `isoflop.train.run.Run`, the trainer itself, so that a step is what `isoflop train` does between two
lines of metrics: batch, learning rate, forward, loss, backward, clipping, AdamW, and the look at whether it diverged.
"""

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import harness, profiling
from benchmarks.worker import peak_rss, serve, warm_rss
from isoflop.data import Batches, TokenData, evaluation_windows
from isoflop.nn import Decoder, calibrate_thresholds
from isoflop.nn.moe import MoE
from isoflop.sample import generate
from isoflop.spec import memory, parse_spec
from isoflop.train import TrainConfig
from isoflop.train.directory import RunDirectory
from isoflop.train.distributed import Ranks
from isoflop.train.resolve import resolve
from isoflop.train.run import Run

CHECKED = (4, 64)
"""Sequences and tokens of the comparison of logits."""
LEARNING_RATE = 1e-4
state: dict[str, Any] = {}


def export(spec: dict[str, Any], out: str) -> None:
    """Write the weights of a fresh model under Hugging Face's names, tokens, and our logits of them."""
    model = Decoder(parse_spec(spec)).eval()
    size, length = CHECKED
    length = min(length, model.spec.context)
    tokens_BT = torch.randint(model.spec.vocab_size, (size, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits_BTV = model(tokens_BT).logits_BTV
    weights = {name: weight.detach().contiguous().clone() for name, weight in named_as_theirs(model).items()}
    save_file(weights, Path(out) / "weights.safetensors")
    save_file({"tokens": tokens_BT, "logits": logits_BTV.contiguous()}, Path(out) / "reference.safetensors")


def named_as_theirs(model: Decoder) -> dict[str, Tensor]:
    """Our weights under the names of LlamaForCausalLM or Qwen3MoeForCausalLM (untied head)."""
    attention = model.spec.attention
    width, kv_width = attention.width, attention.kv_heads * attention.head_dim
    named = {"model.embed_tokens.weight": model.embedding_VD, "model.norm.weight": model.final_gain}
    named["lm_head.weight"] = model.head_VD
    for layer, block in enumerate(model.blocks):
        own, at = block, f"model.layers.{layer}."
        named[f"{at}input_layernorm.weight"] = own.attention_gain
        named[f"{at}post_attention_layernorm.weight"] = own.feed_forward_gain
        parts = own.attention.w_qkv.split((width, kv_width, kv_width))
        named |= {f"{at}self_attn.{name}_proj.weight": part for name, part in zip("qkv", parts, strict=True)}
        named[f"{at}self_attn.o_proj.weight"] = own.attention.w_out
        if attention.qk_norm:
            named |= {f"{at}self_attn.{name}_norm.weight": getattr(own.attention, f"{name}_gain") for name in "qk"}
        inner = own.feed_forward
        if isinstance(inner, MoE):
            named[f"{at}mlp.gate.weight"] = inner.router.w_XD
            named[f"{at}mlp.experts.gate_up_proj"] = inner.w_up.mT
            named[f"{at}mlp.experts.down_proj"] = inner.w_down.mT
        else:
            gate, up = inner.w_up.chunk(2)
            named |= {f"{at}mlp.gate_proj.weight": gate, f"{at}mlp.up_proj.weight": up}
            named[f"{at}mlp.down_proj.weight"] = inner.w_down
    return named


def export_batches(data: str, context: int, batch: int, steps: int, out: str) -> None:
    """Write the batches of the first steps, as our trainer will draw them."""
    batches = Batches(TokenData(data), context=context, batch_size=batch)
    drawn = torch.stack([torch.from_numpy(batches.batch(step)) for step in range(steps)])
    save_file({"batches": drawn.contiguous()}, Path(out) / "batches.safetensors")


def build_trainer(spec: dict[str, Any], data: str, batch: int, out: str) -> None:
    """A run that could train for long."""
    state["before"] = warm_rss()
    parsed = parse_spec(spec)
    tokens = TokenData(data)
    config = TrainConfig(
        tokens=1e9,
        batch_tokens=batch * parsed.context,
        micro_batch=batch,
        learning_rate=LEARNING_RATE,
        warmup_fraction=0.0,
        evaluation_tokens=parsed.context,
    )
    plan = resolve(parsed, config)
    directory = RunDirectory(Path(out))
    directory.claim(parsed, config, plan, tokens)
    state["run"] = Run(
        parsed,
        config,
        plan,
        batches=Batches(tokens, context=parsed.context, batch_size=batch),
        windows_WT=evaluation_windows(tokens, context=parsed.context, tokens=parsed.context),
        bytes_per_token=1.0,
        directory=directory,
        device=torch.device("cpu"),
        ranks=Ranks(),
    )
    state["estimate"] = memory(parsed, batch_tokens=batch * parsed.context, device="cpu")


def _step() -> None:
    run: Run = state["run"]
    run._train_step()
    run._check_divergence(False)
    if run.error is not None:
        raise RuntimeError(run.error)


def train(steps: int) -> float:
    """Seconds of so many steps."""
    start = time.perf_counter()
    for _ in range(steps):
        _step()
    return time.perf_counter() - start


def step_memory() -> dict[str, int]:
    """Bytes: the process's peak since before the model was built, and what isoflop.spec.memory says."""
    return {"peak": peak_rss() - state["before"], "estimate": state["estimate"].total}


def tensor_memory() -> int:
    """Most bytes of tensors in a step: those that stay between steps, and what a step adds."""
    run: Run = state["run"]
    _step()
    run.optimizer.zero_grad(set_to_none=True)
    kept = [*run.model.parameters(), *run.model.buffers()]
    kept += [t for moments in run.optimizer.state.values() for t in moments.values()]
    return sum(tensor.nbytes for tensor in kept) + profiling.peak_of_tensors(_step)


def profile(steps: int) -> dict[str, Any]:
    """Milliseconds of a training step by kind."""
    return profiling.profile(_step, steps)


def build_sampler(spec: dict[str, Any]) -> None:
    """A model that generates; a depth-routed one with calibrated thresholds."""
    model = Decoder(parse_spec(spec)).eval()
    if model.needs_calibration:
        generator = torch.Generator().manual_seed(2)
        shape, vocab_size = (4, min(512, model.spec.context)), model.spec.vocab_size
        calibrate_thresholds(model, [torch.randint(vocab_size, shape, generator=generator) for _ in range(4)])
        model.decisions = "sampled"
    state["model"] = model


def sample(prompts: list[list[int]], new: int) -> float:
    """Seconds of a greedy continuation, which is kept."""
    start = time.perf_counter()
    state["tokens"] = generate(state["model"], prompts, max_new_tokens=new, temperature=0)
    return time.perf_counter() - start


def sampled() -> list[list[int]]:
    """The last continuation."""
    tokens: list[list[int]] = state["tokens"]
    return tokens


@torch.no_grad()
def gaps(rows: list[list[int]]) -> list[float]:
    """Of each text (one length): how far the two likeliest next tokens are apart, in logits."""
    best = state["model"](torch.tensor(rows)).logits_BTV[:, -1].topk(2).values
    found: list[float] = (best[:, 0] - best[:, 1]).tolist()
    return found


if __name__ == "__main__":
    served = (export, export_batches, build_trainer, train, step_memory, tensor_memory, profile)
    served = (*served, build_sampler, sample, sampled, gaps, harness.peak_flops)
    serve({function.__name__: function for function in served})
