"""The script studies/retrofit.py at tiny size."""

import json
from dataclasses import replace

import pytest

from isoflop.laws import read_runs
from isoflop.spec import DepthRoutingSpec, count
from isoflop.train import TrainConfig, train

pytest.importorskip("matplotlib")
from studies.retrofit import main


@pytest.fixture
def source(tmp_path, dense, data_dir):
    config = TrainConfig(tokens=40 * 512, batch_tokens=512, learning_rate=1e-2, evaluation_tokens=2048, threads=1)
    train(dense, config, data=data_dir, out=tmp_path / "dense")
    return tmp_path / "dense"


def arguments(source, data_dir, *more):
    out = source.parent / "retrofit"
    return [str(source), str(data_dir), "--tokens", "5120", "--out", str(out), "--threads", "1", *more]


def test_table_and_figure(source, dense, data_dir, capsys):
    words = arguments(source, data_dir, "--capacities", "1", "0.25", "--seeds", "1", "2")
    main(words)
    out = source.parent / "retrofit"
    rows = read_runs(out / "retrofit.csv").rows
    assert [(row["architecture"], row["depth_capacity"], row["seed"]) for row in rows] == [
        (kind, capacity, seed)
        for kind, capacity in (("dense", 1), ("retrofit", 1), ("retrofit", 0.25))
        for seed in (1, 2)
    ]
    assert (out / "retrofit.png").stat().st_size > 10_000
    before = json.loads((source / "result.json").read_text())["loss"]
    for row in rows:
        if row["depth_capacity"] == 1:
            assert row["loss_before_as_trained"] == pytest.approx(before, abs=1e-5)
            assert row["loss_before_as_sampled"] == pytest.approx(before, abs=1e-5)
        else:
            assert row["loss_before_as_sampled"] > before
            assert row["loss_after_as_sampled"] < row["loss_before_as_sampled"]
            assert row["flops_per_token_share"] < 0.9
        assert row["loss_after_as_trained"] < row["loss_before_as_trained"]
        spec = dense
        if row["architecture"] == "retrofit":
            spec = replace(dense, depth_routing=DepthRoutingSpec(capacity=row["depth_capacity"], gate="sigmoid"))
        budget, step = 5120 * count(dense).training_flops_per_token, 512 * count(spec).training_flops_per_token
        assert budget <= row["flops"] * (1 + 1e-9) < budget + step + 1
    printed = capsys.readouterr().out
    assert "gap to dense" in printed
    assert printed.count("\n") == 4
    results = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    assert len(results) == 6
    main(words)
    assert results == {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    assert capsys.readouterr().out == printed


def test_what_cannot_be_studied_is_one_sentence(source, data_dir):
    routed = arguments(source, data_dir, "--capacities", "0.01")
    with pytest.raises(SystemExit, match=r"error: depth_routing.capacity is 0.01, which keeps no token"):
        main(routed)
    with pytest.raises(SystemExit, match=r"error: run is .*nowhere"):
        main(arguments(source.parent / "nowhere", data_dir))
    (source / "result.json").unlink()
    with pytest.raises(SystemExit, match=r"error: run is .*dense, which has not ended"):
        main(arguments(source, data_dir))
