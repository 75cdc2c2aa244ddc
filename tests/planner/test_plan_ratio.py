"""The expert–attention ratio of plans: what is moved, what is held, and that nothing is counted twice."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.planner.made_up_runs import DENSE, MOE

from isoflop import count, laws
from isoflop.errors import InputError
from isoflop.planner import plan, realise
from isoflop.planner.ratio import Allocator

DEPTH = 0.03
FLOPS = 2e13
LAW = laws.published("li-2026")
TEMPLATES = (DENSE, MOE[0], MOE[2])


def r_star(flops, sparsity):
    return float(laws.Allocation().predict({"flops": [flops], "sparsity": [sparsity]}, PLANTED)[0])


PLANTED = {"A": 0.05, "p": -0.6, "B": 0.06, "q": 0.1}


@pytest.fixture(scope="module")
def best():
    """The law of made-up sweeps over r, with a little noise."""
    rng = np.random.default_rng(1)
    rows = [
        {
            "flops": c,
            "budget": c,
            "sparsity": s,
            "context": 128,
            "flops_convention": "exact",
            "expert_attention_ratio": r,
            "loss": 2.5 + DEPTH * np.log(r / r_star(c, s)) ** 2 + 0.002 * rng.standard_normal(),
        }
        for c in (1e12, 1e13, 1e14)
        for s in (0.5, 0.875, 0.96875)
        for r in r_star(c, s) * np.geomspace(0.3, 3, 7)
    ]
    return laws.best_ratio_of(laws.ratio_valleys(laws.RunTable(rows)), draws=40, source="sweeps")


@pytest.fixture(scope="module")
def base(fits):
    return plan(flops=FLOPS, law=fits, templates=TEMPLATES)


def rows_by_shape(found):
    return {(row.architecture, row.realised.base if row.realised else row.model): row for row in found.table}


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


VALLEY = {
    **{"e": 1.0, "a": 30.0, "b": 20.0, "c": 2.0, "v": 0.04, "alpha": 0.3, "beta": 0.25, "gamma": 0.4, "lambda": 0.1},
    **{"rho": 1.1, "sigma": 0.05},
}


@pytest.fixture(scope="module")
def valley_fit():
    """Runs of a law that reads the ratio, of all its columns."""
    rng = np.random.default_rng(0)
    rows = []
    for c in (1e12, 1e13, 1e14):
        for size in np.sqrt(c / 600) * np.geomspace(0.3, 3, 4):
            for sparsity in (0.0, 0.5, 0.875, 0.96875):
                for ratio in np.geomspace(0.3, 5, 5):
                    row = {
                        "params_active": size,
                        "params_total": size / (1 - sparsity) ** 0.8,
                        "tokens": c / (6 * size),
                        "sparsity": sparsity,
                        "expansion_rate": 1 / (1 - sparsity),
                        "granularity": 4 if sparsity else 1,
                        "expert_attention_ratio": ratio,
                        "flops": c,
                        "flops_convention": "exact",
                    }
                    loss = laws.AllocationLoss().predict(
                        {name: np.array([v]) for name, v in row.items() if name != "flops_convention"}, VALLEY
                    )
                    rows.append({**row, "loss": float(loss[0]) * np.exp(0.001 * rng.standard_normal())})
    return laws.fit(laws.RunTable(rows), "allocation-loss", bootstrap=40)


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


def test_an_r_star_at_an_end_of_the_ratios_of_the_runs_is_told(valley_fit):
    far = replace(valley_fit, parameters={**valley_fit.parameters, "rho": 4.0}, draws={})
    found = plan(flops=FLOPS, law=far, templates=[MOE[2]], ratio="best")
    assert found.allocation.at_end
    assert found.allocation.best == pytest.approx(5.0, rel=1e-6)
    held = "r* is held at 5, the largest of the ratios that were run (0.3 to 5): a better one may lie beyond."
    assert held in found.warnings
    inside = plan(flops=FLOPS, law=valley_fit, templates=[MOE[2]], ratio="best")
    assert not inside.allocation.at_end
    assert not any("is held at" in sentence for sentence in inside.warnings)


def steep_at(middle):
    """Runs at a tenth to ten times these FLOPs, from r = 0.25 to 4; their law sends r* beyond 4 at the plan's 2e13."""
    rng, rows = np.random.default_rng(5), []
    for c in (middle / 10, middle, middle * 10):
        for s in (0.5, 0.875, 0.96875):
            for r in (0.25, 0.45, 0.8, 1.4, 2.4, 4.0):
                off = np.log(r) + 0.3 * np.log(1 - s) - 0.4 * np.log(c / middle)
                row = {"flops": c, "budget": c, "sparsity": s, "context": 128, "flops_convention": "exact"}
                loss = 2.5 + 0.02 * off**2 + 0.002 * rng.standard_normal()
                rows.append({**row, "expert_attention_ratio": r, "loss": loss})
    return laws.best_ratio_of(laws.ratio_valleys(laws.RunTable(rows)), source="small runs")


