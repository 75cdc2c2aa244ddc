"""Fitting, side by side: isoflop, the field's 4,500-start scipy grid, and the `chinchilla` package.

    pip install chinchilla==0.2.0                       # optional: without it the package is left out
    python benchmarks/fit.py --data svg_extracted_data.csv          # a quarter of an hour; nothing else should run

`--data` is the CSV of the 245 points that Epoch AI read from Hoffmann et al. 2022, Fig. 4 (github.com/epoch-research/
analyzing-chinchilla, data/svg_extracted_data.csv); the five highest losses are dropped. Everybody minimises the same
objective, the sum over rows of Huber(ln L − ln L̂) with δ = 1e-3, over E, A, B, alpha, beta. Settings are interleaved
in one process, the median of the repeats (one of each peer unless told otherwise) is reported with its range, and
objectives are recomputed by one function.

scipy gets every advantage that costs no accuracy: an analytic gradient, vectorised numpy, an objective scaled to order
one. With scipy's default tolerances on the raw objective it would stop almost at once (and be wrong); `honest` is what
is timed.
"""

import argparse
import csv
import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from isoflop import laws

DELTA = 1e-3
GRID = {  # Hoffmann et al. 2022, appendix D.3, as Besiroglu et al. 2024 use it: 4,500 starts
    "e": np.arange(-1.0, 1.5, 0.5),
    "a": np.arange(0.0, 30.0, 5.0),
    "b": np.arange(0.0, 30.0, 5.0),
    "alpha": np.arange(0.0, 2.5, 0.5),
    "beta": np.arange(0.0, 2.5, 0.5),
}
Columns = dict[str, np.ndarray]


def points(path: Path) -> Columns:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    loss = np.array([float(row["loss"]) for row in rows])
    keep = loss < np.sort(loss)[-5]
    params = np.array([float(row["Model Size"]) for row in rows])[keep]
    flops = np.array([float(row["Training FLOP"]) for row in rows])[keep]
    return {"params_total": params, "tokens": flops / (6 * params), "loss": loss[keep]}


def huber_sum(parameters: dict[str, float], data: Columns) -> float:
    """The objective, one plain line for every competitor."""
    p = parameters
    loss = p["E"] + p["A"] * data["params_total"] ** -p["alpha"] + p["B"] * data["tokens"] ** -p["beta"]
    size = np.abs(np.log(data["loss"] / loss))
    return float(np.sum(np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))))


