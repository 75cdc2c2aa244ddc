"""IsoFLOP minima, compute-optimal frontiers and the efficiency multiplier, on runs whose law is known."""

from dataclasses import replace

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import (
    LawFrontier,
    MinimaFrontier,
    RunTable,
    cost_between_runs,
    efficiency_multiplier,
    fit_shared,
    isoflop_minima,
    published,
)

E, A, B, ALPHA, BETA = 1.3, 300.0, 800.0, 0.32, 0.33
SAVED, KEPT, GAMMA = 150.0, 380.0, 0.6  # the MoE's g, a, gamma at expansion rate 8
BUDGETS = (1e17, 3e17, 1e18, 3e18)
SHARE = 12 / (8 * 8 + 4)


def loss(params_total: float, tokens: float, granularity: int, moe: bool) -> float:
    size = KEPT + SAVED / granularity**GAMMA if moe else A
    return E + size / params_total**ALPHA + B / tokens**BETA


def best_size(flops: float, granularity: int, moe: bool) -> float:
    """Closed form: the derivative of size/N^alpha + B (6 N_act / C)^beta by ln N is zero."""
    share = SHARE if moe else 1.0
    size = (KEPT + SAVED / granularity**GAMMA if moe else A) * share**ALPHA
    ratio = ALPHA * size / (BETA * B * (6 / flops) ** BETA)
    return float(ratio ** (1 / (ALPHA + BETA)))


def study(noise: float = 0.0, spread: float = 1.0, budgets: tuple[float, ...] = BUDGETS, seed: int = 3) -> RunTable:
    rng = np.random.default_rng(seed)
    rows = []
    for flops in budgets:
        for granularity in (0, 1, 4):
            moe = granularity > 0
            for factor in np.exp(np.linspace(-spread, spread, 5)):
                active = best_size(flops, max(granularity, 1), moe) * factor
                tokens = flops / 6 / active
                total = active / SHARE if moe else active
                value = loss(total, tokens, max(granularity, 1), moe) * np.exp(noise * rng.standard_normal())
                rows.append(
                    {
                        "architecture": f"moe-g{granularity}" if moe else "dense",
                        "budget": flops,
                        "params_total": total,
                        "params_active": active,
                        "tokens": tokens,
                        "flops": flops,
                        "granularity": max(granularity, 1),
                        "expansion_rate": 8 if moe else 1,
                        "loss": value,
                        "status": "done",
                    }
                )
    return RunTable(rows)


def test_minima_of_a_narrow_grid_are_the_compute_optimum() -> None:
    for minimum in isoflop_minima(study(spread=0.3)):
        granularity = int(minimum.architecture[-1]) if minimum.architecture != "dense" else 1
        moe = minimum.architecture != "dense"
        expected = best_size(minimum.budget, granularity, moe)
        assert minimum.status == "inside"
        assert minimum.params_active == pytest.approx(expected, rel=0.01)
        assert minimum.tokens == pytest.approx(minimum.budget / 6 / expected, rel=0.01)
        assert minimum.params_total == pytest.approx(expected / (SHARE if moe else 1), rel=0.01)
        assert minimum.loss == pytest.approx(
            loss(expected / (SHARE if moe else 1), minimum.budget / 6 / expected, granularity, moe), abs=2e-4
        )
        assert minimum.curve(np.array([minimum.params_active]))[0] == pytest.approx(minimum.loss)


def test_intervals_of_minima_cover_the_truth() -> None:
    """50 studies of 12 minima, whose noise is pooled: a 90% interval covers 540 ± 7.3 of 600, sharing 12 in a study."""
    exact = isoflop_minima(study(noise=0.0, spread=0.7))
    sizes = losses = 0
    for seed in range(50):
        for noisy, true in zip(isoflop_minima(study(noise=0.002, spread=0.7, seed=seed)), exact, strict=True):
            assert noisy.params_interval is not None
            assert noisy.loss_interval is not None
            sizes += noisy.params_interval[0] <= true.params_active <= noisy.params_interval[1]
            losses += noisy.loss_interval[0] <= true.loss <= noisy.loss_interval[1]
    assert 510 <= sizes <= 570
    assert 510 <= losses <= 570


