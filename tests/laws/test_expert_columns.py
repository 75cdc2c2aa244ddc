"""Columns of experts: what follows from them, what must not be derived, and what cannot all be right."""

from typing import Any

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import RunTable, fit, read_runs
from isoflop.laws.reading import derive

N, D = np.repeat([1e8, 3e8, 1e9], 4), np.tile([2e9, 5e9, 1e10, 3e10], 3)
LOSS = 1.7 + 400 * N**-0.34 + 900 * D**-0.29


def table(**changed: Any) -> RunTable:
    columns = {"params_total": 4 * N, "params_active": N, "tokens": D, "loss": LOSS} | changed
    columns = {name: np.broadcast_to(values, 12) for name, values in columns.items() if values is not None}
    return RunTable({name: values[i].item() for name, values in columns.items()} for i in range(12))


@pytest.mark.parametrize(
    ("columns", "granularity", "expansion", "note"),
    [
        ({"n_experts": 64, "top_k": 8}, 8, 8, "derived as top_k"),
        ({"n_experts": 8, "top_k": 3}, 3, 8 / 3, "derived as top_k"),
        ({"n_experts": 8, "top_k": 2, "d_ff": 14336, "d_expert": 14336}, 1, 8, "derived as d_ff / d_expert"),
        ({"n_experts": 64, "top_k": 8, "d_ff": 1024, "d_expert": 256}, 4, 16, "derived as d_ff / d_expert"),
        ({"n_experts": 64, "top_k": 8, "expansion_rate": 16}, 4, 16, "derived as n_experts / expansion_rate"),
        ({"n_experts": 64, "top_k": 8, "granularity": 1}, 1, 64, "n_experts / granularity"),
        ({"n_experts": 64, "top_k": 1}, 1, 64, "granularity is absent: taken as 1"),
        ({"n_experts": 64}, 1, 64, "granularity is absent: taken as 1"),
        ({"n_experts": 1, "top_k": 1}, 1, 1, "granularity is absent: taken as 1"),
    ],
)
def test_granularity_and_expansion_follow(
    columns: dict[str, float], granularity: float, expansion: float, note: str
) -> None:
    found = derive(table(**columns))
    assert set(found["granularity"]) == {granularity}
    assert found["expansion_rate"][0] == pytest.approx(expansion)
    assert any(note in each for each in found.notes)
    assert derive(found).rows == found.rows


def test_dense_rows_beside_fine_grained_ones() -> None:
    experts = np.tile([1, 64, 64], 4)
    found = derive(table(n_experts=experts, top_k=np.tile([2, 8, 2], 4)))
    assert found["granularity"][:3].tolist() == [1, 8, 2]
    assert found["expansion_rate"][:3].tolist() == [1, 8, 32]
    found = derive(table(n_experts=np.where(experts == 1, np.nan, experts), top_k=np.tile([np.nan, 8, 2], 4)))
    assert found["granularity"][:3].tolist() == [1, 8, 2]


@pytest.mark.parametrize("experts", [{"n_experts": 8, "top_k": 2}, {"expansion_rate": 8.0}, {"sparsity": 0.75}])
def test_flops_are_not_six_times_the_total_of_a_moe(experts: dict[str, float]) -> None:
    runs = derive(table(params_active=None, **experts))
    assert "flops" not in runs
    assert any("give params_active" in note for note in runs.notes)
    with pytest.raises(InputError, match=r"has no column flops, and params_total counts experts .* params_active"):
        fit(table(params_active=None, tokens=D, expert_attention_ratio=1.0, **experts), "allocation-loss")
    with pytest.raises(InputError, match="has no column tokens, and params_total counts experts"):
        fit(table(params_active=None, tokens=None, flops=6 * N * D, **experts))
    assert derive(table(**experts))["flops"].tolist() == (6 * N * D).tolist()
    same = derive(table(params_active=None, params_total=N, n_experts=1, top_k=1))
    assert same["flops"].tolist() == (6 * N * D).tolist()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"granularity": 4, "expansion_rate": 2, "n_experts": 64, "top_k": 8},
            r"row 1: granularity is 4, expansion_rate is 2, n_experts is 64, but n_experts is granularity · "
            r"expansion_rate \(12 of 12 rows\)",
        ),
        ({"n_experts": 8, "top_k": 9}, "row 1: n_experts is 8, top_k is 9, but top_k is at most n_experts"),
        (
            {"params_active": np.where(np.arange(12) == 4, 5 * N, N)},
            r"row 5: params_total is 1.2e\+09, params_active is 1.5e\+09, but params_active is at most params_total "
            r"\(1 of 12 rows\)",
        ),
    ],
)
def test_contradictions_are_one_sentence(columns: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        fit(table(**columns))
    assert "\n" not in str(caught.value)


def test_a_shared_expert_or_rounding_is_no_contradiction() -> None:
    assert fit(table(granularity=8, expansion_rate=8, n_experts=66, top_k=10)).n_rows == 12
    assert fit(table(params_total=N, params_active=N * 1.004, expansion_rate=1.0)).n_rows == 12


def test_a_law_without_columns_of_experts_warns() -> None:
    mixed = fit(table(n_experts=np.tile([8, 64, 64, 32], 3), top_k=np.tile([2, 8, 2, 4], 3)))
    assert "the rows mix expansion_rate 4, 8, 32, which law chinchilla does not tell apart." in mixed.warnings
    unknown = fit(table(sparsity=np.linspace(0, 0.9, 12)))
    assert any("law chinchilla reads no column of experts" in each for each in unknown.warnings)
    known = fit(table(expansion_rate=8.0, granularity=1))
    assert known.warnings == []
    assert known.law.fixed == {"expansion_rate": 8.0, "granularity": 1.0}


def test_a_missing_column_lists_the_files_own(tmp_path: Any) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("N,tokens,error_rate\n1e8,2e9,3\n2e8,4e9,2\n")
    with pytest.raises(InputError, match=r"it has params_total, tokens, error_rate \(map one with --column loss=NAME"):
        fit(read_runs(path, {"params_total": "N"}))