class Scipy:
    """L-BFGS-B over (ln E, ln A, ln B, alpha, beta) with logsumexp, as in the published notebooks."""

    def __init__(self, data: Columns, *, honest: bool = True, weights: np.ndarray | None = None) -> None:
        self.n, self.d = np.log(data["params_total"]), np.log(data["tokens"])
        self.log_loss = np.log(data["loss"])
        self.weights = np.ones_like(self.n) if weights is None else weights
        self.scale = 1 / (DELTA * len(self.n)) if honest else 1.0
        self.options = {"ftol": 1e-13, "gtol": 1e-9, "maxiter": 5000, "maxfun": 10**6} if honest else {}

    def objective(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Scaled objective and gradient at (ln E, ln A, ln B, alpha, beta)."""
        terms = np.stack([np.full_like(self.n, x[0]), x[1] - x[3] * self.n, x[2] - x[4] * self.d])
        top = terms.max(axis=0)
        parts = np.exp(terms - top)
        total = parts.sum(axis=0)
        residual = top + np.log(total) - self.log_loss
        size = np.abs(residual)
        value = np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))
        slope = self.weights * np.clip(residual, -DELTA, DELTA)
        shares = slope * parts / total
        gradient = shares.sum(axis=1)
        gradient = np.concatenate([gradient, [-(shares[1] * self.n).sum(), -(shares[2] * self.d).sum()]])
        return self.scale * float((self.weights * value).sum()), self.scale * gradient

    def run(self, x0: np.ndarray) -> tuple[np.ndarray, float]:
        """Minimum from one start, and its scaled objective."""
        found = minimize(self.objective, x0, jac=True, method="L-BFGS-B", options=self.options)
        return found.x, float(found.fun)


def named(x: np.ndarray) -> dict[str, float]:
    return {"E": np.exp(x[0]), "A": np.exp(x[1]), "B": np.exp(x[2]), "alpha": float(x[3]), "beta": float(x[4])}


def by_grid(data: Columns, *, honest: bool = True) -> dict[str, float]:
    problem = Scipy(data, honest=honest)
    runs = [problem.run(np.array(start)) for start in itertools.product(*GRID.values())]
    return named(min(runs, key=lambda run: run[1])[0])


def by_package(data: Columns) -> dict[str, float]:
    from chinchilla import Chinchilla
    from chinchilla._metrics import log_huber

    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        peer = Chinchilla(
            project_dir=folder,
            param_grid={name: list(values) for name, values in GRID.items()},
            loss_fn=lambda y, y_hat: log_huber(y, y_hat, delta=DELTA),
            log_level=50,
        )
        import pandas

        n, d = data["params_total"], data["tokens"]
        peer.database.df = pandas.DataFrame({"C": 6 * n * d, "N": n, "D": d, "loss": data["loss"]})
        peer.visualizer.optim = lambda *args, **kwargs: None  # no plots: they are not the fit
        peer.fit()
        return {name: float(getattr(peer, name)) for name in ("E", "A", "B", "alpha", "beta")}


def by_isoflop(data: Columns) -> dict[str, float]:
    return laws.fit(data, "chinchilla", huber_delta=DELTA).parameters


def bootstrap_scipy(data: Columns, start: dict[str, float], count: int, seed: int) -> Columns:
    """Refits of resamples, each started at the fit to all rows, as in the published notebooks."""
    rng = np.random.default_rng(seed)
    x0 = np.array([np.log(start["E"]), np.log(start["A"]), np.log(start["B"]), start["alpha"], start["beta"]])
    found = []
    for _ in range(count):
        weights = np.bincount(rng.integers(0, len(data["loss"]), len(data["loss"])), minlength=len(data["loss"]))
        found.append(named(Scipy(data, weights=weights.astype(float)).run(x0)[0]))
    return {name: np.array([each[name] for each in found]) for name in found[0]}


def fine_grained(n: int, seed: int, noise: float = 0.01) -> Columns:
    """Made-up runs of an MoE law with n rows; Krajewski et al. 2024's constants."""
    rng = np.random.default_rng(seed)
    columns = {
        "params_total": 10 ** rng.uniform(8.1, 9.6, n),
        "tokens": 10 ** rng.uniform(10.2, 11.1, n),
        "granularity": 2.0 ** rng.integers(0, 5, n),
        "expansion_rate": np.full(n, 64.0),
    }
    loss = laws.published("krajewski-2024-e64").form.predict(columns, laws.published("krajewski-2024-e64").parameters)
    return {**columns, "loss": loss * np.exp(rng.normal(0, noise, n))}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def interleaved(
    calls: dict[str, Callable[[], Any]], repeats: dict[str, int]
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Each call as often as its repeats say, in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    results = {}
    for turn in range(max(repeats.values())):
        for name, call in calls.items():
            if turn < repeats[name]:
                seconds, results[name] = timed(call)
                times[name].append(seconds)
    return times, results


def span(seconds: list[float]) -> str:
    low, high = min(seconds), max(seconds)
    return f"{statistics.median(seconds):.4g} s ({low:.4g}–{high:.4g}, {len(seconds)} runs)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CSV of the Chinchilla points")
    parser.add_argument("--repeats", type=int, default=7, help="of isoflop")
    parser.add_argument("--peer-repeats", type=int, default=1, help="of the peers, which take minutes each")
    parser.add_argument("--skip", nargs="*", default=[], choices=["grid", "package", "bootstrap", "fine", "growth"])
    parser.add_argument("--rows", type=int, nargs="*", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--plot", type=Path, help="write time against rows to this PNG")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    args = parser.parse_args()
    figures: dict[str, Any] = {}

    if args.data is not None:
        data = points(args.data)
        calls: dict[str, Callable[[], Any]] = {"isoflop": lambda: by_isoflop(data)}
        repeats = {"isoflop": args.repeats}
        if "grid" not in args.skip:
            calls["scipy grid, 4,500 starts"] = lambda: by_grid(data)
            calls["the same, scipy's default tolerances"] = lambda: by_grid(data, honest=False)
            repeats |= {name: args.peer_repeats for name in list(calls)[1:]}
        if "package" not in args.skip:
            try:
                import chinchilla  # noqa: F401
            except ModuleNotFoundError:
                print("chinchilla is not installed: left out", file=sys.stderr)
            else:
                calls["chinchilla 0.2.0, 4,500 starts"] = lambda: by_package(data)
                repeats["chinchilla 0.2.0, 4,500 starts"] = args.peer_repeats
        times, found = interleaved(calls, repeats)
        print(f"Chinchilla law, {len(data['loss'])} points, Huber delta {DELTA:g}, sum objective")
        base = statistics.median(times["isoflop"])
        for name in calls:
            ratio = statistics.median(times[name]) / base
            objective = huber_sum(found[name], data)
            constants = " ".join(f"{key} {value:.5g}" for key, value in found[name].items())
            print(f"  {name:38} {span(times[name]):42} {ratio:8.1f}×  objective {objective:.13f}  {constants}")
            figures[name] = {"seconds": times[name], "objective": objective, "parameters": found[name]}
        if "bootstrap" not in args.skip:
            best = found["isoflop"]
            calls = {
                "isoflop, fit + 4,000 resamples": lambda: laws.fit(data, bootstrap=4000, huber_delta=DELTA).draws,
                "scipy, 4,000 resamples": lambda: bootstrap_scipy(data, best, 4000, seed=0),
            }
            repeats = {name: args.peer_repeats if "scipy" in name else args.repeats for name in calls}
            times, draws = interleaved(calls, repeats)
            print("bootstrap standard errors")
            for name in calls:
                errors = {key: float(np.std(values)) for key, values in draws[name].items()}
                listed = " ".join(f"{key} {value:.3g}" for key, value in errors.items())
                print(f"  {name:38} {span(times[name]):42} {listed}")
                figures[name] = {"seconds": times[name], "standard_errors": errors}

    if "fine" not in args.skip:
        rows = fine_grained(100, seed=1)
        seconds = [timed(lambda: laws.fit(rows, "fine-grained", bootstrap=1000))[0] for _ in range(args.repeats)]
        print(f"fine-grained law (7 parameters), 100 runs, fit + 1,000 resamples: {span(seconds)}")
        figures["fine-grained, 100 runs, 1,000 resamples"] = {"seconds": seconds}

    if "growth" not in args.skip:
        print("fine-grained law, one fit, by rows")
        growth = {}
        for n in args.rows:
            rows = fine_grained(n, seed=2)
            growth[n] = [timed(lambda rows=rows: laws.fit(rows, "fine-grained"))[0] for _ in range(args.repeats)]
            print(f"  {n:>8,} rows  {span(growth[n])}")
        figures["growth"] = growth
        if args.plot is not None:
            plot(growth, args.plot)
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1))


def plot(growth: dict[int, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    rows = np.array(list(growth))
    middle = np.array([statistics.median(seconds) for seconds in growth.values()])
    axes.loglog(rows, middle, "o-", label="isoflop, fine-grained law, 16 restarts")
    axes.loglog(rows, middle[-1] * rows / rows[-1], "--", color="grey", label="in proportion to rows")
    axes.set(xlabel="rows", ylabel="seconds for one fit")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