def test_minima_flag_edges_humps_and_too_few_sizes() -> None:
    table = study(spread=0.7)
    largest = np.array([row["params_active"] for row in table.rows]).reshape(-1, 5)[:, 2]
    low_side = table.where(table["params_active"] <= np.repeat(largest, 5) * 1.01)
    assert {minimum.status for minimum in isoflop_minima(low_side)} == {"edge"}
    hump = table.with_columns({"loss": 8 - table["loss"]})
    for minimum in isoflop_minima(hump):
        assert minimum.status == "not_convex"
        assert minimum.params_interval is None
    two = table.where(table["params_active"] < np.repeat(largest, 5) * 0.99)
    assert {minimum.status for minimum in isoflop_minima(two)} == {"too_few_sizes"}
    three = isoflop_minima(low_side)
    assert all(minimum.params_interval is None for minimum in three)  # three sizes each: no row tells the noise
    with pytest.raises(InputError, match="has no column architecture"):
        isoflop_minima(RunTable([{k: v for k, v in row.items() if k != "architecture"} for row in table.rows]))


def test_a_frontier_is_the_closed_form() -> None:
    law = published("hoffmann-2022")
    frontier = LawFrontier(law)
    best = frontier.optimum(5.76e23)
    p = law.parameters
    ratio = p["alpha"] * p["A"] / (p["beta"] * p["B"] * (6 / 5.76e23) ** p["beta"])
    assert best["params_active"] == pytest.approx(ratio ** (1 / (p["alpha"] + p["beta"])), rel=1e-5)
    assert best["params_active"] * best["tokens"] * 6 == pytest.approx(5.76e23)
    assert frontier.loss(np.array([5.76e23]))[0] == best["loss"]
    with pytest.raises(InputError, match="granularity is missing"):
        LawFrontier(published("krajewski-2024-e64"))


def test_published_constants_give_18_times_the_flops_at_1e20() -> None:
    """Krajewski et al. 2024 say 20; their constants with routing counted give 18.3."""

    def flops_per_token(active: np.ndarray) -> np.ndarray:
        n_layers = np.cbrt(active / (12 * 64**2))
        return 6 * active + 14 * 64 * n_layers * (64 * 16) * n_layers

    moe = LawFrontier(published("krajewski-2024-e64"), granularity=16, flops_per_token=flops_per_token)
    found = efficiency_multiplier(published("krajewski-2024-dense"), moe, 1e20)
    assert found.value == pytest.approx(18.3, abs=0.1)
    assert found.interval is None
    assert found.extrapolated
    assert moe.optimum(1.93e20)["params_active"] == pytest.approx(1e9, rel=0.02)
    assert moe.optimum(1.93e20)["tokens"] == pytest.approx(28.94e9, rel=0.02)


def true_multiplier(flops: float, granularity: int) -> float:
    active = best_size(flops, granularity, True)
    target = loss(active / SHARE, flops / 6 / active, granularity, True)
    low, high = flops, 100 * flops
    for _ in range(200):
        middle = np.sqrt(low * high)
        size = best_size(middle, 1, False)
        low, high = (low, middle) if loss(size, middle / 6 / size, 1, False) <= target else (middle, high)
    return low / flops


