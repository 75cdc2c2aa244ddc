from typing import Any

import pytest

from isoflop.errors import InputError
from isoflop.planner import dense_params
from isoflop.spec import count
from isoflop.study import Grid, PlannedRun
from isoflop.study.spec import parse_study

BASE: dict[str, Any] = {
    "name": "s",
    "data": {"sources": "python-stdlib"},
    "context": 64,
    "budgets": [1e12, 1e13],
    "architectures": [{"name": "dense"}, {"name": "moe", "experts": {"expansion_rate": 4, "granularity": [1, 4]}}],
    "sizes_per_budget": 3,
}


def grid(**change: Any) -> Grid:
    return Grid(parse_study(BASE | change), vocab_size=257, fingerprint="text")


def rows(runs: list[PlannedRun], loss: Any) -> dict[str, Any]:
    return {run.run_id: {"status": "done", "loss": loss(run)} for run in runs}


def of(runs: list[PlannedRun], architecture: str, budget: float) -> list[PlannedRun]:
    return [run for run in runs if (run.architecture, run.budget) == (architecture, budget)]


def test_all_architectures_stand_on_the_same_shapes_at_equal_flops() -> None:
    runs = grid().expand({})
    assert len(runs) == 2 * 3 * 3
    for budget in (1e12, 1e13):
        shapes = [[run.size for run in of(runs, name, budget)] for name in ("dense", "moe-g1", "moe-g4")]
        assert shapes[0] == shapes[1] == shapes[2]
    for run in runs:
        step = count(run.spec).training_flops_per_token * run.resolved.batch_tokens
        assert run.budget <= run.resolved.flops < run.budget + step
        assert run.resolved.tokens == run.resolved.steps * run.resolved.batch_tokens
    assert len({run.run_id for run in runs}) == len(runs)


def test_sizes_are_around_the_expected_optimum() -> None:
    for ratio in (5, 50):
        runs = of(grid(expected_tokens_per_parameter=ratio).expand({}), "dense", 1e13)
        ratios = [run.resolved.tokens / dense_params(run.spec) for run in runs]
        assert ratios[0] > ratio > ratios[-1]


def test_named_sizes_take_the_place_of_the_grid() -> None:
    runs = grid(params_active={1e12: [6e4, 2e5]}).expand({})
    sizes = [dense_params(run.spec) for run in of(runs, "moe-g1", 1e12)]
    assert len(sizes) == 2
    assert sizes[0] == pytest.approx(6e4, rel=0.15)
    assert sizes[1] == pytest.approx(2e5, rel=0.15)
    assert len(of(runs, "moe-g1", 1e13)) == 3


def test_an_architecture_may_have_its_own_budgets_and_number_of_sizes() -> None:
    arms = [{"name": "dense"}, {"name": "arm", "budgets": [1e13], "sizes_per_budget": 1}]
    runs = grid(architectures=arms).expand({})
    assert not of(runs, "arm", 1e12)
    (run,) = of(runs, "arm", 1e13)
    assert run.size == of(runs, "dense", 1e13)[1].size


def test_run_id_depends_on_what_is_computed_and_on_nothing_else() -> None:
    base = [run.run_id for run in grid().expand({})]
    assert base == [run.run_id for run in grid(training={"checkpoint_seconds": 5, "keep_checkpoints": 3}).expand({})]
    assert base == [run.run_id for run in grid(workers=7, threads_per_run=2, widen=False).expand({})]
    assert base == [run.run_id for run in grid(training={"schedule": "cosine"}).expand({})]
    for change in ({"training": {"learning_rate_multiplier": 2}}, {"context": 128}, {"seeds": [1]}):
        assert not set(base) & {run.run_id for run in grid(**change).expand({})}
    other = Grid(parse_study(BASE), vocab_size=257, fingerprint="other text")
    assert not set(base) & {run.run_id for run in other.expand({})}


def test_run_ids_are_the_same_tomorrow() -> None:
    run = grid(training={"learning_rate": 0.01, "batch_tokens": 2048, "micro_batch": 32}).expand({})[0]
    assert run.run_id == "dense-1e12-d48-l2-s0-e40ea91d"


