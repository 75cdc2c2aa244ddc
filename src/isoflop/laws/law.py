"""A law with its constants: what predicts a loss."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.forms import Form, domain, in_domain
from isoflop.laws.table import RunTable, as_columns


@dataclass(frozen=True, kw_only=True)
class Law:
    """A law form with constants, where they come from and what they hold for."""

    name: str
    """Name for people: that of a published law, or what was fitted."""
    form: Form
    """The equation."""
    parameters: Mapping[str, float]
    """Constants by name."""
    source: str
    """Paper and arXiv id, or the runs that were fitted."""
    convention: str
    """How flops were counted, a key of `isoflop.spec.CONVENTIONS`."""
    symbols: str = ""
    """What N, D and G mean in this law, where that differs from the standard columns."""
    range: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Smallest and largest value of each column for which the constants are supported by runs."""
    reach: float = 1.0
    """How many times the largest value of `range`, or what part of the smallest, a prediction may go without a word."""
    fixed: Mapping[str, float] = field(default_factory=dict)
    """Columns that the law does not know and their one value, such as expansion_rate."""
    active_share: float = 1.0
    """params_active / params_total of the models."""
    warnings: list[str] = field(default_factory=list, compare=False)
    """What the predictions made so far stand outside of; `predict` appends."""

    @property
    def asymptote(self) -> float:
        """The loss that no budget buys, nats per token; 0 for a law without one."""
        return 0.0 if self.form.asymptote is None else float(self.parameters[self.form.asymptote])

    def predict(self, runs: RunTable | Mapping[str, Any]) -> np.ndarray:
        """Loss [n] in nats per token of rows or columns; what is outside `range` is said in `warnings`.

        Raises:
            InputError: if a column is absent or not positive, or a fixed column has another value.
        """
        columns = self.checked(runs)
        return self.form.predict(columns, self.parameters)

    def checked(self, runs: RunTable | Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The columns that the law reads, after all checks."""
        absent = [name for name in self.form.optional if name not in runs]
        columns = as_columns(runs, [name for name in self.form.columns if name not in absent])
        length = len(next(iter(columns.values()))) if columns else 1
        columns |= {name: np.full(length, self.form.optional[name].value) for name in absent}
        for name, values in columns.items():
            good = in_domain(name, values)
            if not np.all(good):
                raise InputError(f"{name} is {values[~good][0]:g}; a prediction needs it {domain(name)}.")
        for name, value in self.fixed.items():
            if name not in runs:
                continue
            given = as_columns(runs, [name])[name]
            if not np.allclose(given, value, rtol=1e-6):
                other = given[~np.isclose(given, value, rtol=1e-6)][0]
                raise InputError(f"{name} is {other:g}; law {self.name} holds for {name} {value:g} alone.")
        for sentence in self._outside(runs, columns):
            if not any(known.startswith(sentence[:-1]) for known in self.warnings):
                self.warnings.append(sentence)
        return columns

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return {
            "law": self.form.name,
            "name": self.name,
            "parameters": {name: float(value) for name, value in self.parameters.items()},
            "source": self.source,
            "convention": self.convention,
            "symbols": self.symbols,
            "range": {name: list(bounds) for name, bounds in self.range.items()},
            "reach": self.reach,
            "fixed": dict(self.fixed),
            "active_share": self.active_share,
        }

    def _outside(self, runs: RunTable | Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> list[str]:
        sentences = []
        for name, (low, high) in self.range.items():
            if name in columns:
                values = columns[name]
            elif name in runs:
                values = as_columns(runs, [name])[name]
            elif name == "flops" and {"params_total", "tokens"} <= columns.keys():
                values = 6 * self.active_share * columns["params_total"] * columns["tokens"]
            elif name == "flops" and {"params_active", "tokens"} <= columns.keys():
                values = 6 * columns["params_active"] * columns["tokens"]
            else:
                continue
            if np.any(values < low / self.reach * (1 - 1e-9)) or np.any(values > high * self.reach * (1 + 1e-9)):
                far = f" by more than {self.reach:g} times" if self.reach > 1 else ""
                sentences.append(
                    f"{name} is outside {low:.3g} to {high:.3g}, where law {self.name} has runs{far}: an extrapolation."
                )
        return sentences
