"""`isoflop plan` as people and programs call it."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from isoflop import laws
from isoflop.cli.plan import plan
from isoflop.errors import InputError
from isoflop.planner import Template, sizes_around
from isoflop.spec import load_spec, save_spec
from isoflop.train import TrainConfig, resolve

APP = typer.Typer()
APP.command()(plan)

COLUMNS = {
    "params_total",
    "params_active",
    "params_embedding",
    "tokens",
    "flops",
    "flops_convention",
    "n_layers",
    "d_model",
    "granularity",
    "expansion_rate",
    "n_experts",
    "top_k",
    "sparsity",
    "expert_attention_ratio",
    "depth_capacity",
    "router",
    "loss",
    "loss_interval",
}


def run(*arguments: str) -> str:
    result = CliRunner().invoke(APP, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def document(*arguments: str) -> dict:
    return json.loads(run(*arguments, "--json"))


@pytest.fixture(scope="module")
def fit_document():
    """A fit of made-up dense runs, as `isoflop fit --json` writes it."""
    rows = [
        {
            "params_total": n,
            "params_active": n,
            "tokens": c / 6 / n,
            "flops": c,
            "flops_convention": "exact",
            "granularity": 1,
            "expansion_rate": 1,
            "loss": (1 + 8 / n**0.2 + 12 / (c / 6 / n) ** 0.2) * (1 + 0.001 * (-1) ** i),
        }
        for c in (1e12, 1e13, 1e14)
        for i, n in enumerate((3e4, 1e5, 3e5, 1e6, 3e6))
    ]
    return laws.fit(rows, "chinchilla", bootstrap=40).to_dict()


@pytest.mark.parametrize(
    ("flops", "tokens", "granularity", "loss"),
    [("2.95e18", 4.37e9, 8, 3.133), ("1.93e20", 28.94e9, 16, 2.491), ("4.97e25", 7.94e12, 64, 1.367)],
)
def test_rows_of_the_papers_table_as_json(flops, tokens, granularity, loss):
    found = document("--law", "krajewski-2024-e64", "--flops", flops, "--convention", "krajewski")
    best = found["best"]
    assert best.keys() >= COLUMNS
    assert best["granularity"] == granularity
    assert best["tokens"] == pytest.approx(tokens, rel=0.02)
    assert best["loss"] == pytest.approx(loss, abs=0.002)
    assert all(row.keys() >= COLUMNS for row in found["table"])
    assert {**found["table"][0], "spec": best["spec"]} == best
    assert [row["loss"] for row in found["table"]] == sorted(row["loss"] for row in found["table"])


def test_granularities_limits_and_spec_out(tmp_path):
    out = tmp_path / "best.yaml"
    found = document(
        *("--law", "krajewski-2024-e64", "--flops", "193e18", "--granularity", "1", "--granularity", "8"),
        *("--tokens-available", "20B", "--spec-out", str(out), "--vocab-size", "1000"),
    )
    assert [row["granularity"] for row in found["table"]] == [8, 1]
    assert found["best"]["tokens"] == pytest.approx(20e9)
    assert found["constraint_costs"]["tokens_available"] > 0.0005
    assert any("extrapolation" in sentence for sentence in found["warnings"])
    spec = load_spec(out)
    assert spec.experts.granularity == 8
    assert spec.vocab_size == 1000


def test_table_for_people():
    text = run("--law", "krajewski-2024-e64", "--flops", "1.93e20", "--within", "0.006")
    assert max(len(line) for line in text.splitlines() if "│" in line or "━" in line) <= 100
    marked = [line.split()[2] for line in text.splitlines() if line.startswith("│ *")]
    assert marked == ["moe-e64-g16", "moe-e64-g32", "moe-e64-g8"]
    assert text.startswith("warning: params_total is outside")
    assert "krajewski-2024-e64 · 1.93e20 FLOPs" in text
    assert "note: vocab_size 50257 and context 1024 are defaults" in text
    assert "isoflop train --spec spec.yaml --data DATA --out RUN --tokens 2" in text


def test_hours_of_hardware_and_every_limit():
    arguments = (
        *("--law", "krajewski-2024-e64", "--law", "krajewski-2024-dense", "--gpu-hours", "2000", "--devices", "64"),
        *("--hardware", "h100-sxm", "--utilisation", "0.4", "--price", "2.5", "--carbon-intensity", "400"),
        *("--expert-parallel", "8", "--inference-tokens", "1T", "--max-decode-ms", "5"),
        *("--tokens-available", "100B", "--repeat", "--max-epochs", "4", "--micro-batch", "2"),
    )
    found = document(*arguments)
    assert found["flops"] == pytest.approx(2000 * 3600 * 989.4e12 * 0.4)
    limits = {"tokens_available", "max_epochs", "memory_per_device", "max_decode_ms", "expert_parallel"}
    assert found["constraint_costs"].keys() == limits | {"inference_tokens"}
    best = found["best"]
    assert best["memory_bytes"] <= 80e9
    spent = best["expense"]
    assert spent["price"] == pytest.approx(2.5 * spent["device_hours"])
    assert spent["kg_co2e"] == pytest.approx(0.4 * spent["kwh"])
    assert found["machine"]["devices"] == 64
    assert found["against_dense"]["multiplier"]["value"] > 10
    assert found["training"]["batch_tokens"] % 1024 == 0
    assert found["training"]["command"].endswith("--dtype bfloat16")
    text = run(*arguments)
    for words in (
        "memory_per_device costs",
        "inference_tokens costs",
        "GB a device",
        "ms a token at least",
        "kg CO2e; price",
        "against dense: limits left out, dense needs",
        "models to build",
        "training by rule: learning rate",
        "taken to reach 40%",
    ):
        assert words in text
    free = document(*arguments, "--memory-per-device", "none")
    assert "memory_per_device" not in free["constraint_costs"]


def test_training_is_what_the_trainer_would_do(tmp_path):
    out = tmp_path / "spec.yaml"
    found = document("--law", "besiroglu-2024", "--flops", "1e18", "--spec-out", str(out))
    spec = load_spec(out)
    how = found["training"]
    resolved = resolve(spec, TrainConfig(tokens=how["tokens"]))
    assert how["learning_rate"] == resolved.learning_rate
    assert how["steps"] == resolved.steps
    assert how["batch_tokens"] == resolved.batch_tokens
    assert f"--spec {out} " in how["command"]
    assert f"--tokens {how['tokens']}" in how["command"]


def test_on_a_cpu_both_optima_are_printed(tmp_path):
    arguments = ("--law", "krajewski-2024-e64", "--hours", "1000", "--hardware", "cpu", "--measured-flops", "20e9")
    text = run(*arguments)
    assert "best at equal FLOPs: moe-e64-g" in text
    assert "best at equal time: moe-e64-g" in text
    table = {"name": "flat", "command": "-", "rows": [{"d_expert": 8, "relative": 1}]}
    (tmp_path / "flat.json").write_text(json.dumps(table))
    found = document(*arguments, "--speed", str(tmp_path / "flat.json"))
    assert found["best_for_time"]["granularity"] == found["best_for_flops"]["granularity"]
    assert document(*arguments)["best_for_time"]["granularity"] < found["best"]["granularity"]
    assert document(*arguments, "--speed", "none")["best_for_time"] is None


@pytest.mark.parametrize(
    ("law", "rate", "column", "value"),
    [
        ("li-2026", "5.6666667", "expert_attention_ratio", 1.223),
        ("tian-2025", "32.258", "leverage", 7.16),
    ],
)
def test_laws_of_something_else_answer_their_own_question(law, rate, column, value):
    arguments = ("--law", law, "--flops", {"li-2026": "1e20", "tian-2025": "1e22"}[law], "--expansion-rate", rate)
    rows = document(*arguments)["rows"]
    assert max(row[column] for row in rows) == pytest.approx(value, abs=0.01)
    text = run(*arguments)
    assert f"{column}: " in text
    with pytest.raises(InputError, match="flops is not given"):
        run("--law", law)


def test_a_fit_plans_integer_models(fit_document, tmp_path):
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(fit_document))
    found = document("--law", str(path), "--flops", "2e14", "--vocab-size", "256", "--context", "128")
    best = found["best"]
    assert best["flops_convention"] == "exact"
    assert isinstance(best["params_active"], int)
    assert best["loss_interval"][0] < best["loss"] < best["loss_interval"][1]
    spec = sizes_around(Template(vocab_size=512, context=64, activation="gelu"), 1e5, 1)[0]
    save_spec(spec, tmp_path / "gelu.yaml")
    text = run("--law", str(path), "--flops", "2e14", "--template", str(tmp_path / "gelu.yaml"))
    assert "* gelu" in text
    assert "90%" in text


def test_files_of_one_name_are_all_used(fit_document, tmp_path):
    """The MoE's law and the dense one, each written to fit.json of its directory."""
    moe = {**fit_document["runs"], "expansion_rate": [8] * 15}
    moe["params_total"] = [n * 68 / 12 for n in moe["params_active"]]
    for name, runs in (("moe", moe), ("dense", fit_document["runs"])):
        runs = {**runs, "flops_convention": ["6ND"] * 15}
        (tmp_path / name).mkdir()
        (tmp_path / name / "fit.json").write_text(json.dumps({**fit_document, "runs": runs}))
    laws_of = [word for name in ("moe", "dense") for word in ("--law", str(tmp_path / name / "fit.json"))]
    found = document(*laws_of, "--flops", "1e14", "--context", "128")
    assert {row["architecture"] for row in found["table"]} == {"moe-e8-g1", "dense"}
    assert not any("No candidate takes" in sentence for sentence in found["warnings"])
    with pytest.raises(InputError, match=r"law .*moe/fit\.json is given twice; give it once"):
        run(*laws_of, *laws_of[:2], "--flops", "1e14")


