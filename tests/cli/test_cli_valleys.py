"""`isoflop valleys`: planted valleys come back, and go through a file into a plan."""

import json
import re

import numpy as np
import pytest
import typer
from tests.laws.test_valleys import DEPTH, best, faint, runs
from typer.testing import CliRunner

from isoflop import laws
from isoflop.cli.fit import fit
from isoflop.cli.plan import plan
from isoflop.cli.valleys import valleys
from isoflop.errors import InputError
from isoflop.planner import plan as plan_by_library
from isoflop.spec import count, load_spec

APP, PLAN, FIT = typer.Typer(), typer.Typer(), typer.Typer()
APP.command()(valleys)
PLAN.command()(plan)
FIT.command()(fit)


def run(*arguments, app=APP):
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def table(seed=0, **how):
    return runs(np.random.default_rng(seed), **how).with_columns({"flops_convention": "exact", "context": 1024})


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweeps") / "sweeps.csv"
    laws.write_runs(table(), path)
    return path


def test_planted_valleys_and_their_law(sweeps):
    found = json.loads(run(sweeps, "--json"))
    assert len(found["valleys"]) == 9
    covered = 0
    for valley in found["valleys"]:
        truth = best(valley["budget"], valley["sparsity"])
        assert valley["status"] == "inside"
        assert valley["ratio"] == pytest.approx(truth, rel=0.15)
        covered += valley["ratio_interval"][0] <= truth <= valley["ratio_interval"][1]
        assert valley["costs"]["2"] == pytest.approx(DEPTH * np.log(2) ** 2, rel=0.4)
        assert valley["convention"] == "exact"
    assert covered >= 6
    assert found["visible"]
    assert found["depth_interval"][0] < found["depth"] < found["depth_interval"][1]
    assert found["depth"] == pytest.approx(DEPTH, rel=0.15)
    parameters = found["law"]["parameters"]
    assert parameters["p"] == pytest.approx(-1.23, abs=0.2)
    assert found["law"]["intervals"]["B"][0] < 0.24 < found["law"]["intervals"]["B"][1]
    assert found["law"]["range"]["context"] == [1024, 1024]


def test_the_table_fits_a_hundred_columns_and_says_what_it_is_counted_as(sweeps):
    text = run(sweeps)
    assert max(len(line) for line in text.splitlines() if "│" in line or "━" in line) <= 100
    for words in ("sparsity, budget", "0.875, 1e19", "r*/2, 2r* cost", "within noise", "inside", "90% interval"):
        assert words in text
    assert re.search(r"depth of all groups together: v = 0\.0\d+ nats per squared ln r \(0\.0\d+ to 0\.0\d+\)", text)
    assert "r and C are counted as exact." in text
    assert "the law goes through the minima of all 9 groups" in text
    other = run(
        sweeps, "--convention", "expert-attention", "--by", "budget", "--where", "sparsity=0.5", "--level", "0.5"
    )
    assert "r is counted as expert-attention, since --convention says so, although" in other
    assert "50% interval" in other
    assert "pinned" in other


def test_no_visible_valley_is_said(tmp_path):
    laws.write_runs(table(3, depth=0.0), tmp_path / "flat.csv")
    text = run(tmp_path / "flat.csv")
    assert "no visible valley: the depth of all groups together is " in text
    assert "no r* here is to be taken for an optimum" in text
    assert "may be flat" in text
    assert "a hill" in text
    assert not json.loads(run(tmp_path / "flat.csv", "--json"))["visible"]


@pytest.fixture(scope="module")
def weak(tmp_path_factory):
    path = tmp_path_factory.mktemp("weak") / "weak.csv"
    laws.write_runs(faint(0).with_columns({"flops_convention": "exact"}), path)
    return path


