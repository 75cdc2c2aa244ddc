"""`isoflop train --init`: training that starts from a finished run."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import isoflop.cli
from isoflop.cli.app import app
from isoflop.data import prepare
from isoflop.errors import RunError
from isoflop.spec import AttentionSpec, DecoderSpec, DepthRoutingSpec, FeedForwardSpec, save_spec


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("init")
    (root / "text").mkdir()
    for index in range(60):
        (root / f"text/{index}.txt").write_text(f"Run {index} trains a small model on {index * 37} words. " * 20)
    prepare([root / "text"], root / "data", tokenizer="bytes")
    dense = DecoderSpec(
        vocab_size=257,
        context=16,
        n_layers=3,
        d_model=16,
        attention=AttentionSpec(n_heads=2, head_dim=8),
        feed_forward=FeedForwardSpec(d_ff=32),
    )
    save_spec(dense, root / "dense.yaml")
    save_spec(replace(dense, d_model=24), root / "wide.yaml")
    save_spec(
        replace(dense, depth_routing=DepthRoutingSpec(capacity=0.5, gate="sigmoid")),
        root / "routed.yaml",
    )
    assert train(root, "dense.yaml", "dense", "20k").exit_code == 0
    return root


def words(root, spec, out, tokens, *more):
    paths = {"--spec": root / spec, "--data": root / "data", "--out": root / out}
    named = [word for option, path in paths.items() for word in (option, str(path))]
    return ["train", *named, "--tokens", tokens, "--batch-tokens", "512", "--json", *more]


def train(root, *arguments):
    return CliRunner().invoke(app, words(root, *arguments))


def test_a_finished_run_is_made_depth_routed_and_fine_tuned(root):
    result = train(root, "routed.yaml", "routed", "2k", "--init", str(root / "dense"))
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout.splitlines()[-1])
    assert (record["init"], record["depth_capacity"]) == (str(root / "dense"), 0.5)
    assert record["loss"] < 5 < torch.tensor(257.0).log()
    again = train(root, "routed.yaml", "routed", "2k", "--init", str(root / "dense"))
    assert json.loads(again.stdout.splitlines()[-1]) == record


@pytest.mark.parametrize(
    ("spec", "init", "sentence"),
    [("wide.yaml", "dense", "d_model is 16 there and 24 here"), ("dense.yaml", "data", "must be a run directory of")],
)
def test_other_weights_are_one_sentence_and_exit_2(root, monkeypatch, capsys, spec, init, sentence):
    monkeypatch.setattr("sys.argv", ["isoflop", *words(root, spec, "none", "2k", "--init", str(root / init))])
    with pytest.raises(SystemExit) as caught:
        isoflop.cli.main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: init is {root / init}")
    assert sentence in error
    assert error.count("\n") == 1
    assert not (root / "none").exists()


def test_a_routed_run_is_trained_further(root):
    assert train(root, "routed.yaml", "first", "2k").exit_code == 0
    again = train(root, "routed.yaml", "second", "2k", "--init", str(root / "first"))
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout.splitlines()[-1])["init"] == str(root / "first")


def test_weights_that_cannot_be_read_leave_the_directory_free(root):
    """A run whose only checkpoint is broken, and then the command that is right."""
    broken = root / "broken"
    shutil.copytree(root / "dense", broken)
    for path in broken.glob("checkpoints/*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    failed = train(root, "routed.yaml", "freed", "2k", "--init", str(broken))
    assert isinstance(failed.exception, RunError)
    assert list((root / "freed").iterdir()) == []
    assert train(root, "routed.yaml", "freed", "2k", "--init", str(root / "dense")).exit_code == 0
