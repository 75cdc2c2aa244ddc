"""What a plan may run on: devices by name or from a file, hours as FLOPs, and what the hours use and cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from isoflop.errors import InputError

UTILISATION: Final = 0.35
"""Share of the peak that training is assumed to reach where nobody measured it."""

PUE: Final = 1.58
"""Energy of the whole site / energy of the devices where it is not said: the industry's mean of 2023 (Uptime Institute,
Global Data Center Survey 2023)."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One accelerator, or the machine that stands for one."""

    name: str
    """What it is called."""
    peak_flops: float | None = None
    """Dense bf16 FLOP/s of the datasheet; None where there is none and a measured figure must stand in."""
    memory_bytes: float | None = None
    """Memory of one device, bytes (the datasheet's GB are 1e9)."""
    memory_bandwidth: float | None = None
    """Bytes a second between that memory and the arithmetic."""
    watts: float | None = None
    """Electric power at full load: of the board, without its host."""
    source: str = ""
    """Where the figures stand."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("name", "source"):
                if not isinstance(value, str):
                    raise InputError(f"hardware {field.name} is {value!r}; it must be text.")
            elif value is not None and not (_is_number(value) and 0 < value < math.inf):
                raise InputError(f"hardware {field.name} is {value!r}; it must be a positive, finite number.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _nvidia(name: str, tflops: float, gigabytes: float, terabytes: float, watts: float, sheet: str) -> Hardware:
    return Hardware(
        name=name,
        peak_flops=tflops * 1e12,
        memory_bytes=gigabytes * 1e9,
        memory_bandwidth=terabytes * 1e12,
        watts=watts,
        source=f"NVIDIA {sheet} datasheet, dense bf16",
    )


HARDWARE: Final[Mapping[str, Hardware]] = MappingProxyType(
    {
        device.name: device
        for device in (
            _nvidia("a100-40-sxm", 312, 40, 1.555, 400, "A100"),
            _nvidia("a100-80-sxm", 312, 80, 2.039, 400, "A100"),
            _nvidia("h100-sxm", 989.4, 80, 3.35, 700, "H100"),
            _nvidia("h200-sxm", 989.4, 141, 4.8, 700, "H200"),
            _nvidia("b200-sxm", 2250, 180, 8.0, 1000, "HGX B200"),
            Hardware(name="cpu", source="no datasheet: give the FLOP/s that you measured"),
        )
    }
)
"""Devices by name."""


def hardware(name: str) -> Hardware:
    """The device of this name, or the one that a YAML file (fields of Hardware) describes.

    Raises:
        InputError: if there is none of this name, or the file says something else.
    """
    if name in HARDWARE:
        return HARDWARE[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"hardware is {name!r}; give one of {', '.join(HARDWARE)}, or a .yaml file.")
    import yaml

    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"hardware file {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"hardware file {path} is not YAML.") from None
    allowed = [field.name for field in fields(Hardware)]
    if not isinstance(values, dict):
        raise InputError(f"hardware file {path} holds no fields; give {', '.join(allowed)}.")
    unknown = [str(key) for key in values if key not in allowed]
    if unknown:
        raise InputError(f"hardware file {path} has {', '.join(unknown)}; allowed are {', '.join(allowed)}.")
    numbers = {key: _number(value) for key, value in values.items()}
    return Hardware(**{"name": path.stem, "source": str(path), **numbers})


def _number(value: Any) -> Any:
    """YAML 1.1 reads 3.0e14, without a sign in the exponent, as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


