"""A law form from a user's own Python file."""

import importlib.util
import sys
from pathlib import Path

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.forms import FORMS, Form

_PROBE = 2.0  # a value that every column but sparsity may have


def load_form(text: str) -> Form:
    """The law form that `file.py:Class` names; the file is run, so it must be one that you trust.

    Raises:
        InputError: if the file cannot be run, has no such subclass of Form, or what it declares does not fit together.
    """
    path, _, name = text.rpartition(":")
    if not (path.endswith(".py") and name):
        raise InputError(f"law is {text!r}; a law of your own is written as file.py:Class.")
    if not Path(path).is_file():
        raise InputError(f"law is {text!r}; there is no file {path}.")
    module_name = f"_isoflop_law_{abs(hash(str(Path(path).resolve())))}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file may raise
        raise InputError(f"law file {path} cannot be run: {type(error).__name__}: {error}.") from None
    laws = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Form) and value.__module__ == module_name
    }
    if name not in laws:
        there = f"it has {', '.join(laws)}" if laws else "it has none; import Form from isoflop.laws and subclass it"
        raise InputError(f"law file {path} has no subclass of Form called {name}; {there}.")
    missing = sorted(getattr(laws[name], "__abstractmethods__", ()))
    if missing:
        raise InputError(f"law {name} of {path} lacks the method {missing[0]}; see isoflop.laws.Form.")
    try:
        form = laws[name]()
    except Exception as error:
        raise InputError(f"law {name} of {path} cannot be made: {type(error).__name__}: {error}.") from None
    check_form(form, where=f"law {name} of {path}")
    form.origin = text
    return form


def check_form(form: Form, where: str) -> None:
    """Raise InputError if what a law declares does not fit together, naming what is wrong."""
    for attribute in ("name", "equation", "source", "columns"):
        if not getattr(form, attribute, None):
            raise InputError(f"{where} does not say its {attribute}; give it the attribute {attribute}.")
    if isinstance(form.columns, str):
        raise InputError(f"{where} has columns = {form.columns!r}; it must be a tuple of names.")
    if form.name in FORMS:
        raise InputError(f"{where} is called {form.name!r}, which is a law of isoflop; give it another name.")
    names = [parameter.name for parameter in form.parameters]
    if not names:
        raise InputError(f"{where} has no parameters; declare coefficients or exponents.")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where} has the parameter {name} twice.")
    for p in form.exponents:
        if not p.starts:
            raise InputError(f"{where}: exponent {p.name} has no starts; say where a fit looks first.")
        if not all(p.lower <= start <= p.upper for start in p.starts):
            raise InputError(
                f"{where}: exponent {p.name} has a start outside of its bounds {p.lower:g} to {p.upper:g}."
            )
        if not np.isfinite([p.lower, p.upper]).all() or (p.log and p.lower <= 0):
            allowed = "positive and finite, since it moves in its logarithm" if p.log else "finite"
            raise InputError(f"{where}: the bounds of exponent {p.name} must be {allowed}.")
    if form.asymptote is not None and form.asymptote not in {p.name for p in form.coefficients}:
        raise InputError(f"{where} has the asymptote {form.asymptote}, which is none of its coefficients.")
    columns = {name: np.full(3, 0.5 if name == "sparsity" else _PROBE) for name in form.columns}
    theta = {p.name: np.array([[p.starts[0]], [p.starts[-1]]]) for p in form.exponents}
    try:
        terms = form.terms(form.features(columns), theta)
        shapes = {name: np.broadcast_shapes(np.shape(term), (2, 3)) for name, term in terms.items()}
    except Exception as error:
        raise InputError(f"{where}: terms cannot be computed: {type(error).__name__}: {error}.") from None
    for p in form.coefficients:
        if p.name not in terms:
            raise InputError(
                f"{where}: terms lacks the coefficient {p.name}; it gives {', '.join(terms) or 'nothing'}."
            )
    for name, shape in shapes.items():
        if name in theta:
            raise InputError(f"{where}: terms has a term {name}, which is an exponent; give the term another name.")
        if shape != (2, 3):
            raise InputError(
                f"{where}: term {name} has the shape {np.shape(terms[name])}; it must broadcast to [B, n]."
            )
