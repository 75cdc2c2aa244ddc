"""The expert–attention ratio of plans: what is moved, what is held, and that nothing is counted twice."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.planner.made_up_runs import MOE
from tests.planner.made_up_sweeps import DEPTH, FLOPS, TEMPLATES, r_star, rows_by_shape

from isoflop import count, laws
from isoflop.planner import plan, realise


def test_without_a_ratio_the_plan_is_as_it_was_and_says_where_it_stands(fits, base, best):
    found = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=best)
    assert [row.loss for row in found.table] == [row.loss for row in base.table]
    said = found.allocation
    spec = found.to_train.spec
    assert spec.experts is not None
    assert said.ratio == said.template_ratio == count(spec).expert_attention_ratio
    truth = r_star(FLOPS, 0.875)
    assert said.best == pytest.approx(truth, rel=0.1)
    assert said.best_interval[0] < truth < said.best_interval[1]
    assert said.cost == pytest.approx(DEPTH * np.log(said.ratio / truth) ** 2, rel=0.3)
    assert said.cost_interval[0] < said.cost < said.cost_interval[1]
    assert said.realised is None
    assert said.change is None
    assert said.to_best.expert_attention_ratio == pytest.approx(said.best, rel=0.021)
    assert said.extrapolated == ()
    text = " ".join(said.sentences)
    assert f"r = {said.ratio:.3g} (experts / attention, counted as exact)" in text
    assert "r* = " in text
    assert "by sweeps" in text
    assert "ratio best builds it" in text


def test_a_ratio_moves_every_model_at_its_flops_and_tokens(fits, base, best):
    found = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=best, ratio=0.8)
    before = rows_by_shape(base)
    assert all(sum(row.architecture == name for row in found.table) == 4 for name in ("dense", "moe-e8-g1"))
    assert {row.architecture for row in found.table} == {row.architecture for row in base.table}
    for key, row in rows_by_shape(found).items():
        old = before[key]
        assert count(row.model).expert_attention_ratio == pytest.approx(0.8, rel=0.0202)
        assert row.expert_attention_ratio == count(row.model).expert_attention_ratio
        assert row.tokens == old.tokens
        assert row.flops == pytest.approx(old.flops, rel=0.0101)
        assert row.flops == count(row.model).training_flops_per_token * row.tokens
        assert row.params_total == count(row.model).params_total
        assert (row.params_total < old.params_total) == (old.expert_attention_ratio > row.expert_attention_ratio)
    assert found.table == tuple(sorted(found.table, key=lambda row: (row.loss, row.granularity)))
    assert found.to_train.spec is found.best.model
    assert found.best.realised.base in {row.model for row in base.table}


def test_the_loss_is_that_of_the_shape_and_the_valley_not_that_of_the_parameters(fits, base, best):
    """At equal FLOPs a ratio moves the parameters; a law in N would credit them a second time."""
    before = rows_by_shape(base)
    for ratio in (0.7, 3.0):
        found = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=best, ratio=ratio)
        for key, row in rows_by_shape(found).items():
            old = before[key]
            if row.n_experts == 1:  # the law is of experts
                assert row.loss == old.loss
                continue
            optimum = best.at(old.flops, old.sparsity).ratio
            gone, come = (np.log(count(spec).expert_attention_ratio / optimum) for spec in (old.model, row.model))
            assert row.loss - old.loss == pytest.approx(best.depth * (come**2 - gone**2), abs=1e-9)
            assert row.ratio_nats == pytest.approx(row.loss - old.loss)
            low, high = row.loss_interval
            assert low < row.loss < high
            assert high - low >= (old.loss_interval[1] - old.loss_interval[0]) * 0.999
        asked = fits[found.best.template.family].law.form.predict(
            {name: np.array([getattr(found.best, name)]) for name in ("params_total", "granularity", "tokens")},
            fits[found.best.template.family].parameters,
        )
        assert abs(found.best.loss - float(asked[0])) > 0.003  # what the law would say of the moved parameters
    own = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=best, ratio=base.best.expert_attention_ratio)
    there = rows_by_shape(own)[base.best.architecture, base.best.model]
    assert there.model == base.best.model
    assert there.loss == base.best.loss


def test_best_stands_every_mixture_at_its_own_best_ratio_and_leaves_dense_models(fits, base, best):
    found = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=best, ratio="best")
    before = rows_by_shape(base)
    for key, row in rows_by_shape(found).items():
        if row.n_experts == 1:
            assert row == before[key]
            continue
        asked = best.at(before[key].flops, row.sparsity).ratio
        assert count(row.model).expert_attention_ratio == pytest.approx(asked, rel=0.0202)
        assert row.loss < before[key].loss + DEPTH * 0.02**2
    assert (
        "sweeps is a law of experts and says nothing of dense, whose models keep the template's ratio."
        in found.warnings
    )
    said = found.allocation
    assert said.asked == "best"
    assert said.cost == pytest.approx(0, abs=1e-4)
    assert said.change < -0.001
    assert said.change_interval[0] < said.change < said.change_interval[1]
    assert said.to_best is None
    assert f"{said.change:+.4f} nats by the valley" in " ".join(said.sentences)


def test_json_carries_it_all(fits, best):
    found = json.loads(
        json.dumps(
            plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=best, ratio="best").to_dict(), default=str
        )
    )
    said = found["allocation"]
    assert said["asked"] == "best"
    assert said["ratio_convention"] == said["flops_convention"] == "exact"
    assert said["realised"]["moved"]["params_total"] != 1
    assert said["realised"]["expert_attention_ratio"] == said["ratio"]
    assert {"best", "best_interval", "cost", "cost_interval", "change", "scores_share", "context"} <= said.keys()
    assert found["best"]["spec"]["d_model"] == said["realised"]["d_model"]
    assert found["best"]["realised"] == said["realised"]
    assert found["best"]["ratio_nats"] == pytest.approx(said["change"])


def test_context_lowers_the_ratio_and_best_gives_width_back_to_experts(fits, best):
    shares, ratios, widths = [], [], []
    for context in (128, 2048):
        templates = [replace(template, context=context) for template in MOE]
        shape = plan(flops=FLOPS, law=fits, templates=templates, allocation=best)
        shares.append(shape.allocation.scores_share)
        ratios.append(shape.allocation.ratio)
        found = plan(flops=FLOPS, law=fits, templates=templates, allocation=best, ratio="best")
        own, moved = found.best.realised.base, found.best.spec
        widths.append((moved.attention.width / own.attention.width, moved.d_expert / own.d_expert))
        assert count(moved).expert_attention_ratio == pytest.approx(found.allocation.best, rel=0.0202)
        assert moved.context == context
    assert shares[1] > 5 * shares[0]
    assert ratios[1] < ratios[0] / 2
    assert widths[1][0] < 1 < widths[1][1]
    assert widths[1][1] > widths[0][1]
    text = " ".join(shape.allocation.sentences)
    assert "scores grow with context: at 128, where r* was measured, it has r = " in text
    assert "context 2048 (128)" in text


def test_conventions_without_scores_say_so_and_hold_the_exact_flops():
    arguments = {"law": "krajewski-2024-e64", "flops": 1.93e20, "granularities": [16]}
    short, long = (plan(**arguments, context=context) for context in (1024, 32768))
    assert short.best.loss == long.best.loss
    assert long.allocation.ratio < short.allocation.ratio / 3
    text = " ".join(long.allocation.sentences)
    assert "krajewski counts no scores, so that sizes and ranking do not depend on the context" in text
    assert "counted as expert-attention" in text
    assert "interval unknown; extrapolated" in text
    assert "what r = " in text
    assert "is not known: that law says no depth" in text
    found = plan(**arguments, context=32768, ratio="best")
    said = found.allocation
    assert count(found.to_train.spec, convention="expert-attention").expert_attention_ratio == pytest.approx(
        said.best, rel=0.0202
    )
    base, moved = said.realised.base, found.to_train.spec
    totals = [count(spec).flops_per_token["total"] for spec in (base, moved)]
    assert totals[1] == pytest.approx(totals[0], rel=0.0101)
    assert found.to_train.tokens == long.to_train.tokens
    assert found.to_train.loss == long.to_train.loss
    assert said.change is None
    assert said.realised.moved["params_total"] > 1.5
    assert "what the ratio adds is not known" in " ".join(said.sentences)
    times = found.to_train.flops / long.to_train.flops
    assert times > 1.3
    told = [sentence for sentence in found.warnings if "krajewski" in sentence and "FLOPs" in sentence]
    assert len(told) == 1
    assert f"takes {laws.exponent(found.to_train.flops)} FLOPs, {times:.2f} times those of the shape" in told[0]
    assert f"here {laws.exponent(count(moved).training_flops_per_token * found.to_train.tokens)}" in told[0]
    # the ratio is one of attention scores, so that what is built depends on the context
    other = plan(**arguments, context=1024, ratio="best")
    assert other.to_train.params_total != found.to_train.params_total
    for each in (found, other):
        assert "do not depend on the context" not in " ".join(each.allocation.sentences)
    assert any("what the ratio makes of it depend" in note for note in found.notes)
    limited = plan(**arguments, context=32768, memory_per_device=1e15)
    assert "do not depend on the context" not in " ".join(limited.allocation.sentences)


def test_a_law_that_reads_the_ratio_is_asked_about_the_model_itself(valley_fit):
    templates = [MOE[2]]
    shape = plan(flops=FLOPS, law=valley_fit, templates=templates)
    for ratio in (0.6, "best"):
        found = plan(flops=FLOPS, law=valley_fit, templates=templates, ratio=ratio)
        for row in found.table:
            columns = {name: np.array([float(getattr(row, name))]) for name in valley_fit.form.columns}
            assert row.loss == pytest.approx(float(valley_fit.law.predict(columns)[0]), rel=1e-9)
        if ratio == 0.6:
            assert found.best.expert_attention_ratio == pytest.approx(0.6, rel=0.0202)
            assert found.allocation.cost > 0.02
    assert found.best.loss < shape.best.loss
    said = found.allocation
    assert said.law == "law allocation-loss"
    assert said.best_interval[0] < said.best < said.best_interval[1]
    assert said.cost == pytest.approx(0, abs=1e-3)
    assert "which reads r" in " ".join(said.sentences)
    # by hand: the loss of integer models at the shape's FLOPs and tokens over many ratios, evened out by a parabola
    base = said.realised.base
    ratios, losses = np.geomspace(0.8, 4.5, 25), []
    for ratio in ratios:
        spec = realise(base, ratio=float(ratio)).spec
        counted = count(spec)
        values = {
            "params_active": counted.params_active,
            "tokens": found.best.tokens,
            "sparsity": spec.experts.sparsity,
            "expert_attention_ratio": counted.expert_attention_ratio,
            "flops": found.best.flops,
        }
        losses.append(float(valley_fit.law.predict({name: np.array([float(v)]) for name, v in values.items()})[0]))
    square, slope, _ = np.polyfit(np.log(ratios), losses, 2)
    assert said.best == pytest.approx(np.exp(-slope / (2 * square)), rel=0.1)
    # parameters that a larger ratio buys put the best beyond the floor of the valley alone
    floor = np.exp(valley_fit.parameters["rho"] + valley_fit.parameters["sigma"] * np.log(FLOPS / 1e20))
    assert said.best > floor


def test_the_size_of_heads_and_multiples_of_widths_are_kept_at_a_ratio(fits, best):
    arguments = {"law": "krajewski-2024-e64", "flops": 1.93e20, "granularities": [4], "context": 4096}
    for how in ({"head_dim": 64, "multiple": 64}, {"head_dim": 128}, {"multiple": 64}):
        found = plan(**arguments, ratio=2, **how).to_train
        multiple = how.get("multiple", 1)
        assert found.spec.attention.head_dim == how.get("head_dim", found.realised.base.attention.head_dim)
        assert found.spec.d_model % multiple == 0 == found.spec.d_expert % multiple
        assert found.spec.attention.width % multiple == 0
        moved = count(found.spec, convention="expert-attention").expert_attention_ratio
        assert moved == pytest.approx(2, rel=0.0202)


def test_every_ratio_in_json_has_its_convention_beside_it(fits, best):
    found = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=best, ratio=0.8).to_dict()

    def places(value):
        if isinstance(value, dict):
            yield value
            for each in value.values():
                yield from places(each)
        elif isinstance(value, (list, tuple)):
            for each in value:
                yield from places(each)

    known = [each for each in places(found) if "expert_attention_ratio" in each]
    assert len(known) > 5
    assert all("ratio_convention" in each for each in known)


def test_limits_hold_at_the_ratio_and_say_who_is_left_out(fits, best, base):
    limit = base.best.params_total * 1.02
    found = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=best, ratio=2.5, max_params_total=limit)
    assert all(row.params_total <= limit for row in found.table)
    assert any("beyond the limits at the ratio and are left out" in sentence for sentence in found.warnings)
