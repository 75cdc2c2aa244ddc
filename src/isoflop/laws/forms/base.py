"""What a law form is: a sum of terms that are linear in their coefficients once the exponents are known.

To add a law, subclass Form, declare its parameters and columns, and write `terms`. Everything else (fitting, starting
points, bounds, intervals, JSON) follows from the declaration. Give an instance to `fit`, or `file.py:Class` to
`isoflop fit --law`. A whole file, for a law in depth at one size and one number of tokens:

    import numpy as np
    from isoflop.laws import Form, Parameter

    class Depth(Form):
        name = "depth"
        equation = "L = E + A / n_layers^alpha"
        source = "my notes"
        columns = ("n_layers",)
        coefficients = (
            Parameter(name="E", meaning="irreducible loss, nats per token"),
            Parameter(name="A", meaning="coefficient of depth"),
        )
        exponents = (Parameter(name="alpha", meaning="exponent of depth", upper=2.0, starts=(0.2, 0.5, 1.0)),)
        asymptote = "E"

        def terms(self, x, theta):
            return {"E": np.ones(()), "A": np.exp(-theta["alpha"] * x["n_layers"])}  # x holds logarithms
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

Columns = Mapping[str, np.ndarray]
"""Arrays by name; all of them broadcast against each other."""

_STEP = 1e-6  # relative step of numerical derivatives


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a law."""

    name: str
    """Its name in tables and JSON."""
    meaning: str
    """What it is, with its unit."""
    lower: float = 0.0
    """Smallest value that a fit may take."""
    upper: float = np.inf
    """Largest value that a fit may take."""
    starts: tuple[float, ...] = ()
    """Exponents only: where a fit looks first."""
    log: bool = False
    """Exponents only: a fit moves in its logarithm (for scales without a natural unit; lower must be positive)."""


@dataclass(frozen=True, kw_only=True)
class Neutral:
    """What stands for a column that a run table lacks."""

    value: float
    """Value of the column in every row."""
    pinned: Mapping[str, float]
    """Parameters that mean nothing without the column, and the values that remove them from the law."""


class Form(ABC):
    """A law L(x) = Σ_j c_j · φ_j(x; θ) with coefficients c and exponents θ.

    A subclass declares its parameters and columns, and `terms` (φ by the coefficient's name). A term under a name that
    is no coefficient has the factor 1, so that a law of the form ln L = f(x; θ) is one such term, exp(f).
    `derivatives` (∂φ_j/∂θ_k where it is not zero) may be left out: differences then stand in for them.
    """

    name: str
    """Key in FORMS and on the command line."""
    equation: str
    """The law in one line, with its parameters' names."""
    source: str
    """Paper and arXiv id."""
    columns: tuple[str, ...]
    """Standard columns that the law reads; all positive, sparsity from 0 to below 1."""
    coefficients: tuple[Parameter, ...] = ()
    """Parameters in which the loss is linear, in the order of the equation."""
    exponents: tuple[Parameter, ...] = ()
    """The other parameters."""
    asymptote: str | None = None
    """Name of the coefficient of the constant term, the loss that no budget buys; None: the law has none."""
    fixed: tuple[str, ...] = ()
    """Standard columns that must not vary among the rows of one fit, because the law does not know them."""
    optional: Mapping[str, Neutral] = MappingProxyType({})
    """Columns that a table may lack, and what the law becomes without them."""
    target: str = "loss"
    """Standard column that the law predicts."""

    origin: str | None = None
    """`file.py:Class` that it was loaded from; None for the laws of isoflop."""

    def features(self, columns: Columns) -> dict[str, np.ndarray]:
        """What `terms` reads: the natural logarithm of every column; of sparsity S, ln(1 − S)."""
        arrays = {name: np.asarray(columns[name], dtype=float) for name in self.columns}
        return {name: np.log(1 - value if name == "sparsity" else value) for name, value in arrays.items()}

    @abstractmethod
    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """φ_j by coefficient name; arrays broadcast from features [n] and exponents [B, 1]."""

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """∂φ_j/∂θ_k by (exponent, coefficient) name; pairs that are absent are zero. Default: central differences."""
        found = {}
        for parameter in self.exponents:
            value = theta[parameter.name]
            step = _STEP * np.maximum(1.0 if not parameter.log else 0.0, np.abs(value))
            up = self.terms(x, {**theta, parameter.name: value + step})
            down = self.terms(x, {**theta, parameter.name: value - step})
            for name in terms:
                found[parameter.name, name] = np.asarray((up[name] - down[name]) / (2 * step))
        return found

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Coefficients, then exponents."""
        return self.coefficients + self.exponents

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, coefficients first."""
        return tuple(parameter.name for parameter in self.parameters)

    def predict(self, columns: Columns, parameters: Mapping[str, float | np.ndarray]) -> np.ndarray:
        """Loss in nats per token (or the law's target); parameters may be arrays [B, 1], which give losses [B, n]."""
        values = {name: np.asarray(value, dtype=float) for name, value in parameters.items()}
        terms = self.terms(self.features(columns), values)
        return np.asarray(sum(values.get(name, 1.0) * term for name, term in terms.items()))


def in_domain(column: str, values: np.ndarray) -> np.ndarray:
    """Mask of the values that a law can read from a column: positive and finite; sparsity from 0 to below 1."""
    finite = np.isfinite(values)
    return np.asarray(finite & (values >= 0) & (values < 1) if column == "sparsity" else finite & (values > 0))


def domain(column: str) -> str:
    """What `in_domain` asks of a column, in words."""
    return "at least 0 and below 1" if column == "sparsity" else "positive and finite"
