"""Figures alone: what is drawn is what was given, on axes people can read."""

from dataclasses import replace

import numpy as np
import pytest
from tests.report.synthetic_study import rows

from isoflop.laws import RunTable, isoflop_minima
from isoflop.report import figures, view
from isoflop.report.marks import Curve, Multiplier, Verified
from isoflop.report.style import LIGHT, NARROW, factor, flops, log_axis, look_of, short, spread


@pytest.fixture(scope="module")
def runs() -> RunTable:
    return RunTable(rows())


def texts(axes: object) -> list[str]:
    return [text.get_text() for text in axes.texts]  # type: ignore[attr-defined]


def test_isoflop_curves_draw_every_finished_run_and_every_parabola(runs: RunTable) -> None:
    minima = isoflop_minima(runs)
    figure = figures.isoflop_curves(runs, minima)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["1e12 FLOPs", "6e12 FLOPs", "3e13 FLOPs"]
    for axes, budget in zip(figure.axes, (1e12, 6e12, 3e13), strict=True):
        drawn = [point for line in axes.lines for point in line.get_xydata() if line.get_marker() not in ("None", "")]
        expected = [p for p in view.measured(runs) if p.budget == budget]
        for point in expected:
            assert any(np.allclose(point_drawn, (point.params_active, point.loss)) for point_drawn in drawn)
        curves = [line for line in axes.lines if len(line.get_xdata()) > 50]
        assert len(curves) == 6
        assert axes.get_xscale() == "log"
        assert "parameters" in axes.get_xlabel()
    assert figure.legends[0].get_texts()[0].get_text() == "dense"


def test_granularity_has_the_fitted_minimum_and_the_dense_line(runs: RunTable) -> None:
    minima = {(m.architecture, m.budget): m for m in isoflop_minima(runs)}
    figure = figures.loss_against_granularity(runs, list(minima.values()))
    axes = figure.axes[0]
    assert "dense" in texts(axes)
    horizontal = [line for line in axes.lines if list(line.get_xdata()) == [0, 1]]
    assert minima["dense", 1e12].inside
    assert horizontal[0].get_ydata()[0] == minima["dense", 1e12].loss
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4", "8", "16"]
    family = next(line for line in axes.lines if len(line.get_xdata()) == 5)
    expected = [minima[f"moe-e8-g{g}", 1e12] for g in (1, 2, 4, 8, 16)]
    assert all(minimum.inside for minimum in expected)
    assert list(family.get_ydata()) == [minimum.loss for minimum in expected]


def test_panels_stack_on_a_narrow_page(runs: RunTable) -> None:
    wide, narrow = figures.isoflop_curves(runs), figures.isoflop_curves(runs, width=NARROW)
    assert wide.axes[0].get_subplotspec().get_gridspec().ncols == 3
    assert narrow.axes[0].get_subplotspec().get_gridspec().ncols == 1
    assert narrow.get_figheight() > wide.get_figheight()


def test_frontier_and_efficiency_name_their_lines(runs: RunTable) -> None:
    architectures = view.architectures(runs)
    at = np.geomspace(1e12, 6e13, 20)
    curves = [Curve(architecture=a.name, flops=at, loss=4 * at**-0.05 - 0.1 * i) for i, a in enumerate(architectures)]
    (axes,) = figures.frontier(runs, [], curves).axes
    assert set(texts(axes)) == {a.name for a in architectures}
    points = [
        Multiplier(architecture="moe-e8-g4", budget=b, value=v, interval=None) for b, v in ((1e12, 1.5), (3e13, 2))
    ]
    (axes,) = figures.efficiency(architectures, points).axes
    assert set(texts(axes)) == {"dense", "moe-e8-g4"}
    assert any(label.get_text().endswith("×") for label in axes.get_yticklabels())


def test_long_names_move_above_a_narrow_figure(runs: RunTable) -> None:
    renamed = runs.where(architecture="moe-e8-g4").with_columns({"architecture": "moe-e8-g4-no-output-norm"})
    figure = figures.frontier(renamed, width=NARROW)
    assert not texts(figure.axes[0])
    assert figure.legends[0].get_texts()[0].get_text() == "moe-e8-g4-no-output-norm"


