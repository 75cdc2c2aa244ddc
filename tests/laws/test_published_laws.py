"""Published constants reproduce their papers' numbers and say what they hold for."""

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
    assert "arXiv 24" in law.source or "arXiv 22" in law.source
    assert "N is" in law.symbols
    assert law.range
    assert law.fixed["expansion_rate"] in (1.0, 16.0, 64.0)
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
    with pytest.raises(InputError, match="tokens is 0; a prediction needs positive"):
        law.predict({"params_total": 1e9, "tokens": 0, "granularity": 4})
    with pytest.raises(
        InputError, match="expansion_rate is 8; law krajewski-2024-e64 holds for expansion_rate 64 alone"
    ):
        law.predict({"params_total": 1e9, "tokens": np.array([1e10]), "granularity": 4, "expansion_rate": 8})
