"""Figures of a plan show the plan's own numbers, whatever laws it was made with."""

import numpy as np
import pytest
from tests.planner.made_up_runs import DENSE, MOE, true_loss

from isoflop import count, laws
from isoflop.errors import InputError
from isoflop.planner import expected_optimum, plan, sizes_around
from isoflop.report import plan_figures, write_plan_figures
from isoflop.report._plan_families import families_of
from isoflop.report.style import NARROW

LAW = "krajewski-2024-e64"


@pytest.fixture(scope="module")
def published():
    return plan(flops=1.93e20, law=LAW)


@pytest.fixture(scope="module")
def fits():
    """Laws of made-up isoFLOP runs, dense and fine-grained of E = 8, with one irreducible loss."""
    rng = np.random.default_rng(0)
    rows = []
    for budget in (1e12, 5e12, 3e13):
        for template in (DENSE, *MOE):
            for spec in sizes_around(template, expected_optimum(budget, template=DENSE), 4):
                counted = count(spec)
                tokens = budget / counted.training_flops_per_token
                granularity, rate = (spec.experts.granularity, 8) if spec.experts else (1, 1)
                rows.append(
                    {
                        "run_id": f"r{len(rows)}",
                        "params_total": counted.params_total,
                        "params_active": counted.params_active,
                        "tokens": tokens,
                        "flops": budget,
                        "flops_convention": "exact",
                        "granularity": granularity,
                        "expansion_rate": rate,
                        "loss": true_loss(counted, tokens, granularity, rate > 1)
                        * np.exp(0.002 * rng.standard_normal()),
                    }
                )
    table = laws.RunTable(rows)
    groups = {
        "dense": (table.where(expansion_rate=1), "chinchilla"),
        "moe-e8": (table.where(expansion_rate=8), "fine-grained"),
    }
    return laws.fit_shared(groups, bootstrap=60).fits


@pytest.fixture(scope="module")
def fitted(fits):
    return plan(flops=1e14, law=fits, templates=[DENSE, *MOE])


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def stars(axes):
    return [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "*"]


def test_files_are_written_and_laws_are_left_alone(fits, fitted, tmp_path):
    before = {name: list(fit.warnings) for name, fit in fits.items()}
    paths = write_plan_figures(fitted, fits, tmp_path / "new" / "plots")
    assert [path.name for path in paths] == [
        f"plan-{name}.{suffix}" for name in ("choices", "isoloss", "budgets") for suffix in ("png", "svg")
    ]
    assert all(path.stat().st_size > 5000 for path in paths)
    assert {name: fit.warnings for name, fit in fits.items()} == before


def test_a_file_in_the_way_is_one_sentence(published, tmp_path):
    (tmp_path / "plots").write_text("")
    with pytest.raises(InputError, match=r"plots is .*, which cannot be written: File exists"):
        write_plan_figures(published, LAW, tmp_path / "plots")


def test_laws_of_another_plan_are_refused(fits, published):
    with pytest.raises(InputError, match="laws has moe-e8, none of which holds for moe-e64-g16 of the plan"):
        families_of(published, {"moe-e8": fits["moe-e8"]})


def test_choices_show_the_plans_rows_and_intervals(fits, fitted):
    figure = plan_figures.loss_against_choices(fitted, families_of(fitted, fits))
    axes = panels(figure)
    assert list(axes) == ["size", "data", "granularity", "expansion rate"]
    best = fitted.best
    assert stars(axes["size"]) == [(best.params_active, best.loss)]
    assert stars(axes["data"]) == [(best.tokens, best.loss)]
    assert stars(axes["granularity"]) == [(best.granularity, best.loss)]
    curve = fitted.curves[0]
    drawn = [line.get_xydata() for line in axes["size"].lines if len(line.get_xdata()) > 3]
    assert any(
        all(np.any(np.all(np.isclose(curve_points, point), axis=1)) for point in line)
        for curve_points in [np.stack([curve.params_active, curve.loss], axis=1)]
        for line in drawn
    )
    band = axes["size"].collections[0].get_paths()[0].vertices
    at_best = band[np.isclose(band[:, 0], best.params_active)][:, 1]
    assert at_best.min() == pytest.approx(best.loss_interval[0], abs=0.002)
    assert at_best.max() == pytest.approx(best.loss_interval[1], abs=0.002)
    bars = [tuple(sorted(path[:, 1])) for each in axes["granularity"].containers for path in each[2][0].get_segments()]
    leaders = {row.granularity: row for row in reversed(fitted.table) if row.n_experts > 1}
    assert bars == [pytest.approx(leaders[g].loss_interval) for g in (1, 2, 4, 8)]
    assert [text.get_text() for text in axes["granularity"].texts] == ["dense"]


