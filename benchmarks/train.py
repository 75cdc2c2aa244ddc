"""A training step against Hugging Face's transformers: tokens per second, peak memory, share of the machine's peak.

    python -m benchmarks.train                 # some ten minutes; nothing else should run
    python -m benchmarks.train --quick --profile

Three sizes, each dense (against Llama), MoE with 64 experts of which a token uses 8 (against Qwen3-MoE with the
fastest of its `experts_implementation`s), and MoD with an eighth of the tokens in every other block (against our dense
model; there is no peer). Both sides have the same shape, weights (logits agree within 1e-4, or nothing is timed),
batches and AdamW. Ours steps through the trainer of `isoflop train`; theirs does what transformers' Trainer does in a
step, without the Trainer's own cost.

Each side has its own process, and they take turns. isoflop tells glibc to keep freed memory (`keep_freed_memory`);
transformers leaves glibc as it is. So theirs is measured twice: `default`, as it is, and `kept`, with the same settings
by environment. Memory is the process's peak less what it held before the model was built. The FLOPs of the share of
peak are `isoflop.count`'s (exact); peak is the fastest float32 product of this run.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness, models, profiling
from benchmarks.table import Row, Spread
from benchmarks.worker import Worker
from isoflop.data import prepare
from isoflop.nn import _memory
from isoflop.spec import DecoderSpec, count, spec_to_dict

OURS, THEIRS = "benchmarks.side_isoflop", "benchmarks.side_transformers"
KEEP = {variable: str(value) for _, variable, value in _memory._SETTINGS}
"""What keep_freed_memory sets, as glibc reads it from the environment."""
AGREE = 1e-4
GOALS = {"dense": 1.2, "moe": 2.0, "mod": None}
REPEAT_SECONDS = 0.4
BATCHES = 64


@dataclass(frozen=True)
class Size:
    """A dense model and the sequences of its batch."""

    name: str
    spec: DecoderSpec
    batch: int


SIZES = (
    Size("64×4", models.dense(d_model=64, n_layers=4, d_ff=192, context=128, head_dim=16), 16),
    Size("5M", models.dense(d_model=256, n_layers=6, d_ff=704, context=256, head_dim=64), 8),
    Size("30M", models.dense(d_model=512, n_layers=9, d_ff=1408, context=512, head_dim=64), 2),
)


@contextmanager
def text() -> Iterator[Path]:
    """A data directory of some megabytes of Python's own source, as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(Path(os.__file__).parent.glob("*.py"))
        source = Path(folder) / "text.txt"
        source.write_text("\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files))
        prepare([source], Path(folder) / "data")
        yield Path(folder) / "data"


def run(
    quick: bool = False, *, repeats: int | None = None, threads: int | None = None, profile: bool = False
) -> list[Row]:
    """Rows of all sizes and kinds."""
    rows: list[Row] = []
    with text() as data, Worker(OURS, threads=threads) as ours:
        peak = ours("peak_flops", seconds=0.1 if quick else 0.3)
        print(f"fastest float32 product: {peak / 1e9:.0f} GFLOP/s", flush=True)
        for size in SIZES[:1] if quick else SIZES:
            for kind in ("dense", "moe"):
                harness.begin(f"{kind} {size.name}")
                rows += compare(
                    size, kind, data, repeats=harness.turns(quick, repeats), threads=threads, peak=peak, profile=profile
                )
        again = ours("peak_flops", seconds=0.1 if quick else 0.3)
        print(f"fastest float32 product, at the end: {again / 1e9:.0f} GFLOP/s", flush=True)
    return rows


def compare(
    size: Size, kind: str, data: Path, *, repeats: int, threads: int | None, peak: float, profile: bool
) -> list[Row]:
    """Rows of one model; the dense one brings its depth-routed twin along."""
    spec = models.with_experts(size.spec) if kind == "moe" else size.spec
    specs = {"ours": spec} | ({"mod": models.with_depth(spec)} if kind == "dense" else {})
    their_kind, config = models.theirs(spec)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        with Worker(OURS, threads=threads) as scribe:
            scribe("export", spec=spec_to_dict(spec), out=folder)
            scribe("export_batches", data=str(data), context=spec.context, batch=size.batch, steps=BATCHES, out=folder)
        model: dict[str, Any] = {"kind": their_kind, "config": config, "directory": folder}
        experts, notes = None, []
        if kind == "moe":
            with Worker(THEIRS, threads=threads) as trial:
                trial("build_trainer", **model, experts=None)
                found = trial("implementations")
            experts = min(found, key=lambda name: found[name])
            notes.append(
                "experts of transformers, ms a step: " + ", ".join(f"{k} {v * 1e3:.0f}" for k, v in found.items())
            )
        workers: dict[str, Worker] = {}
        for name, own in specs.items():
            workers[name] = stack.enter_context(Worker(OURS, threads=threads))
            out = f"{folder}/{name}"
            workers[name]("build_trainer", spec=spec_to_dict(own), data=str(data), batch=size.batch, out=out)
        for name, environment in (("default", {}), ("kept", KEEP)):
            workers[name] = stack.enter_context(Worker(THEIRS, threads=threads, environment=environment))
            difference = workers[name]("build_trainer", **model, experts=experts)
            if not difference <= AGREE:
                raise RuntimeError(f"{kind} {size.name}: logits of both sides differ by {difference:.2g}; not timed")
        notes.append(f"logits differ by {difference:.1g}")
        workers["ours"]("train", steps=2)
        steps = max(1, min(20, round(REPEAT_SECONDS / workers["ours"]("train", steps=1))))
        sides = {name: _side(worker, steps) for name, worker in workers.items()}
        seconds = {
            name: [value / steps for value in values] for name, values in harness.in_turn(sides, repeats).items()
        }
        memory = {name: worker("step_memory") for name, worker in workers.items()}
        if profile:
            wall = {name: Spread.of(values).median for name, values in seconds.items()}
            profiles = {name: worker("profile", steps=steps) for name, worker in workers.items()}
            print(f"{kind} {size.name}\n{profiling.show(profiles, wall)}", flush=True)
    return _rows(size, kind, specs, seconds, memory, peak, notes, steps)


def _side(worker: Worker, steps: int) -> harness.Side:
    return lambda: worker("train", steps=steps)


def _rows(
    size: Size,
    kind: str,
    specs: dict[str, DecoderSpec],
    seconds: dict[str, list[float]],
    memory: dict[str, dict[str, int]],
    peak: float,
    notes: list[str],
    steps: int,
) -> list[Row]:
    tokens = size.batch * size.spec.context
    flops = {name: count(spec).training_flops_per_token * tokens for name, spec in specs.items()}
    flops |= {"default": flops["ours"], "kept": flops["ours"]}
    shares = {name: flops[name] / Spread.of(values).median / peak for name, values in seconds.items()}
    active = count(specs["ours"]).params_active
    case = f"{kind} {size.name}: {active / 1e6:.2f}M active, {size.batch} sequences of {size.spec.context}"
    notes = [
        "share of peak: " + ", ".join(f"{name} {shares[name]:.1%}" for name in ("ours", "default", "kept")),
        *notes,
        f"{steps} steps a turn",
    ]
    rows = [
        Row.of_costs(
            case, seconds["ours"], seconds[name], amount=tokens, unit="tokens/s", peer_name=f"HF {name}", goal=goal
        )
        for name, goal in (("default", GOALS[kind]), ("kept", GOALS[kind]))
    ]
    rows += [
        Row.of_costs(
            case,
            [memory["ours"]["peak"] / 2**20],
            [memory[name]["peak"] / 2**20],
            unit="MiB",
            peer_name=f"HF {name}",
            note="; ".join(notes) if name == "kept" else "",
        )
        for name in ("default", "kept")
    ]
    if "mod" not in specs:
        return rows
    case = f"mod {size.name}: FLOPs {flops['mod'] / flops['ours']:.3f} of our dense model's"
    note = f"share of peak: mod {shares['mod']:.1%}; by FLOPs the ratio would be {flops['ours'] / flops['mod']:.2f}"
    return [
        *rows,
        Row.of_costs(
            case, seconds["mod"], seconds["ours"], amount=tokens, unit="tokens/s", peer_name="our dense", note=note
        ),
        Row.of_costs(
            case,
            [memory["mod"]["peak"] / 2**20],
            [memory["ours"]["peak"] / 2**20],
            unit="MiB",
            peer_name="our dense",
        ),
    ]


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--profile", action="store_true", help="also say where the time of a step goes")
    arguments = parser.parse_args()
    harness.carry_out("train", run, arguments, profile=arguments.profile)


if __name__ == "__main__":
    main()
