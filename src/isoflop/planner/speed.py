"""How fast narrow experts compute: the hardware's price of granularity, from a measured table."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from isoflop.errors import InputError

_SHIPPED: Final = Path(__file__).parent / "data"


@dataclass(frozen=True, kw_only=True)
class SpeedTable:
    """Speed of an MoE layer against a dense feed-forward of the same FLOPs, by the width of its experts."""

    name: str
    """What was measured."""
    command: str
    """What measured it."""
    d_expert: tuple[float, ...]
    """Widths, rising."""
    relative: tuple[float, ...]
    """(training FLOP/s of the MoE layer, router and dispatch included) / (those of the dense layer)."""

    def __post_init__(self) -> None:
        widths, speeds = np.array(self.d_expert, dtype=float), np.array(self.relative, dtype=float)
        if not len(widths) or len(widths) != len(speeds):
            raise InputError(f"speed table {self.name} has {len(widths)} widths and {len(speeds)} speeds; give both.")
        if not (np.all(np.diff(widths) > 0) and widths[0] > 0):
            raise InputError(f"speed table {self.name}: d_expert must be positive and rising.")
        if not (np.isfinite(speeds).all() and np.all(speeds > 0)):
            raise InputError(f"speed table {self.name}: every relative speed must be positive and finite.")

    def slowdown(self, d_expert: np.ndarray, expert_share: np.ndarray) -> np.ndarray:
        """Time of a model / time of a model of the same FLOPs without experts.

        Straight lines in ln d_expert between the widths that were measured; beyond them the outermost speed.

        Args:
            d_expert: width of an expert.
            expert_share: share of the FLOPs that stands in MoE layers.
        """
        speed = np.interp(np.log(d_expert), np.log(self.d_expert), self.relative)
        return np.asarray(1 + expert_share * (1 / speed - 1))

    @cached_property
    def note(self) -> str:
        """What the table says and does not, in one sentence."""
        return (
            f"the time of MoE layers is that of table {self.name}, measured for d_expert {self.d_expert[0]:g} to "
            f"{self.d_expert[-1]:g} with `{self.command}`; wider or narrower experts take its outermost speed."
        )


def load_speed(name: str) -> SpeedTable:
    """A table that ships (`cpu`), or one in a JSON file that benchmarks/expert_speed.py wrote.

    Raises:
        InputError: if there is no such table, or the file holds something else.
    """
    path = Path(name)
    if path.suffix != ".json":
        path = _SHIPPED / f"{name}.json"
        if not path.exists():
            shipped = ", ".join(sorted(file.stem for file in _SHIPPED.glob("*.json")))
            raise InputError(f"speed is {name!r}; give one of {shipped}, none, or a .json file.")
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        rows = values["rows"]
        return SpeedTable(
            name=str(values["name"]),
            command=str(values["command"]),
            d_expert=tuple(float(row["d_expert"]) for row in rows),
            relative=tuple(float(row["relative"]) for row in rows),
        )
    except OSError as error:
        raise InputError(f"speed file {path} cannot be read: {error.strerror}.") from None
    except InputError:
        raise
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"speed file {path} must hold name, command and rows of d_expert and relative, as "
            "benchmarks/expert_speed.py writes them."
        ) from None
