"""How time and memory grow: with tokens, experts, granularity, context, rows of a fit, runs of a study.

    python -m benchmarks.scaling --plots figures           # under ten minutes; nothing else should run
    python -m benchmarks.scaling --sweep experts

Training sweeps step through the trainer, every point in a process of its own, all points in turn; two blocks of
d_model 256, float32. A slope is that of ln y on ln x by least squares over the points' medians, with its 95% interval:
1 is growth in proportion, 0 none. `by FLOPs` is the slope of isoflop.count's training FLOPs, what time should follow.

Memory of a step is given three times: `peak`, the process's largest resident set less what it held before the model
was built; `tensors`, the largest sum of live tensors by torch.profiler, which knows no allocator; and `estimate`,
`isoflop.spec.memory`, which should be within 10% of both.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tests.report import synthetic_study

from benchmarks import fit, harness, models, train
from benchmarks.table import Row, Spread
from benchmarks.worker import Worker
from isoflop import laws
from isoflop.report import write_report
from isoflop.report.style import LIGHT, grid, log_axis, outer, title
from isoflop.spec import DecoderSpec, ExpertsSpec, count, spec_to_dict
from isoflop.study.status import study_status

MEMORY_GOAL = 0.1
BASE = models.dense(d_model=256, n_layers=2, d_ff=704, context=128, head_dim=64)
MOE = replace(BASE, experts=ExpertsSpec(granularity=8, expansion_rate=8))
TOKENS = 4096


@dataclass(frozen=True)
class Point:
    """A model and the sequences of its batch, at a place of the axis."""

    x: int
    spec: DecoderSpec
    batch: int


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What was measured along an axis."""

    name: str
    axis: str
    x: Sequence[float]
    seconds: Sequence[Spread]
    memory: Sequence[dict[str, float]] = ()
    """Bytes by peak, tensors and estimate at every point."""
    flops: Sequence[float] = ()


def _experts(**change: Any) -> DecoderSpec:
    return replace(MOE, experts=replace(MOE.experts, **change))


