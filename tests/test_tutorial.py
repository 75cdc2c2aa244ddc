"""docs/tutorials/fit-your-own-runs.md: every block runs, in order, and prints what stands below it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "fit-your-own-runs.md"
BLOCKS = re.findall(r"```(python|sh|text)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
MARK = "-- block {} --"
FRAME = re.compile(r"[┏━┳┓┃┡╇┩│└─┴┘├┼┤]+")
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block prints; the shell's go on in one shell."""
    script = []
    for index, (language, text) in enumerate(BLOCKS):
        script.append(f"echo; echo '{MARK.format(index)}'")
        if language == "python":
            script.append(f"python - <<'PYTHON'\n{text}PYTHON")
        elif language == "sh":
            script.append(text)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", "\n".join(script)],
        cwd=tmp_path_factory.mktemp("tutorial"),
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return re.split(r"\n?-- block \d+ --\n", done.stdout)[1:]


SHOWN = [index for index, (language, _) in enumerate(BLOCKS) if language == "text"]


@pytest.mark.parametrize("index", SHOWN)
def test_a_block_prints_what_the_page_shows(outputs: list[str], index: int) -> None:
    """Line by line, numbers to 2%; the page may leave lines out where it has an ellipsis, and frames throughout."""
    lines = [words(line) for line in outputs[index - 1].splitlines() if words(line)]
    at = 0
    free = False
    for shown in BLOCKS[index][1].splitlines():
        if shown.strip() == "…":
            free = True
        elif words(shown):
            places = [
                i for i in range(at, len(lines) if free else min(at + 1, len(lines))) if same(words(shown), lines[i])
            ]
            assert places, (shown, outputs[index - 1])
            at, free = places[0] + 1, False
    assert free or at == len(lines), outputs[index - 1]


def test_the_page_shows_what_its_commands_print() -> None:
    commands = [text for language, text in BLOCKS if language == "sh" and "isoflop" in text and "columns=" not in text]
    assert len(commands) >= 4
    assert len(SHOWN) >= len(commands)


def words(line: str) -> list[str]:
    return FRAME.sub(" ", line).split()


def same(shown: list[str], printed: list[str]) -> bool:
    return len(shown) == len(printed) and all(map(alike, shown, printed))


def alike(shown: str, printed: str) -> bool:
    """Equal words, with numbers within 2%."""
    if NUMBER.sub("#", shown) != NUMBER.sub("#", printed):
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(abs(a - b) <= 0.02 * max(abs(a), abs(b)) for a, b in ((value(x), value(y)) for x, y in pairs))


def value(text: str) -> float:
    return float(text.replace(",", "").rstrip("."))
