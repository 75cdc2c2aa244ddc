"""The headline's numbers are those of the table, and its words are no stronger than they."""

from pathlib import Path

import numpy as np
import pytest
from tests.report.synthetic_study import EXPANSION, planted_loss, rows, write_study

from isoflop.laws import Fit, RunTable, isoflop_minima
from isoflop.report import view
from isoflop.report.evidence import Evidence, gather
from isoflop.report.headline import headline, rivals, seed_noise, standings, verdict
from isoflop.report.marks import Multiplier, Verified
from isoflop.report.records import StudyRecords
from isoflop.report.style import flops as view_flops


def table(**changes: object) -> RunTable:
    return RunTable([{**row, **changes} for row in rows()])


def minima_of(runs: RunTable) -> list:
    return [minimum for minimum in isoflop_minima(runs) if minimum.curvature is not None]


def test_losses_are_those_of_minima_and_of_best_sizes() -> None:
    runs = table()
    minima = minima_of(runs)
    inside = {(m.architecture, m.budget): m for m in minima if m.inside}
    seen = set()
    for budget, order in standings(runs, minima).items():
        assert [s.loss for s in order] == sorted(s.loss for s in order)
        assert len(order) == 6
        for standing in order:
            own = [r for r in runs.rows if (r["architecture"], r["budget"]) == (standing.architecture, budget)]
            if (standing.architecture, budget) in inside:
                assert standing.loss == inside[standing.architecture, budget].loss
            else:
                sizes = {r["params_active"] for r in own if r["status"] == "done"}
                means = [
                    np.mean([r["loss"] for r in own if r["params_active"] == size and r["loss"]]) for size in sizes
                ]
                assert standing.loss == pytest.approx(min(means))
            seen.add(standing.fitted)
    assert seen == {True, False}


def test_the_sentence_quotes_the_lowest_standing() -> None:
    runs = table()
    minima = minima_of(runs)
    best = standings(runs, minima)[3e13][0]
    said = headline(runs, minima, [], [])
    assert said.sentences[0].startswith(f"At 3e13 FLOPs {best.architecture} has the lowest loss, {best.loss:.4f}")
    assert [row[0] for row in said.rows] == ["1e12", "6e12", "3e13"]


def test_overlap_is_said() -> None:
    runs = table()
    minima = minima_of(runs)
    order = standings(runs, minima)[3e13]
    close = rivals(order)
    assert close is not None
    assert {s.architecture for s in close} >= {"moe-e8-g8"} - {order[0].architecture}
    for other in order[1:]:
        overlaps = other.interval[0] <= order[0].interval[1]  # type: ignore[index]
        assert (other in close) == overlaps
    assert "these runs do not separate them" in headline(runs, minima, [], []).sentences[0]


def test_one_seed_and_no_intervals_leave_it_open() -> None:
    runs = RunTable([row for row in rows(seeds_at_middle=1) if row["budget"] == 1e12 and row["params_active"] < 2e5])
    said = headline(runs, [], [], [])
    assert "open whether the difference is real" in said.sentences[0]
    assert any("one seed" in caveat for caveat in said.caveats)
    assert said.rows[0][3] == "unknown"


def test_a_budget_without_a_parabola_is_a_caveat_too() -> None:
    """Two sizes give no parabola, whichever of them is best."""
    few = [row for row in rows() if row["budget"] != 1e12 or row["params_active"] < 1e5]
    runs = RunTable(few)
    minima = minima_of(runs)
    assert not any(minimum.budget == 1e12 and minimum.architecture == "dense" for minimum in minima)
    (said,) = (caveat for caveat in headline(runs, minima, [], []).caveats if "No minimum is known inside" in caveat)
    assert "dense at 1e12" in said
    inside = next(m for m in minima if m.inside)
    assert f"{inside.architecture} at {view_flops(inside.budget)}" not in said


def test_seed_noise_is_the_pooled_students_interval() -> None:
    from scipy.stats import t

    runs = table()
    cells: dict[tuple, list[float]] = {}
    for row in runs.rows:
        if row["status"] == "done":
            cells.setdefault((row["architecture"], row["budget"], row["params_active"]), []).append(row["loss"])
    spare = sum(len(losses) - 1 for losses in cells.values())
    variance = sum(np.var(losses) * len(losses) for losses in cells.values()) / spare
    assert spare == 24
    assert seed_noise(view.measured(runs)) == pytest.approx(t.ppf(0.95, spare) * np.sqrt(variance))
    assert seed_noise([point for point in view.measured(runs) if point.seeds == 1]) is None


def test_a_router_that_sees_the_future_is_not_compared() -> None:
    leaking = [{**row, "causal": row["architecture"] != "moe-e8-g16", "loss": row["loss"]} for row in rows()]
    runs = RunTable(leaking)
    minima = minima_of(runs)
    assert all(s.architecture != "moe-e8-g16" for order in standings(runs, minima).values() for s in order)
    assert any(
        "moe-e8-g16: the router sees later tokens" in caveat for caveat in headline(runs, minima, [], []).caveats
    )


def test_verification_runs_do_not_stand_at_a_budget_of_their_own() -> None:
    check = {**rows()[0], "budget": 1e14, "stage": "verification", "loss": 1.0}
    assert 1e14 not in standings(RunTable([*rows(), check]), [])


