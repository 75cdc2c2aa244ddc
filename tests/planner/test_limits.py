"""What limits of memory, text, serving, latency and expert parallelism do to a plan, and what they cost."""

from dataclasses import replace

import numpy as np
import pytest
from tests.planner.made_up_runs import DENSE, MOE

from isoflop import count, laws
from isoflop.errors import InputError
from isoflop.planner import HARDWARE, Machine, architecture, memory_per_device, plan
from isoflop.spec import kv_cache_bytes, memory

E64 = "krajewski-2024-e64"
H100 = Machine(hardware=HARDWARE["h100-sxm"], devices=8)


def test_memory_on_one_device_is_that_of_the_spec():
    spec = architecture(MOE[2], d_model=128)
    whole = memory(spec, batch_tokens=4 * spec.context, activation_bytes=2)
    assert memory_per_device(spec, micro_batch=4) == whole.total
    saved = memory(spec, batch_tokens=4 * spec.context, activation_bytes=2, activation_checkpointing=True)
    assert memory_per_device(spec, micro_batch=4, activation_checkpointing=True) == saved.total < whole.total


def test_states_are_shared_by_devices_and_activations_are_not():
    spec = architecture(MOE[2], d_model=256)
    counted = count(spec)
    parameters = counted.params_total + counted.params_embedding
    two, four = (memory_per_device(spec, devices=n) for n in (2, 4))
    assert two - four == pytest.approx(16 * parameters / 4)
    many = memory_per_device(spec, devices=10**6)
    alone = memory(spec, batch_tokens=spec.context, weight_bytes=2, activation_bytes=2)
    assert many > alone.activations + alone.logits
    assert memory_per_device(spec, devices=10**6, expert_parallel=4) < many
    assert memory_per_device(spec, devices=10**6, micro_batch=2) > many


def test_a_memory_limit_binds_and_costs_what_freeing_it_gains():
    limit = 60e9
    free = plan(flops=1e22, law=E64, machine=H100)
    capped = plan(flops=1e22, law=E64, machine=H100, memory_per_device=limit)
    assert free.best.memory_bytes > limit
    assert 0.95 * limit < capped.best.memory_bytes <= limit * (1 + 1e-6)
    assert all(row.memory_bytes <= limit * (1 + 1e-9) for row in capped.table)
    assert all(memory_per_device(row.spec, devices=8) <= limit for row in capped.models)
    assert capped.models
    assert capped.constraint_costs["memory_per_device"] == pytest.approx(capped.best.loss - free.best.loss)
    more = plan(flops=1e22, law=E64, machine=replace(H100, devices=64), memory_per_device=limit)
    assert more.best.loss < capped.best.loss


def test_memory_of_continuous_shapes_is_that_of_models_nearby():
    found = plan(flops=1e21, law=E64, machine=H100)
    for row in found.table[:4]:
        built = row.spec
        ratio = memory_per_device(built, devices=8) / row.memory_bytes
        sizes = (count(built).params_active - count(built).params_router) / row.params_active
        assert ratio == pytest.approx(sizes, rel=0.15)


def test_memory_of_integer_models_is_exact(fits):
    machine = Machine(devices=2)
    found = plan(flops=1e14, law=fits, templates=[DENSE, *MOE], machine=machine, memory_per_device=4e7, micro_batch=2)
    assert all(row.memory_bytes == memory_per_device(row.spec, devices=2, micro_batch=2) <= 4e7 for row in found.table)
    with pytest.raises(InputError, match=r"memory_per_device is 1000, which leaves no candidate; allow at least (\d+)"):
        plan(flops=1e14, law=fits, templates=[DENSE, *MOE], memory_per_device=1e3)


def worth_by_hand(tokens, unique, decay=15.387756):
    repeats = max(tokens / unique - 1, 0)
    return min(tokens, unique) + unique * decay * (1 - np.exp(-repeats / decay))


