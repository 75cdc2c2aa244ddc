import numpy as np
import pytest
from tests.planner.made_up_runs import DENSE, MOE, true_loss
from tests.planner.made_up_sweeps import DEPTH, FLOPS, TEMPLATES, VALLEY, r_star, steep_at

from isoflop import count, laws
from isoflop.planner import expected_optimum, plan, sizes_around


@pytest.fixture(scope="session")
def fits():
    """Laws fitted to made-up isoFLOP runs of a dense family and of fine-grained families of E = 8."""
    rng = np.random.default_rng(0)
    rows = []
    for budget in (1e12, 3e12, 1e13, 3e13):
        for template in (DENSE, *MOE):
            for spec in sizes_around(template, expected_optimum(budget, template=DENSE), 5):
                counted = count(spec)
                tokens = budget / counted.training_flops_per_token
                granularity, rate = (spec.experts.granularity, 8) if spec.experts else (1, 1)
                loss = true_loss(counted, tokens, granularity, rate > 1) * np.exp(0.002 * rng.standard_normal())
                rows.append(
                    {
                        "run_id": f"r{len(rows)}",
                        "architecture": template.name,
                        "params_total": counted.params_total,
                        "params_active": counted.params_active,
                        "tokens": tokens,
                        "flops": budget,
                        "flops_convention": "exact",
                        "granularity": granularity,
                        "expansion_rate": rate,
                        "loss": loss,
                    }
                )
    table = laws.RunTable(rows)
    return {
        "dense": laws.fit(table.where(expansion_rate=1), "chinchilla", bootstrap=100),
        "moe-e8": laws.fit(table.where(expansion_rate=8), "fine-grained", bootstrap=100),
    }


@pytest.fixture(scope="module")
def best():
    """The law of made-up sweeps over r, with a little noise."""
    rng = np.random.default_rng(1)
    rows = [
        {
            "flops": c,
            "budget": c,
            "sparsity": s,
            "context": 128,
            "flops_convention": "exact",
            "expert_attention_ratio": r,
            "loss": 2.5 + DEPTH * np.log(r / r_star(c, s)) ** 2 + 0.002 * rng.standard_normal(),
        }
        for c in (1e12, 1e13, 1e14)
        for s in (0.5, 0.875, 0.96875)
        for r in r_star(c, s) * np.geomspace(0.3, 3, 7)
    ]
    return laws.best_ratio_of(laws.ratio_valleys(laws.RunTable(rows)), draws=40, source="sweeps")


@pytest.fixture(scope="module")
def base(fits):
    return plan(flops=FLOPS, law=fits, templates=TEMPLATES)


@pytest.fixture(scope="module")
def valley_fit():
    """Runs of a law that reads the ratio, of all its columns."""
    rng = np.random.default_rng(0)
    rows = []
    for c in (1e12, 1e13, 1e14):
        for size in np.sqrt(c / 600) * np.geomspace(0.3, 3, 4):
            for sparsity in (0.0, 0.5, 0.875, 0.96875):
                for ratio in np.geomspace(0.3, 5, 5):
                    row = {
                        "params_active": size,
                        "params_total": size / (1 - sparsity) ** 0.8,
                        "tokens": c / (6 * size),
                        "sparsity": sparsity,
                        "expansion_rate": 1 / (1 - sparsity),
                        "granularity": 4 if sparsity else 1,
                        "expert_attention_ratio": ratio,
                        "flops": c,
                        "flops_convention": "exact",
                    }
                    loss = laws.AllocationLoss().predict(
                        {name: np.array([v]) for name, v in row.items() if name != "flops_convention"}, VALLEY
                    )
                    rows.append({**row, "loss": float(loss[0]) * np.exp(0.001 * rng.standard_normal())})
    return laws.fit(laws.RunTable(rows), "allocation-loss", bootstrap=40)


@pytest.fixture(scope="module")
def steep():
    return steep_at(1e11)
