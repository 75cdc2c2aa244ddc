"""Plans of integer models from laws fitted to runs."""

from dataclasses import replace

import numpy as np
import pytest
from tests.planner.made_up_runs import DENSE, MOE, true_loss

from isoflop import count, laws
from isoflop.errors import InputError
from isoflop.planner import Machine, Template, hardware, ladder, plan
from isoflop.spec import parse_spec, spec_to_dict


def test_the_best_model_is_the_best_of_all_candidates(fits):
    """Against a plain loop over the ladder, with the law's own prediction."""
    found = plan(flops=1e14, law=fits, templates=[DENSE, *MOE])
    losses = {}
    for template in (DENSE, *MOE):
        for spec in ladder(template, largest=1e8):
            counted = count(spec)
            columns = {
                "params_total": counted.params_total,
                "tokens": 1e14 / counted.training_flops_per_token,
                "granularity": spec.experts.granularity if spec.experts else 1,
            }
            losses[spec] = float(fits[template.family].predict(columns)[0])
    best = min(losses, key=losses.get)
    assert found.best.spec == best
    assert found.best.loss == pytest.approx(losses[best], abs=1e-6)
    ranked = [row.loss for row in found.table]
    assert ranked == sorted(ranked)
    near = {spec for spec, loss in losses.items() if loss <= losses[best] + 0.002 - 1e-6}
    assert near <= {row.spec for row in found.near_optimal(0.002)}


def test_rows_are_counted_exactly_and_spend_the_budget(fits):
    for row in plan(flops=3e13, law=fits, templates=[DENSE, *MOE]).table:
        counted = count(row.spec)
        assert row.params_total == counted.params_total
        assert row.params_active == counted.params_active
        assert row.params_embedding == counted.params_embedding
        assert row.tokens * counted.training_flops_per_token == pytest.approx(row.flops, rel=1e-9)
        assert 3e13 - counted.training_flops_per_token < row.flops <= 3e13
        assert isinstance(row.tokens, int)
        assert row.flops_convention == "exact"
        assert row.router == ("none" if row.architecture == "dense" else "token_choice")
        assert parse_spec(spec_to_dict(row.spec)) == row.spec


def test_intervals_hold_the_truth_at_three_times_the_largest_budget(fits):
    best = plan(flops=1e14, law=fits, templates=[DENSE, *MOE]).best
    low, high = best.loss_interval
    assert low < true_loss(count(best.spec), best.tokens, best.granularity, True) < high
    assert low < best.loss < high
    wide = plan(flops=1e14, law=fits, templates=[DENSE, *MOE], level=0.99).best.loss_interval
    assert wide[0] < low < high < wide[1]


def test_moe_beats_dense_where_the_truth_says_so(fits):
    found = plan(flops=1e14, law=fits, templates=[DENSE, *MOE])
    assert found.table[-1].architecture == "dense"
    assert {row.architecture for row in found.table} == {"dense", *(template.name for template in MOE)}
    dense = min(row.loss for row in found.table if row.architecture == "dense")
    assert dense - found.best.loss > 0.05


def test_default_templates_are_what_the_laws_were_fitted_on(fits):
    named = plan(flops=1e14, law=fits, templates=[DENSE, *MOE])
    default = plan(flops=1e14, law={"any": fits["moe-e8"], "other": fits["dense"]}, vocab_size=256, context=128)
    assert {row.architecture for row in default.table} == {row.architecture for row in named.table}
    assert default.best.params_active == pytest.approx(named.best.params_active, rel=0.1)


def test_granularities_are_tried_on_shared_shapes(fits):
    found = plan(flops=1e14, law=fits, templates=[DENSE, MOE[0]], granularities=[2, 32])
    assert {row.architecture for row in found.table} == {"dense", "moe-e8-g2", "moe-e8-g32"}
    shapes = {
        name: {(row.d_model, row.spec.feed_forward.d_ff) for row in found.table if row.architecture == name}
        for name in ("moe-e8-g2", "moe-e8-g32")
    }
    assert shapes["moe-e8-g2"] & shapes["moe-e8-g32"]
    assert all(d_ff % 128 == 0 for _, d_ff in shapes["moe-e8-g2"])


