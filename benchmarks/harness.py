"""What every benchmark shares: repeats in turn, ratios with their spread, memory, the machine, one table, a history.

A side is a function that does the work once and returns its seconds. Sides take turns (ours, peer, ours, peer, …), so
that a drifting machine drifts under both; a ratio is taken within each turn, and its median is given with the quartiles
of the turns. A ratio whose quartiles enclose 1 says nothing about who is faster, and is printed as `equal`.

Sides that must not share a process (another allocator, a peer's imports, a peak of memory) live in a `Worker`, which
works when told to and sleeps otherwise. This file loads neither torch nor isoflop.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
HISTORY = Path(__file__).parent / "history"
WIDTH = 100
REPEATS, QUICK_REPEATS = 9, 3
BUSY_LOAD = 0.5
PACKAGES = ("isoflop", "torch", "transformers", "numpy", "scipy")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Repeats of one quantity."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""
    least: float
    most: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summary of at least one value."""
        quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else list(values) * 3
        return cls(
            median=statistics.median(values),
            low=quartiles[0],
            high=quartiles[2],
            least=min(values),
            most=max(values),
            n=len(values),
        )

    @property
    def encloses_one(self) -> bool:
        """Whether the quartiles hold 1 between them; a single value encloses nothing."""
        return self.n > 1 and self.low <= 1 <= self.high

    def numbers(self) -> list[float]:
        """Median, quartiles, range and number, for a file."""
        return [float(f"{value:.5g}") for value in (self.median, self.low, self.high, self.least, self.most)] + [self.n]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a benchmark's table: a quantity on both sides, and how far ours is ahead."""

    case: str
    unit: str
    ours: Spread
    peer: Spread | None = None
    peer_name: str = ""
    ratio: Spread | None = None
    """Above 1 ours is better: peer's seconds or bytes over ours, pair by pair."""
    goal: float | None = None
    """What the ratio is meant to reach."""
    note: str = ""

    @classmethod
    def of_costs(
        cls,
        case: str,
        ours: Sequence[float],
        peer: Sequence[float] | None = None,
        *,
        unit: str = "s",
        amount: float | None = None,
        peer_name: str = "",
        goal: float | None = None,
        note: str = "",
    ) -> Self:
        """A row from seconds or bytes, of which fewer are better; with an `amount` of work it shows amount/cost."""
        costs = {"ours": ours, "peer": peer}
        shown = {
            side: None if values is None else Spread.of([amount / v for v in values] if amount else values)
            for side, values in costs.items()
        }
        assert shown["ours"] is not None
        ratio = None if peer is None else Spread.of([p / o for o, p in zip(ours, peer, strict=True)])
        return cls(
            case=case,
            unit=unit,
            ours=shown["ours"],
            peer=shown["peer"],
            peer_name=peer_name,
            ratio=ratio,
            goal=goal,
            note=note,
        )

    @property
    def verdict(self) -> str:
        """`ahead`, `equal` or `behind`; empty without a peer."""
        if self.ratio is None:
            return ""
        if self.ratio.encloses_one:
            return "equal"
        return "ahead" if self.ratio.median > 1 else "behind"

    @property
    def is_met(self) -> bool | None:
        """Whether the median ratio reaches the goal; None without one."""
        return None if self.goal is None or self.ratio is None else self.ratio.median >= self.goal

    def to_dict(self) -> dict[str, Any]:
        """For the history: spreads as [median, lower, upper quartile, least, most, n]."""
        values: dict[str, Any] = {"case": self.case, "unit": self.unit, "ours": self.ours.numbers()}
        if self.peer is not None and self.ratio is not None:
            values |= {"peer": self.peer.numbers(), "peer_name": self.peer_name}
            values |= {"ratio": self.ratio.numbers(), "verdict": self.verdict}
        if self.goal is not None:
            values["goal"] = self.goal
        return values | ({"note": self.note} if self.note else {})


Side = Callable[[], float]


def timed(work: Callable[[], Any]) -> Side:
    """A side from work in this process."""

    def seconds() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return seconds


