"""From text to a data directory: what is kept, where it goes, and that the directory is whole, the same and reused."""

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from isoflop.data import PYTHON_STDLIB, TokenData, prepare
from isoflop.data.spool import Spool
from isoflop.errors import InputError, RunError


def book(seed: int, paragraphs: int = 400) -> str:
    words = random.Random(seed)
    return "\n\n".join(
        " ".join("".join(words.choices("abcdefghijklmnopqrstuvwxyzäß–", k=words.randint(1, 9))) for _ in range(30))
        for _ in range(paragraphs)
    )


@pytest.fixture
def books(tmp_path: Path) -> Path:
    directory = tmp_path / "books"
    directory.mkdir()
    for seed in range(3):
        (directory / f"{seed}.txt").write_text(book(seed), encoding="utf-8")
    return directory


def documents(data: TokenData, split: str) -> list[bytes]:
    """The documents of a data set of bytes."""
    tokens = np.asarray(data.tokens(split))
    ends = np.flatnonzero(tokens == data.manifest.end_of_document)
    assert ends[-1] == len(tokens) - 1
    starts = [0, *(ends[:-1] + 1)]
    return [tokens[start:end].astype(np.uint8).tobytes() for start, end in zip(starts, ends, strict=True)]


def all_documents(data: TokenData) -> list[bytes]:
    return documents(data, "train") + documents(data, "validation")


def test_every_byte_of_the_text_is_in_exactly_one_split(books: Path, tmp_path: Path) -> None:
    manifest = prepare([books], tmp_path / "data", document_bytes=2048)
    data = TokenData(tmp_path / "data")
    data.verify()
    assert data.manifest == manifest
    assert data.vocab_size == 257
    text = b"".join(sorted(all_documents(data)))
    expected = b"".join(file.read_bytes() for file in books.iterdir())
    assert sorted(text) == sorted(expected)
    for split, described in manifest.splits.items():
        found = documents(data, split)
        assert described.documents == len(found) > 0
        assert described.bytes == sum(map(len, found))
        assert described.tokens == described.bytes + described.documents == len(data.tokens(split))
    assert not set(documents(data, "train")) & set(documents(data, "validation"))
    assert 0.01 < manifest.splits["validation"].bytes / len(expected) < 0.12
    assert data.bytes_per_token == manifest.splits["validation"].bytes / manifest.splits["validation"].tokens


def test_documents_are_whole_paragraphs(books: Path, tmp_path: Path) -> None:
    prepare([books], tmp_path / "data", document_bytes=2048)
    for document in all_documents(TokenData(tmp_path / "data")):
        assert len(document) <= 2048
        document.decode("utf-8")
        last_of_a_file = any(file.read_bytes().endswith(document) for file in books.iterdir())
        assert document.endswith(b"\n\n") or last_of_a_file


def test_order_and_grouping_of_the_sources_do_not_matter(books: Path, tmp_path: Path) -> None:
    files = sorted(books.iterdir())
    prepare(files, tmp_path / "a", document_bytes=2048)
    prepare(reversed(files), tmp_path / "b", document_bytes=2048)
    prepare(books, tmp_path / "c", document_bytes=2048)
    a, b, c = (TokenData(tmp_path / name).manifest for name in "abc")
    assert a == b
    assert a.splits == c.splits


def test_a_pattern_names_files(books: Path, tmp_path: Path) -> None:
    (books / "notes.md").write_text("not wanted")
    manifest = prepare(str(books / "*.txt"), tmp_path / "data")
    assert [source.name for source in manifest.sources] == ["0.txt", "1.txt", "2.txt"]
    with pytest.raises(InputError, match=r"\*\.pdf matches no file"):
        prepare(str(books / "*.pdf"), tmp_path / "other")


def test_the_seed_shuffles_but_does_not_move_documents_across_splits(books: Path, tmp_path: Path) -> None:
    prepare([books], tmp_path / "a", document_bytes=2048, seed=0)
    prepare([books], tmp_path / "b", document_bytes=2048, seed=1)
    a, b = (TokenData(tmp_path / name) for name in "ab")
    for split in ("train", "validation"):
        assert documents(a, split) != documents(b, split)
        assert sorted(documents(a, split)) == sorted(documents(b, split))


def test_more_text_does_not_move_documents_across_splits(books: Path, tmp_path: Path) -> None:
    prepare(books / "0.txt", tmp_path / "a", document_bytes=512)
    prepare(books, tmp_path / "b", document_bytes=512)
    a, b = (TokenData(tmp_path / name) for name in "ab")
    for split in ("train", "validation"):
        assert set(documents(a, split)) <= set(documents(b, split))


