"""What is wrong with a table is said before a fit: row, column, remedy; and the remedies work."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import RunTable, best_of, fit, last_of, read_runs


def table(**changed: Any) -> RunTable:
    """Twelve sound dense runs, with columns replaced."""
    n, d = np.repeat([1e8, 3e8, 1e9], 4), np.tile([2e9, 5e9, 1e10, 3e10], 3)
    columns = {"params_total": n, "tokens": d, "loss": 1.7 + 400 * n**-0.34 + 900 * d**-0.29} | changed
    return RunTable({name: values[i] for name, values in columns.items()} for i in range(12))


def at(values: np.ndarray, index: int, value: float) -> np.ndarray:
    changed = np.array(values, dtype=float)
    changed[index] = value
    return changed


SOUND = table()
N, D, LOSS = (SOUND[name] for name in ("params_total", "tokens", "loss"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"loss": at(LOSS, 3, np.nan)}, "row 4: loss is missing; fill in its value"),
        ({"loss": at(LOSS, 3, np.inf)}, "row 4: loss is inf; it must be positive and finite"),
        ({"tokens": at(D, 0, 0)}, "row 1: tokens is 0; it must be positive"),
        ({"params_total": at(N, 11, -1)}, "row 12: params_total is -1; it must be positive"),
        ({"loss": np.exp(LOSS + 2)}, 'all of them are: if they are perplexities, use --set "loss=log'),
        ({"loss": np.exp(LOSS)}, 'they look like perplexities: then use --set "loss=log'),
        ({"loss": at(LOSS, 5, 31.0)}, r'row 6: loss is 31, .* 1 of 12 rows are: correct .* --where "loss<20"'),
        ({"tokens": D / 1e9}, r'row 1: tokens is 2 beside 1e\+08 params_total, which looks like billions'),
        ({"tokens": D / 1e6}, r'looks like millions .* write 2000M, or use --set "tokens=tokens\*1e6"'),
        ({"tokens": at(D, 6, 10.0)}, r"row 7: tokens is 10 .* billions \(1 of 12 rows\); write 10B"),
        ({"params_total": N / 1e9}, r"row 1: params_total is 0\.1 beside 2e\+09 tokens, which looks like billions"),
        ({"params_total": N / 1e6}, r"row 1: params_total is 100 beside 2e\+09 tokens, which looks like millions"),
        ({"flops": N * D * 6e-15}, r"row 1: flops is 1\.2e\+03, and 6 .* is 1\.2e\+18, over 100 times apart"),
        ({"flops": at(6 * N * D, 2, 1e25)}, r"row 3: flops is 1e\+25.*\(1 of 12.*flops=6\*params_total\*tokens"),
        ({"loss": [True] * 12}, "row 1: loss is True, which is not a number"),
        ({"loss": ["3.1 nats"] * 12}, "row 1: loss is '3.1 nats', which is not a number"),
        ({"params_total": [*N[:11], N[10]], "tokens": [*D[:11], D[10]], "loss": [*LOSS[:11], LOSS[10]]},
         "row 12: every column is the same as in row 11; delete one of the two, or give repeats their own seed"),
        ({"run_id": [*"abcdefghijk", "a"]}, "row 12: run_id a is the same as in row 1.*--last-of run_id"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_sentence(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        fit(table(**changed))
    assert "\n" not in str(caught.value)


def test_fewer_rows_than_parameters() -> None:
    with pytest.raises(InputError, match="law chinchilla has 5 free parameters and the run table only 4 usable rows"):
        fit(SOUND.take(range(4)))


def test_small_studies_and_large_heads_are_sound() -> None:
    """Models of thousands of parameters, and a head many times their size, are no other unit."""
    small = {"params_total": N / 1e4, "tokens": D / 1e3}
    fit(table(**small, flops=small["params_total"] * small["tokens"] * 300))
    fit(
        table(
            **small, flops=small["params_total"] * small["tokens"] * 6000, params_embedding=small["params_total"] * 900
        )
    )
    fit(table(params_total=64 * N, expansion_rate=np.full(12, 64.0), flops=6 * N * D))


def test_a_loss_below_every_law_is_doubted() -> None:
    found = fit(table(loss=np.log10(LOSS) / 4))
    (doubt,) = (note for note in found.runs.notes if "published" in note)
    assert doubt.startswith("row 1: loss is 0.157")
    assert "(12 of 12 rows are below 0.3)" in doubt
    assert not any("published" in note for note in fit(SOUND).runs.notes)


def csv(tmp_path: Path, header: str, rows: list[tuple[Any, ...]]) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.mark.parametrize(
    ("header", "standard", "says"),
    [
        ("tokens (B)", "tokens", r'--column X=\'tokens \(B\)\' --set "tokens=X\*1e9", or tokens=X if'),
        ("D [billions]", "tokens", r'"tokens=X\*1e9"'),
        ("size (M)", "params_total", r'"params_total=X\*1e6"'),
        ("loss (bits/byte)", "loss", r'"loss=X\*FACTOR"'),
        ("compute (PF-days)", "flops", r'"flops=X\*FACTOR"'),
    ],
)
def test_a_unit_in_a_header_is_not_guessed(tmp_path: Path, header: str, standard: str, says: str) -> None:
    path = csv(tmp_path, f"a,{header}", [(1, 2), (3, 4)])
    with pytest.raises(InputError, match=says):
        read_runs(path, columns={standard: header})
    runs = read_runs(path, columns={"X": header}, values={standard: "X*1e9"})
    assert runs[standard].tolist() == [2e9, 4e9]
    assert f"{standard} is set to X*1e9." in runs.notes


def test_a_header_without_a_unit_or_in_nats_is_read(tmp_path: Path) -> None:
    path = csv(tmp_path, "N (non-embedding),D (tokens),loss (nats)", [("100M", "4.37B", 3)])
    columns = {"params_total": "N (non-embedding)", "tokens": "D (tokens)", "loss": "loss (nats)"}
    assert read_runs(path, columns=columns)["tokens"].tolist() == [4.37e9]


def test_columns_by_arithmetic(tmp_path: Path) -> None:
    path = csv(tmp_path, "N,Na/N,ppl,x.y,kind", [("1B", 0.25, 16, 2, "a"), ("2B", 0.5, "", 3, "b")])
    values = {
        "params_active": "params_total*share",
        "sparsity": "1 - share",
        "loss": "log(ppl)",
        "bits": "-log2(1/ppl)",
        "tokens": "20B",
        "router": "top-k",
        "family": "'dense'",
        "z": "(x.y + 1)**2 / sqrt(4)",
    }
    runs = read_runs(path, columns={"params_total": "N", "share": "Na/N"}, values=values)
    assert runs["params_active"].tolist() == [0.25e9, 1e9]
    assert runs["sparsity"].tolist() == [0.75, 0.5]
    np.testing.assert_allclose(runs["loss"], [np.log(16), np.nan])
    np.testing.assert_allclose(runs["bits"], [4, np.nan])
    assert runs["tokens"].tolist() == [2e10, 2e10]
    assert (runs["router"][0], runs["family"][1]) == ("top-k", "dense")
    assert runs["z"].tolist() == [4.5, 8.0]
    assert runs["flops"].tolist() == [6 * 0.25e9 * 2e10, 6 * 1e9 * 2e10]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is no number and no arithmetic"),
        ("2 +", "it is no number and no arithmetic"),
        ("4 B", "tokens is set to 4e\\+09|^$"),
        ("M*2", "has no column M, it has a, kind"),
        ("kind*2", "line 2: kind is 'x', which is not a number"),
        ("'a'*2", "'a' is text"),
        ("__import__('os')", r"\"__import__\('os'\)\" is not known here"),
        ("a if a else 2", "is not known here"),
        ("a.__class__", "has no column a.__class__"),
        ("log(a, 2)", "is not known here"),
        ("True", "a truth value is no number"),
    ],
)
def test_malformed_arithmetic_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = csv(tmp_path, "a,kind", [(1, "x"), (2, "y")])
    if text == "4 B":
        assert read_runs(path, values={"tokens": text})["tokens"].tolist() == [4e9, 4e9]
        return
    with pytest.raises(InputError, match=says) as caught:
        read_runs(path, values={"tokens": text})
    assert "\n" not in str(caught.value)


def test_experts_are_derived_where_a_law_asks() -> None:
    rng = np.random.default_rng(0)
    experts = np.tile([1.0, 8, 64, 128], 12)
    columns = {
        "params_total": 10 ** rng.uniform(8, 10, 48), "tokens": 10 ** rng.uniform(9, 11, 48), "n_experts": experts,
        "top_k": np.minimum(experts, 4), "granularity": np.minimum(experts, 4), "loss": 2 + rng.uniform(0, 1, 48),
        "params_active": np.full(48, 1e8),
    }  # fmt: skip
    runs = RunTable({name: values[i] for name, values in columns.items()} for i in range(48))
    found = fit(runs, "sparsity", restarts=2)
    assert found.runs["sparsity"][:4].tolist() == [0, 0.5, 0.9375, 0.96875]
    assert "sparsity is absent: derived as 1 - top_k / n_experts." in found.runs.notes
    found = fit(runs.where(runs["n_experts"] != 8), "joint", restarts=2)
    assert found.runs["expansion_rate"][:3].tolist() == [1, 16, 32]


def test_reductions_say_what_they_kept() -> None:
    runs = RunTable(
        [
            {"id": "a", "_step": 10, "loss": 3.0, "status": "done", "cell": 1},
            {"id": "a", "_step": 20, "loss": 2.5, "status": "done", "cell": 1},
            {"id": "b", "_step": 20, "loss": 2.0, "status": "diverged", "cell": 1},
            {"id": "c", "_step": 20, "loss": 2.2, "status": "done", "cell": 2},
        ]
    )
    last = last_of(runs, "id")
    assert last["loss"].tolist() == [2.5, 2.0, 2.2]
    assert last.notes == ("of 4 rows the last by _step of each id: 3.",)
    best = best_of(last, ["cell"])
    assert best["id"].tolist() == ["a", "c"]  # a run that diverged wins nothing
    assert best.notes[1] == "of 3 rows the lowest loss where cell agree: 2."
    with pytest.raises(InputError, match="row 1: cell is missing, so that the row belongs to nothing"):
        best_of(RunTable([{"cell": None, "loss": 1.0}, {"cell": "x", "loss": 1.0}]), ["cell"])


def test_flops_of_its_own_vouch_for_short_runs_of_large_models() -> None:
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(6.1, 6.4, 9), 10 ** rng.uniform(4.8, 5.2, 9)
    rows = {"params_total": params, "params_active": params, "tokens": tokens, "loss": 5 - np.log10(tokens) / 5}
    with pytest.raises(InputError, match="looks like"):
        fit(rows)
    assert fit({**rows, "flops": 7 * params * tokens}).n_rows == 9