def in_turn(
    sides: Mapping[str, Side], repeats: int, *, warm_up: int = 1, pause: float = 0.02
) -> dict[str, list[float]]:
    """Seconds of every side in every turn; the turns of warming up are dropped.

    After each work the process sleeps for `pause`, while the threads of its matrix products, which spin for a moment
    when they are done, come to rest.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-warm_up, repeats):
        for name, side in sides.items():
            seconds = side()
            if turn >= 0:
                taken[name].append(seconds)
            time.sleep(pause)
    return taken


class Worker:
    """A process that does what it is told: `worker("name", key=value)` calls a function that it serves."""

    def __init__(self, module: str, *, threads: int | None = None, environment: Mapping[str, str] | None = None):
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        surroundings |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=surroundings | dict(environment or {}),
        )

    def __call__(self, function: str, **arguments: Any) -> Any:
        """Return what the served function returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"function": function, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            self._process.wait(timeout=20)  # what it has to say about its end comes last
            self._log.seek(0)
            raise RuntimeError(f"{self._module} died in {function}:\n{self._log.read()[-4000:]}")
        answer = json.loads(reply)
        if "error" in answer:
            raise RuntimeError(f"{self._module}, {function}:\n{answer['error']}")
        return answer["result"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the process end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


def serve(functions: Mapping[str, Callable[..., Any]]) -> None:
    """What a worker's module does: answer one call a line until its input ends. Prints go to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            call = json.loads(line)
            try:
                answer = {"result": functions[call["function"]](**call["arguments"])}
            except Exception:
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), file=answers, flush=True)


def peak_rss() -> int:
    """Most memory that this process ever held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child begins with its parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def warm_rss() -> int:
    """The same after torch has loaded what a first training step loads (an optimiser alone: 70 MiB of modules).

    It is what the memory of a step is counted from.
    """
    import torch
    from torch.nn import functional

    weight = torch.nn.Parameter(torch.randn(64, 64))
    optimizer = torch.optim.AdamW([weight], fused=True)
    x = functional.embedding(torch.arange(64), weight) @ weight
    heads = x.view(1, 64, 4, 16).transpose(1, 2)
    x = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2).reshape(64, 64)
    functional.cross_entropy(functional.silu(x), torch.arange(64)).backward()
    torch.nn.utils.clip_grad_norm_([weight], 1.0)
    optimizer.step()
    return peak_rss()


def peak_flops(seconds: float = 0.3) -> float:
    """FLOP/s of the fastest square float32 product, sustained for this long, with the threads of this process.

    By torch.mm and by oneDNN, which torch leaves unused for float32: the better of the two.
    """
    import torch

    best = 0.0
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
    for n in (512, 1024, 1536, 2048, 3072, 4096):
        a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
        products = [lambda a=a, b=b, out=out: torch.mm(a, b, out=out)]
        if onednn is not None:
            products.append(lambda a=a, b=b: onednn(a, b, None, "none", [], ""))
        for product in products:
            product()
            for _ in range(3):
                done, start = 0, time.perf_counter()
                while (passed := time.perf_counter() - start) < seconds:
                    product()
                    done += 1
                best = max(best, done * 2.0 * n**3 / passed)
    return best


