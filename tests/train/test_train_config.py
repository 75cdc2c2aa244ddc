import math
from dataclasses import replace

import pytest
import torch

from isoflop.errors import InputError
from isoflop.spec import count
from isoflop.train import TrainConfig, batch_tokens, learning_rate, resolve
from isoflop.train.device import choose_device
from isoflop.train.rules import BATCH_BOUNDS, LEARNING_RATE_BOUNDS, micro_batch
from isoflop.train.schedule import learning_rate_share


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "none is given"),
        ({"tokens": 1e6, "flops": 1e12}, "tokens and flops are given"),
        ({"tokens": -5}, "tokens is -5"),
        ({"flops": math.inf}, "flops is inf"),
        ({"flops": math.nan}, "flops is nan"),
        ({"tokens": 1e6, "batch_tokens": 0}, "batch_tokens is 0"),
        ({"tokens": 1e6, "learning_rate": 0.0}, "learning_rate is 0"),
        ({"tokens": 1e6, "schedule": "linear"}, "schedule is 'linear'; allowed: cosine, wsd"),
        ({"tokens": 1e6, "dtype": "float16"}, "dtype is 'float16'; allowed"),
        ({"tokens": 1e6, "warmup_fraction": 1.5}, "warmup_fraction is 1.5"),
        ({"tokens": 1e6, "schedule": "wsd", "warmup_fraction": 0.5, "decay_fraction": 0.6}, "at most 0.5"),
        ({"tokens": 1e6, "keep_checkpoints": -1}, "keep_checkpoints is -1"),
        ({"tokens": 1e6, "betas": (0.9, 1.0)}, "betas is"),
    ],
)
def test_a_wrong_field_is_one_sentence(values, words):
    with pytest.raises(InputError, match=words):
        TrainConfig(**values)


def test_configuration_survives_json(dense):
    config = TrainConfig(flops=1e12, betas=(0.8, 0.9))
    assert TrainConfig(**config.to_dict()) == config


@pytest.mark.parametrize("budget", [{"tokens": 100_000}, {"flops": 3e10}, {"tokens_per_parameter": 20}])
def test_budget_is_passed_by_less_than_one_step(dense, budget):
    plan = resolve(dense, TrainConfig(**budget))
    counted = count(dense)
    (name, asked), *_ = budget.items()
    reached = {
        "tokens": plan.tokens,
        "flops": plan.tokens * counted.training_flops_per_token,
        "tokens_per_parameter": plan.tokens / counted.params_active,
    }[name]
    assert asked <= reached < asked + reached / plan.steps
    assert plan.flops == pytest.approx(plan.tokens * counted.training_flops_per_token)
    assert plan.batch_tokens % dense.context == 0


def test_a_whole_number_of_steps_stays_whole(dense):
    assert resolve(dense, TrainConfig(tokens=320 * 7, batch_tokens=320)).steps == 7


def test_batch_off_the_context_names_both_neighbours(dense):
    with pytest.raises(InputError, match=r"batch_tokens is 100.* 96 or 112"):
        resolve(dense, TrainConfig(tokens=1e6, batch_tokens=100))
    with pytest.raises(InputError, match=r"micro_batch is 5.* 4 or 6"):
        resolve(dense, TrainConfig(tokens=1e6, batch_tokens=12 * 16, micro_batch=5))


@pytest.mark.parametrize("name", ["tokens", "flops", "tokens_per_parameter"])
def test_budget_below_one_step_says_what_suffices(dense, name):
    with pytest.raises(InputError, match=f"{name} is .*less than one step") as caught:
        resolve(dense, TrainConfig(**{name: 1e-3 if name == "tokens_per_parameter" else 100}))
    enough = float(str(caught.value).split("at least ")[1].split(",")[0])
    assert resolve(dense, TrainConfig(**{name: enough})).steps <= 2


def test_rules_are_monotone_and_bounded():
    rates = [learning_rate(10.0**power, moe=False) for power in range(1, 18)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[-1], rates[0]) == LEARNING_RATE_BOUNDS
    assert learning_rate(1e6, moe=True) > learning_rate(1e6, moe=False)
    batches = [batch_tokens(10.0**power, context=128) for power in range(6, 30)]
    assert batches == sorted(batches)
    assert (batches[0], batches[-1]) == BATCH_BOUNDS
    assert all(batch % 128 == 0 for batch in batches)
    assert batch_tokens(1e12, context=100) % 100 == 0
    assert batch_tokens(1e12, context=256, least_sequences=33) == 64 * 256


