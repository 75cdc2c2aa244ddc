"""Wrong text: one sentence that names the file and the place."""

import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data import prepare
from isoflop.data.readers import cut_documents
from isoflop.errors import InputError


@given(
    text=st.text(alphabet=st.sampled_from("ab\n\r é漢🙂"), max_size=600),
    document_bytes=st.integers(min_value=64, max_value=200),
)
def test_cutting_loses_nothing_and_splits_no_character(text: str, document_bytes: int) -> None:
    data = text.encode("utf-8")
    position = 0
    for offset, document in cut_documents(io.BytesIO(data), document_bytes):
        assert offset == position
        assert data[offset : offset + len(document)] == document
        assert 0 < len(document) <= document_bytes
        document.decode("utf-8")
        position += len(document)
    assert position == len(data)


def test_cuts_fall_at_the_last_blank_line_then_line_break_that_fits() -> None:
    def cut(data: bytes) -> list[bytes]:
        return [document for _, document in cut_documents(io.BytesIO(data), 64)]

    assert cut(b"a" * 20 + b"\n\n" + b"b" * 20 + b"\n\n" + b"c\n" * 20)[0] == b"a" * 20 + b"\n\n" + b"b" * 20 + b"\n\n"
    assert cut(b"a" * 20 + b"\r\n\r\n" + b"b\n" * 40)[0] == b"a" * 20 + b"\r\n\r\n"
    assert cut(b"a" * 50 + b"\n" + b"b" * 50) == [b"a" * 50 + b"\n", b"b" * 50]
    assert cut(b"a" * 100) == [b"a" * 64, b"a" * 36]


def test_cutting_does_not_depend_on_the_blocks_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = "\n\n".join("é" * (number % 97) + "\n" for number in range(300)).encode()
    expected = list(cut_documents(io.BytesIO(data), 128))
    monkeypatch.setattr("isoflop.data.readers._BLOCK_BYTES", 131)
    assert list(cut_documents(io.BytesIO(data), 128)) == expected


def fails(source: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        prepare([source], source.parent / "data", **options)  # type: ignore[arg-type]
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    assert "does not exist" in fails(tmp_path / "nowhere.txt")
    (tmp_path / "empty.txt").touch()
    assert "is empty" in fails(tmp_path / "empty.txt")
    (tmp_path / "blank.txt").write_text("  \n\n \t\n")
    assert "no text but white space" in fails(tmp_path / "blank.txt")
    (tmp_path / "folder").mkdir()
    assert "without a file" in fails(tmp_path / "folder")
    (tmp_path / "folder" / ".hidden").write_text("x")
    assert "without a file" in fails(tmp_path / "folder")
    (tmp_path / "rows.jsonl").write_text('{"text": null}\n{"text": ""}\n')
    assert "no text" in fails(tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match="sources is empty"):
        prepare([], tmp_path / "data")


def test_empty_files_among_others_are_no_matter(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text("a = 1\n")
    (package / "b.py").write_text("b = 1\n")
    manifest = prepare([package], tmp_path / "data")
    assert manifest.sources[0].files == 3
    assert sum(split.documents for split in manifest.splits.values()) == 2


def test_binary_and_other_encodings_are_named_with_the_offset(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"text\n" * 20_000 + b"\x00\x01")
    assert "is binary, not text: NUL byte at offset 100000" in fails(tmp_path / "binary.txt")
    (tmp_path / "latin.txt").write_bytes(b"plain\n\n" * 10_000 + "café".encode("latin-1") + b"\n" * 99)
    assert "not UTF-8: byte 0xe9 at offset 70003" in fails(tmp_path / "latin.txt")
    (tmp_path / "noise.txt").write_bytes(b"\x80" * 100_000)
    assert "byte 0x80 at offset 0" in fails(tmp_path / "noise.txt")
    (tmp_path / "utf16.txt").write_text("wide", encoding="utf-16")
    assert "is binary" in fails(tmp_path / "utf16.txt")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "marked.txt").write_text("first\n" * 12 + "\n" + "second\n" * 9, encoding="utf-8-sig")
    manifest = prepare([tmp_path / "marked.txt"], tmp_path / "data", document_bytes=80)
    assert sum(split.bytes for split in manifest.splits.values()) == 6 * 12 + 1 + 7 * 9
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "three"}\n', encoding="utf-8-sig")
    manifest = prepare([tmp_path / "rows.jsonl"], tmp_path / "rows")
    assert sum(split.bytes for split in manifest.splits.values()) == 8


