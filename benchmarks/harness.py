"""What every benchmark shares: repeats in turn, the machine, options, a history.

A side is a function that does the work once and returns its seconds. Sides take turns (ours, peer, ours, peer, …), so
that a drifting machine drifts under both. Sides that must not share a process are in `worker.py`, the table of results
in `table.py`. This file loads neither torch nor isoflop.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.table import Row, table
from benchmarks.worker import ROOT

HISTORY = Path(__file__).parent / "history"
REPEATS, QUICK_REPEATS = 9, 3
BUSY_LOAD = 0.5
PACKAGES = ("isoflop", "torch", "transformers", "numpy", "scipy")


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