def test_micro_batch_keeps_logits_small():
    assert micro_batch(64, context=256, vocab_size=256) == 64
    assert micro_batch(48, context=1024, vocab_size=2**15) == 4
    assert micro_batch(48, context=1024, vocab_size=2**15, least=16) == 16


def test_expert_choice_gets_a_group_that_feeds_every_expert(expert_choice):
    plan = resolve(expert_choice, TrainConfig(tokens=1e5))
    assert plan.micro_batch >= expert_choice.experts.n_experts / expert_choice.experts.top_k


@pytest.mark.parametrize("sizes", [{"micro_batch": 2, "batch_tokens": 128}, {"batch_tokens": 48}])
def test_a_group_too_small_for_expert_choice_is_refused(expert_choice, dense, sizes):
    with pytest.raises(InputError, match=r"micro_batch is [23] sequences; .* 8 experts, 2 a token, needs .* least 4"):
        resolve(expert_choice, TrainConfig(tokens=1e5, **sizes))
    assert resolve(dense, TrainConfig(tokens=1e5, **sizes)).micro_batch in (2, 3)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_schedule_rises_then_falls_to_its_final_share(schedule):
    config = TrainConfig(tokens=1, schedule=schedule, warmup_fraction=0.1, final_lr_fraction=0.1)
    shares = [learning_rate_share(step, 200, config) for step in range(200)]
    assert 0 < shares[0] < shares[10] < shares[19] < 1
    assert shares[20] == 1
    assert shares[20:] == sorted(shares[20:], reverse=True)
    assert shares[-1] == pytest.approx(0.1)
    assert (shares[150] == 1) == (schedule == "wsd")


def test_cuda_is_the_card_of_the_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("torch.zeros", lambda *shape, device: torch.ones(1))
    assert choose_device("cuda") == torch.device("cuda:3")
    assert choose_device("cuda:1") == torch.device("cuda:1")


def test_meta_is_no_device_to_train_on():
    with pytest.raises(InputError, match="device is 'meta'"):
        choose_device("meta")


def test_each_process_has_its_share_of_the_batch(dense, expert_choice):
    config = TrainConfig(tokens=1e5, batch_tokens=512)
    assert [resolve(dense, config, world=world).micro_batch for world in (1, 2, 8)] == [32, 16, 4]
    assert resolve(expert_choice, config, world=8).micro_batch == 4
    with pytest.raises(InputError, match=r"batch_tokens is 512, which is 32 sequences; .* among 3 processes"):
        resolve(dense, config, world=3)
    with pytest.raises(InputError, match=r"micro_batch is 32; it must divide the share of each of 2 processes"):
        resolve(dense, replace(config, micro_batch=32), world=2)


def test_the_micro_batch_is_the_largest_divisor_with_small_logits():
    for sequences in (1, 7, 12, 60, 97):
        for least in (1, 3, 8):
            for vocab_size in (1, 2**25, 2**27, 2**28):
                divisors = [n for n in range(1, sequences + 1) if sequences % n == 0 and n >= least]
                fitting = [n for n in divisors if n * vocab_size <= 2**27]
                expected = max(fitting) if fitting else min(divisors, default=sequences)
                assert micro_batch(sequences, context=1, vocab_size=vocab_size, least=least) == expected


@pytest.mark.parametrize("name", ["tokens", "flops", "tokens_per_parameter"])
def test_a_budget_that_cannot_be_counted_is_refused(dense, name):
    with pytest.raises(InputError, match=rf"{name} is 1e\+300, which is .* tokens; a run can have at most"):
        resolve(dense, TrainConfig(**{name: 1e300}))


@pytest.mark.parametrize("name", ["weight_decay", "learning_rate", "clip", "warmup_fraction", "checkpoint_seconds"])
def test_what_is_not_a_number_is_refused(name):
    with pytest.raises(InputError, match=rf"{name} is nan; it must be"):
        TrainConfig(tokens=1, **{name: math.nan})
