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
        "ludziejewski-2025": {
            "form": "joint",
            "parameters": {
                "a": 35.91,
                "alpha": -0.1889,
                "delta": -0.2285,
                "gamma": 0.0098,
                "b": 35.98,
                "beta": -0.1775,
                "omega": 0.5529,
                "zeta": -0.0259,
                "E_start": 2.0732,
                "E_max": 290.4521,
                "c": 1.3637,
            },
            "source": "Ludziejewski et al. 2025, arXiv 2502.05172",
            "convention": "6ND",
            "symbols": (
                "N is the active parameters with embedding and head: 2 d_model V + 13 d_model² n_layers, V = 50257; E "
                "is the number of experts, of which a token uses one (Switch); granularity 1"
            ),
            "range": {"expansion_rate": (1.0, 32.0)},
        },
        **{
            f"clark-2022-{router}": {
                "form": "routed",
                "parameters": dict(zip(("a", "b", "c", "d", "E_start", "E_max"), values, strict=True)),
                "source": "Clark et al. 2022, arXiv 2202.01169, Table 3 (three decimals move the loss by 2%)",
                "convention": "6ND",
                "symbols": "N is the parameters that a token uses; E is the number of experts; 130B tokens",
                "range": {"params_active": (15e6, 1.3e9), "expansion_rate": (1.0, 512.0)},
            }
            for router, values in {
                "sbase": (-0.082, -0.108, 0.009, 1.104, 1.847, 314.478),
                "rlr": (-0.083, -0.126, 0.012, 1.111, 1.880, 469.982),
                "hash": (-0.087, -0.136, 0.012, 1.157, 4.175, 477.741),
            }.items()
        },
        "abnar-2025": {
            "form": "sparsity",
            "parameters": {
                "alpha": 0.5962,
                "beta": 0.3954,
                "lambda": -0.1666,
                "delta": 0.1603,
                "gamma": 0.1595,
                "a": 16612.50,
                "b": 5455.67,
                "c": 0.4598,
                "d": 17.26,
                "e": 0.94,
            },
            "source": "Abnar et al. 2025, arXiv 2501.12370 (constants from two secondary sources)",
            "convention": "6ND",
            "symbols": "N is the total parameters; S = (E - K)/E of E experts, K of which a token uses",
            "range": {"sparsity": (0.0, 0.98)},
        },
        "tian-2025": {
            "form": "leverage",
            "parameters": {
                "a": 1.23,
                "d": -0.0761,
                "gamma": 0.0167,
                "beta": -0.117,
                "A_start": 0.0163,
                "A_max": 5.28e16,
            },
            "source": "Tian et al. 2025, arXiv 2507.17702",
            "convention": "6ND",
            "symbols": (
                "EL is C_dense / C_moe at equal loss; N does not enter; G = 2 d_model / d_expert, half of d_ff / "
                "d_expert with d_ff = 4 d_model; 1 - S = active / total experts, shared ones in both; "
                "the range of its runs is not recorded here"
            ),
        },
        "li-2026": {
            "form": "allocation",
            "parameters": {"A": 6.7e-5, "p": -1.23, "B": 0.24, "q": 0.21},
            "source": "Li et al. 2026, arXiv 2603.10379",
            "convention": "expert-attention",
            "symbols": (
                "r is FLOPs of expert layers / FLOPs of attention layers; N does not enter; S counts the shared "
                "expert; C is the FLOPs of the whole training"
            ),
            "range": {
                "flops": (1e18, 1e21),
                "sparsity": (0.8235, 0.9767),
                "expert_attention_ratio": (0.2, 1.5),
                "context": (4096.0, 4096.0),
            },
        },
        "muennighoff-2023": {
            "form": "repetition",
            # the authors' code: a, b, e are logarithms 6.255414, 7.3049974, .6254804
            "parameters": {
                "E": 1.869144,
                "A": 520.825,
                "B": 1487.716,
                "alpha": 0.3526596,
                "beta": 0.3526596,
                "R": 15.387756,
            },
            "source": "Muennighoff et al. 2023, arXiv 2305.16264, appendix A",
            "convention": "6ND",
            "symbols": "N is all parameters, at most those that the unique tokens would want; tokens of C4",
            "range": {"params_total": (7e6, 9e9), "tokens": (100e6, 900e9)},
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
