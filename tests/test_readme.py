"""The README's Python example runs as it is written, and its shell commands name verbs and options that exist."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from isoflop.spec import parse_spec
from isoflop.study.spec import parse_study

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_python_example_runs(tmp_path: Path) -> None:
    example, sampling = blocks("python")
    assert len(example.splitlines()) <= 25
    done = subprocess.run(
        [sys.executable, "-c", example + sampling],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").exists()
    assert done.stdout.splitlines()[1].startswith("16 "), done.stdout
    assert [len(tokens) for tokens in json.loads(done.stdout.splitlines()[-1])] == [8, 8]


def test_the_yaml_examples_are_valid() -> None:
    study, spec = (yaml.safe_load(block) for block in blocks("yaml"))
    assert parse_study(study).verification is not None
    assert parse_spec(spec).experts is not None


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("isoflop ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_exist(command: str) -> None:
    words = shlex.split(command, comments=True)
    verb = words[1:3] if words[1] == "study" or words[1:3] == ["plan", "next-run"] else words[1:2]
    code = f"from isoflop.cli import app; app({[*verb, '--help']!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for word in words:
        if word.startswith("--"):
            assert word in done.stdout, (command, word)
