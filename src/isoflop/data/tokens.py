"""Opening a data directory."""

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from isoflop.data.manifest import TOKENIZER_FILE, Manifest, read_manifest
from isoflop.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from isoflop.errors import InputError


class Tokens:
    """The tokens of one split: a read-only sequence over its memory-mapped shards.

    `len(tokens)` counts them, `tokens[a:b]` reads some, `np.asarray(tokens)` reads all.
    """

    def __init__(self, shards: list[np.memmap]) -> None:
        self._shards = [np.asarray(shard) for shard in shards]
        self._ends = np.cumsum([len(shard) for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: slice) -> npt.NDArray[np.integer]:
        start, stop, step = key.indices(len(self))
        if step != 1:
            raise IndexError(f"slice step is {step}; only 1 is supported")
        return self._read(start, stop) if start < stop else self._shards[0][:0]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.integer]:
        return np.array(self[:], dtype=dtype)

    def windows(self, starts: npt.NDArray[np.integer], length: int) -> npt.NDArray[np.int64]:
        """The `length` tokens from each start on: [len(starts), length]."""
        windows = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(windows, starts.tolist(), strict=True):
            row[:] = self._read(start, start + length)
        return windows

    def _read(self, start: int, stop: int) -> npt.NDArray[np.integer]:
        first = int(np.searchsorted(self._ends, start, side="right"))
        pieces = []
        for shard, end in zip(self._shards[first:], self._ends[first:].tolist(), strict=True):
            begin = end - len(shard)
            pieces.append(shard[max(start - begin, 0) : stop - begin])
            if stop <= end:
                break
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class TokenData:
    """A data directory that `prepare` made.

    Args:
        path: the directory.

    Raises:
        InputError: if it is no data directory, or a shard is missing or has another size than the manifest says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self._tokens = {split: Tokens(self._open(split)) for split in self.manifest.splits}

    @property
    def vocab_size(self) -> int:
        """Number of token ids, end-of-document included."""
        return self.manifest.vocab_size

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of validation text per validation token: bits/byte = loss in nats / ln 2 / bytes_per_token."""
        validation = self.manifest.splits["validation"]
        return validation.bytes / validation.tokens

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of this data; only a subword one needs the tokenizers library."""
        if self.manifest.tokenizer_sha256 is None:
            return ByteTokenizer()
        return load_tokenizer(self.path / TOKENIZER_FILE)

    def tokens(self, split: str) -> Tokens:
        """All tokens of "train" or "validation"."""
        if split not in self._tokens:
            raise InputError(f"split is {split!r}; allowed: {', '.join(self._tokens)}.")
        return self._tokens[split]

    def verify(self) -> None:
        """Hash every file and compare with the manifest.

        Raises:
            InputError: naming the first file that differs.
        """
        expected = {shard.file: shard.sha256 for split in self.manifest.splits.values() for shard in split.shards}
        if self.manifest.tokenizer_sha256 is not None:
            expected[TOKENIZER_FILE] = self.manifest.tokenizer_sha256
        for name, sha256 in expected.items():
            try:
                with (self.path / name).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise InputError(f"data file {self.path / name} cannot be read: {error.strerror}.") from None
            if found != sha256:
                raise InputError(f"data file {self.path / name} is damaged: its hash is not the manifest's.")

    def _open(self, split: str) -> list[np.memmap]:
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        shards = []
        described = self.manifest.splits[split]
        if not described.shards or sum(shard.tokens for shard in described.shards) != described.tokens:
            raise InputError(
                f"{self.path}: the manifest's shards of {split} do not add up to {described.tokens} tokens."
            )
        for shard in described.shards:
            path, expected = self.path / shard.file, shard.tokens * dtype.itemsize
            try:
                size = path.stat().st_size
            except OSError as error:
                raise InputError(f"shard {path} cannot be read: {error.strerror}; make the data again.") from None
            if size != expected:
                raise InputError(
                    f"shard {path} has {size} bytes and should have {expected}: truncated or changed; make the data "
                    "again."
                )
            shards.append(np.memmap(path, dtype=dtype, mode="r"))
        return shards
