"""Fits in JSON files."""

import json
import math
from pathlib import Path
from typing import Any

from isoflop.errors import InputError
from isoflop.laws.forms import Form
from isoflop.laws.result import Fit


def save_fit(fit: Fit, path: str | Path) -> None:
    """Write a fit with its draws and rows as JSON; `load_fit` gives an equal one.

    Raises:
        InputError: if the file cannot be written.
    """
    text = json.dumps(strict(fit.to_dict()), indent=1) + "\n"
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"fit file {path} cannot be written: {error.strerror}.") from None


def load_fit(path: str | Path, form: Form | None = None) -> Fit:
    """Read a fit that `save_fit` (or `isoflop fit --out`) wrote.

    Args:
        path: the file.
        form: the law form, where it is a user's own (see `load_form`).

    Raises:
        InputError: if the file cannot be read or holds something else, or `form` is needed.
    """
    values = read_json(path, "fit file")
    if not isinstance(values, dict):
        raise InputError(
            f"fit file {path} holds {type(values).__name__}; it must hold what `isoflop fit --out` writes."
        )
    return Fit.from_dict(values, form)


def read_json(path: str | Path, what: str) -> Any:
    """The JSON document of a file; `what` it is named in errors.

    Raises:
        InputError: if the file cannot be read or is not JSON in UTF-8.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise InputError(f"{what} {path} is not JSON in UTF-8.") from None


def strict(value: Any) -> Any:
    """The value without NaN and infinity, which strict JSON lacks."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