def test_learning_rate_multipliers_multiply_the_rule() -> None:
    arms = [{"name": "dense"}, {"name": "hot", "learning_rate_multiplier": 3}]
    base = of(grid().expand({}), "dense", 1e12)[0].config.learning_rate
    runs = grid(architectures=arms, training={"learning_rate_multiplier": 0.5}).expand({})
    assert base is not None
    assert of(runs, "dense", 1e12)[0].config.learning_rate == pytest.approx(base / 2, rel=1e-5)
    assert of(runs, "hot", 1e12)[0].config.learning_rate == pytest.approx(base * 1.5, rel=1e-5)


@pytest.mark.parametrize("up", [True, False])
def test_widens_on_the_side_of_the_minimum_up_to_the_limit(up: bool) -> None:
    planner = grid(widen={"sizes": 2})

    def loss(run: PlannedRun) -> float:
        slope = -1 if up else 1
        return 3 + slope * dense_params(run.spec) / 1e9 if (run.architecture, run.budget) == ("moe-g4", 1e13) else 3.0

    runs = planner.expand({})
    group = of(runs, "moe-g4", 1e13)
    partly = rows(runs, loss)
    partly.pop(group[0].run_id)
    assert not [run for run in of(planner.expand(partly), "moe-g4", 1e13) if run.stage == "widened"]
    for added in (1, 2, 2):
        runs = planner.expand(rows(runs, loss))
        wider = of(runs, "moe-g4", 1e13)
        assert [run.stage for run in wider].count("widened") == added
        sizes = [dense_params(run.spec) for run in wider]
        assert sizes == sorted(set(sizes))
        assert (wider[-1] if up else wider[0]).stage == "widened"


def test_does_not_widen_where_the_minimum_is_inside_or_beyond_a_diverged_edge() -> None:
    planner = grid()
    runs = planner.expand({})
    inside = rows(runs, lambda run: 3.0)
    for name in ("dense", "moe-g1", "moe-g4"):
        for budget in (1e12, 1e13):
            inside[of(runs, name, budget)[1].run_id]["loss"] = 2.0
    assert planner.expand(inside) == runs
    top, middle = of(runs, "dense", 1e12)[2], of(runs, "dense", 1e12)[1]
    inside[top.run_id] = {"status": "diverged", "loss": None}
    inside[middle.run_id]["loss"] = 2.5
    assert planner.expand(inside) == runs


def test_extra_seeds_repeat_the_optimum_or_every_size() -> None:
    planner = grid(extra_seeds={"budgets": [1e13], "seeds": [0, 1, 2], "architectures": ["dense"]}, widen=False)
    runs = planner.expand({})
    assert not [run for run in runs if run.stage == "extra_seed"]
    losses = rows(runs, lambda run: 3.0)
    best = of(runs, "dense", 1e13)[1]
    losses[best.run_id]["loss"] = 2.0
    extra = [run for run in planner.expand(losses) if run.stage == "extra_seed"]
    assert [(run.architecture, run.size, run.seed) for run in extra] == [
        ("dense", best.size, 1),
        ("dense", best.size, 2),
    ]
    everything = grid(extra_seeds={"seeds": [5], "sizes": "all"}).expand({})
    assert len([run for run in everything if run.stage == "extra_seed"]) == 18


def test_a_budget_below_one_step_is_named() -> None:
    with pytest.raises(InputError, match=r"budgets: 1e\+06 with dense of d_model"):
        grid(budgets=[1e6]).expand({})


def test_extra_seeds_are_counted_before_their_optimum_is_known() -> None:
    seeded = grid(extra_seeds={"seeds": [1, 2], "budgets": [1e12]}, widen=False)
    runs = seeded.expand({})
    to_come = seeded.extra_seeds_to_come({})
    assert len(to_come) == 3 * 2
    assert {run.budget for run in to_come} == {1e12}
    for run in to_come:
        assert run.size == of(runs, run.architecture, 1e12)[1].size
    ended = rows(runs, lambda run: float(run.spec.d_model))
    assert seeded.extra_seeds_to_come(ended) == []
    assert len(seeded.expand(ended)) == len(runs) + len(to_come)
    assert grid().extra_seeds_to_come({}) == []
    assert grid(extra_seeds={"seeds": [1], "sizes": "all"}).extra_seeds_to_come({}) == []  # in the list from the start