def test_repeated_tokens_count_for_less():
    unique = 2e9
    once = plan(flops=1e20, law="besiroglu-2024", tokens_available=unique)
    again = plan(flops=1e20, law="besiroglu-2024", tokens_available=unique, repeat=True)
    free = plan(flops=1e20, law="besiroglu-2024")
    best = again.best
    assert free.best.loss < best.loss < once.best.loss
    assert best.tokens > unique
    assert best.tokens_effective == pytest.approx(worth_by_hand(best.tokens, unique), rel=1e-9)
    assert best.epochs == pytest.approx(best.tokens / unique)
    law = laws.published("besiroglu-2024")
    losses = {}
    for size in np.geomspace(1e8, 1e11, 4001):
        tokens = 1e20 / 6 / size
        columns = {"params_total": size, "tokens": worth_by_hand(tokens, unique)}
        losses[size] = float(law.form.predict(columns, law.parameters))
    assert best.loss == pytest.approx(min(losses.values()), abs=1e-6)
    assert best.params_active == pytest.approx(min(losses, key=losses.get), rel=0.01)
    assert again.constraint_costs["tokens_available"] == pytest.approx(best.loss - free.best.loss)


def test_epochs_are_capped():
    found = plan(flops=1e20, law="besiroglu-2024", tokens_available=2e9, repeat=True, max_epochs=4)
    assert found.best.tokens == pytest.approx(8e9)
    free = plan(flops=1e20, law="besiroglu-2024", tokens_available=2e9, repeat=True)
    assert found.constraint_costs["max_epochs"] == pytest.approx(found.best.loss - free.best.loss)


def test_a_law_that_knows_repetition_discounts_by_itself():
    found = plan(flops=1e20, law="muennighoff-2023", tokens_available=2e9, repeat=True)
    law = laws.published("muennighoff-2023")
    best = found.best
    columns = {"params_total": best.params_total, "tokens": best.tokens, "unique_tokens": 2e9}
    assert best.loss == pytest.approx(float(law.predict(columns)[0]))
    fresh = plan(flops=1e20, law="muennighoff-2023").best
    assert fresh.unique_tokens == fresh.tokens


def test_served_tokens_are_paid_and_make_models_smaller():
    served = 1e12
    free = plan(flops=1e22, law=E64)
    found = plan(flops=1e22, law=E64, inference_tokens=served)
    best = found.best
    assert best.params_active < 0.8 * free.best.params_active
    d_model, n_layers = best.d_model, best.n_layers
    forward = (24 * d_model**2 + 6 * d_model * best.n_experts) * n_layers
    assert best.lifetime_flops - best.flops == pytest.approx(forward * served)
    assert best.lifetime_flops == pytest.approx(1e22)
    assert found.constraint_costs["inference_tokens"] == pytest.approx(best.loss - free.best.loss)
    with pytest.raises(InputError, match=r"inference_tokens is 1e\+20; serving them takes .* FLOPs with the smallest"):
        plan(flops=1e22, law=E64, inference_tokens=1e20)


def test_served_tokens_of_integer_models_cost_their_forward(fits):
    found = plan(flops=1e14, law=fits, templates=[DENSE, *MOE], inference_tokens=1e7)
    for row in found.table:
        counted = count(row.spec)
        assert row.lifetime_flops - row.flops == pytest.approx(counted.flops_per_token["total"] * 1e7)
        assert 1e14 - counted.training_flops_per_token < row.lifetime_flops <= 1e14


def test_a_token_is_decoded_in_the_time_of_reading_what_it_uses(fits):
    templates = [replace(template, context=64) for template in (DENSE, *MOE)]
    limit = 2e-4
    found = plan(flops=1e14, law=fits, templates=templates, machine=H100, max_decode_ms=limit)
    for row in found.table:
        read = 2 * (row.params_active + 256 * row.d_model) + kv_cache_bytes(row.spec, tokens=64, element_bytes=2)
        assert row.decode_ms == pytest.approx(read / 3.35e12 * 1e3)
        assert row.decode_ms <= limit
    assert found.constraint_costs["max_decode_ms"] > 0
    capped = plan(flops=1e22, law=E64, machine=H100, max_decode_ms=1)
    assert 0.95 < capped.best.decode_ms <= 1 + 1e-6
    for row in capped.models:
        counted = count(row.spec)
        assert row.decode_ms * 3.35e9 / 2 > counted.params_active
    assert capped.best.decode_ms == pytest.approx(capped.models[0].decode_ms, rel=0.1)


