"""Budgets in hours, energy and price, and user files."""

import pytest

from isoflop import laws
from isoflop.errors import InputError
from isoflop.planner import HARDWARE, Hardware, Machine, hardware, plan

H100 = HARDWARE["h100-sxm"]


def test_gpu_hours_become_flops_at_the_stated_utilisation():
    machine = Machine(hardware=H100, devices=8, utilisation=0.4)
    found = plan(device_hours=1000, machine=machine, law="besiroglu-2024")
    assert found.flops == pytest.approx(1000 * 3600 * 989.4e12 * 0.4)
    assert plan(hours=125, machine=machine, law="besiroglu-2024").flops == pytest.approx(found.flops)
    assert found.best.expense.device_hours == pytest.approx(1000)
    assert found.best.expense.hours == pytest.approx(125)
    assert any("taken to reach 40%" in note for note in found.notes)


def test_utilisation_that_nobody_gave_is_said_to_be_assumed():
    found = plan(device_hours=10, machine=Machine(hardware=H100), law="besiroglu-2024")
    assert found.flops == pytest.approx(36000 * 989.4e12 * 0.35)
    assert any("assumed to reach 35%" in note for note in found.notes)
    assert any("PUE of 1.58, the industry's mean" in note for note in found.notes)


def test_energy_carbon_and_price_by_hand():
    machine = Machine(hardware=H100, utilisation=0.5, price=2.0, carbon_intensity=0.3, pue=1.2)
    spent = plan(flops=3600 * 989.4e12 * 0.5 * 100, machine=machine, law="besiroglu-2024").best.expense
    assert spent.device_hours == pytest.approx(100)
    assert spent.kwh == pytest.approx(100 * 0.7 * 1.2)
    assert spent.kg_co2e == pytest.approx(100 * 0.7 * 1.2 * 0.3)
    assert spent.price == pytest.approx(200)
    plain = plan(flops=1e20, machine=Machine(hardware=H100), law="besiroglu-2024").best.expense
    assert plain.kg_co2e is None
    assert plain.price is None
    assert plain.kwh > 0


def test_a_cpu_needs_a_measured_speed():
    with pytest.raises(InputError, match=r"hardware is cpu, whose FLOP/s are unknown; give measured_flops"):
        plan(hours=1, machine=Machine(hardware=HARDWARE["cpu"]), law="besiroglu-2024")
    found = plan(hours=100, machine=Machine(hardware=HARDWARE["cpu"], measured_flops=1e12), law="besiroglu-2024")
    assert found.flops == pytest.approx(3.6e17)
    assert found.best.expense.kwh is None


def test_the_table_is_what_datasheets_say():
    for device in HARDWARE.values():
        assert device.source
    assert H100.memory_bytes == 80e9
    ratio = HARDWARE["b200-sxm"].peak_flops / H100.peak_flops
    assert 2 < ratio < 2.5  # dense against dense; sparse figures are twice as large
    assert HARDWARE["a100-80-sxm"].peak_flops == 312e12


def test_users_bring_their_own_device(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("peak_flops: 1.0e14\nmemory_bytes: 24.0e9\nwatts: 300\n")
    mine = hardware(str(file))
    assert mine == Hardware(name="mine", peak_flops=1e14, memory_bytes=24e9, watts=300, source=str(file))
    found = plan(device_hours=10, machine=Machine(hardware=mine, utilisation=0.5), law="besiroglu-2024")
    assert found.flops == pytest.approx(10 * 3600 * 5e13)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("peak: 3\n", "has peak; allowed are name, peak_flops"),
        ("peak_flops: fast\n", "peak_flops is 'fast'; it must be a positive"),
        ("watts: -1\n", "watts is -1; it must be a positive"),
        ("- 3\n", "holds no fields"),
        ("a: [", "is not YAML"),
    ],
)
def test_files_that_describe_no_device(text, words, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=words):
        hardware(str(file))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flops": 1e20, "hours": 3}, "budget: flops and hours are given; give exactly one"),
        ({}, "budget: none is given"),
        ({"hours": 3}, "hours is given without a machine"),
        ({"hours": 0, "machine": Machine(hardware=H100)}, "hours is 0"),
        ({"device_hours": -1, "machine": Machine(hardware=H100)}, "device_hours is -1"),
        ({"hours": 3, "machine": Machine(devices=2)}, "hardware is none, whose FLOP/s are unknown"),
        ({"flops": 1e20, "max_decode_ms": 3}, "max_decode_ms is given, but hardware is not given"),
        (
            {"flops": 1e20, "expert_parallel": 3, "machine": Machine(hardware=H100, devices=8)},
            "expert_parallel is 3; it must divide devices=8",
        ),
    ],
)
def test_wrong_budgets_are_one_sentence(change, words):
    with pytest.raises(InputError, match=words):
        plan(law=laws.published("besiroglu-2024"), **change)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"utilisation": 1.2}, "utilisation is 1.2"),
        ({"devices": 0}, "devices is 0"),
        ({"pue": 0.9}, "pue is 0.9"),
        ({"price": -1.0}, "price is -1"),
        ({"measured_flops": 0.0}, "measured_flops is 0"),
        ({"measured_flops": 1e12, "utilisation": 0.5}, "measured_flops and utilisation are both given"),
    ],
)
def test_wrong_machines_are_one_sentence(arguments, words):
    with pytest.raises(InputError, match=words):
        Machine(hardware=H100, **arguments)


def test_unknown_hardware_lists_what_is_known():
    with pytest.raises(InputError, match=r"hardware is 'h9000'; give one of a100-40-sxm, .*cpu, or a \.yaml file"):
        hardware("h9000")
