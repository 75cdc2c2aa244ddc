"""Plans at a ratio: what is refused, what is not credited, and what is said to be in doubt."""

from dataclasses import replace

import numpy as np
import pytest
from tests.planner.made_up_runs import DENSE, MOE
from tests.planner.made_up_sweeps import FLOPS, TEMPLATES, rows_by_shape, steep_at

from isoflop.errors import InputError
from isoflop.planner import plan
from isoflop.planner.ratio import Allocator


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