def test_numbers_of_experts_must_divide():
    found = plan(flops=1e20, law=E64, granularities=[1, 2, 3, 8], expert_parallel=128)
    assert {row.granularity for row in found.table} == {2, 8}
    assert any("No model of moe-e64-g1, moe-e64-g3" in sentence for sentence in found.warnings)
    assert found.constraint_costs["expert_parallel"] == 0
    worse = plan(flops=1e20, law=E64, granularities=[3, 8], expert_parallel=192)
    assert worse.constraint_costs["expert_parallel"] > 0.005
    with pytest.raises(InputError, match=r"expert_parallel is 7, which divides no number of experts .* 64, 512"):
        plan(flops=1e20, law=E64, granularities=[1, 8], expert_parallel=7)


@pytest.mark.parametrize(
    "limits",
    [
        *({"max_params_active": cap} for cap in (1e7, 1e8, 3e8, 1e9)),
        *({"max_params_total": cap} for cap in (1e9, 1.29e10)),
        {"max_params_active": 3e8, "expansion_rates": [64], "granularities": [64]},
    ],
)
def test_the_model_to_train_is_within_the_caps(limits):
    """The router, which the paper's N leaves out, counts."""
    found = plan(flops=1e21, law=E64, **limits)
    counted = count(found.to_train.spec)
    caps = {name.removeprefix("max_"): cap for name, cap in limits.items() if name.startswith("max_")}
    for column, cap in caps.items():
        if found.best.model is not None:
            assert 0.95 * cap < getattr(found.best, column) <= cap
            continue
        routers = found.best.d_model * found.best.n_experts * found.best.n_layers
        assert getattr(found.best, column) + routers == pytest.approx(cap, rel=1e-6)
        assert all(getattr(count(row.spec), column) <= cap for row in found.models)
        assert 0.75 * cap < getattr(counted, column) <= cap
    assert found.to_train.architecture == found.best.architecture
    assert found.to_train.loss == pytest.approx(found.best.loss, abs=0.02)


def test_where_nothing_can_be_built_there_is_no_spec():
    """One block is the smallest continuous shape; the smallest model has two, and a head of 128."""
    found = plan(flops=1e15, law=E64, granularities=[1], max_params_active=6e4, head_dim=128)
    assert found.models == ()
    assert "No model of moe-e64-g1 that can be built fits the limits: there is no spec." in found.warnings
    assert found.to_dict()["best"]["spec"] is None
    with pytest.raises(InputError, match="no model of moe-e64-g1 that can be built fits the limits"):
        _ = found.to_train


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"repeat": True}, "repeat is given without tokens_available"),
        ({"tokens_available": 1e9, "max_epochs": 2}, "max_epochs is 2 without repeat"),
        ({"tokens_available": 1e9, "repeat": True, "max_epochs": 0.5}, "max_epochs is 0.5"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"expert_parallel": 0}, "expert_parallel is 0"),
        ({"inference_tokens": float("inf")}, "inference_tokens is inf"),
        ({"memory_per_device": -1}, "memory_per_device is -1"),
    ],
)
def test_wrong_limits_are_one_sentence(limits, words):
    with pytest.raises(InputError, match=words):
        plan(flops=1e20, law=E64, **limits)


@pytest.mark.parametrize("limit", [1e9, 2e9, 8e9])
def test_no_model_to_build_beats_the_best_row_under_a_memory_limit(limit):
    """A shape of one aspect, whose memory is interpolated, is not the best that a limit leaves."""
    machine = Machine(hardware=HARDWARE["h100-sxm"])
    found = plan(flops=1e21, law="krajewski-2024-dense", machine=machine, memory_per_device=limit)
    assert found.best.loss <= min(model.loss for model in found.models) + 0.001
    assert found.to_train.loss <= found.best.loss + 0.02
    assert found.best.memory_bytes <= limit * (1 + 1e-6)
