"""Which run to do next, against planted truths and plain recomputation."""

from dataclasses import replace

import numpy as np
import pytest
from tests.oracles.laplace import jacobian, variance_removed

from isoflop import laws
from isoflop.errors import InputError
from isoflop.planner import laws_of_runs, next_run, plan
from isoflop.planner._decision import effective_variance
from isoflop.planner.next_run import _beyond_sizes

FORM = laws.FineGrained()
TRUTH = {"c": 1.2, "g": 2.0, "a": 18.0, "b": 25.0, "gamma": 0.6, "alpha": 0.2, "beta": 0.22}
RATE = 8
TOTAL = (8 * RATE + 4) / 12
NOISE = 0.004
BUDGET, DECISION = 6e16, 1e18


def runs_of(rng, *, noise=NOISE, budgets=(1e15, 4e15, 1.6e16), repeats=1):
    """IsoFLOP runs of three granularities whose log losses are the truth and noise."""
    budget, granularity, ratio, seed = (
        each.ravel() for each in np.meshgrid(budgets, (1.0, 4.0, 16.0), (5.0, 20.0, 80.0), range(repeats))
    )
    active = np.sqrt(budget / 6 / ratio)
    columns = {
        "params_active": active,
        "params_total": active * TOTAL,
        "tokens": active * ratio,
        "flops": budget,
        "granularity": granularity,
        "expansion_rate": np.full_like(active, RATE),
        "seed": seed.astype(float),
    }
    loss = FORM.predict(columns, TRUTH) * np.exp(noise * rng.standard_normal(len(active)))
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return laws.RunTable(
        {**row, "run_id": f"r{i}", "flops_convention": "6ND", "loss": float(loss[i])} for i, row in enumerate(rows)
    )


def fitted(rng, *, bootstrap=100, **how):
    return laws.fit(runs_of(rng, **how), FORM, bootstrap=bootstrap, huber_delta=None)


def place(choice):
    """The columns of a law at a choice or candidate."""
    return {name: np.array([getattr(choice, name)]) for name in FORM.columns}


@pytest.mark.parametrize("about", ["difference", "loss"])
def test_the_run_it_names_tells_more_for_its_flops_than_random_runs(about):
    """24 simulated sets; what a run tells is taken from the planted truth, which the search does not see."""
    named, random, same_cost, promised, true_cut, spread = [], [], [], [], [], []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        fit = fitted(rng)
        found = next_run(fit, budget=BUDGET, decide_at=DECISION, about=about)
        best = found.best
        asked = jacobian(FORM, place(found.choice), TRUTH, log=False)[0]
        if about == "difference":
            asked = jacobian(FORM, place(found.runner_up), TRUTH, log=False)[0] - asked
        cost = np.append(np.exp(rng.uniform(np.log(1e15), np.log(BUDGET), 100)), np.full(100, best.flops))
        ratio = np.exp(rng.uniform(np.log(5), np.log(80), 200))
        active = np.sqrt(cost / 6 / ratio)
        candidates = {
            "params_total": np.append(active * TOTAL, best.params_total),
            "tokens": np.append(active * ratio, best.tokens),
            "granularity": np.append(rng.choice([1.0, 4.0, 16.0], 200), best.granularity),
        }
        known = {name: fit.runs.numeric(name) for name in FORM.columns}
        removed, before = variance_removed(FORM, TRUTH, runs=known, candidates=candidates, asked=asked, noise=NOISE)
        per_flop = removed / np.append(cost, best.flops) / before
        named.append(per_flop[-1])
        random.append(per_flop[:100].mean())
        same_cost.append(per_flop[100:200].mean())
        promised.append(best.variance_cut)
        true_cut.append(removed[-1] / before)
        spread.append((found.gap_std if about == "difference" else found.choice.loss_std) / np.sqrt(before))
    assert np.mean(named) > 4 * np.mean(random)
    assert np.mean(named) > 1.4 * np.mean(same_cost)
    assert 0.5 < np.mean(promised) / np.mean(true_cut) < 2
    assert 0.8 < np.mean(spread) < 1.25


