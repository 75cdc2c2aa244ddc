"""A number that follows from a law is not quoted where the law is a guess."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from tests.report.synthetic_study import _row

from isoflop.laws import Fit, RunTable, fit
from isoflop.report.headline import headline
from isoflop.report.trust import doubt, frontier_of, planned_multiplier


@cache
def law(granularity: int, *, too_small: bool = False) -> Fit:
    """The law of one architecture whose sizes lie around the optimum, or all below it."""
    rng = np.random.default_rng(0)
    name, expansion = ("dense", 1) if granularity == 0 else (f"moe-g{granularity}", 8)
    table = [
        _row(name, max(granularity, 1), expansion, budget, 1.1e5 * (budget / 1e12) ** 0.52 * 2**rung, 0, 1e-4, rng)
        for budget in (1e12, 6e12, 3e13)
        for rung in ((-4.5, -4, -3.5, -3) if too_small else (-2, -1, 0, 1, 2))
    ]
    for number, row in enumerate(table):
        row["run_id"] = f"{name}-{number}"
    return fit(RunTable(table), "chinchilla", bootstrap=20, restarts=2)


def loose(found: Fit) -> Fit:
    return replace(found, status="not_identified")


def planned(found: Fit, **change: object) -> dict:
    frontier = frontier_of(found)
    assert frontier is not None
    best = frontier.optimum(3e13)
    loss = best["loss"]
    model = {**best, "flops": 3e13, "granularity": 1, "loss_interval": (loss - 0.01, loss + 0.01)}
    return model | change


def test_a_loose_law_is_doubted_only_outside_the_sizes() -> None:
    inside, outside = frontier_of(loose(law(0))), frontier_of(loose(law(0, too_small=True)))
    sure = frontier_of(replace(law(0, too_small=True), status="converged"))
    assert inside is not None
    assert outside is not None
    assert sure is not None
    assert doubt(inside, "dense", 6e12) == doubt(sure, "dense", 6e12) == ""
    said = doubt(outside, "dense", 6e12)
    assert said.startswith("the law of dense is not identified and puts its optimum at 6e12 FLOPs at ")
    assert "outside of the sizes that were run" in said


def test_the_multiplier_is_that_of_the_planned_model() -> None:
    dense, moe = law(0), law(1)
    model = planned(moe)
    found, reason = planned_multiplier(("dense", dense), ("moe", moe), model, level=0.9)
    assert found is not None
    assert not reason
    assert found.loss == model["loss"]
    frontier = frontier_of(dense)
    assert frontier is not None
    assert frontier.loss(np.array([found.dense_flops]))[0] == pytest.approx(model["loss"], rel=1e-6)
    assert found.interval is not None
    worse, _ = planned_multiplier(("dense", dense), ("moe", moe), model | {"loss": model["loss"] + 0.05}, level=0.9)
    assert worse is not None
    assert worse.value < found.value  # a model that does worse is matched for less


def test_no_multiplier_from_laws_that_guess() -> None:
    dense, moe = law(0), law(1)
    guess = loose(law(0, too_small=True))
    found, reason = planned_multiplier(("dense", guess), ("moe", moe), planned(moe), level=0.9)
    assert found is None
    assert "the law of dense is not identified" in reason
    other = planned(moe)
    other |= {"loss": other["loss"] + 0.5, "loss_interval": (other["loss"] + 0.4, other["loss"] + 0.6)}
    found, reason = planned_multiplier(("dense", dense), ("moe", loose(moe)), other, level=0.9)
    assert found is None
    assert "is not that of the planned model" in reason


def test_the_headline_gives_the_reason_in_place_of_the_number() -> None:
    runs = RunTable([*law(0).runs.rows, *law(1).runs.rows])
    said = headline(runs, [], [], [], multipliers_missing="moe-g1 at 1e12 FLOPs, because the law is a guess.")
    assert any(sentence.startswith("How many FLOPs a dense model needs") for sentence in said.sentences)
    alone = headline(law(0).runs, [], [], [], multipliers_missing="x.")
    assert not any("How many FLOPs" in sentence for sentence in alone.sentences)
