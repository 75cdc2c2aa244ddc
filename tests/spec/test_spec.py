"""Validation: every wrong value is one sentence that names the field, the value and what is allowed."""

import json
import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from isoflop import AttentionSpec, DecoderSpec, ExpertsSpec, FeedForwardSpec, InputError, RouterSpec
from isoflop.spec import load_spec, parse_spec, save_spec, spec_to_dict

DENSE: dict[str, Any] = {
    "vocab_size": 257,
    "context": 64,
    "n_layers": 3,
    "d_model": 48,
    "attention": {"n_heads": 4, "head_dim": 12, "n_kv_heads": 2, "qk_norm": True},
    "feed_forward": {"d_ff": 128},
}
MOE: dict[str, Any] = {
    **DENSE,
    "experts": {"granularity": 4, "expansion_rate": 8, "shared_experts": 1, "router": {"kind": "expert_choice"}},
}


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize("values", [DENSE, MOE])
def test_a_round_trip_through_a_file_is_the_identity(tmp_path: Path, values: dict[str, Any], suffix: str) -> None:
    spec = parse_spec(values)
    assert parse_spec(spec_to_dict(spec)) == spec
    save_spec(spec, tmp_path / f"spec{suffix}")
    assert load_spec(tmp_path / f"spec{suffix}") == spec
    assert isinstance(spec.attention, AttentionSpec)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(json.dumps(DENSE)[:-1] + ', "norm_eps": 1e-5}')
    assert load_spec(path).norm_eps == 1e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d_model": 0}, ["d_model", "0", "greater than 0"]),
        ({"d_model": "wide"}, ["d_model", "'wide'", "a whole number"]),
        ({"d_model": 1.5}, ["d_model", "1.5", "a whole number"]),
        ({"d_model": True}, ["d_model", "true", "a whole number"]),
        ({"d_model": None}, ["d_model", "empty", "a whole number"]),
        ({"d_model": date(2020, 1, 2)}, ["d_model", "2020-01-02", "a whole number"]),
        ({"norm_eps": "small"}, ["norm_eps", "'small'", "a number"]),
        ({"tied_head": "perhaps"}, ["tied_head", "'perhaps'", "true or false"]),
        ({"attention": 7}, ["attention", "7", "a mapping with the fields n_heads, head_dim"]),
        ({"experts": []}, ["experts", "a mapping with the fields granularity"]),
        ({"experts": {"granularity": 4, "expansion_rate": True}}, ["experts.expansion_rate", "true", "a number"]),
        (
            {"experts": {"granularity": 4, "expansion_rate": 8, "router": "dice"}},
            ["experts.router", "'dice'", "a mapping with the fields kind"],
        ),
        ({"width": 3}, ["width", "not a field"]),
        ({"attention": {"n_heads": 4, "head_dim": 13}}, ["head_dim", "13", "even"]),
        ({"attention": {"n_heads": 4, "head_dim": 12, "n_kv_heads": 3}}, ["n_kv_heads", "3", "divide", "4"]),
        ({"attention": {"n_heads": 4}}, ["attention.head_dim", "missing"]),
        ({"feed_forward": {"d_ff": 128, "activation": "tanh"}}, ["activation", "'tanh'", "swiglu", "relu"]),
        (
            {"experts": {"granularity": 3, "expansion_rate": 8}},
            ["granularity", "3", "d_ff=128", "2 or 4", "126 or 129"],
        ),
        ({"experts": {"granularity": 1, "expansion_rate": float("inf")}}, ["expansion_rate", "inf", "finite"]),
        ({"norm_eps": float("inf")}, ["norm_eps", "inf", "finite"]),
        ({"experts": {"granularity": 1, "expansion_rate": 2.5}}, ["expansion_rate", "2.5", "whole"]),
        ({"experts": {"granularity": 3, "expansion_rate": 0.5}}, ["expansion_rate=0.6666666666666666"]),
        ({"n_layers": 10**15}, ["n_layers", "1000000000000000", "at most 65536"]),
        (
            {"experts": {"granularity": 1, "expansion_rate": 2, "activation_multiplier": 3}},
            ["activation_multiplier", "3", "at most 2"],
        ),
        ({"experts": {"granularity": 1, "expansion_rate": 8, "skip_first": 3}}, ["skip_first", "3", "n_layers=3"]),
        ({"experts": {"granularity": 1, "expansion_rate": 8, "router": {"kind": "dice"}}}, ["kind", "dice"]),
        (
            {"experts": {"granularity": 1, "expansion_rate": 8, "router": {"z_loss_weight": -1}}},
            ["z_loss_weight", "-1"],
        ),
        (
            {"experts": {"granularity": 1, "expansion_rate": 8, "router": {"bias_rate": float("inf")}}},
            ["bias_rate", "inf", "finite"],
        ),
    ],
)
def test_a_wrong_value_is_one_sentence(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_spec({**DENSE, **change})
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", message) or word in message, (word, message)
    for word in ("Input", "integer", "NoneType", "None", "dict", "dataclass", "bool", "tuple", "datetime", "instance"):
        assert word not in message, (word, message)


@pytest.mark.parametrize(
    ("old", "new", "nearest"),
    [("vocab_size", "vocabsize", "vocab_size"), ("d_model", "dmodel", "d_model"), ("context", "contxt", "context")],
)
def test_a_misspelt_required_field_is_named_with_the_nearest(old: str, new: str, nearest: str) -> None:
    values = {new if name == old else name: value for name, value in DENSE.items()}
    with pytest.raises(InputError, match=rf"{new} is not a field; the nearest is {nearest}; allowed: vocab_size, "):
        parse_spec(values)


def test_a_misspelt_field_further_down_is_named_with_its_place() -> None:
    with pytest.raises(InputError, match=r"attention\.heads is not a field; the nearest is n_heads"):
        parse_spec({**DENSE, "attention": {"heads": 4, "head_dim": 12}})
    with pytest.raises(InputError, match=r"router\.knd is not a field; the nearest is kind"):
        parse_spec({**DENSE, "experts": {"granularity": 4, "expansion_rate": 8, "router": {"knd": "expert_choice"}}})


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read"):
        load_spec(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,")
    with pytest.raises(InputError, match=r"broken\.yaml is not valid YAML \(line 1"):
        load_spec(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(InputError, match=r"holds a list; a mapping with the fields vocab_size"):
        load_spec(tmp_path / "list.yaml")
    (tmp_path / "deep.yaml").write_text("[" * 3000)
    with pytest.raises(InputError, match=r"deep\.yaml is nested too deeply"):
        load_spec(tmp_path / "deep.yaml")
    for text in ("{", '{"d_model": ' + "9" * 5000 + "}"):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(InputError, match=r"broken\.json is not valid JSON"):
            load_spec(tmp_path / "broken.json")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(InputError, match=r"empty\.yaml is empty; a mapping"):
        load_spec(tmp_path / "empty.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"bytes\.yaml cannot be read: not UTF-8"):
        load_spec(tmp_path / "bytes.yaml")


@pytest.mark.parametrize("name", ["twice.yaml", "twice.json"])
def test_a_field_named_twice_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(DENSE)[:-1] + ', "d_model": 64}')
    with pytest.raises(InputError, match=r"names the field 'd_model' twice"):
        load_spec(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    for name in ("spec.yaml", "spec.json"):
        (tmp_path / name).write_text(json.dumps(DENSE), encoding="utf-8-sig")
        assert load_spec(tmp_path / name) == parse_spec(DENSE)


@pytest.mark.parametrize(
    ("skip_first", "every", "expected"),
    [(0, 1, [0, 1, 2, 3, 4, 5]), (2, 1, [2, 3, 4, 5]), (0, 2, [1, 3, 5]), (1, 2, [2, 4]), (0, 3, [2, 5])],
)
def test_which_blocks_are_moe(skip_first: int, every: int, expected: list[int]) -> None:
    experts = ExpertsSpec(granularity=1, expansion_rate=8, skip_first=skip_first, every=every)
    assert [layer for layer in range(6) if experts.is_expert_layer(layer)] == expected
    spec = parse_spec({**DENSE, "n_layers": 6, "feed_forward": {"d_ff": 8}})
    assert replace(spec, experts=experts).n_expert_layers == len(expected)


def test_granularity_and_expansion_rate_determine_the_experts() -> None:
    experts = ExpertsSpec(granularity=4, expansion_rate=8, activation_multiplier=0.5, shared_experts=1)
    assert (experts.n_experts, experts.top_k) == (32, 2)
    assert experts.sparsity == pytest.approx(1 - 3 / 33)
    assert RouterSpec().is_causal
    assert not RouterSpec(kind="expert_choice_noncausal").is_causal


def test_specs_are_frozen_and_hashable() -> None:
    spec = DecoderSpec(
        vocab_size=8,
        context=4,
        n_layers=1,
        d_model=8,
        attention=AttentionSpec(n_heads=1, head_dim=8),
        feed_forward=FeedForwardSpec(d_ff=16),
    )
    assert hash(spec) == hash(parse_spec(spec_to_dict(spec)))
    with pytest.raises(AttributeError):
        spec.d_model = 16  # type: ignore[misc]
