"""How often intervals that promise 90% hold the truth, for every law, over many made-up sets of runs.

    python -m benchmarks.coverage                        # every law, 200 sets each
    python -m benchmarks.coverage --law joint --sets 400 --profile

Each set is drawn anew from a truth of tests/oracles/planted_laws.py: rows, noise of ln L and, if asked, outliers. For
each parameter it prints the share of sets whose bootstrap interval holds the truth (and whose profile likelihood does),
for predictions the share of new runs, three times beyond the largest row in size and in data, whose loss falls in the
interval of prediction. With 200 sets a share has a standard error of 2%.
"""

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from tests.oracles.planted_laws import TRUTHS, planted

from isoflop import laws

NOISE = 0.003
BEYOND = 3.0


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--law", action="append", choices=sorted(TRUTHS), help="repeatable; default: every law")
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--bootstrap", type=int, default=200)
    parser.add_argument("--level", type=float, default=0.9)
    parser.add_argument("--outliers", type=float, default=0.0, help="share of rows that lie 10 to 50%% too high")
    parser.add_argument("--profile", action="store_true", help="profile likelihood of every parameter as well: slow")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {law: coverage(law, options) for law in options.law or TRUTHS}
    if options.json:
        print(json.dumps(found, indent=1))


def coverage(law: str, options: argparse.Namespace) -> dict[str, Any]:
    truth = TRUTHS[law]
    held: dict[str, list[bool]] = {name: [] for name in truth}
    profiled: dict[str, list[bool]] = {name: [] for name in truth}
    predicted, statuses, start = [], {}, time.perf_counter()
    for seed in range(options.sets):
        table = planted(law, 10_000 + seed, noise=NOISE, outliers=options.outliers)
        fitted = laws.fit(table, law, bootstrap=options.bootstrap, restarts=8, seed=seed)
        statuses[fitted.status] = statuses.get(fitted.status, 0) + 1
        for name, (low, high) in fitted.interval(options.level).items():
            held[name].append(bool(low <= truth[name] <= high))
        if options.profile:
            for name in truth:
                low, high = laws.profile(fitted, name, level=options.level, points=11).interval
                profiled[name].append(bool(low <= truth[name] <= high))
        predicted.append(_new_run(fitted, table, truth, options.level, seed))
    shares = {name: float(np.mean(each)) for name, each in held.items()}
    result = {
        "sets": options.sets,
        "statuses": statuses,
        "bootstrap": shares,
        "profile": {name: float(np.mean(each)) for name, each in profiled.items() if each},
        "new_run": float(np.mean(predicted)),
        "seconds": time.perf_counter() - start,
    }
    if not options.json:
        _print(law, result)
    return result


def _new_run(
    fitted: laws.Fit, table: Mapping[str, np.ndarray], truth: Mapping[str, float], level: float, seed: int
) -> bool:
    """Whether the loss of one run beyond the rows falls in its interval."""
    columns = {name: np.array([np.median(table[name])]) for name in fitted.form.columns}
    for name in ("params_active", "params_total", "tokens"):
        if name in columns:
            columns[name] = np.array([BEYOND * np.max(table[name])])
    if "flops" in columns and "tokens" in columns:
        columns["flops"] = 6 * columns["params_active"] * columns["tokens"]
    elif "flops" in columns:
        columns["flops"] = np.array([BEYOND * np.max(table["flops"])])
    value = fitted.form.predict(columns, truth)[0] * np.exp(NOISE * np.random.default_rng(seed).standard_normal())
    low, high = fitted.predict_interval(columns, level)
    return bool(low[0] <= value <= high[0])


def _print(law: str, result: dict[str, Any]) -> None:
    status = ", ".join(f"{count} {name}" for name, count in result["statuses"].items())
    print(f"{law}: {result['sets']} sets ({status}), {result['seconds']:.0f} s, new run {result['new_run']:.0%}")
    for kind in ("bootstrap", "profile"):
        if result[kind]:
            print(f"  {kind:9} " + "  ".join(f"{name} {share:.1%}" for name, share in result[kind].items()), flush=True)


if __name__ == "__main__":
    main()
