"""Generation: batched equals one by one, sampling follows its distribution, bad requests are refused."""

import pytest
import torch

from isoflop.errors import InputError
from isoflop.nn import Decoder, calibrate_thresholds
from isoflop.sample import generate
from isoflop.spec import AttentionSpec, DecoderSpec, DepthRoutingSpec, ExpertsSpec, FeedForwardSpec, RouterSpec

PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5], [8, 9, 7]]


DEPTH = {
    "mod": DepthRoutingSpec(capacity=0.4),
    "mod-predictor": DepthRoutingSpec(capacity=0.4, every=1, sampled_by="predictor"),
    "mod-feed-forward": DepthRoutingSpec(capacity=0.4, part="feed_forward"),
    "mod-stochastic": DepthRoutingSpec(capacity=0.4, router="stochastic"),
    "mod-fixed": DepthRoutingSpec(capacity=0.4, router="fixed"),
}


def make(kind=None, depth=None):
    experts = None
    if kind is not None:
        experts = ExpertsSpec(granularity=2, expansion_rate=4, router=RouterSpec(kind=kind))
    spec = DecoderSpec(
        vocab_size=29,
        context=32,
        n_layers=2,
        d_model=32,
        attention=AttentionSpec(n_heads=4, head_dim=8, n_kv_heads=2),
        feed_forward=FeedForwardSpec(d_ff=64),
        experts=experts,
        depth_routing=depth,
    )
    return Decoder(spec, seed=3)


MODELS = {
    "dense": (),
    "token_choice": ("token_choice",),
    "expert_choice": ("expert_choice",),
    **{name: (None, depth) for name, depth in DEPTH.items()},
    "staged": ("token_choice", DEPTH["mod"]),
    "staged, experts choose": ("expert_choice", DEPTH["mod"]),
}


@pytest.fixture(params=MODELS)
def model(request):
    model = make(*MODELS[request.param])
    if model.needs_calibration:
        tokens_BT = torch.randint(0, 29, (32, 32), generator=torch.Generator().manual_seed(0))
        calibrate_thresholds(model, [tokens_BT])
    model.decisions = "sampled"
    return model


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_batched_equals_one_by_one(model, temperature):
    together = generate(model, PROMPTS, max_new_tokens=12, temperature=temperature, seed=5)
    assert [len(new) for new in together] == [12] * 4
    for index, prompt in enumerate(PROMPTS):
        # The same place in the list, so that the same draws are used; companions are copies of the prompt.
        alone = generate(model, [prompt] * (index + 1), max_new_tokens=12, temperature=temperature, seed=5)
        assert alone[index] == together[index]


def test_greedy_equals_uncached_argmax(model):
    for prompt, new in zip(PROMPTS, generate(model, PROMPTS, max_new_tokens=10, temperature=0), strict=True):
        tokens = list(prompt)
        for token in new:
            with torch.no_grad():
                assert token == model(torch.tensor([tokens])).logits_BTV[0, -1].argmax().item()
            tokens.append(token)


def test_a_tensor_of_prompts_is_accepted(model):
    tokens_BT = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert generate(model, tokens_BT, max_new_tokens=4, temperature=0) == generate(
        model, tokens_BT.tolist(), max_new_tokens=4, temperature=0
    )


def test_seed_decides():
    model = make()
    draws = [generate(model, PROMPTS, max_new_tokens=12, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_samples_follow_the_softmax_and_top_p_cuts_its_tail():
    model = make()
    with torch.no_grad():
        probabilities_V = (model(torch.tensor([[7, 8]])).logits_BTV[0, -1] / 0.7).softmax(-1)
    n_draws = 4000
    drawn = generate(model, [[7, 8]] * n_draws, max_new_tokens=1, temperature=0.7)
    frequencies_V = torch.bincount(torch.tensor(drawn)[:, 0], minlength=29) / n_draws
    assert (frequencies_V - probabilities_V).abs().max() < 4 * (0.25 / n_draws) ** 0.5
    nucleus, total = set(), 0.0
    for token in probabilities_V.argsort(descending=True).tolist():
        if total >= 0.6:
            break
        nucleus.add(token)
        total += probabilities_V[token].item()
    drawn = generate(model, [[7, 8]] * n_draws, max_new_tokens=1, temperature=0.7, top_p=0.6)
    assert {token for (token,) in drawn} == nucleus


def test_tiny_top_p_is_greedy(model):
    greedy = generate(model, PROMPTS, max_new_tokens=8, temperature=0)
    assert generate(model, PROMPTS, max_new_tokens=8, top_p=1e-9) == greedy


@pytest.mark.parametrize("temperature", [1e-42, 5e-324])
def test_tiny_temperature_is_greedy(model, temperature):
    greedy = generate(model, PROMPTS, max_new_tokens=8, temperature=0)
    assert generate(model, PROMPTS, max_new_tokens=8, temperature=temperature) == greedy


def test_stop_ends_a_sequence_and_is_included():
    model = make()
    free = generate(model, PROMPTS, max_new_tokens=12, temperature=0)
    stop = free[0][3]
    for new, whole in zip(generate(model, PROMPTS, max_new_tokens=12, temperature=0, stop=stop), free, strict=True):
        expected = whole[: whole.index(stop) + 1] if stop in whole else whole
        assert new == expected


def test_nothing_to_do_gives_nothing():
    assert generate(make(), [], max_new_tokens=3) == []
    assert generate(make(), PROMPTS, max_new_tokens=0) == [[], [], [], []]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompts": [[1], []]}, r"prompts\[1\] is empty"),
        ({"prompts": [[1] * 30], "max_new_tokens": 3}, r"30 tokens and max_new_tokens is 3, together 33.* 32"),
        ({"prompts": [[1, 29]]}, r"token id 29; ids run from 0 to 28"),
        ({"prompts": [[-1]]}, r"token id -1"),
        ({"top_p": 0.0}, r"top_p is 0.0"),
        ({"top_p": 1.5}, r"top_p is 1.5"),
        ({"temperature": -1.0}, r"temperature is -1.0"),
        ({"temperature": float("nan")}, r"temperature is nan"),
        ({"seed": -1}, r"seed is -1"),
        ({"seed": 2**70}, r"seed is \d+; it must be between 0"),
        ({"max_new_tokens": -1}, r"max_new_tokens is -1"),
        ({"stop": 29}, r"stop is 29"),
        ({"stop": True}, r"stop is True; it must be a whole number"),
        ({"max_new_tokens": 2.5}, r"max_new_tokens is 2.5; it must be a whole number"),
        ({"seed": 1.5}, r"seed is 1.5; it must be a whole number"),
        ({"temperature": "hot"}, r"temperature is 'hot'; it must be a number"),
        ({"prompts": "import"}, r"prompts must be a list of lists of token ids"),
        ({"prompts": ["import"]}, r"text is encoded first"),
        ({"prompts": [1, 2]}, r"prompts must be a list of lists"),
        ({"prompts": None}, r"prompts must be a list of lists"),
        ({"prompts": [[1.5]]}, r"whole numbers"),
        ({"prompts": torch.tensor([[1.5]])}, r"whole numbers"),
    ],
)
def test_bad_requests_are_refused(changes, sentence):
    request = {"prompts": [[1, 2]], "max_new_tokens": 2} | changes
    with pytest.raises(InputError, match=sentence):
        generate(make(), request.pop("prompts"), **request)


def test_uncalibrated_expert_choice_is_refused():
    with pytest.raises(InputError, match="calibrate_thresholds"):
        generate(make("expert_choice"), [[1]], max_new_tokens=2)
