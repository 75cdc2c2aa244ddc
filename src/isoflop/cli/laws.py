"""`isoflop laws`: every law form and all published constants."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli._common import JsonFlag, print_json, print_table, si

if TYPE_CHECKING:
    from isoflop.laws import Form, Law


def laws(
    law: Annotated[str | None, typer.Argument(help="One law form or published law, in full; default: a list.")] = None,
    json: JsonFlag = False,
) -> None:
    """List the law forms that `fit` knows and the published constants that `plan` knows."""
    from isoflop.errors import InputError
    from isoflop.laws import FORMS, PUBLISHED, published

    if law is not None and law not in FORMS and law not in PUBLISHED:
        raise InputError(f"law is {law!r}; forms are {', '.join(FORMS)}, published are {', '.join(PUBLISHED)}.")
    forms = [form for name, form in FORMS.items() if law in (None, name)]
    constants = [published(name) for name in PUBLISHED if law in (None, name)]
    if json:
        print_json({"forms": [_form(form) for form in forms], "published": [_published(each) for each in constants]})
        return
    if law is None:
        _list(forms, constants)
    for form in forms if law is not None else []:
        rows = [
            ["equation", form.equation],
            ["predicts", form.target],
            ["columns", ", ".join(form.columns)],
            ["source", form.source],
        ]
        rows += [["may lack", f"{name}: taken as {what.value:g}"] for name, what in form.optional.items()]
        rows += [["one value of", name] for name in form.fixed]
        print_table(f"law form {form.name}", ["", ""], rows)
        bounds = [[p.name, f"{p.lower:g} … {p.upper:g}", p.meaning] for p in form.parameters]
        print_table("", ["parameter", "bounds", "meaning"], bounds)
    for each in constants if law is not None else []:
        rows = [
            ["law form", each.form.name],
            ["equation", each.form.equation],
            ["source", each.source],
            ["symbols", each.symbols or "–"],
            ["FLOPs", each.convention],
            ["range", _range(each)],
        ]
        rows += [["holds for", f"{name} {value:g}"] for name, value in each.fixed.items()]
        rows += [[name, f"{value:g}"] for name, value in each.parameters.items()]
        print_table(f"published law {each.name}", ["", ""], rows)


def _list(forms: "list[Form]", constants: "list[Law]") -> None:
    rows = [[form.name, form.equation, ", ".join(form.columns)] for form in forms]
    print_table("law forms · isoflop fit --law NAME", ["law", "equation", "columns"], rows)
    for form in forms:
        own = [[p.name, p.meaning] for p in form.parameters]
        print_table(f"{form.name} · {form.source}", ["parameter", "meaning"], own)
    known = [[each.name, each.form.name, each.source, _range(each)] for each in constants]
    print_table("published constants", ["name", "law", "source", "range"], known)


def _range(law: "Law") -> str:
    written = [f"{name} {_number(name, low)} to {_number(name, high)}" for name, (low, high) in law.range.items()]
    return ", ".join(written) or "not recorded"


def _number(column: str, value: float) -> str:
    from isoflop.laws import exponent

    return exponent(value) if column == "flops" else si(value)


def _form(form: "Form") -> dict[str, Any]:
    coefficients = {p.name for p in form.coefficients}
    return {
        "name": form.name,
        "equation": form.equation,
        "source": form.source,
        "target": form.target,
        "columns": list(form.columns),
        "optional": {name: what.value for name, what in form.optional.items()},
        "fixed": list(form.fixed),
        "asymptote": form.asymptote,
        "parameters": [
            {
                "name": p.name,
                "meaning": p.meaning,
                "kind": "coefficient" if p.name in coefficients else "exponent",
                "lower": p.lower,
                "upper": p.upper,
                "log": p.log,
            }
            for p in form.parameters
        ],
    }


def _published(law: "Law") -> dict[str, Any]:
    return {**law.to_dict(), "equation": law.form.equation}
