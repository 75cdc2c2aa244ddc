"""Numbers as people write them in tables of runs: 1e20, 100M, 4.37B."""

import math
import re
from typing import Final

_SUFFIXES: Final = {"K": 1e3, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([KkMBT]?)")
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_INFINITE: Final = frozenset({"inf", "infinity"})

MISSING: Final = frozenset({"", "-", "–", "na", "n/a", "nan", "none", "null"})
"""What a cell without a value holds, in lower case."""


def parse_number(text: str) -> float | None:
    """The number that a cell holds, with K, M, B or T for powers of a thousand; None if it is not a number."""
    text = text.strip()
    if "," in text and _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    if match := _NUMBER.fullmatch(text):
        return float(match[1]) * _SUFFIXES.get(match[2], 1.0)
    if text.lower().lstrip("+-") in _INFINITE:
        return -math.inf if text.startswith("-") else math.inf
    return None


def exponent(value: float, digits: int = 3) -> str:
    """FLOPs as the field writes them: 5e12, 1.93e20; a power of ten and no suffix."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    return f"{float(mantissa):g}e{int(power)}"