def test_a_minimum_outside_of_the_sizes_is_never_drawn_as_a_loss(runs: RunTable) -> None:
    """An extrapolated vertex can lie anywhere; the best size that was run stands in for it."""
    minima = isoflop_minima(runs)
    wild = [replace(m, loss=-5.0) if m.status == "edge" else m for m in minima]
    assert any(m.loss == -5.0 for m in wild)
    for figure in (figures.frontier(runs, wild), figures.loss_against_granularity(runs, wild)):
        drawn = [value for axes in figure.axes for line in axes.lines for value in line.get_ydata()]
        assert min(drawn) > 1


def test_parity_and_residuals_leave_out_rows_without_loss_or_law(runs: RunTable) -> None:
    predicted = np.where(np.array(view.names(runs)) == "dense", view.numbers(runs, "loss") + 0.01, np.nan)
    figure = figures.parity(runs, predicted)
    assert texts(figure.axes[0]) == ["16 runs, RMSE 0.0100 nats"]
    figure = figures.residuals(runs, predicted)
    drawn = np.concatenate([line.get_ydata() for line in figure.axes[1].lines if line.get_marker() == "o"])
    np.testing.assert_allclose(drawn, -0.01)


def test_verification_panels_share_one_scale() -> None:
    checks = [
        Verified(label="a $x$", predicted=2.0, interval=(1.9, 2.05), level=0.9, measured=2.2),
        Verified(label="b", predicted=3.0, interval=None, level=None, measured=None),
    ]
    figure = figures.verification(checks)
    spans = [np.ptp(axes.get_xlim()) for axes in figure.axes]
    assert spans[0] == pytest.approx(spans[1])
    assert figure.axes[0].get_xlim()[1] > 2.2
    figure.draw_without_rendering()  # a dollar sign in a label starts no formula


def test_training_curves_average_neighbouring_steps(runs: RunTable) -> None:
    noisy = [(float(step), 3.0 + (-1) ** step * 0.5) for step in range(1, 2001)]
    (axes,) = figures.training_curves(
        view.architectures(runs), {"dense": noisy, "moe-e8-g4": [(10.0, 2.5), (1000.0, 2.0)]}
    ).axes
    dense, moe = axes.lines
    late = dense.get_ydata()[dense.get_xdata() > 500]
    assert len(dense.get_xdata()) < 75
    np.testing.assert_allclose(late, 3.0, atol=0.06)
    assert list(moe.get_ydata()) == [2.5, 2.0]
    assert axes.get_xlim()[0] < 20 < 2000 < axes.get_xlim()[1]


def test_expert_load_is_relative_to_an_even_share() -> None:
    figure = figures.expert_load({"a": [[0.5, 0.25, 0.125, 0.125], [0.25] * 4], "b": [[0.7, 0.3], [1.0, 0.0]]})
    assert "busiest 2.00×, idlest 0.50×" in figure.axes[0].get_title(loc="left")
    np.testing.assert_allclose(figure.axes[0].collections[0].get_array()[0], [2, 1, 0.5, 0.5])
    assert figure.axes[1].collections[0].get_array().min() == 0.25  # clipped: a logarithm has no zero


def test_the_palette_is_fixed_by_meaning(runs: RunTable) -> None:
    looks = look_of(view.architectures(runs))
    assert looks["dense"].color == LIGHT["ink"]
    assert looks["moe-e8-g4"].color == LIGHT["g4"]
    again = look_of([a for a in view.architectures(runs) if a.name == "moe-e8-g4"])
    assert again["moe-e8-g4"] == looks["moe-e8-g4"]
    twin = view.Architecture(name="moe-e8-g4-expert-choice", granularity=4, expansion_rate=8, router="expert_choice")
    both = look_of([*view.architectures(runs), twin])
    assert both[twin.name].color == LIGHT["g4"]
    assert both[twin.name].dash != both["moe-e8-g4"].dash


