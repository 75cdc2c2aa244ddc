"""`isoflop prepare`: the table, the JSON, and that options arrive."""

import itertools
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from isoflop.cli.prepare import _progress, prepare
from isoflop.data import TokenData
from isoflop.errors import InputError

app = typer.Typer()
app.command()(prepare)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [json.dumps({"body": f"document number {number % 90}"}) for number in range(100)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "rows.jsonl"


def test_the_table_says_what_there_is(rows: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(rows), "--out", str(tmp_path / "data"), "--text-column", "body"])
    assert done.exit_code == 0, done.output
    data = TokenData(tmp_path / "data")
    for name, split in data.manifest.splits.items():
        (line,) = [line for line in done.output.splitlines() if name in line]
        assert [cell.strip() for cell in line.strip("│").split("│")] == [
            name,
            str(split.documents),
            f"{split.bytes:,}",
            f"{split.tokens:,}",
            f"{split.bytes / split.tokens:.3f}",
            "1",
        ]
    (line,) = [line for line in done.output.splitlines() if "duplicate" in line]
    assert line.split()[-2] == "10"


def test_json_is_the_manifest(rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    out = str(tmp_path / "data")
    options = ["--tokenizer", "bpe", "--vocab-size", "260", "--validation-fraction", "0.25", "--seed", "3"]
    done = CliRunner().invoke(app, [str(rows), "--out", out, "--text-column", "body", *options, "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document.pop("path") == out
    assert document == json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert document["vocab_size"] == 260
    assert document["options"]["validation_fraction"] == 0.25
    assert document["options"]["seed"] == 3


def test_wrong_input_is_an_input_error(rows: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(rows), "--out", str(tmp_path / "data")])
    assert isinstance(done.exception, InputError)
    assert "its columns: body" in str(done.exception)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tokenizer", "bpe"], "vocab_size is missing; tokenizer bpe needs it"),
        (["--tokenizer", "bpe", "--vocab-size", str(10**30)], "it must be at most 16777216"),
        (["--document-bytes", str(10**30)], "it must be at most 1099511627776"),
    ],
)
def test_numbers_that_cannot_be_are_refused(rows: Path, tmp_path: Path, more: list[str], words: str) -> None:
    done = CliRunner().invoke(app, [str(rows), "--out", str(tmp_path / "data"), "--text-column", "body", *more])
    assert isinstance(done.exception, InputError)
    assert words in str(done.exception)


def test_where_there_is_no_terminal_lines_say_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    now = itertools.count(0, 4.0)
    monkeypatch.setattr("isoflop.cli.prepare.time.monotonic", lambda: next(now))
    with _progress() as progress:
        for done in range(1, 11):
            progress("tokenizing", done * 1000, 10_000)
    assert capsys.readouterr().err == "tokenizing  30% of 10KB\ntokenizing  60% of 10KB\ntokenizing  90% of 10KB\n"