def test_budgets_below_the_foot_of_the_ladder_are_warned_of() -> None:
    assert grid().warnings() == []
    (said,) = grid(budgets=[1e9, 1e13]).warnings()
    assert said.startswith("budget 1e9: the smallest model has ")
    assert "tokens per parameter, not 20; the optimum will not be inside the sizes; use budgets from " in said
    enough = float(said.rsplit(" ", 1)[1].rstrip("."))
    assert grid(budgets=[enough]).warnings() == []
    middle = of(grid(budgets=[enough]).expand({}), "dense", enough)[1]
    assert middle.resolved.tokens / dense_params(middle.spec) == pytest.approx(20, rel=0.15)
    assert grid(budgets=[1e9], params_active={1e9: [2e4]}).warnings() == []


def test_a_verification_that_extrapolates_nothing_is_warned_of() -> None:
    (said,) = grid(verification={"flops": 1e13}).warnings()
    assert said.startswith("verification.flops is 1e+13, not above the largest budget (1e+13)")
    assert grid(verification={"flops": 2e13}).warnings() == []


def test_ratios_stand_at_the_flops_of_their_rung() -> None:
    moe = {"name": "moe", "experts": {"expansion_rate": 8, "granularity": 4}}
    sweep = moe | {"name": "sweep", "expert_attention_ratio": [0.5, 1, 2]}
    runs = grid(architectures=[moe, sweep], params_active={1e12: [4e5], 1e13: [8e5]}, widen=False).expand({})
    assert {run.architecture for run in runs} == {"moe", "sweep-r.5", "sweep-r1", "sweep-r2"}
    for budget in (1e12, 1e13):
        (base,) = of(runs, "moe", budget)
        for ratio in (0.5, 1, 2):
            (run,) = of(runs, f"sweep-r{ratio:g}".replace("r0.", "r."), budget)
            found, own = count(run.spec), count(base.spec)
            assert found.expert_attention_ratio == pytest.approx(ratio, rel=0.0202)
            assert found.flops_per_token["total"] == pytest.approx(own.flops_per_token["total"], rel=0.0101)
            assert run.resolved.tokens == pytest.approx(base.resolved.tokens, rel=0.03)
            assert run.spec.n_layers == base.spec.n_layers


def test_a_ratio_that_cannot_be_names_the_architecture() -> None:
    wrong = {"name": "odd", "expert_attention_ratio": 1e-4}
    with pytest.raises(InputError, match=r"odd of d_model \d+: ratio is 0.0001"):
        grid(architectures=[wrong], params_active={1e12: [4e5], 1e13: [8e5]}).expand({})


def test_sizes_that_route_different_shares_of_their_blocks_are_warned_of() -> None:
    mod = {"name": "mod", "depth_routing": {"capacity": 0.25}}
    uneven = grid(architectures=[mod], params_active={1e12: [3e4, 6e4, 1.2e5], 1e13: [2e5]})
    (said,) = [sentence for sentence in uneven.warnings() if "different shares" in sentence]
    assert said.startswith("mod: its sizes route different shares of their blocks (1 of 2, ")
    even = grid(architectures=[mod], params_active={1e12: [3e4], 1e13: [3e4]})
    assert not [sentence for sentence in even.warnings() if "different shares" in sentence]


def test_a_depth_that_cannot_be_routed_names_the_architecture() -> None:
    mod = {"name": "mod", "depth_routing": {"capacity": 0.25, "every": 9}}
    with pytest.raises(InputError, match=r"architecture mod at budget 1e12: depth_routing.skip_first is 0"):
        grid(architectures=[mod]).expand({})