def multiplier(budget: float, value: float, interval: tuple[float, float] | None, **more: bool) -> Multiplier:
    return Multiplier(architecture="moe-e8-g8", budget=budget, value=value, interval=interval, **more)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ((1.5, (1.4, 1.6)), (2.0, (1.8, 2.2)), "it grows over these budgets"),
        ((2.5, (2.4, 2.6)), (2.0, (1.8, 2.2)), "it falls over these budgets"),
        ((1.9, (1.7, 2.1)), (2.0, (1.8, 2.2)), "a trend with budget is not established"),
        ((1.9, None), (2.0, None), "this multiplier has no interval"),
        ((1.9, None), (2.0, None), "says nothing about a trend"),
        ((1.9, (1.7, 2.1)), (1.1, (0.9, 1.3)), "the interval holds 1, so no gain is established"),
        ((1.9, (1.7, 2.1)), (0.7, (0.6, 0.8)), "here the dense model is the better one"),
    ],
)
def test_the_multiplier_is_put_in_words_that_its_interval_allows(first: tuple, last: tuple, expected: str) -> None:
    said = headline(table(), [], [multiplier(1e12, *first), multiplier(3e13, *last)], [])
    assert expected in " ".join(said.sentences)


def test_an_extrapolated_multiplier_says_so_and_an_infinite_one_is_not_quoted() -> None:
    text = " ".join(headline(table(), [], [multiplier(3e13, 3.0, (2.0, np.inf), extrapolated=True)], []).sentences)
    assert "3× [2, ∞]" in text
    assert "extrapolated" in text
    text = " ".join(headline(table(), [], [multiplier(3e13, np.inf, None)], []).sentences)
    assert "a dense model needs" not in text


def check(measured: float | None, interval: tuple[float, float] | None = (2.0, 2.1), error: str = "") -> str:
    return verdict(Verified(label="x", predicted=2.05, interval=interval, level=0.9, measured=measured, error=error))


def test_the_verdict() -> None:
    assert check(2.06).endswith("measured 2.0600 nats/token: inside the interval.")
    assert "outside the interval, 2.00% above its upper end" in check(2.142)
    assert "outside the interval, 5.26% below its lower end" in check(1.9)
    assert "a weak test" in check(2.06, (1.5, 2.6))
    assert "came without an interval" in check(2.06, None)
    assert check(None).endswith("the run has not ended.")
    assert "the run has no loss (loss is NaN)" in check(None, error="loss is NaN")


def planted_optimum(budget: float, granularity: int) -> float:
    """Lowest loss at a budget under the planted law, by brute force over sizes; granularity 0: dense."""
    active = np.geomspace(1e4, 1e8, 2000)
    dense = granularity == 0
    router = 4 * 2 * (active / 24) ** (1 / 3) * EXPANSION * granularity
    total = active if dense else active / 3 + EXPANSION * active * 2 / 3
    tokens = budget / (6 * (active + 3 * router) + 1.5e5)
    return min(planted_loss(n, d, granularity, dense) for n, d in zip(total, tokens, strict=True))


def test_multipliers_find_the_planted_ratio(evidence: Evidence) -> None:
    """Dense FLOPs for the MoE's loss, from isoFLOP minima and from laws, against the planted law by brute force."""
    budgets = np.geomspace(1e12, 3e14, 30)
    dense = -np.array([planted_optimum(budget, 0) for budget in budgets])
    found = {(m.architecture, m.budget): m for m in evidence.multipliers}
    assert len(found) == 15
    for granularity in (1, 4, 8):
        for budget in (1e12, 6e12, 3e13):
            same = np.exp(np.interp(-planted_optimum(budget, granularity), dense, np.log(budgets)))
            point = found[f"moe-e8-g{granularity}", budget]
            assert point.value == pytest.approx(same / budget, rel=0.04)
            assert point.interval is not None
            assert point.interval[0] < point.value < point.interval[1]
            assert point.extrapolated == (point.value * budget > 3.003e13)


def test_predictions_are_those_of_the_fits(study: Path, evidence: Evidence) -> None:
    document = StudyRecords.open(study).fits
    assert document is not None
    moe = Fit.from_dict(document["laws"][1])
    own = np.flatnonzero(np.array(view.names(evidence.runs)) == "moe-e8-g4")
    assert evidence.predicted is not None
    np.testing.assert_allclose(evidence.predicted[own], moe.predict(evidence.runs.take(own)), rtol=1e-12)
    residual = (view.numbers(evidence.runs, "loss") - evidence.predicted)[view.finished(evidence.runs)]
    assert np.sqrt(np.mean(residual**2)) < 0.01  # the planted noise is 0.004


def test_curves_follow_the_planted_frontier(evidence: Evidence) -> None:
    assert [curve.architecture for curve in evidence.curves] == [a.name for a in evidence.architectures]
    for curve, granularity in zip(evidence.curves[:4], (0, 1, 2, 4), strict=True):
        assert (np.diff(curve.loss) < 0).all()
        for index in (0, 30):
            assert curve.loss[index] == pytest.approx(planted_optimum(curve.flops[index], granularity), abs=0.02)


def test_a_study_without_dense_runs_has_no_multiplier(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", [r for r in rows() if r["architecture"] != "dense"], run_files=False)
    evidence = gather(StudyRecords.open(directory))
    assert not evidence.multipliers
    assert "no dense architecture" in evidence.multipliers_missing
