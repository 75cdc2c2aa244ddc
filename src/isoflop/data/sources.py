"""From what a user names (files, directories, patterns, a built-in corpus) to a fixed list of files with hashes."""

import glob
import hashlib
import platform
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from isoflop.errors import InputError

PYTHON_STDLIB: Final = "python-stdlib"
"""Name of the built-in corpus: the source of the Python standard library that is running."""
Kind = Literal["text", "jsonl", "parquet", "dataset"]

_JSONL: Final = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_NOT_LIBRARY: Final = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file to read documents from; a Hugging Face dataset on disk counts as one file."""

    path: Path
    kind: Kind
    parts: tuple[Path, ...]
    """What is on disk: the file itself, or all files of the dataset."""

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(part.stat().st_size for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class SourceSet:
    """One source as a user names it."""

    name: str
    path: Path
    """What to call it in a message."""
    root: Path
    """Names of files are relative to it."""
    files: tuple[SourceFile, ...]
    builtin: bool = False
    """A built-in corpus: files that are not UTF-8 text are skipped and counted; elsewhere they are an error."""

    def sha256(self, advance: Callable[[int], None]) -> str:
        """Hash of names and contents; calls `advance` with the number of bytes read."""
        total = hashlib.sha256()
        for part in (part for file in self.files for part in file.parts):
            try:
                with part.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise InputError(f"source {part} cannot be read: {error.strerror}.") from None
            total.update(f"{part.relative_to(self.root).as_posix()}\0{digest}\n".encode())
            advance(part.stat().st_size)
        return total.hexdigest()


def resolve_sources(sources: Iterable[str | Path] | str | Path) -> list[SourceSet]:
    """Find the files of every source, in an order that does not depend on the machine.

    Args:
        sources: files, directories (searched to the bottom; names that start with a dot are left out), Hugging Face
            datasets saved to disk, glob patterns, or the word "python-stdlib".

    Raises:
        InputError: if a source does not exist or holds no file.
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    found = [source_set for source in sources for source_set in _resolve(source)]
    if not found:
        raise InputError(f"sources is empty; name at least one file, one directory or {PYTHON_STDLIB}.")
    return found


def _resolve(source: str | Path) -> Iterator[SourceSet]:
    if str(source) == PYTHON_STDLIB:
        yield _python_stdlib()
        return
    path = Path(source)
    if path.is_file():
        yield _single(path)
    elif path.is_dir():
        yield _directory(path)
    elif path.exists():
        raise InputError(f"source {source} is neither a file nor a directory.")
    elif glob.has_magic(str(source)):
        matches = sorted(glob.glob(str(source), recursive=True))
        if not matches:
            raise InputError(f"source {source} matches no file.")
        for match in matches:
            if Path(match).is_file():
                yield _single(Path(match))
    else:
        raise InputError(
            f"source {source} does not exist; allowed: a file, a directory, a pattern such as 'books/*.txt', or the "
            f"word {PYTHON_STDLIB}."
        )


def _single(path: Path) -> SourceSet:
    return SourceSet(name=path.name, path=path, root=path.parent, files=(_file(path),))


def _file(path: Path) -> SourceFile:
    name = path.name.lower()
    kind: Kind = "jsonl" if name.endswith(_JSONL) else "parquet" if name.endswith(".parquet") else "text"
    return SourceFile(path=path, kind=kind, parts=(path,))


def _directory(path: Path) -> SourceSet:
    files = sorted(
        (file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))),
        key=lambda file: file.relative_to(path).as_posix(),
    )
    if not files:
        raise InputError(f"source {path} is a directory without a file to read.")
    name = path.resolve().name
    if (path / "dataset_dict.json").is_file() or all(
        (path / part).is_file() for part in ("dataset_info.json", "state.json")
    ):
        dataset = SourceFile(path=path, kind="dataset", parts=tuple(files))
        return SourceSet(name=name, path=path, root=path, files=(dataset,))
    return SourceSet(name=name, path=path, root=path, files=tuple(_file(file) for file in files))


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in relative.parts)


def _python_stdlib() -> SourceSet:
    """The standard library's own .py files, less those that differ between two builds of the same version."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        (file for file in root.rglob("*.py") if file.is_file() and _is_library(file.relative_to(root))),
        key=lambda file: file.relative_to(root).as_posix(),
    )
    if not files:
        raise InputError(f"source {PYTHON_STDLIB} is empty on this machine: no .py file below {root}.")
    name = f"{PYTHON_STDLIB} {platform.python_version()}"
    return SourceSet(
        name=name, path=Path(PYTHON_STDLIB), root=root, files=tuple(_file(file) for file in files), builtin=True
    )


def _is_library(relative: Path) -> bool:
    built_here = relative.name.startswith("_sysconfigdata") or relative.parts[0].startswith("config-")
    return not built_here and _NOT_LIBRARY.isdisjoint(relative.parts)
