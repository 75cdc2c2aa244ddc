"""Training with depth routing: both held-out losses, what is logged, thresholds in the checkpoint."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from isoflop import RunError
from isoflop.data import TokenData, evaluation_windows
from isoflop.spec import DepthRoutingSpec
from isoflop.train import TrainConfig, evaluate, load_model, train
from isoflop.train.resolve import resolve

QUICK = TrainConfig(
    tokens=20 * 512, batch_tokens=512, learning_rate=1e-2, evaluation_tokens=2048, log_every=5, threads=1
)


@pytest.mark.parametrize("sampled_by", ["threshold", "auxiliary", "predictor"])
def test_record_names_both_losses_and_the_headline_is_the_causal_one(tmp_path, depth_routed, data_dir, sampled_by):
    spec = replace(depth_routed, depth_routing=DepthRoutingSpec(capacity=0.25, sampled_by=sampled_by))
    record = train(spec, QUICK, data=data_dir, out=tmp_path / "run")
    assert record["causal"] is True
    assert record["loss"] == record["loss_sampled"] != record["loss_as_trained"]
    assert record["depth_capacity"] == 0.25
    assert (record["depth_router"], record["depth_part"], record["depth_every"]) == ("learned", "block", 2)
    assert record["depth_sampled_by"] == sampled_by
    assert 0 <= record["kept_share"] < 1
    assert 0.5 < record["depth_agreement"] <= 1
    if sampled_by == "threshold":
        assert record["kept_share"] == pytest.approx(0.25, abs=0.08)
    model = load_model(tmp_path / "run").model
    windows = evaluation_windows(TokenData(data_dir), context=16, tokens=2048)
    assert evaluate(model, windows, batch_size=32)[0] == pytest.approx(record["loss_as_trained"], abs=1e-5)
    model.decisions = "sampled"
    assert evaluate(model, windows, batch_size=32)[0] == pytest.approx(record["loss"], abs=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"kept_share", "depth_agreement", "depth_score_std", "depth_auxiliary_loss"} <= lines[0].keys()
    assert lines[0]["kept_share"] == 0.25
    assert all(line["causal"] is False for line in lines)  # held-out losses on the way are those of the top-k


def test_fixed_routing_has_one_loss(tmp_path, depth_routed, data_dir):
    spec = replace(depth_routed, depth_routing=DepthRoutingSpec(capacity=0.25, router="fixed"))
    record = train(spec, QUICK, data=data_dir, out=tmp_path / "run")
    assert record["loss"] == pytest.approx(record["loss_as_trained"], abs=1e-6)
    assert record["kept_share"] == 0.25


def test_the_learning_rate_goes_by_the_shape_and_not_by_the_capacity(depth_routed):
    config = replace(QUICK, learning_rate=None)
    assert (
        resolve(depth_routed, config).learning_rate
        == resolve(replace(depth_routed, depth_routing=None), config).learning_rate
    )


def test_a_missing_predictor_is_named(tmp_path, depth_routed, data_dir):
    train(depth_routed, QUICK, data=data_dir, out=tmp_path / "run")
    (path,) = (tmp_path / "run/checkpoints").glob("*/model.safetensors")
    tensors = {name: tensor for name, tensor in load_file(path).items() if "predictor" not in name}
    save_file(tensors, path)
    sums = path.with_name("checksums.json")
    import hashlib

    sums.write_text(
        json.dumps(json.loads(sums.read_text()) | {path.name: hashlib.sha256(path.read_bytes()).hexdigest()})
    )
    with pytest.raises(RunError, match=r"has no predictor .*sampled_by in .* is predictor"):
        load_model(tmp_path / "run")