def test_few_noisy_runs_ask_for_another_and_many_say_stop():
    few = next_run(fitted(np.random.default_rng(1)), budget=BUDGET, decide_at=DECISION, threshold=0.0005)
    assert not few.stop
    assert few.reason.startswith(f"Run {few.best.architecture} with")
    many = fitted(np.random.default_rng(1), noise=0.001, budgets=np.geomspace(1e15, 1e17, 7), repeats=3)
    found = next_run(many, budget=BUDGET, decide_at=DECISION)
    assert found.stop
    assert found.reason.startswith(f"Stop and take {found.choice.architecture}")
    assert found.regret < found.threshold
    assert found.to_dict()["next"] is None
    assert found.regret < few.regret
    assert found.choice.loss_std < few.choice.loss_std


def test_it_stops_where_nothing_affordable_helps():
    fit = fitted(np.random.default_rng(2))
    poor = next_run(fit, budget=9e14, decide_at=DECISION, threshold=1e-9)
    assert poor.stop
    assert poor.candidates == ()
    assert "buy no run as large as the smallest so far, of 1e15" in poor.reason
    demanding = next_run(fit, budget=1e15, decide_at=DECISION, threshold=1e-9, least_cut=0.9)
    assert demanding.stop
    assert "less than 90%" in demanding.reason
    assert demanding.candidates


def test_a_cut_is_what_regression_on_the_noisy_loss_explains():
    """Var(q) less what a line in the run's log loss leaves, with the noise drawn many times over."""
    fit = fitted(np.random.default_rng(3), bootstrap=300)
    found = next_run(fit, budget=BUDGET, decide_at=DECISION, about="loss")
    rng = np.random.default_rng(0)
    parameters = {name: values[:, None] for name, values in fit.draws.items()}
    asked = FORM.predict(place(found.choice), parameters)[:, 0]
    assert len(asked) == found.draws
    for candidate in found.candidates[::6]:
        log_loss = np.log(FORM.predict(place(candidate), parameters)[:, 0])
        seen = np.repeat(log_loss, 400) + found.noise * rng.standard_normal(400 * len(asked))
        repeated = np.repeat(asked, 400)
        explained = np.corrcoef(seen, repeated)[0, 1] ** 2
        assert candidate.variance_cut == pytest.approx(explained, rel=0.05, abs=0.005)
        assert candidate.loss_std_after == pytest.approx(np.std(asked) * np.sqrt(1 - explained), rel=0.02)


def test_the_choice_is_the_plans_and_regret_is_what_the_draws_lose():
    fit = fitted(np.random.default_rng(4), bootstrap=200)
    found = next_run(fit, budget=BUDGET, decide_at=DECISION)
    planned = plan(flops=DECISION, law=fit, granularities=[1, 4, 16], expansion_rates=None)
    assert found.choice.granularity == planned.best.granularity
    assert found.choice.loss == pytest.approx(planned.best.loss, abs=1e-5)
    assert found.choice.params_active == pytest.approx(planned.best.params_active, rel=0.05)
    second = next(row for row in planned.table if row.granularity != planned.best.granularity)
    assert found.gap == pytest.approx(second.loss - planned.best.loss, abs=1e-5)
    # every size and granularity under every draw, moved so that the draws' mean is the fit
    active = found.choice.params_active * np.geomspace(1 / 16, 16, 65)
    losses = []
    for granularity in (1.0, 4.0, 16.0):
        columns = {
            "params_total": active * TOTAL,
            "tokens": DECISION / 6 / active,
            "granularity": np.full_like(active, granularity),
        }
        drawn = fit.predict_draws(columns)
        losses.append(drawn - drawn.mean(axis=0) + fit.predict(columns))
    losses = np.stack(losses)
    own = [1.0, 4.0, 16.0].index(found.choice.granularity)
    lost = losses[own, :, 32] - losses.min(axis=(0, 2))
    assert found.regret == pytest.approx(lost.mean(), rel=0.02)
    assert found.probability_near == pytest.approx(np.mean(lost <= found.threshold), abs=0.02)
    best = np.argmin(losses.min(axis=2), axis=0) == own
    assert found.probability_best == pytest.approx(best.mean(), abs=0.02)