def test_panels_without_a_choice_are_left_out(published):
    axes = panels(plan_figures.loss_against_choices(published, families_of(published, LAW)))
    assert list(axes) == ["size", "data", "granularity"]
    assert not axes["size"].collections
    dense = plan(flops=1e20, law="hoffmann-2022")
    axes = panels(plan_figures.loss_against_choices(dense, families_of(dense, "hoffmann-2022")))
    assert list(axes) == ["size", "data"]


def test_tokens_stop_at_the_limit():
    limited = plan(flops=1.93e20, law=LAW, tokens_available=2e10)
    axes = panels(plan_figures.loss_against_choices(limited, families_of(limited, LAW)))
    assert max(line.get_xdata().max() for line in axes["data"].lines) == pytest.approx(2e10, rel=1e-3)


def longest(axes):
    return max(axes.lines, key=lambda line: len(line.get_xdata()))


@pytest.mark.parametrize("limits", [{"max_params_active": 3e8, "tokens_available": 5e10}, {"inference_tokens": 1e11}])
def test_limits_hold_at_other_budgets_too(limits):
    limited = plan(flops=1e21, law=LAW, **limits)
    axes = panels(plan_figures.optimum_against_budget(limited, families_of(limited, LAW)))
    for index in (4, 12, 24):
        budget = longest(axes["tokens"]).get_xdata()[index]
        # the lines are of continuous shapes; near a cap, a model of another aspect may be a little better
        best = next(row for row in plan(flops=budget, law=LAW, **limits).table if row.model is None)
        assert longest(axes["loss (nats/token)"]).get_ydata()[index] == pytest.approx(best.loss, abs=1e-3)
        assert longest(axes["tokens"]).get_ydata()[index] == pytest.approx(best.tokens, rel=0.02)
        assert longest(axes["granularity G"]).get_ydata()[index] == best.granularity


def test_isoloss_shows_what_the_limits_leave():
    limited = plan(flops=1e21, law=LAW, max_params_active=3e8, tokens_available=5e10)
    (axes,) = plan_figures.isoloss(limited, families_of(limited, LAW)).axes
    size, tokens = next(line.get_data() for line in axes.lines if len(line.get_xdata()) > 50)
    assert tokens.max() == pytest.approx(5e10)
    grey = axes.collections[-1].get_paths()[0].vertices[:, 0]
    assert limited.best.params_active * 0.95 < grey.min() < limited.best.params_active * 1.1
    assert grey.max() == pytest.approx(size.max())


def test_laws_of_any_column_have_figures(tmp_path):
    """Unique tokens, and the depth of integer models."""
    repeated = plan(flops=1e20, law="muennighoff-2023", tokens_available=2e9, repeat=True)
    write_plan_figures(repeated, "muennighoff-2023", tmp_path / "repeated")
    family = families_of(repeated, "muennighoff-2023")[0]
    columns = family.columns(np.array([repeated.best.params_active]))
    assert family.loss(columns)[0] == pytest.approx(repeated.best.loss)

    class Deep(laws.FORMS["chinchilla"].__class__):
        columns = ("params_total", "tokens", "n_layers")

        def terms(self, x, theta):
            found = super().terms(x, theta)
            return {**found, "A": found["A"] * np.exp(-0.05 * x["n_layers"])}

    values = {"E": 1.5, "A": 300.0, "B": 800.0, "alpha": 0.33, "beta": 0.3}
    law = laws.Law(name="deep", form=Deep(), parameters=values, source="made up", convention="exact")
    deep = plan(flops=1e15, law=law, templates=[DENSE, MOE[1]])
    write_plan_figures(deep, law, tmp_path / "deep")
    for row in deep.table[:3]:
        family = next(f for f in families_of(deep, law) if f.row.architecture == row.architecture)
        columns = family.columns(np.array([row.params_active]))
        assert columns["n_layers"][0] == pytest.approx(row.n_layers, rel=0.3)
        assert family.loss(columns)[0] == pytest.approx(row.loss, rel=0.01)


