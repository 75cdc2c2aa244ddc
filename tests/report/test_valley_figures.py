"""Figures of valleys: every sparsity has its own look, and groups without a valley are told, not drawn."""

import numpy as np
from tests.laws.test_valleys import faint, runs

from isoflop import laws
from isoflop.report.figures import best_ratio_against_budget, valley_curves


def marks(figure):
    """What is drawn with a marker at one point, by its place."""
    (axes,) = figure.axes
    return [line for line in axes.lines if line.get_marker() not in ("None", "") and len(line.get_xdata()) == 1]


def test_sparsities_do_not_share_colour_and_marker():
    sparsities = tuple(1 - 0.9 * 0.7**step for step in range(12))
    valleys = laws.ratio_valleys(faint(0, noise=1e-4, sparsities=sparsities, budgets=(1e12,)), draws=0)
    drawn = marks(best_ratio_against_budget(valleys))
    assert len(drawn) == sum(valley.inside for valley in valleys)
    assert len(drawn) > 8
    assert len({(line.get_markerfacecolor(), line.get_marker()) for line in drawn}) == len(drawn)


def test_hills_and_edges_are_told_and_not_drawn():
    hills = laws.ratio_valleys(runs(np.random.default_rng(0), depth=-0.03))
    figure = best_ratio_against_budget(hills)
    assert marks(figure) == []
    assert [text.get_text() for text in figure.axes[0].texts] == ["not drawn: 9 of 9 groups (9 × a hill)"]
    panels = valley_curves(runs(np.random.default_rng(0), depth=-0.03), hills).axes
    assert all(len(axes.lines) == 1 for axes in panels)  # the runs
    assert all("(a hill)" in axes.get_title(loc="left") + axes.get_title() for axes in panels)
    assert not best_ratio_against_budget(laws.ratio_valleys(runs(np.random.default_rng(0)))).axes[0].texts