def test_without_draws_there_are_no_intervals_and_the_verdict_is_the_same(weak):
    many, none = (json.loads(run(weak, "--json", "--draws", draws)) for draws in ("400", "0"))
    assert (none["visible"], none["depth"]) == (many["visible"], many["depth"]) == (True, many["depth"])
    for name in ("method", "misfit", "parameters", "status"):
        assert none["law"][name] == many["law"][name]
    assert many["law"]["method"] == "shared"
    assert many["law"]["intervals"]
    assert none["law"]["intervals"] == {}
    assert none["depth_interval"] is None
    assert [valley["is_visible"] for valley in none["valleys"]] == [valley["is_visible"] for valley in many["valleys"]]
    text = run(weak, "--draws", "0")
    assert "no intervals: --draws is 0" in text
    assert "interval not drawn: --draws is 0" in text


def test_draws_and_seed_reach_the_law(weak):
    law = [json.loads(run(weak, "--json", "--draws", "200", "--seed", seed))["law"] for seed in ("1", "2")]
    assert law[0]["parameters"] == law[1]["parameters"]
    assert law[0]["intervals"]["B"] != law[1]["intervals"]["B"]


def test_what_is_written_and_how_r_is_counted_is_said(weak, tmp_path):
    out = tmp_path / "best.json"
    text = run(weak, "--out", out, "--convention", "expert-attention")
    assert f"wrote: {out}" in text
    assert "since --convention says so, although flops_convention of the runs is exact" in text
    found = json.loads(run(weak, "--out", out, "--convention", "expert-attention", "--json"))
    assert found["out"] == str(out)
    assert (found["ratio_convention"], found["flops_convention"]) == ("expert-attention", "exact")
    assert {valley["ratio_convention"] for valley in found["valleys"]} == {"expert-attention"}


def test_budgets_that_mix_within_a_group_are_warned_of(weak):
    assert "within 3 of 3 groups the FLOPs of the runs differ, by up to 10 times" in run(weak, "--by", "sparsity")
    assert "warning:" not in run(weak)


def test_without_a_column_budget_the_flops_stand_in_and_stay(tmp_path):
    whole = table()
    bare = laws.RunTable([{name: value for name, value in row.items() if name != "budget"} for row in whole.rows])
    laws.write_runs(bare, tmp_path / "bare.csv")
    with pytest.raises(InputError, match=r"has no column budget; it has .* throughout each budget, use --set budget=f"):
        run(tmp_path / "bare.csv")
    found = json.loads(run(tmp_path / "bare.csv", "--set", "budget=flops", "--json"))
    assert len(found["valleys"]) == 9
    assert found["flops_convention"] == "exact"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda row: {"loss": row["loss"] + 25},
            r"loss is .* above 20 nats per token; all of them are: if they are perp",
        ),
        (lambda row: {"flops": row["flops"] * 1e3}, r"tokens is .* over 100 times apart"),
        (lambda row: {"run_id": "same"}, "run_id same is the same as in "),
    ],
)
def test_rows_are_checked_as_those_of_fits(tmp_path, change, sentence):
    sized = {"params_active": lambda row: row["flops"] / 6e9, "tokens": lambda row: 1e9}
    rows = [{**row, **{name: value(row) for name, value in sized.items()}} for row in table().rows]
    laws.write_runs(laws.RunTable(rows), tmp_path / "sound.csv")
    run(tmp_path / "sound.csv", "--draws", "0")
    laws.write_runs(laws.RunTable([{**row, **change(row)} for row in rows]), tmp_path / "runs.csv")
    for app, arguments in ((APP, ()), (FIT, ("--law", "allocation-loss"))):
        with pytest.raises(InputError, match=sentence):
            run(tmp_path / "runs.csv", *arguments, app=app)


def test_losses_in_another_unit_are_noted(tmp_path):
    low = [{**row, "loss": row["loss"] / 10} for row in table().rows]
    laws.write_runs(laws.RunTable(low), tmp_path / "low.csv")
    assert "less than any published law's irreducible loss" in " ".join(run(tmp_path / "low.csv").split())