def machine(threads: int | None = None) -> dict[str, Any]:
    """What the figures were taken on."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads or os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "blas": _blas(),
        "load": round(os.getloadavg()[0], 2),
        **versions,
    }


def _blas() -> str:
    """The library behind torch's matrix products, asked in a process of its own."""
    code = (
        "import torch; c = torch.__config__.show(); k = torch.backends.cpu.get_cpu_capability();"
        "print(next((n for n in ('MKL', 'OpenBLAS', 'Accelerate') if n.lower() in c.lower()), 'unknown') + ', ' + k)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def describe(found: Mapping[str, Any]) -> str:
    """The machine in two lines, and a warning where it is busy."""
    versions = ", ".join(f"{name} {found[name]}" for name in PACKAGES if name in found)
    text = (
        f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads, {found['memory_gib']} GiB; "
        f"BLAS {found['blas']}; load {found['load']}\nPython {found['python']}, {versions}"
    )
    if found["load"] > BUSY_LOAD:
        text += f"\nWARNING: the machine is busy (load {found['load']}): these timings are no measurement"
    return text


def compact(values: Sequence[float]) -> str:
    """Three significant digits with one suffix for all: 12.3K (12.1–12.5), 30.7m (30.1–32.8); a lone value is bare."""
    first = abs(values[0])
    scales = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "K"), (0.1, 1.0, ""), (1e-4, 1e-3, "m"))
    size, suffix = next(((size, suffix) for start, size, suffix in scales if first >= start), (1.0, ""))
    first /= size
    digits = 3 if first == 0 else max(0, min(3, 2 - math.floor(math.log10(first))))
    shown = [f"{value / size:.{digits}f}" for value in values]
    return shown[0] + suffix + (f" ({shown[1]}–{shown[2]})" if len(shown) > 1 else "")


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return compact((spread.median, spread.low, spread.high) if spread.n > 1 else (spread.median,))


def table(rows: Sequence[Row]) -> str:
    """Both sides of every row, medians with quartiles, at most 100 columns wide."""
    lines = [
        f"{'':<32}{'ours':>19}{'peer':>19}{'ratio':>20}{'goal':>10}",
        "─" * WIDTH,
    ]
    case = None
    for row in rows:
        if row.case != case:
            lines += _wrapped(row.case, WIDTH)
            case = row.case
        label = f"  {row.unit}" + (f", {row.peer_name}" if row.peer_name else "")
        if row.ratio is not None and row.ratio.encloses_one:
            ratio = f"equal ({row.ratio.low:.3g}–{row.ratio.high:.3g})"
        else:
            ratio = _cell(row.ratio)
        goal = "" if row.goal is None else f"≥{row.goal:g} {'met' if row.is_met else 'not'}"
        lines.append(f"{label[:32]:<32}{_cell(row.ours):>19}{_cell(row.peer):>19}{ratio:>20}{goal:>10}")
        lines += [f"    {line}" for line in _wrapped(row.note, WIDTH - 4)]
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def record(
    name: str, rows: Sequence[Row], found: Mapping[str, Any], *, seconds: float, directory: Path = HISTORY
) -> Path:
    """Append the rows to the benchmark's history: JSON lines, a run's description and then a line for each row."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.jsonl"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    run = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"), "commit": commit, "seconds": round(seconds), **found}
    with path.open("a", encoding="utf-8") as file:
        for line in ({"run": run}, *(row.to_dict() for row in rows)):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


Run = Callable[..., list[Row]]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="few repeats, small sizes: a check that it runs")
    made.add_argument("--repeats", type=_positive, help=f"turns; default {REPEATS}, quick {QUICK_REPEATS}")
    made.add_argument("--threads", type=_positive, default=os.cpu_count())
    made.add_argument(
        "--no-history", action="store_true", help="do not append to benchmarks/history (quick never does)"
    )
    return made


def begin(case: str) -> None:
    """Say on stderr what is measured now: the table comes at the end alone."""
    print(f"measuring {case} …", file=sys.stderr, flush=True)


def turns(quick: bool, repeats: int | None) -> int:
    """Repeats, unless told."""
    return repeats or (QUICK_REPEATS if quick else REPEATS)


def carry_out(name: str, run: Run, arguments: argparse.Namespace, **more: Any) -> list[Row]:
    """Run one benchmark, print its table, append to its history."""
    found = machine(arguments.threads)
    print(describe(found), flush=True)
    start = time.perf_counter()
    rows = run(arguments.quick, repeats=arguments.repeats, threads=arguments.threads, **more)
    seconds = time.perf_counter() - start
    print(table(rows))
    print(f"{name}: {seconds:.0f} s, load now {os.getloadavg()[0]:.2f}", flush=True)
    if not (arguments.quick or arguments.no_history):
        print(f"appended to {record(name, rows, found, seconds=seconds).relative_to(ROOT)}")
    return rows
