"""Training that starts from given weights: the same spec, depth routing added, a Hugging Face Llama."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from isoflop.data import TokenData, evaluation_windows
from isoflop.errors import InputError, RunError
from isoflop.nn import Decoder, retrofit
from isoflop.spec import DepthRoutingSpec
from isoflop.study.grid import _essential
from isoflop.train import TrainConfig, evaluate, load_model, train
from isoflop.train.run import Run
from isoflop.train.start import start_from

QUICK = TrainConfig(
    tokens=20 * 512, batch_tokens=512, learning_rate=1e-2, evaluation_tokens=2048, log_every=4, threads=1
)
STILL = replace(QUICK, tokens=512, learning_rate=1e-30, weight_decay=0.0)
"""One step that moves nothing, so that the run's loss is that of its start."""
ROUTED = DepthRoutingSpec(capacity=0.25, gate="sigmoid", sampled_by="predictor")


@pytest.fixture(scope="module")
def source(data_dir, tmp_path_factory):
    """A finished dense run."""
    from tests.train.conftest import tiny_spec

    path = tmp_path_factory.mktemp("init") / "dense"
    train(tiny_spec(), replace(QUICK, checkpoint_steps=10), data=data_dir, out=path)
    return path


def metrics(run):
    timings = ("tokens_per_second", "flops_per_second", "wall_seconds")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timings} for line in lines]


def weights(run):
    return (sorted((run / "checkpoints").glob("step-*"))[-1] / "model.safetensors").read_bytes()


def test_the_same_spec_starts_where_the_run_ended(tmp_path, dense, data_dir, source):
    before = json.loads((source / "result.json").read_text())
    record = train(dense, replace(STILL, init=source, seed=5), data=data_dir, out=tmp_path / "run")
    assert record["init"] == str(source)
    assert before["init"] is None
    assert record["loss"] == pytest.approx(before["loss"], abs=1e-6)
    (first,) = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert first["loss"] < 4 < torch.tensor(257.0).log()
    expected = load_model(source).model.state_dict()
    for name, tensor in load_model(tmp_path / "run").model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-7)


def test_it_starts_from_the_named_checkpoint(tmp_path, dense, data_dir, source):
    path = source / "checkpoints/step-00000010"
    record = train(dense, replace(STILL, init=str(path)), data=data_dir, out=tmp_path / "run")
    windows = evaluation_windows(TokenData(data_dir), context=16, tokens=2048)
    assert record["loss"] == pytest.approx(evaluate(load_model(path).model, windows, batch_size=32)[0], abs=1e-6)
    assert record["loss"] > json.loads((source / "result.json").read_text())["loss"]


def test_depth_routing_is_added(tmp_path, dense, data_dir, source):
    whole = DepthRoutingSpec(capacity=1.0, gate="sigmoid")
    record = train(replace(dense, depth_routing=whole), replace(STILL, init=source), data=data_dir, out=tmp_path / "1")
    before = json.loads((source / "result.json").read_text())["loss"]
    assert record["loss_as_trained"] == pytest.approx(before, abs=1e-5)
    assert record["loss"] == pytest.approx(before, abs=1e-5)


def test_added_routing_is_that_of_retrofit(dense, source):
    started = Decoder(replace(dense, depth_routing=ROUTED), seed=7)
    start_from(started, str(source))
    expected = retrofit(load_model(source).model, ROUTED, seed=7).state_dict()
    for name, tensor in started.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, equal_nan=True)
    assert not started.depth_routers[0].w_1D.any()


def test_a_fine_tuned_retrofit_learns_its_router_and_a_later_run_keeps_it(tmp_path, dense, data_dir, source):
    spec = replace(dense, depth_routing=ROUTED)
    record = train(spec, replace(QUICK, init=source), data=data_dir, out=tmp_path / "first")
    assert record["status"] == "done"
    router = load_model(tmp_path / "first").model.depth_routers[0]
    assert router.w_1D.abs().max() > 0.01
    train(spec, replace(STILL, init=tmp_path / "first"), data=data_dir, out=tmp_path / "second")
    kept = load_model(tmp_path / "second").model.depth_routers[0]
    assert torch.equal(kept.w_1D, router.w_1D)


@pytest.mark.parametrize("routing", [None, ROUTED], ids=["dense", "retrofit"])
def test_resumed_run_equals_undisturbed_one_even_without_its_source(tmp_path, dense, data_dir, source, routing):
    spec = replace(dense, depth_routing=routing)
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    config = replace(QUICK, init=copy, checkpoint_steps=3, evaluate_every=8)
    train(spec, config, data=data_dir, out=tmp_path / "whole")
    original = Run._train_step
    for stop in (1, 11):  # before the first checkpoint, and after one

        def step_or_die(self, stop=stop):
            if self.step == stop:
                raise KeyboardInterrupt
            return original(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "_train_step", step_or_die)
            with pytest.raises(KeyboardInterrupt):
                train(spec, config, data=data_dir, out=tmp_path / "resumed")
    shutil.rmtree(copy)
    record = train(spec, config, data=data_dir, out=tmp_path / "resumed")
    assert metrics(tmp_path / "resumed") == metrics(tmp_path / "whole")
    assert weights(tmp_path / "resumed") == weights(tmp_path / "whole")
    assert train(spec, config, data=data_dir, out=tmp_path / "resumed") == record


