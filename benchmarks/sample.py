"""Sampling against Hugging Face's `generate`: tokens per second by batch, and the time to the first token.

    python -m benchmarks.sample                # under ten minutes; nothing else should run
    python -m benchmarks.sample --quick

The study size and some 100M parameters, each dense (against Llama), MoE (against Qwen3-MoE, with the fastest of its
`experts_implementation`s at each batch) and MoD (against our dense model), greedy, float32, on the same weights. Tokens
per second are those of the whole call, a prompt of 32 tokens included; the first token's time is a call that asks for
one token after a prompt of 512. Each side has its own process, and they take turns.

Both sides must choose the same tokens. Where they first differ in a sequence, the two likeliest tokens must be a tie:
within 1e-3 in our logits; such sequences are counted. Anything else ends the benchmark.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random

from benchmarks import harness, models
from benchmarks.table import Row
from benchmarks.worker import Worker
from isoflop.spec import DecoderSpec, count, spec_to_dict

OURS, THEIRS = "benchmarks.side_isoflop", "benchmarks.side_transformers"
PROMPT, FIRST_PROMPT = 32, 512
TIE, AGREE = 1e-3, 1e-4
BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class Size:
    """A dense model, the one that gets experts, and how many tokens a call makes."""

    name: str
    dense: DecoderSpec
    for_experts: DecoderSpec
    new: int
    goal: float


STUDY = models.dense(d_model=64, n_layers=4, d_ff=192, context=1024, head_dim=16)
SIZES = (
    Size("study", STUDY, STUDY, 48, 3.0),
    Size(
        "100M",
        models.dense(d_model=768, n_layers=12, d_ff=2048, context=1024, head_dim=64, vocab_size=8192),
        models.dense(d_model=512, n_layers=6, d_ff=1344, context=1024, head_dim=64, vocab_size=8192),
        48,
        1.3,
    ),
)


def prompts(spec: DecoderSpec, batch: int, length: int, seed: int = 0) -> list[list[int]]:
    """Random tokens."""
    random = Random(seed)
    return [[random.randrange(spec.vocab_size) for _ in range(length)] for _ in range(batch)]


def run(quick: bool = False, *, repeats: int | None = None, threads: int | None = None) -> list[Row]:
    """Rows of all sizes and kinds."""
    rows: list[Row] = []
    for size in SIZES[:1] if quick else SIZES:
        for kind in ("dense", "moe"):
            harness.begin(f"{kind} {size.name}")
            rows += compare(size, kind, repeats=harness.turns(quick, repeats), threads=threads)
    return rows


@contextmanager
def built(size: Size, kind: str, threads: int | None) -> Iterator[tuple[DecoderSpec, dict[str, Worker]]]:
    """The workers of one model, with equal weights; the dense one brings its depth-routed twin along."""
    spec = models.with_experts(size.for_experts) if kind == "moe" else size.dense
    their_kind, config = models.theirs(spec)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        with Worker(OURS, threads=threads) as scribe:
            scribe("export", spec=spec_to_dict(spec), out=folder)
        workers = {"ours": stack.enter_context(Worker(OURS, threads=threads))}
        workers["ours"]("build_sampler", spec=spec_to_dict(spec))
        workers["theirs"] = stack.enter_context(Worker(THEIRS, threads=threads))
        difference = workers["theirs"]("build_sampler", kind=their_kind, config=config, directory=folder)
        if not difference <= AGREE:
            raise RuntimeError(f"{kind} {size.name}: logits of both sides differ by {difference:.2g}; not timed")
        if kind == "dense":
            workers["mod"] = stack.enter_context(Worker(OURS, threads=threads))
            workers["mod"]("build_sampler", spec=spec_to_dict(models.with_depth(spec)))
        yield spec, workers


def compare(size: Size, kind: str, *, repeats: int, threads: int | None) -> list[Row]:
    """Rows of one model."""
    rows, of_depth = [], []
    with built(size, kind, threads) as (spec, workers):
        counted = count(spec)
        total = counted.params_total + counted.params_embedding
        case = f"{kind} {size.name}: {total / 1e6:.3g}M parameters, {counted.params_active / 1e6:.3g}M active in blocks"
        for batch, length, new in [*((batch, PROMPT, size.new) for batch in BATCHES), (1, FIRST_PROMPT, 1)]:
            asked = prompts(spec, batch, length)
            note = ""
            if kind == "moe":
                note = f"experts of transformers: {workers['theirs']('choose_implementation', prompts=asked, new=new)}"
            sides = {name: _side(worker, asked, new) for name, worker in workers.items()}
            seconds = harness.in_turn(sides, repeats)
            ties = same_tokens(workers, asked)
            note = "; ".join(part for part in (note, f"{ties} of {batch} part at a tie" if ties else "") if part)
            if new == 1:
                unit, amount, goal = f"ms to 1st token at {length}", None, None
                seconds = {name: [value * 1e3 for value in values] for name, values in seconds.items()}
            else:
                unit, amount, goal = f"tokens/s, batch {batch}", batch * new, size.goal
            rows.append(
                Row.of_costs(
                    case,
                    seconds["ours"],
                    seconds["theirs"],
                    unit=unit,
                    amount=amount,
                    peer_name="HF",
                    goal=goal,
                    note=note,
                )
            )
            if "mod" in seconds:
                own = f"mod {size.name}, an eighth of the tokens in every other block"
                of_depth.append(
                    Row.of_costs(own, seconds["mod"], seconds["ours"], unit=unit, amount=amount, peer_name="dense")
                )
    return rows + of_depth


def _side(worker: Worker, asked: list[list[int]], new: int) -> harness.Side:
    return lambda: worker("sample", prompts=asked, new=new)


def same_tokens(workers: dict[str, Worker], asked: list[list[int]]) -> int:
    """Number of sequences whose continuations part, each at a tie; RuntimeError where one parts elsewhere."""
    ties = 0
    pairs = zip(asked, workers["ours"]("sampled"), workers["theirs"]("sampled"), strict=True)
    for index, (prompt, own, other) in enumerate(pairs):
        parting = first_difference(own, other)
        if parting is None:
            continue
        gap = workers["ours"]("gaps", rows=[prompt + own[:parting]])[0]
        if gap > TIE:
            raise RuntimeError(f"sequence {index} parts at token {parting}, where the logits are {gap:.2g} apart")
        ties += 1
    return ties


def first_difference(own: list[int], other: list[int]) -> int | None:
    """Where two continuations part; None if they are equal. Different lengths are an error."""
    return next((place for place, (a, b) in enumerate(zip(own, other, strict=True)) if a != b), None)


def main() -> None:
    harness.carry_out("sample", run, harness.parser(__doc__).parse_args())


if __name__ == "__main__":
    main()
