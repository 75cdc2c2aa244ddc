import json
from pathlib import Path

import pytest
from tests.study.tiny_study import BUDGETS, write_study
from typer.testing import CliRunner

from isoflop.cli.study import study_app
from isoflop.errors import InputError

runner = CliRunner()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli")
    return write_study(directory, architectures=[{"name": "dense"}], verification={"flops": 1.2e9})


def test_dry_run_run_and_status(study: Path) -> None:
    out = str(study.parent / "out")
    result = runner.invoke(study_app, ["run", str(study), "--out", out, "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    planned = json.loads(result.stdout)
    assert len(planned["runs"]) == 9
    assert {run["budget"] for run in planned["runs"]} == set(BUDGETS)
    assert planned["to_come"]["runs"] == 1
    assert planned["to_come"]["flops"] == 1.2e9
    assert planned["remaining_seconds"] > planned["to_come"]["seconds"] > 0

    result = runner.invoke(study_app, ["status", out])
    assert result.exit_code == 0
    assert "10 runs (1 of them extra seeds or verification" in result.stdout
    assert ": 9 waiting" in result.stdout

    result = runner.invoke(study_app, ["run", str(study), "--out", out])
    assert result.exit_code == 0, result.output
    assert "best size of each architecture and budget" in result.stdout
    assert "dense at 1.2e+09 FLOPs (seed 0): measured" in result.stdout
    assert "the predicted 90% interval [" in result.stdout
    assert f"report: {out}/report/index.html" in result.stdout
    assert (study.parent / "out" / "report" / "index.html").stat().st_size > 1000
    assert "[9/9] dense" in result.stderr
    assert "(verification)" in result.stderr

    result = runner.invoke(study_app, ["status", out, "--json"])
    status = json.loads(result.stdout)
    assert status["counts"] == {"done": 10}
    assert status["remaining_seconds"] == 0
    assert status["verification"]["runs"][0]["measured"] > 0

    result = runner.invoke(study_app, ["run", str(study), "--out", out, "--dry-run"])
    assert "0 runs to do" in result.stdout


def test_mistakes(tmp_path: Path) -> None:
    for command in (["run", str(tmp_path / "none.yaml")], ["status", str(tmp_path)]):
        result = runner.invoke(study_app, command)
        assert isinstance(result.exception, InputError)