def test_the_contour_of_the_best_loss_touches_the_budget_line(published):
    figure = plan_figures.isoloss(published, families_of(published, LAW))
    (axes,) = figure.axes
    best = published.best
    assert stars(axes) == [(best.params_active, best.tokens)]
    line = next(line for line in axes.lines if len(line.get_xdata()) > 50)
    size, tokens = line.get_data()
    per_token = 6 * size + 14 * best.n_experts * (best.d_model * best.n_layers) * (size / best.params_active) ** (2 / 3)
    assert tokens == pytest.approx(1.93e20 / per_token, rel=1e-6)
    law = laws.published(LAW)
    loss = law.predict(
        {"params_total": size * best.params_total / best.params_active, "tokens": tokens, "granularity": 16.0}
    )
    assert loss.min() == pytest.approx(best.loss, abs=1e-4)
    assert np.all(loss >= best.loss - 1e-6)
    contours = next(each for each in axes.collections if hasattr(each, "levels"))
    assert best.loss in contours.levels
    labels = [float(text.get_text()) for text in axes.texts]
    assert round(best.loss, 3) in labels
    assert len(labels) >= 5


def test_other_budgets_have_the_plans_optima(published):
    """Each point is what a plan at that budget says."""
    figure = plan_figures.optimum_against_budget(published, families_of(published, LAW))
    axes = panels(figure)
    assert list(axes) == ["loss (nats/token)", "active parameters", "tokens", "granularity G"]
    for index in (0, 10, 24):
        drawn = {name: max(each.lines, key=lambda line: len(line.get_xdata())) for name, each in axes.items()}
        budget = drawn["tokens"].get_xdata()[index]
        best = plan(flops=budget, law=LAW).best
        assert drawn["loss (nats/token)"].get_ydata()[index] == pytest.approx(best.loss, abs=1e-6)
        assert drawn["active parameters"].get_ydata()[index] == pytest.approx(best.params_active, rel=0.01)
        assert drawn["tokens"].get_ydata()[index] == pytest.approx(best.tokens, rel=0.01)
        assert drawn["granularity G"].get_ydata()[index] == best.granularity


def test_integer_models_have_bands_about_a_smooth_optimum(fits, fitted):
    figure = plan_figures.optimum_against_budget(fitted, families_of(fitted, fits), width=NARROW)
    axes = panels(figure)
    assert set(axes) >= {"granularity G", "expansion rate E"}
    line = max(axes["active parameters"].lines, key=lambda each: len(each.get_xdata()))
    budgets, sizes = line.get_data()
    assert np.all(np.diff(sizes) > 0)
    here = np.interp(np.log(1e14), np.log(budgets), sizes)
    assert here == pytest.approx(fitted.best.params_active, rel=0.4)
    band = axes["loss (nats/token)"].collections[0].get_paths()[0].vertices
    near = band[np.isclose(band[:, 0], budgets[16], rtol=1e-6)][:, 1]
    loss = max(axes["loss (nats/token)"].lines, key=lambda each: len(each.get_xdata())).get_ydata()[16]
    assert near.min() < loss < near.max()


@pytest.mark.parametrize("width", [NARROW, 8.8])
def test_no_two_contour_numbers_overlap(published, fits, fitted, width):
    for made, given in ((published, LAW), (fitted, fits)):
        figure = plan_figures.isoloss(made, families_of(made, given), width=width)
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        for index, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[index + 1 :])