TRAINING = {
    "tokens, dense": ("tokens in a batch", [Point(128 * n, BASE, n) for n in (4, 8, 16, 32, 64, 128)]),
    "tokens, MoE": ("tokens in a batch", [Point(128 * n, MOE, n) for n in (4, 8, 16, 32, 64, 128)]),
    "experts": (
        "experts, of which a token uses 8",
        [Point(8 * n, _experts(expansion_rate=n), TOKENS // 128) for n in (1, 2, 4, 8, 16, 32, 64, 128)],
    ),
    "granularity": (
        "granularity, at equal parameters",
        [Point(n, _experts(granularity=n), TOKENS // 128) for n in (1, 2, 4, 8, 16, 32)],
    ),
    "context": (
        f"context, at {TOKENS} tokens in a batch",
        [Point(n, replace(BASE, context=n), TOKENS // n) for n in (128, 256, 512, 1024, 2048, 4096)],
    ),
}
ROWS = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)
SEEDS = (1, 5, 15, 40)
"""Runs a cell in the middle budget of the synthetic studies: 74, 170, 410 and 1,010 runs."""
SWEEPS = (*TRAINING, "rows", "status", "report")


def slope(x: Sequence[float], y: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Slope of ln y on ln x by least squares, and its interval; at least three points."""
    found = stats.linregress(np.log(x), np.log(y))
    reach = stats.t.ppf((1 + level) / 2, len(x) - 2) * found.stderr
    return float(found.slope), float(found.slope - reach), float(found.slope + reach)


def run(
    quick: bool = False,
    *,
    repeats: int | None = None,
    threads: int | None = None,
    sweeps: Sequence[str] = SWEEPS,
    plots: Path | None = None,
) -> list[Row]:
    """Rows of every point, under the slopes of their sweep; figures into `plots`."""
    turns = repeats or (2 if quick else 7)
    curves = []
    with train.text() as data:
        for name in sweeps:
            if name in TRAINING:
                axis, points = TRAINING[name]
                curves.append(steps(name, axis, points[:4] if quick else points, data, turns, threads))
            elif name == "rows":
                curves.append(fits(ROWS[:4] if quick else ROWS, turns))
            else:
                curves.append(studies(name, SEEDS[:3] if quick else SEEDS, turns))
            print(said(curves[-1]), flush=True)
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        for curve in curves:
            draw(curve, plots / f"scaling-{curve.name.lower().replace(', ', '-')}.png")
    return [row for curve in curves for row in rows(curve)]


def steps(name: str, axis: str, points: Sequence[Point], data: Path, turns: int, threads: int | None) -> Curve:
    """Training steps of all points in turn."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workers = {}
        for point in points:
            worker = workers[str(point.x)] = stack.enter_context(Worker(train.OURS, threads=threads))
            out = f"{folder}/{point.x}"
            worker("build_trainer", spec=spec_to_dict(point.spec), data=str(data), batch=point.batch, out=out)
        seconds = harness.in_turn({name: _side(worker) for name, worker in workers.items()}, turns, warm_up=2)
        memory = [worker("step_memory") for worker in workers.values()]
        tensors = [worker("tensor_memory") for worker in workers.values()]
    return Curve(
        name=name,
        axis=axis,
        x=[point.x for point in points],
        seconds=[Spread.of(values) for values in seconds.values()],
        memory=[
            {"peak": m["peak"], "tensors": t, "estimate": m["estimate"]} for m, t in zip(memory, tensors, strict=True)
        ],
        flops=[count(p.spec).training_flops_per_token * p.batch * p.spec.context for p in points],
    )


def _side(worker: Worker) -> harness.Side:
    return lambda: worker("train", steps=1)


def fits(sizes: Sequence[int], turns: int) -> Curve:
    """One fit of the fine-grained law."""
    tables = {n: fit.fine_grained(n, seed=2) for n in sizes}
    sides = {str(n): harness.timed(lambda table=table: laws.fit(table, "fine-grained")) for n, table in tables.items()}
    seconds = harness.in_turn(sides, turns, pause=0.0)
    return Curve(name="rows", axis="rows of a fit", x=sizes, seconds=[Spread.of(values) for values in seconds.values()])


def studies(name: str, seeds: Sequence[int], turns: int) -> Curve:
    """`isoflop study status` or `isoflop report`, without their start, on finished studies."""
    sides: dict[str, harness.Side] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in seeds:
            table = synthetic_study.rows(seeds_at_middle=n)
            directory = synthetic_study.write_study(Path(folder) / str(n), table)
            plan = [{"run_id": row["run_id"], "flops": row["flops"], "seconds": 1.0, "steps": 200} for row in table]
            (directory / "plan.json").write_text(json.dumps({"runs": plan, "workers": 2}))
            if name == "report":
                synthetic_study.write_fits(directory, table)
                synthetic_study.write_verification(directory)
            work: Callable[[Path], Any] = study_status if name == "status" else write_report
            sides[str(len(table))] = harness.timed(lambda directory=directory, work=work: work(directory))
        seconds = harness.in_turn(sides, turns, pause=0.0)
    return Curve(
        name=name,
        axis="runs of a study",
        x=[int(n) for n in sides],
        seconds=[Spread.of(values) for values in seconds.values()],
    )


def said(curve: Curve) -> str:
    """The slopes in a line, and how far the estimate of memory is off."""
    parts = [f"time {_slope(curve.x, [spread.median for spread in curve.seconds])}"]
    if curve.flops:
        parts.append(f"by FLOPs {slope(curve.x, curve.flops)[0]:.2f}")
    if curve.memory:
        parts.append(f"peak memory {_slope(curve.x, [each['peak'] for each in curve.memory])}")
        off = {kind: [each["estimate"] / each[kind] - 1 for each in curve.memory] for kind in ("peak", "tensors")}
        parts += [f"estimate {min(each):+.0%} to {max(each):+.0%} of {kind}" for kind, each in off.items()]
    return f"{curve.name}: {'; '.join(parts)}"


def _slope(x: Sequence[float], y: Sequence[float]) -> str:
    found, low, high = slope(x, y)
    return f"{found:.2f} [{low:.2f}, {high:.2f}]"


def rows(curve: Curve) -> list[Row]:
    """Time of every point, and its peak of memory against the estimate."""
    made = []
    for index, (x, seconds) in enumerate(zip(curve.x, curve.seconds, strict=True)):
        in_ms = replace(
            seconds, **{key: 1e3 * getattr(seconds, key) for key in ("median", "low", "high", "least", "most")}
        )
        made.append(Row(case=said(curve), unit=f"ms at {x:,}", ours=in_ms))
        if curve.memory:
            held = {kind: value / 2**20 for kind, value in curve.memory[index].items()}
            note = (
                f"tensors {held['tensors']:,.0f}" if abs(held["estimate"] / held["tensors"] - 1) > MEMORY_GOAL else ""
            )
            made.append(
                Row.of_costs(
                    said(curve), [held["peak"]], [held["estimate"]], unit="MiB", peer_name="estimate", note=note
                )
            )
    return made


def draw(curve: Curve, path: Path) -> None:
    """Time, and memory where there is some, against the axis."""
    figure, panels = grid(2 if curve.memory else 1, width=8.0 if curve.memory else 4.4, panel_height=3.4)
    middle = np.array([spread.median for spread in curve.seconds])
    scale, unit = (1e3, "ms") if middle.max() < 10 else (1.0, "seconds")
    reach = scale * np.abs(np.array([[spread.low, spread.high] for spread in curve.seconds]).T - middle)
    panels[0].errorbar(
        curve.x, scale * middle, reach, color=LIGHT["accent"], marker="o", linewidth=1.5, label="measured"
    )
    shown = [scale * end for spread in curve.seconds for end in (spread.low, spread.high)]
    if curve.flops:
        expected = np.array(curve.flops) * middle[-1] / curve.flops[-1] * scale
        panels[0].plot(curve.x, expected, color=LIGHT["muted"], linestyle="--", label="as FLOPs, from the last point")
        shown += [*expected]
    title(panels[0], f"time, slope {_slope(curve.x, middle)}")
    named = [(f"{unit} a step" if curve.flops else unit, shown)]
    if curve.memory:
        looks = {"peak": ("accent", "o", "-"), "tensors": ("g8", "s", "-"), "estimate": ("muted", "", "--")}
        for kind, (role, marker, line) in looks.items():
            values = [each[kind] / 2**20 for each in curve.memory]
            panels[1].plot(curve.x, values, color=LIGHT[role], marker=marker, linestyle=line, label=kind)
        title(panels[1], f"memory, slope {_slope(curve.x, [each['peak'] for each in curve.memory])}")
        named.append(("MiB", [value / 2**20 for each in curve.memory for value in each.values()]))
    for axes, (label, values) in zip(panels, named, strict=True):
        log_axis(axes, "x", curve.x)
        log_axis(axes, "y", values)
        axes.set_xlabel(curve.axis)
        axes.set_ylabel(label)
        if outer(axes) or curve.memory:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--sweep", action="append", choices=SWEEPS, help="repeatable; default: all")
    parser.add_argument("--plots", type=Path, help="write a PNG of every sweep into this directory")
    arguments = parser.parse_args()
    harness.carry_out("scaling", run, arguments, sweeps=tuple(arguments.sweep or SWEEPS), plots=arguments.plots)


if __name__ == "__main__":
    main()
