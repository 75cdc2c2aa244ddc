"""Published constants reproduce their papers' numbers and say what they hold for."""

import re

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import PUBLISHED, published
from isoflop.spec import CONVENTIONS

TABLE_2 = [  # arXiv 2402.07871, Table 2: active parameters, tokens, G, loss at E=64
    (100e6, 4.37e9, 8, 3.133),
    (1e9, 28.94e9, 16, 2.491),
    (3e9, 72.90e9, 16, 2.245),
    (7e9, 137.60e9, 32, 2.076),
    (70e9, 941.07e9, 32, 1.694),
    (300e9, 2.96e12, 64, 1.503),
    (1e12, 7.94e12, 64, 1.367),
]


@pytest.mark.parametrize(("active", "tokens", "granularity", "loss"), TABLE_2)
def test_fine_grained_losses_of_the_papers_table(active: float, tokens: float, granularity: int, loss: float) -> None:
    law = published("krajewski-2024-e64")
    columns = {"params_total": active / law.active_share, "tokens": tokens, "granularity": granularity}
    assert law.predict(columns)[0] == pytest.approx(loss, abs=0.002)


def test_hoffmann_at_chinchilla_itself() -> None:
    predicted = published("hoffmann-2022").predict({"params_total": 70e9, "tokens": 1.4e12})
    assert predicted[0] == pytest.approx(1.69 + 406.4 / 70e9**0.34 + 410.7 / 1.4e12**0.28, rel=1e-12)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_law_is_complete(name: str) -> None:
    law = published(name)
    assert set(law.parameters) == set(law.form.names)
    assert law.convention in CONVENTIONS
    assert re.search(r"arXiv 2\d{3}\.\d{5}", law.source)
    assert "N is" in law.symbols or "N does not enter" in law.symbols
    assert law.range or name == "tian-2025"
    assert law.fixed.get("expansion_rate", 1.0) in (1.0, 16.0, 64.0)
    assert law.to_dict()["parameters"] == dict(law.parameters)


def test_outside_of_its_range_a_law_says_so_once() -> None:
    law = published("krajewski-2024-e64")
    inside = {"params_total": 1e9, "tokens": 2e10, "granularity": 4, "expansion_rate": 64}
    law.predict(inside)
    assert law.warnings == []
    for _ in range(2):
        law.predict(inside | {"tokens": 2e12})
    assert law.warnings == [
        "tokens is outside 1.6e+10 to 1.3e+11, where law krajewski-2024-e64 has runs: an extrapolation."
    ]


def test_wrong_names_columns_and_values_are_sentences() -> None:
    with pytest.raises(InputError, match=r"published laws are krajewski-2024-e64, .*besiroglu-2024"):
        published("krajewski")
    law = published("krajewski-2024-e64")
    with pytest.raises(InputError, match="column granularity is missing"):
        law.predict({"params_total": 1e9, "tokens": 2e10})
    with pytest.raises(InputError, match="tokens is 0; a prediction needs it positive and finite"):
        law.predict({"params_total": 1e9, "tokens": 0, "granularity": 4})
    with pytest.raises(
        InputError, match="expansion_rate is 8; law krajewski-2024-e64 holds for expansion_rate 64 alone"
    ):
        law.predict({"params_total": 1e9, "tokens": np.array([1e10]), "granularity": 4, "expansion_rate": 8})


JOINT_OPTIMA = [  # arXiv 2502.05172: experts, active parameters and tokens of the compute-optimal model at 1e20 FLOPs
    (1, 1.7e9, 9.7e9),
    (2, 1.5e9, 11.4e9),
    (4, 1.2e9, 13.9e9),
    (8, 990e6, 17e9),
    (16, 810e6, 20.7e9),
    (32, 669e6, 24.9e9),
]


@pytest.mark.parametrize(("experts", "params", "tokens"), JOINT_OPTIMA)
def test_compute_optimal_models_of_the_joint_law(experts: float, params: float, tokens: float) -> None:
    law = published("ludziejewski-2025")
    sizes = np.exp(np.linspace(np.log(1e8), np.log(1e10), 4001))
    losses = law.predict({"params_active": sizes, "tokens": 1e20 / (6 * sizes), "expansion_rate": experts})
    best = sizes[int(np.argmin(losses))]
    assert best == pytest.approx(params, rel=0.03)
    assert 1e20 / (6 * best) == pytest.approx(tokens, rel=0.03)


def test_leverage_of_the_papers_example_and_its_best_granularity() -> None:
    law = published("tian-2025")
    at = {"sparsity": 1 - 0.031, "flops": 1e22}
    assert law.predict(at | {"granularity": 12})[0] == pytest.approx(7.2, abs=0.05)
    granularities = np.arange(1, 40)
    assert granularities[int(np.argmax(law.predict(at | {"granularity": granularities})))] == 11


R_STAR = {  # arXiv 2603.10379 by sparsity, at 1e18 to 1e21 FLOPs
    0.8235: (0.567, 0.833, 1.223, 1.795),
    0.9091: (0.522, 0.729, 1.019, 1.422),
    0.9538: (0.541, 0.723, 0.966, 1.291),
    0.9767: (0.625, 0.804, 1.033, 1.327),
}


@pytest.mark.parametrize("sparsity", R_STAR)
def test_best_expert_attention_ratio(sparsity: float) -> None:
    exact = 1 - 3 / {0.8235: 17, 0.9091: 33, 0.9538: 65, 0.9767: 129}[sparsity]
    ratios = published("li-2026").predict({"flops": np.array([1e18, 1e19, 1e20, 1e21]), "sparsity": exact})
    np.testing.assert_allclose(ratios, R_STAR[sparsity], rtol=0, atol=1e-3)


CUT_OFF = {"sbase": 937e9, "rlr": 85e9, "hash": 83e9}


@pytest.mark.parametrize("router", CUT_OFF)
def test_where_routing_stops_helping(router: str) -> None:
    law = published(f"clark-2022-{router}")
    cut_off = 10 ** (-law.parameters["b"] / law.parameters["c"])
    # The paper's cut-offs come from more digits than it prints; three decimals of c move their exponent by up to 6%.
    assert np.log10(cut_off) == pytest.approx(np.log10(CUT_OFF[router]), rel=0.06)
    for size, helps in ((0.3 * CUT_OFF[router], True), (3 * CUT_OFF[router], False)):
        few, many = law.predict({"params_active": np.full(2, size), "expansion_rate": np.array([2.0, 256.0])})
        assert (many < few) == helps


def test_repeated_tokens_are_worth_less() -> None:
    law = published("muennighoff-2023")
    at = {"params_total": 1e9, "unique_tokens": 1e10}
    fresh, four, forty = law.predict(at | {"tokens": np.array([1e10, 4e10, 4e11])})
    plain = law.predict({"params_total": 1e9, "tokens": 4e10, "unique_tokens": 4e10})[0]
    assert forty < four < fresh
    assert four == pytest.approx(plain, abs=0.01)  # "up to 4 epochs ... negligible changes to loss"