def test_lightness_of_the_palette_falls_with_granularity() -> None:
    def luminance(color: str) -> float:
        red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2

    values = [luminance(LIGHT[f"g{2**power}"]) for power in range(7)]
    assert values == sorted(values, reverse=True)


def test_family_and_dense_follow_from_the_columns() -> None:
    for name, family in (
        ("moe-e8-g16", "moe-e8"),
        ("E8-G4", "E8"),
        ("moe-e8-g4-no-output-norm", "moe-e8-no-output-norm"),
    ):
        assert view.Architecture(name=name, granularity=4, expansion_rate=8, router="x").family == family
    table = RunTable([{"granularity": 1, "expansion_rate": 1}, {"granularity": 4, "expansion_rate": 8, "router": "x"}])
    assert view.names(table) == ["dense", "E8-G4"]
    assert [a.dense for a in view.architectures(table)] == [True, False]


@pytest.mark.parametrize(
    ("value", "expected"), [(900, "900"), (1e3, "1K"), (1234567, "1.23M"), (4.37e9, "4.37B"), (None, "–"), (0.5, "0.5")]
)
def test_short(value: float | None, expected: str) -> None:
    assert short(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(3e12, "3e12"), (2.95e18, "2.95e18"), (9.999e12, "1e13"), (0, "0"), (float("nan"), "–")]
)
def test_flops(value: float, expected: str) -> None:
    assert flops(value) == expected


def test_factor() -> None:
    assert factor(1.5) == "1.5×"
    assert factor(float("inf")) == "–"


@pytest.mark.parametrize(
    ("low", "high"), [(1e5, 1.3e5), (3e4, 3e6), (1e12, 3e13), (1e3, 1e12), (5e5, 5e5), (43210, 43210), (0.8, 25)]
)
def test_log_axes_have_a_few_round_ticks(low: float, high: float) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    log_axis(axes, "x", [low, high])
    left, right = axes.get_xlim()
    assert left < low <= high < right
    ticks = axes.get_xticks()
    assert 1 <= len(ticks) <= 5
    for tick in ticks:
        assert left <= tick <= right
        assert float(f"{tick:.2g}") == pytest.approx(tick)


def test_spread_keeps_order_and_distance() -> None:
    placed = spread([0.5, 0.51, 0.1, 0.505, 0.99], gap=0.1, low=0.0, high=1.0)
    assert np.argsort(placed).tolist() == [2, 0, 3, 1, 4]
    assert min(np.diff(sorted(placed))) > 0.099
    assert 0 <= min(placed) <= max(placed) <= 1
    assert spread([], gap=0.1, low=0, high=1) == []
    crowded = spread([0.5] * 20, gap=0.1, low=0.0, high=1.0)
    assert 0 <= min(crowded) <= max(crowded) <= 1


def test_a_doubtful_law_is_dashed_and_says_so(runs: RunTable) -> None:
    at = np.geomspace(1e12, 3e13, 20)
    curves = [
        Curve(architecture="dense", flops=at, loss=4 * at**-0.05),
        Curve(architecture="moe-e8-g4", flops=at, loss=3.9 * at**-0.05, doubtful="not identified"),
    ]
    (axes,) = figures.frontier(runs, [], curves).axes
    lines = {line.is_dashed(): line for line in axes.lines if len(line.get_xdata()) == 20}
    assert list(lines[True].get_ydata()) == list(curves[1].loss)
    assert "moe-e8-g4 (not identified)" in texts(axes)
    assert "dense" in texts(axes)


