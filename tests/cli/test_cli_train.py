import inspect
import json
import re
from dataclasses import fields

import pytest
import torch
from typer.testing import CliRunner

import isoflop.cli
from isoflop.cli.app import app
from isoflop.cli.train import parse_number
from isoflop.data import prepare
from isoflop.errors import InputError
from isoflop.spec import AttentionSpec, DecoderSpec, FeedForwardSpec, save_spec
from isoflop.train import TrainConfig


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("train")
    (root / "text").mkdir()
    for index in range(60):
        (root / f"text/{index}.txt").write_text(f"Run {index} trains a small model on {index * 37} words. " * 20)
    prepare([root / "text"], root / "data", tokenizer="bytes")
    spec = DecoderSpec(
        vocab_size=257,
        context=16,
        n_layers=1,
        d_model=16,
        attention=AttentionSpec(n_heads=2, head_dim=8),
        feed_forward=FeedForwardSpec(d_ff=32),
    )
    save_spec(spec, root / "spec.yaml")
    return root


def arguments(workplace, out, *more):
    return [
        "train",
        "--spec",
        str(workplace / "spec.yaml"),
        "--data",
        str(workplace / "data"),
        "--out",
        str(out),
        *more,
    ]


def run(*words):
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e13", 1e13), ("5M", 5e6), ("4.37B", 4.37e9), ("200k", 2e5), ("1_000", 1000), ("2T", 2e12), ("7", 7)],
)
def test_numbers_as_people_write_them(text, value):
    assert parse_number("tokens", text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "M", "five", "5X", "1e"])
def test_what_is_not_a_number_is_named(text):
    with pytest.raises(InputError, match=r"tokens is .*must be a number"):
        parse_number("tokens", text)


def test_last_line_is_the_record(workplace, tmp_path):
    result = run(*arguments(workplace, tmp_path / "run", "--tokens", "10k", "--batch-tokens", "512", "--json"))
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout.splitlines()[-1])
    assert record["status"] == "done"
    assert record["tokens"] == 10240
    assert record["batch_tokens"] == 512
    again = run(*arguments(workplace, tmp_path / "run", "--tokens", "1e4", "--batch-tokens", "512", "--json"))
    assert json.loads(again.stdout) == record


def test_people_get_a_table(workplace, tmp_path):
    result = run(*arguments(workplace, tmp_path / "run", "--flops", "2e8", "--batch-tokens", "512", "--no-compile"))
    assert result.exit_code == 0, result.output
    for words in ("held-out loss", "bits per byte", "tokens/s", "done"):
        assert words in result.stdout


def test_a_diverged_run_exits_1(workplace, tmp_path):
    more = ["--tokens", "100k", "--batch-tokens", "512", "--learning-rate", "50", "--clip", "1e9", "--json"]
    result = run(*arguments(workplace, tmp_path / "run", *more))
    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "diverged"
    assert "failed: the run diverged" in result.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "none is given"),
        (["--tokens", "1M", "--flops", "1e9"], "tokens and flops are given"),
        (["--tokens", "lots"], "tokens is 'lots'"),
        (["--tokens", "0"], "tokens is 0"),
        (["--tokens", "1M", "--batch-tokens", "100"], "96 or 112"),
        (["--tokens", "1M", "--batch-tokens", "1.5"], "whole number"),
        (["--tokens", "1M", "--schedule", "step"], "allowed: cosine, wsd"),
        (["--tokens", "3", "--batch-tokens", "512"], "less than one step"),
        (["--tokens", "1M", "--device", "gpu"], "device is 'gpu'"),
        (["--tokens", "1M", "--spec", "nowhere.yaml"], "nowhere.yaml"),
        (["--tokens", "1M", "--data", "nowhere"], "nowhere"),
        (["--tokens", "nan"], "tokens is nan"),
        (["--tokens", "1e300"], "tokens is 1e+300, which is"),
        (["--tokens", "1M", "--seed", "x"], "--seed is 'x'; it must be a whole number"),
        (["--tokens", "1M", "--seed", "1.5"], "--seed is '1.5'; it must be a whole number"),
        (["--tokens", "1M", "--clip", "big"], "--clip is 'big'; it must be a number"),
        (["--tokens", "1M", "--weight-decay", "nan"], "weight_decay is nan; it must be a finite number"),
        (["--tokens", "1M", "--checkpoint-seconds", "often"], "checkpoint_seconds is 'often'"),
        (["--tokens", "1M", "--evaluation-tokens", "inf"], "evaluation_tokens is 'inf'"),
        (["--tokens", "1M", "--threads", "100000"], "threads is 100000; it must be at most"),
        (["--token", "1M"], "--token"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_2(workplace, tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.setattr("sys.argv", ["isoflop", *arguments(workplace, tmp_path / "run", *more)])
    with pytest.raises(SystemExit) as caught:
        isoflop.cli.main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("columns", ["80", "100"])
def test_help_is_the_whole_docstrings_of_the_fields(columns):
    result = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": columns, "TERMINAL_WIDTH": columns})
    shown = " ".join(result.stdout.split())
    source = inspect.getsource(TrainConfig)
    for field in fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in shown
        doc = re.search(rf'    {field.name}: .*\n    """((?s:.*?))"""', source)[1]
        assert " ".join(doc.split()) in re.sub(r"(?<=\w)- (?=\w)", "-", shown), field.name
    for python_word in ("<int>", "<float>", "<str>", "…", "..."):
        assert python_word not in shown


def test_checkpoints_by_time_can_be_switched_off(workplace, tmp_path):
    more = ["--tokens", "1k", "--batch-tokens", "512", "--checkpoint-seconds", "none"]
    assert run(*arguments(workplace, tmp_path / "run", *more)).exit_code == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["checkpoint_seconds"] is None
