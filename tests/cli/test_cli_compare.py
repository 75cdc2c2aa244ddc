"""`isoflop compare` and `isoflop laws`."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from isoflop import InputError
from isoflop.cli.app import app
from isoflop.laws import FORMS, PUBLISHED


def isoflop(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def runs(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    lines = ["params_total,params_active,tokens,expansion_rate,granularity,loss"]
    for i in range(48):
        n, d, g = 10 ** rng.uniform(7, 9), 10 ** rng.uniform(9, 11), 2 ** (i % 4)
        loss = (1.7 + (300 + 200 / g**0.6) / n**0.33 + 1500 / d**0.36) * np.exp(0.002 * rng.standard_normal())
        lines.append(f"{n:.8g},{n / 5:.8g},{d:.8g},8,{g},{loss:.8g}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_the_right_law_comes_first(runs: str) -> None:
    done = isoflop("compare", runs, "--law", "chinchilla", "--law", "fine-grained", "--restarts", "8", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [law["law"] for law in document["laws"]] == ["fine-grained", "chinchilla"]
    first, second = document["laws"]
    assert first["held_out_rmse"] < second["held_out_rmse"]
    assert first["aicc"] < second["aicc"]
    assert {"status", "n_parameters", "bic", "holdout", "parameters", "problem"} <= set(first)
    assert "Laplace beyond" in document["likelihood"]


def test_the_table_fits_a_hundred_columns(runs: str) -> None:
    done = isoflop("compare", runs, "--law", "chinchilla", "--law", "fine-grained", "--law", "joint", "--restarts", "4")
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 100
    for words in ("held out", "ΔAICc", "fine-grained", "48 rows", "the rows do not identify"):
        assert words in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "a comparison needs at least two"),
        (("--law", "chinchilla", "--law", "cubic"), "law is 'cubic'; allowed: chinchilla"),
        (("--law", "chinchilla", "--law", "joint", "--holdout", "2"), "--holdout is 2"),
    ],
)
def test_mistakes_are_one_sentence(runs: str, arguments: tuple[str, ...], says: str) -> None:
    done = isoflop("compare", runs, *arguments)
    assert isinstance(done.exception, InputError)
    assert says in str(done.exception)


def test_every_law_is_listed_with_its_parameters_and_constants() -> None:
    done = isoflop("laws")
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 100
    document = json.loads(isoflop("laws", "--json").stdout)
    assert [form["name"] for form in document["forms"]] == list(FORMS)
    assert [law["name"] for law in document["published"]] == list(PUBLISHED)
    for form in document["forms"]:
        assert form["name"] in done.stdout
        assert [p["name"] for p in form["parameters"]] == list(FORMS[form["name"]].names)
        assert all(p["meaning"] for p in form["parameters"])
    for law in document["published"]:
        assert law["source"]
        assert law["name"] in done.stdout


def test_one_law_in_full() -> None:
    assert "exponent of granularity" in isoflop("laws", "fine-grained").stdout
    shown = isoflop("laws", "krajewski-2024-e64").stdout
    for words in ("2.076", "129M to 3.7B", "expansion_rate 64", "embedding"):
        assert words in shown
    wrong = isoflop("laws", "nobody-2030")
    assert isinstance(wrong.exception, InputError)
    assert "published are krajewski-2024-e64" in str(wrong.exception)
