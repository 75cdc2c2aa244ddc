"""Every benchmark in turn, and one table of both sides.

    python -m benchmarks.bench                 # three quarters of an hour; nothing else should run
    python -m benchmarks.bench --quick         # minutes: a check that everything runs
    python -m benchmarks.bench --only train sample

A benchmark that fails is named at the end, and the others go on. Without --quick each appends to its history.
"""

import argparse
import importlib
import importlib.util
import os
import time
import traceback

from benchmarks import harness
from benchmarks.table import table

ALL = ("layer", "train", "sample", "depth", "fit", "startup")


def main() -> None:
    """Run them; exit 1 if one failed."""
    parser = harness.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL)
    arguments = parser.parse_args()
    found = harness.machine(arguments.threads)
    print(harness.describe(found), flush=True)
    tables, failed = [], []
    for name in arguments.only:
        if importlib.util.find_spec(f"benchmarks.{name}") is None:
            print(f"{name}: not there, left out", flush=True)
            continue
        print(f"{name} …", flush=True)
        start, load = time.perf_counter(), os.getloadavg()[0]
        try:
            rows = importlib.import_module(f"benchmarks.{name}").run(arguments.quick, **_asked(arguments))
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        seconds = time.perf_counter() - start
        tables.append(f"{name} ({seconds:.0f} s, load {load:.2f} before)\n{table(rows)}")
        if not (arguments.quick or arguments.no_history):
            harness.record(name, rows, found | {"load": round(load, 2)}, seconds=seconds)
    print("\n".join(["", harness.describe(found), "", "\n\n".join(tables)]))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _asked(arguments: argparse.Namespace) -> dict[str, int]:
    """What was given, so that a benchmark's own defaults hold else."""
    given = {"repeats": arguments.repeats, "threads": arguments.threads}
    return {name: value for name, value in given.items() if value is not None}


if __name__ == "__main__":
    main()
