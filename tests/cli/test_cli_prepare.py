"""`isoflop prepare`: the table, the JSON, and that options arrive."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from isoflop.cli.prepare import prepare
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
