"""Runs in processes of their own: killed at random moments, or several at once."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from isoflop.spec import save_spec

SCRIPT = """
import json, sys, torch
torch.set_num_threads(1)
from isoflop.spec import load_spec
from isoflop.train import TrainConfig, train
spec, data, out, settings = sys.argv[1:]
print("ready", flush=True)
train(load_spec(spec), TrainConfig(**json.loads(settings)), data=data, out=out)
"""
TIMINGS = ("tokens_per_second", "flops_per_second", "wall_seconds")


def start(spec: Path, data: Path, out: Path, **settings) -> subprocess.Popen:
    arguments = [sys.executable, "-c", SCRIPT, str(spec), str(data), str(out), json.dumps(settings)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def outcome(run: Path) -> tuple[list[dict], bytes]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]
    (final,) = (run / "checkpoints").glob("step-00000150")
    return metrics, (final / "model.safetensors").read_bytes()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_at_random_moments_the_run_ends_as_if_undisturbed(tmp_path, moe, data_dir):
    save_spec(moe, tmp_path / "spec.yaml")
    settings = {"tokens": 150 * 512, "batch_tokens": 512, "evaluation_tokens": 512, "log_every": 1}
    settings |= {"evaluate_every": 20, "checkpoint_steps": 6, "threads": 1}
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    with start(tmp_path / "spec.yaml", data_dir, calm, **settings) as undisturbed:
        assert undisturbed.wait(timeout=100) == 0
    rng = random.Random()
    kills = 0
    for lines in (0, 30, 60, 110):
        with start(tmp_path / "spec.yaml", data_dir, stormy, **settings) as process:
            assert process.stdout is not None
            process.stdout.readline()
            while process.poll() is None and line_count(stormy) < lines:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    assert kills >= 3
    with start(tmp_path / "spec.yaml", data_dir, stormy, **settings) as process:
        assert process.wait(timeout=100) == 0
    assert outcome(stormy) == outcome(calm)
    assert not list((stormy / "checkpoints").glob(".*"))


def line_count(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_equal_one(tmp_path, moe, data_dir):
    save_spec(moe, tmp_path / "spec.yaml")
    settings = {"tokens": 20 * 512, "batch_tokens": 512, "micro_batch": 16, "evaluation_tokens": 512, "threads": 1}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "spec.yaml"), str(data_dir)]
    subprocess.run([*command, str(tmp_path / "one"), json.dumps(settings)], check=True, stdout=subprocess.DEVNULL)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    subprocess.run(
        [*launch, *command[3:], str(tmp_path / "two"), json.dumps(settings)],
        check=True,
        timeout=100,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    assert one["steps"] == two["steps"] == 20
    curves = [
        [json.loads(line).get("loss") for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert curves[0][:-1] == pytest.approx(curves[1][:-1], abs=1e-5)
