"""Fitting, side by side: isoflop, the field's 4,500-start scipy grid, and the `chinchilla` package.

    python -m benchmarks.fit --data svg_extracted_data.csv          # under ten minutes; nothing else should run
    pip install chinchilla==0.2.0 && python -m benchmarks.fit --data svg_extracted_data.csv --package   # twice that

`--data` is the CSV of the 245 points that Epoch AI read from Hoffmann et al. 2022, Fig. 4 (github.com/epoch-research/
analyzing-chinchilla, data/svg_extracted_data.csv); the five highest losses are dropped. Without it 240 points are made
up from the published law. Everybody minimises the same objective, the sum over rows of Huber(ln L − ln L̂) with
δ = 1e-3, over E, A, B, alpha, beta; sides take turns in one process, and objectives are recomputed by one function.
How the time of a fit grows with its rows is in benchmarks/scaling.py.

scipy gets every advantage that costs no accuracy: an analytic gradient, vectorised numpy, an objective scaled to order
one (with its default tolerances on the raw objective it would stop almost at once, and be wrong).
"""

import csv
import itertools
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from benchmarks import harness
from benchmarks.table import Row
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


def made_up(n: int = 240, noise: float = 0.01) -> Columns:
    """Runs of the published Chinchilla law, where the extracted points are not at hand."""
    rng = np.random.default_rng(0)
    columns = {"params_total": 10 ** rng.uniform(7.7, 10.2, n), "tokens": 10 ** rng.uniform(9.3, 11.8, n)}
    loss = 1.82 + 482 * columns["params_total"] ** -0.348 + 2085 * columns["tokens"] ** -0.366
    return {**columns, "loss": loss * np.exp(rng.normal(0, noise, n))}


def huber_sum(parameters: dict[str, float], data: Columns) -> float:
    """The objective, one plain line for every competitor."""
    p = parameters
    loss = p["E"] + p["A"] * data["params_total"] ** -p["alpha"] + p["B"] * data["tokens"] ** -p["beta"]
    size = np.abs(np.log(data["loss"] / loss))
    return float(np.sum(np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))))


class Scipy:
    """L-BFGS-B over (ln E, ln A, ln B, alpha, beta) with logsumexp, as in the published notebooks."""

    def __init__(self, data: Columns, *, weights: np.ndarray | None = None) -> None:
        self.n, self.d = np.log(data["params_total"]), np.log(data["tokens"])
        self.log_loss = np.log(data["loss"])
        self.weights = np.ones_like(self.n) if weights is None else weights
        self.scale = 1 / (DELTA * len(self.n))
        self.options = {"ftol": 1e-13, "gtol": 1e-9, "maxiter": 5000, "maxfun": 10**6}

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


def by_grid(data: Columns, thinned: int = 1) -> dict[str, float]:
    problem = Scipy(data)
    runs = [
        problem.run(np.array(start)) for start in itertools.islice(itertools.product(*GRID.values()), 0, None, thinned)
    ]
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


Kept = dict[str, Any]


def in_turn(calls: dict[str, Callable[[], Any]], turns: int) -> tuple[dict[str, list[float]], Kept]:
    """Seconds of every call in every turn, and what each returned last."""
    results: Kept = {}

    def side(name: str) -> harness.Side:
        return harness.timed(lambda: results.update({name: calls[name]()}))

    return harness.in_turn({name: side(name) for name in calls}, turns, warm_up=0), results


def run(
    quick: bool = False,
    *,
    repeats: int | None = None,
    threads: int | None = None,
    data: Path | None = None,
    package: bool = False,
) -> list[Row]:
    """Rows of one fit, of a bootstrap, and of the fine-grained law; scipy fits on one thread, whatever `threads`."""
    turns = repeats or (1 if quick else 7)
    columns = made_up() if data is None else points(data)
    thinned = 10 if quick else 1
    by_isoflop(columns)  # warm
    calls: dict[str, Callable[[], Any]] = {
        "isoflop": lambda: by_isoflop(columns),
        f"scipy, {4500 // thinned:,} starts": lambda: by_grid(columns, thinned),
    }
    if package:
        calls["chinchilla 0.2.0"] = lambda: by_package(columns)
    times, found = in_turn(calls, turns)
    case = f"Chinchilla law, {len(columns['loss'])} points{'' if data else ' (made up)'}, Huber delta {DELTA:g}"
    own_objective = huber_sum(found["isoflop"], columns)
    rows = []
    for name in list(calls)[1:]:
        constants = ", ".join(f"{key} {value:.5g}" for key, value in found[name].items())
        note = f"objective: ours {own_objective:.13f}, theirs {huber_sum(found[name], columns):.13f}, at {constants}"
        rows.append(Row.of_costs(case, times["isoflop"], times[name], unit="s", peer_name=name, note=note))
    draws = 200 if quick else 4000
    best = found["isoflop"]
    calls = {
        "isoflop": lambda: laws.fit(columns, bootstrap=draws, huber_delta=DELTA).draws,
        "scipy": lambda: bootstrap_scipy(columns, best, draws, seed=0),
    }
    times, resampled = in_turn(calls, turns)
    errors = [
        f"{name} " + ", ".join(f"{key} {np.std(values):.3g}" for key, values in each.items())
        for name, each in resampled.items()
    ]
    rows.append(
        Row.of_costs(
            f"the same and {draws:,} resamples",
            times["isoflop"],
            times["scipy"],
            unit="s",
            peer_name="scipy",
            note=f"standard errors: {'; '.join(errors)}",
        )
    )
    runs = fine_grained(100, seed=1)
    times, _ = in_turn({"isoflop": lambda: laws.fit(runs, "fine-grained", bootstrap=1000)}, turns)
    rows.append(Row.of_costs("fine-grained law, 100 runs, 1,000 resamples", times["isoflop"], unit="s"))
    return rows


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--data", type=Path, help="CSV of the Chinchilla points")
    parser.add_argument("--package", action="store_true", help="also the chinchilla package, which takes minutes a fit")
    arguments = parser.parse_args()
    harness.carry_out("fit", run, arguments, data=arguments.data, package=arguments.package)


if __name__ == "__main__":
    main()
