"""docs/results/laws.md: every command runs as written, and gives the figures that stand on the page."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from isoflop.cli.app import app

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
PAGE = (ROOT / "docs" / "results" / "laws.md").read_text(encoding="utf-8")
FILES = {
    "chinchilla.csv": DATA / "chinchilla_epoch" / "svg_extracted_data.csv",
    "routed.csv.gz": DATA / "routed_lm" / "curves.csv.gz",
    "steplaw-dense.csv": DATA / "steplaw" / "dense_lr_bs_loss.csv",
    "steplaw-moe.csv": DATA / "steplaw" / "moe_lr_bs_loss.csv",
}
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]

pytestmark = pytest.mark.skipif(not all(path.exists() for path in FILES.values()), reason="needs the public tables")


def near(value: float, digits: float) -> Any:
    """As exactly as the page prints it: half a unit of the last digit."""
    return pytest.approx(value, abs=digits)


REFIT = {"E": near(1.81722, 5e-6), "A": near(477.826, 5e-4), "B": near(2143.42, 5e-3), "alpha": near(0.347311, 5e-7),
         "beta": near(0.367172, 5e-7)}  # fmt: skip
LEAST_ABSOLUTE = {"E": near(1.81686, 5e-6), "A": near(481.999, 2e-3), "B": near(2085.39, 2e-2),
                  "alpha": near(0.347812, 1e-6), "beta": near(0.365853, 1e-6)}  # fmt: skip
ALL_ROWS = {"E": near(1.89134, 5e-6), "A": near(495.727, 5e-3), "B": near(12845.9, 0.3), "alpha": near(0.349313, 2e-6),
            "beta": near(0.45305, 5e-6)}  # fmt: skip
S_BASE = {"a": near(-0.08303, 5e-6), "b": near(-0.11804, 5e-6), "c": near(0.009925, 5e-7), "d": near(1.11358, 5e-6),
          "E_start": near(2.0746, 5e-5), "E_max": near(238.67, 0.02)}  # fmt: skip
RL_R = {"a": near(-0.08273, 5e-6), "b": near(-0.12342, 5e-6), "c": near(0.011233, 5e-7), "d": near(1.10701, 5e-6),
        "E_start": near(1.7219, 5e-5), "E_max": near(470.05, 0.05)}  # fmt: skip
HASH = {"a": near(-0.08736, 5e-6), "b": near(-0.13836, 5e-6), "c": near(0.012635, 5e-7), "d": near(1.15953, 5e-6),
        "E_start": near(4.2688, 5e-5), "E_max": near(427.32, 0.05)}  # fmt: skip
STEP_DENSE = {"E": near(0.90625, 5e-5), "A": near(15.7187, 5e-3), "B": near(328.525, 0.05),
              "alpha": near(0.132835, 5e-6), "beta": near(0.294515, 5e-6)}  # fmt: skip
STEP_PINNED = {"E": 1.69, "alpha": near(0.38238, 5e-6), "beta": near(0.322155, 5e-6)}
STEP_MOE = {"e": near(1.6498, 5e-4), "b": near(171.721, 0.5), "c": near(0.0243492, 2e-4), "beta": near(0.246713, 2e-4),
            "lambda": near(0.728415, 3e-3), "a": 0, "d": 0}  # fmt: skip
STEP_ACTIVE = {"E": near(1.64974, 5e-5), "alpha": near(0.725659, 5e-5), "beta": near(0.246753, 5e-6)}

EXPECTED: list[tuple[dict[str, Any], int, str, float | None]] = [  # constants, rows, status, objective at most
    (REFIT, 240, "converged", 0.00101827402),
    (LEAST_ABSOLUTE, 240, "converged", 1.12949e-7),
    (ALL_ROWS, 245, "converged", 0.0018260106),
    (S_BASE, 58, "not_identified", None),
    (RL_R, 59, "not_identified", None),
    (HASH, 56, "not_identified", None),
    (STEP_DENSE, 17, "converged", 4.0533e-5),
    (STEP_PINNED, 17, "converged", 4.3443e-5),
    ({}, 16, "not_identified", None),
    (STEP_MOE, 16, "converged", 3.69417e-5),
    (STEP_ACTIVE, 16, "converged", 3.70117e-5),
]


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    found = []
    for command in COMMANDS:
        program, *words = (FILES.get(word, word) for word in shlex.split(command))
        assert program == "isoflop"
        done = CliRunner().invoke(app, [*map(str, words), "--json"])
        assert done.exit_code == 0, (command, done.output)
        found.append(json.loads(done.stdout))
    return found


@pytest.mark.parametrize("index", range(len(EXPECTED)), ids=lambda index: f"command-{index + 1}")
def test_a_command_gives_what_the_page_says(documents: list[dict[str, Any]], index: int) -> None:
    assert len(documents) == len(EXPECTED)
    constants, n_rows, status, objective = EXPECTED[index]
    found = documents[index]
    assert found["n_rows"] == n_rows
    assert found["status"] == status, found["message"]
    assert {name: found["parameters"][name] for name in constants} == constants
    if objective is not None:
        assert found["objective"] <= objective


def test_standard_errors_of_the_refit(documents: list[dict[str, Any]]) -> None:
    errors = documents[0]["standard_errors"]
    expected = {"A": 116, "alpha": 0.0147, "beta": 0.0208, "E": 0.026}  # of Besiroglu et al. and an independent refit
    assert {name: errors[name] for name in expected} == pytest.approx(expected, rel=0.08)


def test_what_the_page_says_of_held_out_runs_and_intervals(documents: list[dict[str, Any]]) -> None:
    score = documents[0]["holdout"]
    assert (score["n_held_out"], round(score["rmse"], 3)) == (48, 0.013)
    assert documents[6]["holdout"]["rmse"] == pytest.approx(0.0069, abs=5e-5)
    low, high = documents[6]["intervals"]["E"]
    assert low < 0.1
    assert high > 1.8


def test_routers_cut_off_and_what_is_not_identified(documents: list[dict[str, Any]]) -> None:
    for found, cut_off, rmse in zip(documents[3:6], (783e9, 97.1e9, 89.3e9), (0.00323, 0.00323, 0.00298), strict=True):
        constants = found["parameters"]
        assert 10 ** (-constants["b"] / constants["c"]) == pytest.approx(cut_off, rel=1e-3)
        assert (2 * found["objective"] / found["n_rows"]) ** 0.5 / 2.302585 == pytest.approx(rmse, abs=5e-6)
        assert found["message"].startswith("the rows do not identify E_max;")
        low, high = found["intervals"]["E_max"]
        assert high > 5 * low


def test_at_one_total_size_sparsity_and_active_size_are_one(documents: list[dict[str, Any]]) -> None:
    whole, sparse, active = documents[8:]
    assert {"e", "alpha", "delta"} <= set(re.findall(r"\w+", whole["message"].split(";")[0]))
    assert sparse["objective"] == pytest.approx(active["objective"], rel=0.005)
    assert sparse["parameters"]["lambda"] == pytest.approx(active["parameters"]["alpha"], rel=0.01)