@pytest.fixture(scope="module")
def steep():
    return steep_at(1e11)


def test_a_plan_far_from_the_sweeps_holds_r_star_where_they_were_and_warns(fits, steep):
    found = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=steep, ratio="best")
    said = found.allocation
    assert said.best == pytest.approx(4.0)
    assert said.best_of_law > 8
    assert said.at_end
    assert said.ratio == pytest.approx(4.0, rel=0.0202)
    assert (said.best_interval, said.best_held) == (None, "largest")
    assert "90% at or beyond 4;" in " ".join(said.sentences)
    before = np.log(said.template_ratio / 4) ** 2
    assert said.change == pytest.approx(-steep.depth * before, abs=steep.depth * 0.001)
    warned = " ".join(found.warnings)
    assert "r* = 4 by small runs is an extrapolation far from what was measured" in warned
    assert f"{said.change:+.4f} nats of the loss rest on it" in warned
    assert "r* is held at 4, the largest of the ratios that were run (0.25 to 4): the law says" in warned
    unseen = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=replace(steep, is_visible=False), ratio=3.0)
    assert any("do not show that there is a valley: its depth may be 0" in sentence for sentence in unseen.warnings)
    assert "do not show" not in warned
    near = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=steep)
    assert "held within the ratios that were run, 0.25 to 4, though the law says" in " ".join(near.allocation.sentences)
    assert near.allocation.warnings == ()  # nothing follows it


def test_no_gain_is_credited_outside_of_the_ratios_that_were_run(fits, best):
    narrow = replace(best, range={**best.range, "expert_attention_ratio": (0.7, 1.0)})
    wide = plan(flops=FLOPS, law=fits, templates=[MOE[2]], allocation=best, ratio=0.9)
    found = plan(flops=FLOPS, law=fits, templates=[MOE[2]], allocation=narrow, ratio=0.9)
    assert wide.allocation.template_ratio > 1.2
    optimum = narrow.at(found.best.flops, found.best.sparsity)
    assert found.allocation.change == pytest.approx(optimum.change(1.0, found.allocation.ratio)[0], rel=1e-3)
    assert wide.allocation.change < 3 * found.allocation.change
    assert any("outside of the ratios that were run (0.7 to 1): no saving beyond" in each for each in found.warnings)
    shape = plan(flops=FLOPS, law=fits, templates=[MOE[2]], allocation=narrow).allocation
    assert "costs at least" in " ".join(shape.sentences)
    assert "no ratio beyond 0.7 to 1 was run" in " ".join(shape.sentences)


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


def test_a_family_that_cannot_stand_there_is_named_and_the_others_stay(fits, best):
    coarse = replace(MOE[2], multiple=64, granularities=(MOE[2].experts.granularity,))
    templates = [MOE[0], replace(coarse, name="coarse")]
    laws_of = {**fits, "coarse": fits[MOE[2].family]}
    found = plan(flops=FLOPS, law=laws_of, templates=templates, allocation=best, ratio=0.2)
    assert {row.architecture for row in found.table} == {MOE[0].name}
    (said,) = [sentence for sentence in found.warnings if "stands at the ratio" in sentence]
    assert said.startswith("No model of coarse stands at the ratio, so that it is left out: ratio is 0.2 at")
    with pytest.raises(InputError, match=r"ratio is 0\.2 at"):
        plan(flops=FLOPS, law=laws_of, templates=templates[1:], allocation=best, ratio=0.2)


def test_refusals_are_kept_as_sentences_and_raised_anew(fits, best, base):
    row = next(row for row in base.table if row.n_experts > 1)
    families = {family.name: family for family in base.families}
    allocator = Allocator(asked=900.0, best=best, problem=base.problem, convention="exact", families=families)
    raised = []
    for _ in range(2):
        with pytest.raises(InputError, match="ratio is 900 at") as caught:
            allocator.realised(row, 900.0)
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert str(raised[0]) == str(raised[1])


def test_no_laws_are_one_sentence(best):
    with pytest.raises(InputError, match="law is an empty mapping"):
        plan(flops=FLOPS, law={}, allocation=best)


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


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"ratio": 0.0}, r"ratio is 0; it must be positive and finite\."),
        ({"ratio": "most"}, r"ratio is 'most'; it must be a positive number or best\."),
        ({"allocation": "abnar-2025"}, r"allocation is 'abnar-2025'; published laws of the best ratio: li-2026\."),
        ({"ratio": 900.0}, r"ratio is 900 at .* no model with move width comes within 2% .* the nearest has"),
        ({"ratio": "best", "templates": [DENSE]}, r"ratio is best, but every model is dense, of which li-2026 says"),
    ],
)
def test_what_cannot_be_is_one_sentence(fits, how, sentence):
    with pytest.raises(InputError, match=sentence):
        plan(**{"flops": FLOPS, "law": fits, "templates": TEMPLATES} | how)