def test_values_beyond_the_runs_are_said(fits):
    found = plan(flops=3e13, law=fits, templates=[DENSE, MOE[0]], granularities=[4, 16, 32])
    assert found.warnings == ("granularity 16, 32 is outside 1 to 8, where the fit has runs: an extrapolation.",)
    assert plan(flops=3e13, law=fits, templates=[DENSE, MOE[0]], granularities=[4, 8]).warnings == ()


def test_a_fit_is_asked_for_the_granularities_of_its_rows():
    law = laws.published("krajewski-2024-e64")
    rows = [
        {"params_total": n, "params_active": n / 43, "tokens": d, "flops": 6 * n / 43 * d, "granularity": g}
        | {"expansion_rate": 64, "flops_convention": "6ND"}
        for n in (1e9, 3e9, 1e10)
        for d in (1e9, 4e9, 16e9)
        for g in (2, 4, 16)
    ]
    loss = law.form.predict({name: np.array([row[name] for row in rows]) for name in law.form.columns}, law.parameters)
    fit = laws.fit([{**row, "loss": float(each)} for row, each in zip(rows, loss, strict=True)], "fine-grained")
    found = plan(flops=1e19, law=fit)
    assert {row.granularity for row in found.table} == {2, 4, 16}
    assert {row.expansion_rate for row in found.table} == {64}
    assert not any("granularity" in sentence for sentence in found.warnings)
    further = plan(flops=1e19, law=fit, granularities=[1, 16, 256])
    assert {row.granularity for row in further.table} == {1, 16, 256}
    warning = next(sentence for sentence in further.warnings if sentence.startswith("granularity"))
    assert warning.endswith("is outside 2 to 16, where the fit has runs: an extrapolation.")
    assert "256" in warning
    assert " 1" in warning


def test_constraints_filter_and_say_their_price(fits):
    free = plan(flops=1e14, law=fits, templates=[DENSE, *MOE])
    limits = {"tokens_available": 1e7, "max_params_total": 2e6}
    capped = plan(flops=1e14, law=fits, templates=[DENSE, *MOE], **limits)
    assert all(row.tokens <= 1e7 for row in capped.table)
    assert all(row.params_total <= 2e6 for row in capped.table)
    for name in limits:
        rest = {key: value for key, value in limits.items() if key != name}
        without = plan(flops=1e14, law=fits, templates=[DENSE, *MOE], **rest)
        assert capped.constraint_costs[name] == pytest.approx(capped.best.loss - without.best.loss)
    assert capped.best.loss > free.best.loss
    small = plan(flops=1e14, law=fits, templates=[DENSE, *MOE], max_params_active=3e5)
    assert all(row.params_active <= 3e5 for row in small.table)


def test_the_smallest_feasible_cap_that_an_error_names_is_feasible(fits):
    with pytest.raises(InputError, match=r"max_params_total is 100, .* at least (\d+)") as caught:
        plan(flops=1e14, law=fits, templates=[DENSE, *MOE], max_params_total=100)
    least = int(str(caught.value).split("at least ")[1].split(",")[0])
    assert plan(flops=1e14, law=fits, templates=[DENSE], max_params_total=least).best.params_total == least


