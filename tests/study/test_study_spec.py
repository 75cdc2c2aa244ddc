from typing import Any

import pytest
import yaml

from isoflop.errors import InputError
from isoflop.spec import DepthRoutingSpec
from isoflop.study import load_study
from isoflop.study.fits import families
from isoflop.study.spec import parse_study

BASE: dict[str, Any] = {
    "name": "s",
    "data": {"sources": "python-stdlib"},
    "context": 32,
    "budgets": ["1e9", 3e9],
    "architectures": [{"name": "dense"}, {"name": "moe", "experts": {"expansion_rate": 4, "granularity": [1, 2]}}],
}


def test_granularity_list_becomes_one_architecture_each() -> None:
    study = parse_study(BASE)
    assert study.budgets == (1e9, 3e9)
    assert [a.name for a in study.expanded] == ["dense", "moe-g1", "moe-g2"]
    experts = [a.experts for a in study.expanded]
    assert experts[0] is None
    assert [(e.granularity, e.n_experts) for e in experts if e] == [(1, 4), (2, 8)]
    assert {a.family for a in study.expanded} == {"dense", "moe"}


def test_capacities_become_one_architecture_each_with_a_law_of_its_own() -> None:
    routed = [
        {"name": "mod", "depth_routing": {"capacity": [0.125, 0.5], "router": "fixed"}},
        {"name": "deep", "depth_routing": {"capacity": 0.25}, "depth": 5.0, "params_active": {"1e9": [30000]}},
        {
            "name": "staged",
            "experts": {"expansion_rate": 4, "granularity": [1, 2]},
            "depth_routing": {"capacity": [0.125, 0.5]},
        },
    ]
    study = parse_study(BASE | {"budgets": ["1e9", "3e9"], "architectures": [{"name": "dense"}, *routed]})
    names = [architecture.name for architecture in study.expanded]
    staged = ["staged-g1-c.125", "staged-g1-c.5", "staged-g2-c.125", "staged-g2-c.5"]
    assert names == ["dense", "mod-c.125", "mod-c.5", "deep", *staged]
    mod, deep = study.architecture("mod-c.5"), study.architecture("deep")
    assert mod.depth_routing == DepthRoutingSpec(capacity=0.5, router="fixed")
    assert (deep.depth, deep.params_active) == (5.0, {1e9: (30000.0,)})
    template = study.model_template(deep, 257)
    assert (template.depth, template.depth_routing) == (5.0, deep.depth_routing)
    found = {family.name: [a.name for a in family.architectures] for family in families(study)}
    assert found == {
        "dense": ["dense"],
        "mod-c.125": ["mod-c.125"],
        "mod-c.5": ["mod-c.5"],
        "deep": ["deep"],
        "staged-g1-c.125": ["staged-g1-c.125", "staged-g2-c.125"],
        "staged-g1-c.5": ["staged-g1-c.5", "staged-g2-c.5"],
    }