def test_a_law_of_the_best_ratio_beside_a_law_that_reads_the_ratio_is_refused(valley_fit, best):
    with pytest.raises(InputError, match="law allocation-loss reads the ratio itself; leave allocation out"):
        plan(flops=FLOPS, law=valley_fit, templates=[MOE[2]], allocation=best)


def test_a_law_measured_on_dense_models_is_applied_to_them(fits, best):
    dense = replace(best, range={**best.range, "sparsity": (0.0, 0.96875)})
    found = plan(flops=FLOPS, law=fits, templates=[DENSE], allocation=dense, ratio="best")
    assert found.best.expert_attention_ratio == pytest.approx(dense.at(found.best.flops, 0.0).ratio, rel=0.03)
    assert "feed-forward / attention" in found.allocation.sentences[0]


def test_a_law_of_the_best_ratio_that_did_not_converge_is_named_first(fits, best):
    doubtful = replace(best, law=replace(best.law, status="not_identified", message="too few rows"))
    for ratio in (None, "best"):
        found = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=doubtful, ratio=ratio)
        said = "The law of the best ratio, from sweeps, has status not_identified: too few rows."
        assert found.warnings[0] == said
        assert found.to_dict()["warnings"][0] == said
    assert not any(
        "status" in each for each in plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=best).warnings
    )


def test_an_r_star_whose_draws_are_all_held_at_an_end_has_no_interval(fits, best):
    high = best.range["expert_attention_ratio"][1]
    for factor, end, words in (
        (100.0, "largest", f"90% at or beyond {high:.3g}"),
        (0.01, "smallest", "90% at or below"),
    ):
        law = replace(
            best.law,
            parameters={**best.law.parameters, "A": best.law.parameters["A"] * factor},
            draws={**best.law.draws, "A": best.law.draws["A"] * factor},
        )
        said = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=replace(best, law=law)).allocation
        assert (said.best_held, said.best_interval, said.at_end) == (end, None, True)
        assert words in " ".join(said.sentences)
    said = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=best).allocation
    assert said.best_held is None


def test_a_ratio_whose_counting_is_not_known_is_told(fits, best):
    for ratio in (None, 0.8):
        found = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=replace(best, convention=None), ratio=ratio)
        assert "sweeps does not say how it counts r: exact is assumed" in " ".join(found.warnings)
    assert "is assumed" not in " ".join(plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=best).warnings)


def test_the_best_of_runs_without_a_valley_is_refused(fits, best):
    unseen = replace(best, is_visible=False)
    with pytest.raises(InputError, match=r"ratio is best, but the runs of sweeps show no valley: .* give a number"):
        plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=unseen, ratio="best")
    shape = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=unseen)
    assert shape.allocation.realised is None


def test_a_gain_over_a_hundred_times_beyond_the_budgets_is_not_credited(fits, base):
    far = steep_at(1e10)
    found = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=far, ratio="best")
    before, said = rows_by_shape(base), found.allocation
    for key, row in rows_by_shape(found).items():
        assert row.loss == before[key].loss
    assert said.change == 0
    assert said.times_beyond == pytest.approx(200, rel=0.05)
    warned, text = " ".join(found.warnings), " ".join(said.sentences)
    assert "r* = 4 by small runs is an extrapolation far from what was measured" in warned
    assert "times the largest that was measured, so that the loss is without what the ratio would gain" in warned
    assert "what the ratio would gain is not credited" in text
    worse = plan(flops=FLOPS, law=fits, templates=TEMPLATES, allocation=far, ratio=0.3).allocation
    assert worse.change > 0
    assert worse.times_beyond is None


def test_far_contexts_are_told_and_absurd_proportions_named(fits, best):
    found = {}
    for context in (128, 32768):
        templates = [replace(template, context=context) for template in MOE]
        found[context] = plan(flops=FLOPS, law=fits, templates=templates, allocation=best, ratio="best")
    near, far = (" ".join(found[context].warnings) for context in (128, 32768))
    said = "r* by sweeps is assumed not to depend on the context: it was measured at 128, and the model has 32768"
    assert said in far
    assert "assumed not to depend" not in near
    assert "proportions" not in near
    far_base = {"law": "krajewski-2024-e64", "flops": 1e20, "granularities": [4], "context": 32768}
    long = plan(**far_base, allocation=best, ratio=4.0)
    spec = long.to_train.spec
    width = spec.experts.top_k * spec.d_expert
    assert width > 16 * spec.d_model
    words = f"d_ff {width:,} is {width / spec.d_model:.3g} times d_model {spec.d_model:,} (usual: 0.25 to 16)"
    assert words in " ".join(long.warnings)
