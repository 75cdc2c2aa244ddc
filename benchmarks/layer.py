"""One MoE layer: against a dense layer of the same active FLOPs, against transformers, and against the machine's limit.

    python -m benchmarks.layer                 # minutes; nothing else should run
    python -m benchmarks.layer --quick

Five shapes, float32, 4,096 tokens, forward and backward, router included in the time and not in the FLOPs. `dense` is
isoflop.nn.FeedForward of width d_ff in the same process, `torch's dense` the same of three torch.nn.Linear. Then the
forward pass alone of 1, 8 and 64 tokens, as while sampling (`MoE.sample`), where a dense layer reads each weight once
for all tokens, and experts once for each token that chose them.

transformers runs Qwen3-MoE's block on the same weights (outputs are compared first) with the fastest of its
`experts_implementation`s, in processes of its own that take turns with ours: as it comes (`transformers`), and told to
keep freed memory, as isoflop does (`…, tuned`).

The limit is what the layer would take if its products ran at the rate that single-thread products of the experts' own
shapes reach here on all threads, and everything else moved its bytes at the speed of a copy: rows in (x twice, the
gradient once), rows out (two sums), hidden rows.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks import harness
from benchmarks.harness import in_turn
from benchmarks.table import Row
from benchmarks.worker import Worker
from isoflop.nn import MoE, keep_freed_memory
from isoflop.nn._threads import spread
from isoflop.nn.feed_forward import FeedForward
from isoflop.nn.grouped import RowGroups
from isoflop.spec import ExpertsSpec, RouterSpec

THEIRS = "benchmarks.side_layer"
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(2**26)}
TOKENS = 4096
FEW = (1, 8, 64)
AGREE = 1e-4


@dataclass(frozen=True)
class Shape:
    """One row of the comparison."""

    d_model: int
    d_ff: int
    expansion_rate: int
    granularity: int
    goal: float
    """Least speed relative to the dense layer."""
    times: float | None
    """Least speed relative to transformers."""

    @property
    def name(self) -> str:
        """As it stands in tables."""
        experts, width = self.expansion_rate * self.granularity, self.d_ff // self.granularity
        return f"d {self.d_model}, {experts} experts of {width}, {self.granularity} a token"

    def experts(self, kind: str = "token_choice") -> ExpertsSpec:
        """Of the layer."""
        return ExpertsSpec(
            granularity=self.granularity,
            expansion_rate=self.expansion_rate,
            output_norm=False,
            router=RouterSpec(kind=kind),  # type: ignore[arg-type]
        )


SHAPES = (
    Shape(256, 1024, 8, 1, 0.90, None),
    Shape(256, 1024, 8, 4, 0.82, None),
    Shape(256, 1024, 8, 8, 0.78, 2.0),
    Shape(512, 1536, 8, 8, 0.78, 2.0),
    Shape(512, 1536, 32, 16, 0.65, 2.0),
)


class _Plain(torch.nn.Module):
    """The dense layer as it is usually written: three torch.nn.Linear."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(d_model, d_ff, bias=False)
        self.up = torch.nn.Linear(d_model, d_ff, bias=False)
        self.down = torch.nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        y_BTD: torch.Tensor = self.down(torch.nn.functional.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return y_BTD


def layer(shape: Shape, kind: str = "token_choice") -> MoE:
    """A fresh layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the finest spends more on routing than on experts
        return MoE(d_model=shape.d_model, d_ff=shape.d_ff, experts=shape.experts(kind))


def trained(module: torch.nn.Module, x_BTD: torch.Tensor) -> harness.Side:
    """Seconds of a forward and backward."""
    gradient_BTD = torch.randn_like(x_BTD)

    def seconds() -> float:
        start = time.perf_counter()
        y = module(x_BTD)
        (y[0] if isinstance(y, tuple) else y).backward(gradient_BTD)
        taken = time.perf_counter() - start
        module.zero_grad()
        x_BTD.grad = None
        return taken

    return seconds


def sampled(module: Callable[[torch.Tensor], Any], x_BTD: torch.Tensor, calls: int) -> harness.Side:
    """Seconds of so many forwards without gradients."""

    def seconds() -> float:
        with torch.no_grad():
            start = time.perf_counter()
            for _ in range(calls):
                module(x_BTD)
            return time.perf_counter() - start

    return seconds


def least(shape: Shape, sizes: Sequence[int]) -> tuple[float, float]:
    """Seconds of the layer's products alone and of its copies alone, the better of five each."""
    d, f, m = shape.d_model, shape.d_ff // shape.granularity, sum(sizes)
    x_MD, h_MF, hidden_MH = torch.randn(m, d), torch.randn(m, f), torch.randn(m, 2 * f)
    w_up, w_down = torch.randn(len(sizes), d, 2 * f), torch.randn(len(sizes), f, d)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    pieces = [(slice(end - size, end), slice(x, x + 1)) for x, (end, size) in enumerate(zip(ends, sizes, strict=True))]

    def work(shared: Any) -> None:
        for rows, expert in shared:
            one = RowGroups([rows.stop - rows.start])
            one.times(x_MD[rows], w_up[expert], out=hidden_MH[rows])
            one.times(h_MF[rows], w_down[expert], out=x_MD[rows])
            one.times(x_MD[rows], w_down[expert].mT, out=h_MF[rows])
            one.outer(h_MF[rows], x_MD[rows], out=w_down[expert])
            one.times(hidden_MH[rows], w_up[expert].mT, out=x_MD[rows])
            one.outer(x_MD[rows], hidden_MH[rows], out=w_up[expert])

    def copies() -> None:
        for _ in range(3):
            x_MD.copy_(x_MD.clone())  # reads and writes twice: rows in three times, and as much for the two sums
        hidden_MH.copy_(hidden_MH.clone())

    found = []
    for run in (lambda: spread(pieces, work), copies):
        taken = []
        for _ in range(6):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
            for tensor in (x_MD, h_MF, hidden_MH, w_up, w_down):
                tensor.normal_()
        found.append(min(taken[1:]))
    return found[0], found[1]


def export(module: MoE, x_BTD: torch.Tensor, directory: str) -> None:
    """Our weights under the names of Qwen3-MoE's block, an input and our output."""
    with torch.no_grad():
        y_BTD = module(x_BTD)[0]
    tensors = {
        "gate.weight": module.router.w_XD,
        "experts.gate_up_proj": module.w_up.mT,
        "experts.down_proj": module.w_down.mT,
        "x": x_BTD,
        "y": y_BTD,
    }
    save_file(
        {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()},
        Path(directory) / "layer.safetensors",
    )


def measure(shape: Shape, repeats: int, threads: int | None) -> list[Row]:
    """Rows of one shape."""
    torch.manual_seed(0)
    x_BTD = torch.randn(4, TOKENS // 4, shape.d_model, requires_grad=True)
    dense, moe = FeedForward(shape.d_model, shape.d_ff), layer(shape)
    plain = _Plain(shape.d_model, shape.d_ff)
    choosing = layer(shape, "expert_choice_noncausal")
    flops = 18.0 * TOKENS * shape.d_model * shape.d_ff
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        export(moe, x_BTD.detach(), directory)
        theirs = {
            name: stack.enter_context(Worker(THEIRS, threads=threads or torch.get_num_threads(), environment=tuned))
            for name, tuned in (("transformers", {}), ("transformers, tuned", TUNED))
        }
        best = {}
        for name, worker in theirs.items():
            width = shape.d_ff // shape.granularity
            far = worker(
                "build",
                d_model=shape.d_model,
                d_expert=width,
                n_experts=shape.experts().n_experts,
                top_k=shape.granularity,
                directory=directory,
            )
            if far > AGREE:
                raise RuntimeError(f"{name} computes something else: outputs differ by {far:.1e}.")
            worker("inputs", tokens=TOKENS)
            best[name] = worker("choose", training=True)
        sides: dict[str, harness.Side] = {
            "moe": trained(moe, x_BTD),
            "dense": trained(dense, x_BTD),
            "torch's": trained(plain, x_BTD),
            "expert choice": trained(choosing, x_BTD),
        }
        sides |= {name: _told(worker, "train") for name, worker in theirs.items()}
        taken = in_turn(sides, repeats, warm_up=2)
        with torch.no_grad():
            load_X = moe(x_BTD)[1].load_X
        sizes = (load_X * TOKENS * shape.granularity).round().int().tolist()
        products, moves = least(shape, sizes)
        limit = min(taken["dense"]) / (products + moves)
        rows.append(
            Row.of_costs(
                shape.name,
                taken["moe"],
                taken["dense"],
                unit="FLOP/s",
                amount=flops,
                peer_name="dense",
                goal=shape.goal,
                note=f"limit {limit:.2f}: products alone {products * 1e3:.1f} ms, copies {moves * 1e3:.1f} ms",
            )
        )
        own = {"unit": "FLOP/s", "amount": flops}
        rows.append(Row.of_costs(shape.name, taken["moe"], taken["torch's"], peer_name="torch's dense", **own))
        rows.append(
            Row.of_costs(shape.name, taken["expert choice"], taken["dense"], peer_name="dense, experts choose", **own)
        )
        rows += [
            Row.of_costs(
                shape.name,
                taken["moe"],
                taken[name],
                peer_name=name,
                goal=shape.times,
                note=f"theirs: {best[name]}",
                **own,
            )
            for name in theirs
        ]
        worker = theirs["transformers, tuned"]
        for tokens in FEW:
            few_BTD = x_BTD.detach().flatten(0, 1)[:tokens].view(1, tokens, -1)
            calls = 40 if tokens == 1 else 20
            worker("inputs", tokens=tokens)
            name = worker("choose", training=False)
            sides = {
                "moe": sampled(moe.sample, few_BTD, calls),  # as decoding does
                "dense": sampled(dense, few_BTD, calls),
                "theirs": _told(worker, "forward", calls=calls),
            }
            taken = in_turn(sides, repeats, warm_up=2)
            own = {"unit": f"tokens/s, forward of {tokens}", "amount": float(tokens * calls)}
            rows.append(Row.of_costs(shape.name, taken["moe"], taken["dense"], peer_name="dense", **own))
            rows.append(
                Row.of_costs(
                    shape.name, taken["moe"], taken["theirs"], peer_name="tuned", note=f"theirs: {name}", **own
                )
            )
    return rows


def _told(worker: Worker, function: str, **arguments: Any) -> harness.Side:
    def seconds() -> float:
        return float(worker(function, **arguments))

    return seconds


def run(quick: bool = False, *, repeats: int | None = None, threads: int | None = None) -> list[Row]:
    """Rows of all shapes."""
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    rows: list[Row] = []
    for shape in SHAPES[1:3] if quick else SHAPES:
        harness.begin(shape.name)
        rows += measure(shape, harness.turns(quick, repeats), threads)
    return rows


if __name__ == "__main__":
    harness.carry_out("layer", run, harness.parser(__doc__).parse_args())