def test_repeated_runs_set_the_threshold():
    repeated = fitted(np.random.default_rng(5), repeats=4)
    found = next_run(repeated, budget=BUDGET, decide_at=DECISION)
    assert found.threshold == pytest.approx(NOISE * found.choice.loss, rel=0.2)
    assert not any("repeats" in sentence for sentence in found.warnings)
    single = next_run(fitted(np.random.default_rng(5)), budget=BUDGET, decide_at=DECISION)
    assert single.threshold == 0.002
    assert any(sentence.startswith("No run repeats another with a different seed") for sentence in single.warnings)


def test_a_run_beyond_the_runs_so_far_is_said():
    fit = fitted(np.random.default_rng(0))
    near = next_run(fit, budget=1e16, decide_at=DECISION)
    assert not any("outside all runs so far" in sentence for sentence in near.warnings)
    assert _beyond_sizes([fit], near.best) == []
    (said,) = _beyond_sizes([fit], replace(near.best, flops=1e18, tokens=1e3))
    assert "tokens 1e3, of " in said
    assert "flops 1e18, of 1e15 to 1.6e16 so far" in said


@pytest.mark.parametrize("varied", ["learning_rate", "seed"])
def test_differences_that_are_not_of_the_seed_are_not_noise(varied):
    """Rows that agree in what the law reads but differ otherwise, by a lot; and rows that no seed tells apart."""
    table = runs_of(np.random.default_rng(5), repeats=3)
    rows = [
        {**row, "loss": row["loss"] * (1 + 0.05 * row["seed"]), "learning_rate": 1e-3 * (1 + row["seed"])}
        for row in table.rows
    ]
    kept = [{name: value for name, value in row.items() if name != "seed"} for row in rows]
    if varied == "learning_rate":
        kept = [{**row, "seed": 0.0} for row in kept]
    fit = laws.fit(laws.RunTable(kept), FORM, bootstrap=60, huber_delta=None)
    found = next_run(fit, budget=BUDGET, decide_at=DECISION)
    assert found.threshold == 0.002
    says = {"learning_rate": "No run repeats another", "seed": "The runs have no column seed, so the noise"}[varied]
    assert any(sentence.startswith(says) for sentence in found.warnings)
    given = next_run(fit, budget=BUDGET, decide_at=DECISION, threshold=0.01)
    assert not any(sentence.startswith(says) for sentence in given.warnings)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_a_run_counts_with_hubers_variance(ratio):
    """E[ψ²] / E[ψ']² by numerical integration."""
    noise = 0.003
    z = np.linspace(-9, 9, 200001)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    psi = np.clip(noise * z, -ratio * noise, ratio * noise)
    inside = np.trapezoid(density * (np.abs(z) < ratio), z)
    by_hand = np.trapezoid(psi**2 * density, z) / inside**2
    assert effective_variance(noise, ratio * noise) == pytest.approx(by_hand, rel=1e-3)
    assert effective_variance(noise, None) == noise**2
    assert effective_variance(0.0, 1e-3) == 0


def test_candidates_are_affordable_and_like_the_runs():
    fit = fitted(np.random.default_rng(6))
    found = next_run(fit, budget=BUDGET, decide_at=DECISION, granularities=[1, 2, 8])
    assert {candidate.granularity for candidate in found.candidates} <= {1, 2, 8}
    scores = [candidate.per_flop for candidate in found.candidates]
    assert scores == sorted(scores, reverse=True)
    for candidate in found.candidates:
        assert 1e15 * 0.999 <= candidate.flops <= BUDGET * 1.001
        assert candidate.flops == pytest.approx(6 * candidate.params_active * candidate.tokens, rel=1e-6)
        assert candidate.params_total == pytest.approx(TOTAL * candidate.params_active)
        assert 4.99 <= candidate.tokens / candidate.params_active <= 80.1
        assert candidate.regret_after <= found.regret
        assert candidate.gap_std_after <= found.gap_std
    assert not any("outside" in sentence for sentence in found.warnings)
    finer = next_run(fit, budget=BUDGET, decide_at=DECISION, granularities=[4, 32])
    assert "granularity 32 is outside 1 to 16, where the fit has runs: an extrapolation." in finer.warnings
    assert max(candidate.flops for candidate in next_run(fit, budget=1e19, decide_at=2e16).candidates) < 2.01e16


