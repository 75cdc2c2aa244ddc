"""Dense and MoE runs fitted together share their irreducible loss."""

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import FORMS, Fit, Form, fit, fit_shared, lack_of_fit, posterior, profile
from isoflop.laws._rows import as_table
from isoflop.laws._solver import Problem
from isoflop.laws.forms import Chinchilla
from isoflop.laws.shared import _Together

DENSE = {"E": 1.31, "A": 290.0, "B": 810.0, "alpha": 0.317, "beta": 0.331}
MOE = {"c": 1.31, "g": 150.0, "a": 380.0, "b": 700.0, "gamma": 0.62, "alpha": 0.324, "beta": 0.322}


def groups(noise: float) -> dict[str, tuple[dict[str, np.ndarray], str]]:
    rng = np.random.default_rng(9)
    made = {}
    for name, law, truth, n in (("dense", "chinchilla", DENSE, 25), ("moe", "fine-grained", MOE, 60)):
        table = {
            "params_total": 10 ** rng.uniform(6, 8.5, n),
            "tokens": 10 ** rng.uniform(7.5, 9.5, n),
            "granularity": 2.0 ** rng.integers(0, 5, n) if name == "moe" else np.ones(n),
            "expansion_rate": np.full(n, 8.0 if name == "moe" else 1.0),
        }
        loss = FORMS[law].predict(table, truth) * np.exp(noise * rng.standard_normal(n))
        flops = 6 * table["params_total"] * table["tokens"] * (12 / 68 if name == "moe" else 1)
        made[name] = ({**table, "flops": flops, "loss": loss}, law)
    return made


def test_planted_truth_is_recovered() -> None:
    found = fit_shared(groups(0.0))
    assert found.status == "converged", found.message
    for name, truth in (("dense", DENSE), ("moe", MOE)):
        for parameter, value in truth.items():
            assert found[name].parameters[parameter] == pytest.approx(value, rel=1e-5)


def test_one_asymptote_in_the_fit_and_in_every_draw() -> None:
    found = fit_shared(groups(0.003), bootstrap=100)
    assert found["dense"].parameters["E"] == found["moe"].parameters["c"] == found.asymptote
    assert np.array_equal(found["dense"].draws["E"], found["moe"].draws["c"])
    alone = {name: fit(runs, law, bootstrap=100) for name, (runs, law) in groups(0.003).items()}
    assert np.std(found["dense"].draws["E"]) < np.std(alone["dense"].draws["E"])
    total = sum(each.objective for each in found.fits.values())
    assert total >= sum(each.objective for each in alone.values()) - 1e-12


def test_what_is_shared_and_pinned_to_it_gives_the_same_fit() -> None:
    found = fit_shared(groups(0.003))
    for name, (runs, law) in groups(0.003).items():
        asymptote = FORMS[law].asymptote
        pinned = fit(runs, law, pinned={asymptote: found.asymptote})
        assert found[name].objective == pytest.approx(pinned.objective, rel=1e-6)


def test_holdout_refits_all_groups_without_the_largest() -> None:
    scores = fit_shared(groups(0.003)).holdout(largest=0.2)
    assert set(scores) == {"dense", "moe"}
    assert sum(score.n_held_out for score in scores.values()) == 17
    assert all(score.rmse < 0.012 for score in scores.values())


def test_pinned_parameters_stay_and_the_others_are_recovered() -> None:
    pinned = {"dense": {"alpha": DENSE["alpha"]}, "moe": {"gamma": MOE["gamma"], "c": MOE["c"]}}
    found = fit_shared(groups(0.0), pinned=pinned, bootstrap=20)
    assert found.status == "converged", found.message
    assert found["dense"].pinned == {"E": 1.31, "alpha": 0.317}
    assert found["moe"].pinned == {"c": 1.31, "gamma": 0.62}
    assert (found["dense"].n_free, found["moe"].n_free) == (3, 5)
    for name, truth in (("dense", DENSE), ("moe", MOE)):
        for parameter, value in truth.items():
            assert found[name].parameters[parameter] == pytest.approx(value, rel=1e-5)
    assert set(found["dense"].draws["alpha"]) == {0.317}


