"""A study of seconds: what the tests of the study room run."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

BUDGETS = [1.5e8, 3e8, 6e8]
STUDY: dict[str, Any] = {
    "name": "tiny",
    "data": {"sources": ["text.txt"], "options": {"document_bytes": 1024}},
    "context": 16,
    "budgets": BUDGETS,
    "architectures": [{"name": "dense"}, {"name": "moe", "experts": {"expansion_rate": 4, "granularity": [1, 2]}}],
    "template": {"head_dim": 16},
    "sizes_per_budget": 3,
    "expected_tokens_per_parameter": 0.5,
    "widen": False,
    "training": {
        "evaluation_tokens": 256,
        "batch_tokens": 128,
        "device": "cpu",
        "checkpoint_steps": 20,
        "log_every": 10,
        "checkpoint_seconds": None,
    },
    "bootstrap": 20,
    "workers": 1,
}


def write_study(directory: Path, **change: Any) -> Path:
    """Write the study's text and its YAML; returns the YAML's path."""
    directory.mkdir(parents=True, exist_ok=True)
    words = random.Random(0).choices(["ox", "hen", "cat", "dog", "eel", "and", "the", "runs\n"], k=30000)
    (directory / "text.txt").write_text(" ".join(words))
    path = directory / "tiny.yaml"
    path.write_text(yaml.safe_dump(STUDY | change))
    return path


def start(path: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    """Start `study run` in a process of its own, without the report, which costs seconds."""
    code = "import isoflop.report; isoflop.report.write_report = lambda path: path\n"
    code += "from isoflop.cli.study import study_app; study_app()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "run", str(path), "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def results(out: Path) -> dict[str, dict[str, Any]]:
    """The result.json of every run in a study's directory."""
    return {path.parent.name: json.loads(path.read_text()) for path in (out / "runs").glob("*/result.json")}


def losses(out: Path) -> dict[str, float]:
    """The held-out loss of every run in a study's directory."""
    return {run_id: result["loss"] for run_id, result in results(out).items()}