def test_single_granularity_keeps_the_name_and_all_templates_share_shapes() -> None:
    values = BASE | {
        "architectures": [{"name": "dense"}, {"name": "x", "experts": {"expansion_rate": 2, "granularity": 8}}]
    }
    study = parse_study(values)
    assert [a.name for a in study.expanded] == ["dense", "x"]
    templates = [study.model_template(a, 257) for a in study.expanded]
    assert {template.width_multiple for template in templates} == {32}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": [1]}, "budget is not a field"),
        ({"budgets": []}, "budgets is empty"),
        ({"budgets": [-1.0]}, "budgets holds -1.0; a budget must be a finite number greater than 0"),
        ({"budgets": [1e9, 1e9]}, "each may stand there once"),
        ({"context": "many"}, "context is 'many'"),
        ({"extra_seeds": {"seeds": [1], "budget": [1e9]}}, "extra_seeds.budget is not a field; the nearest is budgets"),
        ({"verification": {"flop": 1e10}}, "verification.flop is not a field; the nearest is flops"),
        ({"training": {"learnin_rate": 1}}, "training.learnin_rate is not a field; the nearest is learning_rate"),
        ({"data": {}}, "data: give exactly one of path and sources"),
        ({"data": {"sources": "x", "tokeniser": "bytes"}}, "data.tokeniser is not a field"),
        ({"architectures": [{"name": "a/b"}]}, "name is 'a/b'; it must start with a letter or digit"),
        ({"architectures": [{"name": "a"}, {"name": "a"}]}, "architectures holds 'a' twice"),
        (
            {
                "architectures": [
                    {"name": "a", "experts": {"granularity": [1], "expansion_rate": 2}},
                    {"name": "a", "experts": {"granularity": [2], "expansion_rate": 4}},
                ]
            },
            "architectures holds 'a' twice",
        ),
        ({"seeds": [0, 0]}, "seeds is [0, 0]; seeds are whole numbers"),
        ({"extra_seeds": {"seeds": [-1]}}, "extra_seeds.seeds is [-1]"),
        ({"verification": {"flops": 1e12, "seeds": [10**23]}}, "verification.seeds is"),
        (
            {"architectures": [{"name": "a", "experts": {"expansion_rate": 2, "granularity": [1, "x"]}}]},
            "architectures.0.experts: granularity is 'x'",
        ),
        (
            {"architectures": [{"name": "a", "experts": {"expansion_rate": 2, "granularity": 1, "rooter": {}}}]},
            "architectures.0.experts: rooter is not a field",
        ),
        (
            {
                "architectures": [
                    {"name": "a", "experts": {"expansion_rate": 2, "granularity": 1, "router": {"kind": "x"}}}
                ]
            },
            "router.kind is 'x'",
        ),
        ({"architectures": [{"name": "a", "budgets": [7e9]}]}, "architectures.0.budgets holds 7e+09; allowed are"),
        ({"training": {"flops": 1}}, "training.flops cannot be set here"),
        ({"training": {"momentum": 1}}, "training.momentum is not a field; allowed: learning_rate_multiplier"),
        ({"training": {"clip": -1}}, "clip is -1"),
        ({"training": {"learning_rate_multiplier": "fast"}}, "learning_rate_multiplier is 'fast'"),
        ({"extra_seeds": {"seeds": [1], "budgets": [2e9]}}, "extra_seeds.budgets holds 2e+09"),
        ({"verification": {"flops": 1e10, "also": ["dens"]}}, "verification.also holds 'dens'; allowed: dense, moe-g1"),
        ({"verification": {"flops": 0}}, "verification.flops is 0.0"),
        ({"params_active": {1e9: []}}, "params_active.1e+09 is []"),
        ({"widen": {"sizes": -1}}, "widen"),
        ({"workers": 0}, "workers is 0"),
        ({"bootstrap": 5}, "bootstrap is 5; it must be 0 (no intervals) or at least 20"),
    ],
)
def test_mistakes_are_one_sentence_that_names_the_field(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_study(BASE | change, source="s.yaml")
    sentence = str(caught.value)
    assert sentence.startswith("s.yaml: ")
    assert said in sentence
    assert "\n" not in sentence


def test_files_that_are_no_study(tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"cannot be read: No such file"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(InputError, match="holds a list; a mapping with the fields name, "):
        load_study(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(InputError, match="not valid YAML"):
        load_study(tmp_path / "broken.yaml")
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(BASE))
    assert load_study(tmp_path / "good.yaml").name == "s"


def test_the_studies_that_ship_can_be_read(request: pytest.FixtureRequest) -> None:
    paths = list((request.config.rootpath / "studies").glob("*.yaml"))
    assert {path.stem for path in paths} >= {"quick", "granularity"}
    for path in paths:
        study = load_study(path)
        assert study.name == path.stem
        if study.verification is not None:
            assert study.verification.flops > max(study.budgets)


@pytest.mark.parametrize(
    ("routing", "said"),
    [
        ({"capacity": [0.5, 0.5]}, "architectures holds 'm-c.5' twice"),
        ({"capacity": True}, "capacity is true; it must be a number"),
        ({"capacity": [0.5, 2]}, "capacity is 2"),
        ({"capacity": []}, "architectures.0.depth_routing.capacity is empty"),
        ({"capacity": 0.5, "evry": 1}, "evry is not a field; the nearest is every"),
    ],
)
def test_wrong_depth_routing_is_one_sentence(routing: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        parse_study(BASE | {"architectures": [{"name": "m", "depth_routing": routing}]})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"expert_attention_ratio": 0}, "expert_attention_ratio is 0"),
        ({"expert_attention_ratio": []}, "expert_attention_ratio is empty"),
        ({"hold": ["params_active"]}, "hold is params_active without expert_attention_ratio"),
        ({"expert_attention_ratio": 1, "hold": ["tokens"]}, "hold"),
        ({"expert_attention_ratio": [1, 1]}, "architectures holds 'm-r1' twice"),
    ],
)
def test_wrong_ratios_are_one_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        parse_study(BASE | {"architectures": [{"name": "m"} | change]})
    assert said in str(error.value)


def test_plans_do_not_know_ratios() -> None:
    with pytest.raises(InputError, match="verification is given, but m has an expert_attention_ratio"):
        parse_study(
            BASE | {"architectures": [{"name": "m", "expert_attention_ratio": 2}], "verification": {"flops": 1e11}}
        )
