"""Plans from laws that know the expansion rate, and answers of laws of something else than the loss."""

import numpy as np
import pytest
from tests.planner.made_up_runs import DENSE, MOE, true_loss

from isoflop import count, laws
from isoflop.errors import InputError
from isoflop.planner import answer, expected_optimum, plan, sizes_around

JOINT_TABLE = [(1, 1.7e9, 9.7e9), (2, 1.5e9, 11.4e9), (4, 1.2e9, 13.9e9), (8, 990e6, 17e9), (16, 810e6, 20.7e9),
               (32, 669e6, 24.9e9)]  # fmt: skip
"""E, N_active, tokens at 1e20 FLOPs: Ludziejewski et al. 2025, arXiv 2502.05172."""

RATIOS = {
    17: (0.567, 0.833, 1.223, 1.795),
    33: (0.522, 0.729, 1.019, 1.422),
    65: (0.541, 0.723, 0.966, 1.291),
    129: (0.625, 0.804, 1.033, 1.327),
}
"""r* at 1e18, 1e19, 1e20, 1e21 FLOPs by number of experts, three of them used: arXiv 2603.10379, from its constants."""


def test_the_joint_laws_compute_optimal_table():
    found = plan(flops=1e20, law="ludziejewski-2025")
    rows = {row.expansion_rate: row for row in found.table}
    assert set(rows) == {rate for rate, _, _ in JOINT_TABLE}
    for rate, size, tokens in JOINT_TABLE:
        assert rows[rate].params_active == pytest.approx(size, rel=0.03)
        assert rows[rate].tokens == pytest.approx(tokens, rel=0.03)
    assert found.best.expansion_rate == 32
    assert not any("expansion_rate is outside" in sentence for sentence in found.warnings)


def test_the_sparsity_law_ranks_expansion_rates_in_its_range():
    found = plan(flops=1e20, law="abnar-2025")
    assert {row.expansion_rate for row in found.table} == {1, 2, 4, 8, 16, 32}
    law = laws.published("abnar-2025")
    for row in found.table:
        assert row.sparsity == pytest.approx(1 - 1 / row.expansion_rate)
        columns = {"params_total": row.params_total, "tokens": row.tokens, "sparsity": row.sparsity}
        assert row.loss == pytest.approx(float(law.predict(columns)[0]))
        for factor in (0.8, 1.25):
            moved = {**columns, "params_total": row.params_total * factor, "tokens": row.tokens / factor}
            assert float(law.predict(moved)[0]) > row.loss


@pytest.fixture(scope="module")
def mixed():
    """Made-up runs of dense and MoE models of two expansion rates together."""
    rng = np.random.default_rng(1)
    rows = []
    wide = tuple(DENSE.with_experts(f"moe-e16-g{g}", granularity=g, expansion_rate=16) for g in (2, 8))
    for budget in (1e12, 1e13):
        for template in (DENSE, *MOE, *wide):
            for spec in sizes_around(template, expected_optimum(budget, template=DENSE), 4):
                counted = count(spec)
                tokens = budget / counted.training_flops_per_token
                g, rate = (spec.experts.granularity, spec.experts.expansion_rate) if spec.experts else (1, 1)
                loss = true_loss(counted, tokens, g, rate > 1) * np.exp(0.002 * rng.standard_normal())
                rows.append(
                    {
                        "params_total": counted.params_total,
                        "params_active": counted.params_active,
                        "tokens": tokens,
                        "flops": budget,
                        "flops_convention": "exact",
                        "granularity": g,
                        "expansion_rate": rate,
                        "sparsity": 1 - 1 / rate,
                        "expert_attention_ratio": counted.expert_attention_ratio,
                        "loss": loss,
                    }
                )
    return laws.RunTable(rows)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("joint", {"dense", *(f"moe-e8-g{g}" for g in (1, 2, 4, 8)), "moe-e16-g2", "moe-e16-g8"}),
        ("unified", {"dense", *(f"moe-e{e}-g{g}" for e in (8, 16) for g in (1, 2, 4, 8))}),
        ("sparsity", {"dense", *(f"moe-e8-g{g}" for g in (1, 2, 4, 8)), "moe-e16-g2", "moe-e16-g8"}),
    ],
)
def test_fits_of_laws_that_know_e_plan_every_architecture_of_their_runs(mixed, form, names):
    fit = laws.fit(mixed, form, bootstrap=20)
    found = plan(flops=3e13, law=fit, vocab_size=256, context=128)
    assert {row.architecture for row in found.table} <= names
    solved = {curve.architecture for curve in found.curves}
    assert solved == names
    for row in found.table:
        counted = count(row.spec)
        columns = {
            "params_total": counted.params_total,
            "params_active": counted.params_active,
            "tokens": row.tokens,
            "granularity": row.granularity,
            "expansion_rate": row.expansion_rate,
            "sparsity": row.sparsity,
            "expert_attention_ratio": counted.expert_attention_ratio,
            "flops": row.flops,
        }
        assert row.loss == pytest.approx(float(fit.predict(columns)[0]))
        assert row.loss_interval[0] < row.loss_interval[1]
    assert found.against_dense.multiplier.loss == pytest.approx(found.best.loss, rel=5e-3)
    free = plan(flops=3e13, law=fit, vocab_size=256, context=128, expansion_rates=[1, 4], granularities=[2])
    assert {row.architecture for row in free.table} <= {"dense", "moe-e4-g2"}


