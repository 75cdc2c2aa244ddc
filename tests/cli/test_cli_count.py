"""The command line's shell: exit codes, JSON, start-up without torch."""

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

import isoflop.cli as isoflop_cli
from isoflop import __version__
from isoflop.cli import app

SPEC = """
vocab_size: 257
context: 256
n_layers: 2
d_model: 64
attention: {n_heads: 4, head_dim: 16}
feed_forward: {d_ff: 128}
experts: {granularity: 4, expansion_rate: 8}
"""


def isoflop(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from isoflop.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_count_prints_json_in_the_standard_names(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    done = isoflop("count", str(path), "--context", "1024", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    parts = dict(document["flops_per_token"])
    assert parts.pop("total") == sum(parts.values())
    assert document["context"] == 1024
    assert {"params_total", "params_active", "params_embedding", "memory", "expert_attention_ratio"} <= set(document)


def test_the_table_fits_a_hundred_columns(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    done = isoflop("count", str(path))
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "experts" in done.stdout


def test_wrong_input_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.replace("granularity: 4", "granularity: 3"))
    done = isoflop("count", str(path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "granularity is 3" in done.stderr


def test_counting_fitting_and_planning_never_import_torch() -> None:
    rooms = ", ".join(f"isoflop.{room}" for room in ("cli", "spec", "laws", "planner", "data"))
    code = f"import sys, {rooms}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "False", done.stderr


def test_the_version_is_printed() -> None:
    done = isoflop("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"isoflop {__version__}\n", "")


def test_wrong_usage_is_one_sentence_and_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    for arguments, words in (
        (["count"], "missing argument"),
        (["recount"], "no such command 'recount'"),
        (["count", str(path), "--context", "x"], "--context is 'x'; it must be a whole number."),
        (["count", str(path), "--context", "0"], "context is 0"),
        (["count", str(path), "--batch-tokens", "0"], "batch_tokens is 0; it must be at least 1"),
        (["count", str(path), "--convention", "6nd"], "convention is '6nd'; allowed: exact, "),
        (["count", str(tmp_path)], "cannot be read: Is a directory"),
        (["count", str(path), "--nosuch"], "no such option: --nosuch"),
    ):
        code, output = command(monkeypatch, *arguments)
        assert code == 2, arguments
        assert words in output
        assert output.startswith("error: ")
        assert output.count("\n") == 1


@pytest.mark.parametrize("columns", ["80", "100"])
def test_help_cuts_nothing_off(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERMINAL_WIDTH", columns)
    for verb in ([], ["prepare"], ["count"], ["sample"], ["fit"], ["plan"], ["report"], ["study"], ["study", "run"]):
        result = CliRunner().invoke(app, [*verb, "--help"])
        assert result.exit_code == 0
        assert max(map(len, result.stdout.splitlines())) <= int(columns)
        listing = result.stdout.partition("Commands:")[2]
        assert "..." not in listing
        assert "…" not in listing


def test_a_warning_is_one_line_without_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("isoflop.cli.app", lambda **_: warnings.warn("experts.granularity is 64", stacklevel=1))
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(SystemExit):
            isoflop_cli.main()
    assert capsys.readouterr().err == "warning: experts.granularity is 64\n"


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[object, str]:
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["isoflop", *arguments])
        patch.setattr("sys.stderr", stream)
        patch.setattr("warnings.showwarning", warnings.showwarning)
        with pytest.raises(SystemExit) as caught:
            isoflop_cli.main()
    return caught.value.code, stream.getvalue()


def test_count_says_the_sparsity_with_shared_experts_in_use(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    for experts, expected in (("", 1 - 4 / 32), (", shared_experts: 1", 1 - 5 / 33)):
        path.write_text(SPEC.replace("expansion_rate: 8}", f"expansion_rate: 8{experts}}}"))
        done = CliRunner().invoke(app, ["count", str(path), "--json"])
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)["sparsity"]
        assert said == pytest.approx(expected)
        table = CliRunner().invoke(app, ["count", str(path)]).stdout
        assert f"{said:.2%}" in table
        assert "shared ones are always used" in table
