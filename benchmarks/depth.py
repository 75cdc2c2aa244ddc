"""Depth routing against its vanilla twin of the same shape: training step, peak memory, time per sampled token.

    python -m benchmarks.depth                           # a quarter of an hour; nothing else should run
    python -m benchmarks.depth --part sample --threads 1

d_model 512, 8 blocks, context 1024, bytes; every other block is routed with capacity 1/8. Both models live in one
process and take turns; the median of the rounds' ratios is kept, with its quartiles. The bars (issue "Mixture-of-
Depths", section 4): the step's time falls to at most 1.12 × the FLOP ratio, and a sampled token's time by at least 80%
of what its FLOPs fall by, at batch 8 or more.

FLOPs are `isoflop.count`'s. Training is held against `exact` (a token attends to (n+1)/2 keys), because PyTorch's
attention skips the blocks above the diagonal; `exact-full` is printed beside it. A sampled token attends to all n keys
before it, so there `exact-full` is exact; the share of tokens is the one that routed blocks really computed in the
timed steps. A routed block's weights are read even for one token of the batch, which its FLOPs do not show: `reachable`
is what is left of the ideal saving if a routed block that keeps m tokens takes what the dense model's block takes with
m sequences of an eighth of the length, measured in the same process. Peak memory is the largest resident set of a fresh
process for each model, less what that process had after its imports.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks import harness
from benchmarks.table import Row, Spread
from benchmarks.worker import peak_rss, warm_rss
from isoflop.nn import Decoder, KVCache, calibrate_thresholds
from isoflop.spec import AttentionSpec, DecoderSpec, DepthRoutingSpec, FeedForwardSpec, count, memory

DENSE = DecoderSpec(
    vocab_size=257,
    context=1024,
    n_layers=8,
    d_model=512,
    attention=AttentionSpec(n_heads=8, head_dim=64),
    feed_forward=FeedForwardSpec(d_ff=1408),
)
ROUTED = replace(DENSE, depth_routing=DepthRoutingSpec(capacity=0.125, every=2))
SPECS = {"dense": DENSE, "routed": ROUTED}
STEP_BAR, SAMPLE_BAR = 1.12, 0.8
PARTS = ("train", "memory", "sample")


def median(values: list[float]) -> float:
    """Of the repeats."""
    return Spread.of(values).median


def show(values: list[float], scale: float = 1.0, digits: int = 3) -> str:
    """Median (quartiles)."""
    found = Spread.of([scale * value for value in values])
    return f"{found.median:.{digits}f} ({found.low:.{digits}f}–{found.high:.{digits}f})"


def text(batch: int, length: int, seed: int) -> Tensor:
    """Random bytes, [batch, length]."""
    return torch.randint(0, DENSE.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def stepper(spec: DecoderSpec, batch: int) -> Callable[[], None]:
    """One training step on random bytes: forward, backward, clipping, AdamW."""
    model = Decoder(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens_BT = text(batch, spec.context + 1, seed=0)

    def step() -> None:
        output = model(tokens_BT[:, :-1])
        loss = cross_entropy(output.logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten()) + output.auxiliary_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def train(batch: int, repeats: int) -> list[Row]:
    """Training step: time ratio over FLOP ratio."""
    sides = {name: harness.timed(stepper(spec, batch)) for name, spec in SPECS.items()}
    times = harness.in_turn(sides, repeats)
    ratios = [own / other for own, other in zip(times["routed"], times["dense"], strict=True)]
    print(f"training step, {batch} sequences of {DENSE.context} tokens, median of {repeats} (quartiles)")
    for name, values in times.items():
        rate = count(SPECS[name]).training_flops_per_token * batch * DENSE.context / median(values)
        print(f"  {name:<8}{show(values)} s, {rate / 1e9:.0f} GFLOP/s (exact)")
    print(f"  time ratio {show(ratios)}")
    notes = []
    for convention in ("exact", "exact-full"):
        own, other = (count(SPECS[name], convention=convention) for name in ("routed", "dense"))
        flops = own.training_flops_per_token / other.training_flops_per_token
        bar = f"; at most {STEP_BAR}" if convention == "exact" else ""
        notes.append(f"FLOP ratio, {convention}: {flops:.4f}; time / FLOPs {show([r / flops for r in ratios])}{bar}")
        print(f"  {notes[-1]}")
    case = f"MoD d_model {DENSE.d_model}, {DENSE.n_layers} blocks, capacity 1/8: training step"
    name = "our dense"
    return [Row.of_costs(case, times["routed"], times["dense"], unit="s", peer_name=name, note=notes[0])]


def step_memory(name: str, batch: int) -> None:
    """Print what three steps add to the peak of this process, in bytes."""
    before = warm_rss()
    step = stepper(SPECS[name], batch)
    for _ in range(3):
        step()
    print(peak_rss() - before)


def peak_memory(batch: int, threads: int) -> list[Row]:
    """Peak memory of a step beside the estimate."""
    print(f"peak memory of a training step, {batch} sequences of {DENSE.context} tokens, each model in its own process")
    found, estimates = {}, {}
    for name, spec in SPECS.items():
        command = [sys.executable, "-m", "benchmarks.depth", "--step-memory", name]
        command += ["--batch", str(batch), "--threads", str(threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=harness.ROOT)
        found[name] = int(done.stdout)
        estimates[name] = memory(spec, batch_tokens=batch * spec.context)
        total = estimates[name].total
        print(
            f"  {name:<8}{found[name] / 2**20:,.0f} MiB; isoflop.spec.memory {total / 2**20:,.0f} MiB, of which "
            f"activations {estimates[name].activations / 2**20:,.0f}; measured / estimate {found[name] / total:.2f}"
        )
    estimated = estimates["routed"].total / estimates["dense"].total
    print(f"  ratio {found['routed'] / found['dense']:.3f}; estimated {estimated:.3f}")
    own, other = ([found[name] / 2**20] for name in ("routed", "dense"))
    note = f"estimated 1/{1 / estimated:.2f}"
    case = "MoD, peak memory of a training step"
    return [Row.of_costs(case, own, other, unit="MiB", peer_name="our dense", note=note)]


class Sampler:
    """A model with a filled cache, that decodes one given token of each sequence at a time."""

    def __init__(self, model: Decoder, tokens_BT: Tensor, room: int) -> None:
        self.model = model
        self.cache = KVCache(model.spec, tokens_BT.shape[0], tokens_BT.shape[1] + room)
        self.shares: list[float] = []
        self.model(tokens_BT, cache=self.cache)

    def seconds(self, tokens_B1: Tensor) -> float:
        """Of one decoding step, with the greedy choice."""
        start = time.perf_counter()
        output = self.model(tokens_B1, cache=self.cache)
        output.logits_BTV[:, -1].argmax(-1).tolist()
        passed = time.perf_counter() - start
        self.shares += [block.kept_share.item() for block in output.depth]
        return passed


def block_times(
    dense: Decoder, batches: list[int], prompt: int, rounds: int = 7, steps: int = 8
) -> Callable[[int], float]:
    """Seconds of a block of the dense model by the number of sequences that decode a token (median), between them."""
    samplers = {m: Sampler(dense, text(m, prompt, seed=30), (rounds + 1) * steps) for m in batches}
    times: dict[int, list[float]] = {m: [] for m in batches}
    for index in range(rounds + 1):
        for m, sampler in samplers.items():
            total = sum(sampler.seconds(text(m, 1, seed=step)) for step in range(steps)) / steps
            times[m] += [total] if index else []
    middle = {0: 0.0} | {m: median(values) / DENSE.n_layers for m, values in times.items()}

    def at(m: int) -> float:
        low = max(known for known in middle if known <= m)
        high = min((known for known in middle if known >= m), default=low)
        if high == low:
            return middle[low] * max(m, 1) / max(low, 1)
        return middle[low] + (m - low) / (high - low) * (middle[high] - middle[low])

    return at


@torch.no_grad()
def sample(batches: list[int], prompt: int, rounds: int, steps: int) -> list[Row]:
    """Decoding step: share of the ideal saving."""
    rows = []
    dense, routed = Decoder(DENSE), Decoder(ROUTED)
    calibrate_thresholds(routed, [text(4, DENSE.context, seed=1 + index) for index in range(4)])
    routed.decisions = "sampled"
    shares = [block.kept_share.item() for block in routed(text(4, DENSE.context, seed=9)).depth]
    print(f"sampling after {prompt} tokens, {rounds} rounds of {steps} steps in turn, medians (quartiles)")
    print(f"  calibrated on 16,384 tokens; share kept on others, by block: {', '.join(f'{s:.3f}' for s in shares)}")
    sizes = [m for m in (1, 2, 3, 4, 6, 8, 12, 16, 24) if m <= max(batches) // 4 + 1]
    block = block_times(dense, sizes, prompt // 8, rounds=min(7, rounds), steps=min(8, steps))
    for batch in batches:
        tokens_BT = text(batch, prompt, seed=20)
        own = Sampler(routed, tokens_BT, (rounds + 1) * steps)
        other = Sampler(dense, tokens_BT, (rounds + 1) * steps)
        times: tuple[list[float], list[float]] = ([], [])
        for index in range(rounds + 1):
            totals = [0.0, 0.0]
            for step in range(steps):
                next_B1 = text(batch, 1, seed=1000 + index * steps + step)
                totals[0] += own.seconds(next_B1) / steps
                totals[1] += other.seconds(next_B1) / steps
            if index == 0:  # to warm up
                own.shares.clear()
                continue
            for kept, total in zip(times, totals, strict=True):
                kept.append(total)
        share = sum(own.shares) / len(own.shares)
        seen = replace(ROUTED, depth_routing=DepthRoutingSpec(capacity=max(share, 1e-9), every=2))
        context = prompt + steps + rounds * steps // 2
        flops = [
            count(spec, context=context, convention="exact-full").flops_per_token["total"] for spec in (seen, DENSE)
        ]
        ideal = 1 - flops[0] / flops[1]
        ratios = [mine / theirs for mine, theirs in zip(*times, strict=True)]
        kept_rows = [round(kept * batch) for kept in own.shares]
        routed_blocks = len(ROUTED.routed_layers) / ROUTED.n_layers
        limit = (
            1
            - routed_blocks
            + ROUTED.n_layers * routed_blocks * sum(map(block, kept_rows)) / len(kept_rows) / median(times[1])
        )
        reached = [(1 - ratio) / ideal for ratio in ratios]
        bar = f"; at least {SAMPLE_BAR}" if batch >= 8 else ""
        print(
            f"  batch {batch}: dense {show(times[1], 1e3, 2)} ms, routed {show(times[0], 1e3, 2)} ms a step, "
            f"{batch / median(times[1]):.0f} and {batch / median(times[0]):.0f} tokens/s\n"
            f"    share computed {share:.4f}; FLOP ratio {1 - ideal:.4f}; time ratio {show(ratios)}; "
            f"of the ideal saving {show(reached)}{bar}, reachable {(1 - limit) / ideal:.3f}; "
            f"cache {own.cache.bytes / other.cache.bytes:.3f}",
            flush=True,
        )
        note = f"of the ideal saving {show(reached)}{bar}, reachable {(1 - limit) / ideal:.3f}"
        case = f"MoD, a decoded token after {prompt}, batch {batch}"
        own_ms, other_ms = ([1e3 * value for value in each] for each in times)
        rows.append(Row.of_costs(case, own_ms, other_ms, unit="ms", peer_name="our dense", note=note))
    return rows


def run(
    quick: bool = False,
    *,
    repeats: int | None = None,
    threads: int | None = None,
    parts: tuple[str, ...] = PARTS,
    batch: int | None = None,
    prompt: int = 512,
    steps: int | None = None,
    sample_batches: list[int] | None = None,
) -> list[Row]:
    """Rows of the parts that were asked for; what was found is printed in full on the way."""
    threads, turns = threads or os.cpu_count() or 1, harness.turns(quick, repeats)
    torch.set_num_threads(threads)
    batch, rows = batch or (1 if quick else 4), []
    if "train" in parts:
        rows += train(batch, turns)
    if "memory" in parts:
        rows += peak_memory(batch, threads)
    if "sample" in parts:
        batches = sample_batches or ([1] if quick else [1, 8, 32, 128])
        rows += sample(batches, prompt, turns, steps or (4 if quick else 16))
    return rows


def main() -> None:
    """Print the parts that were asked for."""
    parser = harness.parser(__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--batch", type=int, help="sequences in a training step; default 4, quick 1")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, help="decoding steps in a round; default 16, quick 4")
    parser.add_argument("--sample-batches", type=int, nargs="+", help="default 1 8 32 128, quick 1")
    parser.add_argument("--step-memory", choices=tuple(SPECS), help="print the peak of one model, and nothing else")
    arguments = parser.parse_args()
    if arguments.step_memory:
        torch.set_num_threads(arguments.threads)
        step_memory(arguments.step_memory, arguments.batch)
        return
    harness.carry_out(
        "depth",
        run,
        arguments,
        parts=tuple(arguments.part or PARTS),
        batch=arguments.batch,
        prompt=arguments.prompt,
        steps=arguments.steps,
        sample_batches=arguments.sample_batches,
    )


if __name__ == "__main__":
    main()
