"""`isoflop plan` as people and programs call it."""

import itertools
import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from isoflop import laws
from isoflop.cli.plan import plan
from isoflop.errors import InputError
from isoflop.planner import Template, sizes_around
from isoflop.spec import load_spec, save_spec

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
        (["--max-params-active", "1"], "max_params_active is 1, which leaves no candidate; allow at least 49152"),
        (["--tokens-available", "none"], "tokens_available is 'none'"),
        (["--within", "-1"], "within is -1"),
        (["--spec-out", "absent/spec.yaml"], "spec_out is absent/spec.yaml, which cannot be written"),
        (["--vocab-size", "0"], "vocab_size is 0"),
        (["--template", "absent.yaml"], "spec file absent.yaml cannot be read"),
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
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "print(time.process_time())\n"
    )
    command = [sys.executable, "-c", program]
    seconds = subprocess.run(command, check=True, capture_output=True, timeout=60, text=True).stdout
    assert float(seconds) < 1