def test_a_hugging_face_llama_is_fine_tuned(tmp_path, dense, data_dir):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    llama.save_pretrained(tmp_path / "llama")
    windows = torch.from_numpy(evaluation_windows(TokenData(data_dir), context=16, tokens=2048).astype("int64"))
    with torch.no_grad():
        logits = llama(windows[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
    for routing in (None, DepthRoutingSpec(capacity=1.0, gate="sigmoid")):
        spec = replace(dense, depth_routing=routing)
        out = tmp_path / f"run-{routing is None}"
        record = train(spec, replace(STILL, init=tmp_path / "llama"), data=data_dir, out=out)
        assert record["loss"] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match=r"init is .*llama, whose weights .*: n_layers is 2 there and 3 here"):
        train(replace(dense, n_layers=3), replace(STILL, init=tmp_path / "llama"), data=data_dir, out=tmp_path / "x")


def test_a_run_without_init_has_the_same_name_and_goes_on_in_an_older_directory(tmp_path, dense, data_dir):
    assert "init" not in _essential(QUICK)
    assert _essential(replace(QUICK, init="a"))["init"] == "a"
    assert TrainConfig(**replace(QUICK, init="a").to_dict()) == replace(QUICK, init="a")
    record = train(dense, QUICK, data=data_dir, out=tmp_path / "run")
    for name in ("run.json", "config.json"):  # as a version without the field wrote them
        values = json.loads((tmp_path / "run" / name).read_text())
        values.get("config", values).pop("init")
        (tmp_path / "run" / name).write_text(json.dumps(values))
    assert train(dense, QUICK, data=data_dir, out=tmp_path / "run") == record
    with pytest.raises(InputError, match=r"config\.init is not given there and a here"):
        train(dense, replace(QUICK, init="a"), data=data_dir, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_layers": 3}, "n_layers is 2 there and 3 here; they may differ in added depth_routing alone"),
        ({"tied_head": True}, "tied_head is False there and True here"),
        ({"attention": {"n_heads": 2, "head_dim": 8, "n_kv_heads": 1}}, r"attention\.n_kv_heads is 2 there and 1 here"),
        ({"depth_routing": DepthRoutingSpec(capacity=0.5)}, r"depth_routing\.gate is 'raw'"),
        ({"n_layers": 3, "depth_routing": DepthRoutingSpec(capacity=0.5)}, "n_layers is 2 there and 3 here"),
    ],
)
def test_another_spec_is_refused_before_the_directory_is_taken(tmp_path, dense, data_dir, source, changes, sentence):
    from isoflop.spec import parse_spec, spec_to_dict

    changes = {name: asdict(value) if isinstance(value, DepthRoutingSpec) else value for name, value in changes.items()}
    spec = parse_spec(spec_to_dict(dense) | changes)
    with pytest.raises(InputError, match=f"init is .*dense, whose weights this model cannot take: .*{sentence}"):
        train(spec, replace(QUICK, init=source), data=data_dir, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_heads_that_are_written_out_are_the_same_spec(tmp_path, dense, data_dir, source):
    spec = replace(dense, attention=replace(dense.attention, n_kv_heads=2))
    assert train(spec, replace(STILL, init=source), data=data_dir, out=tmp_path / "run")["status"] == "done"


def test_routing_that_is_there_may_not_change(tmp_path, dense, data_dir, source):
    routed = replace(dense, depth_routing=ROUTED)
    train(routed, replace(STILL, init=source), data=data_dir, out=tmp_path / "routed")
    config = replace(STILL, init=tmp_path / "routed")
    for spec, sentence in (
        (dense, "depth_routing is given there and not given here"),
        (
            replace(routed, depth_routing=replace(ROUTED, capacity=0.5)),
            r"depth_routing\.capacity is 0.25 there and 0.5",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            train(spec, config, data=data_dir, out=tmp_path / "run")


def test_places_without_weights_are_named(tmp_path, dense, data_dir, source):
    (tmp_path / "empty").mkdir()
    for init in (tmp_path / "nowhere", tmp_path / "empty", source / "checkpoints/step-00000099", ""):
        with pytest.raises(InputError, match=r"init is .*; it must be a run directory of `isoflop train`, one of its"):
            train(dense, replace(QUICK, init=init), data=data_dir, out=tmp_path / "run")
    shutil.copytree(source, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(InputError, match=r"init is .*bare, a run without a checkpoint"):
        train(dense, replace(QUICK, init=tmp_path / "bare"), data=data_dir, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    shutil.copytree(source, tmp_path / "damaged")
    for path in (tmp_path / "damaged").glob("checkpoints/*/model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match="has no sound checkpoint"):
        train(dense, replace(QUICK, init=tmp_path / "damaged"), data=data_dir, out=tmp_path / "run")


def test_the_stored_weights_are_untouched(tmp_path, dense, data_dir, source):
    path = sorted((source / "checkpoints").glob("step-*"))[-1] / "model.safetensors"
    before = load_file(path)
    train(dense, replace(QUICK, init=source), data=data_dir, out=tmp_path / "run")
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(path).items())