def test_rows_that_cannot_be_told_from_the_best_are_named(fits):
    found = plan(flops=1e14, law=fits, templates=[DENSE, *MOE])
    leaders = {row.architecture: row for row in reversed(found.table)}
    best = found.best
    law = fits["moe-e8"]

    def drawn(row):
        name = "dense" if row.architecture == "dense" else "moe-e8"
        columns = {"params_total": row.params_total, "tokens": row.tokens, "granularity": row.granularity}
        return fits[name].predict_draws(columns)[:, 0]

    tied = {
        name
        for name, row in leaders.items()
        if name != best.architecture and np.quantile(drawn(row) - drawn(best), 0.05) <= 0
    }
    assert set(found.ties) == tied
    assert "dense" not in tied
    told = next(note for note in found.notes if "at the 90% level" in note)
    assert all(name in told for name in (*tied, best.architecture))
    loose = {name: replace(fit, draws=_widened(fit)) for name, fit in fits.items()}
    unsure = plan(flops=1e14, law=loose, templates=[DENSE, *MOE])
    assert set(unsure.ties) == leaders.keys() - {best.architecture}
    assert unsure.to_dict()["ties"] == list(unsure.ties)
    assert plan(flops=1e14, law={**fits, "moe-e8": replace(law, draws={})}, templates=[DENSE, *MOE]).ties is None


def _widened(fit):
    """Draws so far from each other that they order nothing."""
    rng = np.random.default_rng(0)
    sizes = {name: rng.uniform(0.5, 2.0, len(values)) for name, values in fit.draws.items()}
    return {name: values * sizes[name] for name, values in fit.draws.items()}


def test_curves_hold_the_rows(fits):
    found = plan(flops=1e14, law=fits, templates=[DENSE, *MOE])
    assert found.curves[0].architecture == found.best.architecture
    for curve in found.curves:
        rows = [row for row in found.table if row.architecture == curve.architecture]
        assert curve.loss.min() == pytest.approx(min(row.loss for row in rows))
        assert rows[0].params_active in curve.params_active


def test_warnings_of_the_fit(fits):
    far = plan(flops=1e16, law=fits, templates=[DENSE, *MOE])
    assert any("extrapolation" in sentence and "lops" in sentence for sentence in far.warnings)
    doubtful = replace(fits["dense"], status="not_identified", message="B and beta are not told apart.", draws={})
    found = plan(flops=1e13, law=doubtful, templates=[DENSE])
    assert found.best.loss_interval is None
    assert any("not_identified" in sentence for sentence in found.warnings)
    assert any("no prediction interval" in sentence for sentence in found.warnings)
    assert plan(flops=3e13, law=fits, templates=[DENSE, *MOE]).warnings == ()


def test_a_doubtful_law_of_any_row_is_said_first(fits):
    doubtful = replace(fits["moe-e8"], status="not_identified", message="b and beta are not told apart")
    for name in ("dense", "moe-e8"):
        other = {"dense": "moe-e8", "moe-e8": "dense"}[name]
        laws_used = {name: replace(fits[name], status="failed", message="no minimum"), other: fits[other]}
        first = plan(flops=1e16, law=laws_used, templates=[DENSE, *MOE]).warnings[0]
        assert "has status failed: no minimum." in first
        assert ("dense" in first) == (name == "dense")
    both = plan(flops=1e13, law={"dense": fits["dense"], "moe-e8": doubtful}, templates=[DENSE, MOE[0]])
    assert both.warnings == ("The law behind moe-e8-g1 has status not_identified: b and beta are not told apart.",)


def test_a_converged_fit_whose_constants_are_hardly_known_is_said(fits):
    draws = fits["dense"].draws
    loose = {
        name: values * (np.geomspace(0.01, 100, len(values)) if name == "B" else 1) for name, values in draws.items()
    }
    found = plan(flops=1e13, law=replace(fits["dense"], draws=loose), templates=[DENSE])
    assert any(
        said.startswith("Of the law behind dense, the interval of B spans over two decades") for said in found.warnings
    )