@pytest.mark.parametrize("interval", [(0.00131, np.inf), (0.0, 0.2), (0.002, 0.01)])
def test_efficiency_shows_every_bar_and_the_dense_line(runs: RunTable, interval: tuple[float, float]) -> None:
    point = Multiplier(architecture="moe-e8-g4", budget=1e12, value=0.00579, interval=interval)
    (axes,) = figures.efficiency(view.architectures(runs), [point]).axes
    low, high = axes.get_ylim()
    assert low < 0.00579 < 1 < high
    (bar,) = (collection for collection in axes.collections if hasattr(collection, "get_segments"))
    (ends,) = bar.get_segments()
    assert np.isfinite(ends).all()
    assert ends[1][1] >= min(interval[1], high)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_load_of_a_shallow_model_has_room(layers: int) -> None:
    figure = figures.expert_load({"moe-e8-g4": [[0.25] * 4] * layers, "moe-e8-g8": [[0.125] * 8] * layers})
    figure.draw_without_rendering()  # a warning of the layout would fail the test
    panels = [axes for axes in figure.axes if axes.get_ylabel() == "layer"]
    (bar,) = (axes for axes in figure.axes if axes not in panels)
    top = figure.get_figheight() * figure.dpi
    below = bar.get_window_extent().y1
    for axes in panels:
        box = axes.get_tightbbox()
        assert box.y1 <= top + 1
        assert box.y0 >= below
        assert axes.get_window_extent().height > 0.1 * figure.dpi * layers


def depth_rows() -> list[dict[str, object]]:
    """The dense runs of the synthetic study, and depth-routed ones of three capacities and of capacity 1/8 by rule."""
    dense = [row for row in rows() if row["architecture"] == "dense"]
    made: list[dict[str, object]] = [dict(row, depth_capacity=1, depth_router="none") for row in dense]
    for name, capacity, off in (
        ("mod-c.125", 0.125, 0.03),
        ("mod-c.5", 0.5, -0.02),
        ("mod-c1", 1, 0),
        ("fixed", 0.125, 2),
    ):
        router = "fixed" if name == "fixed" else "learned"
        for row in dense:
            other = dict(row, architecture=name, depth_capacity=capacity, depth_router=router, loss=row["loss"] + off)
            made.append(dict(other, run_id=f"{name}-{row['run_id']}"))
    return made


def test_depth_routed_architectures_are_no_dense_ones() -> None:
    found = view.architectures(RunTable(depth_rows()))
    assert [(a.name, a.dense) for a in found] == [
        ("dense", True),
        *((name, False) for name in ("mod-c1", "mod-c.5", "fixed", "mod-c.125")),
    ]
    assert [a.depth_family for a in found] == ["dense", "mod", "mod", "fixed", "mod"]
    looks = look_of(found)
    assert len({(look.color, look.marker) for look in looks.values()}) == 5
    assert looks["mod-c.125"].color == looks["fixed"].color == LIGHT["c8"]
    bare = [
        {"expansion_rate": 1, "depth_capacity": 0.5},
        {"expansion_rate": 8, "granularity": 2, "depth_capacity": 0.25},
    ]
    assert view.names(RunTable(bare)) == ["dense-c0.5", "E8-G2-c0.25"]


def test_loss_against_capacity_shows_every_architecture_at_its_capacity() -> None:
    table = RunTable(depth_rows())
    figure = figures.loss_against_capacity(table)
    points = view.measured(table)
    for axes, budget in zip(figure.axes, (1e12, 6e12, 3e13), strict=True):
        drawn = {(x, y) for line in axes.lines if line.get_marker() not in ("None", "") for x, y in line.get_xydata()}
        for name, capacity in (("mod-c.125", 0.125), ("mod-c.5", 0.5), ("mod-c1", 1)):
            best = view.best_measured(points, name, budget)
            assert best is not None
            assert any(y == best.loss and capacity <= x < 1.2 * capacity for x, y in drawn)
        assert axes.get_ylim()[1] < 1 + min(point.loss for point in points if point.budget == budget)
        assert [text.get_text() for text in axes.texts] == ["dense"]
    assert len(figure.legends[0].get_texts()) == 4


def test_losses_far_above_the_others_are_arrows() -> None:
    table = RunTable(depth_rows())
    assert figures.off_scale(table) == 12
    figure = figures.isoflop_curves(table)
    arrows = [line for axes in figure.axes for line in axes.lines if "uparrow" in str(line.get_marker())]
    assert len(arrows) == 12