@pytest.mark.parametrize("experts", RATIOS)
def test_the_allocation_law_gives_the_best_ratio(experts):
    for flops, ratio in zip((1e18, 1e19, 1e20, 1e21), RATIOS[experts], strict=True):
        found = answer("li-2026", flops=flops, expansion_rates=[experts / 3])
        assert found.quantity == "expert_attention_ratio"
        assert found.rows[0]["expert_attention_ratio"] == pytest.approx(ratio, abs=6e-4)
        assert found.warnings == ()
    default = answer("li-2026", flops=1e20)
    assert [row["expert_attention_ratio"] for row in default.rows] == pytest.approx(
        [RATIOS[n][2] for n in RATIOS], abs=6e-4
    )
    assert any("sparsity is outside" in s for s in answer("li-2026", flops=1e20, expansion_rates=[200]).warnings)


def test_the_leverage_law_with_our_granularity():
    """EL 7.2 at an activation ratio of 3.1%, the paper's G = 12 (ours 24) and 1e22 FLOPs."""
    found = answer("tian-2025", flops=1e22, expansion_rates=[1 / 0.031], granularities=[8, 24, 128])
    leverages = [row["leverage"] for row in found.rows]
    assert leverages[1] == pytest.approx(7.2, abs=0.06)
    assert max(leverages) == leverages[1]
    assert found.rows[1]["dense_flops"] == pytest.approx(1e22 * leverages[1])


def test_fits_answer_with_intervals():
    law = laws.published("li-2026")
    rng = np.random.default_rng(0)
    rows = [
        {"flops": c, "sparsity": s, "expert_attention_ratio": r * np.exp(0.01 * rng.standard_normal())}
        for c in (1e18, 3e18, 1e19, 1e20)
        for s in (0.8, 0.9, 0.95, 0.97)
        for r in law.form.predict({"flops": np.array([c]), "sparsity": np.array([s])}, law.parameters)
    ]
    fit = laws.fit(rows, "allocation", bootstrap=40)
    of_its_rows = answer(fit, flops=1e19)
    assert [each["sparsity"] for each in of_its_rows.rows] == pytest.approx([0.8, 0.9, 0.95, 0.97])
    assert of_its_rows.warnings == ()
    far = answer(fit, flops=1e19, expansion_rates=[2, 10]).warnings
    assert far[0] == "expansion_rate 2 is outside 5 to 33.3333, where the fit has runs: an extrapolation."
    row = answer(fit, flops=1e19, expansion_rates=[10]).rows[0]
    assert row["low"] < row["expert_attention_ratio"] < row["high"]
    assert row["expert_attention_ratio"] == pytest.approx(
        float(law.predict({"flops": 1e19, "sparsity": 0.9})[0]), rel=0.05
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"law": "li-2026", "flops": -1}, "flops is -1"),
        ({"law": "li-2026", "expansion_rates": [0.5]}, r"expansion_rates is \[0.5\]"),
        ({"law": "li-2026", "expansion_rates": []}, r"expansion_rates is \[\]"),
        ({"law": "li-2026", "granularities": [2]}, "law li-2026 does not know granularity"),
        ({"law": "tian-2025", "granularities": [0]}, r"granularities is \[0\]"),
        ({"law": "hoffmann-2022"}, "law hoffmann-2022 reads params_total, tokens; an answer needs a law"),
    ],
)
def test_wrong_questions_are_one_sentence(arguments, words):
    with pytest.raises(InputError, match=words):
        answer(**{"flops": 1e20, **arguments})
