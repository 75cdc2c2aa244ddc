"""docs/results/laws.md: every command runs as written, and gives the figures that stand on the page."""

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

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


NAMES = {"α": "alpha", "β": "beta"}
NUMBER = r"[-−]?(?:\d[\d,]*)?\.?\d+(?:e[-+]?\d+)?[B%]?"
RESAMPLED = 0.02  # relative: the same seed draws otherwise where the last digits of a fit differ


class Printed(NamedTuple):
    """A number of the page and the worth of its last digit."""

    value: float
    digit: float

    def holds(self, found: float, relative: float = 0.0) -> bool:
        """Whether a figure rounds to it, give or take one more unit for another machine's arithmetic."""
        return math.isclose(found, self.value, rel_tol=relative, abs_tol=1.5 * self.digit)


def printed(text: str) -> Printed:
    """A number as the page has it: −.083, 1.29e-05, 783B, 0.47%."""
    plain = text.strip().replace("−", "-").replace(",", "").replace("**", "")
    scale = {"B": 1e9, "%": 0.01}.get(plain[-1], 1.0)
    digits, _, power = plain.rstrip("B%").partition("e")
    scale *= 10.0 ** int(power or 0)
    return Printed(float(digits) * scale, 10.0 ** -len(digits.partition(".")[2]) * scale)