def test_broken_json_lines_are_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"text": "fine"}) + "\n"
    path.write_text(good + good + '{"text": "cut off')
    assert "line 3 is not valid JSON: Unterminated string" in fails(path)
    path.write_text(good + "[1, 2]\n")
    assert "line 2 holds list; a JSON object is needed" in fails(path)
    path.write_text(good + '{"text": 5}\n')
    assert "line 2: column 'text' holds int; text is needed" in fails(path)
    path.write_text(good + '{"body": "x", "title": "y"}\n')
    assert "line 2 does not have; its columns: body, title" in fails(path)
    path.write_bytes(good.encode() + b'{"text": "caf\xe9"}\n')
    assert "line 2 is not UTF-8: byte 0xe9 at offset 13" in fails(path)
    path.write_text(good + '{"text": "\\ud800"}\n')
    assert "half of a surrogate pair" in fails(path)
    path.write_text(good + "[" * 200_000 + "\n")
    assert "line 2 is not valid JSON" in fails(path)


def test_damaged_containers_are_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(b'{"text": "fine"}\n' * 1000, mtime=0)
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in fails(path)
    path.write_bytes(b"not gzip at all")
    assert "cannot be read: Not a gzipped file" in fails(path)
    path = tmp_path / "table.parquet"
    path.write_bytes(b"PAR1 nonsense")
    assert "cannot be read as Parquet" in fails(path)
    path = tmp_path / "dataset"
    path.mkdir()
    for name in ("dataset_info.json", "state.json"):
        (path / name).write_text("{}")
    assert "cannot be read as a Hugging Face dataset" in fails(path)


def test_a_missing_text_column_lists_the_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table({"body": ["a"], "number": [1]}), path)
    assert "its columns: body, number" in fails(path)
    assert "row 1: column 'number' holds int" in fails(path, text_column="number")
    path = tmp_path / "dataset"
    datasets.Dataset.from_dict({"body": ["a"], "number": [1]}).save_to_disk(path)
    assert "its columns: body, number" in fails(path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction is 0.0; it must be greater than 0 and less than 1."),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0; it must be greater than 0 and less than 1."),
        ({"validation_fraction": float("nan")}, "validation_fraction is nan"),
        ({"document_bytes": 10}, "document_bytes is 10; it must be at least 64."),
        ({"document_bytes": "1e5"}, "document_bytes is '1e5'; it must be a whole number."),
        ({"validation_fraction": "5%"}, "validation_fraction is '5%'; it must be a number."),
        ({"seed": -1}, "seed is -1"),
        ({"shard_tokens": 0}, "shard_tokens is 0"),
        ({"vocab_size": 300}, "vocab_size is 300; it goes with tokenizer bpe alone"),
        ({"tokenizer": "bpe"}, "vocab_size is None; tokenizer bpe needs at least 257"),
        ({"tokenizer": "bpe", "vocab_size": 256}, "vocab_size is 256; tokenizer bpe needs at least 257"),
        ({"tokenizer": "nowhere.json"}, "tokenizer is nowhere.json, which is not a file; allowed: bytes, bpe"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, object], sentence: str) -> None:
    (tmp_path / "text.txt").write_text("one\n\ntwo")
    with pytest.raises(InputError) as caught:
        prepare(tmp_path / "text.txt", tmp_path / "data", **options)  # type: ignore[arg-type]
    assert sentence in str(caught.value)
