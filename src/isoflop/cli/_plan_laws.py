"""The laws that a plan is asked to use: published ones, files of fits, studies."""

import json as json_module
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import InputError

if TYPE_CHECKING:
    from isoflop.laws import BestRatio, Fit, Law
    from isoflop.planner import Template


def best_ratio_of(name: str) -> "BestRatio":
    """The published law of the best ratio of this name, or the one in this JSON file.

    Raises:
        InputError: if there is no such law or file, or the file holds something else.
    """
    from isoflop.laws import best_ratio, load_best_ratio

    if name.endswith(".json"):
        return load_best_ratio(name)
    try:
        return best_ratio(name)
    except InputError as error:
        raise InputError(
            f"{str(error).rstrip('.')}; or give a .json file that `isoflop valleys --out` wrote."
        ) from None


def law_file(name: str) -> Path:
    """Where the fits of a law argument are: the file itself, or a study's fits.json.

    Raises:
        InputError: if it is a directory without one.
    """
    path = Path(name)
    if not path.is_dir():
        return path
    if not (path / "fits.json").exists():
        if not (path / "study.yaml").exists():
            raise InputError(f"law is {name}, a directory without fits.json; give a study's directory or a .json file.")
        finish = f"isoflop study run {path / 'study.yaml'} --out {name}"
        raise InputError(f"law is {name}, a study without fits.json; finish it with `{finish}`, which fits its laws.")
    return path / "fits.json"


def labelled(read: "Sequence[tuple[Path, Sequence[tuple[str, Law | Fit]]]]") -> "dict[str, Law | Fit]":
    """The laws of all files by label; where files share a label, each has its directory's name or path before it.

    Raises:
        InputError: if one file has a label twice.
    """
    for file, found in read:
        labels = [label for label, _ in found]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise InputError(f"law file {file} holds {twice} more than once; give each of its fits a name of its own.")
    every = [label for _, found in read for label, _ in found]
    parents = [file.parent.name for file, _ in read]
    distinct = len(set(parents)) == len(parents)
    laws: dict[str, Law | Fit] = {}
    for file, found in read:
        before = file.parent.name if distinct else str(file)
        laws |= {label if every.count(label) == 1 else f"{before}/{label}": each for label, each in found}
    return laws


def read_laws(name: str, file: Path) -> "list[tuple[str, Law | Fit]]":
    """The published law of this name, or the fits in this JSON file, with their labels.

    Raises:
        InputError: if there is no such law or file, or the file holds no fit.
    """
    from isoflop.laws import PUBLISHED, published

    if name in PUBLISHED:
        return [(name, published(name))]
    if file.suffix != ".json":
        raise InputError(f"law is {name!r}; give a .json file with fits, a study, or one of {', '.join(PUBLISHED)}.")
    try:
        document = json_module.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"law file {file} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise InputError(f"law file {file} is not JSON.") from None
    try:
        found: list[tuple[str, Law | Fit]] = list(_fits(document, file.stem))
    except (AttributeError, TypeError, ValueError) as error:
        reason = error if isinstance(error, InputError) else "its fields hold values of the wrong kind."
        raise InputError(f"law file {file}: {reason}") from None
    if not found:
        raise InputError(f"law file {file} holds no fit; it must be what `isoflop fit --out` or a study wrote.")
    return found


def _fits(document: Any, label: str) -> "Iterator[tuple[str, Fit]]":
    """Every fit in a JSON document, under each architecture that it names, else its name or the field that holds it."""
    from isoflop.laws import Fit

    if isinstance(document, list):
        for value in document:
            yield from _fits(value, label)
    elif isinstance(document, dict) and {"law", "parameters", "runs"} <= document.keys():
        fit = Fit.from_dict(document)
        for name in document.get("architectures") or [document.get("name", label)]:
            yield name, fit
    elif isinstance(document, dict):
        for name, value in document.items():
            yield from _fits(value, name)


def study_templates(directory: Path, known: Container[str]) -> "tuple[list[Template], float]":
    """The causal architectures of a study that have a law, and the spacing of its sizes.

    Raises:
        InputError: if the study's files do not say them.
    """
    from isoflop.laws import read_runs
    from isoflop.study import load_study

    study = load_study(directory / "study.yaml")
    vocab_size = int(read_runs(directory / "runs.csv").numeric("vocab_size")[0])
    causal = [a for a in study.expanded if a.is_causal]
    return [study.model_template(a, vocab_size) for a in causal if a.name in known], study.size_spacing
