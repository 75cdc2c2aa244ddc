"""The command line's shell: exit codes, JSON, start-up without torch."""

import json
import subprocess
import sys
from pathlib import Path

SPEC = """
vocab_size: 257
context: 256
n_layers: 2
d_model: 64
attention: {n_heads: 4, head_dim: 16}
feed_forward: {d_ff: 128}
experts: {granularity: 4, expansion_rate: 8}
"""


def isoflop(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from isoflop.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_count_prints_json_in_the_standard_names(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    done = isoflop("count", str(path), "--context", "1024", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    parts = dict(document["flops_per_token"])
    assert parts.pop("total") == sum(parts.values())
    assert document["context"] == 1024
    assert {"params_total", "params_active", "params_embedding", "memory", "expert_attention_ratio"} <= set(document)


def test_the_table_fits_a_hundred_columns(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    done = isoflop("count", str(path))
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "experts" in done.stdout


def test_wrong_input_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.replace("granularity: 4", "granularity: 3"))
    done = isoflop("count", str(path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "granularity is 3" in done.stderr


def test_counting_fitting_and_planning_never_import_torch() -> None:
    rooms = ", ".join(f"isoflop.{room}" for room in ("cli", "spec", "laws", "planner", "data"))
    code = f"import sys, {rooms}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "False", done.stderr
