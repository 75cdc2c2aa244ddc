"""The table of published models: its configurations give the published parameters, and its ratios are count's."""

import importlib.util
from pathlib import Path

import pytest

from isoflop.spec import AttentionSpec, DecoderSpec, ExpertsSpec, FeedForwardSpec, count

STUDIES = Path(__file__).parents[1] / "studies"
_spec = importlib.util.spec_from_file_location("open_models", STUDIES / "open_models.py")
assert _spec is not None
assert _spec.loader is not None
open_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(open_models)

MODELS = {model.name: model for model in open_models.read(STUDIES / "open-models.csv")}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_configuration_has_the_published_parameters(model):
    assert model.params(active=False, embedding=True) == pytest.approx(model["published_total"], rel=0.012)
    active = [model.params(active=True, embedding=embedding) for embedding in (False, True)]
    assert 0.83 * active[0] < model["published_active"] < 1.06 * active[1]


@pytest.mark.parametrize(
    "name", ["Mixtral 8x7B", "Qwen3-30B-A3B", "OLMoE 1B-7B", "Llama 4 Scout", "Granite 3.0 3B-A800M"]
)
def test_ratio_and_sparsity_are_those_of_the_accounting(name):
    model = MODELS[name]
    k = int(model["top_k"])
    spec = DecoderSpec(
        vocab_size=int(model["vocabulary"]),
        context=4096,
        n_layers=int(model["layers"]),
        d_model=int(model["d_model"]),
        attention=AttentionSpec(
            n_heads=int(model["heads"]), head_dim=int(model["head_dim"]), n_kv_heads=int(model["kv_heads"])
        ),
        feed_forward=FeedForwardSpec(d_ff=k * int(model["d_expert"])),
        experts=ExpertsSpec(
            granularity=k,
            expansion_rate=model["experts"] / k,
            shared_experts=int(model["shared"]),
            output_norm=False,
        ),
    )
    counted = count(spec, convention="expert-attention")
    assert model.ratio(4096) == pytest.approx(counted.expert_attention_ratio, rel=1e-12)
    assert model.sparsity == pytest.approx(spec.experts.sparsity, rel=1e-12)
    norms = counted.params_by_part["norms"]
    assert model.params(active=False, embedding=False) == pytest.approx(counted.params_total - norms, rel=1e-12)


def test_the_published_law_is_extrapolated_and_said_so():
    cells = open_models.cells(MODELS["OLMoE 1B-7B"], 4096)
    assert cells[5] == "1.50"
    assert cells[-1] == "×1.79"
    assert open_models.cells(MODELS["Mixtral 8x7B"], 4096)[-1] == "–"