def test_a_law_that_no_candidate_takes_is_said(fit_document, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    spec = sizes_around(Template(vocab_size=256, context=64), 1e5, 1)[0]
    save_spec(spec, tmp_path / "plain.yaml")
    for name, label in (("a", "plain"), ("b", "other")):
        (tmp_path / name / "fit.json").write_text(json.dumps({**fit_document, "name": label}))
    laws_of = [word for name in ("a", "b") for word in ("--law", str(tmp_path / name / "fit.json"))]
    found = document(*laws_of, "--flops", "1e13", "--template", str(tmp_path / "plain.yaml"))
    assert found["warnings"][-1].startswith("No candidate takes law other:")
    (tmp_path / "both.json").write_text(json.dumps([fit_document, fit_document]))
    with pytest.raises(InputError, match=r"both\.json holds both more than once; give each of its fits a name"):
        run("--law", str(tmp_path / "both.json"), "--flops", "1e13")


def test_a_doubtful_fit_is_said_before_anything_else(fit_document, tmp_path):
    path = tmp_path / "fit.json"
    path.write_text(json.dumps({**fit_document, "status": "not_identified", "message": "E is loose"}))
    arguments = ("--law", str(path), "--flops", "5e12", "--vocab-size", "256", "--context", "128")
    says = "The law behind dense has status not_identified: E is loose."
    text = run(*arguments)
    assert text.startswith(f"warning: {says}\n")
    assert "5e12 FLOPs" in " ".join(text.split())
    assert "5T" not in text
    assert document(*arguments)["warnings"][0] == says


def test_directories_without_fits_say_what_to_run(tmp_path):
    with pytest.raises(InputError, match=r"a directory without fits\.json; give a study's directory"):
        run("--law", str(tmp_path), "--flops", "1e13")
    (tmp_path / "study.yaml").write_text("name: small\n")
    with pytest.raises(
        InputError, match=r"a study without fits\.json; finish it with `isoflop study run .*study\.yaml"
    ):
        run("--law", str(tmp_path), "--flops", "1e13")


def test_a_study_brings_its_architectures(fit_document, tmp_path):
    study = {
        "name": "small",
        "data": {"sources": "python-stdlib"},
        "context": 64,
        "budgets": [1e12, 1e13],
        "architectures": [{"name": "plain"}, {"name": "unfitted", "experts": {"granularity": 2, "expansion_rate": 4}}],
        "template": {"activation": "gelu"},
        "size_spacing": 2.0,
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    (tmp_path / "runs.csv").write_text("run_id,loss,vocab_size\na,3.0,300\n")
    entry = {**fit_document, "name": "dense", "architectures": ["plain"]}
    (tmp_path / "fits.json").write_text(json.dumps({"laws": [entry], "minima": [], "notes": []}))
    for name in (tmp_path, tmp_path / "fits.json"):
        found = document("--law", str(name), "--flops", "1e13")
        assert {row["architecture"] for row in found["table"]} == {"plain"}
        spec = found["best"]["spec"]
        assert (spec["vocab_size"], spec["context"], spec["feed_forward"]["activation"]) == (300, 64, "gelu")
    sizes = sorted(row["params_active"] for row in found["table"])
    assert all(high > 1.5 * low for low, high in itertools.pairwise(sizes))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--law", "krajewski"], r"law is 'krajewski'; .*krajewski-2024-e64, .*besiroglu-2024"),
        (["--law", "absent.json"], "law file absent.json cannot be read"),
        (["--convention", "sixnd"], "convention is 'sixnd'; allowed: exact"),
        (["--convention", "6ND"], "use convention krajewski, or a law of 6ND: hoffmann-2022"),
        (["--flops", "-1"], "flops is -1"),
        (["--flops", "much"], "flops is 'much'"),
        (["--max-params-active", "1"], "--max-params-active is 1, which leaves no candidate; allow at least 53248"),
        (["--tokens-available", "none"], "--tokens-available is 'none'"),
        (["--within", "-1"], "within is -1"),
        (["--spec-out", "absent/spec.yaml"], "--spec-out is absent/spec.yaml, which cannot be written"),
        (["--vocab-size", "0"], "--vocab-size is 0"),
        (["--template", "absent.yaml"], "spec file absent.yaml cannot be read"),
        (["--hours", "3"], "budget: --flops and --hours are given; give exactly one"),
        (["--utilisation", "0.4"], "utilisation is 0.4, but hardware is not given"),
        (["--devices", "8"], "--devices is 8, but --hardware is not given"),
        (["--spec-out", "x.txt"], r"--spec-out is x\.txt; it must end in \.yaml, \.yml or \.json"),
        (["--context", "2048", "--template", "absent.yaml"], "--context is 2048, but --template says it"),
        (["--flops", "1e40"], "flops is 1e\\+40; it must be positive and at most 1e30 FLOPs"),
        (["--hardware", "h9"], "hardware is 'h9'; give one of a100-40-sxm"),
        (["--speed", "gpu"], "speed is 'gpu'; give one of cpu"),
        (["--memory-per-device", "big"], "--memory-per-device is 'big'; it must be a number"),
        (["--max-decode-ms", "3"], "--max-decode-ms is given, but hardware is not given"),
        (["--expert-parallel", "7"], "--expert-parallel is 7, which divides no number of experts"),
        (["--max-epochs", "3"], "--max-epochs is 3 without repeat"),
        (["--multiple", "0"], "--multiple is 0"),
        (["--granularity", "0"], "--granularity is "),
        (["--expansion-rate", "0.5"], "--expansion-rate "),
    ],
)
def test_wrong_input_is_one_sentence(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    defaults = {"--law": "krajewski-2024-e64", "--flops": "1e20"}
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    flat = [word for pair in {**defaults, **given}.items() for word in pair]
    with pytest.raises(InputError, match=words):
        run(*flat)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ('{"a": [1]}', "holds no fit"),
        ('{"law": "chinchilla", "parameters": {}, "runs": {}}', "lacks the field"),
        ('{"law": "chinchilla", "parameters": {}, "runs": 3}', "wrong kind"),
    ],
)
def test_files_that_hold_no_fit(text, words, tmp_path):
    path = tmp_path / "fit.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        run("--law", str(path), "--flops", "1e13")


