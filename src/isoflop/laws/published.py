"""Published constants, each with its source, conventions and range."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from isoflop.errors import InputError
from isoflop.laws.forms import FORMS
from isoflop.laws.law import Law

_KRAJEWSKI: Final = "Krajewski et al. 2024, arXiv 2402.07871"
_KRAJEWSKI_SYMBOLS: Final = (
    "N is the total non-embedding parameters without the router: d_model² (8E + 4) n_layers; D tokens of C4, one "
    "epoch; G = d_ff / d_expert with d_ff = 4 d_model; expert choice"
)
_KRAJEWSKI_RANGE: Final = {"tokens": (16e9, 130e9), "granularity": (1.0, 16.0)}

_PUBLISHED: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "krajewski-2024-e64": {
            "form": "fine-grained",
            # the authors' code; Table 1 prints 18.1 .115 30.8 .147 2.1 .58 .47, which misses its losses by .01 to .02
            "parameters": {
                "c": 0.470,
                "g": 2.0760,
                "a": 18.0712,
                "b": 30.8082,
                "gamma": 0.5843,
                "alpha": 0.1146,
                "beta": 0.1465,
            },
            "source": f"{_KRAJEWSKI}, Table 1 with the four decimals of the authors' code",
            "convention": "krajewski",
            "symbols": _KRAJEWSKI_SYMBOLS,
            "range": {"params_total": (129e6, 3.7e9), **_KRAJEWSKI_RANGE},
            "fixed": {"expansion_rate": 64.0},
            "active_share": 12 / (8 * 64 + 4),
        },
        "krajewski-2024-e16": {
            "form": "fine-grained",
            "parameters": {
                "c": 0.472,
                "g": 1.18,
                "a": 19.64,
                "b": 57.07,
                "gamma": 0.986,
                "alpha": 0.124,
                "beta": 0.169,
            },
            "source": f"{_KRAJEWSKI}, Table 8",
            "convention": "krajewski",
            "symbols": _KRAJEWSKI_SYMBOLS,
            "range": _KRAJEWSKI_RANGE,
            "fixed": {"expansion_rate": 16.0},
            "active_share": 12 / (8 * 16 + 4),
        },
        "krajewski-2024-dense": {
            "form": "chinchilla",
            "parameters": {"E": 0.47, "A": 16.3, "B": 26.7, "alpha": 0.126, "beta": 0.127},
            "source": f"{_KRAJEWSKI}, Table 1",
            "convention": "krajewski",
            "symbols": "N is the non-embedding parameters: 12 d_model² n_layers; D tokens of C4, one epoch",
            "range": {"tokens": (16e9, 130e9)},
            "fixed": {"expansion_rate": 1.0},
        },
        "hoffmann-2022": {
            "form": "chinchilla",
            "parameters": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
            "source": "Hoffmann et al. 2022, arXiv 2203.15556, eq. 10",
            "convention": "6ND",
            "symbols": "N is all parameters, embedding included; D tokens of MassiveText",
            "range": {"params_total": (70e6, 16e9), "tokens": (5e9, 500e9)},
            "fixed": {"expansion_rate": 1.0},
        },
        "besiroglu-2024": {
            "form": "chinchilla",
            "parameters": {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
            "source": "Besiroglu et al. 2024, arXiv 2404.10102",
            "convention": "6ND",
            "symbols": "N is all parameters, embedding included; D tokens of MassiveText",
            "range": {"params_total": (57e6, 16.2e9), "tokens": (818e6, 318e9)},
            "fixed": {"expansion_rate": 1.0},
        },
    }
)

PUBLISHED: Final = tuple(_PUBLISHED)
"""Names that `published` knows."""


def published(name: str) -> Law:
    """A published law by its name, one of PUBLISHED.

    Raises:
        InputError: if there is none of this name, listing the names.
    """
    if name not in _PUBLISHED:
        raise InputError(f"law is {name!r}; published laws are {', '.join(PUBLISHED)}.")
    values = dict(_PUBLISHED[name])
    return Law(name=name, form=FORMS[values.pop("form")], **values)
