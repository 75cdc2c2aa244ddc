"""Law forms: the equations that a fit can give constants to, one class each, by name in FORMS."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from isoflop.errors import InputError
from isoflop.laws.forms.allocation import Allocation, AllocationLoss
from isoflop.laws.forms.base import Columns, Form, Neutral, Parameter, domain, in_domain
from isoflop.laws.forms.chinchilla import Chinchilla
from isoflop.laws.forms.fine_grained import FineGrained
from isoflop.laws.forms.joint import Joint
from isoflop.laws.forms.leverage import Leverage
from isoflop.laws.forms.repetition import Repetition
from isoflop.laws.forms.routed import Routed
from isoflop.laws.forms.sparsity import Sparsity
from isoflop.laws.forms.unified import Unified

__all__ = [
    "FORMS",
    "Allocation",
    "AllocationLoss",
    "Chinchilla",
    "Columns",
    "FineGrained",
    "Form",
    "Joint",
    "Leverage",
    "Neutral",
    "Parameter",
    "Repetition",
    "Routed",
    "Sparsity",
    "Unified",
    "domain",
    "form_named",
    "in_domain",
]

_ALL = (
    Chinchilla(),
    FineGrained(),
    Joint(),
    Routed(),
    Sparsity(),
    Leverage(),
    Allocation(),
    AllocationLoss(),
    Repetition(),
    Unified(),
)

FORMS: Final[Mapping[str, Form]] = MappingProxyType({form.name: form for form in _ALL})
"""Every law form by name."""


def form_named(name: str) -> Form:
    """The law form of this name.

    Raises:
        InputError: if there is none, listing the names.
    """
    if name not in FORMS:
        raise InputError(f"law is {name!r}; allowed: {', '.join(FORMS)}.")
    return FORMS[name]