def test_planning_is_quick_and_needs_no_torch():
    program = (
        "import sys, time\n"
        "from isoflop.planner import plan\n"
        "import isoflop.cli.plan\n"
        "plan(flops=1.93e20, law='krajewski-2024-e64').best.spec\n"
        "from isoflop.cli._plan import training\n"
        "training(plan(flops=1.93e20, law='krajewski-2024-e64'), None)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert 'scipy' not in sys.modules, 'scipy was imported'\n"
        "print(time.process_time())\n"
    )
    command = [sys.executable, "-c", program]
    seconds = subprocess.run(command, check=True, capture_output=True, timeout=60, text=True).stdout
    assert float(seconds) < 1


def test_plots_are_written_and_named(tmp_path: Path) -> None:
    found = CliRunner().invoke(
        APP, ["--law", "krajewski-2024-e64", "--flops", "1e20", "--plots", str(tmp_path / "p"), "--json"]
    )
    assert found.exit_code == 0, found.output
    names = json.loads(found.stdout)["figures"]
    assert sorted(Path(name).name for name in names) == sorted(path.name for path in (tmp_path / "p").iterdir())
    assert {"plan-choices.png", "plan-isoloss.svg", "plan-budgets.png"} <= {Path(name).name for name in names}


def test_long_trainings_are_told_in_years() -> None:
    hardware = ("--hardware", "h100-sxm", "--devices", "8", "--memory-per-device", "none")
    assert "1.14K years by the clock" in run("--law", "hoffmann-2022", "--flops", "1e26", *hardware)
    assert " h by the clock" in run("--law", "hoffmann-2022", "--flops", "1e21", *hardware)


@pytest.mark.parametrize(
    "option", [["--plots", "p"], ["--hardware", "h100-sxm"], ["--max-params-total", "3B"], ["--repeat"]]
)
def test_options_that_a_law_of_something_else_has_no_use_for_are_refused(option):
    with pytest.raises(InputError, match=f"{option[0]} is given, but li-2026 predicts expert_attention_ratio"):
        run("--law", "li-2026", "--flops", "1e20", *option)
