"""`isoflop plan next-run` as people and programs call it."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from isoflop import laws
from isoflop.cli import app
from isoflop.errors import InputError


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A run table of made-up runs in other units and names than the standard ones."""
    rng = np.random.default_rng(0)
    form = laws.FineGrained()
    truth = {"c": 1.2, "g": 2.0, "a": 18.0, "b": 25.0, "gamma": 0.6, "alpha": 0.2, "beta": 0.22}
    lines = ["params_active,params_total,D,granularity,expansion_rate,flops,loss"]
    for budget in (1e15, 4e15, 1.6e16):
        for granularity in (1, 4, 16):
            for ratio in (5, 20, 80):
                active = np.sqrt(budget / 6 / ratio)
                columns = {"params_total": active * 17 / 3, "tokens": active * ratio, "granularity": granularity}
                loss = float(form.predict(columns, truth)) * np.exp(0.004 * rng.standard_normal())
                lines.append(f"{active},{active * 17 / 3},{active * ratio},{granularity},8,{budget},{loss}")
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    path.write_text("\n".join(lines))
    return path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", "next-run", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def common(table) -> list[str]:
    return [str(table), "--budget", "6e16", "--decide-at", "1e18", "--column", "tokens=D", "--bootstrap", "60"]


def test_people_get_a_ranked_table_and_a_sentence(table):
    output = run(*common(table), "--threshold", "1e-4")
    lines = output.splitlines()
    assert all(len(line) <= 100 for line in lines if line.startswith(("│", "┃", "┏")))
    assert lines[-1].startswith("Run moe-e8-g")
    assert "expected regret" in output
    assert "1 moe-e8-g" in output
    assert run(*common(table), "--threshold", "1").splitlines()[-1].startswith("Stop and take moe-e8-g")


def test_programs_get_json(table):
    document = json.loads(run(*common(table), "--threshold", "1e-4", "--json"))
    assert document["stop"] is False
    assert document["next"] == document["candidates"][0]
    assert document["choice"]["architecture"].startswith("moe-e8-g")
    assert 0 <= document["probability_best"] <= 1
    assert document["law"] == "fine-grained"
    assert len(document["candidates"]) > 3
    assert {
        "architecture",
        "params_active",
        "params_total",
        "tokens",
        "flops",
        "loss",
        "variance_cut",
        "regret_after",
    } <= (document["next"].keys())


def test_a_study_directory_is_read(table, tmp_path):
    text = table.read_text().replace(",D,", ",tokens,")
    (tmp_path / "runs.csv").write_text(text)
    arguments = [each for each in common(tmp_path) if each not in ("--column", "tokens=D")]
    assert "moe-e8-g" in run(*arguments)
    (tmp_path / "runs.csv").unlink()
    with pytest.raises(InputError, match=r"a directory without runs\.csv"):
        run(*arguments)


def test_rows_are_chosen_and_columns_computed_as_for_a_fit(table, tmp_path):
    """A log with two rows a run, tokens in billions and a sweep of learning rates say what the plain table says."""
    head, *lines = table.read_text().splitlines()
    names = [*head.replace(",D,", ",B,").split(","), "run_id", "step", "lr"]
    rows = []
    for index, line in enumerate(lines):
        values = line.split(",")
        values[2] = str(float(values[2]) / 1e9)
        for lr, worse in ((1, 0.0), (2, 0.2)):
            for step, more in ((1, 0.5), (2, 0.0)):
                loss = str(float(values[-1]) + worse + more)
                rows.append(",".join([*values[:-1], loss, f"r{index}-{lr}", str(step), str(lr)]))
    log = tmp_path / "log.csv"
    log.write_text("\n".join([",".join(names), *rows]))
    chosen = [each for each in common(log) if each not in ("--column", "tokens=D")]
    chosen += ["--set", "tokens=B*1e9", "--last-of", "run_id", "--best-of", "params_active,B,granularity", "--json"]
    found, plain = json.loads(run(*chosen)), json.loads(run(*common(table), "--json"))
    assert found["choice"]["loss"] == pytest.approx(plain["choice"]["loss"], rel=1e-6)
    assert found["regret"] == pytest.approx(plain["regret"], rel=1e-3)
    assert any("the last by step of each run_id: 54" in note for note in found["notes"])


def test_plan_itself_is_as_it_was():
    result = CliRunner().invoke(app, ["plan", "--law", "krajewski-2024-e64", "--flops", "1.93e20", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output)["best"]["granularity"] > 1
    helped = CliRunner().invoke(app, ["plan", "--help"]).output
    assert "isoflop plan next-run" in helped
    assert "--decide-at" in CliRunner().invoke(app, ["plan", "next-run", "--help"]).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--about", "size"], "--about is 'size'; allowed: difference, loss"),
        (["--top", "0"], "--top is 0"),
        (["--seed", "-1"], "--seed is -1; it must be 0 or more"),
        (["--decide-at", "1e40"], r"--decide-at is 1e\+40; it must be positive and at most 1e30 FLOPs"),
        (["--budget", "much"], "--budget is 'much'; it must be a number"),
        (["--law", "nothing"], "law is 'nothing'; allowed"),
        (["--bootstrap", "0"], "has 0 bootstrap draws"),
        (["--where", "granularity=3"], "none of the 27 rows"),
    ],
)
def test_wrong_options_are_one_sentence(table, arguments, words):
    with pytest.raises(InputError, match=words):
        run(*common(table), *arguments)
