import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from isoflop.cli.app import app
from isoflop.data import prepare
from isoflop.errors import InputError, RunError
from isoflop.sample import generate
from isoflop.spec import AttentionSpec, DecoderSpec, DepthRoutingSpec, ExpertsSpec, FeedForwardSpec, RouterSpec
from isoflop.train import TrainConfig, load_model, train


@pytest.fixture(scope="module", params=["dense", "expert_choice", "depth_routed"])
def trained(request, tmp_path_factory):
    """A run whose data directory is gone."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("sample")
    (root / "text").mkdir()
    for index in range(60):
        (root / f"text/{index}.txt").write_text(f"Run {index} trains a small model on {index * 37} words. " * 20)
    prepare([root / "text"], root / "data", tokenizer="bytes")
    experts = ExpertsSpec(granularity=2, expansion_rate=2, router=RouterSpec(kind="expert_choice"))
    spec = DecoderSpec(
        vocab_size=257,
        context=32,
        n_layers=1,
        d_model=16,
        attention=AttentionSpec(n_heads=2, head_dim=8),
        feed_forward=FeedForwardSpec(d_ff=32),
        experts=experts if request.param == "expert_choice" else None,
        depth_routing=DepthRoutingSpec(capacity=0.5, every=1) if request.param == "depth_routed" else None,
    )
    config = TrainConfig(
        tokens=20 * 512, batch_tokens=512, evaluation_tokens=512, checkpoint_steps=10, learning_rate=0.02
    )
    train(spec, config, data=root / "data", out=root / "run")
    shutil.rmtree(root / "data")
    return root / "run"


def sample(*words):
    return CliRunner().invoke(app, ["sample", *map(str, words)])


def test_text_is_what_generate_gives(trained):
    result = sample(trained, "--prompt", "Run 7", "--max-new-tokens", 12, "--seed", 5, "--n", 3, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    loaded = load_model(trained)
    loaded.model.decisions = "sampled"
    rows = generate(
        loaded.model, [list(b"Run 7")] * 3, max_new_tokens=12, temperature=0.8, top_p=0.95, seed=5, stop=256
    )
    assert [entry["text"] for entry in answer["samples"]] == [loaded.tokenizer.decode(row) for row in rows]
    assert len({entry["text"] for entry in answer["samples"]}) > 1
    assert answer["prompt"] == "Run 7"


def test_people_see_prompt_and_text(trained):
    words = (trained, "--prompt", "Run é", "--temperature", 0)
    first = sample(*words)
    assert first.exit_code == 0, first.output
    assert first.stdout.startswith("Run é")
    assert sample(*words).stdout == first.stdout
    assert sample(trained).exit_code == 0  # no prompt: the start of a document


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--n", 0], "n is 0"),
        (["--temperature", -1], "temperature is -1"),
        (["--top-p", 0], "top_p is 0"),
        (["--n", 10**9], "n is 1000000000; it must be from 1 to 1024"),
        (["--max-new-tokens", 0], "max_new_tokens is 0; it must be at least 1"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--top-p", "nan"], "top_p is nan"),
        (["--seed", -1], "seed is -1"),
        (["--device", "meta"], "device is 'meta'"),
        (["--prompt", "x" * 40], "prompt has 40 tokens; it can have at most 31, one less than the model's context of"),
        (["--prompt", "x" * 32], "prompt has 32 tokens; it can have at most 31"),
        (
            ["--prompt", "x" * 9, "--max-new-tokens", 24],
            "after a prompt of 9 tokens the model's context of 32 holds at",
        ),
        (
            ["--max-new-tokens", 32],
            "after the start of a document, which is one token, the model's context of 32 holds",
        ),
        (["--prompt", "\udc80"], "Unicode"),
    ],
)
def test_wrong_input_is_named(trained, more, words):
    result = sample(trained, *more)
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)


def test_a_directory_that_is_no_run(tmp_path):
    assert isinstance(sample(tmp_path).exception, InputError)


def test_unfinished_expert_choice_has_no_thresholds_yet(trained):
    unfinished = trained / "checkpoints/step-00000010"
    result = sample(unfinished, "--prompt", "Run", "--json")
    if not load_model(trained).model.needs_calibration:
        assert json.loads(result.stdout)["step"] == 10
    else:
        assert isinstance(result.exception, RunError)
        assert "unfinished run" in str(result.exception)


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(trained):
    result = sample(trained / "checkpoints/step-00000099")
    assert isinstance(result.exception, InputError)
    assert "does not exist; there are step-00000010, step-00000020" in str(result.exception)


def test_a_spec_that_was_changed_does_not_fit_the_weights(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    spec = tmp_path / "run/spec.yaml"
    spec.write_text(spec.read_text().replace("d_model: 16", "d_model: 32"))
    result = sample(tmp_path / "run")
    assert isinstance(result.exception, RunError)
    assert "is not the spec of the weights" in str(result.exception)


def test_the_dial_of_depth_routing(trained):
    few, many = (
        sample(trained, "--prompt", "Run 7", "--max-new-tokens", 12, "--json", "--depth-capacity", share)
        for share in (0.1, 1.0)
    )
    if load_model(trained).spec.depth_routing is None:
        assert few.exit_code != 0
        assert "depth capacity is 0.1, but the model has no depth routing" in str(few.exception)
        return
    assert few.exit_code == many.exit_code == 0, few.output
    assert json.loads(few.stdout)["samples"] != json.loads(many.stdout)["samples"]
    wrong = sample(trained, "--prompt", "Run 7", "--depth-capacity", 0)
    assert isinstance(wrong.exception, InputError)
    assert "depth capacity is 0.0; it must be a number greater than 0 and at most 1" in str(wrong.exception)
