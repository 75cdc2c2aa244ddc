"""Writing token shards."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt

from isoflop.data.manifest import Shard

SHARD_TOKENS: Final = 2**27
"""Most tokens in one file: 256 MiB of uint16."""
_BUFFER_TOKENS: Final = 2**20


def write_shards(
    documents: Iterable[npt.NDArray[np.uint32]], directory: Path, split: str, dtype: str, *, shard_tokens: int
) -> tuple[Shard, ...]:
    """Write token ids as `split`-00000.bin, … (little-endian `dtype`), each flushed to disk.

    A document may run on from one shard to the next: the shards of a split are one sequence of tokens.
    """
    shards: list[Shard] = []
    pieces = _buffered(documents, np.dtype(dtype).newbyteorder("<"))
    piece = next(pieces, None)
    while piece is not None:
        name, digest, tokens = f"{split}-{len(shards):05d}.bin", hashlib.sha256(), 0
        with (directory / name).open("wb") as file:
            while piece is not None and tokens < shard_tokens:
                fitting, rest = piece[: shard_tokens - tokens], piece[shard_tokens - tokens :]
                _write(file, fitting.tobytes(), digest)
                tokens += len(fitting)
                piece = rest if len(rest) else next(pieces, None)
            file.flush()
            os.fsync(file.fileno())
        shards.append(Shard(file=name, tokens=tokens, sha256=digest.hexdigest()))
    return tuple(shards)


def _write(file: IO[bytes], data: bytes, digest: "hashlib._Hash") -> None:
    file.write(data)
    digest.update(data)


def _buffered(documents: Iterable[npt.NDArray[np.uint32]], dtype: np.dtype) -> Iterator[npt.NDArray]:
    """The documents joined into larger pieces."""
    waiting: list[npt.NDArray[np.uint32]] = []
    size = 0
    for document in documents:
        waiting.append(document)
        size += len(document)
        if size >= _BUFFER_TOKENS:
            yield np.concatenate(waiting).astype(dtype)
            waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting).astype(dtype)
