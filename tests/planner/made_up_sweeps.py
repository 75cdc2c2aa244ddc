"""Made-up sweeps over the expert–attention ratio, and how plans at a ratio are looked up."""

import numpy as np
from tests.planner.made_up_runs import DENSE, MOE

from isoflop import laws

DEPTH = 0.03
FLOPS = 2e13
LAW = laws.published("li-2026")
TEMPLATES = (DENSE, MOE[0], MOE[2])


def r_star(flops, sparsity):
    return float(laws.Allocation().predict({"flops": [flops], "sparsity": [sparsity]}, PLANTED)[0])


PLANTED = {"A": 0.05, "p": -0.6, "B": 0.06, "q": 0.1}


def rows_by_shape(found):
    return {(row.architecture, row.realised.base if row.realised else row.model): row for row in found.table}


VALLEY = {
    **{"e": 1.0, "a": 30.0, "b": 20.0, "c": 2.0, "v": 0.04, "alpha": 0.3, "beta": 0.25, "gamma": 0.4, "lambda": 0.1},
    **{"rho": 1.1, "sigma": 0.05},
}


def steep_at(middle):
    """Runs at a tenth to ten times these FLOPs, from r = 0.25 to 4; their law sends r* beyond 4 at the plan's 2e13."""
    rng, rows = np.random.default_rng(5), []
    for c in (middle / 10, middle, middle * 10):
        for s in (0.5, 0.875, 0.96875):
            for r in (0.25, 0.45, 0.8, 1.4, 2.4, 4.0):
                off = np.log(r) + 0.3 * np.log(1 - s) - 0.4 * np.log(c / middle)
                row = {"flops": c, "budget": c, "sparsity": s, "context": 128, "flops_convention": "exact"}
                loss = 2.5 + 0.02 * off**2 + 0.002 * rng.standard_normal()
                rows.append({**row, "expert_attention_ratio": r, "loss": loss})
    return laws.best_ratio_of(laws.ratio_valleys(laws.RunTable(rows)), source="small runs")
