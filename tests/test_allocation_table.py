"""The table of the allocation study: its noise between seeds, and what it writes."""

import importlib.util
import sys
from pathlib import Path

import pytest

from isoflop.laws import ratio_valleys, read_runs

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "docs" / "results" / "allocation-runs.csv"
_spec = importlib.util.spec_from_file_location("allocation_table", ROOT / "studies" / "allocation_table.py")
assert _spec is not None
assert _spec.loader is not None
allocation_table = importlib.util.module_from_spec(_spec)
sys.modules["allocation_table"] = allocation_table
_spec.loader.exec_module(allocation_table)


def test_noise_between_seeds_is_pooled_over_the_cells_of_several_seeds():
    table = allocation_table.sliced(read_runs(RUNS).usable())
    valleys = ratio_valleys(table, by=("slice", "budget"))
    squares, freedom = 0.0, 0
    for name in dict.fromkeys((row["architecture"], row["budget"]) for row in table.rows):
        losses = [row["loss"] for row in table.rows if (row["architecture"], row["budget"]) == name]
        squares += sum((loss - sum(losses) / len(losses)) ** 2 for loss in losses)
        freedom += len(losses) - 1
    every = allocation_table.scatter(table, valleys)
    assert (every.cells, every.freedom) == (42, freedom)
    assert every.noise == pytest.approx((squares / freedom) ** 0.5)
    assert every.noise == pytest.approx(0.0192, abs=5e-5)
    assert allocation_table.scatter(table, valleys, 3e11).noise == pytest.approx(0.0223, abs=5e-5)
    assert allocation_table.scatter(table, valleys, 1e12).noise == pytest.approx(0.0165, abs=5e-5)
    assert allocation_table.scatter(table, valleys, 3e12).freedom == 0
    assert every.by_chance > 0.3  # docs/results/allocation.md: the shape adds nothing that is seen


def test_without_out_nothing_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(allocation_table, "draw", lambda *arguments: drawn.append(arguments[-1]))
    monkeypatch.setattr(sys, "argv", ["allocation_table.py", str(RUNS)])
    allocation_table.main()
    assert "noise between seeds, all budgets: 0.0192" in capsys.readouterr().out
    assert not drawn
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["allocation_table.py", str(RUNS), "--out", "here"])
    allocation_table.main()
    assert drawn == [Path("here")]