def test_dense_and_moe_runs_are_weighed_together():
    """A law of one expansion rate is fitted once for each, and dense stands among the architectures."""
    rng = np.random.default_rng(7)
    moe = runs_of(rng)
    dense = [
        {
            "run_id": f"d{i}",
            "params_active": n,
            "params_total": n,
            "tokens": c / 6 / n,
            "flops": c,
            "granularity": 1.0,
            "expansion_rate": 1.0,
            "flops_convention": "6ND",
            "loss": (1.2 + 21 / n**0.2 + 25 / (c / 6 / n) ** 0.22) * np.exp(NOISE * rng.standard_normal()),
        }
        for i, (c, n) in enumerate((c, np.sqrt(c / 6 / r)) for c in (1e15, 4e15, 1.6e16) for r in (5, 20, 80))
    ]
    fits = laws_of_runs(laws.RunTable([*moe.rows, *dense]), "fine-grained", bootstrap=60)
    assert set(fits) == {"dense", "moe-e8"}
    found = next_run(fits, budget=BUDGET, decide_at=DECISION)
    assert found.choice.architecture.startswith("moe-e8-g")
    assert found.probability_best is not None
    alone = next_run(fits["dense"], budget=BUDGET, decide_at=DECISION)
    assert alone.about == "loss"
    assert alone.runner_up is None
    assert alone.probability_best is None
    assert {candidate.architecture for candidate in alone.candidates} == {"dense"}


def test_a_loose_law_and_a_far_decision_are_said():
    found = next_run(fitted(np.random.default_rng(8)), budget=BUDGET, decide_at=1e19)
    assert any("625 times the largest run" in sentence for sentence in found.warnings)
    one = runs_of(np.random.default_rng(8)).where(granularity=4.0)
    loose = next_run(laws.fit(one, FORM, bootstrap=60), budget=BUDGET, decide_at=1e17)
    assert any("status not_identified" in sentence for sentence in loose.warnings)
    sure = next_run(laws.fit(one, FORM, bootstrap=60), budget=BUDGET, decide_at=1e17, threshold=1.0)
    assert sure.stop
    assert "the runs leave the law loose" in sure.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": 0}, "budget is 0; it must be positive"),
        ({"decide_at": float("inf")}, "decide_at is inf; it must be positive and at most 1e30 FLOPs"),
        ({"threshold": -1.0}, "threshold is -1; it must be positive"),
        ({"least_cut": 1.0}, "least_cut is 1; it must be at least 0 and below 1"),
        ({"about": "size"}, "about is 'size'; allowed: difference, loss"),
        ({"granularities": [0.5]}, r"granularity is \[0.5\]; give at least one number, each at least 1"),
        ({"expansion_rates": [4]}, "expansion_rate is given, but fine-grained does not know it; leave it out"),
    ],
)
def test_wrong_arguments_are_one_sentence(change, words):
    fit = fitted(np.random.default_rng(9), bootstrap=40)
    with pytest.raises(InputError, match=words):
        next_run(fit, **{"budget": BUDGET, "decide_at": DECISION, **change})


def test_a_fit_without_draws_or_rows_to_spare_is_refused():
    table = runs_of(np.random.default_rng(10))
    with pytest.raises(InputError, match="has 0 bootstrap draws; fit with bootstrap=40"):
        next_run(laws.fit(table, FORM), budget=BUDGET, decide_at=DECISION)
    with pytest.raises(InputError, match="fits is an empty mapping"):
        next_run({}, budget=BUDGET, decide_at=DECISION)
    one = laws.fit(table.where(granularity=4.0), "chinchilla", bootstrap=40)
    with pytest.raises(InputError, match="the runs have one architecture"):
        next_run(one, budget=BUDGET, decide_at=DECISION, about="difference")
