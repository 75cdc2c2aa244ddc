"""The PyPI package `mixture-of-depth` 1.2.0: its training step against its own vanilla twin, and what it gets wrong.

    python -m venv peer && peer/bin/pip install torch mixture-of-depth==1.2.0 transformers==4.41.2
    peer/bin/python benchmarks/depth_peer.py             # in that environment alone; it does not need isoflop

The package names no version of transformers; its wrapper reads `block.hidden_size` and hands `cache_position` on, as
Llama's layers of 4.41 (June 2024, as the package) have them. Shape, tokens and measurement are those of
benchmarks/depth.py. Its capacity starts at 1 and falls with every forward of a router in training mode; for timing it
stands at 1/8. Each check prints what was found beside what is right; in brackets the test of ours that holds the same
property (tests/nn/test_depth.py unless said otherwise).
"""

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from MoD import MoD, apply_mod_to_hf
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, CONTEXT, LAYERS, WIDTH, HIDDEN, HEADS = 257, 1024, 8, 512, 1408, 8


def build(routed: bool, *, layers: int = LAYERS, context: int = CONTEXT) -> LlamaForCausalLM:
    """The shape of benchmarks/depth.py, with capacity 1/8 reached."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=context,
        attn_implementation="sdpa",
        architectures=["LlamaForCausalLM"],
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        initializer_range=WIDTH**-0.5,
    )
    model = LlamaForCausalLM(config)
    if routed:
        model = apply_mod_to_hf(model)
        for layer in wrapped(model):
            layer.training_step = 10**9
    return model


def wrapped(model: LlamaForCausalLM) -> list[MoD]:
    """The routed blocks."""
    return [layer for layer in model.model.layers if isinstance(layer, MoD)]


def text(batch: int, length: int, seed: int = 0) -> Tensor:
    """Random tokens, none of them padding."""
    return torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def places(tokens_BT: Tensor) -> Tensor:
    """Positions of each sequence; without them the package fails at two sequences (check `batch`)."""
    return torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)


def flops(routed: bool) -> float:
    """Forward FLOPs a token, every product; a token attends to (n+1)/2 keys on average (isoflop's `exact`)."""
    matrices = 2.0 * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN)
    full = matrices + 2.0 * (CONTEXT + 1) * WIDTH
    kept = CONTEXT // 8
    part = kept / CONTEXT * (matrices + 2.0 * (kept + 1) * WIDTH) + 2.0 * WIDTH
    return LAYERS // 2 * (full + (part if routed else full)) + 2.0 * VOCABULARY * WIDTH


def step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, tokens_BT: Tensor) -> None:
    """Forward, backward, clipping, AdamW."""
    model(tokens_BT, labels=tokens_BT, position_ids=places(tokens_BT), use_cache=False).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def train(batch: int, repeats: int) -> None:
    """Step of the package's model against its vanilla twin, in turn."""
    tokens_BT = text(batch, CONTEXT)
    steps: dict[str, Callable[[], None]] = {}
    for name, routed in (("dense", False), ("routed", True)):
        model = build(routed).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        steps[name] = partial(step, model, optimizer, tokens_BT)
        steps[name]()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, one in steps.items():
            start = time.perf_counter()
            one()
            times[name].append(time.perf_counter() - start)
    ratios = [own / other for own, other in zip(times["routed"], times["dense"], strict=True)]
    expected = flops(True) / flops(False)
    print(f"training step, {batch} sequences of {CONTEXT} tokens, median of {repeats} (quartiles)")
    for name, values in times.items():
        print(f"  {name:<8}{show(values)} s")
    print(
        f"  time ratio {show(ratios)}; FLOP ratio {expected:.4f}; ratio of both {show([r / expected for r in ratios])}"
    )


def show(values: list[float]) -> str:
    """Median (quartiles)."""
    ordered = sorted(values)
    n = len(ordered)
    return f"{ordered[n // 2]:.3f} ({ordered[n // 4]:.3f}–{ordered[(3 * n) // 4]:.3f})"