def test_exact_duplicates_are_dropped(tmp_path: Path) -> None:
    rows = [{"text": f"document {number % 50}"} for number in range(80)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = prepare(tmp_path / "rows.jsonl", tmp_path / "data")
    assert manifest.duplicates_dropped == 30
    found = [document.decode() for document in all_documents(TokenData(tmp_path / "data"))]
    assert sorted(found) == sorted({row["text"] for row in rows})


def test_two_documents_are_enough_and_one_is_not(tmp_path: Path) -> None:
    for number in range(20):
        source = tmp_path / f"{number}.jsonl"
        source.write_text(f'{{"text": "first {number}"}}\n{{"text": "second {number}"}}\n')
        manifest = prepare(source, tmp_path / f"data{number}")
        assert [split.documents for split in manifest.splits.values()] == [1, 1]
    (tmp_path / "one.txt").write_text("only a few words")
    with pytest.raises(InputError, match=r"1 document of 16 bytes"):
        prepare(tmp_path / "one.txt", tmp_path / "data")


def test_jsonl_parquet_and_datasets_give_the_same_documents(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    texts = [f"text number {number} – naïve\n\nwith two paragraphs" for number in range(40)]
    rows = [*texts, None, "  \n"]
    lines = "\n".join(json.dumps({"body": text, "id": 1}) for text in rows)
    (tmp_path / "a.jsonl").write_text(lines + "\n\n")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    parquet.write_table(pyarrow.table({"body": rows, "id": [1] * len(rows)}), tmp_path / "c.parquet")
    datasets.Dataset.from_dict({"body": rows, "id": [1] * len(rows)}).save_to_disk(tmp_path / "d")
    half = len(rows) // 2
    parts = {
        "train": datasets.Dataset.from_dict({"body": rows[:half]}),
        "test": datasets.Dataset.from_dict({"body": rows[half:]}),
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "e")
    splits = []
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d", "e"):
        splits.append(prepare(tmp_path / name, tmp_path / f"data-{name}", text_column="body").splits)
    assert all(split == splits[0] for split in splits)
    found = all_documents(TokenData(tmp_path / "data-d"))
    assert sorted(document.decode() for document in found) == sorted(texts)


def test_the_standard_library_is_a_corpus(tmp_path: Path) -> None:
    manifest = prepare([PYTHON_STDLIB], tmp_path / "data")
    (source,) = manifest.sources
    assert source.name == f"python-stdlib {sys.version.split()[0]}"
    assert source.files > 400
    assert source.skipped < 0.02 * source.files
    text = b"".join(all_documents(TokenData(tmp_path / "data")))
    assert hashlib.__doc__ is not None
    assert hashlib.__doc__.splitlines()[0].encode() in text
    assert b"site-packages/numpy/__init__.py" not in text
    assert manifest.splits["train"].tokens > 5_000_000


def test_the_same_data_is_kept_and_other_data_refused(books: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    first = prepare(books, out)
    written = (out / "train-00000.bin").stat().st_mtime_ns
    assert prepare(books, out) == first
    assert prepare(books, out, overwrite=True) == first
    assert (out / "train-00000.bin").stat().st_mtime_ns == written
    with pytest.raises(InputError, match=r"validation_fraction is 0\.05 there and 0\.5 here"):
        prepare(books, out, validation_fraction=0.5)
    (books / "0.txt").write_text("another text\n\n" * 9)
    with pytest.raises(InputError, match="made from other sources"):
        prepare(books, out)
    changed = prepare(books, out, overwrite=True)
    assert changed.sources != first.sources
    TokenData(out).verify()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_truncated_directory_is_refused_and_can_be_overwritten(books: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    first = prepare(books, out)
    with (out / "train-00000.bin").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"train-00000\.bin has 1000 bytes"):
        prepare(books, out)
    assert prepare(books, out, overwrite=True) == first
    TokenData(out).verify()
    with (out / "validation-00000.bin").open("r+b") as file:
        file.write(b"\7\7\7\7")
    assert prepare(books, out, overwrite=True) == first
    TokenData(out).verify()


def test_a_directory_with_other_files_is_never_overwritten(books: Path, tmp_path: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds 'thesis\.tex'"):
            prepare(books, out, overwrite=overwrite)
    assert (out / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="which is a file"):
        prepare(books, tmp_path / "file")
    with pytest.raises(InputError, match="cannot be made"):
        prepare(books, tmp_path / "file" / "data")


def test_a_failure_leaves_nothing_behind(books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (books / "9.txt").write_bytes(b"fine so far\0")
    out = tmp_path / "deep" / "data"
    with pytest.raises(InputError, match="NUL byte at offset 11"):
        prepare(books, out)
    assert list((tmp_path / "deep").iterdir()) == []
    (books / "9.txt").unlink()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunError, match="No space left"):
        prepare(books, out)
    assert list((tmp_path / "deep").iterdir()) == []


def test_two_processes_may_make_the_same_data(books: Path, tmp_path: Path) -> None:
    code = "import sys; from isoflop.data import prepare; prepare(sys.argv[1], sys.argv[2], document_bytes=256)"
    command = [sys.executable, "-c", code, str(books), str(tmp_path / "data")]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in started:
        assert process.wait(60) == 0, process.stderr and process.stderr.read()
        assert process.stderr is not None
        process.stderr.close()
    TokenData(tmp_path / "data").verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["books", "data"]


def test_shards_of_any_size_hold_the_same_tokens(books: Path, tmp_path: Path) -> None:
    prepare(books, tmp_path / "one")
    manifest = prepare(books, tmp_path / "many", shard_tokens=10_007)
    one, many = TokenData(tmp_path / "one"), TokenData(tmp_path / "many")
    many.verify()
    shards = manifest.splits["train"].shards
    assert len(shards) > 3
    assert {shard.tokens for shard in shards[:-1]} == {10_007}
    for split in ("train", "validation"):
        np.testing.assert_array_equal(np.asarray(one.tokens(split)), np.asarray(many.tokens(split)))
    expected = np.asarray(one.tokens("train"))
    for start, stop in ((0, 5), (10_000, 10_020), (10_007, 10_008), (9_000, 31_000), (-7, None), (5, 5), (9, 2)):
        np.testing.assert_array_equal(many.tokens("train")[start:stop], expected[start:stop])


def test_a_large_file_streams(tmp_path: Path) -> None:
    block = ("".join(random.Random(0).choices("abcdefgh \n", k=2**20))).encode()
    with (tmp_path / "large.txt").open("wb") as file:
        for number in range(64):
            file.write(str(number).encode() + block)
    tracemalloc.start()
    try:
        prepare(tmp_path / "large.txt", tmp_path / "data")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * 2**20


def test_progress_is_reported(books: Path, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    prepare(books, tmp_path / "data", progress=lambda stage, *at: seen.setdefault(stage, []).append(at))
    assert list(seen) == ["hashing sources", "reading", "tokenizing (train)", "tokenizing (validation)"]
    for reports in seen.values():
        assert all(0 <= done <= total for done, total in reports)
        assert reports == sorted(reports)
        assert reports[-1][0] == reports[-1][1]


def spooled(sizes: list[int]) -> tuple[Spool, list[bytes]]:
    documents = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    spool = Spool(io.BytesIO())
    for document in documents:
        spool.append(document)
    return spool, documents


def shares(sizes: list[int]) -> list[float]:
    """First half of each document's hash, as a fraction of the largest."""
    _, documents = spooled(sizes)
    return [int.from_bytes(hashlib.blake2b(d, digest_size=16).digest()[:8], "little") / 2**64 for d in documents]


def test_a_validation_split_below_half_of_its_share_is_filled_up_by_hash_order() -> None:
    sizes = [1000] * 13
    assert sum(share < 0.2 for share in shares(sizes)) == 1  # 1,000 bytes of the 2,600 that it should have
    division = spooled(sizes)[0].divide(validation_fraction=0.2, seed=0)
    assert set(division.validation) == set(np.argsort(shares(sizes))[:3])
    assert len(division.train) == 10
    assert set(spooled(sizes)[0].divide(validation_fraction=0.2, seed=7).validation) == set(division.validation)


def test_a_validation_split_near_its_share_stays_that_of_the_hashes() -> None:
    for fraction in (0.05, 0.06, 0.2):
        sizes = [1000] * 400
        division = spooled(sizes)[0].divide(validation_fraction=fraction, seed=0)
        assert set(division.validation) == {n for n, share in enumerate(shares(sizes)) if share < fraction}


def test_documents_too_large_to_hold_out_stay_and_the_split_is_warned_of(tmp_path: Path) -> None:
    tiny = min(
        (f"tiny {n}" for n in range(50)),
        key=lambda text: hashlib.blake2b(text.encode(), digest_size=16).digest()[7::-1],
    )
    texts = [tiny, " ".join(["hen"] * 9000), " ".join(["cat"] * 9000)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    manifest = prepare(tmp_path / "a.jsonl", tmp_path / "out")
    assert manifest.splits["validation"].documents == 1
    assert manifest.warning.startswith(f"the validation split has {len(tiny)} of 72,00")
    (tmp_path / "b.txt").write_text(book(0), encoding="utf-8")
    assert prepare(tmp_path / "b.txt", tmp_path / "b", document_bytes=1024).warning == ""