def rows_of(title: str, table: int = 0) -> list[dict[str, str]]:
    """Rows of a table in the section of this title, as cells by their column's heading."""
    section = re.search(rf"^## {re.escape(title)}.*?(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section is not None, title
    block = re.findall(r"(?:^\|.*\n)+", section[0], re.MULTILINE)[table]
    heading, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
    return [dict(zip(heading, line, strict=True)) for line in lines]


def sentence(pattern: str) -> tuple[Printed, ...]:
    """The numbers of a sentence of the page, whose pattern has # in place of each."""
    found = re.findall(re.escape(pattern).replace(r"\#", f"({NUMBER})"), PAGE)
    assert len(found) == 1, pattern
    return tuple(printed(text) for text in (found[0] if isinstance(found[0], tuple) else found))


def check(row: dict[str, str], found: dict[str, float], relative: float = 0.0) -> None:
    """Compare the cells under names of parameters with the figures of a command."""
    cells = {NAMES.get(name, name): text for name, text in row.items() if text}
    shared = cells.keys() & found.keys()
    assert shared, cells
    for name in shared:
        assert printed(cells[name]).holds(found[name], relative), (name, cells[name], found[name])


def check_intervals(row: dict[str, str], found: dict[str, list[float]]) -> None:
    """Compare cells with two ends each."""
    cells = {NAMES.get(name, name): text for name, text in row.items() if "–" in text}
    assert cells.keys() & found.keys(), cells
    for name in cells.keys() & found.keys():
        for text, end in zip(cells[name].split("–"), found[name], strict=True):
            assert printed(text).holds(end, RESAMPLED), (name, cells[name], found[name])


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


def test_the_page_has_no_command_that_is_not_compared(documents: list[dict[str, Any]]) -> None:
    rows = [(found["n_rows"], found["status"]) for found in documents]
    dense, routed = [(240, "converged")] * 2, [(n, "not_identified") for n in (58, 59, 56)]
    step = [(17, "converged")] * 2, [(16, "not_identified")], [(16, "converged")] * 3
    assert rows == [*dense, (245, "converged"), *routed, *step[0], *step[1], *step[2]]


def test_chinchillas_points(documents: list[dict[str, Any]]) -> None:
    huber, errors, intervals, _ = rows_of("Chinchilla's points")
    refit, absolute, all_rows = documents[:3]
    check(huber, refit["parameters"])
    assert printed(huber["objective (sum)"]).holds(refit["objective"])
    assert refit["objective"] <= 0.00101827402
    check(errors, refit["standard_errors"], RESAMPLED)
    check_intervals(intervals, refit["intervals"])
    n_held_out, threshold, rmse = sentence("Fitted without the # runs from # FLOPs on, the law predicts them to #")
    score = refit["holdout"]
    assert n_held_out.value == score["n_held_out"]
    assert threshold.holds(score["threshold"])
    assert rmse.holds(score["rmse"])
    for found, words in ((absolute, ": the published constants"), (all_rows, ". The data term")):
        values = sentence(f"gives E #, A #, B #, α #, β #{words}")
        for name, value in zip(("E", "A", "B", "alpha", "beta"), values, strict=True):
            assert value.holds(found["parameters"][name]), (name, value)
    assert absolute["objective"] <= 1.12949e-7


def test_standard_errors_are_those_of_an_independent_refit(documents: list[dict[str, Any]]) -> None:
    errors = documents[0]["standard_errors"]
    expected = {"A": 116, "alpha": 0.0147, "beta": 0.0208, "E": 0.026}  # of Besiroglu et al. and an independent refit
    assert {name: errors[name] for name in expected} == pytest.approx(expected, rel=0.08)


def test_routed_language_models(documents: list[dict[str, Any]]) -> None:
    rows = rows_of("Routed language models")[::2]  # every other row is the published one
    residuals = sentence("Root mean square residual of log10 loss: #, #, #.")
    for row, residual, found in zip(rows, residuals, documents[3:6], strict=True):
        assert int(row["rows"]) == found["n_rows"]
        check(row, found["parameters"])
        check_intervals({"E_max": row["90% interval of E_max"]}, found["intervals"])
        constants = found["parameters"]
        assert printed(row["N = 10^(−b/c)"]).holds(10 ** (-constants["b"] / constants["c"]))
        assert residual.holds((2 * found["objective"] / found["n_rows"]) ** 0.5 / math.log(10))
        assert found["message"].startswith("the rows do not identify E_max;")
    for name, pattern in (("b", "(b: #, #, #;"), ("c", "; c: #, #, #)")):
        for value, found in zip(sentence(pattern), documents[3:6], strict=True):
            assert value.holds(found["standard_errors"][name], RESAMPLED)


def test_step_law_dense(documents: list[dict[str, Any]]) -> None:
    values, intervals = rows_of("Step Law, dense: 17 cells")
    free, pinned = documents[6:8]
    check(values, free["parameters"])
    assert printed(values["noise of ln loss"]).holds(free["noise"])
    check_intervals(intervals, free["intervals"])
    (rmse,) = sentence("(three largest budgets: #)")
    assert (free["holdout"]["n_held_out"], rmse.holds(free["holdout"]["rmse"])) == (3, True)
    alpha, *ends = sentence("gives α # (# – #) and β")
    beta, *others = sentence(" and β # (# – #) at an objective")
    for name, value, interval in (("alpha", alpha, ends), ("beta", beta, others)):
        assert value.holds(pinned["parameters"][name])
        for end, found in zip(interval, pinned["intervals"][name], strict=True):
            assert end.holds(found, RESAMPLED)
    with_pin, without = sentence("at an objective of # against #: the rows hardly prefer")
    assert with_pin.holds(pinned["objective"])
    assert without.holds(free["objective"])


def test_step_law_moe(documents: list[dict[str, Any]]) -> None:
    whole, by_experts, by_share, active = documents[8:]
    (listed,) = re.findall(r"\*\*not_identified\*\* \(([^)]*)\)", PAGE)
    loose = re.findall(r"\w+", whole["message"].split(";")[0].removeprefix("the rows do not identify "))
    assert listed.split(", ") == [name for name in loose if name != "and"]
    rows = rows_of("Step Law, MoE: 16 cells")
    for row, interval, found in zip(rows[::2], rows[1::2], (by_experts, by_share), strict=True):
        check(row, found["parameters"], 1e-4)  # a long valley, in which the last digits wander
        check_intervals(interval, found["intervals"])
        assert printed(row["objective (sum)"]).holds(found["objective"])
        assert printed(row["noise of ln loss"]).holds(found["noise"])
        assert printed(row["held out"]).holds(found["holdout"]["rmse"])
    assert {name for name, value in by_experts["parameters"].items() if value == 0} == {"a", "d", "delta"}
    e, alpha, beta, objective = sentence("gives E #, α #, β # at an objective of #. The share of idle")
    for name, value in (("E", e), ("alpha", alpha), ("beta", beta)):
        assert value.holds(active["parameters"][name], 1e-4)
    assert objective.holds(active["objective"])
    assert by_share["objective"] == pytest.approx(active["objective"], rel=0.005)
    assert by_share["parameters"]["lambda"] == pytest.approx(active["parameters"]["alpha"], rel=0.01)
    *exponents, low, high = sentence("an exponent of data near # to #, within # to # under")
    for exponent, found in zip(exponents, (by_share, by_experts), strict=True):
        assert exponent.holds(found["parameters"]["beta"])
    betas = [found["intervals"]["beta"] for found in (by_experts, by_share)]
    assert low.holds(min(ends[0] for ends in betas))
    assert high.holds(max(ends[1] for ends in betas))
    better, worse = sentence("with as many parameters: # against #.")
    assert better.holds(by_experts["objective"])
    assert worse.holds(by_share["objective"])


def test_a_wrong_figure_would_be_seen() -> None:
    assert printed("−.08303").holds(-0.083025)
    assert not printed("−.08303").holds(-0.08305)
    assert printed("783B").holds(783.4e9)
    assert not printed("783B").holds(785e9)
    assert not printed("5.63e20").holds(7.9e20)
    assert not printed("2.373e-05").holds(3.694e-05)
