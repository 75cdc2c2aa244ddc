"""`isoflop fit`: the documented call works, JSON has the documented keys, mistakes are one sentence."""

import json
import re
import textwrap
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
        (("--column", "params_total=N", "--column", "tokens=D", "--huber-delta", "x"), "--huber-delta is 'x'"),
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


COLUMNS = ("--column", "params_total=N", "--column", "tokens=D", "--holdout", "0", "--json")


def document(runs: Path, *arguments: str) -> dict[str, object]:
    done = isoflop_fit(str(runs), *COLUMNS, *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def repeated(runs: Path, tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    lines = ["N,D,loss,family,mass,seed"]
    for i, (n, d) in enumerate(zip(np.geomspace(1e7, 3e9, 14), np.tile([1e9, 4e9, 2e10], 5), strict=False)):
        for seed in range(1 + i % 2):
            loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * np.exp(0.003 * rng.standard_normal())
            lines.append(f"{n:.8g},{d:.8g},{loss:.8g},{'ab'[i % 2]},{1 + i % 2},{seed}")
    path = tmp_path / "repeated.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_losses_by_word(runs: Path) -> None:
    assert document(runs, "--loss", "l2")["huber_delta"] is None
    l1 = document(runs, "--loss", "l1")
    assert l1["huber_delta"] == 1e-7
    assert l1["parameters"] == document(runs, "--huber-delta", "l1")["parameters"]


@pytest.mark.parametrize("written", ["beta=0.3±0.01", "beta=0.3+-0.01", "beta=0.3,0.01", "beta = 0.3 ± 0.01"])
def test_priors_in_every_spelling(runs: Path, written: str) -> None:
    found = document(runs, "--prior", written)
    assert found["priors"] == {"beta": [0.3, 0.01]}
    plain = document(runs)["parameters"]["beta"]
    assert abs(found["parameters"]["beta"] - 0.3) < abs(plain - 0.3)


def test_weights_profiles_groups_left_out_and_repeats(repeated: Path) -> None:
    found = document(repeated, "--weight", "mass", "--profile", "alpha", "--profile", "E", "--leave-out", "family")
    assert found["weights"] == "mass"
    assert found["parameters"] != document(repeated)["parameters"]
    low, high = found["profiles"]["alpha"]["interval"]
    assert low < found["parameters"]["alpha"] < high
    assert set(found["profiles"]) == {"alpha", "E"}
    assert [each["left_out"] for each in found["leave_out"]] == ["a", "b"]
    assert found["noise_floor"]["n_repeats"] == 7
    assert 0 <= found["lack_of_fit"]["p_value"] <= 1
    assert document(repeated)["leave_out"] == []


def test_all_of_it_in_tables_of_a_hundred_columns(repeated: Path) -> None:
    done = isoflop_fit(
        str(repeated), "--column", "params_total=N", "--column", "tokens=D", "--weight", "mass",
        "--prior", "beta=0.37±0.02", "--profile", "alpha", "--leave-out", "family", "--bootstrap", "50",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert re.search(r"noise floor from 7 repeats: 0\.\d+% \[0\.\d+%, 0\.\d+%\]", done.stdout)
    for words in ("beta = 0.37 ± 0.02", "column mass", "alpha: 0.", "each family predicted from", "the law misses"):
        assert words in done.stdout


def test_posterior_draws_stand_for_the_bootstraps(runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("emcee")
    out = tmp_path / "fit.json"
    pins = ("--pin", "alpha=0.35", "--pin", "beta=0.37")
    found = document(runs, *pins, "--posterior", "200", "--out", str(out))
    assert found["intervals_from"] == "posterior"
    low, high = found["intervals"]["E"]
    assert low < found["parameters"]["E"] < high
    assert max(found["posterior"]["r_hat"].values()) < 1.05
    assert len(json.loads(out.read_text())["draws"]["E"]) == 200
    shown = isoflop_fit(str(runs), "--column", "params_total=N", "--column", "tokens=D", *pins, "--posterior", "200")
    assert "90% posterior" in shown.stdout
    assert "200 draws from" in shown.stdout


def test_a_law_of_ones_own(tmp_path: Path) -> None:
    from isoflop.laws.forms import base

    (tmp_path / "own.py").write_text(textwrap.dedent(base.__doc__.split("A whole file")[1].split("\n\n", 1)[1]))
    table = tmp_path / "depth.csv"
    table.write_text("n_layers,loss\n" + "".join(f"{n},{1.9 + 2.3 / n**0.61:.10g}\n" for n in range(2, 30)))
    done = isoflop_fit(str(table), "--law", f"{tmp_path}/own.py:Depth", "--holdout-by", "n_layers", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["status"] == "converged"
    assert found["parameters"]["alpha"] == pytest.approx(0.61, rel=1e-4)
    assert found["holdout"]["rmse"] < 1e-6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--loss", "cubic"), "--loss is 'cubic'; it must be huber, l1 or l2"),
        (("--loss", "l1", "--huber-delta", "0.1"), "give one of the two"),
        (("--prior", "beta=0.3"), "write it as NAME=MEAN±SD"),
        (("--prior", "A=300±20"), "takes priors on alpha, beta, E"),
        (("--weight", "family"), "'a', which is not a number"),
        (("--profile", "gamma"), "profile is of gamma, which was not fitted"),
        (("--leave-out", "status"), "--leave-out is by status, which has one value"),
        (("--posterior", "5"), "--posterior is 5"),
        (("--seed", "-1"), "--seed is -1"),
        (("--pin", "alpha=.3", "--pin", "alpha=.4"), "--pin alpha is given twice"),
        (("--holdout", ".2", "--holdout-by", "nothere"), "has no column nothere; it has params_total, tokens, loss"),
        (("--law", "hoffmann-2022"), "has its constants already; fit its form, 'chinchilla'"),
    ],
)
def test_wrong_options_are_one_sentence(runs: Path, arguments: tuple[str, ...], says: str) -> None:
    done = isoflop_fit(str(runs), *COLUMNS, *arguments)
    assert isinstance(done.exception, InputError)
    assert says in str(done.exception)
    assert done.stdout == ""
