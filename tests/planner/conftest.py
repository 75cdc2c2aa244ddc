import numpy as np
import pytest
from tests.planner.made_up_runs import DENSE, MOE, true_loss

from isoflop import count, laws
from isoflop.planner import expected_optimum, sizes_around


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
