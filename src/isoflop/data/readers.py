"""From source files to documents (UTF-8 bytes), one at a time, so that inputs larger than memory stream."""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

from isoflop.data.sources import SourceFile
from isoflop.errors import InputError

_BLOCK_BYTES: Final = 8 * 2**20
_ROWS: Final = 1024


class NotTextError(InputError):
    """A plain-text file turned out to be binary or not UTF-8."""


def read_documents(file: SourceFile, *, text_column: str, document_bytes: int) -> Iterator[bytes]:
    """Documents of one file; those of nothing but white space are left out.

    A plain-text file (.gz or not) is cut into documents of at most `document_bytes`; a row of JSON lines, Parquet or a
    Hugging Face dataset is one document, the text in `text_column`; a null there is no document.

    Raises:
        InputError: naming the file and the place, if it is binary, not UTF-8, broken, or has no such column.
    """
    match file.kind:
        case "text":
            documents = _read_text(file.path, document_bytes)
        case "jsonl":
            documents = _read_jsonl(file.path, text_column)
        case "parquet":
            documents = _read_parquet(file.path, text_column)
        case "dataset":
            documents = _read_dataset(file.path, text_column)
    return (document for document in documents if document and not document.isspace())


def cut_documents(stream: IO[bytes], document_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Cut a byte stream into (offset, document) of at most `document_bytes` that join to the whole.

    A cut falls after the last blank line that fits; without one after the last line break; else between characters.
    """
    rest, offset = b"", 0
    while block := stream.read(max(_BLOCK_BYTES, document_bytes)):
        rest += block
        start = 0
        while len(rest) - start > document_bytes:
            end = _cut_point(rest, start, start + document_bytes)
            yield offset + start, rest[start:end]
            start = end
        rest, offset = rest[start:], offset + start
    if rest:
        yield offset, rest


def _cut_point(data: bytes, start: int, limit: int) -> int:
    for marks in ((b"\n\n", b"\n\r\n"), (b"\n",)):
        found = [at + len(mark) for mark in marks if (at := data.rfind(mark, start, limit)) >= 0]
        if found:
            return max(found)
    end = limit
    while data[end] & 0xC0 == 0x80 and end > limit - 3:  # inside a character
        end -= 1
    return end


def _read_text(path: Path, document_bytes: int) -> Iterator[bytes]:
    with _opened(path) as stream:
        for offset, document in cut_documents(stream, document_bytes):
            if (nul := document.find(b"\0")) >= 0:
                raise NotTextError(f"source {path} is binary, not text: NUL byte at offset {offset + nul}.")
            try:
                document.decode("utf-8")
            except UnicodeDecodeError as error:
                raise NotTextError(
                    f"source {path} is not UTF-8: byte 0x{document[error.start]:02x} at offset {offset + error.start}; "
                    "convert it to UTF-8 first."
                ) from None
            yield document.removeprefix(codecs.BOM_UTF8) if offset == 0 else document


def _read_jsonl(path: Path, text_column: str) -> Iterator[bytes]:
    with _opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise InputError(
                    f"source {path}, line {number} is not UTF-8: byte 0x{line[error.start]:02x} at offset "
                    f"{error.start} of the line."
                ) from None
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", None) or type(error).__name__
                raise InputError(f"source {path}, line {number} is not valid JSON: {reason}.") from None
            if not isinstance(row, dict):
                raise InputError(f"source {path}, line {number} holds {type(row).__name__}; a JSON object is needed.")
            if text_column not in row:
                raise _no_column(f"{path}, line {number}", text_column, row)
            yield _encoded(row[text_column], f"{path}, line {number}", text_column)


def _read_parquet(path: Path, text_column: str) -> Iterator[bytes]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"source {path} is Parquet, which needs pyarrow: install it with `pip install 'isoflop[parquet]'`."
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            columns = table.schema_arrow.names
            if text_column not in columns:
                raise _no_column(str(path), text_column, columns)
            row = 0
            for batch in table.iter_batches(batch_size=_ROWS, columns=[text_column]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield _encoded(text, f"{path}, row {row}", text_column)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"source {path} cannot be read as Parquet: {_first_line(error)}.") from None


def _read_dataset(path: Path, text_column: str) -> Iterator[bytes]:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"source {path} is a Hugging Face dataset, which needs datasets: install it with "
            "`pip install 'isoflop[datasets]'`."
        ) from None
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises a dozen unrelated types for a damaged directory
        raise InputError(f"source {path} cannot be read as a Hugging Face dataset: {_first_line(error)}.") from None
    parts = [loaded[name] for name in sorted(loaded)] if isinstance(loaded, datasets.DatasetDict) else [loaded]
    for part in parts:
        if text_column not in part.column_names:
            raise _no_column(str(path), text_column, part.column_names)
        row = 0
        for batch in part.select_columns([text_column]).with_format(None).iter(batch_size=_ROWS):
            for text in batch[text_column]:
                row += 1
                yield _encoded(text, f"{path}, row {row}", text_column)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked if its name ends in .gz; reading errors become InputError."""
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            yield cast(IO[bytes], stream)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise InputError(f"source {path} cannot be read: {reason}.") from None


def _encoded(text: Any, place: str, text_column: str) -> bytes:
    if text is None:
        return b""
    if not isinstance(text, str):
        raise InputError(f"source {place}: column {text_column!r} holds {type(text).__name__}; text is needed.")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(
            f"source {place}: column {text_column!r} holds half of a surrogate pair, which UTF-8 cannot store."
        ) from None


def _no_column(place: str, text_column: str, columns: Iterable[str]) -> InputError:
    return InputError(
        f"text_column is {text_column!r}, which source {place} does not have; its columns: {', '.join(columns)}."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
