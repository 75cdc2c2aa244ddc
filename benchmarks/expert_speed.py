"""Speed of fine-grained experts: training FLOP/s of an MoE layer against a dense feed-forward of the same FLOPs.

    python benchmarks/expert_speed.py --out src/isoflop/planner/data/cpu.json      # minutes; run nothing else

For each width of an expert the layer has d_ff / d_expert experts a token of E times as many; forward and backward of
`isoflop.nn.MoE` and of `isoflop.nn.FeedForward` of width d_ff alternate in one process, and the median of the repeats'
ratios is kept, with its quartiles. FLOPs are those of the `exact` convention, router and dispatch included, so that
`relative` says what a FLOP in an MoE layer costs in time: `isoflop plan --speed FILE` reads it.
"""

import argparse
import json
import os
import platform
import sys
import time
import warnings
from pathlib import Path

import torch

from isoflop import __version__
from isoflop.nn import MoE
from isoflop.nn.feed_forward import FeedForward
from isoflop.spec import ExpertsSpec, expert_layer_flops


def seconds(layer: torch.nn.Module, x: torch.Tensor) -> float:
    """Of one forward and backward."""
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    y = layer(x)
    (y[0] if isinstance(y, tuple) else y).sum().backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """The table of one machine."""
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    d_model, d_ff, tokens = arguments.d_model, arguments.d_ff, arguments.tokens
    x = torch.randn(4, tokens // 4, d_model, device=arguments.device, dtype=dtype, requires_grad=True)
    dense = FeedForward(d_model, d_ff, device=arguments.device, dtype=dtype)
    dense_flops = 3 * 2.0 * 3 * d_model * d_ff * tokens
    rows, rates = [], []
    for d_expert in arguments.d_expert:
        granularity = d_ff // d_expert
        experts = ExpertsSpec(granularity=granularity, expansion_rate=arguments.expansion_rate)
        flops = 3 * tokens * sum(expert_layer_flops(experts, d_model=d_model, d_ff=d_ff, n_matrices=3).values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # routing costs more FLOPs than the narrowest experts, which is the point
            moe = MoE(d_model=d_model, d_ff=d_ff, experts=experts, device=arguments.device, dtype=dtype)
        for layer in (dense, moe):
            seconds(layer, x)
        ratios = []
        for _ in range(arguments.repeats):
            own, other = seconds(moe, x), seconds(dense, x)
            ratios.append(flops / own / (dense_flops / other))
            rates.append(dense_flops / other)
        ratios.sort()
        n = len(ratios)
        row = {
            "d_expert": d_expert,
            "granularity": granularity,
            "n_experts": experts.n_experts,
            "relative": round(ratios[n // 2], 4),
            "quartiles": [round(ratios[n // 4], 4), round(ratios[(3 * n) // 4], 4)],
        }
        print(row, file=sys.stderr)
        rows.append(row)
    return {
        "name": arguments.name,
        "command": "python " + " ".join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]]),
        "measured": "training FLOP/s of isoflop.nn.MoE / those of a dense feed-forward of width d_ff (swiglu)",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
        "device": arguments.device,
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "torch": torch.__version__,
        "isoflop": __version__,
        "d_model": d_model,
        "d_ff": d_ff,
        "tokens": tokens,
        "expansion_rate": arguments.expansion_rate,
        "repeats": arguments.repeats,
        "dense_flops_per_second": float(f"{sorted(rates)[len(rates) // 2]:.4g}"),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--name", default="cpu", help="what the table is called")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--d-ff", type=int, default=768)
    parser.add_argument("--d-expert", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256], help="rising")
    parser.add_argument("--expansion-rate", type=float, default=8.0)
    parser.add_argument("--tokens", type=int, default=4096, help="in one forward, a multiple of 4")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    table = measure(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