def test_a_template_without_a_law_is_left_out_and_the_others_are_planned(fits):
    stranger = DENSE.with_experts("stranger", granularity=2, expansion_rate=4)
    odd = replace(DENSE, name="odd", head_dim=94, queries_per_kv=1000)
    found = plan(flops=1e13, law=fits, templates=[stranger, DENSE, odd, MOE[0]])
    alone = plan(flops=1e13, law=fits, templates=[DENSE, MOE[0]])
    assert [row.loss for row in found.table] == [row.loss for row in alone.table]
    assert len(found.warnings) == 2
    assert found.warnings[0].startswith("template stranger is left out: law has dense, moe-e8, of which none holds")
    assert found.warnings[1].startswith("template odd is left out: head_dim 94")
    with pytest.raises(InputError, match="none holds for template stranger"):
        plan(flops=1e13, law=fits, templates=[stranger, odd])


def test_a_family_that_the_limits_leave_nothing_of_is_named(fits):
    least = plan(flops=1e14, law=fits["dense"], templates=[DENSE], max_params_total=1e4).best.params_total
    found = plan(flops=1e14, law=fits, templates=[DENSE, MOE[0]], max_params_total=least)
    assert "No model of moe-e8-g1 fits the budget and its limits." in found.warnings


def test_a_loss_worse_than_guessing_is_said(fits):
    tiny = replace(DENSE, vocab_size=4)
    found = plan(flops=1e13, law=fits["dense"], templates=[tiny])
    assert found.best.loss > np.log(4)
    assert "worse than guessing among 4 tokens" in found.warnings[0]
    assert "a budget of 1e13 FLOPs is too small for law chinchilla" in found.warnings[0]


def test_the_published_law_on_integer_models_leaves_the_router_out_of_n():
    template = Template(vocab_size=50257, context=256, activation="relu").with_experts(
        "moe", granularity=16, expansion_rate=64
    )
    best = plan(flops=1.93e20, law="krajewski-2024-e64", templates=[template]).best
    assert best.loss == pytest.approx(2.491, abs=0.004)
    counted = count(best.spec)
    columns = {
        "params_total": counted.params_total - counted.params_router,
        "tokens": best.tokens,
        "granularity": 16,
    }
    assert best.loss == pytest.approx(float(laws.published("krajewski-2024-e64").predict(columns)[0]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"templates": []}, "templates is empty, but convention exact"),
        ({"templates": [DENSE, DENSE]}, "'dense' twice"),
        ({"templates": [DENSE.with_experts("x", granularity=2, expansion_rate=4)]}, "none holds for template x"),
        ({"flops": 1e4}, "flops is 1e4; not even the smallest candidate, of 8272 active parameters, .* 128 tokens"),
        ({"tokens_available": 100}, "tokens_available is 100, which leaves no candidate; allow at least 128"),
        ({"convention": "6ND"}, "counts FLOPs as exact"),
        ({"granularities": [0]}, "granularities is .*whole numbers from 1"),
        ({"spacing": 1.0}, "spacing is 1.0"),
    ],
)
def test_wrong_input_names_argument_and_value(fits, change, words):
    with pytest.raises(InputError, match=words):
        plan(**{"flops": 1e13, "law": fits, "templates": [DENSE, *MOE], **change})


def test_one_law_for_other_experts_is_refused(fits):
    with pytest.raises(
        InputError, match=r"template moe-e8-g1 has expansion_rate 8; law chinchilla holds for .* 1 alone"
    ):
        plan(flops=1e13, law=fits["dense"], templates=[MOE[0]])


def test_template_like_a_spec_gives_the_spec_back():
    origin = replace(MOE[2], queries_per_kv=2, head_dim=16, qk_norm=True, rope_theta=5e4)
    spec = next(spec for spec in ladder(origin, largest=1e6) if spec.d_model == 64)
    assert spec.attention.kv_heads == 2
    template = replace(Template.like(spec, "mine"), granularities=origin.granularities)
    assert spec in ladder(template, largest=1e6)


