"""Opening a data directory: damage is found and named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.data import TokenData, prepare
from isoflop.errors import InputError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("\n\n".join(f"paragraph {number}" for number in range(500)))
    prepare(tmp_path / "text.txt", tmp_path / "data", document_bytes=128, shard_tokens=1000)
    return tmp_path / "data"


def change(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "manifest.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def failure(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tokens_are_little_endian_and_read_only(directory: Path) -> None:
    data = TokenData(directory)
    first = np.frombuffer((directory / "train-00000.bin").read_bytes(), dtype="<u2")
    np.testing.assert_array_equal(data.tokens("train")[:1000], first)
    with pytest.raises(ValueError, match="read-only"):
        data.tokens("train")[:10][0] = 1


def test_windows_cross_shards(directory: Path) -> None:
    tokens = TokenData(directory).tokens("train")
    whole = np.asarray(tokens)
    starts = np.array([0, 990, 1000, 1999, len(tokens) - 1500])
    windows = tokens.windows(starts, 1500)
    assert windows.dtype == np.int64
    np.testing.assert_array_equal(windows, np.stack([whole[start : start + 1500] for start in starts]))


def test_no_data_directory(tmp_path: Path) -> None:
    assert "is not a data directory" in failure(lambda: TokenData(tmp_path / "nowhere"))
    assert "make one with `isoflop prepare`" in failure(lambda: TokenData(tmp_path))


def test_bad_manifests(directory: Path) -> None:
    good = (directory / "manifest.json").read_text()
    (directory / "manifest.json").write_text(good[:100])
    assert "is not valid JSON" in failure(lambda: TokenData(directory))
    (directory / "manifest.json").write_text("[]")
    assert "has no format_version" in failure(lambda: TokenData(directory))
    edits: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (lambda m: m.update(format_version=99), "format_version is 99; this isoflop reads 1"),
        (lambda m: m.pop("vocab_size"), "vocab_size: field required"),
        (lambda m: m.update(vocab_size="many"), "vocab_size: input should be a valid integer"),
        (lambda m: m["splits"].pop("validation"), "splits lacks 'validation'"),
        (lambda m: m.update(dtype="float64"), "dtype is 'float64'; allowed: uint16, uint32"),
        (lambda m: m["splits"]["train"]["shards"].pop(), "shards of train do not add up"),
    ]
    for edit, sentence in edits:
        (directory / "manifest.json").write_text(good)
        change(directory, edit)
        assert sentence in failure(lambda: TokenData(directory))


def test_damaged_shards(directory: Path) -> None:
    path = directory / "train-00001.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    assert "train-00001.bin has 1998 bytes and should have 2000" in failure(lambda: TokenData(directory))
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    data = TokenData(directory)
    assert f"{path} is damaged" in failure(data.verify)
    path.unlink()
    assert "train-00001.bin cannot be read: No such file" in failure(lambda: TokenData(directory))
    assert "train-00001.bin cannot be read: No such file" in failure(data.verify)


def test_an_unknown_split(directory: Path) -> None:
    assert "split is 'test'; allowed: train, validation" in failure(lambda: TokenData(directory).tokens("test"))
