"""Integer models that hardware likes, comparisons with dense models, and the time of narrow experts."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.planner.made_up_runs import DENSE, MOE

from isoflop import count, laws
from isoflop.errors import InputError
from isoflop.planner import HARDWARE, Machine, SpeedTable, Template, ladder, load_speed, plan

E64 = "krajewski-2024-e64"
BOTH = {name: laws.published(name) for name in (E64, "krajewski-2024-dense")}
SLOW = SpeedTable(name="slow", command="made up", d_expert=(8.0, 512.0), relative=(0.1, 1.0))


@pytest.mark.parametrize("multiple", [8, 64, 128])
@pytest.mark.parametrize("granularity", [1, 4, 16])
def test_aligned_widths(multiple, granularity):
    moe = Template(vocab_size=256, context=128).with_experts("moe", granularity=granularity, expansion_rate=8)
    aligned = moe.aligned(multiple, None)
    rungs = ladder(aligned, largest=3e9)
    assert len(rungs) > 8
    for spec in rungs:
        assert spec.d_model % multiple == 0
        assert spec.feed_forward.d_ff % multiple == 0
        assert spec.d_expert % multiple == 0
        if multiple >= 64:
            assert spec.attention.head_dim in (64, 128)
            assert spec.attention.head_dim == 128 or spec.d_model < 2048 or spec.d_model % 128
    assert moe.aligned(None, None) == moe
    assert {spec.attention.head_dim for spec in ladder(moe.aligned(64, 128), largest=3e9)} == {128}
    with pytest.raises(InputError, match="multiple is 0"):
        moe.aligned(0, None)


def test_models_to_build_are_counted_exactly_and_predicted_by_the_law():
    found = plan(flops=1.93e20, law=E64, context=256)
    law = laws.published(E64)
    assert found.to_train == found.models[0]
    assert {row.architecture for row in found.models} == {row.architecture for row in found.table[:3]}
    for row in found.models:
        counted = count(row.spec, convention="krajewski")
        assert (row.params_total, row.params_active) == (counted.params_total, counted.params_active)
        assert row.flops == pytest.approx(counted.training_flops_per_token * row.tokens)
        assert 1.93e20 - counted.training_flops_per_token < row.flops <= 1.93e20
        columns = {
            "params_total": counted.params_total - counted.params_router,
            "granularity": row.granularity,
            "tokens": row.tokens,
        }
        assert row.loss == pytest.approx(float(law.predict(columns)[0]))
    document = found.to_dict()
    assert document["models"][0]["loss_difference"] == pytest.approx(found.models[0].loss - found.best.loss)
    assert abs(document["models"][0]["loss_difference"]) < 0.002
    assert document["best"]["spec"] == document["models"][0]["spec"]


def test_a_gpu_gets_multiples_of_64_and_says_so():
    machine = Machine(hardware=HARDWARE["h100-sxm"])
    found = plan(flops=1e21, law=E64, machine=machine)
    assert all(row.d_model % 64 == 0 and row.d_expert % 64 == 0 for row in found.models)
    assert any("multiples of 64" in note for note in found.notes)
    wide = plan(flops=1e21, law=E64, machine=machine, multiple=128, head_dim=128)
    assert all(row.d_model % 128 == 0 and row.spec.attention.head_dim == 128 for row in wide.models)
    assert not any("multiples of" in note for note in wide.notes)
    assert any(row.d_expert % 64 for row in plan(flops=1e21, law=E64).models)


@pytest.mark.parametrize("name", ["ludziejewski-2025", "besiroglu-2024"])
def test_models_of_laws_whose_n_holds_the_embedding(name):
    found = plan(flops=1e20, law=name)
    assert found.best.with_embedding
    for row in found.models:
        if row.architecture != found.best.architecture:
            continue
        everything = row.params_active + row.params_embedding
        assert everything == pytest.approx(found.best.params_active, rel=0.35)
        assert row.flops == pytest.approx(1e20, rel=1e-6)
        router = count(row.spec).params_router
        assert 6 * everything * row.tokens == pytest.approx(1e20, rel=0.01 + router / everything)
        columns = {"params_total": everything, "params_active": everything, "tokens": row.tokens}
        columns["expansion_rate"] = row.expansion_rate
        assert row.loss == pytest.approx(float(laws.published(name).predict(columns)[0]))
    assert found.models[0].loss == pytest.approx(found.best.loss, abs=1e-3)


def test_the_dense_model_of_the_fine_grained_paper_needs_18_times_the_flops():
    found = plan(flops=1e20, law=BOTH).against_dense
    assert (found.dense, found.moe) == ("dense", "moe-e64-g16")
    assert found.multiplier.value == pytest.approx(18.3, abs=0.1)
    dense = plan(flops=1e20 * found.multiplier.value, law="krajewski-2024-dense").best.loss
    assert dense == pytest.approx(found.multiplier.loss, abs=2e-4)
    assert found.break_even is None
    assert "wins at every budget" in found.message


def test_break_even_is_where_both_plans_are_equally_good():
    dense = replace(laws.published("besiroglu-2024"), name="plain", range={})
    parameters = {"c": 1.8172, "g": 20.0, "a": 2845.0, "b": 2085.43, "gamma": 0.5, "alpha": 0.4, "beta": 0.3658}
    moe = replace(
        laws.published(E64),
        name="mix",
        convention="6ND",
        parameters=parameters,
        range={},
        fixed={"expansion_rate": 8.0},
    )
    both = {"plain": dense, "mix": moe}
    found = plan(flops=1e20, law=both, granularities=[8]).against_dense
    at = found.break_even
    assert at is not None
    losses = [plan(flops=at, law=law, granularities=g).best.loss for law, g in ((dense, None), (moe, [8]))]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
    assert plan(flops=at / 3, law=both, granularities=[8]).best.architecture == "dense"
    assert plan(flops=at * 3, law=both, granularities=[8]).best.architecture == "moe-e8-g8"
    assert found.break_even_supported
    assert "wins from" in found.message


def test_fits_give_the_multiplier_an_interval(fits):
    found = plan(flops=1e14, law=fits, templates=[DENSE, *MOE])
    multiplier = found.against_dense.multiplier
    low, high = multiplier.interval
    assert 1 < low < multiplier.value < high
    assert found.against_dense.moe == found.best.architecture
    dense = plan(flops=1e14 * multiplier.value, law=fits["dense"], templates=[DENSE], spacing=1.1).best
    assert dense.loss == pytest.approx(multiplier.loss, rel=2e-3)
    assert plan(flops=1e14, law=fits["dense"], templates=[DENSE]).against_dense is None


def test_time_wants_wider_experts_than_flops_do():
    machine = Machine(hardware=HARDWARE["cpu"], measured_flops=2e10)
    found = plan(hours=1000, law=E64, machine=machine, speed=SLOW)
    assert found.timed
    by_time, by_flops = found.best_for_time, found.best_for_flops
    assert by_time == found.best
    assert by_time.granularity < by_flops.granularity
    assert by_flops.loss < by_time.loss
    assert by_flops == replace(plan(flops=found.flops, law=E64, machine=machine, speed=SLOW).best)
    for row in found.table:
        assert row.flops * row.slowdown == pytest.approx(found.flops)
        assert row.expense.hours == pytest.approx(1000)
    other = plan(flops=found.flops, law=E64, machine=machine, speed=SLOW)
    assert not other.timed
    assert other.best.expense.hours == pytest.approx(1000 * other.best.slowdown)
    assert other.best_for_time.granularity == by_time.granularity
    assert plan(flops=found.flops, law=E64).best_for_time is None


def test_slowdown_by_hand():
    table = SpeedTable(name="x", command="y", d_expert=(16.0, 64.0), relative=(0.5, 1.0))
    found = table.slowdown(np.array([8.0, 16.0, 32.0, 64.0, 500.0]), np.full(5, 0.6))
    assert found == pytest.approx([1.6, 1.6, 1 + 0.6 * (1 / 0.75 - 1), 1, 1])
    row = plan(flops=1e20, law=E64, granularities=[16], speed=SLOW).best
    d, x = row.d_model, row.n_experts
    share = (48 * d**2 + 14 * d * x) / (72 * d**2 + 14 * d * x)
    speed = np.interp(np.log(4 * d / 16), np.log(SLOW.d_expert), SLOW.relative)
    assert row.slowdown == pytest.approx(1 + share * (1 / speed - 1))


def test_dense_models_are_not_slowed(fits):
    found = plan(flops=1e14, law=fits, templates=[DENSE, *MOE], speed=SLOW)
    for row in found.table:
        assert (row.slowdown == 1) == (row.architecture == "dense" or row.d_expert >= 512)
    assert any(row.slowdown > 1 for row in found.table)


def test_the_shipped_table_says_where_it_comes_from():
    table = load_speed("cpu")
    assert table.d_expert[0] == 8
    assert "benchmarks/expert_speed.py" in table.command
    assert table.relative[0] < table.relative[-1] <= 1.2


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "must hold name, command and rows"),
        ({"name": "a", "command": "b"}, "must hold name, command and rows"),
        ({"name": "a", "command": "b", "rows": []}, "has 0 widths"),
        ({"name": "a", "command": "b", "rows": [{"d_expert": 8, "relative": 0}]}, "positive and finite"),
        (
            {"name": "a", "command": "b", "rows": [{"d_expert": 8, "relative": 1}, {"d_expert": 8, "relative": 1}]},
            "must be positive and rising",
        ),
    ],
)
def test_files_that_hold_no_speeds(document, words, tmp_path):
    file = tmp_path / "speed.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(InputError, match=words):
        load_speed(str(file))
    with pytest.raises(InputError, match=r"speed is 'gpu'; give one of cpu, none, or a \.json file"):
        load_speed("gpu")