def test_multiplier_from_fits_and_from_minima() -> None:
    table = study(noise=0.002)
    together = fit_shared(
        {
            "dense": (table.where(architecture="dense"), "chinchilla"),
            "moe": (table.where(expansion_rate=8), "fine-grained"),
        },
        bootstrap=200,
    )
    true = true_multiplier(1e18, 4)
    assert true > 1.3
    by_fit = efficiency_multiplier(together["dense"], together["moe"], 1e18, granularity=4)
    assert by_fit.value == pytest.approx(true, rel=0.05)
    assert by_fit.interval is not None
    assert by_fit.interval[0] <= true <= by_fit.interval[1]
    assert not by_fit.extrapolated
    minima = isoflop_minima(table)
    dense, moe = ([m for m in minima if m.architecture == name] for name in ("dense", "moe-g4"))
    by_minima = efficiency_multiplier(dense, moe, 1e18)
    assert by_minima.value == pytest.approx(true, rel=0.08)
    assert by_minima.interval is not None
    assert by_minima.interval[0] < by_minima.value < by_minima.interval[1]
    beyond = efficiency_multiplier(dense, moe, 3e18)
    assert beyond.extrapolated
    assert "outside of the dense runs" in beyond.message
    assert efficiency_multiplier(dense, dense, 1e18).value == pytest.approx(1.0, rel=1e-6)


def test_cost_between_runs_meets_every_run_and_goes_on_straight() -> None:
    sizes, per_token = np.array([1e5, 1e6, 4e6, 4e6]), np.array([2e6, 9e6, 3e7, 4e7])
    rows = [
        {"params_active": n, "flops": c * 1e9, "tokens": 1e9, "params_total": n, "loss": 3.0, "granularity": 1}
        for n, c in zip(sizes, per_token, strict=True)
    ]
    cost = cost_between_runs(RunTable(rows))
    assert cost(sizes[:3]) == pytest.approx([2e6, 9e6, np.sqrt(12e14)])
    assert cost(np.array([1e4]))[0] == pytest.approx(2e6 * 2e6 / 9e6)
    one = cost_between_runs(RunTable(rows[:1]))
    assert one(np.array([1e6]))[0] == pytest.approx(2e7)


def test_a_loss_below_the_dense_asymptote_has_no_finite_multiplier() -> None:
    dense, moe = published("besiroglu-2024"), published("hoffmann-2022")
    found = efficiency_multiplier(dense, moe, 1e30)
    assert found.value == np.inf
    assert found.extrapolated
    assert "asymptote" in found.message


def test_wrong_arguments_are_sentences() -> None:
    minima = [m for m in isoflop_minima(study()) if m.architecture == "dense"]
    with pytest.raises(InputError, match="flops is -1"):
        efficiency_multiplier(minima, minima, -1)
    with pytest.raises(InputError, match="two budgets or more"):
        efficiency_multiplier(minima[:1], minima, 1e18)
    lost = [replace(minima[0], loss=float("nan")), minima[1]]
    with pytest.raises(InputError, match=r"length 2, 1 of them without a loss; .* two budgets or more"):
        MinimaFrontier(lost)
    with pytest.raises(InputError, match=r"length 2; .* each once"):
        MinimaFrontier([minima[0], replace(minima[1], flops=minima[0].flops)])
    kept = MinimaFrontier([*minima[:2], replace(minima[2], loss=float("nan"))])
    assert kept.loss(np.array([3e18])) == MinimaFrontier(minima[:2]).loss(np.array([3e18]))
    with pytest.raises(InputError, match="level is 2"):
        isoflop_minima(study(), level=2)


def test_a_best_size_beyond_those_that_ran_is_an_extrapolation() -> None:
    from isoflop.laws import RunTable, fit

    rng = np.random.default_rng(0)
    sizes = np.tile([1e7, 3e7, 1e8], 3)
    flops = np.repeat([1e17, 1e18, 1e20], 3)
    tokens = flops / (6 * sizes)
    loss = (1.7 + 400 * sizes**-0.34 + 900 * tokens**-0.29) * np.exp(rng.normal(0, 1e-4, 9))
    columns = {"params_active": sizes, "params_total": sizes, "tokens": tokens, "flops": flops, "loss": loss}
    found = fit(RunTable([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]))
    frontier = LawFrontier(found)
    inside = [frontier.inside(budget) for budget in (1e17, 1e18, 1e20)]
    best = [frontier.optimum(budget)["params_active"] for budget in (1e17, 1e18, 1e20)]
    assert inside == [1e7 / 1.1 <= size <= 1.1e8 for size in best]
    assert set(inside) == {True, False}
