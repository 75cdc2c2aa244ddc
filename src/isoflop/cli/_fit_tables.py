"""What `isoflop fit` prints."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from isoflop.cli._common import print_table, si
from isoflop.errors import InputError

if TYPE_CHECKING:
    from isoflop.laws import Fit, Holdout, LackOfFit, NoiseFloor, Profile

_FLOPS = ("flops", "budget")
"""Columns that count FLOPs."""

Rows = list[list[str]]
_Value = TypeVar("_Value")

OPTIONS: Final = {
    "huber_delta": "--huber-delta",
    "bootstrap": "--bootstrap",
    "draws": "--posterior",
    "pinned": "--pin",
    "prior": "--prior",
    "leave_out": "--leave-out",
    "profile": "--profile",
    "largest": "--holdout",
    "laws": "--law",
    "law": "--law",
    "restarts": "--restarts",
    "seed": "--seed",
    "level": "--level",
}
"""Arguments of the library, with which its sentences begin → options of the command line."""


def once(option: str, pairs: Iterable[tuple[str, _Value]]) -> dict[str, _Value]:
    """Values by name; InputError where an option names one twice."""
    found: dict[str, _Value] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"{option} {name} is given twice; give it once.")
        found[name] = value
    return found


def check_delta(text: str) -> None:
    """Raise InputError if --huber-delta is neither a number nor a word that it knows."""
    from isoflop.laws import parse_number

    if text.strip().lower() not in ("l1", "l2", "none") and parse_number(text) is None:
        raise InputError(f"--huber-delta is {text!r}; it must be a positive number, l1 or l2.")


def print_parameters(fitted: "Fit", intervals: Mapping[str, tuple[float, float]], heading: str, title: str) -> None:
    """Parameters with their intervals."""
    rows = []
    for parameter in fitted.form.parameters:
        interval = intervals.get(parameter.name)
        between = "pinned" if parameter.name in fitted.pinned else "–"
        if interval is not None and parameter.name not in fitted.pinned:
            between = f"{_short(interval[0])} … {_short(interval[1])}"
        rows.append([parameter.name, f"{fitted.parameters[parameter.name]:.5g}", between, parameter.meaning])
    print_table(title, ["parameter", "value", heading, "meaning"], rows)


def about_fit(fitted: "Fit") -> Rows:
    """Status, rows, objective and noise."""
    rows = [
        ["status", fitted.status],
        ["", fitted.message],
        ["rows fitted", str(fitted.n_rows) + (f" ({fitted.n_left_out} not done)" if fitted.n_left_out else "")],
        ["objective (sum)", f"{fitted.objective:.8g}"],
        ["noise of ln loss", "not known" if math.isnan(fitted.noise) else f"{fitted.noise:.2%}"],
    ]
    if fitted.weights is not None:
        rows.append(["weights", f"column {fitted.weights}"])
    rows += [["prior", f"{name} = {mean:g} ± {sd:g}"] for name, (mean, sd) in fitted.priors.items()]
    return rows


def about_holdout(score: "Holdout | None") -> Rows:
    """The score on the largest rows."""
    from isoflop.laws import exponent

    if score is None:
        return []
    assert score.threshold is not None
    threshold = exponent(score.threshold) if score.by in _FLOPS else si(score.threshold)
    held_out = f"{score.rmse:.2%} RMSE of ln loss on {score.n_held_out} rows with {score.by} ≥ {threshold}"
    rows = [["held out", f"{held_out}, fitted on {score.n_fit}"], ["", _side(score)]]
    if score.status in ("not_identified", "failed"):
        rows.append(
            ["", f"those {score.n_fit} rows do not identify the law: the score says more of that than of the law"]
        )
    return rows


def about_repeats(floor: "NoiseFloor | None", lack: "LackOfFit | None") -> Rows:
    """What repeats say of the noise and of the law."""
    rows = []
    if floor is not None:
        low, high = floor.interval
        count = f"{floor.n_repeats} repeat" + ("s" if floor.n_repeats > 1 else "")
        rows.append(["noise floor", f"noise floor from {count}: {floor.sd:.2%} [{low:.2%}, {high:.2%}]"])
        apart = f"two runs whose losses differ by less than {floor.difference(floor.level):.2%} may be the same"
        rows.append(["", f"{apart} ({floor.level:.0%})"])
    if lack is not None:
        verdict = "no more than the noise"
        if lack.p_value < 0.05:
            verdict = f"by {lack.misfit:.2%} beside the noise"
        rows.append(["lack of fit", f"the law misses {verdict}: F = {lack.statistic:.3g}, p = {lack.p_value:.2g}"])
    return rows


def about_profiles(profiles: Sequence["Profile"]) -> Rows:
    """Intervals by profile likelihood."""
    rows = []
    for curve in profiles:
        ends = [f"{end:.5g}" for end in curve.interval]
        text = f"{curve.parameter}: {ends[0]} … {ends[1]} ({curve.level:.0%})"
        open_sides = [side for side, closed in zip(("below", "above"), curve.closed, strict=True) if not closed]
        if open_sides:
            text += f"; open {' and '.join(open_sides)}: the rows do not end it there"
        rows.append(["profile", text])
    return rows


def print_left_out(by: str, scores: Mapping[Any, "Holdout"]) -> None:
    """Scores of each value of a column that was left out."""
    rows = [
        [_value(value), str(score.n_held_out), f"{score.rmse:.2%}", f"{score.bias:+.2%}", score.status]
        for value, score in scores.items()
    ]
    title = f"each {by} predicted from the others"
    print_table(title, [by, "rows", "RMSE of ln loss", "measured − predicted", "status without it"], rows)


def _side(score: "Holdout") -> str:
    return f"measured lies {abs(score.bias):.2%} {'above' if score.bias > 0 else 'below'} predicted on average"


def _short(value: float) -> str:
    """Five digits, and powers of ten for what is far from one."""
    return f"{value:.2e}" if value and not 1e-4 <= abs(value) < 1e6 else f"{value:.5g}"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
