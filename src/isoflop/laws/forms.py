"""Law forms: loss as a sum of terms that are linear in their coefficients once the exponents are known.

To add a law, write a class like the two below and list it in FORMS. Nothing else needs to know it: fitting, starting
points, bounds, intervals and JSON follow from what the class declares.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from isoflop.errors import InputError

Columns = Mapping[str, np.ndarray]
"""Arrays by name; all of them broadcast against each other."""


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


class Form(ABC):
    """A law L(x) = Σ_j c_j · φ_j(x; θ) with coefficients c and exponents θ.

    A subclass declares its parameters and columns, `terms` (φ by the coefficient's name), and `derivatives` (∂φ_j/∂θ_k
    where it is not zero).
    """

    name: str
    """Key in FORMS and on the command line."""
    equation: str
    """The law in one line, with its parameters' names."""
    source: str
    """Paper and arXiv id."""
    columns: tuple[str, ...]
    """Standard columns that the law reads; all positive."""
    coefficients: tuple[Parameter, ...]
    """Parameters in which the loss is linear, in the order of the equation."""
    exponents: tuple[Parameter, ...]
    """The other parameters."""
    asymptote: str
    """Name of the coefficient of the constant term: the loss that no budget buys."""
    fixed: tuple[str, ...] = ()
    """Standard columns that must not vary among the rows of one fit, because the law does not know them."""

    def features(self, columns: Columns) -> dict[str, np.ndarray]:
        """What `terms` reads: the natural logarithm of every column."""
        return {name: np.log(np.asarray(columns[name], dtype=float)) for name in self.columns}

    @abstractmethod
    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """φ_j by coefficient name; arrays broadcast from features [n] and exponents [B, 1]."""

    @abstractmethod
    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """∂φ_j/∂θ_k by (exponent, coefficient) name; pairs that are absent are zero."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Coefficients, then exponents."""
        return self.coefficients + self.exponents

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, coefficients first."""
        return tuple(parameter.name for parameter in self.parameters)

    def predict(self, columns: Columns, parameters: Mapping[str, float | np.ndarray]) -> np.ndarray:
        """Loss in nats per token; parameters may be arrays [B, 1], which give losses [B, n]."""
        values = {name: np.asarray(value, dtype=float) for name, value in parameters.items()}
        terms = self.terms(self.features(columns), values)
        return np.asarray(sum(values[name] * term for name, term in terms.items()))


class Chinchilla(Form):
    """Dense law (Hoffmann et al. 2022, arXiv 2203.15556, approach 3): L = E + A/N^alpha + B/D^beta.

    N params_total, D tokens, L nats per token. In the original N counts the embedding; here it is whatever the column
    holds.
    """

    name = "chinchilla"
    equation = "L = E + A/N^alpha + B/D^beta"
    source = "Hoffmann et al. 2022, arXiv 2203.15556"
    columns = ("params_total", "tokens")
    coefficients = (
        Parameter(name="E", meaning="irreducible loss, nats per token"),
        Parameter(name="A", meaning="coefficient of size, nats · parameters^alpha"),
        Parameter(name="B", meaning="coefficient of data, nats · tokens^beta"),
    )
    exponents = (
        Parameter(
            name="alpha", meaning="exponent of size", upper=2.0, starts=(0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3)
        ),
        Parameter(
            name="beta", meaning="exponent of data", upper=2.0, starts=(0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3)
        ),
    )
    asymptote = "E"

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """1, N^-alpha, D^-beta."""
        return {
            "E": np.ones(()),
            "A": np.exp(-theta["alpha"] * x["params_total"]),
            "B": np.exp(-theta["beta"] * x["tokens"]),
        }

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """Powers fall by their logarithm."""
        return {
            ("alpha", "A"): -x["params_total"] * terms["A"],
            ("beta", "B"): -x["tokens"] * terms["B"],
        }


class FineGrained(Form):
    """Fine-grained MoE (Krajewski et al. 2024, arXiv 2402.07871, eq. 9): L = c + (g/G^gamma + a)/N^alpha + b/D^beta.

    N params_total without embedding and router, G granularity (d_ff / d_expert), D tokens, L nats per token. The law
    knows one expansion rate: a and g differ between expansion rates, and a dense model has the chinchilla form, which
    may share c.
    """

    name = "fine-grained"
    equation = "L = c + (g/G^gamma + a)/N^alpha + b/D^beta"
    source = "Krajewski et al. 2024, arXiv 2402.07871"
    columns = ("params_total", "granularity", "tokens")
    coefficients = (
        Parameter(name="c", meaning="irreducible loss, nats per token"),
        Parameter(name="g", meaning="what granularity can save, nats · parameters^alpha"),
        Parameter(name="a", meaning="coefficient of size, nats · parameters^alpha"),
        Parameter(name="b", meaning="coefficient of data, nats · tokens^beta"),
    )
    exponents = (
        Parameter(name="gamma", meaning="exponent of granularity", upper=4.0, starts=(0.15, 0.4, 0.8, 1.4, 2.2)),
        Parameter(name="alpha", meaning="exponent of size", upper=2.0, starts=(0.05, 0.1, 0.2, 0.35, 0.6, 1.0)),
        Parameter(name="beta", meaning="exponent of data", upper=2.0, starts=(0.05, 0.1, 0.2, 0.35, 0.6, 1.0)),
    )
    asymptote = "c"
    fixed = ("expansion_rate",)

    def terms(self, x: Columns, theta: Columns) -> dict[str, np.ndarray]:
        """1, G^-gamma N^-alpha, N^-alpha, D^-beta."""
        size = np.exp(-theta["alpha"] * x["params_total"])
        return {
            "c": np.ones(()),
            "g": np.exp(-theta["gamma"] * x["granularity"]) * size,
            "a": size,
            "b": np.exp(-theta["beta"] * x["tokens"]),
        }

    def derivatives(self, x: Columns, theta: Columns, terms: Columns) -> dict[tuple[str, str], np.ndarray]:
        """Powers fall by their logarithm."""
        return {
            ("gamma", "g"): -x["granularity"] * terms["g"],
            ("alpha", "g"): -x["params_total"] * terms["g"],
            ("alpha", "a"): -x["params_total"] * terms["a"],
            ("beta", "b"): -x["tokens"] * terms["b"],
        }


FORMS: Final[Mapping[str, Form]] = MappingProxyType({form.name: form for form in (Chinchilla(), FineGrained())})
"""Every law form by name."""


def form_named(name: str) -> Form:
    """The law form of this name.

    Raises:
        InputError: if there is none, listing the names.
    """
    if name not in FORMS:
        raise InputError(f"law is {name!r}; allowed: {', '.join(FORMS)}.")
    return FORMS[name]
