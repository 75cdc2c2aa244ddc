"""`isoflop fit`: the documented call works, JSON has the documented keys, mistakes are one sentence."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from isoflop import InputError, RunError
from isoflop.cli.fit import fit

APP = typer.Typer()
APP.command()(fit)


def isoflop_fit(*arguments: str) -> Result:
    return CliRunner().invoke(APP, arguments)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = ["N,D,loss,family,status"]
    for i in range(40):
        n, d = 10 ** rng.uniform(7, 9.5), 10 ** rng.uniform(9, 11)
        loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * np.exp(0.003 * rng.standard_normal())
        lines.append(f"{n / 1e6:.8g}M,{d:.8g},{loss:.8g},{'ab'[i % 2]},done")
    lines.append("100M,2B,,a,diverged")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_documented_call(runs: Path) -> None:
    done = isoflop_fit(
        str(runs), "--law", "chinchilla", "--column", "params_total=N", "--column", "tokens=D", "--huber-delta", "1e-3",
        "--bootstrap", "100", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert {"law", "parameters", "intervals", "objective", "status", "n_rows", "holdout"} <= set(document)
    assert (document["law"], document["status"]) == ("chinchilla", "converged")
    assert (document["n_rows"], document["n_left_out"]) == (40, 1)
    assert set(document["parameters"]) == set(document["intervals"]) == {"E", "A", "B", "alpha", "beta"}
    low, high = document["intervals"]["E"]
    assert low < document["parameters"]["E"] < high
    assert document["holdout"]["n_held_out"] == 8
    assert document["holdout"]["rmse"] < 0.02


def test_the_table_fits_a_hundred_columns(runs: Path) -> None:
    done = isoflop_fit(str(runs), "--column", "params_total=N", "--column", "tokens=D", "--bootstrap", "50")
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 100
    for word in ("alpha", "converged", "held out", "40 (1 not done)", "90% interval"):
        assert word in done.stdout
    assert re.search(r"flops ≥ \d\.\d+e\d\d, ", done.stdout)


def test_pins_conditions_and_files(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "fit.json"
    done = isoflop_fit(
        str(runs), "--column", "params_total=N", "--column", "tokens=D", "--pin", "E=1.8", "--where", "family=a",
        "--where", "loss<4", "--huber-delta", "none", "--holdout", "0", "--out", str(out), "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["parameters"]["E"] == 1.8
    assert document["pinned"] == {"E": 1.8}
    assert document["holdout"] is document["huber_delta"] is None
    assert document["n_rows"] <= 20
    assert json.loads(out.read_text())["parameters"] == document["parameters"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--column", "params_total=Size"), "no column 'Size'"),
        (("--column", "params_total"), "write it as NAME=VALUE"),
        (("--column", "params_total=N"), "has no column tokens; it has params_total, D, loss"),
        (("--column", "params_total=N", "--column", "tokens=D", "--law", "cubic"), "allowed: chinchilla, fine-grained"),
        (("--column", "params_total=N", "--column", "tokens=D", "--huber-delta", "x"), "must be a number"),
        (("--column", "params_total=N", "--column", "tokens=D", "--where", "loss>9"), "none of the 41 rows"),
        (("--column", "params_total=N", "--column", "tokens=D", "--level", "9"), "level is 9"),
        (("--column", "N=params_total"), "did you mean --column params_total=N?"),
        (("--column", "params_total=N", "--column", "tokens=D", "--where", "size=3"), "no column size, it has params"),
        (("--column", "params_total=N", "--column", "tokens=D", "--where", "loss<<3"), "'<<' is no comparison"),
    ],
)
def test_mistakes_are_one_sentence(runs: Path, arguments: tuple[str, ...], says: str) -> None:
    done = isoflop_fit(str(runs), *arguments)
    assert isinstance(done.exception, InputError)
    assert "\n" not in str(done.exception)
    assert says in str(done.exception)
    assert done.stdout == ""


def test_a_directory_without_runs_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a directory without runs\.csv"):
        CliRunner().invoke(APP, [str(tmp_path)], catch_exceptions=False)


def test_strict_fails_unless_converged(runs: Path, tmp_path: Path) -> None:
    columns = ("--column", "params_total=N", "--column", "tokens=D", "--json")
    assert isoflop_fit(str(runs), *columns, "--strict").exit_code == 0
    table = tmp_path / "one-size.csv"
    rows = [f"1e9,{tokens:.6g},{1.8 + 0.3 + 2100 / tokens**0.37:.6g}" for tokens in np.geomspace(1e9, 1e11, 12)]
    table.write_text("\n".join(["params_total,tokens,loss", *rows]) + "\n")
    lenient = isoflop_fit(str(table), "--json")
    assert lenient.exit_code == 0
    strict = isoflop_fit(str(table), "--json", "--strict")
    assert isinstance(strict.exception, RunError)
    assert "has status not_identified: the rows do not identify" in str(strict.exception)
    assert json.loads(strict.stdout)["status"] == "not_identified"