def test_from_sweeps_through_a_file_to_a_plan(sweeps, tmp_path):
    out, spec_out = tmp_path / "best.json", tmp_path / "spec.yaml"
    run(sweeps, "--out", out)
    arguments = ("--law", "krajewski-2024-e16", "--flops", "1e19", "--granularity", "4", "--context", "1024")
    arguments += ("--vocab-size", "50257", "--allocation", out)
    shape = json.loads(run(*arguments, "--json", app=PLAN))["allocation"]
    said = json.loads(run(*arguments, "--ratio", "best", "--spec-out", spec_out, "--json", app=PLAN))["allocation"]
    budget = 3 * count(load_spec(spec_out)).flops_per_token["total"]
    assert said["law"] == str(sweeps)
    assert said["ratio_convention"] == "exact"
    model = load_spec(spec_out)
    tokens = json.loads(run(*arguments, "--ratio", "best", "--json", app=PLAN))["training"]["tokens"]
    truth = best(budget * tokens, model.experts.sparsity)
    assert said["best"] == pytest.approx(truth, rel=0.1)
    assert said["best_interval"][0] < truth < said["best_interval"][1]
    assert count(model).expert_attention_ratio == said["ratio"] == pytest.approx(said["best"], rel=0.0202)
    gain = DEPTH * (np.log(said["ratio"] / truth) ** 2 - np.log(said["template_ratio"] / truth) ** 2)
    assert said["change"] == pytest.approx(gain, abs=0.25 * abs(gain) + 1e-4)
    assert said["template_ratio"] == shape["ratio"]
    assert shape["asked"] is None
    assert shape["cost"] == pytest.approx(-gain, abs=0.25 * abs(gain) + 1e-4)
    written = run(*arguments, "--ratio", "best", "--spec-out", spec_out, app=PLAN)
    assert f"wrote: {spec_out}" in written
    assert f"count: isoflop count {spec_out} --convention exact" in written
    text = run(*arguments, "--ratio", "2", app=PLAN)
    assert "experts and attention: r = 2" in text or "experts and attention: r = 1.9" in text
    assert "counted as exact" in text
    assert "which would count them twice" in text


def test_tables_are_put_together_and_figures_drawn(tmp_path):
    whole = table()
    first, second = whole.where(sparsity=0.5), whole.where(np.asarray(whole["sparsity"]) > 0.5)
    laws.write_runs(first, tmp_path / "a.csv")
    laws.write_runs(second, tmp_path / "b.csv")
    found = json.loads(run(tmp_path / "a.csv", tmp_path / "b.csv", "--plots", tmp_path / "plots", "--json"))
    assert {valley["sparsity"] for valley in found["valleys"]} == {0.5, 0.875, 0.9375}
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {"valleys.png", "valleys.svg", "best-ratio.png", "best-ratio.svg"}
    laws.write_runs(table(3, depth=0.0), tmp_path / "flat.csv")
    run(tmp_path / "flat.csv", "--plots", tmp_path / "flat", "--draws", "0")
    assert len(list((tmp_path / "flat").iterdir())) == 4


