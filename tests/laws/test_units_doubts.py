"""What may be a wrong unit although every column by itself could be right."""

import numpy as np

from isoflop.laws import RunTable, fit


def table(*, params=1e8, flops=1.0, scale=1.0):
    rng = np.random.default_rng(0)
    rows = []
    for index in range(20):
        n, d = params * np.exp(rng.uniform(-1, 1)), 20 * params * np.exp(rng.uniform(-1, 1))
        loss = 1.7 + 400 * n**-0.34 + 900 * d**-0.29
        rows.append({"run_id": f"r{index}", "params_total": n * scale, "tokens": d * scale, "loss": loss})
        rows[-1]["flops"] = flops * 6 * n * d
    return RunTable(rows)


def test_flops_far_from_6nd_are_doubted():
    assert not any("not 6ND" in note for note in fit(table(), "chinchilla").runs.notes)
    assert any("flops is 10 times 6" in note for note in fit(table(flops=10.0), "chinchilla").runs.notes)


def test_models_smaller_than_any_are_doubted():
    tiny = RunTable([{name: row[name] for name in row if name != "flops"} for row in table(scale=1e-6).rows])
    notes = fit(tiny, "chinchilla").runs.notes
    assert any("fewer parameters than any language model has" in note for note in notes)
