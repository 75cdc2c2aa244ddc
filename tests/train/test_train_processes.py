"""Runs in processes of their own: killed at random moments, or several at once."""

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from tests.train.rank_worker import train_in_foreground, train_rank

from isoflop.train import TrainConfig, train

TIMINGS = ("tokens_per_second", "flops_per_second", "wall_seconds")
pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="no fork server on this system"
)


@pytest.fixture(scope="module")
def processes():
    """Starts processes quickly: they fork from a server that has imported torch and nothing more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["isoflop.train.loop", "tests.train.rank_worker", "torch._dynamo"])
    return context


def outcome(run: Path) -> tuple[list[dict], bytes]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]
    (final,) = (run / "checkpoints").glob("step-00000090")
    return metrics, (final / "model.safetensors").read_bytes()


def line_count(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def test_killed_at_random_moments_the_run_ends_as_if_undisturbed(tmp_path, moe, data_dir, processes):
    config = TrainConfig(
        tokens=90 * 512,
        batch_tokens=512,
        evaluation_tokens=512,
        log_every=1,
        evaluate_every=20,
        checkpoint_steps=6,
        threads=1,
    )
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    train(moe, config, data=data_dir, out=calm)
    rng = random.Random()
    kills = 0
    for lines in (0, 15, 35, 65):
        process = processes.Process(target=train, args=(moe, config), kwargs={"data": data_dir, "out": stormy})
        process.start()
        while process.is_alive() and line_count(stormy) < lines:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 3
    train(moe, config, data=data_dir, out=stormy)
    assert outcome(stormy) == outcome(calm)
    assert not list((stormy / "checkpoints").glob(".*"))


def test_interrupted_it_keeps_the_step_and_goes_on_as_if_undisturbed(tmp_path, dense, data_dir, processes):
    config = TrainConfig(
        tokens=90 * 512, batch_tokens=512, evaluation_tokens=512, log_every=1, checkpoint_seconds=None, threads=1
    )
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    train(dense, config, data=data_dir, out=calm)
    process = processes.Process(target=train_in_foreground, args=(dense, config, data_dir, stopped))
    process.start()
    while process.is_alive() and line_count(stopped) < 5:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 1  # KeyboardInterrupt
    (kept,) = (stopped / "checkpoints").iterdir()
    assert int(kept.name.removeprefix("step-")) >= 5
    train(dense, config, data=data_dir, out=stopped)
    assert outcome(stopped) == outcome(calm)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_equal_one(tmp_path, moe, data_dir, processes):
    config = TrainConfig(
        tokens=20 * 512,
        batch_tokens=512,
        evaluation_tokens=512,
        threads=1,
        checkpoint_steps=8,
        device="cpu",
    )
    one = train(moe, config, data=data_dir, out=tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        processes.Process(target=train_rank, args=(rank, 2, port, moe, config, data_dir, tmp_path / "two"))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=60)
    assert [process.exitcode for process in ranks] == [0, 0]
    two = json.loads((tmp_path / "two/result.json").read_text())
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["steps"] == one["steps"] == 20
    curves = [
        [json.loads(line).get("loss") for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert curves[0][:-1] == pytest.approx(curves[1][:-1], abs=1e-5)
