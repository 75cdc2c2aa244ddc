"""The public tables as they are, from file to fit; skipped where they are absent."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from isoflop import InputError
from isoflop.cli.app import app
from isoflop.laws import RunTable, best_of, fit, last_of, matching, read_runs

DATA = Path(__file__).parents[2].parent / "shared" / "data"
ROUTED = DATA / "routed_lm" / "curves.csv.gz"
STEP_MOE = DATA / "steplaw" / "moe_lr_bs_loss.csv"
STEP_DENSE = DATA / "steplaw" / "dense_lr_bs_loss.csv"
REFITS = {  # least squares on log10 L of the 42-seed runs with the five dense ones; data/routed_lm/SOURCE.md
    "S-Base": (58, -0.0830, -0.1180, 0.0099, 1.1136, 2.075, 783e9),
    "RL-R": (59, -0.0827, -0.1234, 0.0112, 1.1070, 1.722, 97e9),
    "Hash": (56, -0.0874, -0.1384, 0.0126, 1.1595, 4.269, 89e9),
}


def command(*arguments: str | Path) -> dict:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.skipif(not ROUTED.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("router", REFITS)
def test_routed_language_models(router: str) -> None:
    names = ["params_active=dense_parameter_count", "expansion_rate=num_experts", "loss=loss_validation"]
    rows = [f"router_type={router}|Dense", "k=1", "seed=42", "routing_frequency=0.5"]
    options = [part for name in names for part in ("--column", name)] + [p for row in rows for p in ("--where", row)]
    found = command(
        "fit", ROUTED, "--law", "routed", *options, "--last-of", "hyper_id", "--huber-delta", "l2", "--holdout", "0"
    )
    n_rows, a, b, c, d, start, cut_off = REFITS[router]
    constants = found["parameters"]
    assert found["n_rows"] == n_rows
    for name, value, half in (("a", a, 5e-5), ("b", b, 5e-5), ("c", c, 5e-5), ("d", d, 5e-5), ("E_start", start, 5e-4)):
        assert constants[name] == pytest.approx(value, abs=half * 1.01), name
    assert 10 ** (-constants["b"] / constants["c"]) == pytest.approx(cut_off, rel=0.01)
    assert found["status"] == "not_identified"
    assert found["message"].startswith("the rows do not identify E_max;")


@pytest.mark.skipif(not STEP_MOE.exists(), reason="needs ../shared/data")
def test_step_law_identifies_sparsity_and_data_but_not_size() -> None:
    columns = ["params_total=N", "params_active=Na", "tokens=D", "loss=smooth loss", "n_experts=nume", "top_k=topk"]
    options = [part for name in columns for part in ("--column", name)]
    table = ["fit", STEP_MOE, "--law", "sparsity", *options, "--best-of", "moe_name,tokens"]
    whole = command(*table)
    assert whole["n_rows"] == 16
    assert whole["status"] == "not_identified"
    assert "alpha" in whole["message"]
    size = [part for pin in ("a=0", "alpha=0.1", "d=0", "delta=0", "gamma=0.1") for part in ("--pin", pin)]
    pinned = command(*table, *size)
    assert pinned["status"] == "converged", pinned["message"]
    assert pinned["parameters"]["beta"] == pytest.approx(0.279, abs=0.002)
    assert pinned["parameters"]["lambda"] > 0  # at one total size, the sparser model is the worse one
    assert pinned["holdout"]["rmse"] < 0.01


@pytest.mark.skipif(not STEP_DENSE.exists(), reason="needs ../shared/data")
def test_step_law_dense_cells() -> None:
    options = [part for name in ("params_total=N", "tokens=D", "loss=smooth loss") for part in ("--column", name)]
    found = command("fit", STEP_DENSE, *options, "--best-of", "params_total,tokens")
    assert found["n_rows"] == 17
    assert found["holdout"]["rmse"] < 0.01


def test_last_and_best_rows() -> None:
    table = RunTable(
        {"run": run, "step": step, "loss": loss, "lr": lr}
        for run, step, loss, lr in [
            ("a", 2, 3.0, 1),
            ("b", 1, 2.0, 1),
            ("a", 1, 2.5, 1),
            ("b", 9, np.nan, 2),
            ("c", 1, 1.0, 2),
        ]
    )
    assert last_of(table, "run")["step"].tolist() == [2, 9, 1]
    assert best_of(table, ["run"])["loss"].tolist() == [2.0, 2.5, 1.0]
    assert best_of(table, ["lr"])["run"].tolist() == ["b", "c"]
    with pytest.raises(InputError, match="best_of is empty"):
        best_of(table, [])
    with pytest.raises(InputError, match="has no column family"):
        best_of(table, ["family"])
    with pytest.raises(InputError, match="no column step, tokens or flops"):
        last_of(RunTable([{"run": "a", "loss": 1.0}]), "run")
    assert matching(table, "run=a|c")["run"].tolist() == ["a", "a", "c"]
    assert matching(table, "run!=a|c")["run"].tolist() == ["b", "b"]


def test_compressed_and_tab_separated_tables(tmp_path: Path) -> None:
    import gzip

    text = "params_total\ttokens\tloss\n" + "".join(f"{n}M\t{n}B\t{3 - n / 100}\n" for n in range(10, 16))
    with gzip.open(tmp_path / "runs.tsv.gz", "wt") as file:
        file.write(text)
    table = read_runs(tmp_path / "runs.tsv.gz")
    assert table["tokens"].tolist() == [n * 1e9 for n in range(10, 16)]
    (tmp_path / "bad.csv.gz").write_bytes(b"not compressed")
    with pytest.raises(InputError, match="cannot be unpacked"):
        read_runs(tmp_path / "bad.csv.gz")


def test_l1_is_the_limit_of_a_small_delta() -> None:
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7, 9, 41), 10 ** rng.uniform(9, 11, 41)
    loss = (1.7 + 400 * n**-0.34 + 900 * d**-0.29) * np.exp(rng.normal(0, 0.01, 41))
    near = fit({"params_total": n, "tokens": d, "loss": loss}, huber_delta=1e-7)
    assert (
        np.sum(np.abs(near.residuals) < 1e-6) >= 5
    )  # least absolute deviations pass through as many rows as parameters
