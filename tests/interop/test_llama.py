"""Llama models of transformers as ours: the same logits, or one sentence."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from isoflop.errors import InputError
from isoflop.interop import from_transformers
from isoflop.interop.llama import llama_spec
from isoflop.nn import retrofit
from isoflop.spec import DepthRoutingSpec

transformers = pytest.importorskip("transformers")


def llama(**changes):
    """A tiny random Llama with uneven norms, so that a swapped one shows."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 53,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 40,
        "initializer_range": 0.2,
        "rms_norm_eps": 3e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings | changes)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.2 * torch.randn_like(weight))
    return model


@pytest.fixture
def directory(tmp_path):
    llama().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def tokens():
    return torch.randint(0, 53, (3, 40), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4}, {"head_dim": 16}],
    ids=["grouped", "tied", "multi-head", "wide heads"],
)
def test_logits_are_those_of_transformers(tmp_path, changes):
    theirs = llama(**changes)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(tokens()).logits
        for source in (theirs, tmp_path, str(tmp_path)):
            ours = from_transformers(source)
            assert not ours.training
            torch.testing.assert_close(ours(tokens()).logits_BTV, expected, rtol=0, atol=1e-5)
    assert ours.spec == llama_spec(tmp_path)
    assert ours.spec.tied_head == bool(changes.get("tie_word_embeddings"))
    assert (ours.spec.n_layers, ours.spec.context, ours.spec.norm_eps) == (3, 40, 3e-6)


def test_retrofitted_at_capacity_one_it_is_still_the_llama(directory):
    routed = retrofit(from_transformers(directory), DepthRoutingSpec(capacity=1.0, gate="sigmoid"))
    with torch.no_grad():
        expected = llama()(tokens()).logits
        torch.testing.assert_close(routed(tokens()).logits_BTV, expected, rtol=0, atol=1e-5)


def test_half_precision_is_read_in_single_and_the_copy_is_independent(tmp_path):
    theirs = llama().to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    ours = from_transformers(tmp_path)
    assert ours.embedding_VD.dtype == torch.float32
    assert torch.equal(ours.embedding_VD, theirs.model.embed_tokens.weight.float())
    same = from_transformers(theirs)
    assert same.embedding_VD.dtype == torch.bfloat16
    with torch.no_grad():
        same.final_gain.zero_()
    assert theirs.model.norm.weight.any()


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 20,
}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rope_parameters": LLAMA3}, "rope_parameters.rope_type is 'llama3'; only plain rotary positions"),
        ({"attention_bias": True}, "attention_bias is True, which a spec cannot express; allowed: False"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which a spec cannot express; allowed: silu"),
    ],
)
def test_what_a_spec_cannot_express_is_refused(tmp_path, changes, sentence):
    theirs = llama(**changes)
    theirs.save_pretrained(tmp_path)
    for source in (theirs, tmp_path):
        with pytest.raises(InputError, match=sentence):
            from_transformers(source)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; only dense models of the type 'llama'"),
        ({"model_type": None}, "model_type is not given"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "quantization_config is"),
        ({"num_attention_heads": 5}, "is not a Llama configuration: "),
        ({"num_hidden_layers": 4}, r"lacks weight model\.layers\.3\."),
        ({"num_hidden_layers": 2}, r"has the unknown weight model\.layers\.2\."),
        ({"intermediate_size": 64}, "has weights that cannot be loaded"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "rope_type is 'linear'"),
    ],
)
def test_a_directory_that_does_not_hold_a_llama_is_refused(directory, change, sentence):
    file = directory / "config.json"
    values = {key: value for key, value in (json.loads(file.read_text()) | change).items() if value is not None}
    file.write_text(json.dumps(values))
    with pytest.raises(InputError, match=sentence) as caught:
        from_transformers(directory)
    assert "\n" not in str(caught.value)


def test_directories_and_objects_of_another_kind_are_refused(directory, tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json that can be read"):
        from_transformers(tmp_path / "nowhere")
    with pytest.raises(InputError, match="model_type is not given"):
        from_transformers(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="has no embedding matrix"):
        from_transformers(llama().model)
    (directory / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        from_transformers(directory)


def test_damaged_and_foreign_weights_are_refused(directory):
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="has weights that cannot be loaded") as caught:
        from_transformers(directory)
    assert "\n" not in str(caught.value)
    file.write_bytes(whole)
    weights = load_file(file)
    save_file(weights | {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"has the unknown weight model\.layers\.0\.self_attn\.q_norm"):
        from_transformers(directory)
    file.unlink()
    with pytest.raises(InputError, match="has weights that cannot be loaded"):
        from_transformers(directory)


def test_without_transformers_a_sentence_says_what_to_install(directory):
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from isoflop.interop import from_transformers\n"
        "from isoflop.errors import InputError\n"
        "try:\n    from_transformers(sys.argv[1])\n"
        "except InputError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=True)
    assert "not installed: pip install 'isoflop[transformers]'" in result.stdout