def test_sizes_and_tokens_far_beyond_the_runs_are_said(fits):
    law = fits["dense"]
    sizes, tokens = law.runs.numeric("params_total"), law.runs.numeric("tokens")
    far = plan(flops=1e17, law=law, templates=[DENSE])
    assert far.best.params_total > 10 * sizes.max()
    said = [sentence for sentence in far.warnings if sentence.startswith("params_total")]
    assert said == [
        f"params_total {laws.exponent(far.best.params_total)} is outside {laws.exponent(sizes.min())} to "
        f"{laws.exponent(sizes.max())}, where the fit has runs, by more than 10 times: an extrapolation."
    ]
    few = plan(flops=3e13, law=law, templates=[DENSE], tokens_available=tokens.min() / 20)
    assert any(sentence.startswith("tokens") and "more than 10 times" in sentence for sentence in few.warnings)
    near = plan(flops=5e14, law=law, templates=[DENSE])
    assert sizes.max() < near.best.params_total < 10 * sizes.max()
    assert not any(sentence.startswith(("params_", "tokens")) for sentence in near.warnings)


def test_what_binds_is_blamed_for_a_loss_worse_than_guessing():
    found = plan(flops=1e21, law="besiroglu-2024", tokens_available=1e6)
    assert found.best.loss > np.log(50257)
    assert "that is because of tokens_available, not of the budget" in found.warnings[0]


@pytest.mark.parametrize("flops", [1.01e30, 1e40, 1e300])
def test_budgets_that_nobody_has_are_refused(flops):
    with pytest.raises(InputError, match=r"flops is .*; it must be positive and at most 1e30 FLOPs"):
        plan(flops=flops, law="hoffmann-2022")
    with pytest.raises(InputError, match=r"hours is 1e\+20, which are .* FLOPs; at most 1e30 are allowed"):
        plan(hours=1e20, law="hoffmann-2022", machine=Machine(hardware=hardware("h100-sxm")))


def _rows(**columns):
    grid = [(n, d) for n in (1e8, 3e8, 1e9) for d in (2e9, 8e9, 32e9)]
    return [{"params_total": n, "tokens": d, "loss": 1.7 + 400 / n**0.33 + 2000 / d**0.37, **columns} for n, d in grid]


def test_a_law_of_mixed_experts_plans_nothing_dense():
    mixed = [*_rows(expansion_rate=8, granularity=1), *_rows(expansion_rate=4, granularity=1)]
    mixed = [{**row, "params_active": row["params_total"] / 3} for row in mixed]
    law = laws.fit(laws.RunTable(mixed), "chinchilla")
    with pytest.raises(InputError, match=r"fitted to rows with expansion_rate 4, 8, which it does not read"):
        plan(flops=1e20, law=law)
    one = laws.fit(laws.RunTable(mixed).where(expansion_rate=8), "chinchilla")
    assert plan(flops=1e20, law=one).best.architecture == "moe-e8-g1"


def test_fits_of_different_tables_are_said():
    one = laws.fit(laws.RunTable(_rows(), source="a.csv"), "chinchilla")
    other = laws.fit(laws.RunTable(_rows(), source="b.csv"), "chinchilla")
    found = plan(flops=1e20, law={"one": one, "other": other})
    said = [sentence for sentence in found.warnings if "different tables (a.csv, b.csv)" in sentence]
    assert len(said) == 1
    again = laws.fit(laws.RunTable(_rows(), source="a.csv"), "chinchilla")
    assert not any("different tables" in each for each in plan(flops=1e20, law={"1": one, "2": again}).warnings)


def test_a_ranking_by_laws_that_the_runs_do_not_identify_is_not_told_apart(fits):
    loose = {name: replace(fit, status="not_identified", message="g is open") for name, fit in fits.items()}
    found = plan(flops=1e13, law=loose, templates=[DENSE, *MOE])
    assert found.ties is None
    assert any(sentence.startswith("which architecture is the best is not known") for sentence in found.notes)
    assert "do not identify the law behind dense and moe-e8" in found.against_dense.message