def test_a_law_of_the_loss_with_a_valley_is_fitted_to_such_a_table(tmp_path):
    """Planted: the valley of law allocation-loss, from a table as sweeps of several sizes give it."""
    truth = {
        **{"e": 1.2, "a": 60.0, "b": 90.0, "c": 3.0, "v": 0.05, "alpha": 0.35, "beta": 0.3, "gamma": 0.4},
        **{"lambda": 0.12, "rho": 0.9, "sigma": 0.07},
    }
    rng, rows = np.random.default_rng(2), []
    for budget in (1e12, 1e13, 1e14, 1e15):
        for size in np.sqrt(budget / 600) * np.geomspace(0.3, 3, 4):
            for sparsity in (0.5, 0.875, 0.96875):
                for ratio in (0.3, 0.6, 1.2, 2.4, 4.8):
                    row = {
                        **{"params_active": size, "tokens": budget / 6 / size, "sparsity": sparsity, "flops": budget},
                        "expert_attention_ratio": ratio,
                    }
                    loss = laws.AllocationLoss().predict(
                        {name: np.array([value]) for name, value in row.items()}, truth
                    )
                    loss = float(loss[0]) * np.exp(0.0005 * rng.standard_normal())
                    rows.append({**row, "granularity": 4, "flops_convention": "exact", "loss": loss, "budget": budget})
    laws.write_runs(laws.RunTable(rows), tmp_path / "runs.csv")
    out = tmp_path / "fit.json"
    arguments = (tmp_path / "runs.csv", "--law", "allocation-loss", "--bootstrap", "60", "--holdout", "0")
    found = json.loads(run(*arguments, "--out", out, "--json", app=FIT))
    for name in ("v", "rho", "sigma"):
        low, high = found["intervals"][name]
        assert low <= truth[name] <= high
        assert found["parameters"][name] == pytest.approx(truth[name], rel=0.15)
    fitted = laws.load_fit(out)
    planned = plan_by_library(law=fitted, flops=1e14, vocab_size=257, context=128, ratio="best", expansion_rates=[8])
    assert planned.allocation.law == "law allocation-loss"
    floor = np.exp(truth["rho"] + truth["sigma"] * np.log(1e14 / 1e20))
    assert planned.allocation.best == pytest.approx(floor, rel=0.35)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--by", " "), "--by is empty; name the columns whose values make a group"),
        (("--by", "colour"), "has no column colour; it has run_id, flops, budget"),
        (("--convention", "mine"), "--convention is 'mine'; allowed: exact, "),
        (("--level", "2"), r"--level is 2; it must be between 0 and 1\."),
        (("--draws", "-1"), r"--draws is -1; it must be 0, for no intervals, or from 100 to 100,000\."),
        (("--draws", "20"), r"--draws is 20; it must be 0, for no intervals, or from 100 to 100,000\."),
        (("--draws", "99999999999"), r"--draws is 99999999999; it must be 0, for no intervals, or from 100 to"),
        (("--seed", "-1"), r"--seed is -1; it must be a whole number from 0\."),
        (("--by", "sparsity,sparsity"), "--by is sparsity,sparsity, which names sparsity twice"),
        (("--by", "sparsity,expert_attention_ratio"), "but expert_attention_ratio is what the runs of a group differ"),
        (("--out", "x.txt"), r"--out is x\.txt; it must end in \.json\."),
        (("--where", "sparsity=0.5", "--where", "expert_attention_ratio<0.3", "--out", "x.json"),
         "--out is x.json, but there is no law to write: no group has runs at three ratios or more"),
        (("--out", "/absent/x.json"), "--out is /absent/x.json, which cannot be written"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(sweeps, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        run(sweeps, *arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--ratio", "much"), r"--ratio is 'much'; it must be a positive number or best\."),
        (("--ratio", "1e9"), r"--ratio is 1e\+09 at .*; models like this one reach ratios from 0\.\d+ to \d+"),
        (("--context", "1000000000000"), r"--context is 1000000000000; it must be at most 100,000,000\."),
        (("--ratio", "-1"), "--ratio is -1; it must be positive and finite"),
        (("--ratio", "400"), "--ratio is 400 at .* the nearest has"),
        (
            ("--allocation", "chinchilla"),
            "--allocation is 'chinchilla'; published laws of the best ratio: li-2026; or give a .json file that",
        ),
        (("--allocation", "absent.json"), "--allocation file absent.json cannot be read"),
    ],
)
def test_mistakes_of_plans_are_one_sentence(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        run("--law", "krajewski-2024-e64", "--flops", "1e20", "--granularity", "4", *arguments, app=PLAN)