def small(routed: bool = True) -> LlamaForCausalLM:
    """Four blocks, two of them routed."""
    return build(routed, layers=4, context=256).eval()


def seen(model: LlamaForCausalLM, call: Callable[[], object]) -> list[dict[str, Any]]:
    """What the routed blocks' inner layers are given while `call` runs."""
    found: list[dict[str, Any]] = []

    def hook(index: int, _: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        found.append({"layer": index, "x": args[0].detach(), **kwargs})

    handles = [
        layer.block.register_forward_pre_hook(partial(hook, index), with_kwargs=True)
        for index, layer in enumerate(wrapped(model))
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return found


def later_tokens() -> str:
    """right: at sampling, logits of tokens 0–63 do not depend on token 64 and later
    [test_as_sampled_later_tokens_change_no_earlier_logit]"""
    model = small()
    first, second = text(1, 128), text(1, 128)
    second[:, 64:] = text(1, 64, seed=1)
    difference = model(first, use_cache=False).logits - model(second, use_cache=False).logits
    return f"they change by up to {difference[:, :64].abs().max():.3f} in eval mode; there is no causal rule"


def number_kept() -> str:
    """right: 16 of 128 tokens take part [test_exactly_the_capacity_takes_part_as_trained]"""
    model = small()
    counts = [call["x"].shape[1] for call in seen(model, lambda: model(text(1, 128), use_cache=False))]
    return f"{counts[0]} take part: `weights > threshold` drops the 16th"


def constant_scores() -> str:
    """right: tied scores still keep 16 of 128 [top-k by index: test_exactly_the_capacity_takes_part_as_trained]"""
    model = small()
    for layer in wrapped(model):
        layer.router.weight_predictor.weight.zero_()
    return f"{len(seen(model, lambda: model(text(1, 128), use_cache=False)))} calls of a routed block: none takes part"


def gated_residual() -> str:
    """right: a block that adds nothing leaves the stream unchanged
    [test_values_and_gradients_equal_the_oracles, test_a_token_that_is_passed_by_is_unchanged]"""
    model = small()
    layer = wrapped(model)[0]
    layer.block.self_attn.o_proj.weight.zero_()
    layer.block.mlp.down_proj.weight.zero_()
    x = torch.randn(1, 128, WIDTH)
    positions = torch.arange(128)[None]
    y = layer(x, None, positions, None, False, False, cache_position=positions[0])[0]
    scale = (y / x).mean(-1)[0]
    touched = scale[(scale - 1).abs() > 1e-3]
    low, high = touched.min(), touched.max()
    return f"kept tokens' own stream is multiplied by the router weight, here by {low:.2f} to {high:.2f}"


def positions() -> str:
    """right: kept tokens keep their original positions [test_values_and_gradients_equal_the_oracles]"""
    model = small()
    found = seen(model, lambda: model(text(1, 128), use_cache=False))[0]["position_ids"][0]
    kept = not torch.equal(found, torch.arange(found.shape[0]))
    return "they do: no fault" if kept else "they are renumbered"


def decoding() -> str:
    """right: with a cache an eighth of the new tokens enters a routed block
    [test_calibrated_rules_keep_the_capacity_on_average]"""
    model = small()
    cache = model(text(1, 64), use_cache=True).past_key_values
    entered = 0
    for step in range(32):
        found = seen(model, partial(model, text(1, 1, seed=step), past_key_values=cache, use_cache=True))
        entered += sum(call["x"].shape[1] for call in found)
    return f"{entered / (32 * len(wrapped(model))):.0%} enter: top-k over one token; nothing is saved"


def cached() -> str:
    """right: cached logits equal uncached ones [test_cached_logits_equal_uncached_ones, to 1e-5]"""
    found = []
    for model in (small(), small(routed=False)):
        tokens_BT = text(1, 96)
        expected = model(tokens_BT, use_cache=False).logits[:, 64:]
        cache = model(tokens_BT[:, :64], use_cache=True).past_key_values
        pieces = []
        for token in tokens_BT[:, 64:].split(1, dim=1):
            output = model(token, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            pieces.append(output.logits)
        difference = (torch.cat(pieces, 1) - expected).abs().max()
        agree = (torch.cat(pieces, 1).argmax(-1) == expected.argmax(-1)).float().mean()
        found.append(f"they differ by up to {difference:.2g}; {agree:.0%} of the greedy tokens agree")
    return f"{found[0]} (vanilla twin: {found[1]})"


def together() -> str:
    """right: a prompt continues as it does alone [test_padded_cache_equals_each_sequence_alone]"""
    found = []
    for model in (small(), small(routed=False)):
        prompts = text(2, 64)
        options = {"max_new_tokens": 32, "do_sample": False}
        alone = torch.cat([model.generate(p[None], attention_mask=torch.ones(1, 64), **options) for p in prompts])
        both = model.generate(prompts, attention_mask=torch.ones(2, 64), **options)
        same = (alone[:, 64:] == both[:, 64:]).float().mean(1)
        found.append(f"of two prompts' new tokens {same[0]:.0%} and {same[1]:.0%} are those of the prompt alone")
    return f"{found[0]} (vanilla twin: {same[0]:.0%} and {same[1]:.0%})"


def batch() -> str:
    """right: two sequences without explicit positions"""
    model = small()
    return f"logits of shape {tuple(model(text(2, 64), use_cache=False).logits.shape)}: no fault"


def padded() -> str:
    """right: padding takes no place of a real token [test_padded_cache_equals_each_sequence_alone]"""
    model = small()
    streams: list[Tensor] = []
    for layer in wrapped(model):
        layer.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    places = real = 0
    for pad in range(2, 34):  # any token: most users of Llama pad with the end of text
        tokens_BT, mask_BT = text(1, 128, seed=pad), torch.ones(1, 128, dtype=torch.long)
        tokens_BT[0, :96], mask_BT[0, :96] = pad, 0
        streams.clear()
        for given in seen(model, partial(model, tokens_BT, attention_mask=mask_BT, use_cache=False)):
            distances_CP = torch.cdist(given["x"][0], streams[given["layer"]][0, :96])
            real += int((distances_CP.amin(1) > 1e-6).sum())
        places += 15 * len(wrapped(model))
    return f"32 real tokens, 96 of padding: real ones take {real} of {places} places, padding competes for the others"


def capacity() -> str:
    """right: capacity belongs to the model's description [tests/spec/test_depth_routing.py]"""
    model = build(True, layers=4, context=256).train()
    layer = wrapped(model)[0]
    layer.training_step = 0
    found = []
    for _ in range(4):
        model(text(1, 64), use_cache=False)
        found.append(layer.capacity)
    saved = [name for name in model.state_dict() if "capacity" in name or "training_step" in name]
    falling = ", ".join(f"{share:.2f}" for share in found)
    return f"it is {falling} in the first forwards, and in no checkpoint ({len(saved)} entries)"


CHECKS = (
    later_tokens,
    number_kept,
    constant_scores,
    gated_residual,
    positions,
    decoding,
    cached,
    together,
    batch,
    padded,
    capacity,
)


@torch.no_grad()
def check() -> None:
    """Run every check and print what was found; an error of the package is a finding."""
    for run in CHECKS:
        try:
            found = run()
        except Exception as error:
            found = f"it fails: {type(error).__name__}: {str(error).splitlines()[0]}"
        right = " ".join((run.__doc__ or "").split())
        print(f"  {run.__name__:<16}{right}\n{'':<18}found: {found}", flush=True)


def main() -> None:
    """Print the checks and the step time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", choices=("check", "train"), action="append", help="default: both")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        "mixture-of-depth 1.2.0; float32"
    )
    parts = arguments.part or ["check", "train"]
    if "check" in parts:
        check()
    if "train" in parts:
        train(arguments.batch, arguments.repeats)


if __name__ == "__main__":
    main()
