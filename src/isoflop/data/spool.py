"""Documents on disk while a data set is made; in memory only a hash and a length for each."""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final

import numpy as np
import numpy.typing as npt

from isoflop.data.manifest import SMALL_SHARE
from isoflop.errors import InputError

Order = npt.NDArray[np.int64]

_DIGEST: Final = np.dtype([("first", "<u8"), ("second", "<u8")])


@dataclass(frozen=True, kw_only=True)
class Division:
    """Which documents go where, in what order."""

    train: Order
    validation: Order
    duplicates: int


class Spool:
    """Append documents, then read them back in any order.

    Args:
        file: an empty temporary file, open for reading and writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._lengths = array("Q")
        self._digests = bytearray()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def append(self, document: bytes) -> None:
        """Add a document at the end."""
        self._file.write(document)
        self._lengths.append(len(document))
        self._digests += hashlib.blake2b(document, digest_size=16).digest()
        self.bytes += len(document)

    def read(self, order: Order) -> Iterator[bytes]:
        """Documents by number, in the given order."""
        lengths = self.lengths
        offsets = np.cumsum(lengths) - lengths
        for number in order:
            self._file.seek(int(offsets[number]))
            yield self._file.read(int(lengths[number]))

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Bytes of each document."""
        return np.array(self._lengths, dtype=np.int64)

    def divide(self, *, validation_fraction: float, seed: int) -> Division:
        """Drop exact duplicates, split by document hash, shuffle by hash and seed.

        A document is in the validation split if its hash, as a fraction of the largest hash, is below
        `validation_fraction`, whatever else there is and whatever the seed; where that leaves a split empty, it gets
        the document whose hash is nearest. Where few documents leave the validation split with less than half of its
        share of the bytes, those of the next hashes are added until it has its share; one that would take it beyond
        twice the share is passed over. The order within a split depends on hashes and seed alone.

        Raises:
            InputError: if fewer than two different documents remain.
        """
        digests = np.frombuffer(bytes(self._digests), dtype=_DIGEST)
        unique = np.unique(digests, return_index=True)[1]
        if len(unique) < 2:
            size = int(self.lengths.max())
            raise InputError(
                f"the text is too small: it makes {len(unique)} document of {size} bytes, and the training and the "
                f"validation split need at least one each; give more text, or document_bytes below {size}."
            )
        first, second = digests["first"][unique], digests["second"][unique]
        validation = first / 2.0**64 < validation_fraction
        if not validation.any():
            validation[first.argmin()] = True
        elif validation.all():
            validation[first.argmax()] = False
        self._top_up(validation, first, unique, validation_fraction)
        shuffled = np.lexsort((first, _mix(second ^ _mix(np.array([seed], dtype=np.uint64)))))
        order, is_validation = unique[shuffled], validation[shuffled]
        return Division(
            train=order[~is_validation], validation=order[is_validation], duplicates=len(self) - len(unique)
        )

    def _top_up(
        self,
        validation: npt.NDArray[np.bool_],
        first: npt.NDArray[np.uint64],
        unique: npt.NDArray[np.int64],
        fraction: float,
    ) -> None:
        """Add documents to a validation split that holds less than half of its share of the bytes."""
        sizes = self.lengths[unique]
        target, held_out = fraction * sizes.sum(), int(sizes[validation].sum())
        if held_out >= SMALL_SHARE * target:
            return
        left = len(validation) - int(validation.sum())
        for number in np.argsort(first):
            if held_out >= target or left == 1:
                return
            if not validation[number] and held_out + sizes[number] <= 2 * target:
                validation[number] = True
                held_out += int(sizes[number])
                left -= 1


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele et al. 2014): a fixed bijection that scatters 64-bit integers."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