@dataclass(frozen=True, kw_only=True)
class Expense:
    """What one training run takes on a machine."""

    device_hours: float
    """Hours of one device, summed over the devices."""
    hours: float
    """By the clock."""
    kwh: float | None
    """Electric energy of devices and site; None where the device's power is unknown."""
    kg_co2e: float | None
    """Carbon dioxide equivalent of that energy; None where no intensity was stated."""
    price: float | None
    """In the currency of the price of a device-hour; None where none was stated."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices that a run has to itself, how fast they are, and what an hour of them takes."""

    hardware: Hardware | None = None
    """The device; None: only their number is known."""
    devices: int = 1
    """How many share one run."""
    utilisation: float | None = None
    """Share of the peak that training reaches; None: 0.35, said in the plan's notes."""
    measured_flops: float | None = None
    """Training FLOP/s that one device was seen to do, in place of peak × utilisation."""
    price: float | None = None
    """Of a device-hour, in any currency."""
    carbon_intensity: float | None = None
    """kg CO2e of a kWh."""
    pue: float | None = None
    """Energy of the site / energy of the devices; None: 1.58, said in the plan's notes."""

    def __post_init__(self) -> None:
        if self.devices < 1 or self.devices != int(self.devices):
            raise InputError(f"devices is {self.devices:g}; it must be a whole number from 1.")
        if self.utilisation is not None and not 0 < self.utilisation <= 1:
            raise InputError(f"utilisation is {self.utilisation:g}; it must be above 0 and at most 1.")
        if self.measured_flops is not None and self.utilisation is not None:
            raise InputError("measured_flops and utilisation are both given; the one measured is what is left of peak.")
        if self.pue is not None and not 1 <= self.pue < math.inf:
            raise InputError(f"pue is {self.pue:g}; it must be at least 1 (site / devices).")
        for name, least in (("measured_flops", "positive"), ("price", "0 or more"), ("carbon_intensity", "0 or more")):
            value = getattr(self, name)
            if value is None:
                continue
            if not 0 <= value < math.inf or (least == "positive" and value == 0):
                raise InputError(f"{name} is {value:g}; it must be {least} and finite.")

        peak = None if self.hardware is None else self.hardware.peak_flops
        if self.measured_flops is not None and peak is not None and self.measured_flops > peak:
            raise InputError(
                f"measured_flops is {self.measured_flops:g}; {self.hardware.name} peaks at {peak:g} FLOP/s."  # type: ignore[union-attr]
            )

    @property
    def flops_per_second(self) -> float | None:
        """Training FLOP/s of one device; None where nothing says it."""
        if self.measured_flops is not None:
            return self.measured_flops
        if self.hardware is None or self.hardware.peak_flops is None:
            return None
        return self.hardware.peak_flops * (UTILISATION if self.utilisation is None else self.utilisation)

    @property
    def used_share(self) -> float | None:
        """The share of the peak that is reckoned with; None where FLOP/s were measured, or the peak is unknown."""
        if self.measured_flops is not None or self.hardware is None or self.hardware.peak_flops is None:
            return None
        return UTILISATION if self.utilisation is None else self.utilisation

    def flops(self, device_hours: float) -> float:
        """Training FLOPs that so many device-hours hold.

        Raises:
            InputError: if the hours are not positive, or nothing says how fast a device is.
        """
        if not 0 < device_hours < math.inf:
            raise InputError(f"device_hours is {device_hours:g}; it must be positive and finite.")
        rate = self.flops_per_second
        if rate is None:
            name = "none" if self.hardware is None else self.hardware.name
            raise InputError(f"hardware is {name}, whose FLOP/s are unknown; give measured_flops, or other hardware.")
        return device_hours * 3600 * rate

    def expense(self, flops: float) -> Expense | None:
        """What so many FLOPs, at the machine's rate, take; None where the rate is unknown."""
        rate = self.flops_per_second
        if rate is None:
            return None
        device_hours = flops / rate / 3600
        watts = self.hardware.watts if self.hardware else None
        kwh = None if watts is None else device_hours * watts / 1000 * (PUE if self.pue is None else self.pue)
        return Expense(
            device_hours=device_hours,
            hours=device_hours / self.devices,
            kwh=kwh,
            kg_co2e=None if kwh is None or self.carbon_intensity is None else kwh * self.carbon_intensity,
            price=None if self.price is None else device_hours * self.price,
        )

    def notes(self) -> list[str]:
        """Sentences about what was assumed."""
        found = []
        if self.hardware is not None and self.measured_flops is None and self.hardware.peak_flops is not None:
            assumed = self.utilisation is None
            share = UTILISATION if self.utilisation is None else self.utilisation
            found.append(
                f"{self.hardware.name} does {self.hardware.peak_flops / 1e12:g} TFLOP/s of dense bf16 at its peak "
                f"({self.hardware.source}); training is {'assumed' if assumed else 'taken'} to reach {share:.0%} of it"
                + (", which only a run can tell." if assumed else ".")
            )
        if self.hardware is not None and self.hardware.watts is not None and self.flops_per_second is not None:
            pue = PUE if self.pue is None else self.pue
            average = ", the industry's mean of 2023" if self.pue is None else ""
            carbon = "" if self.carbon_intensity is None else f"; {self.carbon_intensity * 1000:g} g CO2e/kWh"
            found.append(
                f"energy: {self.hardware.watts:g} W a device all the time, its host left out, times a PUE of "
                f"{pue:g}{average}{carbon}."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return {
            **vars(self),
            "hardware": None if self.hardware is None else dict(vars(self.hardware)),
            "utilisation": self.used_share,
            "pue": self.pue if self.pue is not None or self.hardware is None else PUE,
            "flops_per_second": self.flops_per_second,
        }
