"""How long commands take from the shell, beside the imports of torch and transformers; and what is installed.

    python -m benchmarks.startup               # two minutes; nothing else should run

Each command is a fresh process, timed from its start to its end; commands take turns. `count`, `plan` and `fit` do real
work (a fit of the quick study's table, a plan from a published law), and each is also run once to see that it leaves
torch unloaded, or the benchmark ends.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import ROOT
from benchmarks.table import Row, Spread

SPEC = """\
vocab_size: 257
context: 128
n_layers: 3
d_model: 48
attention: {n_heads: 3, head_dim: 16}
feed_forward: {d_ff: 128}
experts: {granularity: 4, expansion_rate: 8}
"""
VERBS = {
    "--help": ["--help"],
    "count spec.yaml": ["count", "spec.yaml"],
    "plan, published law": [
        *("plan", "--law", "krajewski-2024-e64", "--flops", "1.93e20", "--convention", "krajewski")
    ],
    "fit of 27 runs": ["fit", str(ROOT / "docs/results/quick-runs.csv"), "--law", "chinchilla"],
}
WITHOUT_TORCH = """\
import sys
from isoflop.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules, "torch was loaded"
"""


def run(quick: bool = False, *, repeats: int | None = None, threads: int | None = None) -> list[Row]:
    """Rows of all commands, then sizes."""
    bin_directory = Path(sys.executable).parent
    theirs = next(
        (path for name in ("transformers", "transformers-cli") if (path := bin_directory / name).exists()), None
    )
    python = [sys.executable, "-c"]
    commands = {name: [str(bin_directory / "isoflop"), *arguments] for name, arguments in VERBS.items()}
    commands |= {"import isoflop": [*python, "import isoflop"], "import isoflop.nn": [*python, "import isoflop.nn"]}
    commands |= {name: [*python, name] for name in ("import torch", "import transformers")}
    commands["python"] = [*python, "pass"]
    if theirs is not None:
        commands["transformers --help"] = [str(theirs), "--help"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spec.yaml").write_text(SPEC)
        for name, arguments in VERBS.items():
            _leaves_torch(name, arguments, folder)
        sides = {
            name: harness.timed(lambda command=command: _call(command, folder)) for name, command in commands.items()
        }
        taken = harness.in_turn(sides, harness.turns(quick, repeats), pause=0.0)
    taken = {name: [value * 1e3 for value in values] for name, values in taken.items()}
    empty = Spread.of(taken["python"]).median
    note = f"an empty Python takes {empty:.0f} ms; count, plan and fit leave torch unloaded"
    peers = dict.fromkeys([*VERBS, "import isoflop.nn"], "import torch") | {"import isoflop": "import transformers"}
    if theirs is not None:
        peers["--help"] = "transformers --help"
    rows = [
        Row.of_costs(
            f"isoflop {name}" if name in VERBS else name,
            taken[name],
            taken[peer],
            unit="ms",
            peer_name=peer,
            note=note if name == "--help" else "",
        )
        for name, peer in peers.items()
    ]
    return [*rows, *sizes()]


def _call(command: list[str], folder: str) -> None:
    subprocess.run(command, check=True, capture_output=True, cwd=folder)


def _leaves_torch(name: str, arguments: list[str], folder: str) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"isoflop {name}: {done.stderr.strip()[-2000:]}")


def sizes() -> list[Row]:
    """The wheel, packed and unpacked; transformers as it is installed."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        for name in ("src", "pyproject.toml", "README.md", "LICENSE"):
            origin = ROOT / name
            copy = shutil.copytree if origin.is_dir() else shutil.copy
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            copy(origin, source / name)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
        command += ["--no-build-isolation"] if _builds_alone() else []
        subprocess.run(
            command, check=True, capture_output=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        )
        wheel = next(out.glob("*.whl"))
        packed = wheel.stat().st_size
        with zipfile.ZipFile(wheel) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    rows = [Row.of_costs("isoflop's wheel", [packed / 1024], unit="KiB")]
    try:
        files = importlib.metadata.files("transformers") or []
    except importlib.metadata.PackageNotFoundError:
        return rows
    theirs = sum(file.size or 0 for file in files)
    rows.append(
        Row.of_costs(
            "installed, without dependencies", [unpacked / 2**20], [theirs / 2**20], unit="MiB", peer_name="HF"
        )
    )
    return rows


def _builds_alone() -> bool:
    """Whether the environment has the setuptools that the build asks for, so that nothing is downloaded."""
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


def main() -> None:
    harness.carry_out("startup", run, harness.parser(__doc__).parse_args())


if __name__ == "__main__":
    main()