def test_what_is_pinned_moves_the_others_and_the_holdout_keeps_it() -> None:
    made = groups(0.003)
    found = fit_shared(made, pinned={"dense": {"E": 1.5}})
    assert found.asymptote == found["moe"].parameters["c"] == 1.5
    for name, (runs, law) in made.items():
        alone = fit(runs, law, pinned={FORMS[law].asymptote: 1.5})
        assert found[name].objective == pytest.approx(alone.objective, rel=1e-6)
        assert found.holdout()[name].rmse == pytest.approx(
            fit_shared(made, pinned={"moe": {"c": 1.5}}).holdout()[name].rmse, rel=1e-3
        )


def test_a_whole_group_may_be_given() -> None:
    found = fit_shared(groups(0.0), pinned={"dense": {name: DENSE[name] for name in ("A", "B", "alpha", "beta")}})
    assert found.status == "converged", found.message
    assert found["moe"].parameters["a"] == pytest.approx(MOE["a"], rel=1e-5)


@pytest.mark.parametrize(
    ("pinned", "says"),
    [
        ({"sparse": {"E": 1}}, "pinned names group sparse; the groups are dense, moe"),
        ({"dense": {"c": 1}}, "pinned parameter c is not in law chinchilla"),
        ({"dense": {"alpha": 9}}, "pinned alpha is 9; it must be between 0 and 2"),
        ({"dense": {"E": 1.2}, "moe": {"c": 1.3}}, r"pinned c of group moe is 1\.3 and 1\.2 of another"),
    ],
)
def test_wrong_pins_are_sentences(pinned: dict[str, dict[str, float]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        fit_shared(groups(0.003), pinned=pinned)


def test_one_group_or_too_few_rows_are_sentences() -> None:
    made = groups(0.003)
    with pytest.raises(InputError, match="needs at least two"):
        fit_shared({"dense": made["dense"]})
    few = {name: values[:3] for name, values in made["dense"][0].items()}
    with pytest.raises(InputError, match="group dense has 3 usable rows for 4 parameters"):
        fit_shared({"dense": (few, "chinchilla"), "moe": made["moe"]})


class Plain(Chinchilla):
    """A user's law: terms alone."""

    derivatives = Form.derivatives


VALLEY = {
    **{"e": 1.31, "a": 950.0, "b": 710.0, "c": 31.0, "v": 0.043, "alpha": 0.43, "beta": 0.317, "gamma": 0.71},
    **{"lambda": 0.173, "rho": 0.37, "sigma": -0.043},
}


def with_valley(n: int, noise: float) -> dict[str, np.ndarray]:
    """Runs whose loss has a valley in the expert–attention ratio, some of them dense."""
    rng = np.random.default_rng(4)
    table = {
        "params_active": 10 ** rng.uniform(6.5, 9, n),
        "tokens": 10 ** rng.uniform(8, 10.5, n),
        "sparsity": rng.choice([0.0, 0.5, 0.8, 0.95], n),
        "expert_attention_ratio": np.exp(rng.uniform(-2, 2, n)),
    }
    table |= {"params_total": table["params_active"], "flops": 6 * table["params_active"] * table["tokens"]}
    loss = FORMS["allocation-loss"].predict(table, VALLEY) * np.exp(noise * rng.standard_normal(n))
    return {**table, "loss": loss}


@pytest.mark.parametrize(
    ("form", "truth", "table"),
    [
        (FORMS["allocation-loss"], VALLEY, with_valley(30, 0.003)),
        (Plain(), DENSE, groups(0.003)["dense"][0]),
        (FORMS["fine-grained"], MOE, groups(0.003)["moe"][0]),
    ],
)
def test_derivatives_together_equal_finite_differences(
    form: Form, truth: dict[str, float], table: dict[str, np.ndarray]
) -> None:
    tables = {"dense": as_table(groups(0.003)["dense"][0]), "other": as_table(table)}
    together = _Together({"dense": FORMS["chinchilla"], "other": form})
    loss = np.concatenate([each.numeric("loss") for each in tables.values()])
    problem = Problem(together, together.stack(tables), loss, pinned={}, huber_delta=1e-3)
    values = {"asymptote": 1.31} | {f"dense.{name}": value for name, value in DENSE.items()}
    values |= {f"other.{name}": value for name, value in truth.items()}
    z = 1.02 * problem.coordinates({name: np.full((1, 1), value) for name, value in values.items()})
    jacobian = problem.jacobian(problem.evaluate(z))[0]
    for k, name in enumerate(problem.names):
        step = np.zeros_like(z)
        step[0, k] = 1e-6 * max(1.0, abs(z[0, k]))
        below, above = problem.evaluate(z - step).residuals[0], problem.evaluate(z + step).residuals[0]
        expected = (below - above) / (2 * step[0, k])
        np.testing.assert_allclose(jacobian[k], expected, rtol=1e-4, atol=1e-7, err_msg=name)


def test_a_law_with_a_valley_shares_its_asymptote() -> None:
    made = {"dense": groups(0.003)["dense"], "moe": (with_valley(90, 0.003), "allocation-loss")}
    found = fit_shared(made)
    assert found.status == "converged", found.message
    for name, (runs, law) in made.items():
        pinned = fit(runs, law, pinned={FORMS[law].asymptote: found.asymptote})
        assert found[name].objective == pytest.approx(pinned.objective, rel=1e-6)
    assert abs(found["moe"].parameters["rho"] - VALLEY["rho"]) < 0.1


def test_a_law_without_derivatives_gives_the_same_shared_fit() -> None:
    made = groups(0.003)
    exact = fit_shared(made)
    plain = fit_shared({"dense": (made["dense"][0], Plain()), "moe": made["moe"]})
    assert plain.status == "converged", plain.message
    assert plain["dense"].parameters == pytest.approx(exact["dense"].parameters, rel=1e-4)
    assert plain["moe"].objective == pytest.approx(exact["moe"].objective, rel=1e-6)


def test_what_refits_one_group_alone_is_refused() -> None:
    pytest.importorskip("emcee")
    found = fit_shared(groups(0.003), bootstrap=20)["moe"]
    says = r"shares its irreducible loss with dense, and fitted again alone .* SharedFit\.holdout, .* c pinned at 1\."
    for again in (found, Fit.from_dict(found.to_dict())):
        for refit in (
            Fit.holdout,
            lambda fit: fit.leave_out("granularity"),
            lambda fit: profile(fit, "alpha"),
            lack_of_fit,
            posterior,
        ):
            with pytest.raises(InputError, match=says):
                refit(again)


def test_weights_are_those_of_one_fit_each_at_the_shared_loss() -> None:
    made = groups(0.003)
    made = {
        name: ({**runs, "worth": np.where(np.arange(len(runs["loss"])) % 2, 1.0, 9.0)}, law)
        for name, (runs, law) in made.items()
    }
    found = fit_shared(made, weights="worth")
    assert found.asymptote != pytest.approx(fit_shared(groups(0.003)).asymptote, rel=1e-6)
    for name, (runs, law) in made.items():
        alone = fit(runs, law, weights="worth", pinned={FORMS[law].asymptote: found.asymptote})
        assert alone.parameters == pytest.approx(found[name].parameters, rel=1e-3)
    assert found.holdout().keys() == {"dense", "moe"}


def test_a_prior_on_the_shared_loss_pulls_both_groups() -> None:
    made = groups(0.003)
    plain = fit_shared(made)
    target = plain.asymptote + 0.1
    tight = fit_shared(made, priors={"dense": {"E": (target, 1e-4)}})
    assert tight.asymptote == tight["moe"].parameters["c"] == pytest.approx(target, abs=1e-3)
    loose = fit_shared(made, priors={"dense": {"E": (target, 1e3)}})
    assert loose.asymptote == pytest.approx(plain.asymptote, abs=1e-3)
    with pytest.raises(InputError, match="prior c of group moe is on the irreducible loss, which another group"):
        fit_shared(made, priors={"dense": {"E": (1.3, 0.1)}, "moe": {"c": (1.3, 0.1)}})
    with pytest.raises(InputError, match="priors names group sparse"):
        fit_shared(made, priors={"sparse": {}})


def test_an_asymptote_above_the_losses_of_any_group_is_refused() -> None:
    made = groups(0.003)
    lowest = min(float(runs["loss"].min()) for runs, _ in made.values())
    with pytest.raises(InputError, match="rows are not above it"):
        fit_shared(made, pinned={"dense": {"E": lowest + 1e-6}})


def test_groups_that_count_their_flops_otherwise_are_said() -> None:
    made = groups(0.003)
    counted = {
        name: (
            {
                **runs,
                "flops": 6 * runs["params_total"] * runs["tokens"],
                "flops_convention": np.full(len(runs["loss"]), how),
            },
            law,
        )
        for (name, (runs, law)), how in zip(made.items(), ("exact", "krajewski"), strict=True)
    }
    for each in fit_shared(counted).fits.values():
        assert any("the groups count their flops by exact and krajewski" in sentence for sentence in each.warnings)
