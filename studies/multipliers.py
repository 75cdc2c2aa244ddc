"""Efficiency multipliers straight from a study's rows, without a law.

    python studies/multipliers.py docs/results/granularity-runs.csv

The loss of an architecture at a budget is the mean over seeds of its best size. The multiplier is how many times the
budget at which dense models, whose losses are joined by straight lines in ln(FLOPs), reach that loss; beyond the
largest dense budget the last line is extended, which the output marks with *. The 90% intervals propagate the noise
between seeds (pooled over all repeated cells) through the whole computation; they do not know that the best size is
chosen after the fact, nor how straight the lines are.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from isoflop.laws import read_runs

DRAWS = 4000
Losses = dict[tuple[str, float], float]


def main() -> None:
    """Print the best sizes, the noise and the multipliers of a run table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--dense", default="dense", help="architecture to compare with")
    args = parser.parse_args()
    table = read_runs(args.runs).usable()
    cells: dict[tuple[str, float, float], list[float]] = defaultdict(list)
    for row in table.rows:
        cells[row["architecture"], float(row["budget"]), float(row["params_active"])].append(float(row["loss"]))
    repeated = [np.array(losses) for losses in cells.values() if len(losses) > 1]
    spare = sum(len(losses) - 1 for losses in repeated)
    noise = float(np.sqrt(sum(((losses - losses.mean()) ** 2).sum() for losses in repeated) / spare))
    names, budgets = list(dict.fromkeys(name for name, _, _ in cells)), sorted({budget for _, budget, _ in cells})
    best, error = {}, {}
    for name in names:
        for budget in budgets:
            own = {size: losses for (a, b, size), losses in cells.items() if (a, b) == (name, budget)}
            size = min(own, key=lambda size: float(np.mean(own[size])))
            best[name, budget] = float(np.mean(own[size]))
            error[name, budget] = noise / np.sqrt(len(own[size]))
            print(f"{name:12} {budget:.0e}  {best[name, budget]:.4f}  {len(own[size])} seed(s)  {size:,.0f} active")
    print(f"standard deviation between seeds: {noise:.4f} nats, from {len(repeated)} repeated cells")
    rng = np.random.default_rng(0)
    drawn = [{key: best[key] + error[key] * rng.standard_normal() for key in best} for _ in range(DRAWS)]
    for name in names:
        if name == args.dense:
            continue
        cellwise = []
        for budget in budgets:
            draws = [multiplier(losses, args.dense, name, budget, budgets) for losses in drawn]
            low, high = np.quantile(draws, [0.05, 0.95])
            beyond = "*" if best[name, budget] < best[args.dense, budgets[-1]] else ""
            value = multiplier(best, args.dense, name, budget, budgets)
            cellwise.append(f"{budget:.0e}: {value:.2f}{beyond} [{low:.2f}, {high:.2f}]")
        growth = [
            multiplier(losses, args.dense, name, budgets[-1], budgets)
            / multiplier(losses, args.dense, name, budgets[0], budgets)
            for losses in drawn
        ]
        low, middle, high = np.quantile(growth, [0.05, 0.5, 0.95])
        print(f"{name:12} {'  '.join(cellwise)}  largest/smallest budget: {middle:.2f} [{low:.2f}, {high:.2f}]")


def multiplier(losses: Losses, dense: str, name: str, budget: float, budgets: list[float]) -> float:
    """Budget at which dense reaches the loss of `name` at `budget`, divided by it."""
    x, y = np.log(budgets), np.array([losses[dense, each] for each in budgets])
    target = losses[name, budget]
    slope = (x[-1] - x[-2]) / (y[-1] - y[-2])
    at = x[-1] + (target - y[-1]) * slope if target <= y[-1] else np.interp(-target, -y, x)
    return float(np.exp(at) / budget)


if __name__ == "__main__":
    main()
